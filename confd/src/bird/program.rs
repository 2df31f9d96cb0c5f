//! Brings BIRD to run a configuration, and keeps it running that one.
//!
//! A configuration is confirmed when the running BIRD itself names its marker, is done reconfiguring and
//! lists every peer of it. A BIRD of the classic syntax cannot name one: there it counts that nobody has
//! reconfigured or restarted it since we did. Anything less is tried again at the next `supervise`: a BIRD that restarted with
//! an older file, a socket that came back, a file that somebody edited. What BIRD refused is not tried a
//! second time until something changes; the old configuration stays in force, in BIRD and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::control::{Control, ControlError};
use super::sessions::{self, Change, Session};
use super::write::{ConfigFile, Installed, Previous, Refusal, WriteError};
use crate::render::Rendered;

/// How long a reconfiguration is waited for before the next supervision looks at it again.
const RECONFIGURATION_WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// Counting routes costs BIRD more than naming states: done at every so many readings.
const ROUTES_EVERY: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("BIRD refuses the configuration that its own check accepts: {0}; the old one is back")]
    Refused(Refusal),
    #[error("BIRD reads {theirs:?}, not {}: start it with -c naming our file", ours.display())]
    OtherFile { ours: PathBuf, theirs: String },
    #[error("BIRD has read its configuration, but does not know the peers {}", missing.join(", "))]
    PeersMissing { missing: Vec<String> },
    #[error("BIRD is still reconfiguring")]
    Reconfiguring,
}

/// What a supervision found and did.
#[derive(Debug, Default)]
pub struct Supervision {
    /// BIRD answers.
    pub alive: bool,
    /// BIRD runs what it should.
    pub confirmed: bool,
    /// BIRD had to be told to read its file.
    pub reloaded: bool,
    /// BIRD waits for its neighbours before it writes routes.
    pub recovering: bool,
    pub changes: Vec<Change>,
    /// What stands in the way, if anything.
    pub error: Option<ProgramError>,
}

/// The owner of BIRD's file and control socket.
pub struct Programmer {
    file: ConfigFile,
    socket: PathBuf,
    wanted: Option<Rendered>,
    /// Time and size of the file while it is known to hold `wanted`.
    on_disk: Option<(SystemTime, u64)>,
    /// What stood in the file before `wanted`, until BIRD confirms that.
    previous: Option<Previous>,
    /// What an unmarked BIRD has loaded: our marker, and its own times of start and reconfiguration.
    loaded: Option<(String, String, String)>,
    /// Why `wanted` was refused.
    refusal: Option<Refusal>,
    sessions: Vec<Session>,
    readings: u32,
}

impl Programmer {
    pub fn new(file: ConfigFile, socket: impl Into<PathBuf>) -> Programmer {
        Programmer {
            file,
            socket: socket.into(),
            wanted: None,
            on_disk: None,
            previous: None,
            loaded: None,
            refusal: None,
            sessions: Vec::new(),
            readings: 0,
        }
    }

