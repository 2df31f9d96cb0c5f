//! Packets on the wire: crafted frames into the far ends of the node's interfaces, and what comes out of them.
//!
//! The far ends live in a namespace of their own that has no addresses, so nothing there answers, and a packet's
//! fate is that of the first packet of a connection. Every packet ends with a number, by which it is known again.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use felix_calc::explain::{Packet, Protocol};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

const MAGIC: &[u8; 4] = b"BULR";
/// How long nothing may arrive until a batch counts as delivered: the kernel forwards within the sending call.
const QUIET: Duration = Duration::from_millis(8);
const LIMIT: Duration = Duration::from_secs(5);

/// What a far end is asked to send, or where something came out.
pub type Interface = usize;

enum Request {
    Send(Interface, Vec<u8>),
    /// Everything that came out until it was quiet and at least so many had come, or the time was up.
    Collect(usize),
}

/// The namespace of the far ends.
pub struct FarEnds {
    requests: mpsc::Sender<Request>,
    arrived: mpsc::Receiver<BTreeMap<u32, Interface>>,
    thread: Option<JoinHandle<()>>,
}

/// MAC addresses of both ends of an interface.
pub fn near_mac(interface: Interface) -> String {
    format!("02:00:00:00:00:{interface:02x}")
}

pub fn far_mac(interface: Interface) -> String {
    format!("02:00:00:00:01:{interface:02x}")
}

fn far_name(interface: Interface) -> String {
    format!("far{interface}")
}

fn run(line: &str) {
    let out = Command::new("sh").args(["-c", line]).output().expect("sh runs");
    assert!(out.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&out.stderr));
}

impl FarEnds {
    /// Makes the interfaces, by name, in the calling thread's namespace, their far ends in a new one.
    pub fn attach(names: &[String]) -> FarEnds {
        let (requests, to_serve) = mpsc::channel();
        let (arrived_out, arrived) = mpsc::channel();
        let (ready_out, ready) = mpsc::channel();
        let (attached, go_on) = mpsc::channel::<()>();
        let count = names.len();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            run(
                "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
            );
            ready_out.send(nix::unistd::gettid()).expect("somebody waits");
            if go_on.recv().is_err() {
                return;
            }
            for interface in 0..count {
                let name = far_name(interface);
                run(&format!("ip link set {name} arp off address {} up", far_mac(interface)));
            }
            serve(&open(count), &to_serve, &arrived_out);
        });
        let tid = ready.recv().expect("the far namespace is there");
        for (interface, name) in names.iter().enumerate() {
            let far = far_name(interface);
            run(&format!(
                "ip link add {name} address {} type veth peer name {far} && ip link set {far} netns {tid} && ip link set {name} up",
                near_mac(interface)
            ));
        }
        attached.send(()).expect("the far namespace waits");
        FarEnds { requests, arrived, thread: Some(thread) }
    }

    pub fn send(&self, interface: Interface, packet: &Packet, id: u32) {
        let mut frame: Vec<u8> = [2, 0, 0, 0, 0, interface as u8, 2, 0, 0, 0, 1, interface as u8].to_vec();
        frame.extend(if packet.dst.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(ip_packet(packet, id));
        self.requests.send(Request::Send(interface, frame)).expect("the far namespace serves");
    }

    /// Where packets came out, by number.
    pub fn collect(&self, at_least: usize) -> BTreeMap<u32, Interface> {
        self.requests.send(Request::Collect(at_least)).expect("the far namespace serves");
        self.arrived.recv().expect("the far namespace serves")
    }
}

impl Drop for FarEnds {
    fn drop(&mut self) {
        // Closing the channel ends the thread, and its namespace with it.
        let (closed, _) = mpsc::channel();
        self.requests = closed;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the far namespace failed");
        }
    }
}

fn open(count: usize) -> Vec<OwnedFd> {
    let links: BTreeMap<String, _> = nix::ifaddrs::getifaddrs()
        .expect("interfaces are listed")
        .filter_map(|found| Some((found.interface_name.clone(), *found.address?.as_link_addr()?)))
        .collect();
    (0..count)
        .map(|interface| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let packets = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
                .expect("root may open packet sockets");
            bind(packets.as_raw_fd(), &links[&far_name(interface)]).expect("the far end is there");
            packets
        })
        .collect()
}

fn serve(
    sockets: &[OwnedFd],
    requests: &mpsc::Receiver<Request>,
    arrived: &mpsc::Sender<BTreeMap<u32, Interface>>,
) {
    let mut seen = BTreeMap::new();
    while let Ok(request) = requests.recv() {
        match request {
            Request::Send(interface, frame) => {
                send(sockets[interface].as_raw_fd(), &frame, MsgFlags::empty()).expect("frames are sent");
            }
            Request::Collect(at_least) => {
                gather(at_least, &mut seen, |seen| {
                    sockets.iter().enumerate().map(|(at, packets)| drain(packets, at, seen)).sum()
                });
                if arrived.send(std::mem::take(&mut seen)).is_err() {
                    return;
                }
            }
        }
    }
}

