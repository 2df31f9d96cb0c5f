//! What to ask the datastore for when listing keys of one kind: the root path, and the etcd range.
//!
//! Fields narrow the listing from the left: the first one that is not given ends the root, and whatever
//! is given after it is left to the caller to filter.

use ipnet::IpNet;

use super::path::{HOST_AFFINITY, RESOURCE_ROOT, escape, segment, version};
use super::resource_kind::ResourceKind;
use super::{Key, PolicyKey};

/// A listing of keys of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListOptions {
    WorkloadEndpoints {
        host: Option<String>,
        orchestrator: Option<String>,
        workload: Option<String>,
        endpoint: Option<String>,
    },
    HostEndpoints {
        host: Option<String>,
        endpoint: Option<String>,
    },
    /// The namespace is ignored for kinds that have none.
    Policies {
        kind: Option<String>,
        namespace: Option<String>,
        name: Option<String>,
    },
    Tiers {
        name: Option<String>,
    },
    /// Rules and labels of profiles.
    Profiles {
        name: Option<String>,
    },
    NetworkSets {
        name: Option<String>,
    },
    IpPools {
        cidr: Option<IpNet>,
    },
    GlobalConfig {
        name: Option<String>,
    },
    HostConfig {
        host: Option<String>,
        name: Option<String>,
    },
    HostMetadata {
        host: Option<String>,
    },
    Blocks {
        ip_version: Option<u8>,
    },
    BlockAffinities {
        host: Option<String>,
        /// `host` when not given.
        affinity_type: Option<String>,
        ip_version: Option<u8>,
    },
    IpamHandles,
    GlobalBgpConfig {
        name: Option<String>,
    },
    NodeBgpConfig {
        node: Option<String>,
        name: Option<String>,
    },
    /// `prefix`: the name is only the beginning of the names to list.
    Resources {
        kind: &'static ResourceKind,
        namespace: Option<String>,
        name: Option<String>,
        prefix: bool,
    },
    HostEndpointStatuses {
        host: Option<String>,
        endpoint: Option<String>,
    },
    ActiveStatusReports {
        region: Option<String>,
        host: Option<String>,
    },
    LastStatusReports {
        region: Option<String>,
        host: Option<String>,
    },
    WorkloadEndpointStatuses {
        region: Option<String>,
        host: Option<String>,
        orchestrator: Option<String>,
        workload: Option<String>,
        endpoint: Option<String>,
    },
}

/// Where a listing starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRoot {
    pub path: String,
    /// The path is that of one key (or, with `prefix`, the beginning of some).
    pub fully_qualified: bool,
    /// The last segment is the beginning of names.
    pub prefix: bool,
}

/// The range to request: one key, or all keys that start with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRange {
    pub key: String,
    pub prefix: bool,
}

impl ListRoot {
    /// A directory is asked for with its slash: `…/host/n1/` must not find `…/host/n10/…`.
    pub fn range(&self) -> ListRange {
        let mut key = self.path.clone();
        if !self.fully_qualified && !key.ends_with('/') {
            key.push('/');
        }
        ListRange { key, prefix: !self.fully_qualified || self.prefix }
    }
}

