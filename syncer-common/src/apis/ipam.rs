//! IPAM objects: the manifest form (as the custom resources have it) and the older form in etcd.
//!
//! The two say the same with other names, and their identity is in the spec: a block is its CIDR, an
//! affinity is host, type and CIDR. Names of the manifest form are derived from these.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{FieldError, prune_nulls, read};
use crate::model::{BlockAffinityKey, Key};

/// A block as etcd has it, with what routing needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Block {
    pub cidr: String,
    pub affinity: Option<String>,
    /// By ordinal: index into `attributes`, or nothing.
    pub allocations: Vec<Option<usize>>,
    pub attributes: Vec<AllocationAttribute>,
    pub deleted: bool,
    /// How releases before 2.0 wrote the affinity.
    #[serde(rename = "hostAffinity")]
    pub host_affinity: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllocationAttribute {
    pub handle_id: Option<String>,
    /// Who owns the address: `node`, `pod`, `namespace`, ….
    pub secondary: std::collections::BTreeMap<String, String>,
    /// Set when the address was given back and waits for its cool-down to end.
    #[serde(rename = "releasedAt")]
    pub released_at: Option<String>,
}

/// An affinity as etcd has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Affinity {
    pub state: String,
    pub deleted: bool,
}

/// (manifest name, etcd name)
const BLOCK_NAMES: [(&str, &str); 1] = [("affinityClaimTime", "affinity_claim_time")];
const CONFIG_NAMES: [(&str, &str); 2] =
    [("strictAffinity", "strict_affinity"), ("autoAllocateBlocks", "auto_allocate_blocks")];

/// `10.65.0.0/26` as part of a name: `10-65-0-0-26`.
pub fn cidr_name(cidr: &IpNet) -> String {
    cidr.trunc().to_string().replace(['.', ':', '/'], "-")
}

fn text<'a>(spec: &'a Value, field: &str) -> Option<&'a str> {
    spec.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn need<'a>(spec: &'a Value, field: &str) -> Result<&'a str, FieldError> {
    text(spec, field).ok_or_else(|| FieldError::new(format!("spec.{field}"), "missing"))
}

fn need_cidr(spec: &Value) -> Result<IpNet, FieldError> {
    let cidr = need(spec, "cidr")?;
    cidr.parse::<IpNet>()
        .map(|cidr| cidr.trunc())
        .map_err(|_| FieldError::new("spec.cidr", format!("{cidr:?} is not a CIDR such as 10.65.0.0/26")))
}

/// What is written into a path as it is.
fn segment(field: &str, text: &str) -> Result<String, FieldError> {
    if text.contains('/') {
        return Err(FieldError::new(field, "must not contain a slash"));
    }
    Ok(text.to_owned())
}

/// The key of a manifest.
pub(super) fn key(kind: &str, name: &str, spec: &Value) -> Result<Key, FieldError> {
    Ok(match kind {
        "IPAMBlock" => Key::Block { cidr: need_cidr(spec)? },
        "BlockAffinity" => Key::BlockAffinity(BlockAffinityKey {
            host: segment("spec.node", need(spec, "node")?)?,
            cidr: need_cidr(spec)?,
            affinity_type: match text(spec, "type") {
                None | Some("host") => "host".to_owned(),
                Some("virtual") => "virtual".to_owned(),
                Some(other) => {
                    return Err(FieldError::new(
                        "spec.type",
                        format!("{other:?} is neither host nor virtual"),
                    ));
                }
            },
        }),
        "IPAMHandle" => {
            Key::IpamHandle { id: segment("spec.handleID", text(spec, "handleID").unwrap_or(name))? }
        }
        "IPAMConfig" => Key::IpamConfig,
        other => return Err(FieldError::new("kind", format!("{other} is not an IPAM kind"))),
    })
}

fn renamed(spec: &Map<String, Value>, rename: impl Fn(&str) -> Option<&'static str>) -> Map<String, Value> {
    spec.iter()
        .map(|(name, value)| (rename(name).map_or(name.clone(), str::to_owned), value.clone()))
        .collect()
}

fn to_etcd(names: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<&'static str> {
    move |name| names.iter().find(|(manifest, _)| *manifest == name).map(|(_, etcd)| *etcd)
}

