//! What packets of a new workload meet while felix writes: its policy or nothing, at no moment less. Senders run all
//! the time; the route is there before felix knows of the workload, so that only rules keep packets from passing.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane_support::cluster::{endpoint, pool, profile};
use dataplane_support::node::Node;
use dataplane_support::peer::{Peer, exchange};
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use syncer_common::model::{Key, PolicyKey, Update, Value, values};

const LIMIT: Duration = Duration::from_secs(20);
const TOOLS: [&str; 4] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore"];
const CLIENT: &str = "10.65.0.1";
const FRIEND: &str = "10.65.0.2";
const PORT: u16 = 7000;

/// Denies one selector, both ways, and allows everything else: a set that is not filled yet would let all in.
fn policy(name: &str, denied: &str) -> Update {
    let side = || Some(values::EntityRule { selector: denied.into(), ..Default::default() });
    let rule =
        |action: &str, src, dst| values::Rule { action: action.into(), src, dst, ..Default::default() };
    let value = values::Policy {
        tier: "default".into(),
        selector: format!("app == '{name}'"),
        inbound_rules: vec![rule("deny", side(), None), rule("allow", None, None)],
        outbound_rules: vec![rule("deny", None, side()), rule("allow", None, None)],
        types: vec!["ingress".into(), "egress".into()],
        ..Default::default()
    };
    Update::set(Key::Policy(policy_key(name)), Value::Policy(value))
}

fn policy_key(name: &str) -> PolicyKey {
    PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name: name.into() }
}

/// Many networks that sort before and after the client, so that its set takes a while to fill.
fn crowd() -> Update {
    let nets =
        (0..4_000).map(|n| format!("{}.{}.{}.0/24", if n % 2 == 0 { 9 } else { 11 }, n / 250, n % 250));
    let value = values::NetworkSet {
        nets: nets.collect(),
        labels: [("role".to_owned(), "crowd".to_owned())].into(),
        ..Default::default()
    };
    Update::set(Key::NetworkSet { name: "crowd".into() }, Value::NetworkSet(value))
}

/// Sends all the time, and tells what arrived.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, usize)>,
}

impl Flood {
    fn start(from: UdpSocket, to: String, at: UdpSocket) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut sent, mut arrived) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                sent += usize::from(from.send_to(b"flood", &to).is_ok());
                std::thread::sleep(Duration::from_micros(300));
                arrived += usize::from(at.recv_from(&mut [0; 8]).is_ok());
            }
            (sent, arrived)
        });
        Flood { stop, thread }
    }

    /// How many were sent, and how many arrived.
    fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

struct World {
    lab: Lab,
    client: Peer,
    friend: Peer,
}

impl World {
    fn base() -> Vec<Update> {
        vec![
            pool(),
            profile(),
            crowd(),
            endpoint("client", "calic", CLIENT),
            endpoint("friend", "calif", FRIEND),
        ]
    }

    /// A workload as a CNI plugin leaves it, and more: the host could deliver to it, and answers for its gateway.
    fn pod(&self, interface: &str, address: &str) -> Peer {
        let pod = Peer::workload(&self.lab, interface, address);
        self.lab.sh(&format!(
            "ip route replace {address}/32 dev {interface} && echo 1 >/proc/sys/net/ipv4/conf/{interface}/proxy_arp"
        ));
        pod
    }

    /// Both ways between the client and a pod.
    fn flood(&self, pod: &Peer, address: &str) -> [Flood; 2] {
        let (here, there) = (format!("{CLIENT}:{PORT}"), format!("{address}:{PORT}"));
        [
            Flood::start(self.client.udp(&format!("{CLIENT}:0")), there.clone(), pod.udp(&there)),
            Flood::start(pod.udp(&format!("{address}:0")), here.clone(), self.client.udp(&here)),
        ]
    }
}

#[test]
fn a_new_workload_is_never_open_before_its_policy() {
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(&TOOLS, move |lab| async move {
            lab.uplink();
            let client = Peer::workload(&lab, "calic", CLIENT);
            let friend = Peer::workload(&lab, "calif", FRIEND);
            let world = World { lab, client, friend };
            let mut node = Node::start(&world.lab, backend).await;
            let mut known = World::base();
            node.program(known.clone()).await;
            for round in 0..6 {
                let (name, interface) = (format!("pod{round}"), format!("calin{round}"));
                let address = format!("10.65.1.{}", round + 1);
                let pod = world.pod(&interface, &address);
                let selector = format!("app in {{ 'client', 'none-{round}' }} || role == 'crowd'");
                let (policy, workload) = (policy(&name, &selector), endpoint(&name, &interface, &address));
                known.extend([policy.clone(), workload.clone()]);
                let floods = world.flood(&pod, &address);
                match round % 3 {
                    0 => drop(node.program(vec![workload, policy]).await),
                    1 => {
                        node.program(vec![policy]).await;
                        node.program(vec![workload]).await;
                    }
                    // Felix dies while it writes, and starts again.
                    _ => {
                        node.feed(vec![policy, workload]).await;
                        let pause = Duration::from_millis(10 * u64::from(round % 2 == 0) + 15);
                        tokio::time::sleep(pause).await;
                        node.crash().await;
                        node = Node::start(&world.lab, backend).await;
                        node.program(known.clone()).await;
                    }
                }
                for flood in floods {
                    let (sent, arrived) = flood.stop();
                    assert!(sent > 0, "{}, round {round}: nothing was sent", backend.name());
                    assert_eq!(arrived, 0, "{}, round {round}: of {sent} packets passed", backend.name());
                }
                // It is the policy that keeps them out: others come in, and without it the client does.
                let server = pod.udp(&format!("{address}:8000"));
                let to = format!("{address}:8000");
                let friend = world.friend.udp(&format!("{FRIEND}:0"));
                eventually(LIMIT, async || exchange(&friend, &to, &server).await).await;
                let gone = Update::delete(Key::Policy(policy_key(&name)));
                known.push(gone.clone());
                node.program(vec![gone]).await;
                let client = world.client.udp(&format!("{CLIENT}:0"));
                eventually(LIMIT, async || exchange(&client, &to, &server).await).await;
            }
            node.stop().await;
        });
    }
}
