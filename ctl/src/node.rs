//! What goes with a node that is deleted, as with `calicoctl`: its endpoints and their addresses, its blocks,
//! its peers and its own configuration objects.
//!
//! The host has to be out of service: nothing here can tell. Every step is a compare-and-swap that can be
//! repeated, and the node itself goes last, so that an interrupted deletion is simply run again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use syncer_common::apis::{ApiKind, FieldError, Resource};
use syncer_common::backend::{Datastore, Error, KeyValue};
use syncer_common::model::Key;
use syncer_common::processors::parse_net;

use crate::get;
use crate::ipam::address;
use crate::write::{RACES, Refusal, lost_race};

const BLOCKS: &str = "/calico/ipam/v2/assignment/";

type Result<T> = std::result::Result<T, Refusal>;

/// Deletes what belongs to the node. Returns what that was, as a line for the operator.
pub async fn release(store: &dyn Datastore, node: &str) -> Result<String> {
    let endpoints = of_node(store, "WorkloadEndpoint", node).await?;
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for (_, endpoint) in &endpoints {
        let networks = endpoint.spec["ipNetworks"].as_array().into_iter().flatten();
        addresses.extend(networks.filter_map(|net| parse_net(net.as_str()?).ok()).map(|net| net.addr()));
    }
    addresses.extend(tunnel_addresses(store, node).await?);
    let cooldown = cooldown(store).await?;

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for kv in store.get_prefix(BLOCKS).await? {
        let Some(Key::Block { cidr }) = Key::parse(&kv.key) else { continue };
        let wanted = |address: IpAddr, attribute: &Value| {
            attribute["secondary"]["node"].as_str() == Some(node) || addresses.contains(&address)
        };
        let (freed, block) = release_block(store, kv, &cidr, Some(node), &wanted, cooldown).await?;
        *counts.entry("address(es)").or_default() += freed;
        *counts.entry("block(s)").or_default() += usize::from(block);
    }
    for kv in store.get_prefix(&format!("/calico/ipam/v2/host/{node}/")).await? {
        delete(store, &kv).await?;
    }
    if let Some(kv) = store.get(&format!("/calico/ipam/v2/host/{node}")).await? {
        delete(store, &kv).await?;
    }

    let mut objects = endpoints;
    for kind in ["HostEndpoint", "BGPPeer"] {
        objects.extend(of_node(store, kind, node).await?);
    }
    for kind in ["FelixConfiguration", "BGPConfiguration"] {
        let found = get::list_stored(store, api_kind(kind)?).await?.into_iter();
        objects.extend(found.filter(|(_, resource)| resource.metadata.name == format!("node.{node}")));
    }
    for (kv, resource) in &objects {
        delete(store, kv).await?;
        let kind = api_kind(&resource.kind)?;
        *counts.entry(kind.kind).or_default() += 1;
    }
    let said: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    Ok(match said.is_empty() {
        true => String::new(),
        false => format!("Released with Node({node}): {}\n", said.join(", ")),
    })
}

fn api_kind(kind: &str) -> std::result::Result<&'static ApiKind, FieldError> {
    ApiKind::by_kind(kind).ok_or_else(|| FieldError::new("kind", format!("unknown kind {kind}")))
}

/// Objects whose spec names the node.
async fn of_node(store: &dyn Datastore, kind: &str, node: &str) -> Result<Vec<(KeyValue, Resource)>> {
    let mut found = get::list_stored(store, api_kind(kind)?).await?;
    found.retain(|(_, resource)| resource.spec.get("node").and_then(Value::as_str) == Some(node));
    Ok(found)
}

async fn tunnel_addresses(store: &dyn Datastore, node: &str) -> Result<Vec<IpAddr>> {
    let nodes = get::list_stored(store, api_kind("Node")?).await?;
    let Some((_, resource)) = nodes.into_iter().find(|(_, resource)| resource.metadata.name == node) else {
        return Ok(Vec::new());
    };
    let fields = [
        "/bgp/ipv4IPIPTunnelAddr",
        "/ipv4VXLANTunnelAddr",
        "/ipv6VXLANTunnelAddr",
        "/wireguard/interfaceIPv4Address",
        "/wireguard/interfaceIPv6Address",
    ];
    let text = |field: &&str| resource.spec.pointer(field).and_then(Value::as_str);
    Ok(fields.iter().filter_map(text).filter_map(|text| Some(parse_net(text).ok()?.addr())).collect())
}

