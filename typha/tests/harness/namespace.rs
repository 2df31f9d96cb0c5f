//! A network of its own for a test that needs a firewall: it goes when the test ends, with everything in it.

use std::future::Future;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use syncer_common::testing::require;

/// Runs the test on a thread that has left the others' network, with a loopback of its own. Skips it, saying why,
/// where that cannot be.
pub fn in_namespace<F: Future<Output = ()>>(tools: &[&str], test: impl FnOnce() -> F + Send + 'static) {
    if tools.iter().any(|tool| require::program(tool).is_none()) {
        return;
    }
    if !nix::unistd::Uid::effective().is_root() {
        assert!(!require::required(), "needs root, for a network namespace");
        println!("SKIPPED: needs root, for a network namespace");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        // One thread: what it starts is in its network.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A command of words; it has to succeed. Returns what it printed.
pub fn run(words: &str) -> String {
    let mut words = words.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).env("ETCDCTL_API", "3").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
