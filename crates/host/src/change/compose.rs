//! Compose files: lines changed in place, with everything else of the file as it was.
//!
//! Such files often belong to a user. So nothing on the way to one may be a link, or a folder that others
//! may write: whoever could swap a folder meanwhile would have root write where they like.

use super::Error;
use super::files::{self, Attributes, Found};
use portcullis_core::compose::{self, Edit};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The file as it is to be, with the attributes that it keeps.
fn changed(path: &str, sha256: &str, edits: &[Edit]) -> Result<(String, Attributes), Error> {
    let refuse = |why: &str| Err(Error::refused(path, why));
    let name = Path::new(path);
    if !name
        .extension()
        .is_some_and(|ending| ending == "yml" || ending == "yaml")
    {
        return refuse("a compose file ends in .yml or .yaml");
    }
    let doing = |source| Error::io(format!("read {path}"), source);
    let (bytes, attributes) = match files::look(name).map_err(doing)? {
        Found::File(bytes, attributes) => (bytes, attributes),
        _ => return refuse("there is no such file (a link is not followed)"),
    };
    if files::sha256(&bytes) != sha256 {
        return refuse("it was changed since the plan was made");
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return refuse("it is no text");
    };
    match compose::apply(&text, edits) {
        Ok(text) => Ok((text, attributes)),
        Err(why) => refuse(&why),
    }
}

/// Every folder above is a real one, of root or of the file's owner, and closed to others.
fn safe_way(path: &Path) -> Result<(), Error> {
    let refused = |why: &str| Error::refused(path.display().to_string(), why);
    let meta = |at: &Path| {
        fs::symlink_metadata(at)
            .map_err(|source| Error::io(format!("look at {}", at.display()), source))
    };
    if !path.is_absolute() {
        return Err(refused("not a plain absolute path"));
    }
    let owner = meta(path)?.uid();
    for folder in path.ancestors().skip(1) {
        let meta = meta(folder)?;
        if !meta.is_dir() {
            return Err(refused("a folder on the way is a link: name the real path"));
        }
        let others = meta.mode() & 0o022 != 0;
        if others || !(meta.uid() == 0 || meta.uid() == owner) {
            return Err(refused("others may write to a folder on the way"));
        }
    }
    Ok(())
}

pub(super) fn check(path: &str, sha256: &str, edits: &[Edit]) -> Result<(), Error> {
    safe_way(Path::new(path))?;
    changed(path, sha256, edits).map(drop)
}

pub(super) fn edit(path: &str, sha256: &str, edits: &[Edit]) -> Result<(), Error> {
    safe_way(Path::new(path))?;
    replace(path, sha256, edits)
}

fn replace(path: &str, sha256: &str, edits: &[Edit]) -> Result<(), Error> {
    let (text, attributes) = changed(path, sha256, edits)?;
    let kept = Attributes {
        mtime: None,
        ..attributes
    };
    files::replace(Path::new(path), text.as_bytes(), &kept)
        .map_err(|source| Error::io(format!("write {path}"), source))?;
    match files::look(Path::new(path)) {
        Ok(Found::File(bytes, _)) if bytes == text.as_bytes() => Ok(()),
        _ => Err(Error::read_back(path, "is not what was written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const FILE: &str = "services:\n  ai: # the model\n    ports:\n      - 11434:11434   # all\n";

    fn put(folder: &Path) -> (String, String, Vec<Edit>) {
        let path = folder.join("compose.yml");
        fs::write(&path, FILE).unwrap();
        let edits = compose::entries(FILE)
            .unwrap()
            .into_iter()
            .filter_map(|e| e.change)
            .collect();
        let path = path.to_string_lossy().into_owned();
        (path, files::sha256(FILE.as_bytes()), edits)
    }

    #[test]
    fn one_line_changes_and_the_mode_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (path, sha, edits) = put(folder.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, &sha, &edits).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            FILE.replace("11434:11434 ", "\"127.0.0.1:11434:11434\" ")
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(
            replace(&path, &sha, &edits).is_err(),
            "it is another file now"
        );
    }

    #[test]
    fn links_and_open_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, sha, edits) = put(folder.path());
        let link = folder.path().join("link.yml");
        symlink(&path, &link).unwrap();
        assert!(replace(&link.to_string_lossy(), &sha, &edits).is_err());
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        let (path, sha, edits) = put(&open);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = safe_way(Path::new(&path)).unwrap_err().to_string();
        assert!(refused.contains("others may write"), "{refused}");
        assert!(check("/etc/shadow", &sha, &edits).is_err());
    }
}
