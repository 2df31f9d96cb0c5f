//! Addresses and CIDRs out of the datastore's text. What does not parse is reported and left out: the
//! datastore side validates, so this is a second line that must not take the agent down.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use syncer_common::model::values;

use crate::output::Nat;

/// CIDRs with their host bits masked; plain addresses count as their own network.
pub(crate) fn nets(key: &dyn fmt::Debug, field: &'static str, texts: &[String]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| report(key, field, text, net(text))).collect()
}

pub(crate) fn ips(key: &dyn fmt::Debug, field: &'static str, texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| report(key, field, text, text.parse().ok())).collect()
}

/// Floating addresses, in order. A pair of two families translates nothing.
pub(crate) fn nats(key: &dyn fmt::Debug, endpoint: &values::WorkloadEndpoint) -> Vec<Nat> {
    let mut nats = Vec::new();
    for (field, list) in [("ipv4_nats", &endpoint.ipv4_nats), ("ipv6_nats", &endpoint.ipv6_nats)] {
        for nat in list {
            let address = |text: &str| text.parse::<IpAddr>().ok();
            let pair = address(&nat.external_ip).zip(address(&nat.internal_ip));
            let pair = pair.filter(|(external, internal)| external.is_ipv4() == internal.is_ipv4());
            let text = format!("{} for {}", nat.external_ip, nat.internal_ip);
            nats.extend(
                report(key, field, &text, pair).map(|(external, internal)| Nat { external, internal }),
            );
        }
    }
    nats.sort();
    nats
}

pub(crate) fn dscp(key: &dyn fmt::Debug, value: Option<u32>) -> Option<u8> {
    let value = value?;
    let known = u8::try_from(value).ok().filter(|value| *value < 64);
    if known.is_none() {
        tracing::warn!(?key, field = "dscp", value, reason = "not from 0 to 63", "ignored part of a value");
    }
    known
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
        tracing::warn!(
            ?key,
            field,
            value = text,
            reason = "not an address, or not of its family",
            "ignored part of a value"
        );
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
