//! Established flows that must not notice anything: sequence-numbered UDP at 100 a second, and a TCP stream.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::lab::Lab;
use crate::probe::within;

const PERIOD: Duration = Duration::from_millis(10);
/// A shorter flow would prove nothing.
const SHORTEST: Duration = Duration::from_secs(3);
/// How long after the last packet an answer may still come.
const LINGER: Duration = Duration::from_secs(2);

/// A running flow; `finish` stops it and says what was lost.
pub struct Flow {
    started: Instant,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Result<Report>>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub sent: u64,
    pub answered: u64,
    /// The longest time without an answer.
    pub gap: Duration,
}

impl Report {
    pub fn lost(&self) -> u64 {
        self.sent - self.answered
    }
}

impl Flow {
    /// Numbered datagrams to an echo server, 100 a second.
    pub fn udp(lab: &Lab, from: &str, to: &str, port: u16) -> Flow {
        Self::start(lab, from, to, port, udp)
    }

    /// One TCP connection that asks and waits for the answer, 100 times a second. A reset ends it with an error;
    /// a retransmission shows as a gap.
    pub fn tcp(lab: &Lab, from: &str, to: &str, port: u16) -> Flow {
        Self::start(lab, from, to, port, tcp)
    }

    fn start(
        lab: &Lab,
        from: &str,
        to: &str,
        port: u16,
        run: impl FnOnce(SocketAddr, &AtomicBool) -> Result<Report> + Send + 'static,
    ) -> Flow {
        let to = SocketAddr::new(lab.locate(to).1, port);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = within(&lab.locate(from).0, move || run(to, &seen));
        Flow { started: Instant::now(), stop, thread }
    }

    /// Stops it, after at least [`SHORTEST`]: what the fault did may show late.
    pub fn finish(self) -> Result<Report> {
        std::thread::sleep(SHORTEST.saturating_sub(self.started.elapsed()));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the flow panicked"))??
    }
}

fn udp(to: SocketAddr, stop: &AtomicBool) -> Result<Report> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let receiver = socket.try_clone()?;
    receiver.set_read_timeout(Some(LINGER))?;
    let answers = std::thread::spawn(move || {
        let (mut seen, mut last, mut gap) =
            (std::collections::HashSet::new(), Instant::now(), Duration::ZERO);
        let mut buffer = [0; 16];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(8) => {
                    gap = gap.max(last.elapsed());
                    last = Instant::now();
                    seen.insert(u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes")));
                }
                Ok(_) => {}
                // Silence for LINGER after the sender stopped: done. While it runs, an ICMP error or a gap only counts.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return (seen.len() as u64, gap);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    let (mut sent, mut next) = (0u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        socket.send(&sent.to_be_bytes()).ok();
        sent += 1;
        next += PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (answered, gap) = answers.join().map_err(|_| anyhow!("the receiver panicked"))?;
    Ok(Report { sent, answered, gap })
}

fn tcp(to: SocketAddr, stop: &AtomicBool) -> Result<Report> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let (mut sent, mut gap, mut next) = (0u64, Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(&sent.to_be_bytes()).context("the TCP stream broke while writing")?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).context("the TCP stream broke while reading")?;
        anyhow::ensure!(u64::from_be_bytes(answer) == sent, "the TCP stream answered out of order");
        gap = gap.max(asked.elapsed());
        sent += 1;
        next = (next + PERIOD).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(Report { sent, answered: sent, gap })
}
