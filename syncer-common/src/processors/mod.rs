//! Conversion of datastore objects to the v1 model: pure, one object at a time, in the order of the
//! datastore's history.
//!
//! Rules:
//! - Every object owns the keys of its updates. What it no longer produces is deleted by the same call.
//! - An object that cannot be read, or that would mean something else than was written if its bad parts
//!   were left out, is refused whole: its keys become `Invalid`, and the error names key, field and
//!   reason. Bad members of a plain list of addresses are left out and reported.
//! - Pools, host endpoints and global network sets: several objects may own one key. The one with the
//!   lexically lowest name counts; when it goes, the next is exposed.
//! - Every object is held against `validate::stored` as well. What that finds is reported, and decides alone
//!   about kinds whose meaning is in the whole (`ALL_OR_NOTHING`); so the reports, the metric and
//!   `bulrushctl validate` say the same.
//! - Values leave here reduced to what agents read, in canonical form, and valid.

mod addresses;
mod bgp;
mod cluster;
mod conflict;
mod endpoints;
mod felix_configuration;
mod findings;
mod ipam;
mod kubernetes;
mod networks;
mod node;
mod policies;
mod project;
mod rules;
mod services;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::apis::{FieldError, Resource};
use crate::model::{DeletionReason, Key, ResourceKey, Update, Value};
use crate::validate;

pub(crate) use addresses::{interface_address, mac};
pub use addresses::{parse_address, parse_net};
pub use endpoints::split_workload_name;
pub(crate) use node::{ipv4, ipv6};

use conflict::ConflictCache;
use findings::Findings;

/// Larger values are refused unread: etcd itself takes 1.5 MiB by default.
pub const MAX_VALUE_BYTES: usize = 4 << 20;

/// The profile that allows everything. It is in no datastore, every reader makes it.
pub const DEFAULT_ALLOW_PROFILE: &str = "projectcalico-default-allow";

/// The type of the affinities of nodes.
const HOST_AFFINITY: &str = "host";

/// Kinds of which nothing counts when a part is wrong, whatever the part.
const ALL_OR_NOTHING: [&str; 3] = ["BGPFilter", "CalicoNodeStatus", "LiveMigration"];

/// What one change of the datastore means.
#[derive(Debug, Default)]
pub struct Converted {
    /// To be applied, with or without an error.
    pub updates: Vec<Update>,
    /// To be reported once.
    pub error: Option<ConversionError>,
}

/// Why an object, or a part of it, does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {field}: {reason}")]
pub struct ConversionError {
    /// Path in the datastore.
    pub key: String,
    pub field: String,
    pub reason: String,
}

/// The converters with their caches; one per view of a datastore.
#[derive(Debug, Default)]
pub struct Processors {
    /// Leave out the checks and the canonical form: what the original software's converters do.
    verbatim: bool,
    pools: ConflictCache,
    host_endpoints: ConflictCache,
    network_sets: ConflictCache,
    /// Take blocks and affinities from the networks that Kubernetes gave to nodes, not from IPAM.
    use_pod_cidr: bool,
    pod_blocks: ConflictCache,
    /// By node, what of `pod_blocks` it gave.
    pod_cidrs: BTreeMap<String, BTreeSet<IpNet>>,
    /// The keys that configuration objects gave, by path.
    configuration: BTreeMap<String, BTreeSet<Key>>,
}

/// What one object becomes.
pub(crate) enum Outcome {
    /// These entries; nothing else belongs to it.
    Entries(Vec<Update>),
    /// A key that other objects may hold too.
    Shared(Box<(Key, Value)>),
}

impl Processors {
    pub fn new() -> Self {
        Self::default()
    }

    /// Converts as the original software does, without validation and canonical form. For comparing
    /// conversions with its own; never for agents.
    pub fn verbatim() -> Self {
        Processors { verbatim: true, ..Self::default() }
    }

    /// Where blocks come from: the networks that Kubernetes gave to nodes (`status.podCIDRs`), or IPAM.
    pub fn use_pod_cidr(mut self, use_pod_cidr: bool) -> Self {
        self.use_pod_cidr = use_pod_cidr;
        self
    }

