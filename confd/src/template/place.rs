//! A file into its place: staged beside it, compared, checked, renamed, and whoever reads it told.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::fs;
use tokio::process::Command;

use super::Options;
use super::resource::Resource;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Unchanged,
    /// With `noop`.
    WouldChange,
    Written,
}

pub async fn place(resource: &Resource, text: &str, options: &Options) -> anyhow::Result<Done> {
    let dest = &resource.dest;
    let old = fs::metadata(dest).await.ok();
    let mode = resource.mode.or(old.as_ref().map(|old| old.mode() & 0o7777)).unwrap_or(0o644);
    if let Some(old) = &old
        && fs::read(dest).await.with_context(|| format!("reading {}", dest.display()))? == text.as_bytes()
        && old.mode() & 0o7777 == mode
        && resource.uid.is_none_or(|uid| uid == old.uid())
        && resource.gid.is_none_or(|gid| gid == old.gid())
    {
        return Ok(Done::Unchanged);
    }
    if options.noop {
        return Ok(Done::WouldChange);
    }
    let staged = staged_path(dest);
    let stage = async {
        fs::write(&staged, text).await?;
        fs::set_permissions(&staged, Permissions::from_mode(mode)).await?;
        if resource.uid.is_some() || resource.gid.is_some() {
            chown(&staged, resource.uid, resource.gid)?;
        }
        fs::File::open(&staged).await?.sync_all().await
    };
    let placed = async {
        stage.await.with_context(|| format!("writing {}", staged.display()))?;
        if !options.sync_only && !resource.check_cmd.is_empty() {
            let command = with_source(&resource.check_cmd, &staged);
            run(&command).await.context("check_cmd refuses it")?;
        }
        fs::rename(&staged, dest).await.with_context(|| format!("replacing {}", dest.display()))
    };
    if let Err(error) = placed.await {
        // It may never have been there.
        fs::remove_file(&staged).await.ok();
        return Err(error);
    }
    Ok(Done::Written)
}

/// Tells whoever reads the file.
pub async fn reload(resource: &Resource, options: &Options) -> anyhow::Result<()> {
    if options.sync_only || resource.reload_cmd.is_empty() {
        return Ok(());
    }
    run(&with_source(&resource.reload_cmd, &resource.dest)).await.context("written, but reload_cmd failed")
}

fn staged_path(dest: &Path) -> PathBuf {
    let name = dest.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    dest.with_file_name(format!(".{name}.staged"))
}

/// The original's way to name the file in a command.
fn with_source(command: &str, file: &Path) -> String {
    let file = format!("'{}'", file.display().to_string().replace('\'', r"'\''"));
    ["{{.src}}", "{{ .src }}"].iter().fold(command.to_owned(), |command, word| command.replace(word, &file))
}

async fn run(command: &str) -> anyhow::Result<()> {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(COMMAND_TIMEOUT, shell.output()).await {
        Ok(output) => output.with_context(|| format!("running {command:?}"))?,
        Err(_) => bail!("{command:?} took longer than {} s", COMMAND_TIMEOUT.as_secs()),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(())
}
