//! Tunnels and routes to other nodes against the real kernel.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::net::IpAddr;
use std::time::Duration;

use dataplane_support::{Lab, eventually, in_namespace};
use felix::ifacemonitor::{Event, Monitor};
use felix::iptables::IpVersion;
use felix::tunnels::settings::Program;
use felix::tunnels::{TunnelSettings, Tunnels};
use felix_calc::output::{Encapsulation, Family, Hop, OwnNode, Route, Vtep};

const LIMIT: Duration = Duration::from_secs(10);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vtep(node: &str, tunnel: &str, mac: u8) -> Vtep {
    Vtep { node_ip: ip(node), tunnel_ip: ip(tunnel), mac: [0x66, 0, 0, 0, 0, mac] }
}

fn route(encapsulation: Encapsulation, hop: Hop) -> Option<Route> {
    Some(Route { encapsulation, hop })
}

fn vxlan(tunnel: &str) -> Option<Route> {
    route(Encapsulation::Vxlan, Hop::Tunnel(ip(tunnel)))
}

fn settings() -> TunnelSettings {
    TunnelSettings { vxlan_v4: true, vxlan_v6: true, ..TunnelSettings::default() }
}

/// This node on `eth0`, one other node far away and one in the same subnet.
fn cluster(lab: &Lab) -> Tunnels {
    lab.sh("ip link add eth0 type veth peer name peth0 && ip link set eth0 up && ip link set peth0 up");
    lab.sh("ip addr add 172.30.0.20/24 dev eth0 && ip -6 addr add fd30::20/64 dev eth0 nodad");
    let mut tunnels = Tunnels::new(&IpVersion::ALL).unwrap();
    tunnels.set_settings(settings());
    tunnels.set_own(own());
    tunnels.set_vtep("far".into(), Family::V4, Some(vtep("172.30.1.22", "10.65.2.0", 0x22)));
    tunnels.set_vtep("far".into(), Family::V6, Some(vtep("fd30:0:0:1::22", "fd65::2:1", 0x26)));
    for (dst, route) in [
        ("10.65.0.0/26", route(Encapsulation::Vxlan, Hop::Blackhole)),
        ("10.65.1.0/26", route(Encapsulation::Vxlan, Hop::Node(ip("172.30.0.21")))),
        ("10.65.2.0/26", vxlan("10.65.2.0")),
        ("fd65::/122", route(Encapsulation::Vxlan, Hop::Blackhole)),
        ("fd65::1:0/122", route(Encapsulation::Vxlan, Hop::Node(ip("fd30::21")))),
        ("fd65::2:0/122", vxlan("fd65::2:1")),
    ] {
        tunnels.set_route(dst.parse().unwrap(), route);
    }
    tunnels
}

fn own() -> OwnNode {
    OwnNode {
        ipv4: "172.30.0.20".parse().ok(),
        ipv6: "fd30::20".parse().ok(),
        vxlan_v4: Some(vtep("172.30.0.20", "10.65.0.0", 0x20)),
        vxlan_v6: Some(vtep("fd30::20", "fd65::1", 0x25)),
        ipip: "10.66.0.1".parse().ok(),
    }
}

async fn apply(tunnels: &mut Tunnels) -> usize {
    let pass = tunnels.apply().await;
    assert!(pass.errors.is_empty(), "{:?}", pass.errors);
    pass.writes
}

/// Routes, neighbours and forwarding entries as `ip` and `bridge` print them.
fn listed(lab: &Lab) -> String {
    let lines = "(ip route; ip -6 route | grep -v fe80; ip neigh show nud permanent; ip -6 neigh show nud permanent; \
                 bridge fdb show | grep dst) | sed 's/ *$//; s/ pref medium//' | sort -u";
    lab.sh(lines)
}

