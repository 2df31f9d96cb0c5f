//! The packet that is asked about.

use std::fmt;
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, UDP, UDP-Lite or SCTP.
    Ports {
        number: u8,
        src: u16,
        dst: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
    },
    IcmpV6 {
        kind: u8,
        code: u8,
    },
    Other(u8),
}

/// A client's port, when none is given: the first of those that systems hand out.
const CLIENT_PORT: u16 = 32768;
const WITH_PORTS: [(&str, u8); 4] = [("tcp", 6), ("udp", 17), ("sctp", 132), ("udplite", 136)];

impl Protocol {
    /// `tcp/443`, `udp/1024:53` (source and destination), `icmp`, `icmp/8`, `icmpv6/128/0`, a number.
    pub fn parse(text: &str) -> Result<Protocol, String> {
        let wrong = || {
            format!(
                "{text:?} is none of tcp/443, udp/1024:53, sctp/…, icmp, icmp/8/0, icmpv6/128, or a protocol's number"
            )
        };
        let mut parts = text.split('/');
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let rest: Vec<&str> = parts.collect();
        if let Some((_, number)) = WITH_PORTS.iter().find(|(known, _)| *known == name) {
            let [ports] = rest[..] else { return Err(wrong()) };
            let (src, dst) = match ports.split_once(':') {
                Some((src, dst)) => (src.parse().map_err(|_| wrong())?, dst),
                None => (CLIENT_PORT, ports),
            };
            return Ok(Protocol::Ports { number: *number, src, dst: dst.parse().map_err(|_| wrong())? });
        }
        let bytes: Vec<u8> =
            rest.iter().map(|part| part.parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let typed = |default: u8| match bytes[..] {
            [] => Ok((default, 0)),
            [kind] => Ok((kind, 0)),
            [kind, code] => Ok((kind, code)),
            _ => Err(wrong()),
        };
        match name.as_str() {
            "icmp" => typed(8).map(|(kind, code)| Protocol::Icmp { kind, code }),
            "icmpv6" => typed(128).map(|(kind, code)| Protocol::IcmpV6 { kind, code }),
            number if rest.is_empty() => number.parse().map(Protocol::Other).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    pub fn number(&self) -> u8 {
        match self {
            Protocol::Ports { number, .. } | Protocol::Other(number) => *number,
            Protocol::Icmp { .. } => 1,
            Protocol::IcmpV6 { .. } => 58,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { src, dst, protocol } = self;
        match protocol {
            Protocol::Ports { number, src: from, dst: to } => {
                let name =
                    WITH_PORTS.iter().find(|(_, known)| known == number).map_or("ip", |(name, _)| name);
                write!(f, "{name} from {src} port {from} to {dst} port {to}")
            }
            Protocol::Icmp { kind, code } => write!(f, "icmp type {kind} code {code} from {src} to {dst}"),
            Protocol::IcmpV6 { kind, code } => {
                write!(f, "icmpv6 type {kind} code {code} from {src} to {dst}")
            }
            Protocol::Other(number) => write!(f, "protocol {number} from {src} to {dst}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_read_as_operators_write_them() {
        let ports = |number, src, dst| Ok(Protocol::Ports { number, src, dst });
        assert_eq!(Protocol::parse("tcp/443"), ports(6, CLIENT_PORT, 443));
        assert_eq!(Protocol::parse("UDP/1024:53"), ports(17, 1024, 53));
        assert_eq!(Protocol::parse("icmp"), Ok(Protocol::Icmp { kind: 8, code: 0 }));
        assert_eq!(Protocol::parse("icmpv6/135/1"), Ok(Protocol::IcmpV6 { kind: 135, code: 1 }));
        assert_eq!(Protocol::parse("47"), Ok(Protocol::Other(47)));
        for wrong in ["tcp", "tcp/70000", "icmp/256", "47/1", "bgp/1", ""] {
            assert!(Protocol::parse(wrong).unwrap_err().contains("none of"), "{wrong}");
        }
    }
}
