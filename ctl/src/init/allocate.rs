//! One address out of IPAM, as Calico's allocator takes it: from a block of the node, else from a new block, else from
//! somebody else's.
//!
//! Every write is a compare-and-swap, and the handle counts an address before a block gives it: an interrupted
//! allocation leaves a count too many, never an address that two have.

use std::net::IpAddr;

use anyhow::{Result, bail};
use bytes::Bytes;
use ipnet::IpNet;
use serde_json::{Value, json};
use syncer_common::backend::{Datastore, Error, KeyValue};
use syncer_common::model::{BlockAffinityKey, Key};

use super::detect::Family;
use crate::ipam::address;
use crate::write::lost_race;

/// How often a race with other writers is run again, as upstream.
const ATTEMPTS: usize = 100;

/// Who gets the address.
pub struct Owner<'a> {
    pub node: &'a str,
    /// E.g. `vxlan-tunnel-addr-n1`.
    pub handle: &'a str,
    /// E.g. `vxlanTunnelAddress`.
    pub use_: &'a str,
}

/// Where it may come from.
#[derive(Clone, Debug)]
pub struct Pool {
    pub cidr: IpNet,
    pub block_size: u8,
}

/// What the cluster wants of its IPAM.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub strict_affinity: bool,
    pub auto_allocate_blocks: bool,
    pub max_blocks_per_host: usize,
    pub reserved: Vec<IpNet>,
}

impl Rules {
    pub fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|net| net.contains(&address))
    }
}

fn path(key: Key) -> Result<String> {
    Ok(key.path()?)
}

fn block_key(cidr: &IpNet) -> Result<String> {
    path(Key::Block { cidr: *cidr })
}

/// The addresses that a handle has.
pub async fn held(store: &dyn Datastore, handle: &str) -> Result<Vec<IpAddr>> {
    let Some(kv) = store.get(&path(Key::IpamHandle { id: handle.into() })?).await? else {
        return Ok(Vec::new());
    };
    let value: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
    let mut found = Vec::new();
    for cidr in value["block"].as_object().into_iter().flatten().filter_map(|(cidr, _)| cidr.parse().ok()) {
        let Some(kv) = store.get(&block_key(&cidr)?).await? else { continue };
        let block: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        for (ordinal, index) in block["allocations"].as_array().into_iter().flatten().enumerate() {
            let attribute = index.as_u64().and_then(|index| block["attributes"].get(index as usize));
            let live = attribute.is_some_and(|a| a["handle_id"] == handle && !a["releasedAt"].is_string());
            found.extend(live.then(|| address(&cidr, ordinal)).flatten());
        }
    }
    Ok(found)
}

/// Takes an address for the owner.
pub async fn assign(
    store: &dyn Datastore,
    owner: &Owner<'_>,
    pools: &[Pool],
    rules: &Rules,
) -> Result<IpAddr> {
    let mut own = affine(store, owner.node, pools).await?;
    for cidr in &own {
        if let Some(address) = take(store, cidr, owner, rules, Whose::Own).await? {
            return Ok(address);
        }
    }
    let limit = if rules.max_blocks_per_host == 0 { 20 } else { rules.max_blocks_per_host };
    if rules.auto_allocate_blocks {
        for pool in pools {
            let mut tries = candidates(pool, owner.node);
            while own.len() < limit {
                let Some(cidr) = claim(store, &mut tries, owner.node).await? else { break };
                own.push(cidr);
                if let Some(address) = take(store, &cidr, owner, rules, Whose::Own).await? {
                    return Ok(address);
                }
            }
        }
    }
    if !rules.strict_affinity {
        for kv in store.get_prefix("/calico/ipam/v2/assignment/").await? {
            let Some(Key::Block { cidr }) = Key::parse(&kv.key) else { continue };
            if !pools.iter().any(|pool| pool.cidr.contains(&cidr)) {
                continue;
            }
            if let Some(address) = take(store, &cidr, owner, rules, Whose::Anybodys).await? {
                return Ok(address);
            }
        }
    }
    let names: Vec<String> = pools.iter().map(|pool| pool.cidr.to_string()).collect();
    bail!(
        "{}: no address is left in {}: make another pool, or see `bulrushctl ipam show --show-blocks`",
        owner.handle,
        names.join(", ")
    )
}

/// Blocks of the node, of these pools. A claim that was interrupted after the block was made is ended.
async fn affine(store: &dyn Datastore, node: &str, pools: &[Pool]) -> Result<Vec<IpNet>> {
    let mut found = Vec::new();
    for kv in store.get_prefix(&format!("/calico/ipam/v2/host/{node}/")).await? {
        let Some(Key::BlockAffinity(key)) = Key::parse(&kv.key) else { continue };
        let mine = key.host == node && key.affinity_type == "host";
        if !mine || !pools.iter().any(|pool| pool.cidr.contains(&key.cidr)) {
            continue;
        }
        let now: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        if now["state"] != "confirmed" {
            let block = store.get(&block_key(&key.cidr)?).await?;
            let block: Value =
                block.and_then(|kv| serde_json::from_slice(&kv.value).ok()).unwrap_or_default();
            if block["affinity"] != format!("host:{node}").as_str() {
                continue;
            }
            let confirmed = store.replace(&kv.key, state("confirmed"), kv.mod_revision).await;
            if lost_race(&confirmed) {
                continue;
            }
            confirmed?;
        }
        found.push(key.cidr);
    }
    Ok(found)
}