    /// What is there before anything is read: the profile that allows everything.
    pub fn initial(&self) -> Vec<Update> {
        vec![policies::default_allow()]
    }

    /// Forgets everything, before a full listing.
    pub fn clear(&mut self) {
        *self = Processors { verbatim: self.verbatim, use_pod_cidr: self.use_pod_cidr, ..Self::default() };
    }

    /// An object was written.
    pub fn put(&mut self, path: &str, value: &[u8]) -> Converted {
        let Some(key) = parse_key(path) else {
            return unknown_key(path);
        };
        if value.len() > MAX_VALUE_BYTES {
            let reason = format!("{} bytes are more than {MAX_VALUE_BYTES}", value.len());
            return self.refuse(path, &key, FieldError::new("the value", reason));
        }
        match key {
            _ if is_incomplete(path) => unknown_key(path),
            key if has_slash(&key) => {
                let error = error(path, FieldError::new("metadata.name", "must not contain a slash"));
                Converted { updates: Vec::new(), error: Some(error) }
            }
            Key::Resource(key) => self.put_resource(path, key, value),
            // Of load balancers: no agent routes by them.
            Key::BlockAffinity(affinity) if affinity.affinity_type != HOST_AFFINITY => Converted::default(),
            // They are the nodes' own then.
            Key::Block { .. } | Key::BlockAffinity(_) if self.use_pod_cidr => Converted::default(),
            Key::Block { .. } | Key::BlockAffinity(_) => match ipam::convert(&key, value) {
                Ok(update) => self.finish(path, vec![update], Findings::default(), Vec::new()),
                Err(error) => self.refuse(path, &key, error),
            },
            // No agent reads them; a mistake is one all the same.
            Key::IpamHandle { .. } | Key::IpamConfig => match Resource::from_stored(path, value) {
                Ok(resource) => {
                    Converted { updates: Vec::new(), error: summary(path, validate::stored(&resource)) }
                }
                Err(error) => self.refuse(path, &key, error),
            },
            // Status and keys of old releases.
            _ => Converted::default(),
        }
    }

    /// An object is gone.
    pub fn delete(&mut self, path: &str) -> Converted {
        let Some(key) = parse_key(path).filter(|key| !has_slash(key) && !is_incomplete(path)) else {
            return Converted::default();
        };
        let updates = self.withdraw(path, &key, DeletionReason::Deleted);
        let unknown = self.verbatim && updates.is_none();
        let error = unknown.then(|| error(path, FieldError::new("metadata.name", "not known")));
        Converted { updates: updates.unwrap_or_default(), error }
    }

    fn put_resource(&mut self, path: &str, key: ResourceKey, value: &[u8]) -> Converted {
        if is_synthesised(&key) {
            return Converted::default();
        }
        let resource_key = Key::Resource(key.clone());
        let resource = match Resource::from_stored(path, value) {
            Ok(resource) => resource,
            Err(error) => return self.refuse(path, &resource_key, error),
        };
        let mistakes = if self.verbatim { Vec::new() } else { validate::stored(&resource) };
        if !is_converted(&key.kind) {
            return Converted { updates: Vec::new(), error: summary(path, mistakes) };
        }
        if ALL_OR_NOTHING.contains(&key.kind.as_str())
            && let Some(error) = summarised(mistakes.clone())
        {
            return self.refuse(path, &resource_key, error);
        }
        let mut findings = Findings::default();
        let converted = if key.kind == "KubernetesEndpointSlice" {
            services::convert_slice(&key, &resource, value, &mut findings)
                .map(|update| Outcome::Entries(vec![update]))
        } else {
            convert(&key, &resource, &mut findings)
        };
        let outcome = match converted {
            Ok(outcome) => outcome,
            Err(error) => return self.refuse(path, &resource_key, summarised(mistakes).unwrap_or(error)),
        };
        if !self.verbatim
            && let Some(error) = findings.take_refusal()
        {
            let error = summarised(mistakes).unwrap_or(error);
            return self.refuse_outcome(path, &resource_key, outcome, error);
        }
        let name = key.name.as_str();
        let updates = match outcome {
            Outcome::Entries(entries) => match key.kind.as_str() {
                "FelixConfiguration" | "ClusterInformation" => self.settle(path, entries),
                "Node" if self.use_pod_cidr => match node::pod_cidrs(&resource, &mut findings) {
                    Ok(cidrs) => entries
                        .into_iter()
                        .chain(self.settle_pod_cidrs(name, cidrs, DeletionReason::Deleted))
                        .collect(),
                    Err(error) => return self.refuse(path, &resource_key, error),
                },
                _ => entries,
            },
            Outcome::Shared(entry) => {
                let (own, mut value) = *entry;
                if !self.verbatim {
                    if let Some(error) = validate::value(&own, &value).into_iter().next() {
                        return self.refuse(path, &resource_key, summarised(mistakes).unwrap_or(error));
                    }
                    // What waits behind another object comes out as it is when that one goes.
                    project::canonical(&own, &mut value);
                }
                match self.cache(&key.kind) {
                    Some(cache) => cache.put(name, own, value),
                    None => vec![Update::set(own, value)],
                }
            }
        };
        self.finish(path, updates, findings, mistakes)
    }

