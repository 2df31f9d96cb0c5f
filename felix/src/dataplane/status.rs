//! Where the node's endpoints stand after a pass: told to CNI plugins by files, and to typha by reports.
//!
//! A file exists while its endpoint is active, its interface up and its routes and rules are in the kernel; CNI
//! plugins wait for it. Files of endpoints that are gone, from this run or a former one, are removed after the first
//! complete pass. What cannot be written (a full disk) is tried again every second; the other files are written.
//! The states are reported to typha, which writes them to the datastore.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use felix_calc::output::WorkloadEndpoint;
use serde::Serialize;
use syncer_common::model::{Key, WorkloadEndpointKey};
use typha_client::Reports;

use super::kernel::workload_id;
use super::model::Model;
use crate::iptables::tables::Tables;
use crate::routetable::RouteTable;
use crate::rules::names::{self, EndpointChain};

const FOLDER: &str = "endpoint-status";
/// How long after a failure files are tried again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    iface_name: &'a str,
    mac: &'a str,
    ipv4_nets: Vec<String>,
    ipv6_nets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    Up,
    Down,
    /// The kernel refused a chain of it or would not set up its interface, its rules cannot be written at all, or it
    /// is a host endpoint that meets no interface.
    Error,
}

impl EndpointState {
    pub fn name(self) -> &'static str {
        match self {
            EndpointState::Up => "up",
            EndpointState::Down => "down",
            EndpointState::Error => "error",
        }
    }
}

/// By key, each endpoint of this node.
pub fn states(model: &Model, tables: &Tables, routes: &RouteTable) -> BTreeMap<Key, EndpointState> {
    let closed: BTreeSet<&str> = tables.closed().map(|(_, _, chain, _)| chain).collect();
    let refused = |chains: &[EndpointChain], interface: &str| {
        chains.iter().any(|chain| closed.contains(names::endpoint_chain(*chain, interface).as_str()))
    };
    let workloads = model.workloads().map(|(key, endpoint)| {
        let id = workload_id(key);
        let chains = [EndpointChain::FromWorkload, EndpointChain::ToWorkload];
        let state = match endpoint.active && routes.is_up(&id) {
            _ if refused(&chains, &endpoint.interface) || routes.has_failed(&id) => EndpointState::Error,
            true => EndpointState::Up,
            false => EndpointState::Down,
        };
        (Key::WorkloadEndpoint(key.clone()), state)
    });
    let hosts = model.host_endpoints().map(|(key, _)| {
        let chains = [
            EndpointChain::FromHost,
            EndpointChain::ToHost,
            EndpointChain::FromHostForward,
            EndpointChain::ToHostForward,
        ];
        let mut interfaces =
            model.host_owners().iter().filter(|(_, owner)| *owner == key).map(|(name, _)| name).peekable();
        let absent = interfaces.peek().is_none();
        let state = match absent || interfaces.any(|interface| refused(&chains, interface)) {
            true => EndpointState::Error,
            false => EndpointState::Up,
        };
        (Key::HostEndpoint(key.clone()), state)
    });
    workloads.chain(hosts).collect()
}

/// Nothing is written while there is no folder to write to.
#[derive(Debug, Default)]
pub struct StatusFiles {
    folder: Option<PathBuf>,
    /// Where it is unless the configuration says otherwise.
    first: Option<PathBuf>,
    reports: Reports,
    states: BTreeMap<Key, EndpointState>,
    wanted: BTreeMap<String, String>,
    written: BTreeMap<String, String>,
    read: bool,
    /// Since when something cannot be written, and what.
    failed: Option<(Instant, String)>,
}

impl StatusFiles {
    /// `prefix`: EndpointStatusPathPrefix; empty: no files.
    pub fn new(prefix: &Path) -> StatusFiles {
        let folder = below(prefix);
        StatusFiles { first: folder.clone(), folder, ..StatusFiles::default() }
    }

    /// EndpointStatusPathPrefix as it is now; none: as at the start. The files move.
    pub fn relocate(&mut self, prefix: Option<&str>) {
        let folder = match prefix.map(str::trim) {
            None => self.first.clone(),
            Some(prefix) if prefix.eq_ignore_ascii_case("none") => None,
            Some(prefix) => below(Path::new(prefix)),
        };
        if self.folder == folder {
            return;
        }
        tracing::info!(from = ?self.folder, to = ?folder, "status files move");
        let wanted = std::mem::take(&mut self.wanted);
        self.write_files();
        self.folder = folder;
        (self.wanted, self.read, self.failed) = (wanted, false, None);
        self.write_files();
    }

    /// Where it is reported.
    pub fn reporting(self, reports: Reports) -> StatusFiles {
        StatusFiles { reports, ..self }
    }

    /// As of the last pass.
    pub fn state(&self, key: &Key) -> EndpointState {
        self.states.get(key).copied().unwrap_or(EndpointState::Down)
    }

