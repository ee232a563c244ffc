//! Real AI servers for tests, from the packages that people install: made once, and kept beside the cache of images.
//!
//! Python's in a virtual environment, the MCP server from npm, llama-server from Debian unstable in a root of its own,
//! Ollama built by Go from its module. Versions are fixed, so that a run today is the run of yesterday; a folder made
//! from another recipe is made anew. They take about 3 GB.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::mirror;
use crate::room::{check_owner, make_private};

/// A server from a package, or a family of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// chromadb, mlflow, jupyter-server, gradio and ray, and `gguf` to make a model: a virtual environment.
    Python,
    /// `@modelcontextprotocol/server-everything`: an npm prefix.
    Mcp,
    /// llama-server: the root of a minimal Debian unstable.
    Llama,
    /// Ollama: the folder with its program.
    Ollama,
}

/// The version of Ollama that is built.
pub const OLLAMA_VERSION: &str = "0.17.4";

const PYTHON: [&str; 6] = [
    "chromadb==1.5.9",
    "gguf",
    "gradio==6.31.0",
    "jupyter_server==2.21.1",
    "mlflow==3.17.2",
    "ray[default]==2.60.0",
];
const MCP: &str = "@modelcontextprotocol/server-everything";
/// Go as a module of its own, for machines whose Go is too old to fetch it by itself.
const TOOLCHAIN: &str = "golang.org/toolchain@v0.0.1-go1.26.8.linux-amd64";
/// The binding of miniaudio (public domain), with the one header that it binds.
const MINIAUDIO: &str = "github.com/gen2brain/malgo@v0.11.24";
/// Longest time for one step: a build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(45 * 60);

impl Server {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Python, Self::Mcp, Self::Llama, Self::Ollama];

    /// Its folder; made now when it is not there yet, which takes minutes and says so.
    pub fn ensure(self, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        crate::error::need_root()?;
        let cache = crate::image::cache()?.with_file_name("services");
        make_private(&cache)?;
        check_owner(&cache, crate::image::CACHE_VARIABLE)?;
        let (name, recipe) = self.recipe();
        let folder = cache.join(name);
        let marker = folder.join(".recipe");
        let made = || fs::read_to_string(&marker).is_ok_and(|text| text == recipe);
        if made() {
            return Ok(folder);
        }
        // One builder at a time.
        let lock = cache.join(format!("{name}.lock"));
        let file = File::create(&lock).at("create", &lock)?;
        file.lock().at("lock", &lock)?;
        if made() {
            return Ok(folder);
        }
        say(&format!("installing {name} into {}", folder.display()));
        if folder.exists() {
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        fs::create_dir_all(&folder).at("create", &folder)?;
        let begun = Instant::now();
        self.make(&folder)?;
        fs::write(&marker, &recipe).at("write", &marker)?;
        say(&format!(
            "installed {name} in {} s",
            begun.elapsed().as_secs()
        ));
        Ok(folder)
    }

    fn recipe(self) -> (&'static str, String) {
        match self {
            Self::Python => ("venv", PYTHON.join(" ")),
            Self::Mcp => ("npm", MCP.to_owned()),
            Self::Llama => ("sid-llama", "minbase llama.cpp".to_owned()),
            Self::Ollama => ("ollama", OLLAMA_VERSION.to_owned()),
        }
    }

    fn make(self, folder: &Path) -> Result<()> {
        let at = folder.to_string_lossy().into_owned();
        match self {
            Self::Python => {
                run(folder, &["/usr/bin/python3", "-m", "venv", &at], &[])?;
                let pip = format!("{at}/bin/pip");
                let mut install = vec![pip.as_str(), "install", "-q", "--no-cache-dir"];
                install.extend(PYTHON);
                run(folder, &install, &[])
            }
            Self::Mcp => run(
                folder,
                &["npm", "install", "--silent", "--prefix", &at, MCP],
                &[],
            ),
            Self::Llama => {
                let mirror = mirror::mirror()?;
                let all = [
                    "debootstrap",
                    "--variant=minbase",
                    "--include=llama.cpp",
                    "sid",
                    &at,
                    &mirror,
                ];
                run(folder, &all, &[("DEBIAN_FRONTEND", "noninteractive")])?;
                let lists = folder.join("var/cache/apt/archives");
                fs::remove_dir_all(&lists).at("remove", &lists)
            }
            Self::Ollama => ollama(folder, &at),
        }
    }
}

