//! Felix takes over a node whose kernel somebody else programmed, while a connection is open.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane_support::node::Node;
use dataplane_support::{Lab, eventually, in_namespace};
use felix::iptables::Backend;
use felix::iptables::generation::Generation;
use nix::sched::{CloneFlags, unshare};
use syncer_common::model::{Key, PolicyKey, Update, Value, WorkloadEndpointKey, values};

const TOOLS: [&str; 5] = ["ip", "ipset", "iptables-nft-restore", "iptables-legacy-restore", "conntrack"];
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod: a namespace with one interface to the node, on a thread of its own.
struct Pod<T> {
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Pod<T> {
    fn start(lab: &Lab, interface: &str, ip: &str, run: impl FnOnce() -> T + Send + 'static) -> Pod<T> {
        let (tid_out, tid) = mpsc::channel();
        let (wired, go_on) = mpsc::channel::<()>();
        let far = format!("p{interface}");
        let setup = format!(
            "ip link set lo up && ip addr add {ip}/32 dev {far} && ip link set {far} up && ip route add 169.254.1.1 dev {far} && ip route add default via 169.254.1.1"
        );
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tid_out.send(nix::unistd::gettid()).unwrap();
            go_on.recv().unwrap();
            let out = Command::new("sh").args(["-c", &setup]).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            run()
        });
        let tid = tid.recv().unwrap();
        lab.sh(&format!("ip link add {interface} type veth peer name {far} && ip link set {far} netns {tid} && ip link set {interface} up"));
        wired.send(()).unwrap();
        Pod { thread }
    }

    fn finish(self) -> T {
        self.thread.join().unwrap()
    }
}

/// The server, and the way to it, may come up a moment later.
fn connected() -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&"10.65.0.1:80".parse().unwrap(), PATIENCE) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An open connection from one pod to another: asks to send a byte and have it back.
struct Connection {
    server: Pod<()>,
    client: Pod<()>,
    ask: mpsc::Sender<u8>,
    answers: mpsc::Receiver<u8>,
}

impl Connection {
    fn open(lab: &Lab) -> Connection {
        let server = Pod::start(lab, "cali1", "10.65.0.1", || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).unwrap() == 1 {
                stream.write_all(&byte).unwrap();
            }
        });
        let (ask, asked) = mpsc::channel::<u8>();
        let (answer, answers) = mpsc::channel();
        let client = Pod::start(lab, "cali2", "10.65.0.2", move || {
            let mut stream: Option<TcpStream> = None;
            while let Ok(byte) = asked.recv() {
                let stream = stream.get_or_insert_with(connected);
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&[byte]).unwrap();
                let mut back = [0];
                stream.read_exact(&mut back).unwrap();
                answer.send(back[0]).unwrap();
            }
        });
        Connection { server, client, ask, answers }
    }

    /// Waits for the answer without holding up the agent, which runs in this thread.
    async fn check(&self, byte: u8) {
        self.ask.send(byte).unwrap();
        let answered =
            eventually(PATIENCE, async || self.answers.try_recv().map_err(|e| e.to_string())).await;
        assert_eq!(answered, byte);
    }

    fn close(self) {
        drop(self.ask);
        self.client.finish();
        self.server.finish();
    }
}

fn endpoint(name: &str, interface: &str, ip: &str) -> Update {
    let key = WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: format!("default/{name}"),
        endpoint: "eth0".into(),
    };
    let value = values::WorkloadEndpoint {
        state: "active".into(),
        name: interface.into(),
        profile_ids: vec!["open".into()],
        ipv4_nets: vec![format!("{ip}/32")],
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        ..Default::default()
    };
    Update::set(Key::WorkloadEndpoint(key), Value::WorkloadEndpoint(value))
}

fn cluster() -> Vec<Update> {
    let allow = || vec![values::Rule { action: "allow".into(), ..Default::default() }];
    let rules = values::ProfileRules { inbound_rules: allow(), outbound_rules: allow() };
    let key = PolicyKey { kind: "NetworkPolicy".into(), namespace: "default".into(), name: "web".into() };
    let from_db = values::Rule {
        action: "allow".into(),
        protocol: Some(values::Protocol { id: Some(values::protocol::Id::Name("tcp".into())) }),
        src: Some(values::EntityRule { selector: "app == 'db'".into(), ..Default::default() }),
        ..Default::default()
    };
    let policy = values::Policy {
        namespace: "default".into(),
        selector: "app == 'web'".into(),
        inbound_rules: vec![from_db],
        types: vec!["ingress".into()],
        ..Default::default()
    };
    vec![
        Update::set(Key::ProfileRules { name: "open".into() }, Value::ProfileRules(rules)),
        endpoint("web", "cali1", "10.65.0.1"),
        endpoint("db", "cali2", "10.65.0.2"),
        Update::set(Key::Policy(key), Value::Policy(policy)),
    ]
}

