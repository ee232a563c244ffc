//! The targets of iptables, as `iptables-extensions(8)` and the `xt_*.c` of the kernel have them.
use super::matches::directions;
use super::rule::{Module, Scope};
use super::value;
use crate::ir::{
    Expr, Key, Nat, NatKind, NfHook, RuleVerdict, SetOp, SetUpdate, Statement, Target,
};
use crate::parse::verdict;
use std::net::IpAddr;

/// What a target does; `None` when no target of this name is known.
pub(super) fn decode(module: &Module<'_>, scope: &Scope<'_>, text: &str) -> Option<Vec<Statement>> {
    if super::options::of_target(module.name).is_none() {
        return harmless(module.name).then(|| vec![other(text)]);
    }
    let unknown = || {
        vec![Statement::Unknown {
            text: text.to_string(),
        }]
    };
    if module.opts.iter().any(|o| !o.known || o.negate) {
        return Some(unknown());
    }
    Some(known(module, scope, text).unwrap_or_else(unknown))
}

fn other(text: &str) -> Statement {
    Statement::Other {
        text: text.to_string(),
    }
}

/// Targets of xtables-addons and the like that let the packet go on unchanged as far as rules can see.
fn harmless(name: &str) -> bool {
    matches!(
        name,
        "ACCOUNT" | "LOGMARK" | "SYSRQ" | "NDPI" | "DNETMAP_LOG"
    )
}

/// `None`: an argument could not be read, so it may do anything.
fn known(module: &Module<'_>, scope: &Scope<'_>, text: &str) -> Option<Vec<Statement>> {
    let arg = |name: &str| module.opt(name).map(|o| o.arg());
    let one = |statement| Some(vec![statement]);
    match module.name {
        "ACCEPT" => one(verdict(RuleVerdict::Accept)),
        "DROP" => one(verdict(RuleVerdict::Drop)),
        "RETURN" => one(verdict(RuleVerdict::Return)),
        "REJECT" => one(verdict(RuleVerdict::Reject {
            with: arg("--reject-with").unwrap_or_default().to_string(),
        })),
        "QUEUE" => one(verdict(RuleVerdict::Queue {
            num: 0,
            bypass: false,
        })),
        "NFQUEUE" => {
            let num = match (arg("--queue-num"), arg("--queue-balance")) {
                (Some(num), _) => value::number(num)?,
                (None, Some(balance)) => value::number(balance.split(':').next()?)?,
                (None, None) => 0,
            };
            one(verdict(RuleVerdict::Queue {
                num: u16::try_from(num).ok()?,
                bypass: module.has("--queue-bypass"),
            }))
        }
        "LOG" | "NFLOG" | "ULOG" | "AUDIT" => {
            let prefix = arg("--log-prefix")
                .or_else(|| arg("--nflog-prefix"))
                .or_else(|| arg("--ulog-prefix"));
            one(Statement::Log {
                prefix: prefix.map(str::to_string),
            })
        }
        "NOTRACK" => one(Statement::NoTrack),
        "CT" => conntrack(module),
        "TRACE" => one(Statement::Assign {
            target: Target::Trace,
            value: Expr::Int(1),
        }),
        "MARK" => mark(module, Target::Mark, Key::Mark),
        "CONNMARK" => connmark(module),
        "DNAT" => one(Statement::Nat(to(
            module,
            NatKind::Dnat,
            arg("--to-destination")?,
            scope,
        )?)),
        "SNAT" => one(Statement::Nat(to(
            module,
            NatKind::Snat,
            arg("--to-source")?,
            scope,
        )?)),
        "MASQUERADE" => one(Statement::Nat(ports_only(module, NatKind::Masquerade)?)),
        "REDIRECT" => one(Statement::Nat(ports_only(module, NatKind::Redirect)?)),
        "NETMAP" => one(Statement::Nat(netmap(arg("--to")?, scope)?)),
        "TPROXY" => tproxy(module),
        "SYNPROXY" => one(Statement::Synproxy {
            text: text.to_string(),
        }),
        "TEE" => one(Statement::Dup {
            text: text.to_string(),
        }),
        "SET" => set(module),
        "TCPMSS" | "TCPOPTSTRIP" | "DSCP" | "TOS" | "TTL" | "HL" | "ECN" | "CLASSIFY"
        | "CHECKSUM" | "SECMARK" | "CONNSECMARK" | "IDLETIMER" | "LED" | "RATEEST" => {
            one(other(text))
        }
        _ => None,
    }
}

