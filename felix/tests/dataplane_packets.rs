//! What hosts outside and workloads see of address translation, service loops and DSCP: real packets between
//! namespaces, felix in the middle.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::cell::RefCell;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane_support::node::Node;
use dataplane_support::peer::{Peer, exchange};
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use syncer_common::model::{HostEndpointKey, Key, ResourceKey, Update, Value, WorkloadEndpointKey, values};

const LIMIT: Duration = Duration::from_secs(20);
const TOOLS: [&str; 4] = ["ip", "ipset", "iptables-nft-restore", "conntrack"];
const NODE: &str = "172.30.0.1";
const OUTSIDE: &str = "172.30.0.9";

/// The node between a workload and a host outside, which has a way back to all addresses here.
struct World {
    node: Node,
    lab: Lab,
    pod: Peer,
    outside: Peer,
    /// Of the flows so far: a port is not used twice, else the kernel would take it for the same flow.
    clients: RefCell<Vec<UdpSocket>>,
}

impl World {
    async fn new(lab: Lab) -> World {
        let outside = Peer::attach(&lab, "eth0");
        lab.sh(&format!("ip addr add {NODE}/24 dev eth0 && ip route add default via {OUTSIDE}"));
        outside.sh(&format!("ip addr add {OUTSIDE}/24 dev eth0 && ip route add default via {NODE}"));
        let pod = Peer::workload(&lab, "cali1", "10.65.0.1");
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(vec![pool(), profile(), pod_update(|_| {})]).await;
        World { node, lab, pod, outside, clients: RefCell::default() }
    }

    /// As whom a host outside sees a new flow of the pod.
    async fn seen(&self) -> SocketAddr {
        let server = self.outside.udp("0.0.0.0:7000");
        eventually(LIMIT, async || {
            let client = self.pod.udp("10.65.0.1:0");
            let seen = exchange(&client, &format!("{OUTSIDE}:7000"), &server).await.map(|(seen, _)| seen);
            self.clients.borrow_mut().push(client);
            seen
        })
        .await
    }
}

fn config(name: &str, value: &str) -> Update {
    Update::set(Key::GlobalConfig { name: name.into() }, Value::Config(value.into()))
}

fn unset(name: &str) -> Update {
    Update::delete(Key::GlobalConfig { name: name.into() })
}

fn resource(kind: &str, name: &str) -> Key {
    Key::Resource(ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() })
}

fn pool() -> Update {
    let cidr = "10.65.0.0/16";
    let value = values::IpPool { cidr: cidr.into(), masquerade: true, ..Default::default() };
    Update::set(Key::IpPool { cidr: cidr.parse().unwrap() }, Value::IpPool(value))
}

fn profile() -> Update {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules))
}

fn pod_update(edit: impl FnOnce(&mut values::WorkloadEndpoint)) -> Update {
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: "default/web".into(),
        endpoint: "eth0".into(),
    };
    let mut value = values::WorkloadEndpoint {
        state: "active".into(),
        name: "cali1".into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec!["10.65.0.1/32".into()],
        ..Default::default()
    };
    edit(&mut value);
    Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value))
}

#[test]
fn a_floating_address_leads_to_its_workload_and_is_its_address_for_itself() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        let nat = || values::IpNat { internal_ip: "10.65.0.1".into(), external_ip: "192.0.2.7".into() };
        let floating = || pod_update(|endpoint| endpoint.ipv4_nats = vec![nat()]);
        // Off by default.
        world.node.program(vec![floating()]).await;
        let rules = |lab: &Lab| lab.sh("iptables-nft-save -t nat");
        assert!(!rules(&world.lab).contains("192.0.2.7"), "{}", rules(&world.lab));
        world.node.program(vec![config("FloatingIPs", "Enabled")]).await;
        let now = rules(&world.lab);
        assert!(now.contains("-A cali-fip-dnat -d 192.0.2.7/32"), "{now}");
        let routes = world.lab.sh("ip route");
        assert!(routes.contains("192.0.2.7 dev cali1"), "{routes}");

        let server = world.pod.udp("0.0.0.0:8000");
        let client = world.outside.udp("0.0.0.0:0");
        let (seen, answered) =
            eventually(LIMIT, async || exchange(&client, "192.0.2.7:8000", &server).await).await;
        assert_eq!((seen.ip().to_string(), answered.to_string()), (OUTSIDE.into(), "192.0.2.7:8000".into()));
        // The pod calls itself by that address, the host calls it, too.
        let own = world.pod.udp("10.65.0.1:0");
        let (seen, answered) =
            eventually(LIMIT, async || exchange(&own, "192.0.2.7:8000", &server).await).await;
        assert_eq!(
            (seen.ip().to_string(), answered.to_string()),
            ("192.0.2.7".into(), "192.0.2.7:8000".into())
        );

        // It goes with its endpoint's word.
        world.node.program(vec![pod_update(|_| {})]).await;
        assert!(!rules(&world.lab).contains("192.0.2.7"), "{}", rules(&world.lab));
        eventually(LIMIT, async || {
            let routes = world.lab.sh("ip route");
            if routes.contains("192.0.2.7") { Err(routes) } else { Ok(()) }
        })
        .await;
        world.node.stop().await;
    });
}

