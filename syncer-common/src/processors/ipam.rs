//! IPAM blocks, reduced to who owns them and which addresses others borrowed; affinities.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proto::model as v1;

use crate::apis::FieldError;
use crate::apis::ipam::{Block, read_affinity, read_block};
use crate::model::{Key, Update, Value};
use crate::validate;

const HOST_AFFINITY: &str = "host:";

pub(super) fn convert(key: &Key, value: &[u8]) -> Result<Update, FieldError> {
    match key {
        Key::Block { cidr } => {
            let block = read_block(value)?;
            if block.deleted {
                // Marked before it is removed; nothing is allocated from it any more.
                return Ok(Update::delete(key.clone()));
            }
            if let Some(error) = validate::block(&block).into_iter().next() {
                return Err(error);
            }
            Ok(Update::set(key.clone(), Value::IpamBlock(project(cidr, &block)?)))
        }
        _ => {
            let affinity = read_affinity(value)?;
            if let Some(error) = validate::affinity(&affinity).into_iter().next() {
                return Err(error);
            }
            let affinity = v1::BlockAffinity { state: affinity.state, deleted: affinity.deleted };
            Ok(Update::set(key.clone(), Value::BlockAffinity(affinity)))
        }
    }
}

fn project(cidr: &IpNet, block: &Block) -> Result<v1::IpamBlock, FieldError> {
    if block.cidr.parse::<IpNet>().map(|own| own.trunc()) != Ok(*cidr) {
        return Err(FieldError::new("cidr", format!("{:?} is not the block's own {cidr}", block.cidr)));
    }
    let affinity = match (&block.affinity, &block.host_affinity) {
        (Some(affinity), _) => affinity.clone(),
        (None, Some(host)) if !host.is_empty() => format!("{HOST_AFFINITY}{host}"),
        _ => String::new(),
    };
    let owner = affinity.strip_prefix(HOST_AFFINITY);
    let mut borrowed = BTreeMap::new();
    for (ordinal, allocation) in block.allocations.iter().enumerate() {
        let Some(index) = allocation else { continue };
        let Some(attribute) = block.attributes.get(*index) else { continue };
        // An address that cools down after its release has no node any more.
        let node = attribute.secondary.get("node").filter(|node| !node.is_empty());
        let (Some(node), None) = (node, &attribute.released_at) else { continue };
        if owner == Some(node.as_str()) {
            continue;
        }
        let address = nth_address(cidr, ordinal).ok_or_else(|| {
            FieldError::new(format!("allocations[{ordinal}]"), format!("lies outside {cidr}"))
        })?;
        borrowed.insert(address, node.clone());
    }
    Ok(v1::IpamBlock { cidr: cidr.to_string(), affinity, borrowed })
}

fn nth_address(cidr: &IpNet, ordinal: usize) -> Option<String> {
    let size = cidr.max_prefix_len() - cidr.prefix_len();
    if size < usize::BITS as u8 && ordinal >= 1 << size {
        return None;
    }
    match cidr {
        IpNet::V4(net) => {
            let first = u32::from(net.network());
            Some(std::net::Ipv4Addr::from(first.checked_add(u32::try_from(ordinal).ok()?)?).to_string())
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network());
            Some(std::net::Ipv6Addr::from(first.checked_add(ordinal as u128)?).to_string())
        }
    }
}