fn to_manifest(names: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<&'static str> {
    move |name| names.iter().find(|(_, etcd)| *etcd == name).map(|(manifest, _)| *manifest)
}

/// `true` as a boolean, or as the text that the custom resource has.
fn truth(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Bool(true))) || value.and_then(Value::as_str) == Some("true")
}

/// Manifest spec → etcd value.
pub(super) fn to_stored(kind: &str, spec: &Value) -> Value {
    let empty = Map::new();
    let spec = spec.as_object().unwrap_or(&empty);
    match kind {
        "IPAMBlock" => {
            let mut stored = renamed(spec, to_etcd(&BLOCK_NAMES));
            for list in ["allocations", "unallocated", "attributes"] {
                stored.entry(list).or_insert_with(|| json!([]));
            }
            // A field of the custom resource that nobody reads.
            stored.remove("strictAffinity");
            Value::Object(stored)
        }
        "BlockAffinity" => json!({
            "state": spec.get("state").and_then(Value::as_str).unwrap_or_default(),
            "deleted": truth(spec.get("deleted")),
        }),
        "IPAMHandle" => {
            let mut stored = spec.clone();
            stored.remove("handleID");
            Value::Object(stored)
        }
        _ => {
            let mut stored = renamed(spec, to_etcd(&CONFIG_NAMES));
            // Absent in a stored value means no.
            stored.entry("auto_allocate_blocks").or_insert(true.into());
            Value::Object(stored)
        }
    }
}

/// etcd value → kind, name and spec of the manifest.
pub(super) fn from_stored(key: &Key, value: &[u8]) -> Result<(&'static str, String, Value), FieldError> {
    let value = if value.is_empty() { b"{}".as_slice() } else { value };
    let mut value: Value = serde_json::from_slice(value)
        .map_err(|error| FieldError::new("the value", format!("not JSON: {error}")))?;
    prune_nulls(&mut value);
    let Value::Object(stored) = value else {
        return Err(FieldError::new("the value", "not an object"));
    };
    Ok(match key {
        Key::Block { cidr } => {
            let mut spec = renamed(&stored, to_manifest(&BLOCK_NAMES));
            spec.insert("cidr".to_owned(), cidr.to_string().into());
            ("IPAMBlock", cidr_name(cidr), Value::Object(spec))
        }
        Key::BlockAffinity(BlockAffinityKey { host, cidr, affinity_type }) => {
            let spec = json!({
                "cidr": cidr.to_string(),
                "node": host,
                "type": affinity_type,
                "state": stored.get("state").and_then(Value::as_str).unwrap_or_default(),
                "deleted": truth(stored.get("deleted")).to_string(),
            });
            ("BlockAffinity", format!("{host}-{}", cidr_name(cidr)), spec)
        }
        Key::IpamHandle { id } => {
            let mut spec = stored;
            spec.insert("handleID".to_owned(), id.clone().into());
            ("IPAMHandle", id.to_ascii_lowercase(), Value::Object(spec))
        }
        Key::IpamConfig => {
            ("IPAMConfig", "default".to_owned(), Value::Object(renamed(&stored, to_manifest(&CONFIG_NAMES))))
        }
        _ => return Err(FieldError::new("key", "holds no resource")),
    })
}

/// Reads a block's value as etcd has it.
pub fn read_block(value: &[u8]) -> Result<Block, FieldError> {
    read_value(value)
}

/// Reads an affinity's value as etcd has it; nothing at all means the defaults.
pub fn read_affinity(value: &[u8]) -> Result<Affinity, FieldError> {
    if value.is_empty() {
        return Ok(Affinity::default());
    }
    let mut value = parse_json(value)?;
    if let Some(deleted) = value.get("deleted").cloned() {
        value["deleted"] = truth(Some(&deleted)).into();
    }
    read(&value, "")
}

fn read_value<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, FieldError> {
    read(&parse_json(value)?, "")
}

fn parse_json(value: &[u8]) -> Result<Value, FieldError> {
    let mut value: Value = serde_json::from_slice(value)
        .map_err(|error| FieldError::new("the value", format!("not JSON: {error}")))?;
    if !value.is_object() {
        return Err(FieldError::new("the value", "not an object"));
    }
    prune_nulls(&mut value);
    Ok(value)
}
