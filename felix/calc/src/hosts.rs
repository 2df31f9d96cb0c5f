//! Addresses of nodes, from their Node resources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use syncer_common::model::values;

use crate::addresses::ip;
use crate::output::Host;

/// Where an address of a node is looked for, first to last.
const ADDRESS_TYPES: [&str; 2] = ["InternalIP", "ExternalIP"];

/// Per family the BGP address, else an internal, else an external one.
pub(crate) fn host_of(node: &values::Node) -> Host {
    let bgp = node.bgp.as_ref();
    let fallbacks = ADDRESS_TYPES.iter().flat_map(|of_type| {
        node.addresses
            .iter()
            .filter(move |address| address.r#type == *of_type)
            .filter_map(|address| ip(&address.address))
    });
    let candidates = |of_family: Option<&str>| of_family.and_then(ip).into_iter().chain(fallbacks.clone());
    Host {
        ipv4: candidates(bgp.map(|bgp| bgp.ipv4_address.as_str())).find_map(as_ipv4),
        ipv6: candidates(bgp.map(|bgp| bgp.ipv6_address.as_str())).find_map(as_ipv6),
        labels: node.labels.clone(),
    }
}

fn as_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn as_ipv6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bgp_address_beats_internal_beats_external() {
        let address =
            |text: &str, of_type: &str| values::NodeAddress { address: text.into(), r#type: of_type.into() };
        let mut node = values::Node {
            bgp: Some(values::NodeBgp { ipv4_address: "172.30.0.21/16".into(), ..Default::default() }),
            addresses: vec![
                address("192.0.2.1", "ExternalIP"),
                address("fd00::2", "InternalIP"),
                address("10.0.0.1", "InternalIP"),
            ],
            ..Default::default()
        };
        let host = host_of(&node);
        assert_eq!((host.ipv4, host.ipv6), ("172.30.0.21".parse().ok(), "fd00::2".parse().ok()));
        node.bgp = None;
        assert_eq!(host_of(&node).ipv4, "10.0.0.1".parse().ok());
        node.addresses.truncate(1);
        assert_eq!(host_of(&node).ipv4, "192.0.2.1".parse().ok());
    }
}
