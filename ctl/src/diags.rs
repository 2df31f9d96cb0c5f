//! `node diags`: a bundle that says how this node is, for somebody else to read. Nothing secret goes into it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use regex::Regex;

use crate::Report;

/// (file in the bundle, command). What is not installed, or fails, says so in its file.
const COMMANDS: &[(&str, &[&str])] = &[
    ("system/uname", &["uname", "-a"]),
    ("system/modules", &["lsmod"]),
    ("system/processes", &["ps", "-eo", "pid,ppid,etime,rss,stat,comm"]),
    ("network/addresses", &["ip", "-details", "address"]),
    ("network/links", &["ip", "-statistics", "link"]),
    ("network/routes", &["ip", "route", "show", "table", "all"]),
    ("network/routes6", &["ip", "-6", "route", "show", "table", "all"]),
    ("network/rules", &["ip", "rule"]),
    ("network/rules6", &["ip", "-6", "rule"]),
    ("network/neighbours", &["ip", "neighbour"]),
    ("network/fdb", &["bridge", "fdb"]),
    ("network/sockets", &["ss", "-s"]),
    ("network/conntrack", &["conntrack", "-C"]),
    ("network/sysctls", &["sysctl", "net.ipv4", "net.ipv6.conf"]),
    ("policy/iptables", &["iptables-save", "-c"]),
    ("policy/ip6tables", &["ip6tables-save", "-c"]),
    ("policy/iptables-legacy", &["iptables-legacy-save", "-c"]),
    ("policy/ipsets", &["ipset", "list"]),
    ("policy/felix", &["felix", "status"]),
    ("bgp/protocols", &["birdc", "-s", "/var/run/calico/bird.ctl", "show", "protocols", "all"]),
    ("bgp/routes", &["birdc", "-s", "/var/run/calico/bird.ctl", "show", "route", "all"]),
    ("bgp/status", &["birdc", "-s", "/var/run/calico/bird.ctl", "show", "status"]),
];

/// Files and folders, as far as they are there.
const FILES: &[&str] = &[
    "/usr/lib/os-release",
    "/var/lib/calico/nodename",
    "/var/lib/calico/mtu",
    "/var/log/calico",
    "/var/run/calico/endpoint-status",
    "/etc/calico/confd/config",
    "/etc/bird",
    "/etc/cni/net.d",
];

/// A file's last part is what is read of a long one.
const LARGEST: u64 = 4 << 20;
/// For a command that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(out: Option<&Path>) -> Result<Report> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    let name = format!("bulrush-diags-{now}");
    let target = out.map_or_else(|| PathBuf::from(format!("{name}.tar.gz")), Path::to_path_buf);
    let place = tempfile::tempdir().context("no folder for the bundle")?;
    let root = place.path().join(&name);
    let secrets = Secrets::new();
    let mut warnings = Vec::new();
    for (file, command) in COMMANDS {
        let said = output(command).unwrap_or_else(|reason| {
            warnings.push(format!("{}: {reason}", command.join(" ")));
            format!("{}: {reason}\n", command.join(" "))
        });
        write(&root.join(file), &secrets.hide(&said))?;
    }
    for path in FILES {
        copy(Path::new(path), &root, &secrets, &mut warnings)?;
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
    let file = file.with_context(|| format!("{}: cannot be written", target.display()))?;
    let tar = Command::new("tar").arg("-C").arg(place.path()).args(["-cz", &name]).stdout(file).status();
    if !tar.context("tar")?.success() {
        fs::remove_file(&target).ok();
        bail!("tar has not made {}", target.display());
    }
    let text = format!(
        "{}: {} kB. Passwords, tokens and keys are taken out; look through it before you give it away.\n",
        target.display(),
        fs::metadata(&target)?.len().div_ceil(1000)
    );
    Ok(Report { text, warnings, complete: true, exit: None })
}