#[test]
fn what_no_proxy_translated_is_not_sent_back_out() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        world.outside.sh("ip addr add 10.96.0.5/32 dev lo && ip addr add 203.0.113.9/32 dev lo");
        let (service, other) = (world.outside.udp("10.96.0.5:9000"), world.outside.udp("203.0.113.9:9000"));
        let pod = world.pod.udp("10.65.0.1:0");
        // Without ranges the packet leaves, as any other.
        eventually(LIMIT, async || exchange(&pod, "10.96.0.5:9000", &service).await).await;
        let ranges = values::BgpConfiguration {
            service_cluster_ips: vec!["10.96.0.0/12".into()],
            service_external_ips: vec!["fd96::/112".into()],
            ..Default::default()
        };
        let ranges = Update::set(resource("BGPConfiguration", "default"), Value::BgpConfiguration(ranges));
        world.node.program(vec![ranges]).await;
        let rules = |version: &str| world.lab.sh(&format!("{version}tables-nft-save -t filter"));
        assert!(rules("ip").contains("-A cali-cidr-block -d 10.96.0.0/12"), "{}", rules("ip"));
        assert!(rules("ip6").contains("-A cali-cidr-block -d fd96::/112"), "{}", rules("ip6"));
        let lost = async |service: &UdpSocket| {
            while service.recv_from(&mut [0; 16]).is_ok() {}
            // From a socket of its own: an established connection would pass.
            let pod = world.pod.udp("10.65.0.1:0");
            pod.send_to(b"loop", "10.96.0.5:9000").unwrap();
            // What is sent later arrives, so the first one would have.
            eventually(LIMIT, async || exchange(&pod, "203.0.113.9:9000", &other).await).await;
            service.recv_from(&mut [0; 16]).is_err()
        };
        assert!(lost(&service).await, "a packet to a service went out again");
        world.node.program(vec![config("ServiceLoopPrevention", "Disabled")]).await;
        assert!(!lost(&service).await, "dropped though prevention is off");
        world.node.stop().await;
    });
}

/// The DSCP with which the next datagram with this text arrives.
async fn arriving_dscp(packets: &impl std::os::fd::AsRawFd, text: &[u8]) -> Result<u8, String> {
    let mut buffer = [0; 256];
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        match recv(packets.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if buffer[..length].ends_with(text) => return Ok(buffer[1] >> 2),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    Err(format!("{:?} did not arrive", String::from_utf8_lossy(text)))
}

#[test]
fn what_leaves_the_cluster_carries_the_dscp_of_its_endpoint() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        world.outside.sh("ip addr add 10.65.9.9/32 dev lo");
        let packets = world.outside.inside(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Udp).unwrap()
        });
        let pod = world.pod.udp("10.65.0.1:0");
        let here = UdpSocket::bind(format!("{NODE}:0")).unwrap();
        let sent = async |from: &UdpSocket, to: &str, text: &str| {
            eventually(LIMIT, async || {
                from.send_to(text.as_bytes(), to).map_err(|error| error.to_string())?;
                arriving_dscp(&packets, text.as_bytes()).await
            })
            .await
        };
        let out = format!("{OUTSIDE}:7001");
        assert_eq!(sent(&pod, &out, "plain").await, 0);
        let qos = values::QosControls { dscp: Some(46), ..Default::default() };
        let host = values::HostEndpoint {
            name: "eth0".into(),
            expected_ipv4_addrs: vec![NODE.into()],
            profile_ids: vec!["open".into()],
            dscp: Some(10),
            ..Default::default()
        };
        let key = HostEndpointKey { host: "n1".into(), endpoint: "n1-eth0".into() };
        world
            .node
            .program(vec![
                pod_update(|endpoint| endpoint.qos = Some(qos)),
                Update::set(Key::HostEndpoint(key.clone()), Value::HostEndpoint(host)),
            ])
            .await;
        assert_eq!(sent(&pod, &out, "marked").await, 46);
        assert_eq!(sent(&here, &out, "of the host").await, 10);
        assert_eq!(sent(&pod, "10.65.9.9:7001", "within the pools").await, 0);
        let sets = world.lab.sh("ipset save cali40dscp-src-net");
        assert!(sets.contains("net 10.65.0.1") && sets.contains(&format!("net {NODE}")), "{sets}");
        world.node.program(vec![pod_update(|_| {}), Update::delete(Key::HostEndpoint(key))]).await;
        assert_eq!(sent(&pod, &out, "plain again").await, 0);
        let sets = world.lab.sh("ipset save cali40dscp-src-net");
        assert!(!sets.contains("add "), "{sets}");
        world.node.stop().await;
    });
}

