//! Path → `Key`.
//!
//! The leading slash may be missing, except for resources and the ready flag. Segments are counted
//! exactly, with three exceptions that the datastore relies on: configuration names keep further slashes
//! (and may be empty), and profile rules and last status reports ignore what follows. An empty last segment
//! is a name like any other: such a key parses, but has no path of its own.

use ipnet::IpNet;

use super::path::{HOST_AFFINITY, unescape};
use super::resource_kind::ResourceKind;
use super::{BlockAffinityKey, HostEndpointKey, Key, PolicyKey, ResourceKey, WorkloadEndpointKey};

impl Key {
    /// Reads a path; `None` when it is not a key of this model.
    pub fn parse(path: &str) -> Option<Key> {
        let (rooted, segments) = split(path);
        match segments.as_slice() {
            ["calico", "v1", "Ready"] => rooted.then_some(Key::ReadyFlag),
            ["calico", "v1", rest @ ..] => v1(rest),
            ["calico", "ipam", "v2", rest @ ..] => ipam(rest),
            ["calico", "bgp", "v1", rest @ ..] => bgp(rest),
            ["calico", "felix", "v1", "host", host, "endpoint", endpoint] => {
                Some(Key::HostEndpointStatus { host: (*host).to_owned(), endpoint: unescape(endpoint) })
            }
            ["calico", "felix", "v2", rest @ ..] => status(rest),
            ["calico", "resources", "v3", "projectcalico.org", rest @ ..] if rooted => resource(rest),
            _ => None,
        }
    }

    /// Reads a path of the datastore, of whatever is kept there: `parse` knows only what travels.
    pub fn parse_stored(path: &str) -> Option<Key> {
        if path == "/calico/ipam/v2/config" {
            return Some(Key::IpamConfig);
        }
        Key::parse(path).or_else(|| Key::parse_block_affinity(path))
    }

    /// Reads the path of a block affinity of any type. `parse` knows host affinities only: those of
    /// load balancers (`virtual`) are met by whoever lists affinities, nobody else.
    pub fn parse_block_affinity(path: &str) -> Option<Key> {
        match split(path).1.as_slice() {
            ["calico", "ipam", "v2", kind @ ("host" | "virtual"), rest @ ..] => block_affinity(kind, rest),
            _ => None,
        }
    }
}

fn split(path: &str) -> (bool, Vec<&str>) {
    let relative = path.strip_prefix('/');
    (relative.is_some(), relative.unwrap_or(path).split('/').collect())
}

fn v1(segments: &[&str]) -> Option<Key> {
    match segments {
        ["config", name @ ..] => Some(Key::GlobalConfig { name: name.join("/") }),
        ["host", host, rest @ ..] => of_host(host, rest),
        ["ipam", family, "pool", cidr] if one_after(family, "v") => {
            Some(Key::IpPool { cidr: cidr_segment(cidr)? })
        }
        ["netset", name] => Some(Key::NetworkSet { name: unescape(name) }),
        ["policy", "tier", tier, "metadata"] => Some(Key::Tier { name: unescape(tier) }),
        ["policy", "tier", tier, "policy", name] => {
            Some(Key::LegacyPolicy { tier: unescape(tier), policy: legacy_policy(&unescape(name)) })
        }
        ["policy", "profile", name, "rules", ..] => Some(Key::ProfileRules { name: unescape(name) }),
        ["policy", "profile", name, "labels", ..] => Some(Key::ProfileLabels { name: unescape(name) }),
        ["policy", "tier" | "profile", ..] => None,
        ["policy", kind, namespace, name] => Some(Key::Policy(PolicyKey {
            kind: unescape(kind),
            namespace: unescape(namespace),
            name: unescape(name),
        })),
        _ => None,
    }
}

fn of_host(host: &str, segments: &[&str]) -> Option<Key> {
    match segments {
        ["workload", orchestrator, workload, "endpoint", endpoint] => {
            Some(Key::WorkloadEndpoint(WorkloadEndpointKey {
                host: unescape(host),
                orchestrator: unescape(orchestrator),
                workload: unescape(workload),
                endpoint: unescape(endpoint),
            }))
        }
        ["endpoint", endpoint] => {
            Some(Key::HostEndpoint(HostEndpointKey { host: unescape(host), endpoint: unescape(endpoint) }))
        }
        ["config", name @ ..] => Some(Key::HostConfig { host: unescape(host), name: name.join("/") }),
        ["wireguard"] => Some(Key::Wireguard { node: unescape(host) }),
        ["metadata"] => Some(Key::HostMetadata { host: host.to_owned() }),
        _ => None,
    }
}

