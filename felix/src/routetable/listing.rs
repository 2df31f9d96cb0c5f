//! Everything of one kind that the kernel holds, over a route socket of its own in the caller's network namespace.
//!
//! The crate rtnetlink, which makes the changes, queues a whole answer before the first of its messages is taken: a look
//! at 400 interfaces took 6 MB (`felix_memory`). Here one datagram, a few KB, is in memory at a time, and of each message
//! what is wanted stays. A listing that the kernel marks as interrupted by a change (`NLM_F_DUMP_INTR`,
//! linux/netlink.h) is repeated.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::netlink::{self, NetlinkError};
use super::{Neighbour, Route};
use crate::ifacemonitor::Link;
use crate::iptables::IpVersion;

/// Where changes keep coming, the last answer is taken: each change is an event, too, and leads to another look.
const ATTEMPTS: usize = 5;

pub async fn links() -> Result<Vec<Link>, NetlinkError> {
    all_links(netlink::link).await
}

/// What is wanted of each interface.
pub(crate) async fn all_links<T>(read: impl Fn(&LinkMessage) -> Option<T>) -> Result<Vec<T>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    listed("listing interfaces", request, |message| match message {
        RouteNetlinkMessage::NewLink(message) => read(message),
        _ => None,
    })
    .await
}

/// All addresses with their networks' lengths, with the interface they are on.
pub async fn interface_addresses() -> Result<Vec<(u32, IpNet)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    listed("listing addresses", request, |message| match message {
        RouteNetlinkMessage::NewAddress(message) => address(message),
        _ => None,
    })
    .await
}

/// Unicast routes and blackholes of the main table.
pub async fn routes(version: IpVersion) -> Result<Vec<Route>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(version);
    listed("listing routes", RouteNetlinkMessage::GetRoute(request), |message| match message {
        RouteNetlinkMessage::NewRoute(message) => netlink::route(message),
        _ => None,
    })
    .await
}

pub async fn neighbours(version: IpVersion) -> Result<Vec<Neighbour>, NetlinkError> {
    all_neighbours("listing neighbours", family(version), netlink::neighbour).await
}

/// Of family bridge: forwarding entries.
pub(crate) async fn all_neighbours<T>(
    what: &'static str,
    family: AddressFamily,
    read: impl Fn(&NeighbourMessage) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    listed(what, RouteNetlinkMessage::GetNeighbour(request), |message| match message {
        RouteNetlinkMessage::NewNeighbour(message) => read(message),
        _ => None,
    })
    .await
}

fn family(version: IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    // On a point-to-point link `Address` is the other end.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let net = IpNet::new(local.or(plain)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

async fn listed<T>(
    what: &'static str,
    request: RouteNetlinkMessage,
    read: impl Fn(&RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    let mut attempt = 1;
    loop {
        let answer = ask(&request, &read).await;
        let (found, interrupted) = answer.map_err(|source| NetlinkError::Listing { what, source })?;
        if !interrupted || attempt == ATTEMPTS {
            return Ok(found);
        }
        attempt += 1;
    }
}

/// What was found, and whether something changed meanwhile.
async fn ask<T>(
    request: &[u8],
    read: impl Fn(&RouteNetlinkMessage) -> Option<T>,
) -> io::Result<(Vec<T>, bool)> {
    let socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
    socket.send(request).await?;
    let (mut found, mut interrupted) = (Vec::new(), false);
    loop {
        let (datagram, _) = socket.recv_from_full().await?;
        for message in messages(&datagram) {
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    tracing::debug!(%error, "an answer of the kernel was not understood");
                    continue;
                }
            };
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => found.extend(read(&message)),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok((found, interrupted)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

type Decoded = Result<NetlinkMessage<RouteNetlinkMessage>, DecodeError>;

/// The messages of a datagram. One that cannot be decoded does not hide the others.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Decoded> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let length = match NetlinkBuffer::new_checked(bytes) {
            Ok(message) => (message.length() as usize).min(bytes.len()),
            Err(error) => {
                bytes = &[];
                return Some(Err(error));
            }
        };
        let message = NetlinkMessage::deserialize(&bytes[..length]);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decoded_does_not_hide_what_follows() {
        let link = |index| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let mut too_short = link(2)[..18].to_vec();
        too_short[0] = 18;
        too_short.extend([0, 0]);
        let datagram = [link(1), too_short, link(3), vec![1, 2, 3]].concat();
        let indices: Vec<Option<u32>> = messages(&datagram)
            .map(|message| match message.ok()?.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Some(link.header.index),
                _ => None,
            })
            .collect();
        assert_eq!(indices, [Some(1), None, Some(3), None]);
        assert_eq!(messages(&[]).count(), 0);
    }
}
