//! What a test needs and a machine may lack.
//!
//! A missing program skips the test, visibly; with `BULRUSH_REQUIRE=1`, as in CI, it fails it.

use std::path::PathBuf;

/// Whether missing requirements fail a test.
pub fn required() -> bool {
    std::env::var("BULRUSH_REQUIRE").is_ok_and(|value| value == "1")
}

/// Where `program` is, or `None` after saying that the test is skipped.
///
/// # Panics
/// When it is missing and `BULRUSH_REQUIRE=1`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(!required(), "{name} is not installed, and BULRUSH_REQUIRE=1");
        println!("SKIPPED: {name} is not installed");
    }
    found
}