/// What a command prints, both ways. A program that is not there, or does not end, is an error.
fn output(command: &[&str]) -> Result<String, String> {
    let out = tempfile::tempfile().map_err(|error| error.to_string())?;
    let copy = |file: &fs::File| file.try_clone().map_err(|error| error.to_string());
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(copy(&out)?)
        .stderr(copy(&out)?)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "not installed".to_owned(),
            _ => error.to_string(),
        })?;
    let started = Instant::now();
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().ok();
            child.wait().ok();
            return Err(format!("did not end within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    tail(out).map_err(|error| error.to_string())
}

/// The last part of a file, as text.
fn tail(mut file: fs::File) -> std::io::Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LARGEST)))?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn copy(path: &Path, root: &Path, secrets: &Secrets, warnings: &mut Vec<String>) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            copy(&entry.path(), root, secrets, warnings)?;
        }
    } else if metadata.is_file() && !secrets.is_secret(path) {
        match fs::File::open(path).and_then(tail) {
            Ok(text) => {
                let inside = path.strip_prefix("/").unwrap_or(path);
                write(&root.join("files").join(inside), &secrets.hide(&text))?;
            }
            Err(error) => warnings.push(format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().expect("it is below the bundle's folder");
    fs::create_dir_all(folder)?;
    fs::File::create(path)?.write_all(text.as_bytes())?;
    Ok(())
}

/// What must not be seen by others.
struct Secrets(Vec<(Regex, &'static str)>);

impl Secrets {
    fn new() -> Self {
        let all = [
            // BIRD.
            (r#"(?m)(\bpassword\s+)("[^"\n]*"|'[^'\n]*')"#, "$1\"***\""),
            // JSON, YAML, variables and settings of any kind.
            (
                r#"(?mi)(["']?\b[a-z0-9_.-]*(?:password|passwd|secret|token|private[_-]?key|client-key-data)["']?\s*[:=]\s*)("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,}]+)"#,
                "$1***",
            ),
            (
                r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
                "*** private key ***",
            ),
            // Credentials in URLs, and bearer tokens.
            (r"(://[^/\s:@]+:)[^@\s/]+@", "$1***@"),
            (r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+", "$1***"),
        ];
        Self(all.map(|(expression, with)| (Regex::new(expression).expect("an expression"), with)).into())
    }

    fn hide(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (secret, with)| secret.replace_all(&text, *with).into_owned())
    }

    /// Files that hold nothing else.
    fn is_secret(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let path = path.to_string_lossy().to_lowercase();
        name.ends_with(".key") || name.contains("kubeconfig") || path.contains("/secrets/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_every_spelling_are_hidden_and_the_rest_stays() {
        let secrets = Secrets::new();
        for (text, expected) in [
            ("  password \"hunter2\";\n  passive on;", "  password \"***\";\n  passive on;"),
            ("{\"etcdPassword\": \"hun\\\"ter2\", \"a\": 1}", "{\"etcdPassword\": ***, \"a\": 1}"),
            ("token: hunter2\nname: x", "token: ***\nname: x"),
            ("ETCD_PASSWORD=hunter2 HOME=/root", "ETCD_PASSWORD=*** HOME=/root"),
            ("client-key-data: aHVudGVyMg==\n", "client-key-data: ***\n"),
            ("http://root:hunter2@etcd:2379/x", "http://root:***@etcd:2379/x"),
            ("Authorization: Bearer hunter2.abc", "Authorization: Bearer ***"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\nb",
                "a\n*** private key ***\nb",
            ),
            (
                "-A cali-fw-cali1 -m comment --comment \"cali:abc\"",
                "-A cali-fw-cali1 -m comment --comment \"cali:abc\"",
            ),
        ] {
            assert_eq!(secrets.hide(text), expected);
        }
        for path in
            ["/etc/cni/net.d/calico-kubeconfig", "/etc/x/typha.key", "/etc/calico/confd/secrets/bgp/rack"]
        {
            assert!(secrets.is_secret(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        assert_eq!(output(&["no-such-program"]), Err("not installed".to_owned()));
        assert_eq!(output(&["echo", "x"]), Ok("x\n".to_owned()));
    }
}