/// `(x & !mask) ^ value`.
fn xmark(key: Key, value: u32, mask: u32) -> Expr {
    if mask == u32::MAX {
        return Expr::Int(value.into());
    }
    Expr::Bitwise {
        of: Box::new(Expr::Key(key)),
        and: (!mask).into(),
        xor: value.into(),
    }
}

fn mark(module: &Module<'_>, target: Target, key: Key) -> Option<Vec<Statement>> {
    let [option] = &module.opts[..] else {
        return None;
    };
    let (value, mask) = match option.name {
        "--set-xmark" => value::masked32(option.arg())?,
        // Sets the bits of both; what --set-xmark would call VALUE/(VALUE|MASK).
        "--set-mark" => {
            let (value, mask) = value::masked32(option.arg())?;
            (value, value | mask)
        }
        "--and-mark" => (0, !value::number32(option.arg())?),
        "--or-mark" => {
            let bits = value::number32(option.arg())?;
            (bits, bits)
        }
        "--xor-mark" => (value::number32(option.arg())?, 0),
        _ => return None,
    };
    Some(vec![Statement::Assign {
        target,
        value: xmark(key, value, mask),
    }])
}

fn connmark(module: &Module<'_>) -> Option<Vec<Statement>> {
    let save = module.has("--save-mark");
    if !save && !module.has("--restore-mark") {
        return mark(module, Target::CtMark, Key::CtMark);
    }
    if module.has("--left-shift-mark") || module.has("--right-shift-mark") {
        return None;
    }
    let mask = |name| match module.opt(name).or_else(|| module.opt("--mask")) {
        Some(o) => value::number32(o.arg()),
        None => Some(u32::MAX),
    };
    let (nfmask, ctmask) = (mask("--nfmask")?, mask("--ctmask")?);
    let (target, into, cleared, from, kept) = if save {
        (Target::CtMark, Key::CtMark, ctmask, Key::Mark, nfmask)
    } else {
        (Target::Mark, Key::Mark, nfmask, Key::CtMark, ctmask)
    };
    let source = if kept == u32::MAX {
        Expr::Key(from)
    } else {
        Expr::Bitwise {
            of: Box::new(Expr::Key(from)),
            and: kept.into(),
            xor: 0,
        }
    };
    let value = if cleared == u32::MAX {
        source
    } else {
        let rest = Expr::Bitwise {
            of: Box::new(Expr::Key(into)),
            and: (!cleared).into(),
            xor: 0,
        };
        Expr::Xor(Box::new(rest), Box::new(source))
    };
    Some(vec![Statement::Assign { target, value }])
}

fn conntrack(module: &Module<'_>) -> Option<Vec<Statement>> {
    let mut out = Vec::new();
    for option in &module.opts {
        out.push(match option.name {
            "--notrack" => Statement::NoTrack,
            "--zone" => Statement::Assign {
                target: Target::CtZone,
                value: match value::number32(option.arg()) {
                    Some(zone) => Expr::Int(zone.into()),
                    None => Expr::Unknown(option.arg().to_string()),
                },
            },
            "--zone-orig" | "--zone-reply" => Statement::Assign {
                target: Target::CtZone,
                value: Expr::Unknown(format!("{} {}", option.name, option.arg())),
            },
            name => Statement::Assign {
                target: Target::Ct(name.trim_start_matches('-').to_string()),
                value: Expr::Name(option.arg().to_string()),
            },
        });
    }
    Some(out)
}

/// `80`, `80-90`; with a base port (`80-90/100`) not decided.
fn port_expr(text: &str) -> Option<Expr> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (value::port(first)?, value::port(last)?);
    (first <= last).then_some(Expr::Ports(first, last))
}