#[test]
fn vxlan_is_written_by_difference_in_both_families() {
    in_namespace(&["ip", "bridge"], |lab| async move {
        let mut tunnels = cluster(&lab);
        lab.sh("ip route add 192.0.2.0/24 via 172.30.0.9; ip route add blackhole 10.65.77.0/26 proto 80");
        assert!(apply(&mut tunnels).await > 0);
        let now = listed(&lab);
        for line in [
            "blackhole 10.65.0.0/26 proto 80",
            "10.65.1.0/26 via 172.30.0.21 dev eth0 proto 80 onlink",
            "10.65.2.0/26 via 10.65.2.0 dev vxlan.calico proto 80 onlink",
            "10.65.2.0 dev vxlan.calico lladdr 66:00:00:00:00:22 PERMANENT",
            "66:00:00:00:00:22 dev vxlan.calico dst 172.30.1.22 self permanent",
            "blackhole fd65::/122 dev lo proto 80 metric 1024",
            "fd65::1:0/122 via fd30::21 dev eth0 proto 80 metric 1024 onlink",
            "fd65::2:0/122 via fd65::2:1 dev vxlan-v6.calico proto 80 metric 1024 onlink",
            "fd65::2:1 dev vxlan-v6.calico lladdr 66:00:00:00:00:26 PERMANENT",
            "192.0.2.0/24 via 172.30.0.9 dev eth0",
        ] {
            assert!(now.lines().any(|other| other == line), "{line} is missing:\n{now}");
        }
        assert!(now.contains("66:00:00:00:00:26 dev vxlan-v6.calico dst fd30:0:0:1::22"), "{now}");
        assert!(!now.contains("10.65.77.0"), "a leftover of a former run stays:\n{now}");
        let device = lab.sh("ip -d addr show vxlan.calico");
        for part in [
            "mtu 1450",
            "66:00:00:00:00:20",
            "vxlan id 4096 local 172.30.0.20 dev eth0",
            "dstport 4789 nolearning",
            "inet 10.65.0.0/32",
        ] {
            assert!(device.contains(part), "{part} is missing:\n{device}");
        }
        let device = lab.sh("ip -d addr show vxlan-v6.calico");
        assert!(device.contains("mtu 1430") && device.contains("local fd30::20"), "{device}");

        // Another run finds everything as it should be.
        tunnels.queue_resync();
        assert_eq!(apply(&mut tunnels).await, 0);
        assert_eq!(listed(&lab), now);

        // A node joins: a neighbour, a forwarding entry, a route.
        tunnels.set_vtep("new".into(), Family::V4, Some(vtep("172.30.1.23", "10.65.3.0", 0x23)));
        tunnels.set_route("10.65.3.0/26".parse().unwrap(), vxlan("10.65.3.0"));
        assert_eq!(apply(&mut tunnels).await, 3);
        // And leaves.
        tunnels.set_vtep("new".into(), Family::V4, None);
        tunnels.set_route("10.65.3.0/26".parse().unwrap(), None);
        assert_eq!(apply(&mut tunnels).await, 3);
        assert_eq!(listed(&lab), now);

        // A node gets another tunnel address, and another address.
        tunnels.set_vtep("far".into(), Family::V4, Some(vtep("172.30.1.99", "10.65.2.7", 0x22)));
        tunnels.set_route("10.65.2.0/26".parse().unwrap(), vxlan("10.65.2.7"));
        assert_eq!(apply(&mut tunnels).await, 5);
        let moved = listed(&lab);
        assert!(moved.contains("10.65.2.0/26 via 10.65.2.7 dev vxlan.calico"), "{moved}");
        assert!(moved.contains("66:00:00:00:00:22 dev vxlan.calico dst 172.30.1.99"), "{moved}");
        assert!(!moved.contains("172.30.1.22"), "{moved}");
    });
}

