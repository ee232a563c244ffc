//! Which systemd unit and which container a process belongs to, by its cgroup (cgroups(7)).

use serde::{Deserialize, Serialize};

/// A systemd unit that owns a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Unit {
    /// Unit name with its suffix: `ollama.service`, `session-3.scope`. Untrusted text.
    pub name: String,
    /// The user id whose own systemd (`user@UID.service`) runs the unit; `None`: the system's.
    pub user: Option<u32>,
}

/// Who started a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Docker (dockerd, also ECS).
    Docker,
    /// Podman or another user of libpod.
    Podman,
    /// containerd by itself (nerdctl, ctr).
    Containerd,
    /// A Kubernetes pod, whatever its runtime.
    Kubernetes,
    /// LXC or LXD; the id is the container's name.
    Lxc,
    /// systemd-nspawn or a virtual machine registered with machined; the id is its name.
    Machined,
}

/// The container that a process runs in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerRef {
    /// Who started it.
    pub runtime: Runtime,
    /// 64 hexadecimal digits, or a name for LXC and machined.
    pub id: String,
}

/// The cgroup path that systemd manages, from the text of `/proc/PID/cgroup`.
///
/// cgroup v2 has one line `0::/path`; v1 has a line for each hierarchy, with systemd's own
/// called `name=systemd`; a hybrid host has both, the v2 line sometimes just `/`.
fn paths(cgroup: &str) -> impl Iterator<Item = &str> {
    let line = |wanted: fn(&str, &str) -> bool| {
        cgroup.lines().filter_map(move |l| {
            let (hierarchy, rest) = l.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(hierarchy, controllers).then_some(path)
        })
    };
    line(|h, c| h == "0" && c.is_empty())
        .chain(line(|_, c| c == "name=systemd"))
        .chain(line(|h, c| h != "0" && c != "name=systemd"))
        .filter(|p| *p != "/")
}

/// The systemd unit of a process, from the text of its `/proc/PID/cgroup`.
///
/// The unit of THIS host's systemd: for a process in a container that runs its own systemd, the
/// container's scope and not the unit inside.
pub fn unit_of_cgroup(cgroup: &str) -> Option<Unit> {
    paths(cgroup).find_map(unit_of_path)
}

fn unit_of_path(path: &str) -> Option<Unit> {
    let mut user = None;
    let mut manager = None;
    for part in path.split('/') {
        // systemd puts `_` before names that cgroupfs could mistake for its own files.
        let name = part.strip_prefix('_').unwrap_or(part);
        let is_unit = [".service", ".scope", ".socket", ".mount", ".swap"]
            .iter()
            .any(|s| name.strip_suffix(s).is_some_and(|stem| !stem.is_empty()));
        if !is_unit {
            continue;
        }
        let uid = name
            .strip_prefix("user@")
            .and_then(|n| n.strip_suffix(".service"))
            .and_then(|n| n.parse().ok());
        match uid {
            Some(uid) if user.is_none() => {
                user = Some(uid);
                manager = Some(name);
            }
            _ => {
                // `init.scope` below the manager is the manager itself.
                if name == "init.scope" && manager.is_some() {
                    break;
                }
                return Some(Unit {
                    name: name.to_owned(),
                    user,
                });
            }
        }
    }
    manager.map(|name| Unit {
        name: name.to_owned(),
        user: None,
    })
}

/// The container of a process, from the text of its `/proc/PID/cgroup`: the outermost one, which
/// is the one that this host's daemons know.
pub fn container_of_cgroup(cgroup: &str) -> Option<ContainerRef> {
    paths(cgroup).find_map(container_of_path)
}

fn container_of_path(path: &str) -> Option<ContainerRef> {
    let mut kubernetes = false;
    let mut before = "";
    for part in path.split('/').filter(|p| !p.is_empty()) {
        kubernetes |= part.starts_with("kubepods");
        if let Some(found) = container_of_part(part, before, kubernetes) {
            return Some(found);
        }
        before = part;
    }
    None
}

fn container_of_part(part: &str, before: &str, kubernetes: bool) -> Option<ContainerRef> {
    let stem = part.strip_suffix(".scope").unwrap_or(part);
    // `docker-ID`, `cri-containerd:ID`, or the bare ID of the cgroupfs driver.
    let (prefix, id) = match stem.rfind(['-', ':']) {
        Some(at) => (&stem[..at], &stem[at + 1..]),
        None => ("", stem),
    };
    let hex = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if hex {
        // The monitor of a container runs on the host's side.
        if prefix.ends_with("conmon") {
            return None;
        }
        let runtime = if kubernetes {
            Runtime::Kubernetes
        } else if prefix.starts_with("libpod") || before.starts_with("libpod") {
            Runtime::Podman
        } else if prefix.ends_with("containerd")
            || prefix.ends_with("crio")
            || prefix.ends_with("nerdctl")
            || (prefix.is_empty() && before == "default")
        {
            Runtime::Containerd
        } else {
            Runtime::Docker
        };
        return Some(ContainerRef {
            runtime,
            id: id.to_owned(),
        });
    }
    let named = |runtime, id: &str| {
        (!id.is_empty()).then(|| ContainerRef {
            runtime,
            id: id.to_owned(),
        })
    };
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return named(Runtime::Lxc, name);
    }
    if before == "lxc" || before == "lxc.payload" {
        return named(Runtime::Lxc, part);
    }
    if let Some(name) = part
        .strip_prefix("machine-")
        .and_then(|p| p.strip_suffix(".scope"))
    {
        return named(Runtime::Machined, &unescape(name));
    }
    if let Some(name) = part
        .strip_prefix("systemd-nspawn@")
        .and_then(|p| p.strip_suffix(".service"))
    {
        return named(Runtime::Machined, &unescape(name));
    }
    None
}

