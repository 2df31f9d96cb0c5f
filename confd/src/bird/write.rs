//! BIRD's configuration file: staged beside it, checked by BIRD, renamed into place.
//!
//! The file is only ever a configuration that BIRD has accepted: a refused one leaves the old file as it
//! is. A file that means the same already is not touched.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::render::{meaning, statement_at};

const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("BIRD refuses the configuration: {0}; the old one stays in force")]
    Refused(Refusal),
    #[error("cannot check the configuration with {}: {source}; is BIRD 2 installed?", binary.display())]
    Check { binary: PathBuf, source: io::Error },
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// Why BIRD refuses a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub line: Option<usize>,
    /// The statement that the line is part of, with the object that it comes from.
    pub statement: Option<String>,
}

impl Refusal {
    /// From BIRD's output, `bird: FILE:LINE:COLUMN message`, about this text.
    pub fn read(output: &str, file: &Path, text: &str) -> Refusal {
        let file = file.display().to_string();
        let place = output.lines().find_map(|line| {
            let (_, rest) = line.split_once(&format!("{file}:"))?;
            let (number, rest) = rest.split_once(':')?;
            let (_, message) = rest.split_once(' ')?;
            Some((number.parse::<usize>().ok()?, message.trim().to_owned()))
        });
        match place {
            Some((line, message)) => {
                Refusal { message, line: Some(line), statement: statement_at(text, line).map(str::to_owned) }
            }
            None => Refusal { message: output.trim().to_owned(), line: None, statement: None },
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(statement) = &self.statement {
            write!(f, " (in `{statement}`)")?;
        }
        Ok(())
    }
}

/// How an installation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    Unchanged,
    /// With what stood there before, for `ConfigFile::restore`.
    Written {
        previous: Option<String>,
    },
}

/// A configuration file and the BIRD that checks it.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    checker: PathBuf,
}

impl ConfigFile {
    pub fn new(path: impl Into<PathBuf>, checker: impl Into<PathBuf>) -> ConfigFile {
        ConfigFile { path: path.into(), checker: checker.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file say `text`, if BIRD accepts it.
    pub async fn install(&self, text: &str) -> Result<Installed, WriteError> {
        let previous = match fs::read(&self.path).await {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(self.io("read", source)),
        };
        if previous.as_deref().is_some_and(|previous| meaning(previous) == meaning(text)) {
            return Ok(Installed::Unchanged);
        }
        let staged = self.stage(text).await?;
        if let Err(error) = self.check(&staged, text).await {
            self.discard(&staged).await;
            return Err(error);
        }
        self.rename(&staged, text).await?;
        Ok(Installed::Written { previous })
    }

    /// Puts back what stood there, after a running BIRD refused what its own check accepted.
    pub async fn restore(&self, previous: Option<&str>) -> Result<(), WriteError> {
        let Some(previous) = previous else { return Ok(()) };
        let staged = self.stage(previous).await?;
        self.rename(&staged, previous).await
    }

    /// Writes beside the file. A BIRD that has given up root must be able to read what we put in place, so
    /// owner and mode are those of the file as it is, or the folder's owner where there is none.
    async fn stage(&self, text: &str) -> Result<PathBuf, WriteError> {
        let staged = staged_path(&self.path);
        let directory = directory(&self.path);
        let write = async {
            fs::create_dir_all(directory).await?;
            let old = fs::metadata(&self.path).await.ok();
            // Peers' passwords end up in this file.
            let mode = old.as_ref().map_or(0o640, |old| old.permissions().mode() & 0o777);
            let owner = match old {
                Some(old) => old,
                None => fs::metadata(directory).await?,
            };
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&staged)
                .await?;
            file.set_permissions(Permissions::from_mode(mode)).await?;
            let written = file.metadata().await?;
            if (written.uid(), written.gid()) != (owner.uid(), owner.gid())
                && let Err(error) = chown(&staged, Some(owner.uid()), Some(owner.gid()))
            {
                tracing::debug!(path = %staged.display(), %error, "owner of the configuration not kept");
            }
            file.write_all(text.as_bytes()).await?;
            file.sync_all().await
        };
        write.await.map_err(|source| WriteError::Io { what: "write", path: staged.clone(), source })?;
        Ok(staged)
    }

    async fn check(&self, staged: &Path, text: &str) -> Result<(), WriteError> {
        let failed = |source| WriteError::Check { binary: self.checker.clone(), source };
        let mut command = Command::new(&self.checker);
        command.arg("-p").arg("-c").arg(staged).stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(CHECK_TIMEOUT, command.output()).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(failed(io::Error::from(io::ErrorKind::TimedOut))),
        };
        if output.status.success() {
            return Ok(());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        if said.trim().is_empty() {
            said = output.status.to_string();
        }
        Err(WriteError::Refused(Refusal::read(&said, staged, text)))
    }

    async fn rename(&self, staged: &Path, text: &str) -> Result<(), WriteError> {
        match fs::rename(staged, &self.path).await {
            Ok(()) => {}
            // A file that is mounted by itself cannot be replaced, only rewritten.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                self.discard(staged).await;
                fs::write(&self.path, text).await.map_err(|source| self.io("write", source))?;
            }
            Err(source) => {
                self.discard(staged).await;
                return Err(self.io("replace", source));
            }
        }
        let directory = directory(&self.path);
        let synced = async { fs::File::open(directory).await?.sync_all().await };
        synced.await.map_err(|source| self.io("sync the directory of", source))
    }

    async fn discard(&self, staged: &Path) {
        if let Err(error) = fs::remove_file(staged).await {
            tracing::warn!(path = %staged.display(), %error, "staged configuration stays behind");
        }
    }

    fn io(&self, what: &'static str, source: io::Error) -> WriteError {
        WriteError::Io { what, path: self.path.clone(), source }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Always the same name, so that what a crash leaves behind is used up by the next run.
fn staged_path(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.staged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn mode_is_kept_and_equal_meaning_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/bird.cfg");
        let file = ConfigFile::new(&path, "/bin/true");
        assert_eq!(file.install("a b;\n").await.unwrap(), Installed::Written { previous: None });
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o640);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(file.install("a  b; # again\n").await.unwrap(), Installed::Unchanged);
        let previous = Some("a b;\n".to_owned());
        assert_eq!(file.install("a c;\n").await.unwrap(), Installed::Written { previous });
        assert_eq!(mode(), 0o644);
        assert_eq!(std::fs::read_dir(dir.path().join("made")).unwrap().count(), 1, "nothing staged is left");
    }

    #[tokio::test]
    async fn without_a_checker_nothing_is_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bird.cfg");
        let error = ConfigFile::new(&path, "/no/such/bird").install("a;\n").await.unwrap_err();
        assert!(error.to_string().contains("/no/such/bird"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_refusal_names_line_statement_and_object() {
        let text = "router id 1.1.1.1;\nprotocol bgp Node_1 from ibgp4 { # BGPPeer(rack)\n  neighbor x;\n}\n";
        let refusal =
            Refusal::read("bird: /run/.b.staged:3:12 syntax error\n", Path::new("/run/.b.staged"), text);
        assert_eq!(
            refusal.to_string(),
            "line 3: syntax error (in `protocol bgp Node_1 from ibgp4 { # BGPPeer(rack)`)"
        );
        let other = Refusal::read("Out of memory", Path::new("/x"), text);
        assert_eq!(other.to_string(), "Out of memory");
    }
}
