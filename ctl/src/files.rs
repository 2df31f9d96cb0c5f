//! The resources of `-f`: every object of every file, read and checked before anything is done with them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syncer_common::apis::Resource;
use syncer_common::manifests::{Located, ManifestError, locate, read_path};
use syncer_common::processors::Processors;

/// Reads files, folders and standard input (`-`). One mistake anywhere is an error that lists all mistakes.
/// `checked`: the objects also have to be what typha accepts (deleting needs no more than a name).
pub fn read(paths: &[PathBuf], checked: bool) -> Result<Vec<Resource>> {
    let (mut resources, mut mistakes) = (Vec::new(), Vec::new());
    let mut processors = Processors::new();
    for path in paths {
        for object in objects(path)? {
            match object.and_then(|located| check(located, checked.then_some(&mut processors))) {
                Ok(resource) => resources.push(resource),
                Err(mistake) => mistakes.push(mistake.to_string()),
            }
        }
    }
    match mistakes.as_slice() {
        [] => Ok(resources),
        [one] => bail!("{one}\nNothing was done."),
        many => bail!("{} mistakes:\n  {}\nNothing was done.", many.len(), many.join("\n  ")),
    }
}

fn objects(path: &Path) -> Result<Vec<Result<Located, ManifestError>>> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(locate(Path::new("standard input"), &text));
    }
    Ok(read_path(path))
}

fn check(located: Located, processors: Option<&mut Processors>) -> Result<Resource, ManifestError> {
    let Located { file, document, resource } = located;
    let Some(processors) = processors else { return Ok(resource) };
    // Where it can not even be stored, the write says why, naming the field.
    let Ok(path) = resource.key_path() else { return Ok(resource) };
    match processors.put(&path, &resource.to_stored()).error {
        None => Ok(resource),
        Some(error) => Err(ManifestError::Conversion { file, document, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: security}\nspec: {order: 10}\n";

    #[test]
    fn one_mistake_stops_everything_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policies.yaml");
        let bad = "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: broken}\nspec: {selector: \"app ==\"}\n";
        std::fs::write(&file, format!("{GOOD}{bad}")).unwrap();
        let error = read(&[file], true).unwrap_err().to_string();
        for part in ["policies.yaml", "document 2", "broken", "selector"] {
            assert!(error.contains(part), "{part} is missing: {error}");
        }
    }

    #[test]
    fn folders_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.yaml"), GOOD.replace("security", "second")).unwrap();
        std::fs::write(dir.path().join("a.yaml"), GOOD.replace("security", "first")).unwrap();
        let names: Vec<_> =
            read(&[dir.path().into()], true).unwrap().into_iter().map(|r| r.metadata.name).collect();
        assert_eq!(names, ["first", "second"]);
    }
}
