//! What the kernel should hold, from the calculation, the settings and the interfaces. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use felix_calc::output::{Encapsulation, Family, Hop, OwnNode, Route as ClusterRoute, Vtep};
use ipnet::IpNet;

use super::Forwarding;
use super::device::{Device, Vxlan};
use super::settings::TunnelSettings;
use crate::ifacemonitor::Link;
use crate::iptables::IpVersion;
use crate::routetable::{Neighbour, Route, RouteKind};
use crate::rules::nat::{IPIP_DEVICE, VXLAN_DEVICE, VXLAN_DEVICE_V6};

/// What felix of Calico marks routes to other nodes with.
pub const PROTOCOL: u8 = 80;
/// The kernel's own default for IPv6, the strongest for IPv4.
const METRIC_V4: u32 = 0;
const METRIC_V6: u32 = 1024;
/// When no interface tells: what every cloud can carry.
const FALLBACK_MTU: u32 = 1460;
const VXLAN_OVERHEAD_V4: u32 = 50;
const VXLAN_OVERHEAD_V6: u32 = 70;
const IPIP_OVERHEAD: u32 = 20;

pub const DEVICES: [&str; 3] = [VXLAN_DEVICE, VXLAN_DEVICE_V6, IPIP_DEVICE];

pub fn vxlan_device(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => VXLAN_DEVICE,
        IpVersion::V6 => VXLAN_DEVICE_V6,
    }
}

pub fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

/// What the calculation said last.
#[derive(Debug, Default)]
pub struct Cluster {
    pub own: OwnNode,
    pub vteps: BTreeMap<(String, Family), Vtep>,
    pub routes: BTreeMap<IpNet, ClusterRoute>,
}

/// Interfaces and addresses as the kernel has them.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub links: BTreeMap<u32, Link>,
    pub addresses: Vec<(u32, IpNet)>,
}

impl Host {
    pub fn index(&self, name: &str) -> Option<u32> {
        self.links.values().find(|link| link.name == name).map(|link| link.index)
    }

    /// The interface that holds an address.
    fn holder(&self, address: IpAddr) -> Option<u32> {
        let mut holders = self.addresses.iter().filter(|(_, net)| net.addr() == address);
        holders.find(|(index, _)| self.links.contains_key(index)).map(|(index, _)| *index)
    }

    /// The largest packet that every way out takes.
    fn mtu(&self, settings: &TunnelSettings) -> u32 {
        let ways = self.links.values().filter(|link| link.up && settings.mtu_interfaces.matches(&link.name));
        ways.map(|link| link.mtu).min().unwrap_or(FALLBACK_MTU)
    }
}

/// A device that is wanted, or wanted but not possible now, with the reason.
pub type Wanted = Result<Device, String>;

/// The devices that should be there. What is not in the answer should go.
pub fn devices(
    cluster: &Cluster,
    settings: &TunnelSettings,
    versions: &[IpVersion],
    host: &Host,
) -> BTreeMap<&'static str, Wanted> {
    let mut devices = BTreeMap::new();
    let mtu = host.mtu(settings);
    let sized = |given: u32, overhead: u32| if given > 0 { given } else { mtu.saturating_sub(overhead) };
    for &version in versions.iter().filter(|version| settings.vxlan(**version)) {
        let (vtep, mtu) = match version {
            IpVersion::V4 => (cluster.own.vxlan_v4, sized(settings.vxlan_mtu_v4, VXLAN_OVERHEAD_V4)),
            IpVersion::V6 => (cluster.own.vxlan_v6, sized(settings.vxlan_mtu_v6, VXLAN_OVERHEAD_V6)),
        };
        // Without a tunnel address of its own this node is not part of it yet.
        let Some(vtep) = vtep else { continue };
        let name = vxlan_device(version);
        let device = match host.holder(vtep.node_ip) {
            Some(parent) => {
                let local = Some(vtep.node_ip);
                let Vtep { mac, tunnel_ip, .. } = vtep;
                let (vni, port) = (settings.vni, settings.port);
                let vxlan = Vxlan { vni, port, local, parent, mac, learning: false };
                Ok(Device { name, mtu, address: Some(tunnel_ip), vxlan: Some(vxlan) })
            }
            None => Err(format!(
                "device {name}: no interface has this node's address {}; check spec.bgp of its Node",
                vtep.node_ip
            )),
        };
        devices.insert(name, device);
    }
    if settings.ipip {
        let address = cluster.own.ipip.map(IpAddr::V4);
        let mtu = sized(settings.ipip_mtu, IPIP_OVERHEAD);
        devices.insert(IPIP_DEVICE, Ok(Device { name: IPIP_DEVICE, mtu, address, vxlan: None }));
    }
    devices
}

