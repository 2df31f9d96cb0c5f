//! Parameters take effect while the agent runs, each alone, and so does their removal.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::{Endpoint, Ports};
use dataplane_support::cluster::{cluster, config, difference, state};
use dataplane_support::node::{Node, SOCKET};
use dataplane_support::{Lab, eventually, in_namespace};
use felix::control::ask;
use felix::iptables::Backend;
use syncer_common::model::{HostEndpointKey, Key, Update, Value, values};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(30);
const TOOLS: [&str; 4] = ["ip", "ipset", "iptables-nft-restore", "conntrack"];

enum Shows {
    With(&'static str),
    Without(&'static str),
}
use Shows::{With, Without};

/// Name, value, and what tells in the kernel.
const PARAMETERS: [(&str, &str, Shows); 23] = [
    ("AllowIPIPPacketsFromWorkloads", "true", Without("Drop IPinIP encapped")),
    ("AllowVXLANPacketsFromWorkloads", "true", Without("Drop VXLAN encapped")),
    (
        "ChainInsertMode",
        "append",
        With("-A FORWARD -j TEST\n-A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\""),
    ),
    ("DefaultEndpointToHostAction", "ACCEPT", With("Configured DefaultEndpointToHostAction\" -j ACCEPT")),
    ("DeviceRouteProtocol", "80", With("10.65.0.1 dev cali1 proto 80 ")),
    (
        "DeviceRouteSourceAddress",
        "172.30.0.1",
        With("10.65.0.1 dev cali1 proto boot scope link src 172.30.0.1 "),
    ),
    ("DisableConntrackInvalidCheck", "true", Without("--ctstate INVALID")),
    ("FailsafeInboundHostPorts", "tcp:4242", With("--dports 4242 -j")),
    ("FailsafeOutboundHostPorts", "none", Without("-A cali-failsafe-out")),
    ("IPv4NormalRoutePriority", "777", With("10.65.0.1 dev cali1 proto boot scope link metric 777")),
    ("InterfaceExclude", "ext0", Without("add cali40this-host 172.30.0.1")),
    ("InterfacePrefix", "cali,tap", With("-i tap+")),
    ("IptablesFilterAllowAction", "RETURN", With("--icmpv6-type 130 -j RETURN")),
    ("IptablesFilterDenyAction", "REJECT", With("Unknown interface\" -j REJECT")),
    ("IptablesMangleAllowAction", "RETURN", With("cali:Wr3YEtmil9N6TPC4")),
    ("IptablesMarkMask", "0xff00", With("--set-xmark 0x100/0x100")),
    ("IptablesNATOutgoingInterfaceFilter", "eth9", With("-o eth9")),
    ("MaxIpsetSize", "4096", With("maxelem 4096")),
    ("NATOutgoingAddress", "172.30.0.1", With("-j SNAT --to-source 172.30.0.1")),
    ("NATOutgoingExclusions", "IPPoolsAndHostIPs", With("create cali40all-hosts-net")),
    ("NATPortRange", "32768:65000", With("--to-ports 32768-65000")),
    ("WorkloadSourceSpoofing", "Any", With("-A cali-rpf-skip -s 198.51.100.0/24 -i cali2 ")),
    ("VXLANEnabled", "true", With("create cali40all-vxlan-net")),
];

/// The kernel's state and what it leaves out.
fn everything(lab: &Lab) -> String {
    state(lab, Backend::Nft)
        + &lab.sh("ipset save | sed -n 's/ hashsize [0-9]*\\(.*maxelem [0-9]*\\).*/\\1/p' | sort")
}

#[test]
fn every_parameter_takes_effect_and_goes_again_while_it_runs() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("ext0");
        lab.sh("ip addr add 172.30.0.1/24 dev ext0");
        lab.sh("iptables-nft -N TEST; iptables-nft -A FORWARD -j TEST");
        lab.veth("cali1");
        lab.veth("cali2");
        lab.running("cali1").await;
        lab.running("cali2").await;
        let mut node = Node::start(&lab, Backend::Nft).await;
        let key = HostEndpointKey { host: "n1".into(), endpoint: "ext0".into() };
        let value = values::HostEndpoint { name: "ext0".into(), ..Default::default() };
        let mut updates = cluster();
        for update in &mut updates {
            if let Ok(Value::WorkloadEndpoint(endpoint)) = &mut update.value
                && endpoint.name == "cali2"
            {
                endpoint.allow_spoofed_source_prefixes = vec!["198.51.100.0/24".into()];
            }
        }
        updates.push(Update::set(Key::HostEndpoint(key), Value::HostEndpoint(value)));
        node.program(updates).await;
        let mut last = String::new();
        let before = eventually(LIMIT, async || {
            let now = everything(&lab);
            let settled = now.contains("10.65.0.1 dev cali1") && now.contains("10.65.0.2 dev cali2");
            if std::mem::replace(&mut last, now.clone()) == now && settled { Ok(now) } else { Err(now) }
        })
        .await;
        for (name, value, shows) in PARAMETERS {
            node.program(vec![config(name, value)]).await;
            eventually(LIMIT, async || {
                let now = everything(&lab);
                let shown = match shows {
                    With(text) => now.contains(text) && !before.contains(text),
                    Without(text) => !now.contains(text) && before.contains(text),
                };
                if shown { Ok(()) } else { Err(format!("{name}={value}:\n{}", difference(&before, &now))) }
            })
            .await;
            node.program(vec![Update::delete(Key::GlobalConfig { name: name.into() })]).await;
            eventually(LIMIT, async || {
                let now = everything(&lab);
                if now == before {
                    Ok(())
                } else {
                    Err(format!("{name} gone:\n{}", difference(&before, &now)))
                }
            })
            .await;
        }
        let status = ask(&lab.path().join(SOCKET), &["status"]).await.unwrap();
        assert!(!status.contains("not in force"), "{status}");
        node.stop().await;
    });
}

