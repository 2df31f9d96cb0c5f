//! The sessions of a node, typed, and the nodes that they are made from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use syncer_common::selector::Selector;

use super::Family;

/// Where a peering comes from; part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    Mesh,
    Global,
    Node,
    LocalWorkload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    Auto,
    Own,
    Keep,
}

/// One BGP session to configure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub origin: Origin,
    pub address: IpAddr,
    /// The neighbour's port; 179 when absent.
    pub port: Option<u16>,
    pub remote_as: u32,
    /// What this node calls itself here, where that is not its own AS number.
    pub local_as: Option<u32>,
    /// Remote and local AS (as this session knows it) are equal.
    pub same_as: bool,
    /// The local end of the connection; the kernel chooses when absent.
    pub source: Option<IpAddr>,
    pub ttl_security: Option<u32>,
    /// Never connect, wait for the other side: Calico's rule.
    pub passive: bool,
    /// The other node has the mirror image of this peering from the same object, so one side may wait
    /// even where Calico lets both connect.
    pub mirrored: bool,
    pub restart_seconds: Option<u64>,
    pub keepalive_seconds: Option<u64>,
    /// The peer is a client of this reflector.
    pub reflector_client: bool,
    pub next_hop: NextHop,
    pub allowed_own_as: Option<u32>,
    /// The gateway that leads to the peer.
    pub reachable_by: Option<IpAddr>,
    pub password: Option<Password>,
    /// Names of the filters that its routes pass, in this order.
    pub filters: Vec<String>,
    /// The object that asked for it, for people.
    pub because: String,
}

/// The password of a session. No log, error or debug output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The longest key of a TCP MD5 signature.
    const MAX_BYTES: usize = 80;

    /// Refuses what BIRD's files cannot express: their strings know no escapes.
    pub fn new(text: &str) -> Result<Password, &'static str> {
        if text.is_empty() {
            Err("is empty")
        } else if text.len() > Self::MAX_BYTES {
            Err("is longer than 80 bytes, more than a TCP MD5 key can have")
        } else if text.contains(['\n', '\r']) {
            Err("contains a line break (is it at the end of the file that the Secret was made from?)")
        } else if text.contains(['"', '\0']) {
            Err("contains a double quote or a NUL, which BIRD's configuration cannot express")
        } else {
            Ok(Password(text.to_owned()))
        }
    }

    /// For the configuration file, and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Peer {
    /// The protocol's name: what operators and `calicoctl node status` look for.
    pub fn name(&self) -> String {
        let origin = match self.origin {
            Origin::Mesh => "Mesh",
            Origin::Global => "Global",
            Origin::Node => "Node",
            Origin::LocalWorkload => "Local_Workload",
        };
        let address = self.address.to_string().replace(['.', ':'], "_");
        match (self.origin, self.port) {
            (Origin::Global | Origin::Node, Some(port)) => format!("{origin}_{address}_port_{port}"),
            _ => format!("{origin}_{address}"),
        }
    }
}

/// A node with its settings parsed and defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct NodeView<'a> {
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
    /// The networks of the addresses.
    pub subnets: [Option<IpNet>; 2],
    pub as_number: u32,
    pub listen_port: Option<u16>,
    pub cluster_id: Option<Ipv4Addr>,
}

impl<'a> NodeView<'a> {
    pub fn nameless(name: &'a str, as_number: u32) -> NodeView<'a> {
        NodeView {
            name,
            labels: None,
            v4: None,
            v6: None,
            subnets: [None, None],
            as_number,
            listen_port: None,
            cluster_id: None,
        }
    }

    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.into_iter().chain(self.v6)
    }

    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }

    pub fn selected(&self, selector: &Selector) -> bool {
        self.labels.is_some_and(|labels| selector.matches(labels))
    }
}

/// A session over several hops cannot be had with a link-local address: BIRD refuses the whole file.
pub(super) fn can_be_peer(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown_and_one_that_bird_cannot_read_is_refused() {
        assert_eq!(format!("{:?}", Password::new("hunter2").unwrap()), "Password(…)");
        for bad in ["", "two\nlines", "a\"b", &"x".repeat(81)] {
            let why = Password::new(bad).unwrap_err();
            assert!(bad.is_empty() || !why.contains(bad), "{why}");
        }
    }
}
