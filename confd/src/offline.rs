//! `confd render`: from manifests to files, with no daemon, no BIRD and no network.

use std::path::{Path, PathBuf};

use anyhow::Context;
use syncer_common::manifests::load_updates;

use crate::bgp::{LocalSettings, Model};
use crate::render::{Syntax, render};

/// Writes the configuration of a node below `out` and returns its path. What cannot be used is passed to
/// `problem`, one line each; the rest is rendered all the same.
pub fn render_manifests(
    local: &LocalSettings,
    manifests: &Path,
    syntax: Syntax,
    out: &Path,
    problem: &mut dyn FnMut(String),
) -> anyhow::Result<PathBuf> {
    let (updates, errors) = load_updates(manifests);
    errors.iter().for_each(|error| problem(error.to_string()));
    let mut model = Model::default();
    for update in updates {
        model.on_update(update);
    }
    let computed = model.compute(local);
    let rendered = render(&computed, syntax);
    computed.problems.iter().chain(&rendered.problems).for_each(|one| problem(one.to_string()));
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let path = out.join(rendered.file_name);
    std::fs::write(&path, &rendered.text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
