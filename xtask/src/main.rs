//! Development tasks: `cargo xtask test` runs everything that has to be green, on the real components.

use std::process::ExitCode;

mod packages;
mod purity;
mod test;

const HELP: &str = "\
Usage: cargo xtask TASK

  test [--threads N]    install the Debian packages that the tests need, check that the pure crates
                        are pure, run every test, also the live ones on throw-away hosts (as root).
                        N live tests of one file run at a time (default 2)
  services              the tests with real AI servers (Ollama, llama-server, Ray, …), apart from the
                        others: about 3 GB are installed into the cache, and Ollama is built
  lab-image [SUITE…]    build the Debian images of the machine lab (bookworm, trixie, sid;
                        default bookworm), so that the first test need not
  purity                check that reach and core cannot do IO
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["test"] => test::run(2),
        ["test", "--threads", count] => match count.parse() {
            Ok(count @ 1..=64) => test::run(count),
            _ => Err(format!("{count:?} is no number of threads from 1 to 64")),
        },
        ["services"] => test::services(),
        ["lab-image"] => images(&["bookworm"]),
        ["lab-image", suites @ ..] => images(suites),
        ["purity"] => purity::check(),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        [] => Err(HELP.to_owned()),
        other => Err(format!("no such task: {}\n\n{HELP}", other.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds every image of the given releases.
fn images(suites: &[&str]) -> Result<(), String> {
    let mut say = |line: &str| println!("lab: {line}");
    for suite in suites {
        let release = suite
            .parse()
            .map_err(|error: lab::Error| error.to_string())?;
        let image = lab::Image {
            release,
            protection: true,
            docker: true,
            podman: false,
        };
        let podman = lab::Image {
            docker: false,
            podman: true,
            ..image
        };
        let more = (release == lab::Release::Trixie).then_some(podman);
        for image in [image].into_iter().chain(more) {
            for folder in image.ensure(&mut say).map_err(describe)? {
                println!("{}", folder.display());
            }
        }
    }
    Ok(())
}

/// An error with its causes.
fn describe(error: lab::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