#[test]
fn the_status_files_move_with_their_prefix() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        let files = |folder: &str| {
            let entries = std::fs::read_dir(lab.path().join(folder).join("endpoint-status"));
            entries.map_or(0, Iterator::count)
        };
        let are = async |first: usize, second: usize| {
            eventually(LIMIT, async || match (files("status"), files("other")) {
                found if found == (first, second) => Ok(()),
                found => Err(format!("{found:?}")),
            })
            .await;
        };
        are(1, 0).await;
        let other = lab.path().join("other").display().to_string();
        node.program(vec![config("EndpointStatusPathPrefix", &other)]).await;
        are(0, 1).await;
        node.program(vec![config("EndpointStatusPathPrefix", "none")]).await;
        are(0, 0).await;
        node.program(vec![Update::delete(Key::GlobalConfig { name: "EndpointStatusPathPrefix".into() })])
            .await;
        are(1, 0).await;
        node.stop().await;
    });
}

#[test]
fn health_and_metrics_are_served_where_the_datastore_says_unless_this_node_says_otherwise() {
    in_namespace(&TOOLS, |lab| async move {
        let local = BTreeMap::from([("HealthPort".to_owned(), "9199".to_owned())]);
        let (ports_out, mut ports) = watch::channel(Ports::default());
        let mut node = Node::start_serving(&lab, local, ports_out).await;
        node.program(cluster()).await;
        assert_eq!(*ports.borrow(), Ports::default());
        node.program(vec![config("HealthEnabled", "true"), config("HealthPort", "9299")]).await;
        let at = |host: &str, port| Some(Endpoint::new(host, port));
        assert_eq!(*ports.borrow_and_update(), Ports { metrics: None, health: at("localhost", 9199) });
        // What cannot be read leaves everything where it is, and is told.
        let bad = [config("PrometheusMetricsEnabled", "true"), config("PrometheusMetricsPort", "many")];
        node.program(bad.into()).await;
        assert!(!ports.has_changed().unwrap());
        let status = ask(&lab.path().join(SOCKET), &["status"]).await.unwrap();
        assert!(
            status.contains("not in force: parameter PrometheusMetricsPort of the datastore"),
            "{status}"
        );
        node.program(vec![config("PrometheusMetricsPort", "9391")]).await;
        let both = Ports { metrics: at("", 9391), health: at("localhost", 9199) };
        assert_eq!(*ports.borrow_and_update(), both);
        node.program(vec![Update::delete(Key::GlobalConfig { name: "HealthEnabled".into() })]).await;
        assert_eq!(*ports.borrow_and_update(), Ports { health: None, ..both });
        node.stop().await;
    });
}
