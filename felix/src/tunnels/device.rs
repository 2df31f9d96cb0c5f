//! Tunnel devices and forwarding entries over rtnetlink.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{LinkIpIp, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::Forwarding;
use crate::ifacemonitor::Link;
use crate::routetable::listing;
use crate::routetable::netlink::{Netlink, NetlinkError, address_of, failed, link};

/// A tunnel device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: &'static str,
    pub mtu: u32,
    /// Its only address.
    pub address: Option<IpAddr>,
    /// None: IP-in-IP.
    pub vxlan: Option<Vxlan>,
}

/// What cannot be changed: another value needs another device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    pub port: u16,
    pub local: Option<IpAddr>,
    pub parent: u32,
    pub mac: [u8; 6],
    /// MAC addresses are told, never learnt from packets.
    pub learning: bool,
}

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub link: Link,
    pub admin_up: bool,
    pub kind: Option<InfoKind>,
    pub vxlan: Option<Vxlan>,
}

/// Every interface, with what is special to tunnels.
pub async fn devices() -> Result<Vec<Found>, NetlinkError> {
    listing::all_links(found).await
}

/// Forwarding entries of all interfaces that were made, not learnt.
pub async fn forwarding_entries() -> Result<Vec<Forwarding>, NetlinkError> {
    listing::all_neighbours("listing forwarding entries", AddressFamily::Bridge, forwarding).await
}

impl Netlink {
    pub async fn add_device(&self, device: &Device) -> Result<(), NetlinkError> {
        let message = match &device.vxlan {
            Some(vxlan) => {
                let link = LinkVxlan::new(device.name, vxlan.vni)
                    .port(vxlan.port)
                    .dev(vxlan.parent)
                    .learning(vxlan.learning);
                let link = match vxlan.local {
                    Some(IpAddr::V4(local)) => link.local(local),
                    Some(IpAddr::V6(local)) => link.local6(local),
                    None => link,
                };
                link.address(vxlan.mac.to_vec()).mtu(device.mtu).up().build()
            }
            None => LinkMessageBuilder::<LinkIpIp>::new(device.name).mtu(device.mtu).up().build(),
        };
        let request = self.handle.link().add(message);
        request.execute().await.map_err(failed(format!("adding device {}", device.name)))
    }

    pub async fn set_device(&self, found: &Link, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(found.index).mtu(mtu).up().build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(failed(format!("setting up device {}", found.name)))
    }

    pub async fn delete_device(&self, found: &Link) -> Result<(), NetlinkError> {
        let request = self.handle.link().del(found.index);
        request.execute().await.map_err(failed(format!("removing device {}", found.name)))
    }

    pub async fn add_address(&self, interface: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let request = self.handle.address().add(interface, address, IpNet::from(address).prefix_len());
        request.execute().await.map_err(failed(format!("adding address {address}")))
    }

    pub async fn delete_address(&self, interface: u32, address: IpNet) -> Result<(), NetlinkError> {
        // The same message as for adding names the address.
        let mut add = self.handle.address().add(interface, address.addr(), address.prefix_len());
        let message = add.message_mut().clone();
        let request = self.handle.address().del(message);
        request.execute().await.map_err(failed(format!("removing address {address}")))
    }

    pub async fn replace_forwarding(&self, entry: &Forwarding) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add_bridge(entry.interface, &entry.mac);
        let request = request.destination(entry.node_ip).flags(NeighbourFlags::Own).replace();
        request.execute().await.map_err(failed(format!("adding forwarding entry to {}", entry.node_ip)))
    }

    pub async fn delete_forwarding(&self, entry: &Forwarding) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = entry.interface;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()),
            NeighbourAttribute::Destination(match entry.node_ip {
                IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
                IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
            }),
        ];
        let request = self.handle.neighbours().del(message);
        request.execute().await.map_err(failed(format!("removing forwarding entry to {}", entry.node_ip)))
    }
}

fn found(message: &LinkMessage) -> Option<Found> {
    let link = link(message)?;
    let admin_up = message.header.flags.contains(netlink_packet_route::link::LinkFlags::Up);
    let (mut kind, mut data, mut mac) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(of) => kind = Some(of.clone()),
                        LinkInfo::Data(InfoData::Vxlan(infos)) => data = Some(infos),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let vxlan = data.zip(mac).map(|(infos, mac)| {
        let mut vxlan = Vxlan { mac, ..Vxlan::default() };
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = *vni,
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Local(ip) => vxlan.local = Some((*ip).into()),
                InfoVxlan::Local6(ip) => vxlan.local = Some((*ip).into()),
                InfoVxlan::Link(parent) => vxlan.parent = *parent,
                InfoVxlan::Learning(learning) => vxlan.learning = *learning,
                _ => {}
            }
        }
        vxlan
    });
    Some(Found { link, admin_up, kind, vxlan })
}

pub(crate) fn forwarding(message: &NeighbourMessage) -> Option<Forwarding> {
    if message.header.family != AddressFamily::Bridge
        || !matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp)
    {
        return None;
    }
    let (mut mac, mut node_ip) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            NeighbourAttribute::Destination(destination) => node_ip = address_of(destination),
            _ => {}
        }
    }
    Some(Forwarding { interface: message.header.ifindex, mac: mac?, node_ip: node_ip? })
}