/// A policy name of old: `[ns/][prefix]name`, where the prefix tells the kind.
fn legacy_policy(text: &str) -> PolicyKey {
    const NAMESPACED: [(&str, &str); 3] = [
        ("staged:knp.default.", "StagedKubernetesNetworkPolicy"),
        ("staged:", "StagedNetworkPolicy"),
        ("knp.default.", "KubernetesNetworkPolicy"),
    ];
    const CLUSTER_WIDE: [(&str, &str); 2] =
        [("staged:", "StagedGlobalNetworkPolicy"), ("kcnp.", "KubernetesClusterNetworkPolicy")];
    let (namespace, name, prefixes, plain) = match text.split_once('/') {
        Some((namespace, name)) => (namespace, name, NAMESPACED.as_slice(), "NetworkPolicy"),
        None => ("", text, CLUSTER_WIDE.as_slice(), "GlobalNetworkPolicy"),
    };
    let (kind, name) = prefixes
        .iter()
        .find_map(|(prefix, kind)| Some((*kind, name.strip_prefix(prefix)?)))
        .unwrap_or((plain, name));
    PolicyKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

fn ipam(segments: &[&str]) -> Option<Key> {
    match segments {
        ["assignment", family, "block", cidr] if one_after(family, "ipv") => {
            Some(Key::Block { cidr: cidr_segment(cidr)? })
        }
        ["handle", id] => Some(Key::IpamHandle { id: (*id).to_owned() }),
        [HOST_AFFINITY, rest @ ..] => block_affinity(HOST_AFFINITY, rest),
        _ => None,
    }
}

fn block_affinity(affinity_type: &str, segments: &[&str]) -> Option<Key> {
    match segments {
        [host, family, "block", cidr] if !host.is_empty() && one_after(family, "ipv") => {
            Some(Key::BlockAffinity(BlockAffinityKey {
                host: (*host).to_owned(),
                cidr: cidr_segment(cidr)?,
                affinity_type: affinity_type.to_owned(),
            }))
        }
        _ => None,
    }
}

fn bgp(segments: &[&str]) -> Option<Key> {
    match segments {
        ["global", name @ ..] => {
            let name = name.join("/");
            (!name.is_empty()).then_some(Key::GlobalBgpConfig { name })
        }
        ["host", node, name @ ..] => {
            let name = name.join("/");
            let node = (*node).to_owned();
            (!node.is_empty() && !name.is_empty()).then_some(Key::NodeBgpConfig { node, name })
        }
        _ => None,
    }
}

fn status(segments: &[&str]) -> Option<Key> {
    let [region, "host", host, rest @ ..] = segments else { return None };
    if region.is_empty() || host.is_empty() {
        return None;
    }
    let (region, host) = ((*region).to_owned(), (*host).to_owned());
    match rest {
        ["status"] => Some(Key::ActiveStatusReport { region, host }),
        ["last_reported_status", ..] => Some(Key::LastStatusReport { region, host }),
        ["workload", orchestrator, workload, "endpoint", endpoint]
            if ![orchestrator, workload, endpoint].into_iter().any(|name| name.is_empty()) =>
        {
            Some(Key::WorkloadEndpointStatus {
                region,
                host,
                orchestrator: unescape(orchestrator),
                workload: unescape(workload),
                endpoint: unescape(endpoint),
            })
        }
        _ => None,
    }
}

/// A scope that contradicts the kind is no key: it would not find its way back to this path.
fn resource(segments: &[&str]) -> Option<Key> {
    let (plural, namespace, name) = match segments {
        [plural, name] => (plural, None, name),
        [plural, namespace, name] => (plural, Some(unescape(namespace)), name),
        _ => return None,
    };
    let known = ResourceKind::by_plural(&unescape(plural))?;
    (known.namespaced == namespace.is_some()).then(|| {
        Key::Resource(ResourceKey {
            kind: known.kind.to_owned(),
            namespace: namespace.unwrap_or_default(),
            name: unescape(name),
        })
    })
}

/// Whether the text is `prefix` and one more character, the IP version. Which one says the CIDR itself.
fn one_after(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|version| version.chars().count() == 1)
}

fn cidr_segment(text: &str) -> Option<IpNet> {
    text.replacen('-', "/", 1).parse::<IpNet>().ok().map(|cidr| cidr.trunc())
}