/// An affinity's value.
fn state(state: &str) -> Bytes {
    Bytes::from(json!({"state": state, "deleted": false}).to_string())
}

/// The blocks of a pool, from a place that differs from node to node.
fn candidates(pool: &Pool, node: &str) -> impl Iterator<Item = IpNet> + use<> {
    let family = Family::of(pool.cidr.addr());
    let count_bits = u32::from(pool.block_size.saturating_sub(pool.cidr.prefix_len()));
    let count: u128 = 1_u128.checked_shl(count_bits).unwrap_or(u128::MAX);
    let start = u128::from(fnv1(node)) % count;
    let host_bits = u32::from(family.bits() - pool.block_size);
    let (network, block_size) = (pool.cidr.network(), pool.block_size);
    // More blocks than a cluster can have are not walked through.
    (0..count.min(1 << 20)).filter_map(move |step| {
        let offset = ((start + step) % count) << host_bits;
        let address = match network {
            IpAddr::V4(network) => {
                IpAddr::from((u32::from(network) + u32::try_from(offset).ok()?).to_be_bytes())
            }
            IpAddr::V6(network) => IpAddr::from((u128::from(network) + offset).to_be_bytes()),
        };
        IpNet::new(address, block_size).ok()
    })
}

/// FNV-1, 32 bits: what upstream spreads nodes over a pool with.
fn fnv1(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte))
}

