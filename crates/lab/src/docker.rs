//! The real dockerd inside a namespace host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::process::{Process, ok_here};

/// A running Docker daemon, at the usual socket of its host. It ends when dropped; its containers end with the host.
#[derive(Debug)]
pub struct Docker {
    host: Host,
    daemon: Process,
}

impl Host {
    /// Starts the real dockerd with its stock settings.
    pub fn dockerd(&self) -> Result<Docker> {
        self.dockerd_with(&[])
    }

    /// Starts the real dockerd with more arguments (`--ip6tables`, …).
    pub fn dockerd_with(&self, arguments: &[&str]) -> Result<Docker> {
        // The host's containers get their cgroups below one that goes with the lab. Copying files is the storage that
        // works wherever the lab's folder is.
        let parent = format!("--cgroup-parent=/{}", self.room().name());
        let mut argv = vec![
            "dockerd",
            "--storage-driver=vfs",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            &parent,
        ];
        argv.extend(arguments);
        let mut daemon = self.spawn(&argv)?;
        daemon.wait_until("dockerd to answer", Duration::from_secs(60), |_| {
            self.command(&["docker", "version", "--format", "{{.Server.Version}}"])
                .timeout(Duration::from_secs(10))
                .run()
                .is_ok_and(|output| output.success())
        })?;
        Ok(Docker {
            host: self.clone(),
            daemon,
        })
    }
}

impl Docker {
    /// Runs `docker ARGUMENTS…` and gives its standard output.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut argv = vec!["docker"];
        argv.extend(arguments);
        self.host.command(&argv).ok()
    }

    /// Makes an image, without a registry, whose container serves `page` on its port 80 (busybox httpd, both
    /// families) and has busybox's tools.
    pub fn import_web_image(&self, tag: &str, page: &str) -> Result<()> {
        let tar = web_image_tar(&self.host.folder().join("image"), page)?;
        let mut arguments = vec!["import"];
        arguments.extend(WEB_IMAGE);
        let tar = tar.to_string_lossy();
        arguments.extend([&*tar, tag]);
        self.cli(&arguments).map(drop)
    }

    /// `docker run -d --name NAME OPTIONS… IMAGE`; gives the container's address on the default bridge (empty when it
    /// has none).
    pub fn run(&self, name: &str, options: &[&str], image: &str) -> Result<String> {
        let mut arguments = vec!["run", "-d", "--name", name];
        arguments.extend(options);
        arguments.push(image);
        self.cli(&arguments)?;
        self.address(name)
    }

    /// A container's address on the default bridge.
    pub fn address(&self, name: &str) -> Result<String> {
        Ok(self
            .cli(&[
                "inspect",
                "--format",
                "{{.NetworkSettings.IPAddress}}",
                name,
            ])?
            .trim()
            .to_owned())
    }

    /// The daemon itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.daemon
    }

    /// Ends the daemon and its containers in an orderly way and starts it again.
    pub fn restart(self, arguments: &[&str]) -> Result<Docker> {
        let Self { host, daemon } = self;
        daemon.stop(Duration::from_secs(30))?;
        host.dockerd_with(arguments)
    }
}

/// What `docker import` is told about the image of [`web_image_tar`].
pub(crate) const WEB_IMAGE: [&str; 2] = [
    "--change",
    r#"CMD ["/bin/busybox","httpd","-f","-p","80","-h","/www"]"#,
];

/// Packs an image with busybox and a page; gives the tar file's path.
pub(crate) fn web_image_tar(folder: &Path, page: &str) -> Result<std::path::PathBuf> {
    let root = folder.join("root");
    for dir in ["bin", "www", "tmp", "etc", "proc", "sys", "dev"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).at("make", &dir)?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).map_err(|_| Error::Missing {
        program: "busybox".into(),
        package: "busybox-static".into(),
    })?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))
        .at("set the mode of", &busybox)?;
    for applet in ["sh", "nc", "wget", "ping", "ip", "cat", "sleep", "httpd"] {
        let link = root.join("bin").join(applet);
        if !link.is_symlink() {
            std::os::unix::fs::symlink("busybox", &link).at("make", &link)?;
        }
    }
    let index = root.join("www/index.html");
    fs::write(&index, page).at("write", &index)?;
    let tar = folder.join("image.tar");
    let (from, to) = (root.to_string_lossy(), tar.to_string_lossy());
    ok_here(
        &["/usr/bin/tar", "-C", &from, "-cf", &to, "."],
        b"",
        Duration::from_secs(60),
    )?;
    Ok(tar)
}
