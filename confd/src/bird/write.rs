//! BIRD's configuration files: staged in a folder beside them, checked by BIRD, renamed into place.
//!
//! They are only ever a configuration that BIRD has accepted: a refused one leaves the old files as they
//! are. Files that mean the same already are not touched. What the main file includes is put in place
//! before it, so that a BIRD which starts in between finds everything.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::render::{File, meaning, object_at, statement_at};

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
    /// The object that the statement comes from, as in `BGPPeer(rack-1)`.
    pub fn object(&self) -> Option<&str> {
        object_at(self.statement.as_deref()?)
    }

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
#[derive(Clone, PartialEq, Eq)]
pub enum Installed {
    Unchanged,
    /// With what stood there before, for `ConfigFile::restore`.
    Written {
        previous: Previous,
    },
}

/// What stood in each file, by name; `None` where there was no file. It holds passwords.
pub type Previous = Vec<(&'static str, Option<String>)>;

/// A main configuration file, those beside it that it includes, and the BIRD that checks them.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    checker: PathBuf,
}

impl ConfigFile {
    pub fn new(path: impl Into<PathBuf>, checker: impl Into<PathBuf>) -> ConfigFile {
        ConfigFile { path: path.into(), checker: checker.into() }
    }

    /// The main file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file goes: the first is the main one, whatever its name here.
    fn place(&self, index: usize, name: &str) -> PathBuf {
        if index == 0 { self.path.clone() } else { self.path.with_file_name(name) }
    }

    /// Makes the files say what is wanted, if BIRD accepts it.
    pub async fn install(&self, files: &[File]) -> Result<Installed, WriteError> {
        let mut previous = Previous::new();
        for (index, file) in files.iter().enumerate() {
            let place = self.place(index, file.name);
            previous.push(match fs::read(&place).await {
                Ok(bytes) => (file.name, Some(String::from_utf8_lossy(&bytes).into_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (file.name, None),
                Err(source) => return Err(WriteError::Io { what: "read", path: place, source }),
            });
        }
        let same = |(old, new): (&(&str, Option<String>), &File)| {
            old.1.as_deref().is_some_and(|old| meaning(old) == meaning(&new.text))
        };
        if previous.iter().zip(files).all(same) {
            return Ok(Installed::Unchanged);
        }
        let texts: Vec<(&str, &str)> = files.iter().map(|file| (file.name, file.text.as_str())).collect();
        let placed = async {
            self.stage(&texts).await?;
            self.check(files).await?;
            self.put_in_place(&texts).await
        };
        let placed = placed.await;
        self.discard().await;
        placed.map(|()| Installed::Written { previous })
    }

    /// Puts back what stood there, after a running BIRD refused what its own check accepted.
    pub async fn restore(&self, previous: &Previous) -> Result<(), WriteError> {
        let texts: Option<Vec<(&str, &str)>> =
            previous.iter().map(|(name, text)| Some((*name, text.as_deref()?))).collect();
        let Some(texts) = texts else { return Ok(()) };
        self.stage(&texts).await?;
        let placed = self.put_in_place(&texts).await;
        self.discard().await;
        placed
    }

    /// Always the same folder, so that what a crash leaves behind is used up by the next run.
    fn staging(&self) -> PathBuf {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.path.with_file_name(format!(".{name}.staged"))
    }

    fn staged(&self, index: usize, name: &str) -> PathBuf {
        let main = self.path.file_name().unwrap_or_default();
        self.staging().join(if index == 0 { main } else { name.as_ref() })
    }

    /// Writes beside the files. A BIRD that has given up root must be able to read what we put in place, so
    /// owner and mode are those of the main file as it is, or the folder's owner where there is none.
    async fn stage(&self, texts: &[(&str, &str)]) -> Result<(), WriteError> {
        let staging = self.staging();
        let write = async {
            // Of earlier versions a file had this name.
            if fs::symlink_metadata(&staging).await.is_ok_and(|found| !found.is_dir()) {
                fs::remove_file(&staging).await?;
            }
            fs::create_dir_all(&staging).await?;
            let old = fs::metadata(&self.path).await.ok();
            // Peers' passwords end up in these files.
            let mode = old.as_ref().map_or(0o640, |old| old.permissions().mode() & 0o777);
            let owner = match old {
                Some(old) => old,
                None => fs::metadata(directory(&self.path)).await?,
            };
            for (index, (name, text)) in texts.iter().enumerate() {
                let path = self.staged(index, name);
                let mut options = fs::OpenOptions::new();
                let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&path).await?;
                file.set_permissions(Permissions::from_mode(mode)).await?;
                let written = file.metadata().await?;
                if (written.uid(), written.gid()) != (owner.uid(), owner.gid())
                    && let Err(error) = chown(&path, Some(owner.uid()), Some(owner.gid()))
                {
                    tracing::debug!(path = %path.display(), %error, "owner of the configuration not kept");
                }
                file.write_all(text.as_bytes()).await?;
                // `sync_all` keeps the error of a write that went before to itself.
                file.flush().await?;
                file.sync_all().await?;
            }
            Ok(())
        };
        match write.await {
            Ok(()) => Ok(()),
            Err(source) => {
                self.discard().await;
                Err(WriteError::Io { what: "write", path: staging, source })
            }
        }
    }

    async fn check(&self, files: &[File]) -> Result<(), WriteError> {
        let failed = |source| WriteError::Check { binary: self.checker.clone(), source };
        let staged = self.staged(0, "");
        let mut command = Command::new(&self.checker);
        command.arg("-p").arg("-c").arg(&staged).stdin(Stdio::null()).kill_on_drop(true);
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
        let refusal = files
            .iter()
            .enumerate()
            .map(|(index, file)| Refusal::read(&said, &self.staged(index, file.name), &file.text));
        let place = refusal.clone().find(|refusal| refusal.line.is_some());
        let unknown = || Refusal { message: said.trim().to_owned(), line: None, statement: None };
        Err(WriteError::Refused(place.unwrap_or_else(unknown)))
    }

    /// The main file last.
    async fn put_in_place(&self, texts: &[(&str, &str)]) -> Result<(), WriteError> {
        for (index, (name, text)) in texts.iter().enumerate().rev() {
            let place = self.place(index, name);
            match fs::rename(self.staged(index, name), &place).await {
                Ok(()) => {}
                // A file that is mounted by itself cannot be replaced, only rewritten.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    let written = fs::write(&place, text).await;
                    written.map_err(|source| WriteError::Io { what: "write", path: place, source })?;
                }
                Err(source) => return Err(WriteError::Io { what: "replace", path: place, source }),
            }
        }
        let directory = directory(&self.path);
        let synced = async { fs::File::open(directory).await?.sync_all().await };
        synced.await.map_err(|source| self.io("sync the directory of", source))
    }

