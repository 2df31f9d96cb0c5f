//! `confd bird`: starts BIRD with graceful restart where the kernel holds routes of an earlier one, and
//! without where it holds none.
//!
//! With `-R` BIRD takes over the routes it finds and writes none until its neighbours are back or a timer ends:
//! right after a crash or an upgrade, and a needless wait on a node that has just booted.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// Becomes BIRD. Returns only if that fails.
pub fn exec(binary: &Path, arguments: &[std::ffi::OsString]) -> anyhow::Result<()> {
    let held = routes_held()?;
    let mut command = Command::new(binary);
    if held > 0 {
        command.arg("-R");
    }
    eprintln!(
        "confd: the kernel holds {held} routes of BIRD: {} graceful restart",
        if held > 0 { "with" } else { "no" }
    );
    Err(command.args(arguments).exec()).with_context(|| format!("starting {}", binary.display()))
}

/// Routes in the kernel that a BIRD has written.
fn routes_held() -> anyhow::Result<usize> {
    let mut held = 0;
    for family in ["-4", "-6"] {
        let listed = Command::new("ip")
            .args([family, "route", "show", "table", "all", "proto", "bird"])
            .output()
            .context("running ip to see whether BIRD's routes are there; install iproute2")?;
        // A kernel without IPv6 has no such routes.
        if !listed.status.success() && family == "-4" {
            bail!("ip route show: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        held += listed.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    }
    Ok(held)
}
