//! Failsafe ports: what policy of host endpoints cannot close, so that no policy locks the operator out.

use std::net::IpAddr;

use ipnet::IpNet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailsafePort {
    pub protocol: String,
    pub port: u16,
    /// Only to or from this network.
    pub net: Option<IpNet>,
}

impl FailsafePort {
    /// Whether a packet of this protocol and port, from or to this peer, is one.
    pub fn holds(&self, protocol: u8, port: u16, peer: IpAddr) -> bool {
        let number = match self.protocol.as_str() {
            "tcp" => 6,
            "udp" => 17,
            _ => 132,
        };
        (number, self.port) == (protocol, port) && self.net.is_none_or(|net| net.contains(&peer))
    }
}

pub fn default_inbound() -> Vec<FailsafePort> {
    tcp_and_udp(&[
        ("tcp", 22),
        ("udp", 68),
        ("tcp", 179),
        ("tcp", 2379),
        ("tcp", 2380),
        ("tcp", 5473),
        ("tcp", 6443),
        ("tcp", 6666),
        ("tcp", 6667),
    ])
}

pub fn default_outbound() -> Vec<FailsafePort> {
    tcp_and_udp(&[
        ("udp", 53),
        ("udp", 67),
        ("tcp", 179),
        ("tcp", 2379),
        ("tcp", 2380),
        ("tcp", 5473),
        ("tcp", 6443),
        ("tcp", 6666),
        ("tcp", 6667),
    ])
}

fn tcp_and_udp(ports: &[(&str, u16)]) -> Vec<FailsafePort> {
    let one =
        |&(protocol, port): &(&str, u16)| FailsafePort { protocol: protocol.to_owned(), port, net: None };
    ports.iter().map(one).collect()
}

/// `22`, `udp:68`, `tcp:10.0.0.0/8:22`, `tcp:[fd00::/8]:22`, separated by commas; `none` or nothing: no ports.
pub fn parse_list(text: &str) -> Result<Vec<FailsafePort>, &'static str> {
    if text.is_empty() || text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    text.split(',').map(|entry| parse(entry.trim())).collect()
}

fn parse(entry: &str) -> Result<FailsafePort, &'static str> {
    const FORM: &str = "not a list of protocol:port or protocol:net:port";
    let (before, port) = entry.rsplit_once(':').unwrap_or(("tcp", entry));
    let (protocol, net) = match before.split_once(':') {
        Some((protocol, net)) => (protocol, Some(net)),
        None => (before, None),
    };
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(FORM);
    }
    let net = match net {
        None => None,
        Some(net) => Some(network(&net.replace(['[', ']'], "")).ok_or(FORM)?),
    };
    Ok(FailsafePort { protocol, port: port.parse().map_err(|_| FORM)?, net })
}

/// A CIDR, or an address that stands for itself.
fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
