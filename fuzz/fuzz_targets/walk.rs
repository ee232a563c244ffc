#![no_main]
//! Whatever a dump says, the walk ends, and its three sets cover the universe without overlap.
use libfuzzer_sys::fuzz_target;
use reach::parse::{Dumps, combine};
use reach::{AddrSet, CtState, Hook, HookQuery, Proto, walk_hook};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let nft = text.contains("table ").then_some(text.as_ref());
    let iptables = nft.is_none().then_some(text.as_ref());
    let (rules, _) = combine(Dumps { iptables, nft, ..Dumps::default() });
    for hook in [Hook::Input, Hook::Forward] {
        let answer = walk_hook(
            &rules,
            &HookQuery {
                hook,
                proto: Proto::Tcp,
                dst: None,
                ipv6: false,
                dport: 22,
                sport: None,
                iif: Some("eth0".into()),
                oif: None,
                state: CtState::New,
            },
        );
        let open = answer.admitted.union(&answer.conditional);
        assert_eq!(open.union(&answer.blocked), AddrSet::all_v4());
        assert!(open.intersect(&answer.blocked).is_empty());
        assert!(answer.admitted.intersect(&answer.conditional).is_empty());
    }
});
