//! What `iptables-save` says, as the rule model has it.
use reach::Backend;
use reach::ir::*;
use reach::parse::iptables_save;

fn dump(rule: &str) -> String {
    format!("*filter\n:INPUT DROP [0:0]\n:USER - [0:0]\n{rule}\nCOMMIT\n")
}
#[test]
fn scratch() {
    for (f, v6) in [
        ("docker20.iptables-save", false),
        ("docker20.ip6tables-save", true),
        ("vocabulary.iptables-save", false),
    ] {
        let text = std::fs::read_to_string(format!("tests/fixtures/{f}")).unwrap();
        let (r, notes) = iptables_save(&text, v6, Backend::IptablesNft);
        println!("{f}: {} rules", r.rule_count());
        for n in notes {
            println!("  {n:?}");
        }
        for (at, rule) in r.rules() {
            if rule.statements.iter().any(|s| {
                matches!(
                    s,
                    Statement::Unknown { .. } | Statement::Match(Match::Unknown { .. })
                )
            }) {
                println!("{at:?} {}", rule.text);
            }
        }
    }
    let _ = dump("");
}
