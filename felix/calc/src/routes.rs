//! Routes between nodes: from pools, IPAM blocks and nodes to how each block or address is reached from here.
//!
//! Several objects may claim one destination: a local workload has it, another node borrowed it from a block,
//! a block is exactly it, a node's tunnel ends there. The first of these, in this order, decides. Every input
//! marks the destinations that may depend on it; each is worked out anew at the flush, from the state alone.
//! A destination without a pool, or whose node has no address or no tunnel end, has no route: it is not
//! guessed at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha1::{Digest as _, Sha1};
use syncer_common::model::{WorkloadEndpointKey, values};

use crate::addresses::{ip, net, nets};
use crate::delta::DeltaMap;
use crate::hosts::host_of;
use crate::mac;
use crate::output::{Encapsulation, Family, Hop, Output, OwnNode, Route, Vtep};

const HOST_AFFINITY: &str = "host:";

pub(crate) struct Routes {
    node: String,
    pools: BTreeMap<IpNet, Pool>,
    blocks: BTreeMap<IpNet, values::IpamBlock>,
    nodes: BTreeMap<String, Node>,
    /// Addresses of this node's workloads.
    workloads: BTreeMap<WorkloadEndpointKey, Vec<IpNet>>,
    claims: BTreeMap<IpNet, BTreeSet<Claim>>,
    by_node: BTreeMap<String, BTreeSet<IpNet>>,
    dirty: BTreeSet<IpNet>,
    routes: DeltaMap<IpNet, Route>,
    vteps: DeltaMap<(String, Family), Vtep>,
    sent: OwnNode,
}

#[derive(Clone, Copy, PartialEq)]
struct Pool {
    encapsulation: Encapsulation,
    /// Only nodes of other subnets are reached through the tunnel.
    cross_subnet: bool,
}

/// In order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Workload(WorkloadEndpointKey),
    Borrowed(String),
    Block(String),
    Tunnel(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    own: OwnNode,
    /// The subnets of its addresses, where they are known.
    subnets: Vec<IpNet>,
}

impl Node {
    fn new(name: &str, node: &values::Node) -> Node {
        let host = host_of(node);
        let bgp = node.bgp.clone().unwrap_or_default();
        let vtep = |node_ip: Option<IpAddr>, tunnel: &str, mac: &str, suffix: &str| {
            let (node_ip, tunnel_ip) = (node_ip?, ip(tunnel)?);
            let mac = mac::parse(mac).unwrap_or_else(|| vtep_mac(name, suffix));
            (node_ip.is_ipv4() == tunnel_ip.is_ipv4()).then_some(Vtep { node_ip, tunnel_ip, mac })
        };
        let (v4, v6) = (host.ipv4.map(IpAddr::V4), host.ipv6.map(IpAddr::V6));
        let subnets = [&bgp.ipv4_address, &bgp.ipv6_address].into_iter().filter_map(|text| net(text));
        Node {
            own: OwnNode {
                ipv4: host.ipv4,
                ipv6: host.ipv6,
                vxlan_v4: vtep(v4, &node.ipv4_vxlan_tunnel_addr, &node.vxlan_tunnel_mac, ""),
                vxlan_v6: vtep(v6, &node.ipv6_vxlan_tunnel_addr, &node.vxlan_tunnel_mac_v6, "-v6"),
                ipip: bgp.ipv4_ipip_tunnel_addr.parse().ok(),
            },
            subnets: subnets.filter(|net| net.prefix_len() < net.max_prefix_len()).collect(),
        }
    }

    fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.own.ipv4.map(IpAddr::V4),
            Family::V6 => self.own.ipv6.map(IpAddr::V6),
        }
    }

    fn vtep(&self, family: Family) -> Option<Vtep> {
        match family {
            Family::V4 => self.own.vxlan_v4,
            Family::V6 => self.own.vxlan_v6,
        }
    }

    fn tunnel_ips(&self) -> impl Iterator<Item = IpNet> {
        Family::ALL.into_iter().filter_map(|family| self.vtep(family)).map(|vtep| vtep.tunnel_ip.into())
    }
}

impl Routes {
    pub fn new(node: String) -> Routes {
        Routes {
            node,
            pools: BTreeMap::new(),
            blocks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            workloads: BTreeMap::new(),
            claims: BTreeMap::new(),
            by_node: BTreeMap::new(),
            dirty: BTreeSet::new(),
            routes: DeltaMap::default(),
            vteps: DeltaMap::default(),
            sent: OwnNode::default(),
        }
    }

    // === input ===

