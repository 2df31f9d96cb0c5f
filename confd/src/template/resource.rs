//! Template resources: `conf.d/*.toml`, section `[template]`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::Options;

#[derive(Deserialize)]
struct File {
    template: Section,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Section {
    src: String,
    dest: PathBuf,
    prefix: String,
    keys: Vec<String>,
    mode: String,
    uid: Option<u32>,
    gid: Option<u32>,
    check_cmd: String,
    reload_cmd: String,
}

#[derive(Clone, Debug)]
pub struct Resource {
    /// The TOML file, for people.
    pub file: PathBuf,
    pub src: PathBuf,
    pub dest: PathBuf,
    /// What paths in the template are below of.
    pub prefix: String,
    /// Paths, prefix included, whose changes count.
    pub keys: Vec<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub check_cmd: String,
    pub reload_cmd: String,
}

impl Resource {
    /// Whether a change of this path counts.
    pub fn watches(&self, path: &str) -> bool {
        self.keys.iter().any(|key| {
            path.strip_prefix(key.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// Every resource, in the order of their names.
pub fn load(options: &Options) -> anyhow::Result<Vec<Resource>> {
    let folder = options.confdir.join("conf.d");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files.iter().map(|file| read(file, options).with_context(|| file.display().to_string())).collect()
}

fn read(file: &Path, options: &Options) -> anyhow::Result<Resource> {
    let File { template } = toml::from_str(&std::fs::read_to_string(file)?)?;
    ensure!(!template.src.is_empty(), "template.src is missing");
    ensure!(template.dest.is_absolute(), "template.dest has to be an absolute path");
    let mode = match template.mode.as_str() {
        "" => None,
        text => Some(
            u32::from_str_radix(text, 8).with_context(|| format!("template.mode {text:?} is not octal"))?,
        ),
    };
    let prefix = join(&options.prefix, &template.prefix);
    let node = |text: &str| text.replace("//NODENAME", &format!("/{}", options.node));
    let keys = if template.keys.is_empty() { vec!["/".to_owned()] } else { template.keys };
    Ok(Resource {
        file: file.to_owned(),
        src: options.confdir.join("templates").join(&template.src),
        dest: template.dest,
        keys: keys.iter().map(|key| join(&prefix, &node(key))).collect(),
        prefix,
        mode,
        uid: template.uid,
        gid: template.gid,
        check_cmd: template.check_cmd,
        reload_cmd: template.reload_cmd,
    })
}

/// Two parts of a path with one slash between them; empty ones are none.
pub fn join(above: &str, below: &str) -> String {
    let parts = [above.trim_matches('/'), below.trim_matches('/')];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}
