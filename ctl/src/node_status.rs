//! `node status`: the BGP sessions of this node, asked of its BIRD, in the tables of `calicoctl`.
//!
//! Stock BIRD 2 is one daemon for both families, Calico's BIRD is two. Neither the datastore nor typha is
//! asked, so this works when nothing else does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::Report;
use crate::grid::{self, Align};

/// As with `calicoctl`, for each line.
const PATIENCE: Duration = Duration::from_secs(2);
const FOLDERS: [&str; 3] = ["/var/run/calico", "/var/run/bird", "/run/bird"];

/// Sockets that were named; otherwise the usual places are looked at.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    pub bird: Option<PathBuf>,
    pub bird6: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    address: IpAddr,
    port: Option<u16>,
    kind: &'static str,
    state: String,
    since: String,
    info: String,
}

pub fn run(sockets: &Sockets) -> Result<Report> {
    let agent = agent_runs();
    Ok(report(agent, &ask(sockets.bird.as_deref(), "bird"), &ask(sockets.bird6.as_deref(), "bird6")))
}

/// What a daemon said; `None` when there is none.
fn ask(named: Option<&Path>, daemon: &str) -> Option<Result<Vec<Peer>>> {
    let places: Vec<PathBuf> = match named {
        Some(path) => vec![path.to_owned()],
        None => FOLDERS.iter().map(|folder| Path::new(folder).join(format!("{daemon}.ctl"))).collect(),
    };
    let mut failed = None;
    for path in places {
        match UnixStream::connect(&path) {
            Ok(stream) => {
                return Some(peers(stream).with_context(|| format!("asking BIRD at {}", path.display())));
            }
            // Nobody listens: a socket that a dead daemon left behind is none.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => {
                failed.get_or_insert(
                    Err(error).with_context(|| format!("connecting to BIRD at {}", path.display())),
                );
            }
        }
    }
    failed
}

fn report(agent: bool, bird: &Option<Result<Vec<Peer>>>, bird6: &Option<Result<Vec<Peer>>>) -> Report {
    let mut text =
        String::from(if agent { "Calico process is running.\n" } else { "Calico process is not running.\n" });
    let mut warnings = Vec::new();
    let mut complete = agent;
    let mut peers = Vec::new();
    for answer in [bird, bird6].into_iter().flatten() {
        match answer {
            Ok(found) => peers.extend(found.iter().cloned()),
            Err(error) => {
                warnings.push(format!("{error:#}"));
                complete = false;
            }
        }
    }
    if bird.is_none() && bird6.is_none() {
        text += "\nNone of the BGP backend processes (BIRD or GoBGP) are running.\n";
        return Report { text, warnings, complete: false, exit: None };
    }
    for (version, v4) in [(4, true), (6, false)] {
        let rows: Vec<Vec<String>> = peers
            .iter()
            .filter(|peer| peer.address.is_ipv4() == v4)
            .map(|peer| {
                let address = match (peer.port, peer.address) {
                    (None, address) => address.to_string(),
                    (Some(port), address) => std::net::SocketAddr::new(address, port).to_string(),
                };
                let kind = peer.kind.to_owned();
                vec![address, kind, peer.state.clone(), peer.since.clone(), peer.info.clone()]
            })
            .collect();
        text += &format!("\nIPv{version} BGP status\n");
        if rows.is_empty() {
            text += &format!("No IPv{version} peers found.\n");
            continue;
        }
        let columns = ["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"].map(|name| (name, Align::Left));
        text += &grid::centred(&columns, &rows);
    }
    text.push('\n');
    Report { text, warnings, complete, exit: None }
}

/// One question, with a deadline for every line of the answer.
fn peers(stream: UnixStream) -> Result<Vec<Peer>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut answer = |end: &[u8]| -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut raw = Vec::new();
            let read = reader.read_until(b'\n', &mut raw).context("BIRD does not answer")?;
            ensure!(read > 0, "BIRD closed the connection");
            let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
            // Four digits and a space end a reply.
            let last = line.as_bytes().get(4).is_none_or(|byte| *byte == b' ')
                && line.as_bytes().iter().take(4).all(u8::is_ascii_digit)
                && line.len() >= 4;
            let ended = last && (end.is_empty() || line.as_bytes().starts_with(end));
            let failed = last && !ended;
            lines.push(line);
            if ended {
                return Ok(lines);
            }
            if failed {
                bail!("BIRD answers {:?}", lines.pop().unwrap_or_default());
            }
        }
    };
    answer(b"0001")?;
    writer.write_all(b"show protocols\n")?;
    Ok(answer(b"0000")?.iter().filter_map(|line| peer(line)).collect())
}

