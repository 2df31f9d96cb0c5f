//! How large packets of pods may be: what the links of this host carry, less what encapsulation adds.

use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::Value;
use syncer_common::apis::Resource;

use super::detect::Family;
use super::pools;

/// Felix' default of `mtuIfacePattern`: links of the host, not of containers.
const LINKS: &str = "^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)";
/// Where no link says anything.
const UNKNOWN: u32 = 1460;

/// The MTU of pods, for the pools that there are. `configuration` is the FelixConfiguration of the cluster.
pub fn of_pods(sys: &Path, pools: &[Resource], configuration: &Value) -> u32 {
    let pattern = configuration["mtuIfacePattern"].as_str().filter(|text| !text.is_empty());
    let pattern =
        Regex::new(pattern.unwrap_or(LINKS)).unwrap_or_else(|_| Regex::new(LINKS).expect("it is one"));
    let link = of_links(sys, &pattern).unwrap_or(UNKNOWN);
    let tunnels = [
        (Family::V4, "ipipMode", "ipipMTU", 20),
        (Family::V4, "vxlanMode", "vxlanMTU", 50),
        (Family::V6, "vxlanMode", "vxlanMTUV6", 70),
    ];
    let of_tunnel = |(family, mode, setting, overhead): (Family, &str, &str, u32)| {
        let used = pools.iter().any(|pool| {
            pools::cidr(pool).is_some_and(|cidr| Family::of(cidr.addr()) == family)
                && pools::tunnels(pool, mode)
        });
        let set =
            configuration[setting].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu > 0);
        used.then(|| set.unwrap_or(link.saturating_sub(overhead)))
    };
    tunnels.into_iter().filter_map(of_tunnel).chain([link]).min().unwrap_or(link)
}

/// The smallest MTU of the links that are up.
fn of_links(sys: &Path, pattern: &Regex) -> Option<u32> {
    let entries = fs::read_dir(sys.join("class/net")).ok()?;
    let mtu = |entry: fs::DirEntry| -> Option<u32> {
        if !pattern.is_match(entry.file_name().to_str()?) {
            return None;
        }
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        (read("operstate")?.trim() == "up").then(|| read("mtu")?.trim().parse().ok()).flatten()
    };
    entries.flatten().filter_map(mtu).min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::get;

    fn pool(spec: Value) -> Resource {
        let mut pool = Resource::named(get::kind("ippool").unwrap(), "", "a");
        pool.spec = spec;
        pool
    }

    #[test]
    fn the_smallest_link_less_the_overhead_of_the_tunnels_in_use() {
        let sys = tempfile::tempdir().unwrap();
        for (name, state, mtu) in
            [("eth0", "up", "9000"), ("eth1", "up", "1500"), ("eth2", "down", "576"), ("veth9", "up", "1400")]
        {
            let link = sys.path().join("class/net").join(name);
            fs::create_dir_all(&link).unwrap();
            fs::write(link.join("operstate"), format!("{state}\n")).unwrap();
            fs::write(link.join("mtu"), format!("{mtu}\n")).unwrap();
        }
        let vxlan = pool(json!({"cidr": "10.65.0.0/16", "vxlanMode": "CrossSubnet"}));
        let ipip = pool(json!({"cidr": "10.66.0.0/16", "ipipMode": "Always", "vxlanMode": "Never"}));
        let v6 = pool(json!({"cidr": "fd00::/64", "vxlanMode": "Always"}));
        let of = |pools: &[&Resource], configuration: Value| {
            let pools: Vec<Resource> = pools.iter().map(|pool| (*pool).clone()).collect();
            of_pods(sys.path(), &pools, &configuration)
        };
        assert_eq!(of(&[], Value::Null), 1500);
        assert_eq!(of(&[&ipip], Value::Null), 1480);
        assert_eq!(of(&[&vxlan, &ipip], Value::Null), 1450);
        assert_eq!(of(&[&vxlan, &v6], Value::Null), 1430);
        assert_eq!(of(&[&vxlan], json!({"vxlanMTU": 1400})), 1400);
        assert_eq!(of(&[], json!({"mtuIfacePattern": "^eth0$"})), 9000);
        assert_eq!(of(&[&vxlan], json!({"mtuIfacePattern": "^none$"})), 1410);
    }
}
