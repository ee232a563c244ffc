//! The files that portcullis owns as a whole: their paths, and when they are written.

use super::Draft;
use crate::catalog;
use crate::host::Host;
use crate::plan::Action;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The guard's script, loaded at boot and by fail2ban when the table is gone.
pub const GUARD_FILE: &str = "/etc/portcullis/guard.nft";
/// The unit that loads it.
pub const GUARD_UNIT: &str = "portcullis-guard.service";
/// File of [`GUARD_UNIT`].
pub const GUARD_UNIT_FILE: &str = "/etc/systemd/system/portcullis-guard.service";
/// Drop-in that loads the guard again after nftables.service flushed every table.
pub const GUARD_DROPIN: &str = "/etc/systemd/system/nftables.service.d/portcullis.conf";
/// fail2ban's action: bans go into the guard's sets.
pub const ACTION_FILE: &str = "/etc/fail2ban/action.d/portcullis.py";
/// fail2ban's jails.
pub const JAIL_FILE: &str = "/etc/fail2ban/jail.d/portcullis.local";
/// The operator's own settings of fail2ban; written only where they are a copy of jail.conf.
pub const JAIL_LOCAL: &str = "/etc/fail2ban/jail.local";
/// Filter of jail nginx-401.
pub const FILTER_NGINX_401: &str = "/etc/fail2ban/filter.d/portcullis-nginx-401.conf";
/// Filter of jail nginx-429.
pub const FILTER_NGINX_429: &str = "/etc/fail2ban/filter.d/portcullis-nginx-429.conf";
/// Filter of jail open-webui.
pub const FILTER_OPEN_WEBUI: &str = "/etc/fail2ban/filter.d/portcullis-open-webui.conf";
/// Filter of jail uvicorn.
pub const FILTER_UVICORN: &str = "/etc/fail2ban/filter.d/portcullis-uvicorn.conf";

/// Files that a plan may write or remove on every host.
const ALWAYS: [&str; 12] = [
    ACTION_FILE,
    FILTER_NGINX_401,
    FILTER_NGINX_429,
    FILTER_OPEN_WEBUI,
    FILTER_UVICORN,
    GUARD_DROPIN,
    GUARD_FILE,
    GUARD_UNIT_FILE,
    JAIL_FILE,
    JAIL_LOCAL,
    super::bridge::SERVICE_FILE,
    super::bridge::SOCKET_FILE,
];

/// Every file that a plan may write or remove: those of every host, and the drop-ins of the catalog's units and of
/// `units`, which are those that hold a listening socket. [`Host::files`] must say of each what is there.
pub fn managed_files<'a>(units: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let bound = |s: &&catalog::Service| {
        use catalog::Loopback::{Argument, Environment};
        matches!(s.loopback, Some(Environment { .. } | Argument { .. }))
    };
    let known = catalog::services().iter().filter(bound);
    let known = known.flat_map(|s| &s.units).map(String::as_str);
    let dropins = known.chain(units).filter(|u| is_unit(u)).map(dropin);
    ALWAYS
        .iter()
        .map(|f| (*f).to_owned())
        .chain(dropins)
        .collect()
}

/// Whether a plan may write or remove a file.
pub(super) fn is_managed(path: &str) -> bool {
    let unit = path
        .strip_prefix("/etc/systemd/system/")
        .and_then(|rest| rest.strip_suffix(".d/zz-portcullis.conf"));
    ALWAYS.contains(&path) || unit.is_some_and(is_unit)
}

/// A service's name as systemd.unit(5) has it, and no path.
fn is_unit(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.ends_with(".service")
        && name.len() < 200
        && !name.starts_with(['-', '.'])
        && name.bytes().all(plain)
}

/// The drop-in of a unit that binds its service. Its name sorts behind `override.conf`, so it wins.
pub fn dropin(unit: &str) -> String {
    format!("/etc/systemd/system/{unit}.d/zz-portcullis.conf")
}

/// Permission bits of every managed file: they hold no secrets.
pub(super) const MODE: u32 = 0o644;

/// After nftables.service (it flushes every table at its start) and before the network and the engines,
/// so that no packet is routed to a container unguarded. The bans on record come back at once, in one
/// batch, before anybody can connect. Without default dependencies, or it would
/// wait for basic.target, which comes later than the network on some systems.
pub(super) const GUARD_UNIT_TEXT: &str = "\
# Written by portcullis: `portcullis apply` replaces it.
[Unit]
Description=portcullis guard: published ports obey the policy
DefaultDependencies=no
RequiresMountsFor=/etc/portcullis /usr /var/lib/fail2ban /var/lib/portcullis
After=systemd-modules-load.service nftables.service netfilter-persistent.service
Wants=network-pre.target
Before=network-pre.target docker.service containerd.service podman.service k3s.service fail2ban.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/portcullis/guard.nft
ExecStartPost=-/usr/bin/python3 -I /etc/fail2ban/action.d/portcullis.py
ExecReload=/usr/sbin/nft -f /etc/portcullis/guard.nft
ExecReload=-/usr/bin/python3 -I /etc/fail2ban/action.d/portcullis.py

[Install]
WantedBy=sysinit.target
";

/// `-`: nftables.service must not fail for it. The bans went with the tables; they come back too.
pub(super) const GUARD_DROPIN_TEXT: &str = "\
# Written by portcullis: nftables.service flushes every table, the guard's too; this loads it again.
[Service]
ExecStartPost=-/usr/sbin/nft -f /etc/portcullis/guard.nft
ExecStartPost=-/usr/bin/python3 -I /etc/fail2ban/action.d/portcullis.py
ExecReload=-/usr/sbin/nft -f /etc/portcullis/guard.nft
ExecReload=-/usr/bin/python3 -I /etc/fail2ban/action.d/portcullis.py
";

/// Adds a [`Action::WriteFile`] unless the file is there with this content, mode and owner.
pub(super) fn write(
    host: &Host,
    draft: &mut Draft,
    path: &str,
    content: String,
    why: &str,
    mends: &[&str],
) -> bool {
    if is(host, path, &content) {
        return false;
    }
    draft.change(
        why,
        mends,
        Action::WriteFile {
            path: path.to_owned(),
            content,
            mode: MODE,
        },
    );
    true
}

/// True when the file is there with this content, [`MODE`], owned by root.
pub(super) fn is(host: &Host, path: &str, content: &str) -> bool {
    host.files
        .get(path)
        .and_then(Option::as_ref)
        .is_some_and(|fact| {
            fact.sha256 == sha256(content) && (fact.mode, fact.uid, fact.gid) == (MODE, 0, 0)
        })
}

/// True when there is such a file, whatever its content.
pub(super) fn exists(host: &Host, path: &str) -> bool {
    matches!(host.files.get(path), Some(Some(_)))
}

/// Lowercase hex, as [`crate::host::FileFact::sha256`] has it.
pub(super) fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
