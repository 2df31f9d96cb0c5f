//! What an entry of the datastore brings into IP sets: addresses, and named ports on them.
//!
//! Kept small, because there is one for every endpoint of the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use syncer_common::model::values;

use crate::addresses::{net, split_default};
use crate::ip_set::{IpSetSource, PortProtocol};

/// A member of an IP set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Member {
    Net(IpNet),
    Port(IpAddr, PortProtocol, u16),
}

/// As `ipset` writes members: a single address without its length.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Member::Net(net) => write!(f, "{net}"),
            Member::Port(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.name()),
        }
    }
}

/// An entry as the member calculation sees it.
pub(crate) struct Entry {
    pub contribution: Contribution,
    pub labels: BTreeMap<String, String>,
    /// Whose labels it inherits where it has none of its own.
    pub profiles: Vec<String>,
}

impl From<&values::WorkloadEndpoint> for Entry {
    fn from(endpoint: &values::WorkloadEndpoint) -> Self {
        let texts = endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets);
        Entry {
            contribution: Contribution::new(texts.filter_map(|text| net(text)), &endpoint.ports),
            labels: endpoint.labels.clone(),
            profiles: endpoint.profile_ids.clone(),
        }
    }
}

impl From<&values::HostEndpoint> for Entry {
    fn from(endpoint: &values::HostEndpoint) -> Self {
        let texts = endpoint.expected_ipv4_addrs.iter().chain(&endpoint.expected_ipv6_addrs);
        Entry {
            contribution: Contribution::new(texts.filter_map(|text| net(text)), &endpoint.ports),
            labels: endpoint.labels.clone(),
            profiles: endpoint.profile_ids.clone(),
        }
    }
}

impl From<&values::NetworkSet> for Entry {
    fn from(set: &values::NetworkSet) -> Self {
        let nets = set.nets.iter().filter_map(|text| net(text)).flat_map(split_default);
        Entry {
            contribution: Contribution::new(nets, &[]),
            labels: set.labels.clone(),
            profiles: set.profile_ids.clone(),
        }
    }
}

/// The endpoints of a slice. A port without a number means every port, which no set can hold.
impl From<&values::EndpointSlice> for Contribution {
    fn from(slice: &values::EndpointSlice) -> Self {
        let nets = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let ports = slice.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            let protocol = match &port.protocol {
                None => PortProtocol::Tcp,
                protocol => PortProtocol::of(protocol.as_ref()),
            };
            (protocol != PortProtocol::Any).then(|| (port.name.as_str().into(), protocol, number))
        });
        Contribution { nets: Nets::new(nets.filter_map(|text| net(text))), ports: ports.collect() }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contribution {
    nets: Nets,
    ports: Box<[(Box<str>, PortProtocol, u16)]>,
}

/// Nearly every endpoint has one address, which then needs no allocation.
#[derive(Debug, PartialEq, Eq)]
enum Nets {
    One(IpNet),
    Some(Box<[IpNet]>),
}

impl Default for Nets {
    fn default() -> Self {
        Nets::Some(Box::default())
    }
}

impl Nets {
    fn new(nets: impl Iterator<Item = IpNet>) -> Nets {
        let nets: Vec<IpNet> = nets.collect();
        match nets[..] {
            [net] => Nets::One(net),
            _ => Nets::Some(nets.into()),
        }
    }

    fn iter(&self) -> std::slice::Iter<'_, IpNet> {
        match self {
            Nets::One(net) => std::slice::from_ref(net).iter(),
            Nets::Some(nets) => nets.iter(),
        }
    }
}

impl Contribution {
    fn new(nets: impl Iterator<Item = IpNet>, ports: &[values::NamedPort]) -> Self {
        let ports = ports.iter().filter_map(|port| {
            let protocol = PortProtocol::of(port.protocol.as_ref());
            let number = u16::try_from(port.port).ok()?;
            // A set's member has a protocol; a port without one could match nothing.
            (protocol != PortProtocol::Any).then(|| (port.name.as_str().into(), protocol, number))
        });
        Contribution { nets: Nets::new(nets), ports: ports.collect() }
    }

    /// What this brings into a set filled by `source`. A member may come twice; it then counts twice, on
    /// adding and on removing alike.
    pub fn members<'a>(&'a self, source: &'a IpSetSource) -> impl Iterator<Item = Member> + 'a {
        let whole =
            matches!(source, IpSetSource::Selector(_) | IpSetSource::Service { with_ports: false, .. });
        let nets = self.nets.iter().filter(move |_| whole).map(|net| Member::Net(*net));
        let ports = self.ports.iter().filter(move |(name, protocol, _)| match source {
            IpSetSource::NamedPort { protocol: wanted, name: port, .. } => {
                **name == **port && wanted.covers(*protocol)
            }
            IpSetSource::Service { with_ports, .. } => *with_ports,
            IpSetSource::Selector(_) => false,
        });
        nets.chain(ports.flat_map(|(_, protocol, number)| {
            self.nets.iter().map(|net| Member::Port(net.addr(), *protocol, *number))
        }))
    }
}
