//! Does a packet pass? TCP, UDP and ICMP, asked from inside a namespace.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::lab::{Lab, Workload};

/// How long a probe waits for an answer. Dropped packets are silent, so every "no" costs this.
const PATIENCE: Duration = Duration::from_millis(1000);

/// Runs `f` on a thread of its own inside a network namespace. `setns` changes one thread only, so the
/// caller stays where it is.
pub fn within<T: Send + 'static>(
    netns: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<Result<T>> {
    let path = format!("/run/netns/{netns}");
    std::thread::spawn(move || {
        let file = std::fs::File::open(&path).with_context(|| format!("open {path}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
        Ok(f())
    })
}

/// Waits for what [`within`] began.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"))?
}

/// One way of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Tcp(u16),
    Udp(u16),
    Icmp,
}

impl Lab {
    /// Whether `from` gets an answer out of `to`.
    pub fn reaches(&self, from: &str, to: &str, via: Via) -> Result<bool> {
        join(self.asking(from, to, via))
    }

    fn asking(&self, from: &str, to: &str, via: Via) -> JoinHandle<Result<bool>> {
        self.asking_address(from, self.locate(to).1, via)
    }

    fn asking_address(&self, from: &str, address: IpAddr, via: Via) -> JoinHandle<Result<bool>> {
        let (netns, _) = self.locate(from);
        within(&netns, move || ask(address, via))
    }

    /// Whether every workload gets an answer from every other one, at this address of it; those that do not.
    pub fn unreached(&self, of: impl Fn(&Workload) -> IpAddr, vias: &[Via]) -> Result<Vec<String>> {
        let mut asked = Vec::new();
        for (from, to) in self.workloads().flat_map(|from| self.workloads().map(move |to| (from, to))) {
            for &via in vias.iter().filter(|_| from.name != to.name) {
                let what = format!("{} -> {} {via:?}", from.name, of(to));
                asked.push((what, self.asking_address(&from.name, of(to), via)));
            }
        }
        let answers = asked.into_iter().map(|(what, thread)| Ok((what, join(thread)?)));
        let answers: Vec<(String, bool)> = answers.collect::<Result<_>>()?;
        Ok(answers.into_iter().filter(|(_, answered)| !answered).map(|(what, _)| what).collect())
    }

    /// Asks every pair at once.
    pub fn matrix(&self, froms: &[&str], tos: &[(&str, Via)]) -> Result<BTreeMap<(String, String), bool>> {
        let mut asked = Vec::new();
        for from in froms {
            for (to, via) in tos.iter().filter(|(to, _)| to != from) {
                asked.push((((*from).to_owned(), (*to).to_owned()), self.asking(from, to, *via)));
            }
        }
        asked.into_iter().map(|(pair, thread)| Ok((pair, join(thread)?))).collect()
    }
}

fn ask(address: IpAddr, via: Via) -> bool {
    match via {
        Via::Tcp(port) => ask_tcp(SocketAddr::new(address, port)).is_some(),
        Via::Udp(port) => ask_udp(SocketAddr::new(address, port)).is_some(),
        Via::Icmp => Command::new("ping")
            .args(["-n", "-q", "-c", "1", "-W", "1", &address.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
    }
}

fn ask_tcp(to: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"?").ok()?;
    stream.read_exact(&mut [0]).ok()
}

fn ask_udp(to: SocketAddr) -> Option<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.send(b"?").ok()?;
    socket.recv(&mut [0; 16]).ok().map(drop)
}

/// Echoes on the given ports for ever: what the lab's workloads run.
pub fn serve(tcp: &[u16], udp: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for port in tcp {
        let listener =
            std::net::TcpListener::bind(("::", *port)).with_context(|| format!("listen on tcp {port}"))?;
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        }));
    }
    for port in udp {
        let socket = UdpSocket::bind(("::", *port)).with_context(|| format!("listen on udp {port}"))?;
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..n], from).ok();
            }
        }));
    }
    for thread in threads {
        thread.join().ok();
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