/// `1002-name proto table state since info`; further rows begin with a space.
fn peer(line: &str) -> Option<Peer> {
    let row = line.strip_prefix("1002-").or_else(|| line.strip_prefix(' '))?;
    let mut words = row.split_whitespace();
    let (name, protocol, _table) = (words.next()?, words.next()?, words.next()?);
    let (state, since) = (words.next()?, words.next()?);
    if protocol != "BGP" {
        return None;
    }
    let kinds = [
        ("Mesh_", "node-to-node mesh"),
        ("Node_", "node specific"),
        ("Global_", "global"),
        ("Local_Workload_", "local workload"),
    ];
    let (kind, rest) = kinds.iter().find_map(|(prefix, kind)| Some((*kind, name.strip_prefix(prefix)?)))?;
    let (address, port) = match rest.rsplit_once("_port_") {
        Some((address, port)) => (address, Some(port.parse().ok()?)),
        None => (rest, None),
    };
    let address = address.replace('_', ".").parse::<IpAddr>().or_else(|_| address.replace('_', ":").parse());
    // BIRD 2 counts milliseconds.
    let since = match since.split_once('.') {
        Some((seconds, _)) if seconds.contains(':') => seconds,
        _ => since,
    };
    Some(Peer {
        address: address.ok()?,
        port,
        kind,
        state: state.to_owned(),
        since: since.to_owned(),
        info: words.collect::<Vec<_>>().join(" "),
    })
}

/// Whether a felix runs on this machine, Calico's or ours.
fn agent_runs() -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| is_agent(&line))
}

fn is_agent(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let felix = words.next().is_some_and(|word| word == "-felix");
    matches!(program, "felix" | "calico-felix") || (program == "calico-node" && felix)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const BIRD2: &str = "2002-Name       Proto      Table      State  Since         Info\n\
        1002-device1    Device     ---        up     16:13:34.998  \n\
        \x20Mesh_192_168_56_100 BGP        ---        up     16:13:35.123  Established   \n\
        \x20Node_172_30_0_254_port_1790 BGP ---   start  2026-11-20    Active        Socket: Connection refused\n\
        \x20Global_fd00__1_port_179 BGP    ---        up     16:13:35.000  Established\n\
        0000 \n";
    const BIRD1: &str = "2002-name     proto    table    state  since       info\n\
        1002-kernel1  Kernel   master   up     09:38:37    \n\
        \x20Mesh_192_168_56_102 BGP      master   up     09:38:38    Established   \n0000 \n";

    /// A BIRD that says this.
    fn serve(dir: &Path, name: &str, said: &'static str) -> PathBuf {
        let path = dir.join(name);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"0001 BIRD ready.\n").unwrap();
            let mut asked = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut asked).unwrap();
            assert_eq!(asked, "show protocols\n");
            stream.write_all(said.as_bytes()).unwrap();
        });
        path
    }

    #[test]
    fn one_bird2_fills_both_tables() {
        let dir = tempfile::tempdir().unwrap();
        let bird = ask(Some(&serve(dir.path(), "bird.ctl", BIRD2)), "bird");
        let said = report(true, &bird, &ask(Some(&dir.path().join("none")), "bird6"));
        assert_eq!(
            said.text,
            "Calico process is running.\n\n\
             IPv4 BGP status\n\
             +-------------------+-------------------+-------+------------+-----------------------------------+\n\
             |   PEER ADDRESS    |     PEER TYPE     | STATE |   SINCE    |               INFO                |\n\
             +-------------------+-------------------+-------+------------+-----------------------------------+\n\
             | 192.168.56.100    | node-to-node mesh | up    | 16:13:35   | Established                       |\n\
             | 172.30.0.254:1790 | node specific     | start | 2026-11-20 | Active Socket: Connection refused |\n\
             +-------------------+-------------------+-------+------------+-----------------------------------+\n\n\
             IPv6 BGP status\n\
             +---------------+-----------+-------+----------+-------------+\n\
             | PEER ADDRESS  | PEER TYPE | STATE |  SINCE   |    INFO     |\n\
             +---------------+-----------+-------+----------+-------------+\n\
             | [fd00::1]:179 | global    | up    | 16:13:35 | Established |\n\
             +---------------+-----------+-------+----------+-------------+\n\n"
        );
        assert!(said.complete);
    }

    #[test]
    fn the_two_daemons_of_calico_are_asked_both() {
        let dir = tempfile::tempdir().unwrap();
        let bird = ask(Some(&serve(dir.path(), "bird.ctl", BIRD1)), "bird");
        let bird6 = ask(Some(&serve(dir.path(), "bird6.ctl", "2002-name\n0000 \n")), "bird6");
        let said = report(true, &bird, &bird6).text;
        assert!(
            said.contains("| 192.168.56.102 | node-to-node mesh | up    | 09:38:38 | Established |"),
            "{said}"
        );
        assert!(said.contains("IPv6 BGP status\nNo IPv6 peers found.\n"), "{said}");
    }

    #[test]
    fn no_bird_and_a_silent_bird_are_told_apart() {
        let said = report(false, &None, &None);
        assert_eq!(
            said.text,
            "Calico process is not running.\n\nNone of the BGP backend processes (BIRD or GoBGP) are running.\n"
        );
        assert!(!said.complete);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bird.ctl");
        let listener = UnixListener::bind(&path).unwrap();
        let silent = ask(Some(&path), "bird");
        drop(listener);
        let said = report(true, &silent, &None);
        assert!(!said.complete && said.warnings[0].contains("does not answer"), "{said:?}");
    }

    #[test]
    fn felix_is_known_by_its_own_name_and_as_part_of_calico_node() {
        for line in ["/usr/bin/felix\0", "calico-felix\0-x\0", "calico-node\0-felix\0"] {
            assert!(is_agent(line.as_bytes()), "{line:?}");
        }
        for line in ["", "calico-node\0-confd\0", "vim\0felix\0"] {
            assert!(!is_agent(line.as_bytes()), "{line:?}");
        }
    }
}
