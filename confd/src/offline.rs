//! `confd render`: from manifests to files, with no daemon, no BIRD and no network.
//!
//! Beside Calico's resources a manifest may hold Kubernetes' Services, EndpointSlices and Secrets.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value as Json;
use syncer_common::kubernetes::{SecretTexts, secret_texts};
use syncer_common::manifests::{self, ManifestError, load_updates, objects};
use syncer_common::model::{Key, ResourceKey, Update};
use syncer_common::processors::Processors;

use crate::bgp::{LocalSettings, Model, Secrets};
use crate::local::LocalState;
use crate::render::{Syntax, render};

/// What manifests say to confd.
#[derive(Default)]
pub struct Manifests {
    pub updates: Vec<Update>,
    pub secrets: Secrets,
    /// What cannot be used, one line each.
    pub problems: Vec<String>,
}

/// Reads a file, or every manifest below a folder. Secrets count in one namespace.
pub fn read_manifests(path: &Path, secret_namespace: &str) -> Manifests {
    let (updates, errors) = load_updates(path);
    let mut read = Manifests { updates, ..Default::default() };
    let of_kubernetes = |error: &ManifestError| match error {
        ManifestError::Document { error, .. } => {
            error.field == "apiVersion"
                && ["Service ", "EndpointSlice ", "Secret "].iter().any(|kind| error.object.starts_with(kind))
        }
        _ => false,
    };
    let errors = errors.iter().filter(|error| !of_kubernetes(error));
    read.problems.extend(errors.map(ToString::to_string));
    let mut processors = Processors::new();
    // What cannot be read at all has been named already.
    for file in manifests::files(path).into_iter().flatten() {
        let Ok(text) = manifests::read_text(&file) else { continue };
        for object in objects(&text).into_iter().flatten() {
            read.object(&object.value, &mut processors, secret_namespace);
        }
    }
    read
}

impl Manifests {
    fn object(&mut self, object: &Json, processors: &mut Processors, secret_namespace: &str) {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let kind = match (text("apiVersion"), text("kind")) {
            ("v1", "Secret") if namespace == secret_namespace => return self.secret(name, object),
            ("v1", "Service") => "KubernetesService",
            ("discovery.k8s.io/v1", "EndpointSlice") => "KubernetesEndpointSlice",
            _ => return,
        };
        let key = ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        let converted = match Key::Resource(key).path() {
            Ok(path) => processors.put(&path, object.to_string().as_bytes()),
            Err(error) => return self.problems.push(format!("{} {namespace}/{name}: {error}", text("kind"))),
        };
        self.updates.extend(converted.updates);
        self.problems.extend(converted.error.map(|error| error.to_string()));
    }

    fn secret(&mut self, name: &str, object: &Json) {
        let SecretTexts { texts, unusable } = secret_texts(object);
        for (key, text) in texts {
            self.secrets.insert(name, &key, text);
        }
        let problem = |key| format!("Secret {name}: data.{key}: not base64 of a text");
        self.problems.extend(unusable.into_iter().map(problem));
    }
}

/// Writes the configuration of a node below `out` and returns the files' paths. What cannot be used is passed
/// to `problem`, one line each; the rest is rendered all the same.
pub fn render_manifests(
    local: &LocalSettings,
    read: Manifests,
    state: LocalState,
    syntax: Syntax,
    out: &Path,
    problem: &mut dyn FnMut(String),
) -> anyhow::Result<Vec<PathBuf>> {
    read.problems.into_iter().for_each(&mut *problem);
    let mut model = Model::default();
    for update in read.updates {
        model.on_update(update);
    }
    let mut secrets = state.secrets;
    secrets.extend(read.secrets);
    model.set_secrets(secrets);
    model.set_workloads(state.workloads);
    let computed = model.compute(local);
    let rendered = render(&computed, syntax);
    let problems = computed.problems.iter().chain(&state.problems);
    problems.chain(rendered.iter().flat_map(|one| &one.problems)).for_each(|one| problem(one.to_string()));
    // `folder/.` is what it says, but cannot be created under that name.
    let out: &Path = &out.components().collect::<PathBuf>();
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let mut paths = Vec::new();
    for file in rendered.iter().flat_map(|one| &one.files) {
        let path = out.join(file.name);
        std::fs::write(&path, &file.text).with_context(|| format!("writing {}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}
