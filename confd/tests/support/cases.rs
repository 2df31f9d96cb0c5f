//! The BGP conformance cases: a folder with the complete objects of every step and the files expected of a
//! Calico-compatible confd.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use confd::bgp::{IncompletePeers, LocalSettings, RouterId};
use confd::local::{LocalFiles, LocalState};
use confd::offline::{Manifests, read_manifests};
use serde_json::Value as Json;

pub struct Case {
    pub id: String,
    pub dir: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub name: String,
    pub dir: PathBuf,
    /// Whether stock BIRD 1.6.8 reads the expected files.
    pub bird1: bool,
}

pub fn required() -> bool {
    std::env::var_os("BULRUSH_REQUIRE").is_some_and(|value| value == "1")
}

/// Every case; `None`, printed, where the folder is not there.
pub fn cases() -> Option<Vec<Case>> {
    let root = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    let root = root.join("confd");
    if !root.join("index.json").exists() {
        assert!(!required(), "no conformance folder at {}", root.display());
        println!("SKIPPED: no conformance folder");
        return None;
    }
    let index = read_json(&root.join("index.json"));
    let ids = index["cases"].as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap());
    let cases: Vec<Case> = ids.map(|id| case(&root.canonicalize().unwrap(), id)).collect();
    assert!(!cases.is_empty(), "the folder holds no case");
    Some(cases)
}

fn case(root: &Path, id: &str) -> Case {
    let dir = root.join(id);
    let environment = std::fs::read_to_string(dir.join("env"))
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let described = read_json(&dir.join("case.json"));
    let steps = described["steps"].as_array().unwrap().iter().map(|step| {
        let of_case = step["dir"].as_str().unwrap();
        Step {
            name: format!("{id}/{of_case}"),
            dir: dir.join(of_case),
            // Cases of our own say nothing about it.
            bird1: step["parses_with"]["debian_bird_1.6.8"].as_bool().unwrap_or(true),
        }
    });
    Case { id: id.to_owned(), steps: steps.collect(), environment, dir }
}

fn read_json(path: &Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

impl Case {
    /// As Calico's confd: what is incomplete is opened all the same.
    pub fn local(&self) -> LocalSettings {
        let get = |name: &str| self.environment.get(name).cloned();
        LocalSettings {
            node: get("NODENAME").unwrap(),
            router_id: match get("CALICO_ROUTER_ID").as_deref() {
                None => RouterId::NodeAddress,
                Some("hash") => RouterId::Hash,
                Some(id) => RouterId::Fixed(id.parse().unwrap()),
            },
            log_severity: get("BGP_LOGSEVERITYSCREEN"),
            advertise_cluster_ips: get("CALICO_ADVERTISE_CLUSTER_IPS").map(|ranges| vec![ranges]),
            kubernetes_node: get("CALICO_K8S_NODE_REF"),
            incomplete_peers: IncompletePeers::Open,
        }
    }

    pub fn state(&self) -> LocalState {
        let prefix = self.environment.get("CALICO_ENDPOINT_STATUS_PATH_PREFIX");
        let endpoint_status = prefix.map(|prefix| self.dir.join(prefix).join("endpoint-status"));
        let none = self.dir.join("none");
        LocalFiles { endpoint_status: endpoint_status.unwrap_or(none.clone()), secrets: none }.read()
    }
}

impl Step {
    pub fn manifests(&self) -> Manifests {
        read_manifests(&self.dir.join("input.yaml"), "kube-system")
    }

    pub fn expected(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join("expected").join(file)).ok()
    }

    /// What of the given files is not as expected.
    pub fn differences(&self, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut names: Vec<String> = std::fs::read_dir(self.dir.join("expected"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(!names.is_empty(), "{}: nothing is expected", self.name);
        for name in names {
            let expected = self.expected(&name).unwrap();
            if name == "bgp_protocol_count" {
                let ours = read("bird.cfg").unwrap_or_default().matches("protocol bgp").count();
                if ours != expected.trim().parse::<usize>().unwrap() {
                    wrong.push(format!("{}: {ours} BGP protocols, not {expected}", self.name));
                }
                continue;
            }
            let Some(ours) = read(&name) else {
                wrong.push(format!("{}: {name} is missing", self.name));
                continue;
            };
            let (ours, theirs) = (tokens(&ours), tokens(&expected));
            if ours != theirs {
                let at = ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
                let around =
                    |tokens: &[&str]| tokens[at.saturating_sub(6)..tokens.len().min(at + 6)].join(" ");
                let (ours, theirs) = (around(&ours), around(&theirs));
                wrong.push(format!("{}: {name}: ours …{ours}… not …{theirs}…", self.name));
            }
        }
        wrong
    }
}

/// A text's tokens without its comments: a quoted string or symbol, a run of `A-Z a-z 0-9 _ . : / * -`, or any
/// other single character.
pub fn tokens(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_.:/*-".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let line = rest.find('\n').unwrap_or(rest.len());
        let closing = rest[first.len_utf8()..line].find(first).map(|at| at + 2 * first.len_utf8());
        let length = match (first, closing) {
            ('#', _) => {
                rest = rest[line..].trim_start();
                continue;
            }
            ('"' | '\'', Some(length)) => length,
            _ if word(first) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}
