//! One hook alone: what `portcullis reach` answers from rule dumps.
#![allow(clippy::unwrap_used)] // A test may fail so.
use reach::{Answer, Backend, CtState, Hook, HookQuery, Proto, Ruleset, parse, walk_hook};

fn rules(save: &str) -> Ruleset {
    let (rules, notes) = parse::iptables_save(save, false, Backend::IptablesNft);
    assert_eq!(notes, []);
    rules
}

fn ask(hook: Hook, dport: u16) -> HookQuery {
    HookQuery {
        hook,
        proto: Proto::Tcp,
        dst: None,
        ipv6: false,
        dport,
        sport: None,
        iif: Some("eth0".into()),
        oif: None,
        state: CtState::New,
    }
}

/// Everyone in words: "admitted | conditional | blocked".
fn show(answer: &Answer) -> String {
    let set = |s: &reach::AddrSet| {
        let nets: Vec<String> = s.to_cidrs().iter().map(ToString::to_string).collect();
        if nets.len() > 6 {
            format!("{} nets", nets.len())
        } else {
            nets.join(" ")
        }
    };
    format!(
        "{} | {} | {}",
        set(&answer.admitted),
        set(&answer.conditional),
        set(&answer.blocked)
    )
}

fn check(save: &str, query: HookQuery, expect: &str) -> Answer {
    let answer = walk_hook(&rules(save), &query);
    assert_eq!(show(&answer), expect, "{answer:#?}");
    answer
}

const UFW: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
:ufw-user-limit - [0:0]
:ufw-user-limit-accept - [0:0]
:ufw-not-local - [0:0]
:ufw-after-input - [0:0]
:ufw-logging-deny - [0:0]
:ufw-skip-to-policy-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"
-A ufw-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --set --name DEFAULT --mask 255.255.255.255 --rsource
-A ufw-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --seconds 30 --hitcount 6 --name DEFAULT --mask 255.255.255.255 --rsource -j ufw-user-limit
-A ufw-user-input -p tcp -m tcp --dport 22 -j ufw-user-limit-accept
-A ufw-user-input -p tcp -m tcp --dport 443 -j ACCEPT
-A ufw-user-input -s 192.168.0.0/16 -p tcp -m tcp --dport 11434 -j ACCEPT
-A ufw-user-input -s 10.0.0.0/8 -p tcp -m multiport --dports 8000:8010,9000 -j ACCEPT
-A ufw-user-input -s 203.0.113.0/24 -j DROP
-A ufw-user-limit -m limit --limit 3/min -j LOG --log-prefix \"[UFW LIMIT BLOCK] \"
-A ufw-user-limit -j REJECT --reject-with icmp-port-unreachable
-A ufw-user-limit-accept -j ACCEPT
-A ufw-after-input -p udp -m udp --dport 137 -j ufw-skip-to-policy-input
-A ufw-after-input -p tcp -m tcp --dport 445 -j ufw-skip-to-policy-input
-A ufw-skip-to-policy-input -j DROP
COMMIT
";

#[test]
fn ufw_lets_in_what_is_allowed_and_nothing_else() {
    check(UFW, ask(Hook::Input, 443), "0.0.0.0/0 |  | ");
    check(UFW, ask(Hook::Input, 444), " |  | 0.0.0.0/0");
    let answer = check(UFW, ask(Hook::Input, 11434), "192.168.0.0/16 |  | 16 nets");
    let yes = answer
        .pieces
        .iter()
        .find(|p| p.verdict == reach::Verdict::Accept)
        .unwrap();
    assert_eq!(
        yes.witness.rule,
        "-A ufw-user-input -s 192.168.0.0/16 -p tcp -m tcp --dport 11434 -j ACCEPT"
    );
    let path: Vec<&str> = yes.witness.path.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(
        path,
        [
            "-A INPUT -j ufw-before-input",
            "-A ufw-before-input -j ufw-user-input"
        ]
    );
    check(UFW, ask(Hook::Input, 8005), "10.0.0.0/8 |  | 8 nets");
    check(UFW, ask(Hook::Input, 8011), " |  | 0.0.0.0/0");
}

#[test]
fn ufw_limit_is_conditional_and_names_the_limit() {
    let answer = check(UFW, ask(Hook::Input, 22), " | 0.0.0.0/0 | ");
    let [piece] = &answer.pieces[..] else {
        panic!("{answer:#?}")
    };
    assert!(
        piece
            .conditions
            .iter()
            .any(|c| c.contains("recent") || c.contains("hitcount")),
        "{piece:#?}"
    );
}

#[test]
fn loopback_and_established_pass_ufw() {
    let mut lo = ask(Hook::Input, 444);
    lo.iif = Some("lo".into());
    check(UFW, lo, "0.0.0.0/0 |  | ");
    let mut old = ask(Hook::Input, 444);
    old.state = CtState::Established;
    check(UFW, old, "0.0.0.0/0 |  | ");
    let mut any = ask(Hook::Input, 444);
    any.iif = None;
    check(UFW, any, " | 0.0.0.0/0 | ");
}

#[test]
fn a_source_port_is_the_clients_choice() {
    let save = "*filter
:INPUT DROP [0:0]
-A INPUT -p tcp -m tcp --sport 53 -j ACCEPT
-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --sport 1024:65535 --dport 80 -j ACCEPT
COMMIT
";
    let answer = check(save, ask(Hook::Input, 80), "0.0.0.0/0 |  | ");
    assert!(answer.pieces.iter().any(|p| {
        p.witness
            .path
            .iter()
            .any(|s| s.text.contains("source port 53"))
    }));
    let mut fixed = ask(Hook::Input, 80);
    fixed.sport = Some(5000);
    check(save, fixed, "10.0.0.0/8 |  | 8 nets");
}

#[test]
fn what_is_not_understood_may_be_open_but_never_closed() {
    let save = "*filter
:INPUT ACCEPT [0:0]
-A INPUT -s 10.0.0.0/8 -m frobnicate --hard -j DROP
-A INPUT -s 192.168.0.0/16 -j FROBNICATE --softly
-A INPUT -s 172.16.0.0/12 -j DROP
COMMIT
";
    let (rules, _) = parse::iptables_save(save, false, Backend::IptablesNft);
    let answer = walk_hook(&rules, &ask(Hook::Input, 80));
    assert_eq!(answer.conditional.to_cidrs().len(), 2, "{answer:#?}");
    assert_eq!(
        answer.blocked.to_cidrs(),
        ["172.16.0.0/12".parse().unwrap()]
    );
}

#[test]
fn every_base_chain_of_the_hook_applies() {
    let mut both =
        rules("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n");
    let (legacy, _) = parse::iptables_save(
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 10.1.0.0/16 -j DROP\nCOMMIT\n",
        false,
        Backend::IptablesLegacy,
    );
    both.merge(legacy);
    let answer = walk_hook(&both, &ask(Hook::Input, 80));
    assert_eq!(answer.blocked.to_cidrs(), ["10.1.0.0/16".parse().unwrap()]);
    let no = answer
        .pieces
        .iter()
        .find(|p| p.verdict == reach::Verdict::Drop)
        .unwrap();
    assert_eq!(
        no.witness.at.as_ref().unwrap().backend,
        Backend::IptablesLegacy
    );
}

#[test]
fn no_chain_at_all_admits_everyone() {
    let answer = walk_hook(&Ruleset::default(), &ask(Hook::Input, 80));
    assert_eq!(show(&answer), "0.0.0.0/0 |  | ");
    assert_eq!(answer.pieces.len(), 1);
}