    /// The sessions as last read.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// The peers that it should have.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().flat_map(|wanted| wanted.peers.iter().map(String::as_str))
    }

    /// Sets what BIRD shall run; `supervise` makes it so. Another text with the same meaning is no change.
    pub fn want(&mut self, rendered: Rendered) -> bool {
        if self.wanted.as_ref().is_some_and(|wanted| wanted.marker == rendered.marker) {
            return false;
        }
        self.on_disk = None;
        self.refusal = None;
        self.wanted = Some(rendered);
        true
    }

    /// Brings file and BIRD to what is wanted, where they are not, and reads the sessions.
    pub async fn supervise(&mut self) -> Supervision {
        // The file comes first: a BIRD that starts now reads it by itself.
        let mut found = Supervision { error: self.install().await.err(), ..Default::default() };
        let mut control = match Control::connect(&self.socket).await {
            Ok(control) => control,
            // Of two daemons, the one of a family that has no peers need not run.
            Err(_) if found.error.is_none() && self.is_idle() => {
                found.changes = sessions::changes(&self.sessions, &[]);
                self.sessions.clear();
                found.alive = true;
                found.confirmed = true;
                return found;
            }
            Err(error) => {
                found.error.get_or_insert(error.into());
                return found;
            }
        };
        found.alive = true;
        if found.error.is_none() {
            match self.load(&mut control, &mut found.reloaded).await {
                Ok(recovering) => found.recovering = recovering,
                Err(ProgramError::Control(ControlError::Refused(message))) => {
                    found.error = Some(self.step_back(&message).await);
                }
                Err(error) => found.error = Some(error),
            }
        }
        // After an error on the socket its replies are out of step.
        if matches!(found.error, Some(ProgramError::Control(_))) {
            return found;
        }
        match self.read_sessions(&mut control).await {
            Ok(changes) => found.changes = changes,
            Err(error) => {
                found.error.get_or_insert(error.into());
                return found;
            }
        }
        if found.error.is_none() && self.wanted.is_some() {
            let missing = self.missing_peers();
            if missing.is_empty() {
                self.previous = None;
                found.confirmed = true;
            } else {
                found.error = Some(ProgramError::PeersMissing { missing });
            }
        }
        found
    }

    async fn install(&mut self) -> Result<(), ProgramError> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        if let Some(refusal) = &self.refusal {
            return Err(WriteError::Refused(refusal.clone()).into());
        }
        if self.on_disk.is_some() && self.on_disk == stamp(self.file.path()).await {
            return Ok(());
        }
        match self.file.install(&wanted.files).await {
            Ok(Installed::Unchanged) => {}
            Ok(Installed::Written { previous }) => {
                tracing::info!(path = %self.file.path().display(), marker = wanted.marker, "configuration written");
                self.previous = Some(previous);
            }
            Err(error) => {
                if let WriteError::Refused(refusal) = &error {
                    self.refusal = Some(refusal.clone());
                }
                return Err(error.into());
            }
        }
        self.on_disk = stamp(self.file.path()).await;
        Ok(())
    }

    /// Has BIRD read the file unless it runs it already, and waits until it is done. Says whether BIRD recovers
    /// from a restart.
    async fn load(&mut self, control: &mut Control, reloaded: &mut bool) -> Result<bool, ProgramError> {
        let Some(wanted) = &self.wanted else { return Ok(false) };
        let runs = if wanted.marked {
            control.running_marker().await?.as_ref() == Some(&wanted.marker)
        } else {
            let status = control.status().await?;
            let now = (wanted.marker.clone(), status.last_reboot, status.last_reconfiguration);
            self.loaded.as_ref() == Some(&now)
        };
        if !runs {
            let theirs = control.configure().await?;
            *reloaded = true;
            let ours = self.file.path();
            let other = if wanted.marked {
                control.running_marker().await?.as_ref() != Some(&wanted.marker)
            } else {
                Path::new(&theirs) != ours
            };
            if other {
                return Err(ProgramError::OtherFile { ours: ours.to_owned(), theirs });
            }
        }
        let deadline = tokio::time::Instant::now() + RECONFIGURATION_WAIT;
        loop {
            let status = control.status().await?;
            if !status.reconfiguring {
                let loaded = (wanted.marker.clone(), status.last_reboot, status.last_reconfiguration);
                self.loaded = Some(loaded).filter(|_| !wanted.marked);
                return Ok(status.graceful_restart);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(ProgramError::Reconfiguring);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Puts the old file back, so that a restarted BIRD runs what this one does.
    async fn step_back(&mut self, message: &str) -> ProgramError {
        let text = self.wanted.as_ref().map_or("", Rendered::text);
        let refusal = Refusal::read(message, self.file.path(), text);
        self.on_disk = None;
        self.refusal = Some(refusal.clone());
        let restored = match self.previous.take() {
            Some(previous) => self.file.restore(&previous).await,
            None => Ok(()),
        };
        match restored {
            Ok(()) => ProgramError::Refused(refusal),
            Err(error) => error.into(),
        }
    }

    async fn read_sessions(&mut self, control: &mut Control) -> Result<Vec<Change>, ControlError> {
        let routes = self.readings.is_multiple_of(ROUTES_EVERY);
        self.readings = self.readings.wrapping_add(1);
        let mut read = control.sessions(routes).await?;
        let last: BTreeMap<&str, &Session> =
            self.sessions.iter().map(|session| (session.name.as_str(), session)).collect();
        for session in &mut read {
            let Some(last) = last.get(session.name.as_str()) else { continue };
            session.steady(last);
            if !routes && session.is_up() {
                (session.imported, session.exported) = (last.imported, last.exported);
            }
        }
        let changes = sessions::changes(&self.sessions, &read);
        self.sessions = read;
        Ok(changes)
    }

    fn is_idle(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| !wanted.marked && wanted.peers.is_empty())
    }

    fn missing_peers(&self) -> Vec<String> {
        let known: BTreeSet<&str> = self.sessions.iter().map(|session| session.name.as_str()).collect();
        let wanted = self.wanted.iter().flat_map(|wanted| &wanted.peers);
        wanted.filter(|name| !known.contains(name.as_str())).cloned().collect()
    }
}

async fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
