//! Changes in the kernel over rtnetlink, in the network namespace where it was opened, and what its messages say.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::{Neighbour, Route, RouteKind};
use crate::ifacemonitor::{Link, NeighbourChange};

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("the route socket could not be opened: {0}")]
    Open(#[source] std::io::Error),
    #[error("{what}: {source}")]
    Listing { what: &'static str, source: std::io::Error },
    #[error("{what}: {source}")]
    Request { what: String, source: rtnetlink::Error },
}

impl NetlinkError {
    /// What we wanted gone is gone already, or so is the interface that it belonged to.
    pub fn is_absent(&self) -> bool {
        const ABSENT: [i32; 4] =
            [2 /* ENOENT */, 3 /* ESRCH */, 6 /* ENXIO */, 19 /* ENODEV */];
        match self {
            NetlinkError::Request { source: rtnetlink::Error::NetlinkError(error), .. } => {
                ABSENT.contains(&-error.raw_code())
            }
            _ => false,
        }
    }

    /// The kernel does not know this kind of device.
    pub fn is_unsupported(&self) -> bool {
        const EOPNOTSUPP: i32 = 95;
        match self {
            NetlinkError::Request { source: rtnetlink::Error::NetlinkError(error), .. } => {
                -error.raw_code() == EOPNOTSUPP
            }
            _ => false,
        }
    }

    /// The interface is down: nothing to do until it comes up.
    pub fn is_down(&self) -> bool {
        const DOWN: [i32; 2] = [100 /* ENETDOWN */, 101 /* ENETUNREACH */];
        match self {
            NetlinkError::Request { source: rtnetlink::Error::NetlinkError(error), .. } => {
                DOWN.contains(&-error.raw_code())
            }
            _ => false,
        }
    }
}

pub struct Netlink {
    pub(crate) handle: Handle,
    /// Moves requests and answers; ends with this.
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    pub fn open() -> Result<Netlink, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        let connection = tokio::spawn(connection);
        Ok(Netlink { handle, connection })
    }

    /// Adds, or takes the place of the one with the same destination and metric.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(route_message(route)).replace();
        request.execute().await.map_err(failed(format!("adding route {}", route.dst)))
    }

    pub async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(route_message(route));
        request.execute().await.map_err(failed(format!("removing route {}", route.dst)))
    }

    pub async fn replace_neighbour(&self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(neighbour.interface, neighbour.address);
        let request = request.link_layer_address(&neighbour.mac).replace();
        request.execute().await.map_err(failed(format!("adding neighbour {}", neighbour.address)))
    }

    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = match neighbour.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = neighbour.interface;
        message.attributes.push(NeighbourAttribute::Destination(match neighbour.address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
        let request = self.handle.neighbours().del(message);
        request.execute().await.map_err(failed(format!("removing neighbour {}", neighbour.address)))
    }
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Request { what: what.into(), source }
}

pub(crate) fn link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Some(Link { index: message.header.index, name, up, mtu: mtu.unwrap_or_default() })
}

/// A unicast route or blackhole of the main table; nothing for all others.
pub(crate) fn route(message: &RouteMessage) -> Option<Route> {
    let v4 = match message.header.address_family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let any: IpAddr =
        if v4 { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let mut address = any;
    let (mut interface, mut metric, mut gateway, mut source) = (None, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = (*v6).into(),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some((*ip).into()),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some((*ip).into()),
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        _ => return None,
    };
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    // IPv6 lists its blackholes on the loopback.
    let interface = interface.filter(|_| kind == RouteKind::Unicast);
    Some(Route {
        dst: IpNet::new(address, message.header.destination_prefix_length).ok()?,
        kind,
        interface,
        metric,
        protocol: message.header.protocol.into(),
        link_scope: message.header.scope == RouteScope::Link,
        gateway,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        source,
    })
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
    };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    header.protocol = RouteProtocol::from(route.protocol);
    header.destination_prefix_length = route.dst.prefix_len();
    let address = match route.dst {
        IpNet::V4(net) => {
            header.address_family = AddressFamily::Inet;
            header.scope = if route.link_scope { RouteScope::Link } else { RouteScope::Universe };
            RouteAddress::Inet(net.addr())
        }
        IpNet::V6(net) => {
            // The kernel knows no scopes of IPv6 routes.
            header.address_family = AddressFamily::Inet6;
            header.scope = RouteScope::Universe;
            RouteAddress::Inet6(net.addr())
        }
    };
    message.attributes.push(RouteAttribute::Destination(address));
    message.attributes.extend(route.interface.map(RouteAttribute::Oif));
    message.attributes.extend(route.gateway.map(|gateway| {
        RouteAttribute::Gateway(match gateway {
            IpAddr::V4(ip) => RouteAddress::Inet(ip),
            IpAddr::V6(ip) => RouteAddress::Inet6(ip),
        })
    }));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message
}

pub(crate) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = address_of(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some(Neighbour { interface: message.header.ifindex, address: address?, mac: mac? })
}

/// In forwarding entries the family of the address is to be told from its length.
pub(crate) fn address_of(destination: &NeighbourAddress) -> Option<IpAddr> {
    match destination {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

/// An event about a neighbour or forwarding entry.
pub(crate) fn neighbour_change(message: &NeighbourMessage, there: bool) -> NeighbourChange {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = address_of(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    let (interface, family) = (message.header.ifindex, message.header.family);
    NeighbourChange { interface, family, address, mac, permanent, there }
}
