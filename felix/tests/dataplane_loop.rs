//! The whole dataplane in a namespace: from the calculation's output to the kernel and back.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::time::Duration;

use dataplane_support::cluster::{cluster, config, endpoint, policy, state};
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

/// The lines that `ip monitor route` printed until it heard of a route that this adds and removes.
async fn heard(lab: &Lab, file: &str) -> String {
    lab.sh("ip route add blackhole 203.0.113.77 && ip route del blackhole 203.0.113.77");
    eventually(LIMIT, async || {
        let text = std::fs::read_to_string(file).unwrap();
        if text.contains("203.0.113.77") { Ok(text) } else { Err(text) }
    })
    .await
}

#[test]
fn what_a_cni_plugin_has_made_waits_for_its_endpoint() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        let file = lab.path().join("routes").display().to_string();
        let mut monitor = tokio::process::Command::new("ip");
        monitor.args(["monitor", "route"]).stdout(std::fs::File::create(&file).unwrap()).kill_on_drop(true);
        let _monitor = monitor.spawn().unwrap();
        eventually(LIMIT, async || {
            lab.sh("ip route add blackhole 203.0.113.1 && ip route del blackhole 203.0.113.1");
            let text = std::fs::read_to_string(&file).unwrap();
            if text.contains("203.0.113.1") { Ok(()) } else { Err("the monitor hears nothing yet".into()) }
        })
        .await;

        // A pod with a new address, and one with that of a pod which has just gone; the datastore knows of neither.
        lab.sh("ip link del cali1");
        for (interface, address) in [("cali9", "10.65.0.9"), ("cali10", "10.65.0.1")] {
            lab.veth(interface);
            lab.running(interface).await;
            lab.sh(&format!("ip route add {address} dev {interface} scope link"));
        }
        // Passes for other reasons: inputs, and links that come and go.
        for turn in ["client", "web", "client"] {
            lab.veth(&format!("cali3{turn}"));
            node.program(vec![policy("other", turn, "web")]).await;
            lab.sh(&format!("ip link del cali3{turn}"));
        }
        node.program(vec![Update::delete(endpoint("web", "cali1", "10.65.0.1").key)]).await;
        node.program(vec![policy("other", "client", "web")]).await;
        let routes = lab.sh("ip route");
        for kept in ["10.65.0.9 dev cali9 scope link", "10.65.0.1 dev cali10 scope link"] {
            assert!(routes.contains(kept), "{kept} did not wait:\n{routes}");
        }

        // Their endpoints arrive: the routes become felix's, without a gap.
        node.program(vec![endpoint("late", "cali9", "10.65.0.9"), endpoint("again", "cali10", "10.65.0.1")])
            .await;
        eventually(LIMIT, async || {
            let routes = lab.sh("ip route");
            let ours =
                ["10.65.0.9 dev cali9 scope link metric 1024", "10.65.0.1 dev cali10 scope link metric 1024"];
            let ready =
                ours.iter().all(|route| routes.contains(route)) && routes.matches("10.65.0.").count() == 3;
            if ready { Ok(()) } else { Err(routes) }
        })
        .await;
        let heard = heard(&lab, &file).await;
        for (address, interface) in [("10.65.0.9", "cali9"), ("10.65.0.1", "cali10")] {
            let ours = heard.find(&format!("\n{address} dev {interface} scope link metric 1024"));
            let gone = heard.find(&format!("\nDeleted {address} dev {interface} scope link"));
            assert!(ours.unwrap() < gone.unwrap(), "{address} had no route for a while:\n{heard}");
        }
        node.stop().await;
    });
}

#[test]
fn what_nobody_declares_goes_when_its_grace_ends() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("cali1");
        lab.veth("cali2");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        let made = std::time::Instant::now();
        lab.sh("ip route add 10.65.0.77 dev cali2");
        eventually(Duration::from_secs(60), async || {
            let routes = lab.sh("ip route");
            if routes.contains("10.65.0.77") { Err(routes) } else { Ok(()) }
        })
        .await;
        assert!(made.elapsed() >= Duration::from_secs(10), "gone after {:?}", made.elapsed());
        assert!(lab.sh("ip route").contains("10.65.0.2 dev cali2"));
        node.stop().await;
    });
}