/// Whether addresses rest before they are given out again.
async fn cooldown(store: &dyn Datastore) -> Result<bool> {
    let Some(kv) = store.get("/calico/ipam/v2/config").await? else { return Ok(false) };
    let settings: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    Ok(settings["ipCooldownSeconds"].as_u64().is_some_and(|seconds| seconds > 0))
}

/// Gives back every address of a handle.
pub async fn release_handle(store: &dyn Datastore, handle: &str) -> Result<()> {
    let Ok(key) = (Key::IpamHandle { id: handle.to_owned() }).path() else { return Ok(()) };
    let Some(kv) = store.get(&key).await? else { return Ok(()) };
    let value: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    let cooldown = cooldown(store).await?;
    for cidr in value["block"].as_object().into_iter().flatten().filter_map(|(cidr, _)| cidr.parse().ok()) {
        let Ok(key) = (Key::Block { cidr }).path() else { continue };
        let Some(kv) = store.get(&key).await? else { continue };
        let wanted = |_: IpAddr, attribute: &Value| attribute["handle_id"] == handle;
        release_block(store, kv, &cidr, None, &wanted, cooldown).await?;
    }
    Ok(())
}

/// Whether an allocation is to be freed, by its address and its attribute.
type Wanted<'a> = &'a (dyn Fn(IpAddr, &Value) -> bool + Sync);

/// Frees what is wanted of a block, and lets go of the block if it is the node's. Returns how many addresses that
/// were, and whether it was.
async fn release_block(
    store: &dyn Datastore,
    mut kv: KeyValue,
    cidr: &IpNet,
    node: Option<&str>,
    wanted: Wanted<'_>,
    cooldown: bool,
) -> Result<(usize, bool)> {
    for _ in 0..RACES {
        let Ok(Value::Object(mut block)) = serde_json::from_slice::<Value>(&kv.value) else {
            eprintln!("left alone: {}: the value is not an object", kv.key);
            return Ok((0, false));
        };
        let now =
            cooldown.then(|| humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string());
        let freed = free(&mut block, cidr, wanted, now.as_deref());
        let owned = node.is_some_and(|node| disown(&mut block, node));
        if freed.is_empty() && !owned {
            return Ok((0, false));
        }
        if let Some(number) = block.get("sequenceNumber").and_then(Value::as_u64) {
            block.insert("sequenceNumber".into(), number.wrapping_add(1).into());
        }
        let ownerless = block.get("affinity").is_none_or(Value::is_null);
        let written = if ownerless && is_empty(&block) {
            store.delete(&kv.key, Some(kv.mod_revision)).await
        } else {
            store.replace(&kv.key, Bytes::from(Value::Object(block).to_string()), kv.mod_revision).await
        };
        if !lost_race(&written) {
            written?;
            for (handle, count) in &freed {
                decrement(store, handle, cidr, *count).await?;
            }
            return Ok((freed.values().sum(), owned));
        }
        match store.get(&kv.key).await? {
            Some(newer) => kv = newer,
            None => return Ok((0, false)),
        }
    }
    Err(Refusal::Conflict(kv.key))
}

fn is_empty(block: &Map<String, Value>) -> bool {
    block.get("allocations").and_then(Value::as_array).is_none_or(|list| list.iter().all(Value::is_null))
}

/// Takes the block from the node.
fn disown(block: &mut Map<String, Value>, node: &str) -> bool {
    let affinity = block.get("affinity").and_then(Value::as_str) == Some(&format!("host:{node}"));
    let old = block.get("hostAffinity").and_then(Value::as_str) == Some(node);
    if affinity || old {
        block.insert("affinity".into(), Value::Null);
        block.remove("hostAffinity");
    }
    affinity || old
}