#[test]
fn limits_of_a_workload_are_in_its_chains() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        let qos = values::QosControls {
            ingress_packet_rate: 100,
            ingress_packet_burst: 5,
            egress_max_connections: 2,
            ..Default::default()
        };
        world.node.program(vec![pod_update(|endpoint| endpoint.qos = Some(qos))]).await;
        let now = world.lab.sh("iptables-nft-save -t filter");
        let has = |chain: &str, part: &str| {
            now.lines().any(|line| line.starts_with(&format!("-A {chain} ")) && line.contains(part))
        };
        assert!(has("cali-tw-cali1", "--limit 100/sec"), "{now}");
        assert!(has("cali-fw-cali1", "--connlimit-above 2"), "{now}");
        world.node.stop().await;
    });
}

#[test]
fn a_host_outside_sees_the_configured_address_and_ports() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        assert_eq!(world.seen().await.ip().to_string(), NODE);

        world.node.program(vec![config("NATPortRange", "40000:40019")]).await;
        for _ in 0..5 {
            let seen = world.seen().await;
            assert_eq!(seen.ip().to_string(), NODE);
            assert!((40000..40020).contains(&seen.port()), "{seen}");
        }
        world.lab.sh("ip addr add 172.30.0.77/32 dev eth0");
        world.node.program(vec![config("NATOutgoingAddress", "172.30.0.77")]).await;
        let seen = world.seen().await;
        assert_eq!(seen.ip().to_string(), "172.30.0.77");
        assert!((40000..40020).contains(&seen.port()), "{seen}");
        world.node.program(vec![unset("NATPortRange")]).await;
        assert_eq!(world.seen().await.ip().to_string(), "172.30.0.77");

        // Only what leaves by interfaces that the filter names.
        let filter = "IptablesNATOutgoingInterfaceFilter";
        world.node.program(vec![unset("NATOutgoingAddress"), config(filter, "eth0")]).await;
        assert_eq!(world.seen().await.ip().to_string(), NODE);
        world.node.program(vec![config(filter, "eth7")]).await;
        assert_eq!(world.seen().await.ip().to_string(), "10.65.0.1");
        world.node.program(vec![unset(filter)]).await;
        assert_eq!(world.seen().await.ip().to_string(), NODE);

        // Not towards other nodes, when told so.
        let bgp = values::NodeBgp { ipv4_address: format!("{OUTSIDE}/24"), ..Default::default() };
        let other = values::Node { bgp: Some(bgp), ..Default::default() };
        world
            .node
            .program(vec![
                Update::set(resource("Node", "n2"), Value::Node(other)),
                config("NATOutgoingExclusions", "IPPoolsAndHostIPs"),
            ])
            .await;
        assert_eq!(world.seen().await.ip().to_string(), "10.65.0.1");
        // A pool without natOutgoing keeps its sources.
        let Update { key, .. } = pool();
        let quiet = values::IpPool { cidr: "10.65.0.0/16".into(), ..Default::default() };
        world
            .node
            .program(vec![unset("NATOutgoingExclusions"), Update::set(key, Value::IpPool(quiet))])
            .await;
        assert_eq!(world.seen().await.ip().to_string(), "10.65.0.1");
        world.node.stop().await;
    });
}

fn tracked(lab: &Lab) -> String {
    lab.sh("conntrack -L --orig-src 10.65.0.1 2>/dev/null || true")
}

