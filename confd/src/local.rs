//! What a node knows by itself: passwords that are mounted as files, and the workloads that felix reports.
//!
//! Both are small folders, read again at every look: a Secret's volume changes by a link that is swapped,
//! and polling sees that on every file system.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::bgp::{Problem, Secrets, WorkloadPeer};

/// Larger files are no passwords and no reports.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct LocalFiles {
    /// `<folder>/<Secret>/<key>`.
    pub secrets: PathBuf,
    /// One JSON file for each endpoint.
    pub endpoint_status: PathBuf,
}

#[derive(Default)]
pub struct LocalState {
    pub secrets: Secrets,
    pub workloads: Vec<WorkloadPeer>,
    pub problems: Vec<Problem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct EndpointStatus {
    ipv4_nets: Vec<String>,
    ipv6_nets: Vec<String>,
    bgp_peer_name: String,
}

impl LocalFiles {
    /// Whatever can be read; the rest is named.
    pub fn read(&self) -> LocalState {
        let mut state = LocalState::default();
        for folder in entries(&self.secrets, &mut state.problems) {
            if !folder.is_dir() {
                continue;
            }
            for file in entries(&folder, &mut state.problems).into_iter().filter(|file| file.is_file()) {
                match read_text(&file) {
                    Ok(text) => state.secrets.insert(&name(&folder), &name(&file), text),
                    Err(error) => state.problems.push(problem(&file, error.to_string())),
                }
            }
        }
        for file in
            entries(&self.endpoint_status, &mut state.problems).into_iter().filter(|file| file.is_file())
        {
            match read_text(&file).map_err(|error| error.to_string()).and_then(|text| workload(&text)) {
                Ok(workload) => state.workloads.extend(workload),
                Err(reason) => state.problems.push(problem(&file, reason)),
            }
        }
        state
    }
}

/// An endpoint that asks for BGP; `None` for the others.
fn workload(text: &str) -> Result<Option<WorkloadPeer>, String> {
    let status: EndpointStatus = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if status.bgp_peer_name.is_empty() {
        return Ok(None);
    }
    let first = |nets: &[String]| -> Result<Option<IpAddr>, String> {
        let Some(text) = nets.first() else { return Ok(None) };
        let address = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>());
        address.map(Some).map_err(|_| format!("{text:?} is not an address"))
    };
    Ok(Some(WorkloadPeer {
        v4: first(&status.ipv4_nets)?.filter(IpAddr::is_ipv4),
        v6: first(&status.ipv6_nets)?.filter(IpAddr::is_ipv6),
        peer: status.bgp_peer_name,
    }))
}

/// What a folder holds, hidden entries apart, by name. No folder is an empty one.
fn entries(folder: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>());
    match read {
        Ok(mut paths) => {
            paths.retain(|path| !name(path).starts_with('.'));
            paths.sort();
            paths
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            problems.push(problem(folder, error.to_string()));
            Vec::new()
        }
    }
}

fn read_text(file: &Path) -> io::Result<String> {
    if std::fs::metadata(file)?.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
    }
    std::fs::read_to_string(file)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn problem(path: &Path, reason: String) -> Problem {
    Problem::new(path.display().to_string(), "the file", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_secrets_and_reports_are_read_and_bad_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = LocalFiles { secrets: dir.path().join("s"), endpoint_status: dir.path().join("e") };
        assert!(files.read().problems.is_empty(), "no folders are empty ones");
        // As the kubelet mounts a Secret: the key is a link through `..data`.
        std::fs::create_dir_all(dir.path().join("s/bgp/..v1")).unwrap();
        std::fs::write(dir.path().join("s/bgp/..v1/rack"), "hunter2").unwrap();
        std::os::unix::fs::symlink("..v1", dir.path().join("s/bgp/..data")).unwrap();
        std::os::unix::fs::symlink("..data/rack", dir.path().join("s/bgp/rack")).unwrap();
        std::fs::create_dir(dir.path().join("e")).unwrap();
        let report = r#"{"ifaceName":"cali1","ipv4Nets":["10.0.0.5/32"],"ipv6Nets":[],"bgpPeerName":"p"}"#;
        std::fs::write(dir.path().join("e/pod1"), report).unwrap();
        std::fs::write(dir.path().join("e/pod2"), r#"{"ifaceName":"cali2"}"#).unwrap();
        std::fs::write(dir.path().join("e/pod3"), "{").unwrap();
        let state = files.read();
        assert_eq!(state.secrets.get("bgp", "rack"), Some("hunter2"));
        assert!(!format!("{:?}", state.secrets).contains("hunter2"));
        let v4 = Some("10.0.0.5".parse().unwrap());
        assert_eq!(state.workloads, [WorkloadPeer { peer: "p".into(), v4, v6: None }]);
        assert_eq!(state.problems.len(), 1, "{:?}", state.problems);
        assert!(state.problems[0].object.ends_with("e/pod3"));
    }
}
