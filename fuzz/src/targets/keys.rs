//! A path: parse → key → path → parse is stable; a listing that names some of a key's parts finds it.

use syncer_common::model::{Key, Kind, ListOptions, ResourceKind};

use super::{ensure, parse_key};
use crate::Outcome;

pub fn check(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let Some(key) = parse_key(&text) else { return Ok("!none".into()) };
    ensure!(!key.to_string().is_empty(), "a key can be printed: {key:?}");
    let name = format!("{key:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
    let path = match key.path() {
        Ok(path) => path,
        Err(error) => return Ok(format!("!{} {}", error.kind, error.field)),
    };
    ensure!(path.starts_with("/calico/"), "paths are below /calico/: {path:?}");
    // All parts are unescaped when read, some are never escaped: with a percent sign in those two paths mean one key.
    let escaped =
        matches!(key, Key::NetworkSet { .. } | Key::ProfileRules { .. } | Key::ProfileLabels { .. });
    if escaped || !text.contains('%') && !path.contains('%') {
        let again = parse_key(&path);
        let modern = key.clone().upgrade();
        ensure!(again.as_ref() == Some(&modern), "a key survives its path: {modern:?}, {path:?}, {again:?}");
        let stable = again.and_then(|key| key.path().ok());
        ensure!(stable.as_ref() == Some(&path), "a path is stable: {path:?}, {stable:?}");
    }
    let delete = key.delete_path().map_err(|error| format!("what has a path can be deleted: {error}"))?;
    ensure!(path.starts_with(&delete), "deleting a key deletes its path: {path:?}, {delete:?}");
    let parents = key.delete_parent_paths().map_err(|error| format!("parents can be named: {error}"))?;
    for parent in parents {
        ensure!(path.starts_with(&parent), "parents are above the path: {path:?}, {parent:?}");
    }
    for options in listings(&key) {
        let range = options.range();
        let found = path == range.key || range.prefix && path.starts_with(&range.key);
        ensure!(found, "a listing finds its key: {path:?}, {options:?}, {range:?}");
    }
    Ok(format!("{name} {:?}", Kind::of(&key)))
}

/// Listings that the key belongs to, from all of its kind to itself alone.
fn listings(key: &Key) -> Vec<ListOptions> {
    (0..=5).filter_map(|parts| listing(key, parts)).collect()
}

/// The listing by the first so many parts of the key.
fn listing(key: &Key, parts: usize) -> Option<ListOptions> {
    let part = |index: usize, part: &String| (index < parts).then(|| part.clone());
    let version = |cidr: &ipnet::IpNet| if cidr.addr().is_ipv4() { 4 } else { 6 };
    Some(match key {
        Key::WorkloadEndpoint(key) => ListOptions::WorkloadEndpoints {
            host: part(0, &key.host),
            orchestrator: part(1, &key.orchestrator),
            workload: part(2, &key.workload),
            endpoint: part(3, &key.endpoint),
        },
        Key::HostEndpoint(key) => {
            ListOptions::HostEndpoints { host: part(0, &key.host), endpoint: part(1, &key.endpoint) }
        }
        Key::Policy(key) => ListOptions::Policies {
            kind: part(0, &key.kind),
            namespace: part(1, &key.namespace),
            name: part(2, &key.name),
        },
        Key::Tier { name } => ListOptions::Tiers { name: part(0, name) },
        Key::ProfileRules { name } | Key::ProfileLabels { name } => {
            ListOptions::Profiles { name: part(0, name) }
        }
        Key::NetworkSet { name } => ListOptions::NetworkSets { name: part(0, name) },
        Key::IpPool { cidr } => ListOptions::IpPools { cidr: (parts > 0).then_some(*cidr) },
        Key::GlobalConfig { name } => ListOptions::GlobalConfig { name: part(0, name) },
        Key::HostConfig { host, name } => {
            ListOptions::HostConfig { host: part(0, host), name: part(1, name) }
        }
        Key::HostMetadata { host } => ListOptions::HostMetadata { host: part(0, host) },
        Key::Block { cidr } => ListOptions::Blocks { ip_version: (parts > 0).then(|| version(cidr)) },
        Key::BlockAffinity(key) => ListOptions::BlockAffinities {
            host: part(0, &key.host),
            affinity_type: Some(key.affinity_type.clone()),
            ip_version: (parts > 1).then(|| version(&key.cidr)),
        },
        Key::IpamHandle { .. } => ListOptions::IpamHandles,
        Key::GlobalBgpConfig { name } => ListOptions::GlobalBgpConfig { name: part(0, name) },
        Key::NodeBgpConfig { node, name } => {
            ListOptions::NodeBgpConfig { node: part(0, node), name: part(1, name) }
        }
        Key::Resource(key) => {
            let kind = ResourceKind::by_kind(&key.kind)?;
            ListOptions::Resources {
                kind,
                namespace: part(0, &key.namespace),
                name: part(usize::from(kind.namespaced), &key.name),
                prefix: parts == 5,
            }
        }
        Key::HostEndpointStatus { host, endpoint } => {
            ListOptions::HostEndpointStatuses { host: part(0, host), endpoint: part(1, endpoint) }
        }
        Key::ActiveStatusReport { region, host } => {
            ListOptions::ActiveStatusReports { region: part(0, region), host: part(1, host) }
        }
        Key::LastStatusReport { region, host } => {
            ListOptions::LastStatusReports { region: part(0, region), host: part(1, host) }
        }
        Key::WorkloadEndpointStatus { region, host, orchestrator, workload, endpoint } => {
            ListOptions::WorkloadEndpointStatuses {
                region: part(0, region),
                host: part(1, host),
                orchestrator: part(2, orchestrator),
                workload: part(3, workload),
                endpoint: part(4, endpoint),
            }
        }
        _ => return None,
    })
}
