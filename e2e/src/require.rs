//! What a test needs from the machine: root, tools, kernel features.

use std::path::PathBuf;

/// Why a test can not run here, or nothing when it can. With `BULRUSH_REQUIRE=1` (CI) a reason is a failure.
pub fn missing(tools: &[&str]) -> Option<String> {
    let reason = reason(tools)?;
    assert!(std::env::var_os("BULRUSH_REQUIRE").is_none_or(|v| v != "1"), "BULRUSH_REQUIRE=1, but {reason}");
    Some(reason)
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