impl ListOptions {
    pub fn root(&self) -> ListRoot {
        match self {
            ListOptions::WorkloadEndpoints { host, orchestrator, workload, endpoint } => descend(
                "/calico/v1/host",
                [
                    step(host, |host| format!("/{host}/workload")),
                    step(orchestrator, escaped),
                    step(workload, |workload| format!("/{}/endpoint", escape(workload))),
                    step(endpoint, escaped),
                ],
            ),
            ListOptions::HostEndpoints { host, endpoint } => descend(
                "/calico/v1/host",
                [step(host, |host| format!("/{host}/endpoint")), step(endpoint, escaped)],
            ),
            ListOptions::Policies { kind, namespace, name } => policies(kind, namespace, name),
            ListOptions::Tiers { name } => {
                descend("/calico/v1/policy/tier", [step(name, |name| format!("/{name}/metadata"))])
            }
            ListOptions::Profiles { name } => {
                let root = descend("/calico/v1/policy/profile", [step(name, escaped)]);
                // A profile is a directory: rules and labels.
                ListRoot { fully_qualified: false, ..root }
            }
            ListOptions::NetworkSets { name } => descend("/calico/v1/netset", [step(name, escaped)]),
            ListOptions::IpPools { cidr } => descend(
                "/calico/v1/ipam/",
                [cidr.map(|cidr| format!("v{}/pool/{}", version(&cidr), segment(&cidr)))],
            ),
            ListOptions::GlobalConfig { name } => descend("/calico/v1/config", [step(name, plain)]),
            ListOptions::HostConfig { host, name } => {
                descend("/calico/v1/host", [step(host, |host| format!("/{host}/config")), step(name, plain)])
            }
            ListOptions::HostMetadata { host } => {
                descend("/calico/v1/host", [step(host, |host| format!("/{host}/metadata"))])
            }
            ListOptions::Blocks { ip_version } => directory(
                "/calico/ipam/v2/assignment/".to_owned(),
                [ip_version.map(|version| format!("ipv{version}/"))],
            ),
            ListOptions::BlockAffinities { host, affinity_type, ip_version } => directory(
                format!("/calico/ipam/v2/{}/", affinity_type.as_deref().unwrap_or(HOST_AFFINITY)),
                [host.clone(), ip_version.map(|version| format!("/ipv{version}/block"))],
            ),
            ListOptions::IpamHandles => directory("/calico/ipam/v2/handle/".to_owned(), [None]),
            ListOptions::GlobalBgpConfig { name } => descend("/calico/bgp/v1/global", [step(name, plain)]),
            ListOptions::NodeBgpConfig { node, name } => {
                descend("/calico/bgp/v1/host", [step(node, plain), step(name, plain)])
            }
            ListOptions::Resources { kind, namespace, name, prefix } => {
                let base = format!("{RESOURCE_ROOT}/{}", kind.plural);
                let root = if kind.namespaced {
                    descend(&base, [step(namespace, plain), step(name, plain)])
                } else {
                    descend(&base, [step(name, plain)])
                };
                ListRoot { prefix: *prefix && root.fully_qualified, ..root }
            }
            ListOptions::HostEndpointStatuses { host, endpoint } => descend(
                "/calico/felix/v1/host",
                [step(host, |host| format!("/{host}/endpoint")), step(endpoint, escaped)],
            ),
            ListOptions::ActiveStatusReports { region, host } => {
                descend(STATUS_ROOT, [step(region, in_region), step(host, |host| format!("/{host}/status"))])
            }
            ListOptions::LastStatusReports { region, host } => descend(
                STATUS_ROOT,
                [step(region, in_region), step(host, |host| format!("/{host}/last_reported_status"))],
            ),
            ListOptions::WorkloadEndpointStatuses { region, host, orchestrator, workload, endpoint } => {
                descend(
                    STATUS_ROOT,
                    [
                        step(region, in_region),
                        step(host, |host| format!("/{host}/workload")),
                        step(orchestrator, escaped),
                        step(workload, |workload| format!("/{}/endpoint", escape(workload))),
                        step(endpoint, escaped),
                    ],
                )
            }
        }
    }

    /// The etcd range request of this listing.
    pub fn range(&self) -> ListRange {
        self.root().range()
    }
}

const STATUS_ROOT: &str = "/calico/felix/v2/";

/// The root, and whether every step was taken: only then is it the path of a key.
fn descend<const N: usize>(base: &str, steps: [Option<String>; N]) -> ListRoot {
    let mut path = base.to_owned();
    for step in steps {
        match step {
            Some(step) => path.push_str(&step),
            None => return ListRoot { path, fully_qualified: false, prefix: false },
        }
    }
    ListRoot { path, fully_qualified: true, prefix: false }
}

/// A listing that never comes down to one key.
fn directory<const N: usize>(base: String, steps: [Option<String>; N]) -> ListRoot {
    ListRoot { fully_qualified: false, ..descend(&base, steps) }
}

fn policies(kind: &Option<String>, namespace: &Option<String>, name: &Option<String>) -> ListRoot {
    let key = kind.as_ref().zip(name.as_ref()).map(|(kind, name)| {
        let namespace = namespace.clone().unwrap_or_default();
        Key::Policy(PolicyKey { kind: kind.clone(), namespace, name: name.clone() })
    });
    match key.and_then(|key| key.path().ok()) {
        Some(path) => ListRoot { path, fully_qualified: true, prefix: false },
        None => directory("/calico/v1/policy".to_owned(), [step(kind, plain), step(namespace, plain)]),
    }
}

fn step(field: &Option<String>, write: impl Fn(&str) -> String) -> Option<String> {
    field.as_deref().map(write)
}

fn plain(name: &str) -> String {
    format!("/{name}")
}

fn escaped(name: &str) -> String {
    format!("/{}", escape(name))
}

fn in_region(region: &str) -> String {
    format!("{region}/host")
}