    /// Why files are missing.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_ref().map(|(_, failure)| failure.as_str())
    }

    /// After a pass that wrote all rules: writes and removes what changed.
    pub fn update(&mut self, model: &Model, states: BTreeMap<Key, EndpointState>) {
        self.states = states;
        self.report();
        self.reports.process(true);
        let up =
            |key: &WorkloadEndpointKey| self.state(&Key::WorkloadEndpoint(key.clone())) == EndpointState::Up;
        self.wanted = model
            .workloads()
            .filter(|(key, _)| up(key))
            .map(|(key, endpoint)| (file_name(key), content(endpoint)))
            .collect();
        self.write_files();
    }

    /// After a pass that could not write all rules. What was up still is; what would have come up cannot.
    pub fn hold(&mut self, mut states: BTreeMap<Key, EndpointState>) {
        for (key, state) in &mut states {
            if *state == EndpointState::Up && self.state(key) != EndpointState::Up {
                *state = EndpointState::Error;
            }
        }
        self.states = states;
        self.report();
    }

    fn report(&self) {
        self.reports.endpoints(self.states.iter().map(|(key, state)| (key.clone(), state.name())));
    }

    /// Tries again what could not be written, now and then.
    pub fn retry(&mut self) {
        if self.failed.as_ref().is_some_and(|(at, _)| at.elapsed() >= RETRY) {
            self.write_files();
        }
    }

    fn write_files(&mut self) {
        let Some(folder) = self.folder.clone() else { return };
        let Err(error) = self.write(&folder) else {
            if self.failed.take().is_some() {
                tracing::info!(folder = %folder.display(), "status files are written again");
            }
            return;
        };
        let failure = format!("{}: {error}", folder.display());
        match &self.failed {
            Some((_, before)) if *before == failure => {
                tracing::debug!(failure, "status files could not be written")
            }
            _ => {
                tracing::warn!(failure, "status files could not be written; CNI plugins wait; trying again")
            }
        }
        self.failed = Some((Instant::now(), failure));
    }

    /// Every file on its own; says which failed first.
    fn write(&mut self, folder: &Path) -> io::Result<()> {
        if self.read && self.written == self.wanted {
            return Ok(());
        }
        if !self.read {
            std::fs::create_dir_all(folder)?;
            self.written.clear();
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                self.written.insert(name, std::fs::read_to_string(entry.path()).unwrap_or_default());
            }
            self.read = true;
        }
        let mut failure = None;
        let mut failed = |name: &str, error: io::Error| {
            failure.get_or_insert_with(|| io::Error::new(error.kind(), format!("{name}: {error}")));
        };
        // Removals first: they may make the room that the others need.
        let stale: Vec<_> =
            self.written.keys().filter(|name| !self.wanted.contains_key(*name)).cloned().collect();
        for name in stale {
            match std::fs::remove_file(folder.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => failed(&name, error),
                _ => drop(self.written.remove(&name)),
            }
        }
        for (name, text) in &self.wanted {
            if self.written.get(name) == Some(text) {
                continue;
            }
            match put(folder, name, text) {
                Ok(()) => drop(self.written.insert(name.clone(), text.clone())),
                Err(error) => {
                    // Its folder may have gone.
                    self.read &= error.kind() != io::ErrorKind::NotFound;
                    failed(name, error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

fn below(prefix: &Path) -> Option<PathBuf> {
    (!prefix.as_os_str().is_empty()).then(|| prefix.join(FOLDER))
}

/// A reader sees the whole file or none.
fn put(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}"));
    let written =
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, folder.join(name)));
    if written.is_err() {
        // It takes room, and is no file that anybody waits for. It may not even be there.
        std::fs::remove_file(&temporary).ok();
    }
    written
}

fn content(endpoint: &WorkloadEndpoint) -> String {
    let text = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
    let content = Content {
        iface_name: &endpoint.interface,
        mac: &endpoint.mac,
        ipv4_nets: text(&endpoint.ipv4_nets),
        ipv6_nets: text(&endpoint.ipv6_nets),
    };
    serde_json::to_string(&content).expect("strings always serialise")
}

/// Orchestrator, workload and endpoint, each escaped as in a path, with spaces between.
fn file_name(key: &WorkloadEndpointKey) -> String {
    [&key.orchestrator, &key.workload, &key.endpoint].map(|part| escape(part)).join(" ")
}

fn escape(part: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+:=@".contains(&byte);
    part.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_folder() {
        let key = WorkloadEndpointKey {
            host: "n1".into(),
            orchestrator: "k8s".into(),
            workload: "default/web 1".into(),
            endpoint: "eth0".into(),
        };
        assert_eq!(file_name(&key), "k8s default%2Fweb%201 eth0");
    }

    #[test]
    fn files_of_former_runs_go_and_equal_ones_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("old"), "x").unwrap();
        std::fs::write(folder.path().join("same"), "text").unwrap();
        let before = std::fs::metadata(folder.path().join("same")).unwrap().modified().unwrap();
        let mut files = StatusFiles {
            wanted: [("same", "text"), ("new", "y")].map(|(name, text)| (name.into(), text.into())).into(),
            ..StatusFiles::default()
        };
        files.write(folder.path()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["new", "same"]);
        assert_eq!(std::fs::metadata(folder.path().join("same")).unwrap().modified().unwrap(), before);
    }
}