/// Packets that rules of ours dropped.
fn dropped(lab: &Lab, backend: Backend) -> u64 {
    let saved = lab.sh(&format!("iptables-{}-save -c -t filter", backend.name()));
    let drops = saved.lines().filter(|line| line.contains("cali-") && line.ends_with("-j DROP"));
    drops.filter_map(|line| line.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok()).sum()
}

fn upgrade(backend: Backend) {
    in_namespace(&TOOLS, move |lab| async move {
        // A way out, so that the node answers for the pods' gateway.
        lab.veth("eth0");
        lab.sh("ip addr add 172.30.0.1/24 dev eth0 && ip route add default via 172.30.0.254");
        let connection = Connection::open(&lab);
        let mut incumbent = Node::start(&lab, backend).await;
        incumbent.program(cluster()).await;
        connection.check(1).await;
        incumbent.stop().await;
        let tool = |what: &str| format!("iptables-{}-{what}", backend.name());
        let rules = lab.path().join("rules");
        lab.sh(&format!("{} > {}", tool("save"), rules.display()));

        // What the incumbent left, as it is loaded at boot: nothing differs, so nothing is written.
        lab.sh(&format!("{} < {}", tool("restore"), rules.display()));
        connection.check(2).await;
        let generation = Generation::open().unwrap();
        let before =
            (generation.read().unwrap(), lab.sh(&format!("{} -t filter | grep -v '^#'", tool("save"))));
        let mut node = Node::start(&lab, backend).await;
        node.program(cluster()).await;
        connection.check(3).await;
        if backend == Backend::Nft {
            assert_eq!(generation.read().unwrap(), before.0, "something was written");
        }
        let plain =
            |text: &str| text.lines().filter(|line| !line.starts_with(':')).collect::<Vec<_>>().join("\n");
        let after = lab.sh(&format!("{} -t filter | grep -v '^#'", tool("save")));
        assert_eq!(plain(&after), plain(&before.1));
        node.stop().await;

        // An older incumbent: a chain that nobody wants any more, a rule that reads otherwise, a set with more in it.
        lab.sh(&format!(
            "sed -e 's/^:cali-fw-cali1 .*/&\\n:cali-pi-old - [0:0]/' -e 's/^-A cali-pi-np\\/default\\/web .*tcp.*/-A cali-pi-np\\/default\\/web -p tcp -j MARK --set-xmark 0x10000\\/0x10000/' {} | {}",
            rules.display(),
            tool("restore")
        ));
        lab.sh("ipset list -name | grep '^cali40s:' | while read set; do ipset add $set 10.65.9.9; done");
        connection.check(4).await;
        let mut node = Node::start(&lab, backend).await;
        node.program(cluster()).await;
        connection.check(5).await;
        let now = lab.sh(&format!("{} -t filter", tool("save")));
        assert!(!now.contains("cali-pi-old"), "{now}");
        assert_eq!(
            plain(&now.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")),
            plain(&before.1)
        );
        assert!(!lab.sh("ipset save").contains("10.65.9.9"));
        assert_eq!(dropped(&lab, backend), 0);
        connection.close();
        node.stop().await;
    });
}

#[test]
fn a_node_is_taken_over_on_nft_and_an_open_connection_survives() {
    upgrade(Backend::Nft);
}

#[test]
fn a_node_is_taken_over_on_legacy_and_an_open_connection_survives() {
    upgrade(Backend::Legacy);
}

#[test]
fn the_backend_changes_while_it_runs_and_an_open_connection_survives() {
    in_namespace(&TOOLS, |lab| async move {
        lab.veth("eth0");
        lab.sh("ip addr add 172.30.0.1/24 dev eth0 && ip route add default via 172.30.0.254");
        let connection = Connection::open(&lab);
        let mut node = Node::start(&lab, Backend::Nft).await;
        node.program(cluster()).await;
        connection.check(1).await;
        let key = Key::GlobalConfig { name: "IptablesBackend".into() };
        let change = |value: Option<&str>| match value {
            Some(value) => Update::set(key.clone(), Value::Config(value.into())),
            None => Update::delete(key.clone()),
        };
        let plain = |backend: Backend| {
            let saved = lab.sh(&format!("iptables-{}-save -t filter", backend.name()));
            let ours = saved.lines().filter(|line| line.starts_with("-A") && line.contains("cali"));
            ours.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let wanted = plain(Backend::Nft);
        assert!(!wanted.is_empty());
        let moves = [
            (Some("legacy"), Backend::Legacy, Backend::Nft),
            (Some("auto"), Backend::Nft, Backend::Legacy),
            (Some("Legacy"), Backend::Legacy, Backend::Nft),
            (None, Backend::Nft, Backend::Legacy),
        ];
        for (n, (value, to, from)) in (2..).zip(moves) {
            node.program(vec![change(value)]).await;
            assert_eq!(plain(to), wanted, "{value:?}");
            assert_eq!(plain(from), BTreeSet::new(), "{value:?}");
            connection.check(n).await;
        }
        assert_eq!(dropped(&lab, Backend::Nft), 0);
        connection.close();
        node.stop().await;
    });
}
