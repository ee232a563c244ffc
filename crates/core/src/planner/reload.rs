//! One reload of systemd a plan: it takes as long as several other changes together.

use crate::plan::{Action, Change, SystemdVerb};

/// Where systemd reads units, and what others lay beside them.
const UNITS: &str = "/etc/systemd/system/";

/// Writes every unit file before the first reload and leaves out the later ones. `systemctl enable`
/// reloads systemd itself (systemctl(1)), so a plan that comes to one before it starts anything else
/// needs no other.
pub(super) fn once(changes: &mut Vec<Change>) {
    let Some(first) = changes.iter().position(is_reload) else {
        return;
    };
    let (mut head, rest): (Vec<Change>, Vec<Change>) = {
        let rest = changes.split_off(first);
        (std::mem::take(changes), rest)
    };
    let (units, mut others): (Vec<Change>, Vec<Change>) = rest.into_iter().partition(is_unit_file);
    head.extend(units);
    let mut reload = true;
    others.retain(|change| !is_reload(change) || std::mem::take(&mut reload));
    let next = others
        .iter()
        .filter(|change| !is_reload(change))
        .find_map(|change| match &change.action {
            Action::Systemd { verb, .. } => Some(*verb),
            _ => None,
        });
    if matches!(next, Some(SystemdVerb::EnableNow | SystemdVerb::Enable)) {
        others.retain(|change| !is_reload(change));
    }
    head.append(&mut others);
    *changes = head;
}

fn is_reload(change: &Change) -> bool {
    matches!(
        change.action,
        Action::Systemd {
            verb: SystemdVerb::DaemonReload,
            ..
        }
    )
}

fn is_unit_file(change: &Change) -> bool {
    // What is removed stays in its place: its unit may have to be stopped first.
    matches!(&change.action, Action::WriteFile { path, .. } if path.starts_with(UNITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan in short: `w` a unit file, `f` another file, `r` a reload, `e` enable, `s` a restart.
    fn check(before: &str, after: &str) {
        let systemd = |verb| Action::Systemd {
            unit: String::new(),
            verb,
        };
        let write = |path: &str| Action::WriteFile {
            path: path.into(),
            content: String::new(),
            mode: 0o644,
        };
        let mut changes: Vec<Change> = before
            .chars()
            .map(|letter| Change {
                why: letter.into(),
                mends: vec![],
                action: match letter {
                    'w' => write("/etc/systemd/system/x.service.d/y.conf"),
                    'f' => write("/etc/fail2ban/jail.d/portcullis.local"),
                    'r' => systemd(SystemdVerb::DaemonReload),
                    'e' => systemd(SystemdVerb::EnableNow),
                    's' => systemd(SystemdVerb::Restart),
                    other => panic!("{other}"),
                },
            })
            .collect();
        once(&mut changes);
        let now: String = changes.iter().map(|change| change.why.as_str()).collect();
        assert_eq!(now, after, "{before}");
    }

    #[test]
    fn a_plan_reloads_systemd_once() {
        check("", "");
        check("fs", "fs");
        check("fwrs", "fwrs");
        check("fwrswrfs", "fwwrsfs");
        check("fwrfewrsfs", "fwwfesfs");
        check("wre", "we");
        check("wrse", "wrse");
    }
}