#[test]
fn parameters_apply_to_a_running_device_and_nothing_stays_when_it_is_off() {
    in_namespace(&["ip", "bridge"], |lab| async move {
        let before = listed(&lab);
        let mut tunnels = cluster(&lab);
        apply(&mut tunnels).await;
        let normal = listed(&lab);
        let device = |lab: &Lab| lab.sh("ip -d addr show vxlan.calico");
        // The MTU follows the way out, without a new device.
        let index = device(&lab).split(':').next().unwrap().to_owned();
        lab.sh("ip link set eth0 mtu 1400");
        tunnels.queue_resync();
        assert!(apply(&mut tunnels).await > 0);
        assert!(device(&lab).contains("mtu 1350"), "{}", device(&lab));
        assert!(device(&lab).starts_with(&index), "made anew for its MTU: {}", device(&lab));
        for (change, expected) in [
            (TunnelSettings { vni: 77, ..settings() }, "vxlan id 77 "),
            (TunnelSettings { port: 8472, ..settings() }, "dstport 8472 "),
            (TunnelSettings { vxlan_mtu_v4: 1300, ..settings() }, "mtu 1300 "),
            (settings(), "vxlan id 4096 "),
        ] {
            tunnels.set_settings(change);
            assert!(apply(&mut tunnels).await > 0);
            assert!(device(&lab).contains(expected), "{expected}: {}", device(&lab));
            assert_eq!(listed(&lab), normal);
            assert_eq!(apply(&mut tunnels).await, 0);
        }
        // The tunnel's address and MAC come from the datastore.
        tunnels.set_own(OwnNode { vxlan_v4: Some(vtep("172.30.0.20", "10.65.0.9", 0x77)), ..own() });
        apply(&mut tunnels).await;
        let changed = device(&lab);
        assert!(changed.contains("inet 10.65.0.9/32") && !changed.contains("inet 10.65.0.0/32"), "{changed}");
        assert!(changed.contains("66:00:00:00:00:77"), "{changed}");
        // The node's address moves to another interface: so does the tunnel.
        lab.sh("ip link add eth1 type veth peer name peth1 && ip link set eth1 up && ip link set peth1 up");
        lab.sh("ip addr del 172.30.0.20/24 dev eth0");
        tunnels.queue_resync();
        let pass = tunnels.apply().await;
        assert!(
            pass.errors.iter().any(|error| error.to_string().contains("172.30.0.20")),
            "{:?}",
            pass.errors
        );
        assert!(listed(&lab).contains("10.65.2.0/26 via 10.65.2.0"), "removed while the address was away");
        lab.sh("ip addr add 172.30.0.20/24 dev eth1");
        tunnels.queue_resync();
        apply(&mut tunnels).await;
        assert!(device(&lab).contains("dev eth1"), "{}", device(&lab));
        assert!(listed(&lab).contains("10.65.1.0/26 via 172.30.0.21 dev eth1"), "{}", listed(&lab));
        // No pool wants it.
        tunnels.set_settings(TunnelSettings::default());
        apply(&mut tunnels).await;
        let after = listed(&lab);
        let ours: Vec<_> =
            after.lines().filter(|line| !before.contains(line) && line.contains("proto 80")).collect();
        assert!(ours.is_empty() && !lab.sh("ip link").contains("calico"), "{after}");
    });
}

#[test]
fn damage_is_seen_by_events_and_repaired() {
    in_namespace(&["ip", "bridge"], |lab| async move {
        let mut tunnels = cluster(&lab);
        let mut monitor = Monitor::open().unwrap();
        apply(&mut tunnels).await;
        let right = listed(&lab);
        for damage in [
            "ip route del 10.65.2.0/26",
            "ip route replace 10.65.1.0/26 via 172.30.0.99 dev eth0",
            "ip route del blackhole 10.65.0.0/26",
            "ip -6 route del fd65::2:0/122",
            "ip route add 10.65.99.0/26 dev vxlan.calico",
            "ip neigh del 10.65.2.0 dev vxlan.calico",
            "ip neigh replace 10.65.2.0 lladdr 02:00:00:00:00:01 dev vxlan.calico nud permanent",
            "ip neigh add 10.65.9.9 lladdr 02:00:00:00:00:01 dev vxlan.calico nud permanent",
            "bridge fdb del 66:00:00:00:00:22 dev vxlan.calico dst 172.30.1.22 self",
            "bridge fdb append 66:00:00:00:00:22 dev vxlan.calico dst 172.30.1.77 self permanent",
            "ip link set vxlan.calico down",
            "ip link set vxlan.calico mtu 1000",
            "ip addr del 10.65.0.0/32 dev vxlan.calico",
            "ip addr add 10.65.0.33/32 dev vxlan.calico",
            "ip link del vxlan.calico",
            "ip link del vxlan.calico && ip link add vxlan.calico type veth peer name other",
        ] {
            // Its own echoes are no reason to write, and in the end none to look.
            for _ in 0..5 {
                settle(&mut monitor, &mut tunnels).await;
                if tunnels.needs_apply() {
                    assert_eq!(apply(&mut tunnels).await, 0, "before `{damage}`");
                }
            }
            settle(&mut monitor, &mut tunnels).await;
            assert!(!tunnels.needs_apply(), "before `{damage}`");
            lab.sh(damage);
            eventually(LIMIT, async || {
                settle(&mut monitor, &mut tunnels).await;
                match tunnels.needs_apply() {
                    true => Ok(()),
                    false => Err(format!("`{damage}` was not noticed")),
                }
            })
            .await;
            assert!(apply(&mut tunnels).await > 0, "{damage}");
            assert_eq!(listed(&lab), right, "{damage}");
            let device = lab.sh("ip addr show vxlan.calico");
            assert!(device.contains("mtu 1450") && device.contains("UP,LOWER_UP"), "{damage}: {device}");
            assert_eq!(device.matches("inet 10.65").count(), 1, "{damage}: {device}");
        }
    });
}

