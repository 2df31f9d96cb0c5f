//! Status files: one per workload endpoint that is up, for CNI plugins that wait until a pod is programmed.
//!
//! A file exists while its endpoint is active, its interface up and its routes and rules are in the kernel. Files
//! of endpoints that are gone, from this run or a former one, are removed after the first complete pass. The same is
//! reported to typha, which writes it to the datastore.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use felix_calc::output::WorkloadEndpoint;
use serde::Serialize;
use syncer_common::model::{Key, WorkloadEndpointKey};
use typha_client::Reports;

use super::event_loop::workload_id;
use super::model::Model;
use crate::routetable::RouteTable;

const FOLDER: &str = "endpoint-status";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    iface_name: &'a str,
    mac: &'a str,
    ipv4_nets: Vec<String>,
    ipv6_nets: Vec<String>,
}

/// Nothing is written while there is no folder to write to.
#[derive(Debug, Default)]
pub struct StatusFiles {
    folder: Option<PathBuf>,
    reports: Reports,
    written: BTreeMap<String, String>,
    read: bool,
    reported: bool,
}

impl StatusFiles {
    /// `prefix`: EndpointStatusPathPrefix; empty: no files.
    pub fn new(prefix: &Path) -> StatusFiles {
        let folder = (!prefix.as_os_str().is_empty()).then(|| prefix.join(FOLDER));
        StatusFiles { folder, ..StatusFiles::default() }
    }

    /// Where it is reported.
    pub fn reporting(self, reports: Reports) -> StatusFiles {
        StatusFiles { reports, ..self }
    }

    /// After a pass: writes and removes what changed.
    pub fn update(&mut self, model: &Model, routes: &RouteTable) {
        let up = |key: &WorkloadEndpointKey, endpoint: &WorkloadEndpoint| {
            endpoint.active && routes.is_up(&workload_id(key))
        };
        self.reports.endpoints(model.workloads().map(|(key, endpoint)| {
            (Key::WorkloadEndpoint(key.clone()), if up(key, endpoint) { "up" } else { "down" })
        }));
        self.reports.process(true);
        let Some(folder) = self.folder.clone() else { return };
        let wanted: BTreeMap<String, String> = model
            .workloads()
            .filter(|(key, endpoint)| up(key, endpoint))
            .map(|(key, endpoint)| (file_name(key), content(endpoint)))
            .collect();
        match self.write(&folder, &wanted) {
            Ok(()) => self.reported = false,
            Err(error) if self.reported => tracing::debug!(%error, "status files could not be written"),
            Err(error) => {
                self.reported = true;
                tracing::warn!(folder = %folder.display(), %error, "status files could not be written; trying again at the next change");
            }
        }
    }

    fn write(&mut self, folder: &Path, wanted: &BTreeMap<String, String>) -> io::Result<()> {
        if self.written == *wanted && self.read {
            return Ok(());
        }
        std::fs::create_dir_all(folder)?;
        if !self.read {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                self.written.insert(name, std::fs::read_to_string(entry.path()).unwrap_or_default());
            }
            self.read = true;
        }
        for (name, text) in wanted.iter().filter(|(name, text)| self.written.get(*name) != Some(*text)) {
            let temporary = folder.join(format!(".{name}"));
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, folder.join(name))?;
        }
        let stale: BTreeSet<_> =
            self.written.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in stale {
            match std::fs::remove_file(folder.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.written = wanted.clone();
        Ok(())
    }
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
        let mut files = StatusFiles::default();
        let wanted =
            BTreeMap::from([("same".to_owned(), "text".to_owned()), ("new".to_owned(), "y".to_owned())]);
        files.write(folder.path(), &wanted).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["new", "same"]);
        assert_eq!(std::fs::metadata(folder.path().join("same")).unwrap().modified().unwrap(), before);
    }
}
