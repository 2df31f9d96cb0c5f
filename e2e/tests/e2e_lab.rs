//! The lab itself: a test bed that cannot fail would prove nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::lab::{self, Lab};
use e2e::probe::Via;
use e2e::process::{Process, wait_for};
use e2e::require;
use e2e::watch::Monitor;

#[test]
fn nodes_reach_each_other_and_unrouted_workloads_do_not() -> Result<()> {
    require!("ping");
    let mut lab = Lab::up("brlab1", 2)?;
    lab.add_workload("n1", "lonely", &[])?;
    ensure!(lab.reaches("n1", "n2", Via::Icmp)?, "the fabric does not connect the nodes");
    ensure!(lab.reaches("outside", "n1", Via::Icmp)?, "the fabric does not route to the outside");
    ensure!(
        !lab.reaches("n2", "lonely", Via::Icmp)?,
        "a workload answers although nobody programmed a route"
    );
    drop(lab);
    ensure!(lab::namespaces("brlab1")?.is_empty(), "the lab left namespaces");
    Ok(())
}

#[test]
fn monitors_see_every_withdrawal() -> Result<()> {
    require!("nft", "iptables-nft", "stdbuf");
    let lab = Lab::up("brlab2", 1)?;
    let netns = lab.node("n1").netns.clone();
    lab.sh(&netns, "ip route add 192.0.2.0/24 via 172.30.0.1 && iptables-nft -N gone")?;
    let (routes, rules) = (Monitor::routes(&lab, &netns)?, Monitor::rules(&lab, &netns)?);
    ensure!(routes.deletions().is_empty() && rules.deletions().is_empty(), "deletions before any");
    lab.sh(&netns, "ip route del 192.0.2.0/24 && iptables-nft -X gone")?;
    wait_for("both monitors", Duration::from_secs(30), || {
        ensure!(
            routes.deletions().iter().any(|l| l.contains("192.0.2.0/24")),
            "routes: {:?}",
            routes.lines()
        );
        ensure!(rules.deletions().iter().any(|l| l.contains("gone")), "rules: {:?}", rules.lines());
        Ok(())
    })
}

#[test]
fn a_process_that_ends_is_noticed_with_its_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo the reason; exit 3"]);
    let mut process = Process::start("short", command, &dir.path().join("log"))?;
    let error = wait_for("its end", Duration::from_secs(30), || match process.check() {
        Err(error) => Ok(error.to_string()),
        Ok(()) => anyhow::bail!("still running"),
    })?;
    ensure!(error.contains("the reason") && error.contains('3'), "unhelpful: {error}");
    Ok(())
}
