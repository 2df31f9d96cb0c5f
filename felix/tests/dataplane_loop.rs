//! The whole dataplane in a namespace: from the calculation's output to the kernel and back.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::time::Duration;

use dataplane_support::cluster::{cluster, config, policy, state};
use dataplane_support::node::Node;
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use syncer_common::model::Update;

const LIMIT: Duration = Duration::from_secs(20);
const TOOLS: [&str; 5] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];

fn each_backend(test: impl AsyncFn(Lab, Backend) + Copy + Send + 'static) {
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(&TOOLS, move |lab| async move { test(lab, backend).await });
    }
}

#[test]
fn what_is_calculated_is_in_the_kernel_when_it_is_acknowledged() {
    each_backend(async |lab, backend| {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, backend).await;
        node.program(cluster()).await;
        assert!(node.health.readiness().good);
        let now = state(&lab, backend);
        for part in [
            "-A cali-to-wl-dispatch",
            "cali-pi-np/default/web",
            "--match-set cali40s:",
            "10.65.0.2",
            "10.65.0.1 dev cali1 proto boot scope link metric 1024",
            "add cali40masq-ipam-pools 10.65.0.0/16",
            "-j MASQUERADE --random-fully",
        ] {
            assert!(now.contains(part), "{part} is missing:\n{now}");
        }
        assert_eq!(lab.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        // A second opinion, from a crate that asks the kernel in its own way.
        let mut other = iptables::new(false).unwrap();
        other.cmd = if backend == Backend::Nft { "iptables-nft" } else { "iptables-legacy" };
        for chain in ["cali-FORWARD", "cali-tw-cali1", "cali-pi-np/default/web", "cali-pri-open"] {
            assert!(other.chain_exists("filter", chain).unwrap(), "{chain}");
        }
        assert!(!other.chain_exists("filter", "cali-tw-cali3").unwrap());
        let files = lab.sh(&format!("ls {}", lab.path().join("status/endpoint-status").display()));
        assert!(files.contains("k8s default%2Fweb eth0"), "{files}");

        // Another client is let in: the set of the new selector comes, the old one goes.
        node.program(vec![policy("web", "web", "web")]).await;
        eventually(LIMIT, async || {
            let now = state(&lab, backend);
            let sets = now.matches("create cali40s:").count();
            if sets == 1 && now.contains(" 10.65.0.1\n") { Ok(()) } else { Err(now) }
        })
        .await;

        // Everything goes: what is left is the frame.
        let gone = cluster().into_iter().map(|update| Update::delete(update.key)).collect();
        node.program(gone).await;
        eventually(LIMIT, async || {
            let now = state(&lab, backend);
            let left = ["cali1", "10.65", "cali40s:", "cali-pi-"].iter().find(|part| now.contains(**part));
            left.map_or(Ok(()), |part| Err(format!("{part} is still there:\n{now}")))
        })
        .await;
        assert!(state(&lab, backend).contains("Unknown interface"));
        node.stop().await;
    });
}

#[test]
fn a_restart_changes_nothing_and_stopping_leaves_everything() {
    each_backend(async |lab, backend| {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, backend).await;
        node.program(cluster()).await;
        let before = state(&lab, backend);
        node.stop().await;
        assert_eq!(state(&lab, backend), before);

        let generation = || felix::iptables::generation::Generation::open().unwrap().read().unwrap();
        let at = generation();
        let mut node = Node::start(&lab, backend).await;
        node.program(cluster()).await;
        assert_eq!(state(&lab, backend), before);
        if backend == Backend::Nft {
            assert_eq!(generation(), at, "the restarted dataplane wrote");
        }
        node.stop().await;
    });
}

#[test]
fn nothing_is_written_before_the_first_proven_state() {
    in_namespace(&TOOLS, |lab| async move {
        lab.sh("ipset create cali40leftover hash:net; iptables-nft -N cali-leftover");
        let node = Node::start(&lab, Backend::Nft).await;
        let generation = felix::iptables::generation::Generation::open().unwrap();
        let at = generation.read().unwrap();
        // Interface events wake the loop; it must not act on them.
        lab.veth("cali1");
        tokio::time::timeout(Duration::from_millis(700), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(generation.read().unwrap(), at);
        assert!(lab.sh("ipset list -name").contains("leftover"));
        assert!(!node.health.readiness().good);
        node.stop().await;
    });
}

#[test]
fn damage_by_hand_is_repaired_without_any_input() {
    each_backend(async |lab, backend| {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, backend).await;
        let mut updates = cluster();
        updates.push(config("IptablesPostWriteCheckIntervalSecs", "0.3"));
        node.program(updates).await;
        let before = state(&lab, backend);
        let program = format!("iptables-{}", backend.name());
        for damage in [
            format!("{program} -F cali-to-wl-dispatch"),
            format!("{program} -F"),
            format!("ip6tables-{} -F FORWARD", backend.name()),
            "ip route del 10.65.0.1".to_owned(),
            "ip link set cali2 down && ip link set cali2 up".to_owned(),
        ] {
            lab.sh(&damage);
            eventually(LIMIT, async || {
                let now = state(&lab, backend);
                if now == before { Ok(()) } else { Err(format!("after `{damage}`:\n{now}")) }
            })
            .await;
        }
        node.stop().await;
    });
}

#[test]
fn configuration_applies_hot() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        assert!(
            lab.sh("iptables-nft-save -t filter")
                .contains("Configured DefaultEndpointToHostAction\" -j DROP")
        );
        let changes =
            vec![config("DefaultEndpointToHostAction", "ACCEPT"), config("ChainInsertMode", "nonsense")];
        node.program(changes).await;
        let now = lab.sh("iptables-nft-save -t filter");
        assert!(now.contains("Configured DefaultEndpointToHostAction\" -j ACCEPT"), "{now}");
        node.stop().await;
    });
}
