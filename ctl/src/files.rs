//! The resources of `-f`: every object of every file, read and checked before anything is done with them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syncer_common::apis::Resource;
use syncer_common::manifests::{DocumentError, Located, ManifestError, locate_in, read_path_in};
use syncer_common::processors::Processors;
use syncer_common::validate;

/// What is to become of the objects decides how much is asked of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They have to be valid, and what typha accepts.
    Write,
    /// A name will do.
    Find,
}

/// Reads files, folders and standard input (`-`). One mistake anywhere is an error that lists all mistakes.
/// `namespace` is that of namespaced objects which name none.
pub fn read(paths: &[PathBuf], namespace: &str, purpose: Purpose) -> Result<Vec<Resource>> {
    let (mut resources, mut mistakes) = (Vec::new(), Vec::new());
    let mut processors = Processors::new();
    for path in paths {
        for object in objects(path, namespace)? {
            let found = match object {
                Ok(located) if purpose == Purpose::Write => {
                    check(&located, &mut processors).map(|()| located)
                }
                Ok(located) => Ok(located),
                Err(mistake) => Err(vec![mistake]),
            };
            match found {
                Ok(located) => resources.push(located.resource),
                Err(found) => mistakes.extend(found.iter().map(ToString::to_string)),
            }
        }
    }
    match mistakes.as_slice() {
        [] => Ok(resources),
        [one] => bail!("{one}\nNothing was done."),
        many => bail!("{} mistakes:\n  {}\nNothing was done.", many.len(), many.join("\n  ")),
    }
}

fn objects(path: &Path, namespace: &str) -> Result<Vec<Result<Located, ManifestError>>> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(locate_in(Path::new("standard input"), &text, namespace));
    }
    Ok(read_path_in(path, namespace))
}

/// Every mistake of one object, by field.
fn check(located: &Located, processors: &mut Processors) -> Result<(), Vec<ManifestError>> {
    let Located { file, document, resource } = located;
    let mistakes: Vec<_> = validate::resource(resource)
        .into_iter()
        .map(|wrong| ManifestError::Document {
            file: file.clone(),
            error: DocumentError {
                document: *document,
                item: None,
                object: resource.id(),
                field: wrong.field,
                reason: wrong.reason,
            },
        })
        .collect();
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let Ok(path) = resource.key_path() else { return Ok(()) };
    match processors.put(&path, &resource.to_stored()).error {
        None => Ok(()),
        Some(error) => {
            Err(vec![ManifestError::Conversion { file: file.clone(), document: *document, error }])
        }
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
        let error = read(&[file], "default", Purpose::Write).unwrap_err().to_string();
        for part in ["policies.yaml", "document 2", "broken", "selector"] {
            assert!(error.contains(part), "{part} is missing: {error}");
        }
    }

    #[test]
    fn every_mistake_of_an_object_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pool.yaml");
        let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: Pool}\nspec: {cidr: 10.0.0.1/16, blockSize: 33, ipipMode: Always, vxlanMode: Always}\n";
        std::fs::write(&file, pool).unwrap();
        let error = read(std::slice::from_ref(&file), "default", Purpose::Write).unwrap_err().to_string();
        for part in [
            "4 mistakes",
            "metadata.name",
            "spec.cidr",
            "spec.blockSize",
            "spec.vxlanMode",
            "write 10.0.0.0/16",
        ] {
            assert!(error.contains(part), "{part} is missing: {error}");
        }
        assert_eq!(read(&[file], "default", Purpose::Find).unwrap().len(), 1);
    }

    #[test]
    fn objects_without_namespace_get_the_one_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        let policy =
            "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {}\n";
        std::fs::write(&file, policy).unwrap();
        let read = read(&[file], "shop", Purpose::Write).unwrap();
        assert_eq!(read[0].metadata.namespace, "shop");
    }

    #[test]
    fn folders_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.yaml"), GOOD.replace("security", "second")).unwrap();
        std::fs::write(dir.path().join("a.yaml"), GOOD.replace("security", "first")).unwrap();
        let names: Vec<_> = read(&[dir.path().into()], "default", Purpose::Write)
            .unwrap()
            .into_iter()
            .map(|r| r.metadata.name)
            .collect();
        assert_eq!(names, ["first", "second"]);
    }
}
