//! Memory of a whole felix process on a large cluster: `cargo run --example felix_memory -- [endpoints] [policies]`, as
//! root; in a network namespace of its own. A real typha follows a folder of manifests, a real felix follows that typha.
//!
//! The cluster is that of felix-calc's `scale` example: 500 namespaces, 200 endpoints on this node, two rules with a
//! selector each per policy. What a thin agent would be sent is a small cluster: `-- 5000 800`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::process::{Process, wait_for};
use nix::sched::{CloneFlags, unshare};

const NODE: &str = "n1";
const LOCAL: usize = 200;
const NAMESPACES: usize = 500;
const LIMIT: Duration = Duration::from_secs(600);
const HEALTH: u16 = 9099;
/// A folder's files count once they have rested.
const WRITTEN: Duration = Duration::from_secs(1);
/// The allocator gives back what the start took.
const SETTLED: Duration = Duration::from_secs(10);
/// How long it is looked at, once a second, while it rests: longer than from one regular look through the kernel's tables
/// to the next, and twice as long as between those through its sets, routes and interfaces.
const REST: Duration = Duration::from_secs(200);

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).map(|text| text.parse::<usize>().context("a number"));
    let endpoints = words.next().unwrap_or(Ok(100_000))?;
    let policies = words.next().unwrap_or(Ok(2_000))?;
    unshare(CloneFlags::CLONE_NEWNET).context("root is needed, for a network namespace")?;
    ip(&(0..LOCAL).fold("link set lo up\n".to_owned(), |text, n| {
        text + &format!(
            "link add cali{n} type veth peer name far{n}\nlink set far{n} up\nlink set cali{n} up\n"
        )
    }))?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("store"))?;
    write_cluster(&at("store"), endpoints, policies)?;
    std::thread::sleep(WRITTEN);

    let programs = std::env::current_exe()?.parent().and_then(Path::parent).context("a folder")?.to_owned();
    let mut command = Command::new(programs.join("typha"));
    command.env("TYPHA_DATASTORETYPE", "directory").env("TYPHA_DIRECTORY", at("store"));
    let mut typha = Process::start("typha", command, &at("typha.log"))?;
    wait_for("typha to listen", LIMIT, || {
        typha.check()?;
        Ok(TcpStream::connect(("127.0.0.1", 5473))?)
    })?;
    let mut command = Command::new(programs.join("felix"));
    command
        .env("FELIX_FELIXHOSTNAME", NODE)
        .env("FELIX_IPTABLESBACKEND", "nft")
        .env("FELIX_HEALTHENABLED", "true")
        .env("FELIX_ENDPOINTSTATUSPATHPREFIX", at("status"))
        .env("FELIX_STATEFILE", at("felix.state"))
        .env("XTABLES_LOCKFILE", at("xtables.lock"));
    let started = Instant::now();
    let mut felix = Process::start("felix", command, &at("felix.log"))?;
    wait_for("felix to have programmed its node", LIMIT, || {
        felix.check()?;
        ready()
    })?;
    println!(
        "{endpoints} endpoints, {policies} policies, {LOCAL} local: ready after {:.1?}",
        started.elapsed()
    );
    let pid = felix.pid().context("it runs")?;
    println!("then: {:.1} MB resident, {:.1} MB at most", megabytes(pid, "VmRSS")?, megabytes(pid, "VmHWM")?);
    std::thread::sleep(SETTLED);
    // proc(5): the greatest size counts from here.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let mut resident = Vec::new();
    for _ in 0..REST.as_secs() {
        std::thread::sleep(Duration::from_secs(1));
        resident.push(megabytes(pid, "VmRSS")?);
    }
    resident.sort_by(f64::total_cmp);
    println!(
        "{REST:?} at rest: median {:.1} MB resident, {:.1} at least, {:.1} at most; {:.1} MB are the file's pages",
        resident[resident.len() / 2],
        resident[0],
        megabytes(pid, "VmHWM")?,
        megabytes(pid, "RssFile")?
    );
    if std::env::var_os("BULRUSH_LOGS").is_some() {
        println!("{}", e2e::process::tail(&at("felix.log"), 20));
    }
    Ok(())
}

fn write_cluster(store: &Path, endpoints: usize, policies: usize) -> Result<()> {
    for namespace in 0..NAMESPACES.min(endpoints.max(policies)) {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {{name: kns.ns{namespace}}}\n\
             spec: {{labelsToApply: {{pcns.team: t{team}}}, egress: [{{action: Allow}}]}}\n",
            team = namespace % 20
        );
        for n in (namespace..policies).step_by(NAMESPACES) {
            write!(
                text,
                "---\napiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: p{n}, namespace: ns{namespace}}}\n\
                 spec:\n  selector: app == 'app{}'\n  types: [Ingress]\n  ingress:\n  - {{action: Allow, source: {{selector: app == 'app{}'}}}}\n  \
                 - {{action: Allow, source: {{namespaceSelector: team == 't{}'}}}}\n",
                n % 50,
                (n + 1) % 50,
                n % 20
            )?;
        }
        for n in (namespace..endpoints).step_by(NAMESPACES) {
            let node =
                if n < LOCAL { NODE.to_owned() } else { format!("node{}", n % (endpoints / LOCAL).max(2)) };
            let [_, a, b, c] = (n as u32).to_be_bytes();
            write!(
                text,
                "---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\n\
                 metadata: {{name: {node}-k8s-pod{n}-eth0, namespace: ns{namespace}, labels: {{projectcalico.org/namespace: ns{namespace}, \
                 projectcalico.org/orchestrator: k8s, app: app{}, pod-template-hash: h{:x}}}}}\n\
                 spec: {{orchestrator: k8s, node: {node}, pod: pod{n}, endpoint: eth0, interfaceName: cali{n}, \
                 ipNetworks: [10.{a}.{b}.{c}/32], profiles: [kns.ns{namespace}]}}\n",
                n % 50,
                n / 3
            )?;
        }
        std::fs::write(store.join(format!("ns{namespace}.yaml")), text)?;
    }
    Ok(())
}

fn ready() -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", HEALTH))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readiness HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.lines().next().is_some_and(|line| line.contains(" 20")), "not ready: {answer}");
    Ok(())
}

fn megabytes(pid: u32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

fn ip(lines: &str) -> Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip")?;
    ip.stdin.take().context("a pipe")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "the interfaces could not be made");
    Ok(())
}