    /// The last step of every conversion: canonical form, then validation. `mistakes` name fields as they
    /// were written; what the value itself shows counts where there are none.
    fn finish(
        &self,
        path: &str,
        mut updates: Vec<Update>,
        findings: Findings,
        mistakes: Vec<FieldError>,
    ) -> Converted {
        let written = !mistakes.is_empty();
        let mut problems = mistakes;
        for note in findings.into_notes() {
            if !problems.iter().any(|problem| problem.field == note.field) {
                problems.push(note);
            }
        }
        if !self.verbatim {
            for update in &mut updates {
                let Ok(value) = &mut update.value else { continue };
                project::spell_out_protocols(&update.key, value);
                let errors = validate::value(&update.key, value);
                if errors.is_empty() {
                    project::canonical(&update.key, value);
                } else {
                    if !written {
                        problems.extend(errors);
                    }
                    update.value = Err(DeletionReason::Invalid);
                }
            }
        }
        Converted { updates, error: summary(path, problems) }
    }

    /// The object does not count: its keys become invalid.
    fn refuse(&mut self, path: &str, key: &Key, reason: FieldError) -> Converted {
        let updates = self.withdraw(path, key, DeletionReason::Invalid).unwrap_or_default();
        Converted { updates, error: Some(error(path, reason)) }
    }

    /// The same, for an object whose keys are known because it was converted already.
    fn refuse_outcome(&mut self, path: &str, key: &Key, outcome: Outcome, reason: FieldError) -> Converted {
        let mut updates = self.withdraw(path, key, DeletionReason::Invalid).unwrap_or_default();
        if let Outcome::Entries(entries) = outcome {
            for entry in entries {
                if !updates.iter().any(|update| update.key == entry.key) {
                    updates.push(Update { key: entry.key, value: Err(DeletionReason::Invalid) });
                }
            }
        }
        Converted { updates, error: Some(error(path, reason)) }
    }

