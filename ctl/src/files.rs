//! The resources of `-f`: every object of every file, read and checked before anything is done with them.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use syncer_common::apis::{FieldError, Resource};
use syncer_common::manifests::{Object, files, objects, read_text};
use syncer_common::processors::Processors;
use syncer_common::validate;

use crate::old::{self, Forms};

/// What is to become of the objects decides how much is asked of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They have to be valid, and what typha accepts.
    Write,
    /// A name will do.
    Find,
}

/// Where an object was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// Of its document.
    pub line: usize,
    document: usize,
    item: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: document {}", self.file.display(), self.line, self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        Ok(())
    }
}

/// A resource and where it was.
#[derive(Clone, Debug)]
pub struct Found {
    pub place: Place,
    pub resource: Resource,
}

impl Found {
    /// What is wrong with it, with everything an operator needs to find it.
    pub fn mistake(&self, error: &FieldError) -> String {
        format!("{} ({}): {error}", self.place, self.resource.id())
    }
}

/// What the files hold.
#[derive(Debug, Default)]
pub struct Loaded {
    pub found: Vec<Found>,
    /// Objects, documents and files that could not be read.
    pub mistakes: Vec<String>,
    /// What became of old forms.
    pub warnings: Vec<String>,
}

/// Reads files, folders and standard input (`-`), old forms too. `namespace` is that of namespaced objects
/// which name none.
pub fn load(paths: &[PathBuf], namespace: &str, forms: Forms) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            loaded.add(Path::new("standard input"), &text, namespace, forms);
            continue;
        }
        for file in files(path) {
            match file.and_then(|file| read_text(&file).map(|text| (file, text))) {
                Ok((file, text)) => loaded.add(&file, &text, namespace, forms),
                Err(error) => loaded.mistakes.push(error.to_string()),
            }
        }
    }
    Ok(loaded)
}

impl Loaded {
    fn add(&mut self, file: &Path, text: &str, namespace: &str, forms: Forms) {
        for object in objects(text) {
            match object.and_then(|object| old::read(&object, namespace, forms).map(|read| (object, read))) {
                Ok((object, (resources, warnings))) => {
                    let Object { line, document, item, .. } = object;
                    let place = Place { file: file.to_owned(), line, document, item };
                    self.warnings.extend(warnings.into_iter().map(|warning| format!("{place}: {warning}")));
                    let found = |resource| Found { place: place.clone(), resource };
                    self.found.extend(resources.into_iter().map(found));
                }
                Err(error) => self.mistakes.push(format!("{}:{}: {error}", file.display(), error.line)),
            }
        }
    }
}

/// The resources of `-f`, and what is to be said about old forms. One mistake anywhere is an error that lists
/// all mistakes.
pub fn read(paths: &[PathBuf], namespace: &str, purpose: Purpose) -> Result<(Vec<Resource>, Vec<String>)> {
    let Loaded { found, mut mistakes, warnings } = load(paths, namespace, Forms::Calico)?;
    if purpose == Purpose::Write {
        let mut processors = Processors::new();
        for found in &found {
            mistakes.extend(check(&found.resource, &mut processors).iter().map(|error| found.mistake(error)));
        }
    }
    match mistakes.as_slice() {
        [] => Ok((found.into_iter().map(|found| found.resource).collect(), warnings)),
        [one] => bail!("{one}\nNothing was done."),
        many => bail!("{} mistakes:\n  {}\nNothing was done.", many.len(), many.join("\n  ")),
    }
}

/// Every mistake of one object, by field: what may not be written, and what typha would refuse.
pub fn check(resource: &Resource, processors: &mut Processors) -> Vec<FieldError> {
    let mistakes = validate::resource(resource);
    if !mistakes.is_empty() {
        return mistakes;
    }
    let Ok(path) = resource.key_path() else { return mistakes };
    let refused = processors.put(&path, &resource.to_stored()).error;
    refused.into_iter().map(|error| FieldError::new(error.field, error.reason)).collect()
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
        for part in
            ["policies.yaml:6: document 2 (GlobalNetworkPolicy(broken)): spec.selector: ", "Nothing was done"]
        {
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
        assert_eq!(read(&[file], "default", Purpose::Find).unwrap().0.len(), 1);
    }

    #[test]
    fn objects_without_namespace_get_the_one_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.yaml");
        let policy =
            "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {}\n";
        std::fs::write(&file, policy).unwrap();
        let (read, _) = read(&[file], "shop", Purpose::Write).unwrap();
        assert_eq!(read[0].metadata.namespace, "shop");
    }

    #[test]
    fn folders_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.yaml"), GOOD.replace("security", "second")).unwrap();
        std::fs::write(dir.path().join("a.yaml"), GOOD.replace("security", "first")).unwrap();
        let (read, _) = read(&[dir.path().into()], "default", Purpose::Write).unwrap();
        let names: Vec<_> = read.into_iter().map(|r| r.metadata.name).collect();
        assert_eq!(names, ["first", "second"]);
    }
}
