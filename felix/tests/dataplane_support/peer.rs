//! A namespace beside the node's: a workload, or a host outside. It goes with the value.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::Lab;

const WAIT: Duration = Duration::from_secs(1);
/// How long a port that was closed may stay taken.
const FREED: Duration = Duration::from_secs(10);

pub struct Peer {
    netns: File,
}

impl Peer {
    /// A new namespace whose `eth0` is the far end of the node's new interface `near`; both are up.
    pub fn attach(lab: &Lab, near: &str) -> Peer {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("a thread has a namespace")
        });
        let peer = Peer { netns: made.join().expect("no panic") };
        let path = format!("/proc/{}/fd/{}", std::process::id(), peer.netns.as_raw_fd());
        lab.sh(&format!(
            "ip link add {near} type veth peer name far-{near} && ip link set far-{near} netns {path} && ip link set {near} up"
        ));
        peer.sh(&format!("ip link set lo up && ip link set far-{near} name eth0 && ip link set eth0 up"));
        peer
    }

    /// A workload with an address, as a CNI plugin sets it up.
    pub fn workload(lab: &Lab, near: &str, address: &str) -> Peer {
        let peer = Peer::attach(lab, near);
        peer.sh(&format!(
            "ip addr add {address}/32 dev eth0 && ip route add 169.254.1.1 dev eth0 scope link"
        ));
        peer.sh("ip route add default via 169.254.1.1 dev eth0");
        peer
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn sh(&self, line: &str) -> String {
        self.inside(|| {
            let out = Command::new("sh").args(["-c", line]).output().expect("sh runs");
            assert!(out.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).expect("tools print UTF-8")
        })
    }

    /// A socket in the namespace, for [`received`].
    pub fn udp(&self, at: &str) -> UdpSocket {
        self.inside(|| {
            let started = Instant::now();
            let socket = loop {
                match UdpSocket::bind(at) {
                    // A program that another thread starts holds all sockets of this process until it has begun,
                    // those that are closed meanwhile, too.
                    Err(error) if error.kind() == ErrorKind::AddrInUse && started.elapsed() < FREED => {
                        std::thread::sleep(Duration::from_millis(5))
                    }
                    bound => break bound.expect("the address is there and free"),
                }
            };
            socket.set_nonblocking(true).expect("sockets can be made so");
            socket
        })
    }
}

/// The next datagram and where it came from. None: there was none for a while.
pub async fn received(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let started = Instant::now();
    let mut buffer = [0; 128];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => return Some((buffer[..length].to_vec(), from)),
            Err(_) if started.elapsed() > WAIT => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// One question and its answer: as whom the server saw the client, and who answered.
pub async fn exchange(
    client: &UdpSocket,
    to: &str,
    server: &UdpSocket,
) -> Result<(SocketAddr, SocketAddr), String> {
    while client.recv_from(&mut [0; 8]).is_ok() || server.recv_from(&mut [0; 8]).is_ok() {}
    client.send_to(b"question", to).map_err(|error| format!("sending to {to}: {error}"))?;
    let (_, seen) = received(server).await.ok_or_else(|| format!("nothing from the client at {to}"))?;
    server.send_to(b"answer", seen).map_err(|error| format!("answering {seen}: {error}"))?;
    let (_, answered) = received(client).await.ok_or_else(|| format!("no answer from {to} to {seen}"))?;
    Ok((seen, answered))
}