    /// Takes away everything that an object gave. Nothing when it was not known where that matters.
    fn withdraw(&mut self, path: &str, key: &Key, reason: DeletionReason) -> Option<Vec<Update>> {
        let gone = |key: Key| Update { key, value: Err(reason) };
        let key = match key {
            Key::Resource(key) => key,
            Key::BlockAffinity(affinity) if affinity.affinity_type != HOST_AFFINITY => {
                return Some(Vec::new());
            }
            Key::Block { .. } | Key::BlockAffinity(_) if self.use_pod_cidr => return Some(Vec::new()),
            Key::Block { .. } | Key::BlockAffinity(_) => return Some(vec![gone(key.clone())]),
            _ => return Some(Vec::new()),
        };
        if !is_converted(&key.kind) || is_synthesised(key) {
            return Some(Vec::new());
        }
        if let Some(cache) = self.cache(&key.kind) {
            return cache.remove(&key.name, reason);
        }
        // What another node has, too, is that node's then.
        let blocks = match key.kind.as_str() {
            "Node" => self.settle_pod_cidrs(&key.name, BTreeSet::new(), reason),
            _ => Vec::new(),
        };
        let keys = match key.kind.as_str() {
            "FelixConfiguration" | "ClusterInformation" => {
                self.configuration.remove(path).unwrap_or_default().into_iter().collect()
            }
            "Node" => node::keys(&key.name),
            "Profile" => policies::profile_keys(&key.name),
            "Tier" => vec![Key::Tier { name: key.name.clone() }],
            "NetworkSet" => vec![networks::network_set_key(key)],
            "WorkloadEndpoint" => {
                endpoints::workload_endpoint_key(key).into_iter().map(Key::WorkloadEndpoint).collect()
            }
            "BGPConfiguration"
            | "BGPPeer"
            | "BGPFilter"
            | "CalicoNodeStatus"
            | "LiveMigration"
            | "KubernetesService"
            | "KubernetesEndpointSlice" => vec![Key::Resource(key.clone())],
            _ => vec![policies::key(key)],
        };
        Some(keys.into_iter().map(gone).chain(blocks).collect())
    }

    /// Replaces the networks that a node gave before by those that it gives now.
    fn settle_pod_cidrs(&mut self, node: &str, now: BTreeSet<IpNet>, reason: DeletionReason) -> Vec<Update> {
        let before = self.pod_cidrs.remove(node).unwrap_or_default();
        let mut updates = Vec::new();
        // The cache knows one key by one name; each entry of each network has its own.
        let name = |key: &Key| format!("{node} {key}");
        for cidr in before.difference(&now) {
            for (key, _) in node::pod_cidr_entries(node, *cidr) {
                updates.extend(self.pod_blocks.remove(&name(&key), reason).unwrap_or_default());
            }
        }
        for cidr in &now {
            for (key, value) in node::pod_cidr_entries(node, *cidr) {
                updates.extend(self.pod_blocks.put(&name(&key), key, value));
            }
        }
        if !now.is_empty() {
            self.pod_cidrs.insert(node.to_owned(), now);
        }
        updates
    }

    /// Replaces what a configuration object gave before by what it gives now.
    fn settle(&mut self, path: &str, entries: Vec<Update>) -> Vec<Update> {
        let now: BTreeSet<Key> = entries.iter().map(|entry| entry.key.clone()).collect();
        let before = self.configuration.insert(path.to_owned(), now.clone()).unwrap_or_default();
        let mut updates: Vec<Update> =
            before.into_iter().filter(|key| !now.contains(key)).map(Update::delete).collect();
        updates.extend(entries);
        updates
    }

    fn cache(&mut self, kind: &str) -> Option<&mut ConflictCache> {
        match kind {
            "IPPool" => Some(&mut self.pools),
            "HostEndpoint" => Some(&mut self.host_endpoints),
            "GlobalNetworkSet" => Some(&mut self.network_sets),
            _ => None,
        }
    }
}