fn nat(module: &Module<'_>, kind: NatKind) -> Nat {
    Nat {
        kind,
        addr: None,
        port: None,
        random: module.has("--random") || module.has("--random-fully"),
        persistent: module.has("--persistent"),
        netmap: false,
    }
}

/// `ADDR[-ADDR][:PORT[-PORT]]`, with `[…]` around IPv6 addresses when ports follow.
fn to(module: &Module<'_>, kind: NatKind, text: &str, scope: &Scope<'_>) -> Option<Nat> {
    if module
        .opts
        .iter()
        .filter(|o| o.name.starts_with("--to"))
        .count()
        != 1
    {
        return None;
    }
    let (addresses, ports) = if scope.ipv6 {
        match text.rfind("]:") {
            Some(at) => (&text[..=at], Some(&text[at + 2..])),
            None if text.starts_with(':') && !text.starts_with("::") => ("", Some(&text[1..])),
            None => (text, None),
        }
    } else {
        match text.split_once(':') {
            Some((addresses, ports)) => (addresses, Some(ports)),
            None => (text, None),
        }
    };
    let mut out = nat(module, kind);
    if !addresses.is_empty() {
        let (first, last) = addresses.split_once('-').unwrap_or((addresses, addresses));
        let (first, last) = (bracketed(first)?, bracketed(last)?);
        if first.is_ipv6() != scope.ipv6 || last.is_ipv6() != scope.ipv6 || first > last {
            return None;
        }
        out.addr = Some(Expr::Addrs(first, last));
    }
    if let Some(ports) = ports {
        out.port = Some(port_expr(ports)?);
    }
    Some(out)
}

fn bracketed(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    inner.parse().ok()
}

fn ports_only(module: &Module<'_>, kind: NatKind) -> Option<Nat> {
    let mut out = nat(module, kind);
    if let Some(ports) = module.opt("--to-ports") {
        out.port = Some(port_expr(ports.arg())?);
    }
    Some(out)
}

fn netmap(text: &str, scope: &Scope<'_>) -> Option<Nat> {
    let value::Net::Range(first, last) = value::network(text, scope.ipv6)? else {
        return None;
    };
    let kind = match scope.hook? {
        NfHook::Prerouting | NfHook::Output => NatKind::Dnat,
        NfHook::Input | NfHook::Postrouting => NatKind::Snat,
        _ => return None,
    };
    Some(Nat {
        kind,
        addr: Some(Expr::Addrs(first, last)),
        port: None,
        random: false,
        persistent: false,
        netmap: true,
    })
}

fn tproxy(module: &Module<'_>) -> Option<Vec<Statement>> {
    let addr = match module.opt("--on-ip") {
        Some(o) => Some(o.arg().parse::<IpAddr>().ok()?).filter(|a| !a.is_unspecified()),
        None => None,
    };
    let port = match module.opt("--on-port") {
        Some(o) => Some(value::port(o.arg())?).filter(|&p| p != 0),
        None => None,
    };
    let mark = match module.opt("--tproxy-mark") {
        Some(o) => Some(value::masked32(o.arg())?),
        None => None,
    };
    Some(vec![
        Statement::Tproxy { addr, port, mark },
        verdict(RuleVerdict::Accept),
    ])
}

fn set(module: &Module<'_>) -> Option<Vec<Statement>> {
    let mut out = Vec::new();
    for option in &module.opts {
        let op = match option.name {
            "--add-set" if module.has("--exist") => SetOp::Update,
            "--add-set" => SetOp::Add,
            "--del-set" => SetOp::Delete,
            "--map-set" => return None,
            _ => continue,
        };
        out.push(Statement::SetUpdate(SetUpdate {
            set: option.arg().to_string(),
            ipset: true,
            op,
            keys: vec![],
            directions: directions(option.args.get(1)?)?,
            timeout: match module.opt("--timeout") {
                Some(o) => Some(value::number(o.arg())?),
                None => None,
            },
            conditions: vec![],
        }));
    }
    Some(out)
}
