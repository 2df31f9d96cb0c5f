//! Members of IP sets in one canonical form, so that what we want and what the kernel prints compare equal.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr as _;

use felix_calc::output::IpSetKind;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::iptables::IpVersion;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    Ip(IpAddr),
    Net(IpNet),
    IpPort(IpAddr, Protocol, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    UdpLite,
}

impl Protocol {
    fn parse(text: &str) -> Option<Protocol> {
        Some(match text.to_ascii_lowercase().as_str() {
            "tcp" | "6" => Protocol::Tcp,
            "udp" | "17" => Protocol::Udp,
            "sctp" | "132" => Protocol::Sctp,
            "udplite" | "136" => Protocol::UdpLite,
            _ => return None,
        })
    }

    pub fn of(number: u8) -> Option<Protocol> {
        Self::parse(&number.to_string())
    }

    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
            Protocol::UdpLite => "udplite",
        }
    }
}

impl Member {
    /// Reads a member as the calculation or the kernel writes it. One text can be two members: `hash:net` takes
    /// no `/0`, so that is split into its halves.
    pub fn parse(kind: IpSetKind, text: &str) -> Option<Vec<Member>> {
        Some(match kind {
            IpSetKind::Ip => {
                let address = text.split_once('/').map_or(text, |(address, _)| address);
                vec![Member::Ip(IpAddr::from_str(address).ok()?)]
            }
            IpSetKind::Net => {
                let net = match text.contains('/') {
                    true => IpNet::from_str(text).ok()?.trunc(),
                    false => IpNet::from(IpAddr::from_str(text).ok()?),
                };
                match net {
                    IpNet::V4(net) if net.prefix_len() == 0 => halves(net.subnets(1).ok()?.map(IpNet::V4)),
                    IpNet::V6(net) if net.prefix_len() == 0 => halves(net.subnets(1).ok()?.map(IpNet::V6)),
                    net => vec![Member::Net(net)],
                }
            }
            IpSetKind::IpAndPort => {
                let (address, rest) = text.split_once(',')?;
                let (protocol, port) = rest.split_once(':')?;
                vec![Member::IpPort(address.parse().ok()?, Protocol::parse(protocol)?, port.parse().ok()?)]
            }
        })
    }

    pub fn version(&self) -> IpVersion {
        let v4 = match self {
            Member::Ip(address) | Member::IpPort(address, _, _) => address.is_ipv4(),
            Member::Net(net) => matches!(net, IpNet::V4(_)),
        };
        if v4 { IpVersion::V4 } else { IpVersion::V6 }
    }
}

fn halves(nets: impl Iterator<Item = IpNet>) -> Vec<Member> {
    nets.map(Member::Net).collect()
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Ip(address) => write!(f, "{address}"),
            Member::Net(IpNet::V4(net)) => v4(f, net),
            Member::Net(IpNet::V6(net)) => v6(f, net),
            Member::IpPort(address, protocol, port) => write!(f, "{address},{}:{port}", protocol.name()),
        }
    }
}

fn v4(f: &mut fmt::Formatter<'_>, net: &Ipv4Net) -> fmt::Result {
    if net.prefix_len() == 32 { write!(f, "{}", net.addr()) } else { write!(f, "{net}") }
}

fn v6(f: &mut fmt::Formatter<'_>, net: &Ipv6Net) -> fmt::Result {
    if net.prefix_len() == 128 { write!(f, "{}", net.addr()) } else { write!(f, "{net}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: IpSetKind, from: &str) -> Option<Vec<String>> {
        Member::parse(kind, from).map(|members| members.iter().map(Member::to_string).collect())
    }

    #[test]
    fn members_print_as_the_kernel_prints_them() {
        assert_eq!(text(IpSetKind::Net, "10.0.0.1/32"), Some(vec!["10.0.0.1".into()]));
        assert_eq!(text(IpSetKind::Net, "10.1.2.3/8"), Some(vec!["10.0.0.0/8".into()]));
        assert_eq!(text(IpSetKind::Net, "FE80:0::/10"), Some(vec!["fe80::/10".into()]));
        assert_eq!(text(IpSetKind::IpAndPort, "10.0.0.1,TCP:80"), Some(vec!["10.0.0.1,tcp:80".into()]));
        assert_eq!(text(IpSetKind::Ip, "10.0.0.1/32"), Some(vec!["10.0.0.1".into()]));
    }

    #[test]
    fn everything_is_split_into_halves() {
        assert_eq!(text(IpSetKind::Net, "0.0.0.0/0"), Some(vec!["0.0.0.0/1".into(), "128.0.0.0/1".into()]));
        assert_eq!(text(IpSetKind::Net, "::/0"), Some(vec!["::/1".into(), "8000::/1".into()]));
    }

    #[test]
    fn nonsense_is_refused() {
        for (kind, from) in [
            (IpSetKind::Net, "10.0.0.0/33"),
            (IpSetKind::Ip, "host"),
            (IpSetKind::IpAndPort, "10.0.0.1,icmp:8"),
            (IpSetKind::IpAndPort, "10.0.0.1"),
        ] {
            assert_eq!(text(kind, from), None, "{from}");
        }
    }
}