/// Neighbours and forwarding entries of the VXLAN devices that are there.
pub fn entries(
    cluster: &Cluster,
    settings: &TunnelSettings,
    host: &Host,
) -> (BTreeSet<Neighbour>, BTreeSet<Forwarding>) {
    let (mut neighbours, mut forwarding) = (BTreeSet::new(), BTreeSet::new());
    for ((_, family), vtep) in &cluster.vteps {
        let version = version(*family);
        if !settings.vxlan(version) {
            continue;
        }
        let Some(interface) = host.index(vxlan_device(version)) else { continue };
        neighbours.insert(Neighbour { interface, address: vtep.tunnel_ip, mac: vtep.mac });
        forwarding.insert(Forwarding { interface, mac: vtep.mac, node_ip: vtep.node_ip });
    }
    (neighbours, forwarding)
}

/// Routes by destination; nothing for one whose interface is not there (yet).
pub fn routes(
    cluster: &Cluster,
    settings: &TunnelSettings,
    versions: &[IpVersion],
    host: &Host,
) -> BTreeMap<IpNet, Option<Route>> {
    let parent = |address: Option<IpAddr>| address.and_then(|address| host.holder(address));
    let parents = [parent(cluster.own.ipv4.map(IpAddr::V4)), parent(cluster.own.ipv6.map(IpAddr::V6))];
    let mut routes = BTreeMap::new();
    for (dst, route) in &cluster.routes {
        let v4 = dst.addr().is_ipv4();
        let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let ours = match route.encapsulation {
            Encapsulation::Vxlan => settings.vxlan(version),
            Encapsulation::IpIp => settings.program.ipip,
            Encapsulation::None => settings.program.plain,
        };
        if !ours || !versions.contains(&version) {
            continue;
        }
        let (interface, gateway) = match route.hop {
            Hop::Blackhole => (None, None),
            Hop::Node(via) => (Some(parents[usize::from(!v4)]), Some(via)),
            // The other end of the tunnel itself is a neighbour.
            Hop::Tunnel(via) if IpNet::from(via) == *dst => (Some(host.index(vxlan_device(version))), None),
            Hop::Tunnel(via) if route.encapsulation == Encapsulation::Vxlan => {
                (Some(host.index(vxlan_device(version))), Some(via))
            }
            Hop::Tunnel(via) => (Some(host.index(IPIP_DEVICE)), Some(via)),
        };
        let kind = if interface.is_none() { RouteKind::Blackhole } else { RouteKind::Unicast };
        let usable = interface.is_none_or(|interface| interface.is_some());
        let wanted = Route {
            dst: *dst,
            kind,
            interface: interface.flatten(),
            metric: if v4 { METRIC_V4 } else { METRIC_V6 },
            protocol: PROTOCOL,
            link_scope: v4 && kind == RouteKind::Unicast && gateway.is_none(),
            gateway,
            onlink: gateway.is_some(),
            source: None,
        };
        routes.insert(*dst, usable.then_some(wanted));
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, mtu: u32, up: bool) -> (u32, Link) {
        (index, Link { index, name: name.into(), up, mtu })
    }

    fn host() -> Host {
        Host {
            links: [
                link(2, "eth0", 1500, true),
                link(3, "eth1", 9000, true),
                link(4, "eth2", 1280, false),
                link(5, "docker0", 1000, true),
                link(6, VXLAN_DEVICE, 1450, true),
            ]
            .into(),
            addresses: vec![(3, "172.30.0.20/24".parse().unwrap())],
        }
    }

    fn cluster() -> Cluster {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let vtep = |node: &str, tunnel: &str| Vtep { node_ip: ip(node), tunnel_ip: ip(tunnel), mac: [2; 6] };
        let mut cluster = Cluster::default();
        cluster.own.ipv4 = "172.30.0.20".parse().ok();
        cluster.own.vxlan_v4 = Some(vtep("172.30.0.20", "10.65.0.0"));
        cluster.vteps.insert(("far".into(), Family::V4), vtep("172.30.1.22", "10.65.9.9"));
        for (dst, encapsulation, hop) in [
            ("10.65.0.0/26", Encapsulation::Vxlan, Hop::Blackhole),
            ("10.65.1.0/26", Encapsulation::Vxlan, Hop::Node(ip("172.30.0.21"))),
            ("10.65.2.0/26", Encapsulation::Vxlan, Hop::Tunnel(ip("10.65.9.9"))),
            ("10.65.9.9/32", Encapsulation::Vxlan, Hop::Tunnel(ip("10.65.9.9"))),
            ("10.66.0.0/26", Encapsulation::IpIp, Hop::Tunnel(ip("172.30.1.22"))),
            ("10.67.0.0/26", Encapsulation::None, Hop::Node(ip("172.30.0.21"))),
        ] {
            cluster.routes.insert(dst.parse().unwrap(), ClusterRoute { encapsulation, hop });
        }
        cluster
    }

    fn text(routes: BTreeMap<IpNet, Option<Route>>) -> Vec<String> {
        let one = |(dst, route): (IpNet, Option<Route>)| match route {
            None => format!("{dst} waits"),
            Some(Route { kind: RouteKind::Blackhole, .. }) => format!("blackhole {dst}"),
            Some(Route { interface, gateway, .. }) => {
                let interface = interface.expect("unicast routes have an interface");
                let via = gateway.map_or_else(|| "link".to_owned(), |via| via.to_string());
                format!("{dst} via {via} dev {interface}")
            }
        };
        routes.into_iter().map(one).collect()
    }

    #[test]
    fn every_pool_has_its_own_writer() {
        let mut settings = TunnelSettings { vxlan_v4: true, ..TunnelSettings::default() };
        let vxlan = [
            "blackhole 10.65.0.0/26",
            "10.65.1.0/26 via 172.30.0.21 dev 3",
            "10.65.2.0/26 via 10.65.9.9 dev 6",
            "10.65.9.9/32 via link dev 6",
        ];
        let (ipip, plain) = ("10.66.0.0/26 waits", "10.67.0.0/26 via 172.30.0.21 dev 3");
        for (given, more) in [
            ("Disabled", vec![]),
            ("EnabledIPIPOnly", vec![ipip]),
            ("enablednoencaponly", vec![plain]),
            ("Enabled", vec![ipip, plain]),
        ] {
            settings.program = crate::tunnels::settings::Program::parse(given).unwrap();
            let wanted = text(routes(&cluster(), &settings, &IpVersion::ALL, &host()));
            assert_eq!(wanted, [&vxlan[..], &more[..]].concat(), "{given}");
        }
        settings.vxlan_v4 = false;
        assert_eq!(text(routes(&cluster(), &settings, &IpVersion::ALL, &host())), [ipip, plain]);
    }

    #[test]
    fn the_mtu_is_the_smallest_of_the_ways_out_less_the_overhead() {
        let mut settings = TunnelSettings { vxlan_v4: true, ipip: true, ..TunnelSettings::default() };
        let mtus = |settings: &TunnelSettings, host: &Host| {
            let devices = devices(&cluster(), settings, &IpVersion::ALL, host);
            devices.into_values().map(|device| device.unwrap().mtu).collect::<Vec<_>>()
        };
        assert_eq!(mtus(&settings, &host()), [1480, 1450]);
        let mut unknown = host();
        unknown.links.retain(|_, link| !link.name.starts_with("eth") || link.name == "eth1");
        assert_eq!(mtus(&settings, &unknown), [8980, 8950]);
        settings.mtu_interfaces = crate::tunnels::settings::Pattern::parse("^none$").unwrap();
        assert_eq!(mtus(&settings, &host()), [1440, 1410]);
        settings.vxlan_mtu_v4 = 1300;
        assert_eq!(mtus(&settings, &host()), [1440, 1300]);
    }

    #[test]
    fn a_node_address_on_no_interface_is_said_and_removes_nothing() {
        let settings = TunnelSettings { vxlan_v4: true, ..TunnelSettings::default() };
        let lost = Host { addresses: Vec::new(), ..host() };
        let wanted = devices(&cluster(), &settings, &IpVersion::ALL, &lost);
        let error = wanted[VXLAN_DEVICE].as_ref().unwrap_err();
        assert!(error.contains("172.30.0.20") && error.contains(VXLAN_DEVICE), "{error}");
        assert!(
            text(routes(&cluster(), &settings, &IpVersion::ALL, &lost))
                .contains(&"10.65.1.0/26 waits".into())
        );
    }
}