    pub fn set_pool(&mut self, cidr: IpNet, pool: Option<&values::IpPool>) {
        let pool = pool.map(|pool| {
            let mode = |mode: &str| (!["", "never"].contains(&mode)).then(|| mode == "cross-subnet");
            let v4 = cidr.addr().is_ipv4();
            match (mode(&pool.vxlan_mode), mode(&pool.ipip_mode).filter(|_| v4)) {
                (Some(cross_subnet), _) => Pool { encapsulation: Encapsulation::Vxlan, cross_subnet },
                (None, Some(cross_subnet)) => Pool { encapsulation: Encapsulation::IpIp, cross_subnet },
                (None, None) => Pool { encapsulation: Encapsulation::None, cross_subnet: false },
            }
        });
        let before = match pool {
            Some(pool) => self.pools.insert(cidr, pool),
            None => self.pools.remove(&cidr),
        };
        if before != pool {
            self.mark_within(cidr);
        }
    }

    pub fn set_block(&mut self, cidr: IpNet, block: Option<values::IpamBlock>) {
        let claims = |block: &values::IpamBlock| {
            let owner = block.affinity.strip_prefix(HOST_AFFINITY).map(str::to_owned);
            let borrowed = block
                .borrowed
                .iter()
                .filter_map(|(address, node)| Some((net(address)?, Claim::Borrowed(node.clone()))));
            borrowed.chain(owner.map(|owner| (cidr, Claim::Block(owner)))).collect::<Vec<_>>()
        };
        let new = block.as_ref().map(claims).unwrap_or_default();
        let before = match block {
            Some(block) => self.blocks.insert(cidr, block),
            None => self.blocks.remove(&cidr),
        };
        self.change_claims(before.as_ref().map(claims).unwrap_or_default(), new);
        // Tunnel addresses in it may be its owner's, or not.
        self.mark_within(cidr);
    }

    pub fn set_node(&mut self, name: &str, node: Option<&values::Node>) {
        let node = node.map(|node| Node::new(name, node));
        if self.nodes.get(name) == node.as_ref() {
            return;
        }
        let own = name == self.node;
        for family in Family::ALL {
            let vtep = node.as_ref().filter(|_| !own).and_then(|node| node.vtep(family));
            self.vteps.set((name.to_owned(), family), vtep);
        }
        let claims = |node: &Node| {
            node.tunnel_ips().map(|ip| (ip, Claim::Tunnel(name.to_owned()))).collect::<Vec<_>>()
        };
        let new = node.as_ref().map(claims).unwrap_or_default();
        let before = match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
        self.change_claims(before.as_ref().map(claims).unwrap_or_default(), new);
        if own {
            // Which nodes are in the own subnet decides about all.
            self.dirty.extend(self.claims.keys());
        } else if let Some(claimed) = self.by_node.get(name) {
            self.dirty.extend(claimed);
        }
    }

    pub fn set_workload(&mut self, key: &WorkloadEndpointKey, endpoint: Option<&values::WorkloadEndpoint>) {
        let addresses = endpoint.map(|endpoint| {
            [nets(key, "ipv4_nets", &endpoint.ipv4_nets), nets(key, "ipv6_nets", &endpoint.ipv6_nets)]
                .concat()
        });
        if self.workloads.get(key) == addresses.as_ref() {
            return;
        }
        let claims = |addresses: Vec<IpNet>| {
            addresses.into_iter().map(|dst| (dst, Claim::Workload(key.clone()))).collect::<Vec<_>>()
        };
        let new = addresses.clone().map(claims).unwrap_or_default();
        let before = match addresses {
            Some(addresses) => self.workloads.insert(key.clone(), addresses),
            None => self.workloads.remove(key),
        };
        self.change_claims(before.map(claims).unwrap_or_default(), new);
    }

    fn change_claims(&mut self, old: Vec<(IpNet, Claim)>, new: Vec<(IpNet, Claim)>) {
        let owner = |claim: &Claim| match claim {
            Claim::Workload(_) => None,
            Claim::Borrowed(node) | Claim::Block(node) | Claim::Tunnel(node) => Some(node.clone()),
        };
        for (dst, claim) in old.iter().filter(|claim| !new.contains(claim)) {
            self.dirty.insert(*dst);
            let Some(claims) = self.claims.get_mut(dst) else { continue };
            claims.remove(claim);
            let node = owner(claim);
            if !claims.iter().any(|other| owner(other) == node)
                && let Some(node) = node
                && let Some(claimed) = self.by_node.get_mut(&node)
            {
                claimed.remove(dst);
                if claimed.is_empty() {
                    self.by_node.remove(&node);
                }
            }
            if claims.is_empty() {
                self.claims.remove(dst);
            }
        }
        for (dst, claim) in new {
            if let Some(node) = owner(&claim) {
                self.by_node.entry(node).or_default().insert(dst);
            }
            self.claims.entry(dst).or_default().insert(claim);
            self.dirty.insert(dst);
        }
    }