fn gather(
    at_least: usize,
    seen: &mut BTreeMap<u32, Interface>,
    mut drain: impl FnMut(&mut BTreeMap<u32, Interface>) -> usize,
) {
    let started = Instant::now();
    let mut last = Instant::now();
    loop {
        if drain(seen) > 0 {
            last = Instant::now();
        }
        let enough = seen.len() >= at_least || started.elapsed() > LIMIT;
        if enough && last.elapsed() > QUIET {
            return;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn drain(packets: &OwnedFd, interface: Interface, seen: &mut BTreeMap<u32, Interface>) -> usize {
    let mut buffer = [0; 2048];
    let mut count = 0;
    loop {
        match recv(packets.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                if let Some(id) = number(&buffer[..length]) {
                    seen.insert(id, interface);
                    count += 1;
                }
            }
            Err(Errno::EAGAIN) => return count,
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(error) => panic!("reading packets: {error}"),
        }
    }
}

fn number(packet: &[u8]) -> Option<u32> {
    let tail = packet.len().checked_sub(8)?;
    (packet[tail..tail + 4] == *MAGIC)
        .then(|| u32::from_be_bytes([packet[tail + 4], packet[tail + 5], packet[tail + 6], packet[tail + 7]]))
}

/// What reaches the node itself: raw sockets see packets behind the INPUT chains.
pub struct Inside {
    sockets: Vec<OwnedFd>,
}

impl Inside {
    pub fn open() -> Inside {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kinds = [
            (AddressFamily::Inet, SockProtocol::Tcp),
            (AddressFamily::Inet, SockProtocol::Udp),
            (AddressFamily::Inet, SockProtocol::Icmp),
            (AddressFamily::Inet6, SockProtocol::Tcp),
            (AddressFamily::Inet6, SockProtocol::Udp),
            (AddressFamily::Inet6, SockProtocol::IcmpV6),
        ];
        let open = |(family, protocol)| {
            socket(family, SockType::Raw, flags, protocol).expect("root may open raw sockets")
        };
        Inside { sockets: kinds.into_iter().map(open).collect() }
    }

    pub fn collect(&self, at_least: usize) -> BTreeMap<u32, Interface> {
        let mut seen = BTreeMap::new();
        gather(at_least, &mut seen, |seen| self.sockets.iter().map(|packets| drain(packets, 0, seen)).sum());
        seen
    }

    /// UDP of the node itself. A refusal by the node's own rules is no failure.
    pub fn send(packet: &Packet, id: u32) {
        let Protocol::Ports { src, dst, .. } = packet.protocol else { panic!("the node sends UDP only") };
        let own = UdpSocket::bind((packet.src, src)).expect("the node's address is there");
        match own.send_to(&payload(id), (packet.dst, dst)) {
            Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => panic!("{packet}: {error}"),
            _ => {}
        }
    }
}

fn payload(id: u32) -> Vec<u8> {
    [MAGIC.as_slice(), &id.to_be_bytes()].concat()
}

fn ip_packet(packet: &Packet, id: u32) -> Vec<u8> {
    let mut body = Vec::new();
    match packet.protocol {
        Protocol::Ports { number, src, dst } => {
            body.extend(src.to_be_bytes());
            body.extend(dst.to_be_bytes());
            match number {
                // SYN, no options.
                6 => body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
                17 => body.extend([0, 16, 0, 0]),
                // INIT with the number as an unknown parameter.
                132 => body.extend(
                    [
                        [0; 8].as_slice(),
                        &[1, 0, 0, 32, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0xc0, 0, 0, 12],
                    ]
                    .concat(),
                ),
                other => panic!("no frame for protocol {other}"),
            }
        }
        Protocol::Icmp { kind, code } | Protocol::IcmpV6 { kind, code } => {
            body.extend([kind, code, 0, 0]);
            body.extend(id.to_be_bytes());
        }
        Protocol::Other(_) => body.extend([0; 8]),
    }
    body.extend(payload(id));
    let number = packet.protocol.number();
    match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            if matches!(packet.protocol, Protocol::Icmp { .. }) {
                let sum = checksum(&body);
                body[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            let length = (20 + body.len()) as u16;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, number, 0, 0];
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [header, body].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            if number == 58 {
                let pseudo = [
                    &src.octets()[..],
                    &dst.octets()[..],
                    &(body.len() as u32).to_be_bytes(),
                    &[0, 0, 0, 58],
                    &body,
                ]
                .concat();
                let sum = checksum(&pseudo);
                body[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((body.len() as u16).to_be_bytes());
            header.extend([number, 64]);
            header.extend(src.octets());
            header.extend(dst.octets());
            [header, body].concat()
        }
        _ => panic!("one packet, two families"),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
