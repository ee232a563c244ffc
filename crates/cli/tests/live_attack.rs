//! Scratch.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
use lab::World;
#[test]
#[ignore = "live: run by cargo xtask test"]
fn hold() {
    lab::require_root();
    let world = World::new("hold").unwrap();
    let mut out = String::new();
    for h in [
        &world.server,
        &world.internet,
        &world.stranger,
        &world.operator,
        &world.neighbour,
    ] {
        out += &format!("{}={}\n", h.name(), h.pid());
    }
    let docker = std::env::var("HOLD_DOCKER").is_ok().then(|| {
        let d = world.server.dockerd().unwrap();
        d.import_web_image("web:1", "hello").unwrap();
        d
    });
    std::fs::write("/tmp/hold.env", out).unwrap();
    for _ in 0..1800 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        if !std::path::Path::new("/tmp/hold.env").exists() {
            break;
        }
    }
    drop(docker);
}