fn convert(key: &ResourceKey, resource: &Resource, findings: &mut Findings) -> Result<Outcome, FieldError> {
    Ok(match key.kind.as_str() {
        "NetworkPolicy"
        | "GlobalNetworkPolicy"
        | "StagedNetworkPolicy"
        | "StagedGlobalNetworkPolicy"
        | "KubernetesNetworkPolicy"
        | "KubernetesClusterNetworkPolicy" => {
            Outcome::Entries(vec![policies::convert(key, resource, findings)?])
        }
        "StagedKubernetesNetworkPolicy" => {
            Outcome::Entries(vec![kubernetes::convert_staged(key, resource, findings)?])
        }
        "Tier" => Outcome::Entries(vec![policies::convert_tier(key, resource)?]),
        "Profile" => Outcome::Entries(policies::convert_profile(key, resource, findings)?),
        "WorkloadEndpoint" => Outcome::Entries(vec![endpoints::convert_workload(key, resource)?]),
        "HostEndpoint" => endpoints::convert_host(key, resource, findings)?,
        "IPPool" => networks::convert_pool(resource)?,
        "NetworkSet" => Outcome::Entries(vec![networks::convert_network_set(key, resource, findings)?]),
        "GlobalNetworkSet" => networks::convert_global_network_set(key, resource, findings)?,
        "Node" => Outcome::Entries(node::convert(key, resource, findings)?),
        "FelixConfiguration" => Outcome::Entries(felix_configuration::convert(key, resource, findings)),
        "ClusterInformation" => Outcome::Entries(cluster::convert(key, resource)?),
        "BGPConfiguration" => Outcome::Entries(vec![bgp::convert_configuration(key, resource)?]),
        "BGPPeer" => Outcome::Entries(vec![bgp::convert_peer(key, resource, findings)?]),
        "BGPFilter" => Outcome::Entries(vec![bgp::convert_filter(key, resource)?]),
        "CalicoNodeStatus" => Outcome::Entries(vec![cluster::convert_node_status(key, resource)?]),
        "LiveMigration" => Outcome::Entries(vec![endpoints::convert_migration(key, resource)?]),
        "KubernetesService" => Outcome::Entries(vec![services::convert_service(key, resource, findings)?]),
        other => return Err(FieldError::new("kind", format!("{other} is not converted"))),
    })
}

/// Kinds that agents read. The others are stored, and stay where they are.
fn is_converted(kind: &str) -> bool {
    matches!(
        kind,
        "NetworkPolicy"
            | "GlobalNetworkPolicy"
            | "StagedNetworkPolicy"
            | "StagedGlobalNetworkPolicy"
            | "StagedKubernetesNetworkPolicy"
            | "KubernetesNetworkPolicy"
            | "KubernetesClusterNetworkPolicy"
            | "Tier"
            | "Profile"
            | "WorkloadEndpoint"
            | "HostEndpoint"
            | "IPPool"
            | "NetworkSet"
            | "GlobalNetworkSet"
            | "Node"
            | "FelixConfiguration"
            | "ClusterInformation"
            | "BGPConfiguration"
            | "BGPPeer"
            | "BGPFilter"
            | "CalicoNodeStatus"
            | "LiveMigration"
            | "KubernetesService"
            | "KubernetesEndpointSlice"
    )
}

/// A stored object of that name would hide the one that every reader makes.
fn is_synthesised(key: &ResourceKey) -> bool {
    key.kind == "Profile" && key.name == DEFAULT_ALLOW_PROFILE
}

fn parse_key(path: &str) -> Option<Key> {
    Key::parse_stored(path)
}

/// A name with a slash, from an escape in the path: the path of its entry could not hold it.
fn has_slash(key: &Key) -> bool {
    matches!(key, Key::Resource(key) if key.name.contains('/') || key.namespace.contains('/'))
}

/// A part of the path is empty: the folder of a kind in the place of an object, a namespaced object without its
/// namespace.
fn is_incomplete(path: &str) -> bool {
    path.ends_with('/') || path.contains("//")
}

/// Old releases left all sorts of things beside the resources; only where resources belong is an unknown
/// path worth a word.
fn unknown_key(path: &str) -> Converted {
    let report = path.starts_with("/calico/resources/v3/projectcalico.org/");
    let unknown = || error(path, FieldError::new("key", "no kind of resource is kept here"));
    Converted { updates: Vec::new(), error: report.then(unknown) }
}

fn error(path: &str, FieldError { field, reason }: FieldError) -> ConversionError {
    ConversionError { key: path.to_owned(), field, reason }
}

/// One report for all problems of an object.
fn summary(path: &str, problems: Vec<FieldError>) -> Option<ConversionError> {
    summarised(problems).map(|problem| error(path, problem))
}

fn summarised(problems: Vec<FieldError>) -> Option<FieldError> {
    let more = problems.len().saturating_sub(1);
    let mut first = problems.into_iter().next()?;
    if more > 0 {
        first.reason += &format!(" (and {more} more)");
    }
    Some(first)
}
