//! How long a new workload waits for its first packet on a node with many policies, from the moment that the calculation
//! is told of it: `cargo run --example new_pod -- [policies] [nft|legacy]`, as root; in a network namespace of its own.
//!
//! 200 workloads are there, each chosen by a two-hundredth of the policies. The new one comes with a policy of its own
//! that lets one workload in, which sends all the time. Also told: until all of it is in the kernel, status file included.

use std::net::UdpSocket;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use felix::iptables::Backend;
use support::cluster::{endpoint, policy, pool, profile};
use support::in_namespace;
use support::node::Node;
use support::peer::Peer;
use syncer_common::model::{Update, Value};

#[path = "../tests/dataplane_support/mod.rs"]
mod support;

const LOCAL: usize = 200;
const ROUNDS: usize = 20;
const PORT: u16 = 7000;

fn main() {
    let mut words = std::env::args().skip(1);
    let policies: usize = words.next().map_or(2_000, |text| text.parse().expect("a number of policies"));
    let backend = if words.next().as_deref() == Some("legacy") { Backend::Legacy } else { Backend::Nft };
    in_namespace(&["ip", "ipset", "conntrack"], move |lab| async move {
        lab.uplink();
        for n in 0..LOCAL {
            lab.veth(&format!("cali{n}"));
        }
        let client = Peer::workload(&lab, "calic", "10.65.1.1");
        let mut all = vec![pool(), profile(), endpoint("client", "calic", "10.65.1.1")];
        for n in 0..LOCAL {
            all.push(endpoint(&format!("a{n}"), &format!("cali{n}"), &format!("10.65.0.{}", n + 1)));
        }
        for n in 0..policies {
            // Each with a set of its own.
            let Update { key, value } = policy(&format!("p{n}"), &format!("a{}", n % LOCAL), "");
            let Ok(Value::Policy(mut value)) = value else { unreachable!("it is a policy") };
            for rule in &mut value.inbound_rules {
                let from = rule.src.as_mut().expect("it has a side");
                from.selector = format!("app in {{ 'a{}', 'b{n}' }}", (n + 1) % LOCAL);
            }
            all.push(Update::set(key, Value::Policy(value)));
        }
        let started = Instant::now();
        let mut node = Node::start(&lab, backend).await;
        node.program(all).await;
        println!(
            "{}: {LOCAL} workloads, {policies} policies from empty: {:.1?}",
            backend.name(),
            started.elapsed()
        );

        let (mut first, mut whole) = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            let (name, address) = (format!("new{n}"), format!("10.65.2.{}", n + 1));
            let pod = Peer::workload(&lab, &name_of(n), &address);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let server = pod.udp(&format!("{address}:{PORT}"));
            let sender = Sender::start(client.udp("10.65.1.1:0"), server, format!("{address}:{PORT}"));
            let started = Instant::now();
            node.program(vec![endpoint(&name, &name_of(n), &address), policy(&name, &name, "client")]).await;
            whole.push(started.elapsed());
            first.push(sender.arrived().duration_since(started));
        }
        report("a new workload's first packet let in", first);
        report("all of it in the kernel and acknowledged", whole);
        node.stop().await;
    });
}

fn name_of(n: usize) -> String {
    format!("calin{n}")
}

/// Sends until something arrives.
struct Sender {
    thread: JoinHandle<Instant>,
}

impl Sender {
    fn start(from: UdpSocket, at: UdpSocket, to: String) -> Sender {
        let thread = std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                // No route yet, or a policy's refusal.
                from.send_to(b"in?", &to).ok();
                if at.recv_from(&mut [0; 8]).is_ok() {
                    return Instant::now();
                }
                assert!(Instant::now() < deadline, "nothing arrives");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Sender { thread }
    }

    fn arrived(self) -> Instant {
        self.thread.join().expect("no panic")
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what}: median {:.1?}, worst of {}: {:.1?}",
        times[times.len() / 2],
        times.len(),
        times[times.len() - 1]
    );
}
