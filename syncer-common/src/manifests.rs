//! Manifests: YAML (several documents) or JSON, single objects or lists, as `calicoctl` reads them.
//!
//! Every object stands alone: one that cannot be read is an error of its own, which names file, line,
//! document, item, field and reason, and the others are read all the same. Nothing here panics on any input,
//! and no input becomes much larger than it is. Files of a directory are read in the order of their paths,
//! directories inside it after that rule too.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::apis::{DEFAULT_NAMESPACE, FieldError, Resource};
use crate::model::Update;
use crate::processors::Processors;

mod content;
mod document;

pub use document::{Document, split_documents};

/// Larger files are refused: nobody writes them by hand, and reading one takes many times its size.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// An object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DocumentError {
    /// Of the document, or of the mistake itself where the parser knows it. Counted from 1.
    pub line: usize,
    /// Counted from 1.
    pub document: usize,
    /// Counted from 1, in a document that is a list.
    pub item: Option<usize>,
    /// Kind and name, as far as they are known.
    pub object: String,
    pub field: String,
    pub reason: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        if !self.object.is_empty() {
            write!(f, " ({})", self.object)?;
        }
        write!(f, ": {}: {}", self.field, self.reason)
    }
}

/// An object, or a whole file, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("{}:{}: {error}", file.display(), error.line)]
    Document { file: PathBuf, error: Box<DocumentError> },
    #[error("{}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    /// It was read, but it does not convert to what the agents use.
    #[error("{}:{line}: document {document}: {error}", file.display())]
    Conversion { file: PathBuf, line: usize, document: usize, error: crate::processors::ConversionError },
}

/// An object and where it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub file: PathBuf,
    /// Of the document. Counted from 1.
    pub line: usize,
    /// Counted from 1.
    pub document: usize,
    pub resource: Resource,
}

/// An object of a text, whatever it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Of the document. Counted from 1.
    pub line: usize,
    /// Counted from 1.
    pub document: usize,
    /// Counted from 1, in a document that is a list.
    pub item: Option<usize>,
    pub value: Value,
}

impl Object {
    /// What is wrong with it.
    pub fn error(&self, error: FieldError) -> DocumentError {
        DocumentError {
            line: self.line,
            document: self.document,
            item: self.item,
            object: name_of(&self.value),
            field: error.field,
            reason: error.reason,
        }
    }

    /// As a resource. `namespace` is that of namespaced objects which name none.
    pub fn resource(&self, namespace: &str) -> Result<Resource, DocumentError> {
        Resource::from_json_in(self.value.clone(), namespace).map_err(|error| self.error(error))
    }
}

/// The objects of a text, without a look at what they are.
pub fn objects(text: &str) -> Vec<Result<Object, DocumentError>> {
    let mut objects = Vec::new();
    for document in split_documents(text) {
        let (line, number) = (document.line, document.number);
        let object = |item, value| Ok(Object { line, document: number, item, value });
        match document.value() {
            Ok(None) => {}
            Ok(Some(value)) => match list_items(value) {
                Listed::One(value) => objects.push(object(None, value)),
                Listed::Items(items) => {
                    objects.extend(
                        items.into_iter().enumerate().map(|(index, value)| object(Some(index + 1), value)),
                    );
                }
            },
            Err((FieldError { field, reason }, line)) => objects.push(Err(DocumentError {
                line,
                document: number,
                item: None,
                object: String::new(),
                field,
                reason,
            })),
        }
    }
    objects
}

/// Reads every object of a text.
pub fn parse_manifest(text: &str) -> Vec<Result<Resource, DocumentError>> {
    objects(text).into_iter().map(|object| object?.resource(DEFAULT_NAMESPACE)).collect()
}

/// With the number of the document each object came from. `namespace` is that of namespaced objects which
/// name none.
pub fn numbered(text: &str, namespace: &str) -> Vec<Result<(usize, Resource), DocumentError>> {
    let numbered = |object: Object| Ok((object.document, object.resource(namespace)?));
    objects(text).into_iter().map(|object| object.and_then(numbered)).collect()
}

enum Listed {
    One(Value),
    Items(Vec<Value>),
}

/// `IPPoolList`, `List` and plain sequences hold objects. Items of a typed list may leave kind and
/// version to it.
fn list_items(value: Value) -> Listed {
    match value {
        Value::Array(items) => Listed::Items(items),
        Value::Object(mut object) => {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let Some(item_kind) = kind.strip_suffix("List") else {
                return Listed::One(Value::Object(object));
            };
            let items = match object.remove("items") {
                Some(Value::Array(items)) => items,
                Some(Value::Null) | None => Vec::new(),
                Some(_) => return Listed::One(Value::Object(object)),
            };
            let version = object.get("apiVersion").cloned();
            Listed::Items(items.into_iter().map(|item| inherit(item, item_kind, version.as_ref())).collect())
        }
        other => Listed::One(other),
    }
}