/// Undoes systemd's escaping in unit names (systemd-escape(1)): `\x2d` is `-`, and `-` is `/`.
fn unescape(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = name
            .get(at..)
            .filter(|r| r.starts_with("\\x"))
            .and_then(|r| r.get(2..4))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (hex, bytes[at]) {
            (Some(b), _) => {
                out.push(b);
                at += 4;
                continue;
            }
            (None, b'-') => out.push(b'/'),
            (None, b) => out.push(b),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c01db0b339c8b1f0d8d0e5d4bb2e7f4b5dd3f1a9e5b1c3e2f6a7b8c9d0e1f2a";

    fn check_unit(cgroup: &str, name: Option<&str>, user: Option<u32>) {
        let want = name.map(|name| Unit {
            name: name.to_owned(),
            user,
        });
        assert_eq!(unit_of_cgroup(cgroup), want, "{cgroup}");
    }

    #[test]
    fn units() {
        check_unit(
            "0::/system.slice/ollama.service\n",
            Some("ollama.service"),
            None,
        );
        check_unit(
            "0::/system.slice/foo.service/worker",
            Some("foo.service"),
            None,
        );
        check_unit("0::/system.slice/system-getty.slice", None, None);
        check_unit("0::/init.scope\n", Some("init.scope"), None);
        check_unit("0::/\n", None, None);
        check_unit("", None, None);
        check_unit("not a cgroup file", None, None);
        check_unit("0::/.service", None, None);
        check_unit(
            "0::/user.slice/user-1000.slice/session-3.scope",
            Some("session-3.scope"),
            None,
        );
        check_unit(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service",
            Some("ollama.service"),
            Some(1000),
        );
        check_unit(
            "0::/user.slice/user-1000.slice/user@1000.service/init.scope",
            Some("user@1000.service"),
            None,
        );
        check_unit("0::/system.slice/_cpu.service", Some("cpu.service"), None);
    }

    #[test]
    fn units_of_v1_and_hybrid_hosts() {
        check_unit(
            "12:pids:/system.slice/ssh.service\n1:name=systemd:/system.slice/ssh.service\n",
            Some("ssh.service"),
            None,
        );
        check_unit(
            "5:cpu,cpuacct:/\n1:name=systemd:/system.slice/a.service\n0::/\n",
            Some("a.service"),
            None,
        );
        check_unit(
            "1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n",
            Some("b.service"),
            None,
        );
        check_unit(
            "4:devices:/system.slice/x.service\n",
            Some("x.service"),
            None,
        );
    }

    #[test]
    fn the_unit_of_a_container_is_its_scope_not_the_unit_inside() {
        check_unit(
            &format!("0::/system.slice/docker-{ID}.scope/system.slice/nginx.service"),
            Some(&format!("docker-{ID}.scope")),
            None,
        );
    }

    fn check(cgroup: &str, want: Option<(Runtime, &str)>) {
        let want = want.map(|(runtime, id)| ContainerRef {
            runtime,
            id: id.to_owned(),
        });
        let cgroup = cgroup.replace("ID", ID);
        assert_eq!(container_of_cgroup(&cgroup), want, "{cgroup}");
    }

    #[test]
    fn containers() {
        use Runtime::*;
        check("0::/system.slice/docker-ID.scope", Some((Docker, ID)));
        check("0::/docker/ID", Some((Docker, ID)));
        check("0::/docker/ID/child", Some((Docker, ID)));
        check("11:memory:/docker/ID\n0::/\n", Some((Docker, ID)));
        check("3:cpu:/ecs/0f1e/ID", Some((Docker, ID)));
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            Some((Podman, ID)),
        );
        check("0::/machine.slice/libpod-ID.scope", Some((Podman, ID)));
        check("0::/libpod_parent/libpod-ID", Some((Podman, ID)));
        check(
            "0::/system.slice/x.service/libpod-payload-ID",
            Some((Podman, ID)),
        );
        check("0::/machine.slice/libpod-conmon-ID.scope", None);
        check("0::/default/ID", Some((Containerd, ID)));
        check("0::/system.slice/nerdctl-ID.scope", Some((Containerd, ID)));
        check(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice/cri-containerd-ID.scope",
            Some((Kubernetes, ID)),
        );
        check(
            "0::/kubepods/besteffort/pod0a-1b/ID",
            Some((Kubernetes, ID)),
        );
        check(
            "0::/system.slice/containerd.service/kubepods-besteffort-pod1.slice:cri-containerd:ID",
            Some((Kubernetes, ID)),
        );
        check("0::/lxc/web/init.scope", Some((Lxc, "web")));
        check("0::/lxc.payload.web/init.scope", Some((Lxc, "web")));
        check(
            "0::/machine.slice/machine-deb\\x2d12.scope/payload",
            Some((Machined, "deb-12")),
        );
        check(
            "0::/machine.slice/systemd-nspawn@box.service",
            Some((Machined, "box")),
        );
        check("0::/system.slice/docker.service", None);
        check("0::/system.slice/docker-short.scope", None);
    }

    #[test]
    fn of_nested_containers_the_outer_one_counts() {
        let inner = ID.replace('4', "5");
        check(
            &format!("0::/docker/ID/kubelet/kubepods/pod1/{inner}"),
            Some((Runtime::Docker, ID)),
        );
    }
}
