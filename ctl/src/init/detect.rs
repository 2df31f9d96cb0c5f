//! Which address of this host is the node's.
//!
//! The methods and their order are those of Calico's node, so that a node that comes over keeps its address: among
//! the interfaces that are up, those with the highest index come first.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use regex::Regex;

/// Left out by `first-found`: what container runtimes and we ourselves make.
const VIRTUAL: [&str; 19] = [
    "docker",
    "cbr",
    "dummy",
    "podman",
    "virbr",
    "lxcbr",
    "veth",
    "lo",
    "br-",
    "cali",
    "tunl",
    "flannel",
    "kube-ipvs",
    "cni",
    "vxlan.calico",
    "vxlan-v6.calico",
    "wireguard.cali",
    "wg-v6.cali",
    "nodelocaldns",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

/// One interface and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    pub up: bool,
    pub nets: Vec<IpNet>,
}

/// How the address is found.
#[derive(Clone, Debug)]
pub enum Method {
    FirstFound,
    /// By the interface's name: one that matches an earlier expression comes first.
    Interface(Vec<Regex>),
    /// As `FirstFound`, without these too.
    SkipInterface(Vec<Regex>),
    Cidr(Vec<IpNet>),
    /// The source address of packets to a destination.
    CanReach(String),
    /// What Kubernetes says.
    KubernetesInternalIp,
}

impl Method {
    pub fn parse(text: &str) -> Result<Method> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let list = || value.split(',').map(str::trim).filter(|part| !part.is_empty());
        let expressions = || -> Result<Vec<Regex>> {
            let all: Result<Vec<Regex>, _> = list().map(Regex::new).collect();
            let all = all.with_context(|| format!("{text:?}: not a regular expression"))?;
            if all.is_empty() {
                bail!("{text:?}: name interfaces, as in {name}=eth.*,ens3");
            }
            Ok(all)
        };
        match name {
            "first-found" => Ok(Method::FirstFound),
            "interface" => expressions().map(Method::Interface),
            "skip-interface" => expressions().map(Method::SkipInterface),
            "cidr" => {
                let nets: Result<Vec<IpNet>, _> = list().map(str::parse).collect();
                let nets = nets.with_context(|| format!("{text:?}: not a list of CIDRs"))?;
                if nets.is_empty() {
                    bail!("{text:?}: name networks, as in cidr=10.0.0.0/8");
                }
                Ok(Method::Cidr(nets))
            }
            "can-reach" if value.is_empty() => bail!("{text:?}: name a destination, as in can-reach=8.8.8.8"),
            "can-reach" => Ok(Method::CanReach(value.into())),
            "kubernetes-internal-ip" => Ok(Method::KubernetesInternalIp),
            _ => bail!(
                "{text:?} is no method: use first-found, interface=…, skip-interface=…, cidr=…, can-reach=… or \
                 kubernetes-internal-ip"
            ),
        }
    }

    /// The node's address, with the length of its network. `internal` are Kubernetes' addresses of the node.
    pub fn detect(&self, family: Family, interfaces: &[Interface], internal: &[IpAddr]) -> Option<IpNet> {
        match self {
            Method::FirstFound => first(family, interfaces, |name| !is_virtual(name)),
            Method::SkipInterface(skipped) => first(family, interfaces, |name| {
                !is_virtual(name) && !skipped.iter().any(|expression| expression.is_match(name))
            }),
            Method::Interface(wanted) => wanted
                .iter()
                .find_map(|expression| first(family, interfaces, |name| expression.is_match(name))),
            Method::Cidr(nets) => usable(family, interfaces, |_| true)
                .find(|found| nets.iter().any(|net| net.contains(&found.addr()))),
            Method::CanReach(destination) => {
                let source = source_towards(destination, family)?;
                usable(family, interfaces, |_| true).find(|found| found.addr() == source)
            }
            Method::KubernetesInternalIp => {
                let address = *internal.iter().find(|address| Family::of(**address) == family)?;
                let held = interfaces.iter().flat_map(|interface| &interface.nets);
                // Where the host has it under another name (behind a load balancer) it stands alone.
                Some(held.copied().find(|net| net.addr() == address).unwrap_or_else(|| IpNet::from(address)))
            }
        }
    }
}

fn is_virtual(name: &str) -> bool {
    VIRTUAL.iter().any(|prefix| name.starts_with(prefix))
}

fn first(family: Family, interfaces: &[Interface], wanted: impl Fn(&str) -> bool) -> Option<IpNet> {
    usable(family, interfaces, wanted).next()
}

