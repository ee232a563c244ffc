//! What `nft list ruleset` says, as the rule model has it.
use reach::ir::*;
use reach::parse::nft;

fn unknowns(r: &reach::Ruleset) -> Vec<String> {
    r.rules()
        .filter(|(_, rule)| {
            rule.statements.iter().any(|s| {
                matches!(
                    s,
                    Statement::Unknown { .. } | Statement::Match(Match::Unknown { .. })
                )
            })
        })
        .map(|(at, rule)| {
            format!(
                "{} {} {}: {} {:?}",
                at.table, at.chain, at.position, rule.text, rule.statements
            )
        })
        .collect()
}
#[test]
fn scratch() {
    for f in ["native", "vocabulary", "docker20"] {
        let a = std::fs::read_to_string(format!("tests/fixtures/{f}.nft")).unwrap();
        let b = std::fs::read_to_string(format!("tests/fixtures/{f}.nft.json")).unwrap();
        let (text, tn) = nft(&a);
        let (json, jn) = nft(&b);
        println!("== {f} {} {}", text.rule_count(), json.rule_count());
        for u in unknowns(&text) {
            println!("T {u}");
        }
        for u in unknowns(&json) {
            println!("J {u}");
        }
        for n in tn {
            println!("TN {n:?}");
        }
        for n in jn {
            println!("JN {n:?}");
        }
        let (t, j) = (text.bare(), json.bare());
        for (a, b) in t.tables.iter().zip(&j.tables) {
            if a.backend != Backend::Nft {
                continue;
            }
            for (c, d) in a.chains.iter().zip(&b.chains) {
                if (&c.name, &c.base) != (&d.name, &d.base) {
                    println!("CH {:?} {:?}", c.name, d.name);
                }
                for (i, (x, y)) in c.rules.iter().zip(&d.rules).enumerate() {
                    if x != y {
                        println!("DIFF {} {i}\n  {:?}\n  {:?}", c.name, x, y);
                    }
                }
            }
            for (x, y) in a.sets.iter().zip(&b.sets) {
                if x != y {
                    println!("SET\n  {x:?}\n  {y:?}");
                }
            }
        }
    }
}
use reach::Backend;