    fn mark_within(&mut self, cidr: IpNet) {
        let ends = [(cidr.network(), 0), (cidr.broadcast(), cidr.max_prefix_len())];
        let [Ok(first), Ok(last)] = ends.map(|(address, length)| IpNet::new(address, length)) else { return };
        self.dirty.extend(self.claims.range(first..=last).map(|(dst, _)| *dst));
    }

    // === output ===

    pub fn flush(&mut self, out: &mut Vec<Output>) {
        for dst in std::mem::take(&mut self.dirty) {
            let route = self.resolve(dst);
            self.routes.set(dst, route);
        }
        let own = self.nodes.get(&self.node).map(|node| node.own.clone()).unwrap_or_default();
        if own != self.sent {
            self.sent = own.clone();
            out.push(Output::OwnNode(own));
        }
        let (mut updates, mut vtep_updates) = (Vec::new(), Vec::new());
        for (dst, route) in self.routes.take() {
            match route {
                Some(route) => updates.push(Output::RouteUpdate { dst, route }),
                None => out.push(Output::RouteRemove { dst }),
            }
        }
        for ((node, family), vtep) in self.vteps.take() {
            match vtep {
                Some(vtep) => vtep_updates.push(Output::VtepUpdate { node, family, vtep }),
                None => out.push(Output::VtepRemove { node, family }),
            }
        }
        out.extend(vtep_updates);
        out.extend(updates);
    }

    fn resolve(&self, dst: IpNet) -> Option<Route> {
        let claim = self.claims.get(&dst)?.first()?;
        let (_, pool) = covering(&self.pools, dst)?;
        let encapsulation = pool.encapsulation;
        let node = match claim {
            Claim::Workload(_) => return None,
            Claim::Borrowed(node) | Claim::Block(node) | Claim::Tunnel(node) => node,
        };
        if *node == self.node {
            let whole = matches!(claim, Claim::Block(_)) && dst.prefix_len() < dst.max_prefix_len();
            return whole.then_some(Route { encapsulation, hop: Hop::Blackhole });
        }
        if let Claim::Tunnel(_) = claim {
            // The route of a node's block leads to the node's end of the tunnel, too.
            let block = covering(&self.blocks, dst).map(|(_, block)| block.affinity.as_str());
            if encapsulation != Encapsulation::Vxlan
                || block.and_then(|affinity| affinity.strip_prefix(HOST_AFFINITY)) == Some(node)
            {
                return None;
            }
        }
        let family = Family::of(dst.addr());
        let there = self.nodes.get(node)?;
        let node_ip = there.address(family)?;
        let near = self.is_near(node_ip);
        let hop = match encapsulation {
            // Beyond the own subnet the fabric knows the way: the route to the node is the route to its block.
            Encapsulation::None => near.unwrap_or(true).then_some(Hop::Node(node_ip))?,
            _ if pool.cross_subnet && near == Some(true) => Hop::Node(node_ip),
            Encapsulation::Vxlan => Hop::Tunnel(there.vtep(family)?.tunnel_ip),
            Encapsulation::IpIp => Hop::Tunnel(node_ip),
        };
        Some(Route { encapsulation, hop })
    }

    /// Whether an address is in a subnet of this node; unknown when no subnet of the family is known.
    fn is_near(&self, address: IpAddr) -> Option<bool> {
        let here = self.nodes.get(&self.node)?;
        let mut subnets =
            here.subnets.iter().filter(|net| net.addr().is_ipv4() == address.is_ipv4()).peekable();
        subnets.peek()?;
        Some(subnets.any(|net| net.contains(&address)))
    }
}

/// The smallest of the networks that holds another.
fn covering<V>(map: &BTreeMap<IpNet, V>, dst: IpNet) -> Option<(IpNet, &V)> {
    let mut at = Some(dst);
    while let Some(net) = at {
        if let Some(value) = map.get(&net) {
            return Some((net, value));
        }
        at = net.supernet();
    }
    None
}

/// The MAC address of a node's tunnel end where none is given: the same on every node, without talking.
fn vtep_mac(node: &str, suffix: &str) -> [u8; 6] {
    let digest = Sha1::digest(format!("{node}{suffix}"));
    let mut mac = [0x66; 6];
    mac[1..].copy_from_slice(&digest[..5]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_macs_are_made_of_the_nodes_name() {
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        // `printf n1 | sha1sum`, `printf n1-v6 | sha1sum`
        assert_eq!(text(vtep_mac("n1", "")), "66:40:b3:ea:b6:3f");
        assert_eq!(text(vtep_mac("n1", "-v6")), "66:46:32:55:72:28");
    }
}