    async fn discard(&self) {
        let staging = self.staging();
        match fs::remove_dir_all(&staging).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %staging.display(), %error, "staged configuration stays behind");
            }
            _ => {}
        }
    }

    fn io(&self, what: &'static str, source: io::Error) -> WriteError {
        WriteError::Io { what, path: self.path.clone(), source }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<File> {
        vec![File { name: "bird.cfg", text: text.to_owned() }]
    }

    async fn install(file: &ConfigFile, text: &str) -> Option<Previous> {
        match file.install(&files(text)).await.unwrap() {
            Installed::Unchanged => None,
            Installed::Written { previous } => Some(previous),
        }
    }

    #[tokio::test]
    async fn mode_is_kept_and_equal_meaning_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/bird.cfg");
        let file = ConfigFile::new(&path, "/bin/true");
        assert_eq!(install(&file, "a b;\n").await, Some(vec![("bird.cfg", None)]));
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o640);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(install(&file, "a  b; # again\n").await, None);
        assert_eq!(install(&file, "a c;\n").await, Some(vec![("bird.cfg", Some("a b;\n".to_owned()))]));
        assert_eq!(mode(), 0o644);
        assert_eq!(std::fs::read_dir(dir.path().join("made")).unwrap().count(), 1, "nothing staged is left");
    }

    #[tokio::test]
    async fn without_a_checker_nothing_is_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bird.cfg");
        let error = ConfigFile::new(&path, "/no/such/bird").install(&files("a;\n")).await.err().unwrap();
        assert!(error.to_string().contains("/no/such/bird"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn included_files_are_in_place_before_the_file_that_includes_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = ConfigFile::new(dir.path().join("main.cfg"), "/bin/true");
        let all = [("bird.cfg", "include \"more.cfg\";"), ("more.cfg", "a;")]
            .map(|(name, text)| File { name, text: text.into() });
        file.install(&all).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("main.cfg"), read("more.cfg")), (all[0].text.clone(), all[1].text.clone()));
        // A change of an included file alone is one as well, and can be taken back.
        let changed = [all[0].clone(), File { name: "more.cfg", text: "b;".into() }];
        let Installed::Written { previous } = file.install(&changed).await.unwrap() else { panic!() };
        assert_eq!(read("more.cfg"), "b;");
        file.restore(&previous).await.unwrap();
        assert_eq!(read("more.cfg"), "a;");
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
