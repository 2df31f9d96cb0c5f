//! IPAM objects: custom resources here, old forms under old paths in etcd.
//!
//! The names of the custom resources are derived from what the objects are about, and hints for selecting them
//! are in their labels.

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

use super::object::{Meta, error, parse};
use super::{Options, Read, Written, resources};
use crate::apis::{API_VERSION, ApiKind, FieldError, Resource};
use crate::model::{BlockAffinityKey, Key};

/// The API server takes no longer names.
const NAME_LIMIT: usize = 253;
/// Digits of the digest in a name that was cut.
const NAME_DIGEST: usize = 11;
const HOST_HASH_LABEL: &str = "projectcalico.org/hostname-hash";
const AFFINITY_TYPE_LABEL: &str = "projectcalico.org/affinity-type";
const IP_VERSION_LABEL: &str = "projectcalico.org/ip-version";
const CONFIG_NAME: &str = "default";

/// `10.65.0.0/26` → `10-65-0-0-26`.
pub fn block_name(cidr: &IpNet) -> String {
    crate::apis::ipam::cidr_name(cidr)
}

/// `<host>-<cidr>`; a long host is cut, and a digest keeps the name unique.
pub fn affinity_name(host: &str, cidr: &IpNet) -> String {
    let cidr = block_name(cidr);
    let name = format!("{host}-{cidr}");
    if name.len() < NAME_LIMIT {
        return name;
    }
    // Two dashes, and the digest.
    let mut end = NAME_LIMIT - 1 - cidr.len() - NAME_DIGEST - 2;
    while !host.is_char_boundary(end) {
        end -= 1;
    }
    let digest = Sha256::new().chain_update(host).chain_update("+").chain_update(&cidr).finalize();
    let mut digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    digest.truncate(NAME_DIGEST);
    format!("{}-{cidr}-{digest}", &host[..end])
}

pub fn handle_name(id: &str) -> String {
    id.to_lowercase()
}

/// What affinities of a host are selected by.
pub fn host_hash(host: &str) -> String {
    base32(&Sha3_256::digest(host))
}

/// RFC 4648, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for chunk in bytes.chunks(5) {
        let mut group = [0_u8; 8];
        group[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(group);
        for index in 0..(chunk.len() * 8).div_ceil(5) {
            text.push(char::from(ALPHABET[(bits >> (35 - 5 * index) & 31) as usize]));
        }
    }
    text
}

/// What of the object says what it is about; the rest of the metadata has no place in etcd.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    spec: Value,
}

pub(super) fn path(kind: &ApiKind, object: &[u8]) -> Result<String, FieldError> {
    let (resource, _) = resource(kind, object)?;
    resource.key_path()
}

pub(super) fn read(kind: &ApiKind, object: &[u8]) -> Result<Read, FieldError> {
    let (resource, resource_version) = resource(kind, object)?;
    let path = resource.key_path()?;
    Ok(Read { path, value: Some(resource.to_stored()), findings: Vec::new(), resource_version })
}

fn resource(kind: &ApiKind, object: &[u8]) -> Result<(Resource, String), FieldError> {
    let Object { metadata, spec } = parse(object)?;
    let resource = Resource::from_json(json!({
        "apiVersion": API_VERSION,
        "kind": kind.kind,
        "metadata": { "name": &*metadata.name },
        "spec": spec,
    }))?;
    Ok((resource, metadata.resource_version.to_string()))
}

pub(super) fn write(key: &Key, path: &str, value: &[u8], options: &Options) -> Result<Written, FieldError> {
    let Resource { kind, mut spec, .. } = Resource::from_stored(path, value)?;
    let kind = ApiKind::by_kind(&kind).ok_or_else(|| error("kind", format!("unknown kind {kind}")))?;
    let resource = resources::custom_resource(kind, options.group);
    let name = name(key).ok_or_else(|| error("key", format!("{path} holds no IPAM object")))?;
    let mut metadata = json!({ "name": name });
    match key {
        // Nobody reads it, but the schema asks for it.
        Key::Block { .. } => spec["strictAffinity"] = false.into(),
        Key::BlockAffinity(key) => metadata["labels"] = labels(key),
        _ => {}
    }
    let object = json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "metadata": metadata,
        "spec": spec,
    });
    Ok(Written { resource, namespace: None, name, object })
}

/// The name of the object that a key stands for.
pub(super) fn name(key: &Key) -> Option<String> {
    match key {
        Key::Block { cidr } => Some(block_name(cidr)),
        Key::BlockAffinity(BlockAffinityKey { host, cidr, .. }) => Some(affinity_name(host, cidr)),
        Key::IpamHandle { id } => Some(handle_name(id)),
        Key::IpamConfig => Some(CONFIG_NAME.to_owned()),
        _ => None,
    }
}

pub(super) fn kind(key: &Key) -> Option<&'static ApiKind> {
    ApiKind::by_kind(match key {
        Key::Block { .. } => "IPAMBlock",
        Key::BlockAffinity(_) => "BlockAffinity",
        Key::IpamHandle { .. } => "IPAMHandle",
        Key::IpamConfig => "IPAMConfig",
        _ => return None,
    })
}

fn labels(BlockAffinityKey { host, cidr, affinity_type }: &BlockAffinityKey) -> Value {
    json!({
        HOST_HASH_LABEL: host_hash(host),
        AFFINITY_TYPE_LABEL: affinity_type,
        IP_VERSION_LABEL: if cidr.addr().is_ipv4() { "4" } else { "6" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_objects_are_about() {
        let cidr = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(block_name(&cidr("10.65.0.0/26")), "10-65-0-0-26");
        assert_eq!(block_name(&cidr("fd00:10::/122")), "fd00-10---122");
        assert_eq!(affinity_name("node-a", &cidr("10.65.0.0/26")), "node-a-10-65-0-0-26");
        assert_eq!(handle_name("k8s-pod-network.ABC"), "k8s-pod-network.abc");
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let cidr = "10.65.0.0/26".parse().unwrap();
        let longest = "h".repeat(239);
        assert_eq!(affinity_name(&longest, &cidr), format!("{longest}-10-65-0-0-26"));
        let names = [affinity_name(&"h".repeat(240), &cidr), affinity_name(&"h".repeat(241), &cidr)];
        assert_ne!(names[0], names[1]);
        for name in names {
            assert_eq!(name.len(), 252);
            assert!(name.starts_with(&format!("{}-10-65-0-0-26-", "h".repeat(227))), "{name}");
        }
        // A host's name may be anything; cutting it must not break a letter.
        affinity_name(&"ä".repeat(240), &cidr);
    }

    #[test]
    fn hosts_are_selected_by_a_digest() {
        assert_eq!(host_hash("node-a"), "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA");
        assert_eq!(base32(b"foobar"), "MZXW6YTBOI");
        assert_eq!(base32(b""), "");
    }
}