/// Makes the first block that nobody has the node's: affinity pending, block, affinity confirmed.
async fn claim(
    store: &dyn Datastore,
    tries: &mut (impl Iterator<Item = IpNet> + Send),
    node: &str,
) -> Result<Option<IpNet>> {
    for cidr in tries {
        if store.get(&block_key(&cidr)?).await?.is_some() {
            continue;
        }
        let affinity = path(Key::BlockAffinity(BlockAffinityKey {
            host: node.into(),
            cidr,
            affinity_type: "host".into(),
        }))?;
        let pending = match store.create(&affinity, state("pending")).await {
            Ok(revision) => revision,
            // Left by an attempt that was interrupted: it is taken up.
            Err(Error::Conflict { .. }) => match store.get(&affinity).await? {
                Some(kv) => kv.mod_revision,
                None => continue,
            },
            Err(error) => return Err(error.into()),
        };
        match store.create(&block_key(&cidr)?, Bytes::from(empty_block(&cidr, node).to_string())).await {
            Ok(_) => {
                let confirmed = store.replace(&affinity, state("confirmed"), pending).await;
                if !lost_race(&confirmed) {
                    confirmed?;
                }
                return Ok(Some(cidr));
            }
            Err(Error::Conflict { .. }) => {
                // Another node was faster.
                let given_up = store.delete(&affinity, Some(pending)).await;
                if !lost_race(&given_up) {
                    given_up?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn empty_block(cidr: &IpNet, node: &str) -> Value {
    let host_bits = u32::from(Family::of(cidr.addr()).bits() - cidr.prefix_len());
    let size = 1_usize << host_bits;
    let now = std::time::SystemTime::now();
    let nanoseconds = now.duration_since(std::time::UNIX_EPOCH).map(|t| t.as_nanos()).unwrap_or_default();
    json!({
        "cidr": cidr.to_string(),
        "affinity": format!("host:{node}"),
        "affinity_claim_time": humantime::format_rfc3339_seconds(now).to_string(),
        "allocations": vec![Value::Null; size],
        "unallocated": (0..size).collect::<Vec<_>>(),
        "attributes": [],
        "sequenceNumber": u64::try_from(nanoseconds).unwrap_or_default(),
        "sequenceNumberForAllocation": {},
        "deleted": false,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Anybodys,
}

/// An address out of that block, if it has one.
async fn take(
    store: &dyn Datastore,
    cidr: &IpNet,
    owner: &Owner<'_>,
    rules: &Rules,
    whose: Whose,
) -> Result<Option<IpAddr>> {
    for _ in 0..ATTEMPTS {
        let Some(kv) = store.get(&block_key(cidr)?).await? else { return Ok(None) };
        let mut block: Value = serde_json::from_slice(&kv.value)?;
        if whose == Whose::Own && block["affinity"] != format!("host:{}", owner.node).as_str() {
            return Ok(None);
        }
        let Some(taken) = put(&mut block, cidr, owner, rules) else { return Ok(None) };
        count(store, owner.handle, cidr, 1).await?;
        let written = store.replace(&kv.key, Bytes::from(block.to_string()), kv.mod_revision).await;
        if !lost_race(&written) {
            if let Err(error) = written {
                count(store, owner.handle, cidr, -1).await?;
                return Err(error.into());
            }
            return Ok(Some(taken));
        }
        count(store, owner.handle, cidr, -1).await?;
    }
    bail!("{cidr}: the block changes faster than an address can be taken from it")
}

/// Writes the allocation into the block's value.
fn put(block: &mut Value, cidr: &IpNet, owner: &Owner<'_>, rules: &Rules) -> Option<IpAddr> {
    let free = block["unallocated"].as_array_mut()?;
    let place = free.iter().position(|ordinal| {
        let ordinal = ordinal.as_u64().and_then(|ordinal| usize::try_from(ordinal).ok());
        ordinal.and_then(|ordinal| address(cidr, ordinal)).is_some_and(|address| !rules.is_reserved(address))
    })?;
    let ordinal = usize::try_from(free.remove(place).as_u64()?).ok()?;
    let attribute = json!({
        "handle_id": owner.handle,
        "secondary": {"node": owner.node, "type": owner.use_},
    });
    let attributes = block["attributes"].as_array_mut()?;
    attributes.push(attribute);
    let index = attributes.len() - 1;
    *block["allocations"].get_mut(ordinal)? = index.into();
    let number = block["sequenceNumber"].as_u64().unwrap_or_default();
    if block["sequenceNumberForAllocation"].is_object() {
        block["sequenceNumberForAllocation"][ordinal.to_string()] = number.into();
    }
    block["sequenceNumber"] = number.wrapping_add(1).into();
    address(cidr, ordinal)
}

/// Adds to what a handle has in a block.
async fn count(store: &dyn Datastore, handle: &str, cidr: &IpNet, change: i64) -> Result<()> {
    let key = path(Key::IpamHandle { id: handle.into() })?;
    for _ in 0..ATTEMPTS {
        let Some(KeyValue { value, mod_revision, .. }) = store.get(&key).await? else {
            if change <= 0 {
                return Ok(());
            }
            let value = json!({"block": {(cidr.to_string()): change}, "deleted": false});
            match store.create(&key, Bytes::from(value.to_string())).await {
                Err(Error::Conflict { .. }) => continue,
                written => return Ok(written.map(drop)?),
            }
        };
        let mut value: Value = serde_json::from_slice(&value)?;
        if !value["block"].is_object() {
            value["block"] = json!({});
        }
        let blocks = value["block"].as_object_mut().expect("it was made one");
        let now = blocks.get(&cidr.to_string()).and_then(Value::as_i64).unwrap_or_default() + change;
        if now > 0 {
            blocks.insert(cidr.to_string(), now.into());
        } else {
            blocks.remove(&cidr.to_string());
        }
        let written = if blocks.is_empty() {
            store.delete(&key, Some(mod_revision)).await
        } else {
            store.replace(&key, Bytes::from(value.to_string()), mod_revision).await
        };
        if !lost_race(&written) {
            return Ok(written.map(drop)?);
        }
    }
    bail!("{handle}: the handle changes faster than it can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_begin_at_different_blocks_of_a_pool_and_see_them_all() {
        let pool = Pool { cidr: "10.65.0.0/16".parse().unwrap(), block_size: 26 };
        let all: Vec<IpNet> = candidates(&pool, "n1").collect();
        assert_eq!(all.len(), 1024);
        let distinct: std::collections::BTreeSet<IpNet> = all.iter().copied().collect();
        assert_eq!(distinct.len(), 1024);
        assert!(distinct.iter().all(|cidr| pool.cidr.contains(cidr)));
        assert_ne!(all[0], candidates(&pool, "n2").next().unwrap());
        // FNV-1 of "a", from the function's description.
        assert_eq!(fnv1("a"), 0x050c_5d7e);
    }

    #[test]
    fn an_address_comes_from_the_front_and_never_a_reserved_one() {
        let cidr: IpNet = "10.65.0.0/30".parse().unwrap();
        let mut block = empty_block(&cidr, "n1");
        let before = block["sequenceNumber"].as_u64().unwrap();
        let owner = Owner { node: "n1", handle: "vxlan-tunnel-addr-n1", use_: "vxlanTunnelAddress" };
        let rules = Rules { reserved: vec!["10.65.0.0/31".parse().unwrap()], ..Rules::default() };
        assert_eq!(put(&mut block, &cidr, &owner, &rules), Some("10.65.0.2".parse().unwrap()));
        assert_eq!(block["allocations"], json!([null, null, 0, null]));
        assert_eq!(block["unallocated"], json!([0, 1, 3]));
        assert_eq!(block["attributes"][0]["secondary"]["type"], "vxlanTunnelAddress");
        assert_eq!(block["sequenceNumber"], before + 1);
        assert_eq!(block["sequenceNumberForAllocation"], json!({"2": before}));
        assert_eq!(put(&mut block, &cidr, &owner, &rules), Some("10.65.0.3".parse().unwrap()));
        assert_eq!(put(&mut block, &cidr, &owner, &rules), None);
    }
}
