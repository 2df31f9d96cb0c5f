//! What a test needs from the machine: root, tools, kernel features.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::process::run;

/// Why a test can not run here, or nothing when it can. With `BULRUSH_REQUIRE=1` (CI) a reason is a failure.
pub fn missing(tools: &[&str]) -> Option<String> {
    reason(tools).map(refuse)
}

fn refuse(reason: String) -> String {
    assert!(std::env::var_os("BULRUSH_REQUIRE").is_none_or(|v| v != "1"), "BULRUSH_REQUIRE=1, but {reason}");
    reason
}

fn reason(tools: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root: network namespaces need root".into());
    }
    let absent: Vec<_> = tools.iter().filter(|tool| find(tool).is_none()).copied().collect();
    if !absent.is_empty() {
        return Some(format!("not installed: {} (make deps installs them)", absent.join(", ")));
    }
    None
}

/// Where a tool is, on the path and in the system folders that a user's path may lack.
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

/// Whether this is the machine that [`in_vm`] starts.
pub fn is_vm() -> bool {
    std::env::var_os("BULRUSH_VM").is_some()
}

/// Whether this kernel makes links of a kind (`ipip`).
pub fn kernel_makes(kind: &str) -> Result<bool> {
    let namespace = format!("br-kernel-{}", std::process::id());
    run(Command::new("ip").args(["netns", "add", &namespace]))?;
    let mut add = Command::new("ip");
    add.args([
        "-n",
        &namespace,
        "link",
        "add",
        "probe",
        "type",
        kind,
        "local",
        "127.0.0.1",
        "remote",
        "127.0.0.2",
    ]);
    let made = run(&mut add).is_ok();
    run(Command::new("ip").args(["netns", "del", &namespace]))?;
    Ok(made)
}

/// Runs a test of the calling program under Debian's own kernel, or says why that cannot be.
pub fn in_vm(test: &str) -> Result<()> {
    ensure!(!is_vm(), "{test} lacks something in the virtual machine, too");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/vm");
    let prepared = Command::new(&script).arg("prepare").output().context("run scripts/vm")?;
    let reason = String::from_utf8_lossy(&prepared.stderr).trim().to_owned();
    match prepared.status.code() {
        Some(0) => {}
        Some(3) => {
            println!("SKIPPED: {}", refuse(reason));
            return Ok(());
        }
        // Not to be had on this machine, whatever is installed.
        Some(4) => {
            println!("SKIPPED: {reason}");
            return Ok(());
        }
        _ => anyhow::bail!("scripts/vm prepare: {}: {reason}", prepared.status),
    }
    let mut run = Command::new(&script);
    run.arg("run").arg(std::env::current_exe()?).args(["--exact", test, "--nocapture"]);
    let mut running = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    // Marked, or its closing line would be counted as one more test.
    let mut said = Vec::new();
    for line in BufReader::new(running.stdout.take().context("stdout is piped")?).lines() {
        said.push(format!("vm: {}", line?));
        println!("{}", said[said.len() - 1]);
    }
    let status = running.wait()?;
    if status.code() == Some(4) {
        println!("SKIPPED: no virtual machine can be started here (scripts/vm says why)");
        return Ok(());
    }
    ensure!(status.success(), "{status}\n{}", said[said.len().saturating_sub(40)..].join("\n"));
    Ok(())
}

/// Skips the calling test, saying why, when the machine lacks something.
#[macro_export]
macro_rules! require {
    ($($tool:literal),*) => {
        if let Some(reason) = $crate::require::missing(&["ip", $($tool),*]) {
            println!("SKIPPED: {reason}");
            return Ok(());
        }
    };
}
