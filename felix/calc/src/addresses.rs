//! Addresses and CIDRs out of the datastore's text. What does not parse is reported and left out: the
//! datastore side validates, so this is a second line that must not take the agent down.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// CIDRs with their host bits masked; plain addresses count as their own network.
pub(crate) fn nets(key: &dyn fmt::Debug, field: &'static str, texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| report(key, field, text, net(text))).collect()
}

pub(crate) fn ips(key: &dyn fmt::Debug, field: &'static str, texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| report(key, field, text, text.parse().ok())).collect()
}

pub(crate) fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|net: IpNet| net.trunc())
}

/// The address of `address` or `address/length`.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    text.split('/').next().and_then(|address| address.parse().ok())
}

/// Both halves of a `/0`, which `hash:net` cannot hold; anything else as it is.
pub(crate) fn split_default(net: IpNet) -> Vec<IpNet> {
    if net.prefix_len() > 0 {
        return vec![net];
    }
    match net {
        IpNet::V4(_) => [0u32, 1 << 31].map(|bits| Ipv4Net::new_assert(bits.into(), 1).into()).to_vec(),
        IpNet::V6(_) => [0u128, 1 << 127].map(|bits| Ipv6Net::new_assert(bits.into(), 1).into()).to_vec(),
    }
}

fn report<T>(key: &dyn fmt::Debug, field: &'static str, text: &str, parsed: Option<T>) -> Option<T> {
    if parsed.is_none() {
        tracing::warn!(?key, field, value = text, reason = "not an address", "ignored part of a value");
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_split_into_halves() {
        let halves =
            |text: &str| split_default(net(text).unwrap()).iter().map(IpNet::to_string).collect::<Vec<_>>();
        assert_eq!(halves("0.0.0.0/0"), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(halves("::/0"), ["::/1", "8000::/1"]);
        assert_eq!(halves("10.1.2.3/8"), ["10.0.0.0/8"]);
    }
}
