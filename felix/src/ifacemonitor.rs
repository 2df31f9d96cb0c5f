//! Events about interfaces, addresses and routes from the kernel.
//!
//! The socket's buffer is the bound: when it overflows (ENOBUFS) the kernel drops events and says so once, and goes
//! on dropping until the buffer is empty. What is still in it is older than any listing made now, so the socket is
//! given up for a new one; then the reader gets [`Event::Lost`], after which it has to list everything again.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use crate::routetable::{Route, listing, netlink};

/// Multicast groups, as bits: links, neighbours, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
const GROUPS: u32 = (1 << 0) | (1 << 2) | (1 << 4) | (1 << 8) | (1 << 6) | (1 << 10);
const BUFFER_BYTES: u32 = 4 << 20;
const ENOBUFS: i32 = 105;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Up and with a carrier.
    pub up: bool,
    pub mtu: u32,
}

/// A neighbour or, of family bridge, a forwarding entry as an event tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourChange {
    pub interface: u32,
    pub family: AddressFamily,
    pub address: Option<IpAddr>,
    pub mac: Option<[u8; 6]>,
    pub permanent: bool,
    pub there: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Link(Link),
    LinkGone {
        index: u32,
    },
    Addresses,
    RouteAdded(Route),
    RouteGone(Route),
    Neighbour(NeighbourChange),
    /// Events were dropped.
    Lost,
}

pub struct Monitor {
    socket: TokioSocket,
    overrun: bool,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace. List the state after this, never before.
    pub fn open() -> io::Result<Monitor> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        if let Err(error) = socket.socket_ref().set_rx_buf_sz(BUFFER_BYTES) {
            tracing::debug!(%error, "the event socket keeps its default buffer");
        }
        Ok(Monitor { socket, overrun: false })
    }

    /// The next events; may be empty. Safe to cancel.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        if !self.overrun {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) => return Ok(events(&bytes)),
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => self.overrun = true,
                Err(error) => return Err(error),
            }
        }
        *self = Monitor::open()?;
        Ok(vec![Event::Lost])
    }
}

fn events(datagram: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    for message in listing::messages(datagram) {
        match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(inner)) => events.extend(event(inner)),
            Ok(_) => {}
            Err(_) => events.push(Event::Lost),
        }
    }
    events
}

fn event(message: RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => netlink::link(&message).map(Event::Link),
        RouteNetlinkMessage::DelLink(message) => Some(Event::LinkGone { index: message.header.index }),
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(Event::Addresses),
        RouteNetlinkMessage::NewRoute(message) => netlink::route(&message).map(Event::RouteAdded),
        RouteNetlinkMessage::DelRoute(message) => netlink::route(&message).map(Event::RouteGone),
        RouteNetlinkMessage::NewNeighbour(message) => {
            Some(Event::Neighbour(netlink::neighbour_change(&message, true)))
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            Some(Event::Neighbour(netlink::neighbour_change(&message, false)))
        }
        _ => None,
    }
}

/// Interfaces as last heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    links: BTreeMap<u32, Link>,
}

impl Interfaces {
    pub fn replace_all(&mut self, links: Vec<Link>) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
    }

    /// Returns whether anything changed.
    pub fn set(&mut self, link: Link) -> bool {
        if self.links.get(&link.index) == Some(&link) {
            return false;
        }
        self.links.insert(link.index, link);
        true
    }

    pub fn remove(&mut self, index: u32) -> Option<Link> {
        self.links.remove(&index)
    }

    pub fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }
}

/// Addresses of the node itself: those of all interfaces but workloads' and excluded ones.
pub fn host_addresses<'a>(
    interfaces: &'a Interfaces,
    addresses: &'a [(u32, IpAddr)],
    is_foreign: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = IpAddr> + 'a {
    addresses
        .iter()
        .filter(move |(index, _)| interfaces.by_index(*index).is_some_and(|link| !is_foreign(&link.name)))
        .map(|(_, address)| *address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_workload_interfaces_are_not_the_hosts() {
        let mut interfaces = Interfaces::default();
        for (index, name) in [(1, "lo"), (2, "eth0"), (3, "cali1")] {
            assert!(interfaces.set(Link { index, name: name.into(), up: true, mtu: 1500 }));
        }
        assert!(!interfaces.set(Link { index: 1, name: "lo".into(), up: true, mtu: 1500 }));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = [
            (1, address("127.0.0.1")),
            (2, address("10.0.0.1")),
            (3, address("169.254.1.1")),
            (9, address("1.1.1.1")),
        ];
        let host: Vec<_> = host_addresses(&interfaces, &all, |name| name.starts_with("cali")).collect();
        assert_eq!(host, [address("127.0.0.1"), address("10.0.0.1")]);
    }

    #[test]
    fn undecodable_events_count_as_lost() {
        assert_eq!(events(&[1, 2, 3]), [Event::Lost]);
        assert_eq!(events(&[]), []);
    }
}