#[test]
fn connections_of_an_address_that_moves_are_forgotten() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        world.seen().await;
        assert!(tracked(&world.lab).contains("dport=7000"), "{}", tracked(&world.lab));
        // Another workload gets the address, while felix runs.
        let forgotten = async |lab: &Lab| {
            eventually(LIMIT, async || {
                let now = tracked(lab);
                if now.contains("dport=7000") { Err(now) } else { Ok(()) }
            })
            .await;
        };
        let second = Peer::workload(&world.lab, "cali2", "10.65.0.1");
        let _first = std::mem::replace(&mut world.pod, second);
        world.node.program(vec![pod_update(|endpoint| endpoint.name = "cali2".into())]).await;
        forgotten(&world.lab).await;
        world.seen().await;

        // And while it does not.
        world.node.stop().await;
        let third = Peer::workload(&world.lab, "cali3", "10.65.0.1");
        let _second = std::mem::replace(&mut world.pod, third);
        world.node = Node::start(&world.lab, Backend::Nft).await;
        assert!(tracked(&world.lab).contains("dport=7000"), "{}", tracked(&world.lab));
        world
            .node
            .program(vec![pool(), profile(), pod_update(|endpoint| endpoint.name = "cali3".into())])
            .await;
        forgotten(&world.lab).await;
        world.seen().await;

        // Its workload goes.
        let gone = || Update::delete(pod_update(|_| {}).key);
        world.node.program(vec![gone()]).await;
        forgotten(&world.lab).await;

        // And once more, the interface first, as a CNI plugin does it.
        world.node.program(vec![pod_update(|endpoint| endpoint.name = "cali3".into())]).await;
        world.seen().await;
        world.lab.sh("ip link del cali3");
        world.node.program(vec![Update::delete(pool().key)]).await;
        assert!(tracked(&world.lab).contains("dport=7000"), "the workload is still declared");
        world.node.program(vec![gone(), pool()]).await;
        forgotten(&world.lab).await;
        world.node.stop().await;
    });
}

/// As kube-controllers write it (`hostEndpoint.autoCreate`), beside a policy of the operator's.
const AUTOMATIC: &str = "
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata:
  name: n1-auto-hep
  labels: {projectcalico.org/created-by: calico-kube-controllers, kubernetes.io/hostname: n1}
spec:
  node: n1
  interfaceName: '*'
  expectedIPs: [172.30.0.1]
  profiles: [projectcalico-default-allow]
";
const CLOSED: &str = "
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: closed}
spec:
  selector: has(projectcalico.org/created-by)
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: UDP, destination: {ports: [7300]}}
";

fn manifest(lab: &Lab, text: &str) -> Vec<Update> {
    let file = lab.path().join("objects.yaml");
    std::fs::write(&file, text).unwrap();
    let (updates, errors) = syncer_common::manifests::load_updates(&file);
    assert!(errors.is_empty(), "{errors:?}");
    updates
}

#[test]
fn an_automatic_host_endpoint_allows_all_until_a_policy_names_it_and_never_locks_ssh_out() {
    in_namespace(&TOOLS, |lab| async move {
        let mut world = World::new(lab).await;
        world.node.program(manifest(&world.lab, AUTOMATIC)).await;
        let listening = |port: u16| {
            let socket = UdpSocket::bind(format!("{NODE}:{port}")).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let (refused, allowed) = (listening(7200), listening(7300));
        let _ssh = std::net::TcpListener::bind(format!("{NODE}:22")).unwrap();
        let ssh = |world: &World| {
            let at = format!("{NODE}:22").parse().unwrap();
            world.outside.inside(|| std::net::TcpStream::connect_timeout(&at, LIMIT).is_ok())
        };
        let client = world.outside.udp("0.0.0.0:0");
        let open = async |port: u16, server: &UdpSocket| {
            eventually(LIMIT, async || exchange(&client, &format!("{NODE}:{port}"), server).await).await;
        };
        open(7200, &refused).await;
        open(7300, &allowed).await;
        assert!(ssh(&world));

        world.node.program(manifest(&world.lab, &format!("{AUTOMATIC}{CLOSED}"))).await;
        open(7300, &allowed).await;
        // From a port of its own: an open flow goes on.
        let another = world.outside.udp("0.0.0.0:0");
        another.send_to(b"no", format!("{NODE}:7200")).unwrap();
        open(7300, &allowed).await;
        assert!(refused.recv_from(&mut [0; 8]).is_err(), "let in without a rule");
        assert!(ssh(&world), "the failsafe port is closed");
        // What passes through to workloads, and from them, is none of its business.
        world.seen().await;
        world.node.stop().await;
    });
}
