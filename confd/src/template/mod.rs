//! confd as a template tool: files made from what typha sends, by templates of the operator.
//!
//! Template resources are TOML files in `conf.d`, templates are Jinja in `templates`, as with the original
//! confd: `src`, `dest`, `prefix`, `keys`, `mode`, `uid`, `gid`, `check_cmd`, `reload_cmd`. A resource is looked
//! at when something below its keys has changed, and its file is written when its text is another.
//!
//! ```text
//! ClientEvent ─> Store (path → JSON) ─cut─> Resource ─render─> stage ─check─> rename ─reload─> ack
//! ```
//!
//! A resource that fails leaves its file as it is, is named, and is tried again; the others go on.

mod place;
mod resource;
mod store;
mod text;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::CancellationToken;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use typha_client::{ClientEvent, CutId};

pub use place::Done;
pub use resource::Resource;
pub use store::Store;

#[derive(Clone, Debug)]
pub struct Options {
    /// Holds `conf.d` and `templates`.
    pub confdir: PathBuf,
    pub node: String,
    /// In front of every resource's prefix.
    pub prefix: String,
    /// Once, then end: with an error if any file could not be made.
    pub onetime: bool,
    /// Say what would be written, and write nothing.
    pub noop: bool,
    /// Neither check nor reload.
    pub sync_only: bool,
    /// At every change, not at every interval.
    pub watch: bool,
    pub interval: Duration,
}

pub struct Templates {
    options: Options,
    resources: Vec<Resource>,
    store: Store,
    /// Resources to look at, by their file's place in `resources`.
    due: BTreeSet<usize>,
    /// Written, and their readers not told yet: a lost reload is tried again.
    unread: BTreeSet<usize>,
    in_sync: bool,
    cut: Option<CutId>,
}

impl Templates {
    pub fn new(options: Options) -> anyhow::Result<Templates> {
        let resources = resource::load(&options)?;
        if resources.is_empty() {
            bail!("no template resources in {}", options.confdir.join("conf.d").display());
        }
        let due = (0..resources.len()).collect();
        Ok(Templates {
            options,
            resources,
            store: Store::default(),
            due,
            unread: BTreeSet::new(),
            in_sync: false,
            cut: None,
        })
    }

    /// Until cancelled; with `onetime` until every file is made.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<ClientEvent>,
        acks: watch::Sender<Option<CutId>>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(self.options.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let process = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = events.recv() => {
                    let Some(event) = event else {
                        if cancel.is_cancelled() { return Ok(()) }
                        bail!("the connection to typha has ended");
                    };
                    self.on_event(event) && (self.options.watch || self.options.onetime)
                }
                _ = tick.tick() => self.in_sync,
            };
            if !process {
                continue;
            }
            let failed = self.process().await;
            if self.options.onetime {
                return if failed.is_empty() { Ok(()) } else { bail!("not made: {}", failed.join(", ")) };
            }
            if failed.is_empty()
                && let Some(cut) = self.cut.take()
            {
                acks.send_replace(Some(cut));
            }
        }
    }

    /// `true` when there is a complete state to make files from.
    fn on_event(&mut self, event: ClientEvent) -> bool {
        match event {
            ClientEvent::Updates(updates) => {
                for update in updates {
                    if let Some(path) = self.store.apply(update) {
                        let concerned =
                            self.resources.iter().enumerate().filter(|(_, one)| one.watches(&path));
                        self.due.extend(concerned.map(|(index, _)| index));
                    }
                }
                false
            }
            // Never asked for.
            ClientEvent::Raw(_) => false,
            ClientEvent::InSync => {
                self.in_sync = true;
                false
            }
            ClientEvent::Cut(cut) => {
                self.cut = Some(cut);
                self.in_sync
            }
            // Not asked for: no template sees a password.
            ClientEvent::Secrets(_) => false,
            ClientEvent::Connected { server, .. } => {
                tracing::info!(server, "connected to typha");
                false
            }
            ClientEvent::Disconnected { reason } => {
                tracing::warn!(reason, "connection to typha lost, files stay as they are");
                false
            }
        }
    }

    /// Makes the files that are due; which could not be made.
    async fn process(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        for index in std::mem::take(&mut self.due) {
            let resource = &self.resources[index];
            let made = async {
                let text = text::render(resource, &self.store).context("rendering")?;
                let done = place::place(resource, &text, &self.options).await?;
                if done == Done::Written {
                    self.unread.insert(index);
                }
                if self.unread.contains(&index) {
                    place::reload(resource, &self.options).await?;
                    self.unread.remove(&index);
                }
                Ok::<Done, anyhow::Error>(done)
            };
            match made.await {
                Ok(Done::Unchanged) => {}
                Ok(Done::WouldChange) => tracing::info!(dest = %resource.dest.display(), "would be written"),
                Ok(Done::Written) => tracing::info!(dest = %resource.dest.display(), "written"),
                Err(error) => {
                    tracing::error!(resource = %resource.file.display(), error = format!("{error:#}"), "not made");
                    failed.push(format!("{} ({error:#})", resource.dest.display()));
                    self.due.insert(index);
                }
            }
        }
        failed
    }
}
