//! Embeds the catalog: every file of `catalog/` becomes a line of one table, so that a new service is a new file and
//! nothing else. Beside the table goes the whole as JSON, which is what the program reads when it starts.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let folder = Path::new(&root).join("catalog");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    // By id: a dash sorts before the dot of the ending.
    names.sort_by_key(|name| name.trim_end_matches(".toml").to_owned());
    let mut table = String::from("&[\n");
    let mut services: Vec<serde_json::Value> = Vec::new();
    for name in &names {
        let path = folder.join(name);
        table += &format!("    ({name:?}, include_str!({path:?})),\n");
        let wrong = |error| io::Error::other(format!("catalog/{name}: {error}"));
        services.push(toml::from_str(&fs::read_to_string(&path)?).map_err(wrong)?);
    }
    table += "]\n";
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let out = Path::new(&out);
    fs::write(out.join("catalog.json"), serde_json::to_vec(&services)?)?;
    fs::write(out.join("catalog.rs"), table)
}