fn inherit(mut item: Value, kind: &str, version: Option<&Value>) -> Value {
    if let (Value::Object(members), false) = (&mut item, kind.is_empty()) {
        members.entry("kind").or_insert_with(|| kind.into());
        if let Some(version) = version {
            members.entry("apiVersion").or_insert_with(|| version.clone());
        }
    }
    item
}

/// Kind and name as far as they can be seen, for errors.
fn name_of(value: &Value) -> String {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let text = |field| value.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
    match (text("namespace"), text("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}

/// Reads a file, or every manifest below a directory.
pub fn read_path(path: &Path) -> Vec<Result<Located, ManifestError>> {
    let mut read = Vec::new();
    for file in files(path) {
        match file.and_then(|file| read_text(&file).map(|text| (file, text))) {
            Ok((file, text)) => read.extend(locate(&file, &text)),
            Err(error) => read.push(Err(error)),
        }
    }
    read
}

/// Reads a text that came from `file`.
fn locate(file: &Path, text: &str) -> Vec<Result<Located, ManifestError>> {
    let located = |object: Object| {
        let resource = object.resource(DEFAULT_NAMESPACE)?;
        Ok(Located { file: file.to_owned(), line: object.line, document: object.document, resource })
    };
    let in_file = |error| ManifestError::Document { file: file.to_owned(), error: Box::new(error) };
    objects(text).into_iter().map(|object| object.and_then(located).map_err(in_file)).collect()
}

/// The file itself, or every manifest below a directory.
pub fn files(path: &Path) -> Vec<Result<PathBuf, ManifestError>> {
    let mut found = Vec::new();
    if path.is_dir() {
        collect_files(path, &mut found);
    } else {
        found.push(Ok(path.to_owned()));
    }
    found
}

/// Whether a directory's reader takes this file: by its name only.
pub fn is_manifest_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !name.starts_with('.') && matches!(extension, "yaml" | "yml" | "json")
}

fn collect_files(dir: &Path, found: &mut Vec<Result<PathBuf, ManifestError>>) {
    let failed = |reason: String| ManifestError::File { file: dir.to_owned(), reason };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return found.push(Err(failed(error.to_string()))),
    };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            Err(error) => found.push(Err(failed(error.to_string()))),
        }
    }
    paths.sort();
    for path in paths {
        // Links to directories are not followed: they may lead back here.
        let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let hidden =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.'));
        if is_dir && !hidden {
            collect_files(&path, found);
        } else if !is_dir && is_manifest_name(&path) {
            found.push(Ok(path));
        }
    }
}

/// A file's text, or why it has none.
pub fn read_text(file: &Path) -> Result<String, ManifestError> {
    let failed = |reason: String| ManifestError::File { file: file.to_owned(), reason };
    let metadata = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    if metadata.len() > MAX_FILE_BYTES {
        return Err(failed(format!("{} bytes are more than {MAX_FILE_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| failed(format!("not UTF-8 text: {error}")))
}

/// One resource as YAML, without the `---` that goes between documents.
pub fn to_yaml(resource: &Resource) -> String {
    let value = serde_json::to_value(resource).expect("a resource has string keys only");
    value_to_yaml(&value)
}

/// Any JSON value as YAML.
pub fn value_to_yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).expect("JSON values are YAML values")
}

/// What the manifests below `dir` become for the agents, as if they were in a datastore. Of two objects
/// with one identity the later one counts.
pub fn load_updates(dir: &Path) -> (Vec<Update>, Vec<ManifestError>) {
    let mut processors = Processors::new();
    let mut updates = processors.initial();
    let mut errors = Vec::new();
    for located in read_path(dir) {
        let located = match located {
            Ok(located) => located,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let Located { file, line, document, resource } = located;
        match resource.key_path() {
            Ok(path) => {
                let converted = processors.put(&path, &resource.to_stored());
                updates.extend(converted.updates);
                if let Some(error) = converted.error {
                    errors.push(ManifestError::Conversion { file, line, document, error });
                }
            }
            Err(FieldError { field, reason }) => {
                let object = resource.id();
                let error = DocumentError { line, document, item: None, object, field, reason };
                errors.push(ManifestError::Document { file, error: Box::new(error) });
            }
        }
    }
    (updates, errors)
}