/// Frees allocations. With a time they rest from then on. Returns the handles and how many addresses each of them
/// had; no handle is an empty one.
fn free(
    block: &mut Map<String, Value>,
    cidr: &IpNet,
    wanted: Wanted<'_>,
    resting_from: Option<&str>,
) -> BTreeMap<String, usize> {
    let mut freed = BTreeMap::new();
    let list = |block: &Map<String, Value>, name: &str| -> Vec<Value> {
        block.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (mut allocations, mut attributes) = (list(block, "allocations"), list(block, "attributes"));
    let mut unallocated = list(block, "unallocated");
    for (ordinal, allocation) in allocations.iter_mut().enumerate() {
        let index = allocation.as_u64().and_then(|index| usize::try_from(index).ok());
        let Some(attribute) = index.and_then(|index| attributes.get(index)) else { continue };
        let wanted = address(cidr, ordinal).is_some_and(|address| wanted(address, attribute));
        if !wanted || attribute["releasedAt"].is_string() {
            continue;
        }
        *freed.entry(attribute["handle_id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        match resting_from {
            Some(time) => {
                *allocation = attributes.len().into();
                attributes.push(json!({"handle_id": null, "secondary": null, "releasedAt": time}));
            }
            None => {
                *allocation = Value::Null;
                unallocated.push(ordinal.into());
            }
        }
        if let Some(numbers) = block.get_mut("sequenceNumberForAllocation").and_then(Value::as_object_mut) {
            numbers.remove(&ordinal.to_string());
        }
    }
    if freed.is_empty() {
        return freed;
    }
    block.insert("attributes".into(), compact(&mut allocations, attributes).into());
    block.insert("allocations".into(), allocations.into());
    block.insert("unallocated".into(), unallocated.into());
    freed
}

/// Drops attributes that no allocation refers to.
fn compact(allocations: &mut [Value], attributes: Vec<Value>) -> Vec<Value> {
    let used: BTreeSet<u64> = allocations.iter().filter_map(Value::as_u64).collect();
    let mut places = BTreeMap::new();
    let mut kept = Vec::new();
    for (index, attribute) in (0_u64..).zip(attributes) {
        if used.contains(&index) {
            places.insert(index, kept.len());
            kept.push(attribute);
        }
    }
    for allocation in allocations {
        if let Some(place) = allocation.as_u64().and_then(|index| places.get(&index)) {
            *allocation = (*place).into();
        }
    }
    kept
}

/// A handle counts the addresses it has in each block.
async fn decrement(store: &dyn Datastore, handle: &str, cidr: &IpNet, count: usize) -> Result<()> {
    let Ok(key) = (Key::IpamHandle { id: handle.to_owned() }).path() else { return Ok(()) };
    for _ in 0..RACES {
        let Some(kv) = store.get(&key).await? else { return Ok(()) };
        let Ok(mut value) = serde_json::from_slice::<Value>(&kv.value) else {
            eprintln!("left alone: {key}: the value is not JSON");
            return Ok(());
        };
        let Some(blocks) = value.get_mut("block").and_then(Value::as_object_mut) else { return Ok(()) };
        let name = cidr.to_string();
        let left = blocks.get(&name).and_then(Value::as_u64).unwrap_or(0).saturating_sub(count as u64);
        if left == 0 {
            blocks.remove(&name);
        } else {
            blocks.insert(name, left.into());
        }
        let written = if blocks.is_empty() {
            store.delete(&key, Some(kv.mod_revision)).await
        } else {
            store.replace(&key, Bytes::from(value.to_string()), kv.mod_revision).await
        };
        if !lost_race(&written) {
            return Ok(written.map(drop)?);
        }
    }
    Err(Refusal::Conflict(key))
}

/// Whatever it is by now; that it is gone already is fine.
async fn delete(store: &dyn Datastore, kv: &KeyValue) -> Result<()> {
    match store.delete(&kv.key, None).await {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
