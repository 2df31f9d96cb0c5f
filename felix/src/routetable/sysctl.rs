//! Kernel settings of the node and of workload interfaces. Written only where they differ.

use std::io;
use std::path::Path;

use crate::iptables::IpVersion;

const ROOT: &str = "/proc/sys/net";

#[derive(Debug, thiserror::Error)]
#[error("setting net.{name} to {value}: {source}")]
pub struct SysctlError {
    pub name: String,
    pub value: String,
    pub source: io::Error,
}

/// Forwarding on the node as a whole.
pub fn forward(versions: &[IpVersion]) -> Vec<SysctlError> {
    let names = versions.iter().map(|version| match version {
        IpVersion::V4 => "ipv4/ip_forward",
        IpVersion::V6 => "ipv6/conf/all/forwarding",
    });
    names.filter_map(|name| set(name, "1").err()).collect()
}

/// Whether the interface is gone, with its settings.
pub fn is_gone(interface: &str) -> bool {
    !Path::new(ROOT).join("ipv4/conf").join(interface).exists()
}

/// Byte and packet counts of connections, where the kernel tracks them at all.
pub fn count_connections() {
    if let Err(error) = set("netfilter/nf_conntrack_acct", "1") {
        tracing::debug!(%error, "connections are not counted");
    }
}

/// How strictly new interfaces of this node check sources.
pub fn default_reverse_path_filter() -> String {
    read("ipv4/conf/default/rp_filter").unwrap_or_else(|_| "0".into())
}

/// What a workload's interface needs: the node answers for its gateway and forwards for it.
pub fn workload(
    interface: &str,
    versions: &[IpVersion],
    spoofing: bool,
    rp_filter: &str,
) -> Result<(), SysctlError> {
    let v4 = |what: &str| format!("ipv4/conf/{interface}/{what}");
    let v6 = |what: &str| format!("ipv6/conf/{interface}/{what}");
    if versions.contains(&IpVersion::V4) {
        set(&v4("route_localnet"), "1")?;
        set(&format!("ipv4/neigh/{interface}/proxy_delay"), "0")?;
        set(&v4("proxy_arp"), "1")?;
        set(&v4("forwarding"), "1")?;
        // A rule in the raw table checks sources, unless spoofing is allowed.
        set(&v4("rp_filter"), if spoofing { "0" } else { rp_filter })?;
    }
    if Path::new(ROOT).join("ipv6/conf").join(interface).exists() {
        // A workload must not be able to give the node a default route.
        set(&v6("accept_ra"), "0")?;
        if versions.contains(&IpVersion::V6) {
            set(&v6("proxy_ndp"), "1")?;
            set(&v6("forwarding"), "1")?;
        }
    }
    Ok(())
}

fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(Path::new(ROOT).join(name))?.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    let failed = |source| SysctlError { name: name.replace('/', "."), value: value.into(), source };
    if read(name).map_err(failed)? == value {
        return Ok(());
    }
    std::fs::write(Path::new(ROOT).join(name), value).map_err(failed)
}
