//! `node checksystem`: what felix and BIRD need of this host, tried out instead of looked up.
//!
//! Everything is tried in a network namespace of its own, which goes with the command: nothing of the host changes.
//! Lists of modules say little where much is built in.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::Report;

/// What goes without it, and what to do.
struct Check {
    what: &'static str,
    /// Words of a command that succeeds where it is there.
    tried: &'static [&'static str],
    /// Commands that are needed before it.
    after: &'static [&'static [&'static str]],
    need: Need,
    remedy: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    /// Only for what it says.
    For(&'static str),
}

const MODULES: &str = "load the module, or use a kernel that has it";

macro_rules! rule {
    ($what:literal, $($word:literal),+; $need:expr, $remedy:expr) => {
        Check {
            what: $what,
            tried: &["iptables", "-w", "-t", $($word),+],
            after: &[],
            need: $need,
            remedy: $remedy,
        }
    };
}

const CHECKS: &[Check] = &[
    Check {
        what: "iptables",
        tried: &["iptables", "-w", "-S"],
        after: &[],
        need: Need::Required,
        remedy: "install the package iptables (1.8 or newer)",
    },
    Check {
        what: "ip6tables",
        tried: &["ip6tables", "-w", "-S"],
        after: &[],
        need: Need::For("IPv6"),
        remedy: "install the package iptables, or set FELIX_IPV6SUPPORT=false",
    },
    rule!("table raw", "raw", "-S"; Need::Required, "modprobe iptable_raw"),
    rule!("table mangle", "mangle", "-S"; Need::Required, "modprobe iptable_mangle"),
    rule!("table nat", "nat", "-S"; Need::Required, "modprobe iptable_nat"),
    rule!("match conntrack", "filter", "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED"; Need::Required, "modprobe xt_conntrack"),
    rule!("match comment", "filter", "-A", "INPUT", "-m", "comment", "--comment", "x"; Need::Required, "modprobe xt_comment"),
    rule!("match mark", "filter", "-A", "INPUT", "-m", "mark", "--mark", "0x1/0x1"; Need::Required, "modprobe xt_mark"),
    rule!("target MARK", "mangle", "-A", "INPUT", "-j", "MARK", "--set-mark", "0x1/0x1"; Need::Required, "modprobe xt_mark"),
    rule!("match multiport", "filter", "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "1,2"; Need::Required, "modprobe xt_multiport"),
    rule!("match addrtype", "filter", "-A", "INPUT", "-m", "addrtype", "--dst-type", "LOCAL"; Need::Required, "modprobe xt_addrtype"),
    rule!("match rpfilter", "raw", "-A", "PREROUTING", "-m", "rpfilter", "--invert"; Need::Required, "modprobe ipt_rpfilter"),
    rule!("match icmp", "filter", "-A", "INPUT", "-p", "icmp", "-m", "icmp", "--icmp-type", "8"; Need::Required, MODULES),
    rule!("target REJECT", "filter", "-A", "INPUT", "-j", "REJECT"; Need::For("FELIX_IPTABLESFILTERDENYACTION=REJECT"), "modprobe ipt_REJECT"),
    rule!("target NFLOG", "filter", "-A", "INPUT", "-j", "NFLOG", "--nflog-group", "1"; Need::For("flow logs"), "modprobe xt_NFLOG"),
    rule!("target LOG", "filter", "-A", "INPUT", "-j", "LOG"; Need::For("rules with action Log"), "modprobe xt_LOG"),
    rule!("target MASQUERADE", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE", "--random-fully"; Need::For("pools with natOutgoing"), "modprobe xt_MASQUERADE"),
    rule!("target CT", "raw", "-A", "PREROUTING", "-j", "CT", "--notrack"; Need::Required, "modprobe xt_CT"),
    rule!("match sctp", "filter", "-A", "INPUT", "-p", "sctp", "-m", "sctp", "--dport", "1"; Need::For("policies with protocol SCTP"), "modprobe xt_sctp"),
    Check {
        what: "ipset, hash:net",
        tried: &["ipset", "create", "t", "hash:net", "family", "inet", "maxelem", "1048576"],
        after: &[],
        need: Need::Required,
        remedy: "install the package ipset, modprobe ip_set_hash_net",
    },
    Check {
        what: "ipset, hash:ip,port",
        tried: &["ipset", "create", "t", "hash:ip,port", "family", "inet6"],
        after: &[],
        need: Need::Required,
        remedy: "install the package ipset, modprobe ip_set_hash_ipport",
    },
    Check {
        what: "match set",
        tried: &["iptables", "-w", "-A", "INPUT", "-m", "set", "--match-set", "t", "src"],
        after: &[&["ipset", "create", "t", "hash:net"]],
        need: Need::Required,
        remedy: "modprobe xt_set",
    },
    Check {
        what: "conntrack",
        tried: &["conntrack", "-L"],
        after: &[],
        need: Need::For("closing connections of addresses that move"),
        remedy: "install the package conntrack",
    },
    Check {
        what: "device vxlan",
        tried: &[
            "ip",
            "link",
            "add",
            "name",
            "chk0",
            "type",
            "vxlan",
            "id",
            "4096",
            "dstport",
            "4789",
            "local",
            "127.0.0.1",
        ],
        after: &[],
        need: Need::For("pools with vxlanMode"),
        remedy: "modprobe vxlan",
    },
    Check {
        what: "device ipip",
        tried: &["ip", "link", "add", "name", "chk0", "type", "ipip", "local", "127.0.0.1"],
        after: &[],
        need: Need::For("pools with ipipMode"),
        remedy: "modprobe ipip",
    },
    Check {
        what: "BIRD",
        tried: &["bird", "--version"],
        after: &[],
        need: Need::For("BGP"),
        remedy: "install the package bird2; not needed where felix programs all routes",
    },
];

/// Kernels before this lack what felix asks of netlink (strict checking of dumps, RFC 8950 nexthops).
const KERNEL: (u32, u32) = (5, 4);

enum Outcome {
    There,
    Missing(String),
    /// It cannot be tried.
    Unknown(String),
}

pub fn run() -> Result<Report> {
    let root = nix::unistd::geteuid().is_root();
    let mut text = String::new();
    let mut lacking = 0;
    let (kernel, new) = kernel();
    writeln!(text, "{:<28} {}", format!("kernel {kernel}"), if new { "OK" } else { "TOO OLD" })?;
    if !new {
        lacking += 1;
        writeln!(text, "{:28}   needed: {}.{} or newer", "", KERNEL.0, KERNEL.1)?;
    }
    for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/rp_filter"] {
        let name = path.trim_start_matches("/proc/sys/").replace('/', ".");
        let writable = nix::unistd::access(Path::new(path), nix::unistd::AccessFlags::W_OK).is_ok();
        let said = match (writable, root) {
            (true, _) => "OK",
            (false, true) => "READ-ONLY",
            (false, false) => "NOT TRIED (needs root)",
        };
        writeln!(text, "{name:<28} {said}")?;
        if said == "READ-ONLY" {
            lacking += 1;
            writeln!(
                text,
                "{:28}   felix has to set it: run it privileged, or mount /proc/sys writable",
                ""
            )?;
        }
    }
    for check in CHECKS {
        let outcome = outcome(check, root);
        let what = check.what;
        match outcome {
            Outcome::There => writeln!(text, "{what:<28} OK")?,
            Outcome::Unknown(reason) => writeln!(text, "{what:<28} NOT TRIED ({reason})")?,
            Outcome::Missing(reason) => {
                match check.need {
                    Need::Required => {
                        lacking += 1;
                        writeln!(text, "{what:<28} MISSING")?;
                    }
                    Need::For(use_) => writeln!(text, "{what:<28} missing, needed for {use_}")?,
                }
                writeln!(text, "{:28}   {reason}: {}", "", check.remedy)?;
            }
        }
    }
    let complete = root && lacking == 0;
    match (root, lacking) {
        (false, _) => writeln!(text, "Not all was tried: run it as root.")?,
        (true, 0) => writeln!(text, "This host can be a node.")?,
        (true, n) => writeln!(text, "This host lacks {n} thing(s) that every node needs.")?,
    }
    Ok(Report { text, warnings: Vec::new(), complete, exit: None })
}

fn kernel() -> (String, bool) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    (release, version >= KERNEL)
}

fn outcome(check: &Check, root: bool) -> Outcome {
    let program = check.tried[0];
    if !on_path(program) {
        return Outcome::Missing(format!("no program {program}"));
    }
    if !root && program != "bird" {
        return Outcome::Unknown("needs root".into());
    }
    // One namespace for a check: `unshare` runs a shell with the steps.
    let quoted = |words: &&[&str]| words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let steps: Vec<String> = check.after.iter().map(quoted).chain([quoted(&check.tried)]).collect();
    let ran = Command::new("unshare")
        .args(if root { &["-n", "sh", "-c"][..] } else { &["sh", "-c"] })
        .arg(steps.join(" && "))
        .stdin(Stdio::null())
        .output();
    match ran {
        Ok(ran) if ran.status.success() => Outcome::There,
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it fails");
            Outcome::Missing(line.trim().trim_end_matches('.').to_owned())
        }
        Err(error) => Outcome::Unknown(format!("unshare: {error}")),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