/// Go's own caches are used and kept: what they have is not fetched and built again.
fn ollama(folder: &Path, at: &str) -> Result<()> {
    let go = go(folder)?;
    let stamp = format!("-s -w -X github.com/ollama/ollama/version.Version={OLLAMA_VERSION}");
    let module = format!("github.com/ollama/ollama@v{OLLAMA_VERSION}");
    let install = [go.as_str(), "install", "-ldflags", &stamp, &module];
    // A module comes without its folders named `vendor`, and in them Ollama's sources keep headers of others: two are
    // packages of Debian, the third is in a module that is little else.
    run(folder, &[&go, "mod", "download", MINIAUDIO], &[])?;
    let headers = folder.join("include");
    let header = module_folder(&go, MINIAUDIO)?.join("miniaudio.h");
    fs::create_dir_all(headers.join("miniaudio")).at("make", &headers)?;
    let copy = headers.join("miniaudio/miniaudio.h");
    fs::copy(&header, &copy).at("copy", &header)?;
    // By the compiler's own variable: flags for cgo would be part of the key of Go's cache.
    let headers = headers.to_string_lossy();
    let env = [("GOBIN", at), ("CPLUS_INCLUDE_PATH", &*headers)];
    run(folder, &install, &env)
}

/// Where Go has unpacked a module.
fn module_folder(go: &str, module: &str) -> Result<PathBuf> {
    let modules = Command::new(go).args(["env", "GOMODCACHE"]).output();
    let modules = modules.context(|| format!("cannot run {go}"))?.stdout;
    Ok(PathBuf::from(String::from_utf8_lossy(&modules).trim()).join(module))
}

/// A Go that fetches the toolchain that a module asks for (1.21 and later); where Debian's is older, one as a module.
fn go(folder: &Path) -> Result<String> {
    let usual = "/usr/local/go/bin/go";
    let found = if Path::new(usual).exists() {
        usual
    } else {
        "go"
    };
    let told = Command::new(found).arg("version").output();
    let told =
        told.context(|| format!("cannot run {found}; it comes with the Debian package golang-go"))?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let minor = text.split_once("go1.").and_then(|(_, rest)| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse::<u32>()
            .ok()
    });
    if minor.is_some_and(|minor| minor >= 21) {
        return Ok(found.to_owned());
    }
    run(folder, &[found, "mod", "download", TOOLCHAIN], &[])?;
    let root = module_folder(found, TOOLCHAIN)?;
    let tools = root.join("pkg/tool/linux_amd64");
    // An old Go unpacks a toolchain as any module: without the right to run it.
    for folder in [root.join("bin"), tools] {
        for entry in fs::read_dir(&folder).at("read", &folder)? {
            let path = entry.at("read", &folder)?.path();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&path, mode).at("change", &path)?;
        }
    }
    Ok(root.join("bin/go").to_string_lossy().into_owned())
}

/// Runs an installer of this machine with this machine's settings (proxies, mirrors), quietly and with a bound.
fn run(folder: &Path, argv: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let log = folder.with_extension("log");
    let out = File::create(&log).at("create", &log)?;
    let errors = out.try_clone().at("open", &log)?;
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| Error::Invalid("no program was named".into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .context(|| format!("cannot run {program}"))?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child
            .try_wait()
            .context(|| format!("cannot wait for {program}"))?
        {
            if status.success() {
                return fs::remove_file(&log).at("remove", &log);
            }
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            return Err(Error::Failed {
                host: "this machine".into(),
                argv: argv.join(" "),
                status: status.to_string(),
                stderr: lines[lines.len().saturating_sub(15)..].join("\n"),
            });
        }
        if begun.elapsed() > PATIENCE {
            let group = nix::unistd::Pid::from_raw(-child.id().cast_signed());
            // It may have ended this very moment.
            let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
            return Err(Error::timeout(argv.join(" "), PATIENCE, ""));
        }
        thread::sleep(Duration::from_millis(200));
    }
}