/// Hands over the events of the last moments.
async fn settle(monitor: &mut Monitor, tunnels: &mut Tunnels) {
    while let Ok(events) = tokio::time::timeout(Duration::from_millis(20), monitor.next()).await {
        let mut addresses = false;
        for event in events.unwrap() {
            match event {
                Event::Link(link) => tunnels.on_link(&link),
                Event::LinkGone { index } => tunnels.on_link_gone(index),
                Event::RouteAdded(route) => tunnels.on_route(&route, true),
                Event::RouteGone(route) => tunnels.on_route(&route, false),
                Event::Neighbour(change) => tunnels.on_neighbour(&change),
                Event::Addresses => addresses = true,
                Event::Lost => tunnels.queue_resync(),
            }
        }
        if addresses {
            tunnels.on_addresses(&felix::routetable::listing::interface_addresses().await.unwrap());
        }
    }
}

#[test]
fn a_kernel_without_ipip_is_told_about_once_and_the_rest_goes_on() {
    in_namespace(&["ip"], |lab| async move {
        let mut tunnels = cluster(&lab);
        tunnels.set_route(
            "10.66.1.0/26".parse().unwrap(),
            route(Encapsulation::IpIp, Hop::Tunnel(ip("172.30.1.22"))),
        );
        tunnels.set_settings(TunnelSettings { ipip: true, ..settings() });
        apply(&mut tunnels).await;
        assert!(listed(&lab).contains("10.65.2.0/26 via 10.65.2.0 dev vxlan.calico"), "{}", listed(&lab));
        let missing: Vec<_> = tunnels.unsupported().cloned().collect();
        if lab.sh("ip link").contains("tunl0") {
            assert!(missing.is_empty(), "{missing:?}");
            assert!(listed(&lab).contains("10.66.1.0/26 via 172.30.1.22 dev tunl0 proto 80 onlink"));
            assert!(lab.sh("ip addr show tunl0").contains("inet 10.66.0.1/32"));
        } else {
            assert!(missing[0].contains("tunl0") && missing[0].contains("modprobe ipip"), "{missing:?}");
            assert!(!tunnels.needs_apply(), "it would try without end");
            tunnels.queue_resync();
            assert_eq!(apply(&mut tunnels).await, 0);
        }
        // A pool of another mode needs it no more.
        tunnels.set_settings(TunnelSettings { program: Program { ipip: true, plain: true }, ..settings() });
        apply(&mut tunnels).await;
        assert_eq!(tunnels.unsupported().count(), 0);
    });
}

#[test]
fn routes_that_are_not_to_be_touched_are_not() {
    in_namespace(&["ip", "bridge"], |lab| async move {
        let mut tunnels = cluster(&lab);
        tunnels.set_settings(TunnelSettings { routes_disabled: true, ..settings() });
        lab.sh("ip route add blackhole 10.65.77.0/26 proto 80");
        apply(&mut tunnels).await;
        let now = listed(&lab);
        assert!(now.contains("10.65.77.0/26") && !now.contains("10.65.2.0/26"), "{now}");
    });
}
