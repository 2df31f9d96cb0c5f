//! Two racks in the "downward default" design: every rack has an AS number of its own for its nodes and its
//! top-of-rack switch; nodes and switches hold what is below them and a default route, the spine holds all.
//! The nodes' sessions have passwords, TTL security and filters; a router above reaches pods and a Service.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Options, block_manifests};
use e2e::lab::{Node, Workload, ip};
use e2e::process::{Process, run, wait_for};
use e2e::require;

const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE: &str = "10.96.0.10";

/// One rack: a node and its switch on a network of their own, the switch on another one with the spine.
struct Rack {
    number: usize,
    node: Node,
    tor: String,
}

impl Rack {
    fn node_ip(&self) -> String {
        format!("10.10.{}.2", self.number)
    }

    fn tor_ip(&self) -> String {
        format!("10.10.{}.1", self.number)
    }

    fn uplink(&self) -> (String, String) {
        (format!("10.20.{}.1", self.number), format!("10.20.{}.2", self.number))
    }

    fn password(&self) -> String {
        format!("secret of rack {}", self.number)
    }

    fn secret(&self, cluster: &Cluster) -> PathBuf {
        cluster.lab.dir.join(&self.node.name).join("secrets/bgp")
    }

    /// Leaves the lab's own network to the control plane: traffic of pods has to go through the rack.
    fn wire(&self, cluster: &Cluster, spine: &str) -> Result<()> {
        let (tor, number, node) = (&self.tor, self.number, &self.node.netns);
        let (up, below) = self.uplink();
        ip(None, &format!("netns add {tor}\n"))?;
        ip(
            Some(tor),
            &format!(
                "link set lo up\nlink add below0 type veth peer name eth1 netns {node}\n\
                 link add above0 type veth peer name rack{number} netns {spine}\n\
                 addr add {}/24 dev below0\naddr add {below}/24 dev above0\nlink set below0 up\nlink set above0 up\n",
                self.tor_ip()
            ),
        )?;
        ip(
            Some(node),
            &format!(
                "addr add {}/24 dev eth1\nlink set eth1 up\nroute del default via 172.30.0.1\n",
                self.node_ip()
            ),
        )?;
        ip(Some(spine), &format!("addr add {up}/24 dev rack{number}\nlink set rack{number} up\n"))?;
        for netns in [tor, node] {
            cluster.lab.sh(netns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")?;
        }
        Ok(())
    }

    fn objects(&self) -> String {
        let Rack { number, node, .. } = self;
        format!(
            "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{rack: r{number}}}\n\
             spec:\n  bgp: {{ipv4Address: {ip}/24, asNumber: 6510{number}}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: tor-{number}}}\nspec:\n  \
             nodeSelector: rack == 'r{number}'\n  peerIP: {tor}\n  asNumber: 6510{number}\n  ttlSecurity: 1\n  \
             filters: [default-only]\n  password: {{secretKeyRef: {{name: bgp, key: rack}}}}\n---\n{blocks}",
            name = node.name,
            ip = self.node_ip(),
            tor = self.tor_ip(),
            blocks = block_manifests(node),
        )
    }

    /// The switch: its nodes' routes and a default route; upwards its nodes' routes alone. To the nodes it also
    /// announces what their filter must not let in.
    fn tor_config(&self) -> String {
        let (tor, node, number) = (self.tor_ip(), self.node_ip(), self.number);
        let (up, below) = self.uplink();
        format!(
            "router id {tor};\nprotocol device {{ scan time 2; }}\nprotocol direct {{ ipv4; }}\n\
             protocol kernel {{ metric 0; merge paths on; ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
             protocol static foreign {{ ipv4; route 10.99.0.0/16 blackhole; }}\n\
             protocol bgp below {{ local {tor} as 6510{number}; neighbor {node} as 6510{number}; direct; ttl security on; \
             password \"{password}\"; connect retry time 2; error wait time 1, 5; rr client; \
             ipv4 {{ import all; export where net = 0.0.0.0/0 || net = 10.99.0.0/16; next hop self; }}; }}\n\
             protocol bgp spine {{ local {below} as 6510{number}; neighbor {up} as 65000; connect retry time 2; \
             ipv4 {{ import where net = 0.0.0.0/0; export where proto = \"below\"; }}; }}\n",
            password = self.password(),
        )
    }

    /// A pod, with what felix would program for it.
    fn add_pod(&self, cluster: &mut Cluster, name: &str) -> Result<Workload> {
        let pod = cluster.lab.add_workload(&self.node.name, name, &[])?;
        cluster.serve(&pod.netns, name)?;
        ip(
            Some(&self.node.netns),
            &format!("route add {} dev {} scope link proto 80 metric 1024\n", pod.ip, pod.interface),
        )?;
        let proxy = format!("sysctl -qw net.ipv4.conf.{}.proxy_arp=1", pod.interface);
        cluster.lab.sh(&self.node.netns, &proxy)?;
        Ok(pod)
    }
}

fn spine_config(racks: &[Rack]) -> String {
    let mut text = "router id 10.20.0.1;\nprotocol device { scan time 2; }\nprotocol direct { ipv4; }\n\
        protocol kernel { metric 0; merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }\n\
        protocol static above { ipv4; route 0.0.0.0/0 unreachable; }\n"
        .to_owned();
    for rack in racks {
        let (up, below) = rack.uplink();
        text += &format!(
            "protocol bgp rack{n} {{ local {up} as 65000; neighbor {below} as 6510{n}; connect retry time 2; \
             ipv4 {{ import all; export where net = 0.0.0.0/0; }}; }}\n",
            n = rack.number
        );
    }
    text
}

fn start_router(cluster: &Cluster, netns: &str, config: &str) -> Result<Process> {
    let dir = &cluster.lab.dir;
    let file = dir.join(format!("{netns}.cfg"));
    std::fs::write(&file, config)?;
    let bird = e2e::require::find("bird").context("bird is not installed")?;
    let mut command: Command = cluster.lab.exec(netns, &bird);
    command.arg("-f").arg("-c").arg(&file).arg("-s").arg(dir.join(format!("{netns}.ctl")));
    Process::start(&format!("bird-{netns}"), command, &dir.join(format!("{netns}.log")))
}

/// What BIRD has written into a kernel, sorted, without metrics.
fn bird_routes(cluster: &Cluster, netns: &str) -> Result<Vec<String>> {
    let routes = cluster.lab.sh(netns, "ip -4 route show proto bird")?;
    let mut routes: Vec<String> = routes
        .lines()
        .map(|line| {
            let line = line.split(" metric ").next().unwrap_or_default().replace("proto bird", "");
            let line = line.split(" dev ").next().unwrap_or_default();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        })
        .collect();
    routes.sort();
    Ok(routes)
}

fn wait_bird_routes(cluster: &Cluster, netns: &str, want: &[String]) -> Result<()> {
    let mut want = want.to_vec();
    want.sort();
    wait_for(&format!("exactly {want:?} in {netns}"), PATIENCE, || {
        let routes = bird_routes(cluster, netns)?;
        ensure!(routes == want, "it has {routes:?}");
        Ok(())
    })
}

#[test]
fn nodes_and_switches_hold_what_is_below_them_and_a_default_route() -> Result<()> {
    require!("etcd", "etcdctl", "bird", "birdc", "iptables-nft", "ping");
    let mut cluster = Cluster::up("brracks", Options { nodes: 0, ..Options::default() })?;
    let spine = cluster.lab.ns("spine");
    ip(None, &format!("netns add {spine}\n"))?;
    ip(Some(&spine), "link set lo up\n")?;
    cluster.lab.sh(&spine, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")?;
    let mut racks = Vec::new();
    for number in 1..=2 {
        let node = cluster.lab.add_node()?.clone();
        let rack = Rack { number, tor: cluster.lab.ns(&format!("tor{number}")), node };
        rack.wire(&cluster, &spine)?;
        racks.push(rack);
    }
    cluster.apply(
        "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec:\n  \
         nodeToNodeMeshEnabled: false\n  serviceClusterIPs: [{cidr: 10.96.0.0/16}]\n---\n\
         apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: default-only}\nspec:\n  importV4:\n  \
         - {action: Accept, matchOperator: Equal, cidr: 0.0.0.0/0}\n  - {action: Reject}\n",
    )?;
    let mut routers = vec![start_router(&cluster, &spine, &spine_config(&racks))?];
    for rack in &racks {
        cluster.apply(&rack.objects())?;
        routers.push(start_router(&cluster, &rack.tor, &rack.tor_config())?);
        cluster.start_bird(&rack.node)?;
        cluster.start_confd(&rack.node)?;
    }
    let pods = [racks[0].add_pod(&mut cluster, "a1")?, racks[1].add_pod(&mut cluster, "b1")?];

    // Without its password a session is not opened at all, and operators are told which ones.
    let typhas = e2e::lab::CONTROL.map(|address| format!("{address}:5473")).join(",");
    wait_for("the withheld peerings in bulrushctl status", PATIENCE, || {
        let said = run(&mut cluster.bulrushctl(&["status", "-o", "wide", "--typha", &typhas]))?;
        for rack in &racks {
            let named =
                format!("BGPPeer(tor-{}): spec.password: the password (Secret bgp, key rack)", rack.number);
            ensure!(
                said.lines().any(|line| line.contains(&named) && line.contains(&rack.node.name)),
                "{said}"
            );
        }
        Ok(())
    })?;
    for rack in &racks {
        let config = cluster.lab.dir.join(&rack.node.name).join("bird.cfg");
        wait_for("the node's configuration without its peer", PATIENCE, || {
            let text = std::fs::read_to_string(&config)?;
            ensure!(text.contains(&rack.node.cidr()) && !text.contains(&rack.tor_ip()), "{text}");
            Ok(())
        })?;
        std::fs::create_dir_all(rack.secret(&cluster))?;
        std::fs::write(rack.secret(&cluster).join("rack"), rack.password())?;
    }

    for rack in &racks {
        // The node: its own block, and the way up. Neither the other rack nor 10.99.0.0/16.
        let own = format!("blackhole {}", rack.node.cidr());
        wait_bird_routes(&cluster, &rack.node.netns, &[own, format!("default via {}", rack.tor_ip())])?;
        // The switch: what is below it, and the way up.
        let below = |net: &str| format!("{net} via {}", rack.node_ip());
        let want =
            [below(&rack.node.cidr()), below("10.96.0.0/16"), format!("default via {}", rack.uplink().0)];
        wait_bird_routes(&cluster, &rack.tor, &want)?;
        ensure!(
            std::fs::read_to_string(cluster.lab.dir.join(&rack.node.name).join("bird.cfg"))?
                .contains("ttl security on"),
            "no TTL security"
        );
    }
    // The spine has all of them.
    wait_for("the spine's routes", PATIENCE, || {
        let routes = bird_routes(&cluster, &spine)?;
        for rack in &racks {
            let want = format!("{} via {}", rack.node.cidr(), rack.uplink().1);
            ensure!(routes.contains(&want), "no {want}: {routes:?}");
        }
        ensure!(routes.iter().any(|route| route.starts_with("10.96.0.0/16")), "no service range: {routes:?}");
        Ok(())
    })?;
    let [a1, b1] = &pods;
    wait_for("a pod to reach the other rack", PATIENCE, || {
        cluster.lab.sh(&a1.netns, &format!("ping -n -q -c 1 -W 1 {}", b1.ip)).map(drop)
    })?;

    // A Service, reached from above: what kube-proxy would do on every node.
    for rack in &racks {
        let dnat = format!(
            "iptables-nft -t nat -A PREROUTING -d {SERVICE} -p tcp --dport 80 -j DNAT --to-destination {}:80",
            if rack.number == 1 { a1.ip } else { b1.ip }
        );
        cluster.lab.sh(&rack.node.netns, &dnat)?;
    }
    let ask = format!(
        "timeout 2 bash -c 'exec 3<>/dev/tcp/{SERVICE}/80; printf ? >&3; head -c 1 <&3' | grep -q '?'"
    );
    wait_for("the Service to answer above the racks", PATIENCE, || cluster.lab.sh(&spine, &ask).map(drop))?;

    // A Secret that goes takes its session with it; the other rack stays as it is.
    std::fs::remove_dir_all(racks[0].secret(&cluster))?;
    wait_bird_routes(&cluster, &racks[0].node.netns, &[format!("blackhole {}", racks[0].node.cidr())])?;
    let other = [format!("blackhole {}", racks[1].node.cidr()), format!("default via {}", racks[1].tor_ip())];
    wait_bird_routes(&cluster, &racks[1].node.netns, &other)?;
    drop(routers);
    Ok(())
}
