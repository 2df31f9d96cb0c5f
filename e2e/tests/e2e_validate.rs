//! `bulrushctl validate`, offline, and typha's metric say the same of the same files.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::binaries;
use e2e::process::{Process, tail, wait_for};

/// One good resource, and one mistake of each sort.
const RESOURCES: &str = r#"
{kind: IPPool, metadata: {name: good}, spec: {cidr: 10.65.0.0/16}}
{kind: IPPool, metadata: {name: cidr}, spec: {cidr: 10.0.0.0/99}}
{kind: IPPool, metadata: {name: modes}, spec: {cidr: 10.66.0.0/16, ipipMode: Always, vxlanMode: Always}}
{kind: GlobalNetworkPolicy, metadata: {name: selector}, spec: {selector: "a ==", types: [Ingress]}}
{kind: GlobalNetworkPolicy, metadata: {name: action}, spec: {types: [Ingress], ingress: [{action: Permit}]}}
{kind: HostEndpoint, metadata: {name: address}, spec: {node: a, interfaceName: eth0, expectedIPs: [none]}}
{kind: BGPFilter, metadata: {name: family}, spec: {importV4: [{action: Reject, cidr: "2001:db8::/32", matchOperator: In}]}}
{kind: Tier, metadata: {name: unknown}, spec: {defaultAction: Maybe}}
{kind: FelixConfiguration, metadata: {name: default}, spec: {defaultEndpointToHostAction: Maybe}}
"#;

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn get(port: u16, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn tool_and_metric_find_the_same_mistakes() -> Result<()> {
    let (folder, bin) = (tempfile::tempdir()?, binaries()?);
    let resources: Vec<&str> = RESOURCES.trim().lines().collect();
    for (number, resource) in resources.iter().enumerate() {
        let manifest = resource.replacen('{', "{apiVersion: projectcalico.org/v3, ", 1);
        std::fs::write(folder.path().join(format!("{number}.yaml")), manifest)?;
    }
    let bad = resources.len() - 1;

    let output = Command::new(bin.join("bulrushctl"))
        .args(["validate", "-f"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.contains(&format!("in {bad} of {} resource(s)", bad + 1)), "{said}");

    let (server, health) = (free_port()?, free_port()?);
    let mut typha = Command::new(bin.join("typha"));
    typha
        .env_clear()
        .env("TYPHA_DATASTORETYPE", "directory")
        .env("TYPHA_DIRECTORY", folder.path())
        .env("TYPHA_SERVERHOST", "127.0.0.1")
        .env("TYPHA_SERVERPORT", server.to_string())
        .env("TYPHA_HEALTHHOST", "127.0.0.1")
        .env("TYPHA_HEALTHPORT", health.to_string())
        .env("TYPHA_PROMETHEUSMETRICSENABLED", "true")
        .env("TYPHA_PROMETHEUSMETRICSHOST", "127.0.0.1")
        .env("TYPHA_PROMETHEUSMETRICSPORT", health.to_string());
    let log = folder.path().join(".typha.log");
    let _typha = Process::start("typha", typha, &log)?;
    wait_for("typha to be ready", Duration::from_secs(30), || {
        let answer = get(health, "/readiness")?;
        ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        Ok(())
    })?;
    // Files count once they have been left alone for a moment.
    wait_for("typha to count the same mistakes", Duration::from_secs(30), || {
        let metrics = get(health, "/metrics")?;
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("typha_updates_invalid_total "))
            .context("the metric is there from the start")?;
        ensure!(counted == bad.to_string(), "typha counts {counted}, bulrushctl {bad}:\n{}", tail(&log, 40));
        Ok(())
    })
}
