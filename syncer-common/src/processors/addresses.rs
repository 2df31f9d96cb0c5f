//! Addresses and networks, as text in canonical form.

use std::net::IpAddr;

use ipnet::IpNet;

/// A network with its host bits cleared; a bare address is a network of its own.
pub fn parse_net(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("{text:?} is neither an address nor a CIDR"))
}

/// A plain address.
pub fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address"))
}

/// An address with or without the length of its network, kept as written otherwise.
pub(crate) fn interface_address(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    text.parse::<IpNet>()
        .map(|net| net.to_string())
        .map_err(|_| format!("{text:?} is neither an address nor an address/length"))
}

/// A MAC address in lower case with colons.
pub(crate) fn mac(text: &str) -> Result<String, String> {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    let good = bytes.len() == 6
        && bytes.iter().all(|byte| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit()));
    if good {
        Ok(bytes.join(":").to_ascii_lowercase())
    } else {
        Err(format!("{text:?} is not a MAC address"))
    }
}