/// Global unicast addresses of the family, the highest interface index first.
fn usable(
    family: Family,
    interfaces: &[Interface],
    wanted: impl Fn(&str) -> bool,
) -> impl Iterator<Item = IpNet> {
    let mut candidates: Vec<&Interface> =
        interfaces.iter().filter(|interface| interface.up && wanted(&interface.name)).collect();
    candidates.sort_by_key(|interface| std::cmp::Reverse(interface.index));
    let nets: Vec<IpNet> = candidates.into_iter().flat_map(|interface| interface.nets.clone()).collect();
    nets.into_iter().filter(move |net| Family::of(net.addr()) == family && is_global_unicast(net.addr()))
}

fn is_global_unicast(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_multicast() || address.is_unspecified() || link_local)
}

/// No packet is sent: the kernel only chooses the route.
fn source_towards(destination: &str, family: Family) -> Option<IpAddr> {
    let any: SocketAddr = match family {
        Family::V4 => "0.0.0.0:0",
        Family::V6 => "[::]:0",
    }
    .parse()
    .expect("an address");
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((destination, 80)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The interfaces of this host.
pub fn interfaces() -> Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs().context("the addresses of this host cannot be listed")? {
        let name = &entry.interface_name;
        let place = match found.iter().position(|known| known.name == *name) {
            Some(place) => place,
            None => {
                let index = if_nametoindex(name.as_str()).unwrap_or_default();
                let up = entry.flags.contains(InterfaceFlags::IFF_UP);
                found.push(Interface { name: name.clone(), index, up, nets: Vec::new() });
                found.len() - 1
            }
        };
        let ip = |storage: &nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        };
        let address = entry.address.as_ref().and_then(ip);
        let mask = entry.netmask.as_ref().and_then(ip);
        if let (Some(address), Some(mask)) = (address, mask)
            && let Ok(net) = IpNet::with_netmask(address, mask)
        {
            found[place].nets.push(net);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<Interface> {
        let interface = |name: &str, index, up, nets: &[&str]| Interface {
            name: name.into(),
            index,
            up,
            nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
        };
        vec![
            interface("lo", 1, true, &["127.0.0.1/8", "::1/128"]),
            interface("eth0", 2, true, &["192.0.2.5/24", "fe80::5/64", "2001:db8::5/64"]),
            interface("eth1", 3, true, &["169.254.1.1/16", "198.51.100.5/25"]),
            interface("eth2", 4, false, &["203.0.113.5/24"]),
            interface("docker0", 5, true, &["172.17.0.1/16"]),
            interface("vxlan.calico", 6, true, &["10.65.0.1/32"]),
        ]
    }

    fn detect(method: &str, family: Family) -> Option<String> {
        let internal = ["192.0.2.5".parse().unwrap(), "192.0.2.77".parse().unwrap()];
        Method::parse(method).unwrap().detect(family, &host(), &internal).map(|net| net.to_string())
    }

    #[test]
    fn each_method_finds_its_address() {
        for (method, expected) in [
            ("first-found", "198.51.100.5/25"),
            ("interface=eth0", "192.0.2.5/24"),
            ("interface=nothing,eth0,eth1", "192.0.2.5/24"),
            ("interface=docker.*", "172.17.0.1/16"),
            ("skip-interface=eth1", "192.0.2.5/24"),
            ("cidr=192.0.0.0/8", "192.0.2.5/24"),
            ("cidr=10.0.0.0/8,172.16.0.0/12", "10.65.0.1/32"),
            ("kubernetes-internal-ip", "192.0.2.5/24"),
        ] {
            assert_eq!(detect(method, Family::V4).as_deref(), Some(expected), "{method}");
        }
        assert_eq!(detect("first-found", Family::V6).as_deref(), Some("2001:db8::5/64"));
        assert_eq!(detect("interface=eth1", Family::V6), None);
        assert_eq!(detect("interface=eth2", Family::V4), None, "it is down");
        assert_eq!(detect("kubernetes-internal-ip", Family::V6), None);
    }

    #[test]
    fn a_method_that_says_nothing_is_refused() {
        for (text, part) in [
            ("second-found", "first-found"),
            ("interface=", "name interfaces"),
            ("interface=(", "regular expression"),
            ("cidr=10.0.0.0", "CIDRs"),
            ("can-reach", "destination"),
        ] {
            let error = format!("{:#}", Method::parse(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_address_that_reaches_a_destination_is_its_source() {
        let lo =
            Interface { name: "lo".into(), index: 1, up: true, nets: vec!["127.0.0.1/8".parse().unwrap()] };
        let method = Method::parse("can-reach=127.0.0.1").unwrap();
        assert_eq!(source_towards("127.0.0.1", Family::V4), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(method.detect(Family::V4, &[lo], &[]), None, "loopback is no address of a node");
    }

    #[test]
    fn this_host_has_its_loopback() {
        let found = interfaces().unwrap();
        let lo = found.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(lo.index > 0);
    }
}
