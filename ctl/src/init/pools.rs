//! The pools that a cluster without any gets from its first node.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use syncer_common::apis::Resource;

use super::detect::{Family, Interface};
use super::options::Pools;
use crate::get;

/// What is to be created: nothing where a family has a pool already.
pub fn missing(options: &Pools, existing: &[Resource], interfaces: &[Interface]) -> Result<Vec<Resource>> {
    if options.no_default_pools {
        return Ok(Vec::new());
    }
    let mut made = Vec::new();
    for family in Family::BOTH {
        let given = match family {
            Family::V4 => &options.ipv4pool_cidr,
            Family::V6 => &options.ipv6pool_cidr,
        };
        let given = given.as_deref().filter(|text| !text.is_empty());
        let has_one =
            existing.iter().any(|pool| cidr(pool).is_some_and(|cidr| Family::of(cidr.addr()) == family));
        if has_one || given == Some("none") || (family == Family::V6 && !options.ipv6_support) {
            continue;
        }
        let variable = format!("CALICO_IPV{}POOL_CIDR", family.number());
        let cidr = match given {
            Some(text) => {
                let cidr = text.parse::<IpNet>().ok().filter(|cidr| Family::of(cidr.addr()) == family);
                cidr.with_context(|| format!("{variable}: {text:?} is no IPv{} CIDR", family.number()))?
            }
            None if family == Family::V4 => free_v4(interfaces)
                .with_context(|| {
                    format!("this host is in all of 192.168.0.0/16 and 172.16.0.0/12: set {variable}")
                })?
                .into(),
            None => random_v6(),
        };
        made.push(pool(options, family, cidr.trunc()));
    }
    Ok(made)
}

pub fn cidr(pool: &Resource) -> Option<IpNet> {
    pool.spec.get("cidr").and_then(Value::as_str)?.parse().ok()
}

fn pool(options: &Pools, family: Family, cidr: IpNet) -> Resource {
    let kind = get::kind("ippool").expect("a known kind");
    let mut pool = Resource::named(kind, "", &format!("default-ipv{}-ippool", family.number()));
    pool.spec = match family {
        Family::V4 => json!({
            "cidr": cidr.to_string(),
            "blockSize": options.ipv4pool_block_size,
            "ipipMode": options.ipv4pool_ipip,
            "vxlanMode": options.ipv4pool_vxlan,
            "natOutgoing": options.ipv4pool_nat_outgoing,
            "nodeSelector": options.ipv4pool_node_selector,
            "disableBGPExport": options.ipv4pool_disable_bgp_export,
        }),
        Family::V6 => json!({
            "cidr": cidr.to_string(),
            "blockSize": options.ipv6pool_block_size,
            "vxlanMode": options.ipv6pool_vxlan,
            "natOutgoing": options.ipv6pool_nat_outgoing,
            "nodeSelector": options.ipv6pool_node_selector,
            "disableBGPExport": options.ipv6pool_disable_bgp_export,
        }),
    };
    pool
}

/// A private network that this host has no address in.
fn free_v4(interfaces: &[Interface]) -> Option<Ipv4Net> {
    let candidates = std::iter::once(Ipv4Addr::new(192, 168, 0, 0))
        .chain((16..32).map(|second| Ipv4Addr::new(172, second, 0, 0)));
    candidates.map(|address| Ipv4Net::new_assert(address, 16)).find(|candidate| {
        let held = interfaces.iter().flat_map(|interface| &interface.nets);
        !held
            .filter_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None })
            .any(|net| candidate.contains(&net.addr()) || net.contains(&candidate.network()))
    })
}

/// RFC 4193: 40 random bits make collisions with other clusters unlikely.
fn random_v6() -> IpNet {
    let random = uuid::Uuid::new_v4();
    let mut bytes = [0_u8; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&random.as_bytes()[..5]);
    IpNet::new(IpAddr::from(bytes), 48).expect("48 is a length")
}

/// Whether a kind of tunnel needs an address on this node.
pub fn tunnels(pool: &Resource, field: &str) -> bool {
    let mode = pool.spec.get(field).and_then(Value::as_str).unwrap_or_default();
    !matches!(mode, "" | "Never")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Pools,
    }

    fn options(args: &[&str]) -> Pools {
        Line::parse_from(std::iter::once("init").chain(args.iter().copied())).options
    }

    fn host(nets: &[&str]) -> Vec<Interface> {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        vec![Interface { name: "eth0".into(), index: 1, up: true, nets }]
    }

    fn cidrs(args: &[&str], existing: &[Resource], host: &[Interface]) -> Vec<String> {
        let pools = missing(&options(args), existing, host).unwrap();
        pools.iter().map(|pool| pool.spec["cidr"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_pool_keeps_clear_of_the_networks_of_the_host() {
        let no6 = ["--ipv6-support", "false"];
        assert_eq!(cidrs(&no6, &[], &host(&["10.0.0.1/8"])), ["192.168.0.0/16"]);
        assert_eq!(cidrs(&no6, &[], &host(&["192.168.7.1/24"])), ["172.16.0.0/16"]);
        assert_eq!(cidrs(&no6, &[], &host(&["192.168.7.1/24", "172.16.0.1/15"])), ["172.18.0.0/16"]);
        let error = missing(&options(&no6), &[], &host(&["192.168.7.1/16", "172.16.0.1/12"])).unwrap_err();
        assert!(error.to_string().contains("CALICO_IPV4POOL_CIDR"), "{error}");
    }

    #[test]
    fn each_family_without_a_pool_gets_one() {
        let both = cidrs(&[], &[], &host(&[]));
        assert_eq!(both.len(), 2);
        assert!(both[1].starts_with("fd") && both[1].ends_with("::/48"), "{both:?}");
        let made = missing(&options(&["--ipv4pool-cidr", "10.1.0.0/16"]), &[], &host(&[])).unwrap();
        assert_eq!(cidrs(&[], &made, &host(&[])), [""; 0], "both are there now");
        assert_eq!(cidrs(&["--ipv6pool-cidr", "none"], &made[1..], &host(&[])), ["192.168.0.0/16"]);
        assert_eq!(cidrs(&["--no-default-pools"], &[], &host(&[])), [""; 0]);
    }
}
