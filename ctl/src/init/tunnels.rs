//! The addresses of the node's own ends of tunnels: one for each kind of tunnel that a pool for this node uses.

use anyhow::{Result, anyhow};
use serde_json::Value;
use syncer_common::apis::Resource;
use syncer_common::apis::network::{IpPoolSpec, IpReservationSpec, IpamConfigSpec};
use syncer_common::backend::Datastore;
use syncer_common::selector::Selector;

use super::allocate::{self, Owner, Pool, Rules};
use super::detect::Family;
use super::node::{set, unset};
use super::pools;
use crate::{get, node};

/// A kind of tunnel, and where the Node object has its address.
struct Tunnel {
    what: &'static str,
    family: Family,
    /// The mode in the pool's spec.
    mode: &'static str,
    group: &'static str,
    field: &'static str,
    /// Of the handle's name and of the allocation.
    handle: &'static str,
    use_: &'static str,
}

const TUNNELS: [Tunnel; 3] = [
    Tunnel {
        what: "IP-in-IP",
        family: Family::V4,
        mode: "ipipMode",
        group: "bgp",
        field: "ipv4IPIPTunnelAddr",
        handle: "ipip-tunnel-addr-",
        use_: "ipipTunnelAddress",
    },
    Tunnel {
        what: "VXLAN",
        family: Family::V4,
        mode: "vxlanMode",
        group: "",
        field: "ipv4VXLANTunnelAddr",
        handle: "vxlan-tunnel-addr-",
        use_: "vxlanTunnelAddress",
    },
    Tunnel {
        what: "VXLAN over IPv6",
        family: Family::V6,
        mode: "vxlanMode",
        group: "",
        field: "ipv6VXLANTunnelAddr",
        handle: "vxlan-v6-tunnel-addr-",
        use_: "vxlanV6TunnelAddress",
    },
];

/// Brings the tunnel addresses in the Node's spec, and their allocations, to what the pools need. Returns what was
/// done, for the operator.
pub async fn settle(store: &dyn Datastore, node: &mut Resource) -> Result<Vec<String>> {
    let all = get::list_stored(store, get::kind("ippool")?).await?;
    let all: Vec<Resource> = all.into_iter().map(|(_, pool)| pool).collect();
    let rules = rules(store).await?;
    let mut notes = Vec::new();
    for tunnel in &TUNNELS {
        let usable = usable(tunnel, &all, node)?;
        let name = node.metadata.name.clone();
        let handle = format!("{}{name}", tunnel.handle);
        let fits = |address: &std::net::IpAddr| usable.iter().any(|pool| pool.cidr.contains(address));
        let held = allocate::held(store, &handle).await?;
        let pointer = match tunnel.group {
            "" => format!("/{}", tunnel.field),
            group => format!("/{group}/{}", tunnel.field),
        };
        let stored = node.spec.pointer(&pointer).and_then(Value::as_str).map(str::to_owned);
        let named = stored.as_deref().and_then(|text| text.parse().ok());
        // The one that the Node names, if it really has it.
        let kept = held.iter().find(|address| Some(**address) == named).or(held.first()).filter(|a| fits(a));
        let address = match kept {
            Some(address) => Some(*address),
            None => {
                if !held.is_empty() {
                    node::release_handle(store, &handle)
                        .await
                        .map_err(|error| anyhow!("{handle}: {error}"))?;
                }
                if usable.is_empty() {
                    None
                } else {
                    let owner = Owner { node: &name, handle: &handle, use_: tunnel.use_ };
                    Some(allocate::assign(store, &owner, &usable, &rules).await?)
                }
            }
        };
        match (address, named) {
            (Some(address), named) if named != Some(address) => {
                set(&mut node.spec, tunnel.group, tunnel.field, address.to_string().into());
                notes.push(format!("{} tunnel address {address}", tunnel.what));
            }
            (None, _) if stored.is_some() => {
                unset(&mut node.spec, tunnel.group, tunnel.field);
                notes.push(format!("no pool uses {} here: its tunnel address was given back", tunnel.what));
            }
            _ => {}
        }
    }
    Ok(notes)
}

/// The pools that give addresses to this tunnel on this node.
fn usable(tunnel: &Tunnel, all: &[Resource], node: &Resource) -> Result<Vec<Pool>> {
    let mut usable = Vec::new();
    for pool in all {
        let spec: IpPoolSpec = pool.typed_spec()?;
        let Some(cidr) = pools::cidr(pool) else { continue };
        let allowed = spec.allowed_uses.is_empty() || spec.allowed_uses.iter().any(|use_| use_ == "Tunnel");
        if spec.disabled || !allowed || !pools::tunnels(pool, tunnel.mode) {
            continue;
        }
        let selector = Selector::parse(&spec.node_selector)
            .map_err(|error| anyhow!("{}: spec.nodeSelector: {error}", pool.id()))?;
        if Family::of(cidr.addr()) != tunnel.family || !selector.matches(&node.metadata.labels) {
            continue;
        }
        let default = if tunnel.family == Family::V4 { 26 } else { 122 };
        let block_size = spec.block_size.and_then(|size| u8::try_from(size).ok()).unwrap_or(default);
        usable.push(Pool { cidr: cidr.trunc(), block_size });
    }
    Ok(usable)
}

async fn rules(store: &dyn Datastore) -> Result<Rules> {
    let mut rules = Rules { auto_allocate_blocks: true, ..Rules::default() };
    if let Some((_, config)) = get::list_stored(store, get::kind("ipamconfig")?).await?.into_iter().next() {
        let spec: IpamConfigSpec = config.typed_spec()?;
        rules.strict_affinity = spec.strict_affinity;
        rules.auto_allocate_blocks = spec.auto_allocate_blocks.unwrap_or(true);
        rules.max_blocks_per_host = spec.max_blocks_per_host as usize;
    }
    for (_, reservation) in get::list_stored(store, get::kind("ipreservation")?).await? {
        let spec: IpReservationSpec = reservation.typed_spec()?;
        let reserved = spec.reserved_cidrs.iter().filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok());
        rules.reserved.extend(reserved);
    }
    Ok(rules)
}
