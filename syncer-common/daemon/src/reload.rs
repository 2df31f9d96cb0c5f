//! SIGHUP, or a settings file that has changed: the settings are read again, and what can change in a running
//! process does. The rest is named, and waits for a restart; settings that cannot be read change nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::settings::{Settings, SettingsError};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Reload {
    /// Reads flags, environment and file.
    pub read: Box<dyn Fn() -> Result<Settings, SettingsError> + Send + Sync>,
    pub file: PathBuf,
    /// Settings that `apply` puts into force.
    pub live: &'static [&'static str],
}

impl Reload {
    /// Until cancelled.
    pub async fn run(
        self,
        apply: impl Fn(&Settings) -> anyhow::Result<()> + Send,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut stamp = self.stamp();
        let mut before = (self.read)().map(|settings| values(&settings)).unwrap_or_default();
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                _ = looks.tick() => false,
                () = cancel.cancelled() => return Ok(()),
            };
            let now = self.stamp();
            if !asked && now == stamp {
                continue;
            }
            stamp = now;
            match (self.read)().map_err(anyhow::Error::from).and_then(|settings| {
                apply(&settings)?;
                Ok(values(&settings))
            }) {
                Ok(after) => {
                    let changed = changed(&before, &after);
                    let (live, later): (Vec<&str>, Vec<&str>) =
                        changed.into_iter().partition(|name| self.live.contains(name));
                    tracing::info!(changed = ?live, "settings read again");
                    if !later.is_empty() {
                        tracing::warn!(settings = ?later, "changed settings that need a restart");
                    }
                    before = after;
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "settings cannot be used, nothing changes")
                }
            }
        }
    }

    fn stamp(&self) -> Option<SystemTime> {
        std::fs::metadata(&self.file).ok()?.modified().ok()
    }
}

fn values(settings: &Settings) -> BTreeMap<&'static str, String> {
    settings.given().into_iter().map(|(name, value, _)| (name, value)).collect()
}

fn changed<'a>(before: &BTreeMap<&'a str, String>, after: &BTreeMap<&'a str, String>) -> BTreeSet<&'a str> {
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(*name) != after.get(*name)).copied().collect()
}
