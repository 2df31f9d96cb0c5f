//! What routes, forwarding entries and neighbours of many nodes cost, and what one more node does:
//! `cargo run -p felix --example tunnels -- [nodes]`, as root; in a network namespace of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use felix::iptables::IpVersion;
use felix::tunnels::{TunnelSettings, Tunnels};
use felix_calc::output::{Encapsulation, Family, Hop, OwnNode, Route, Vtep};
use ipnet::{IpNet, Ipv4Net};
use nix::sched::{CloneFlags, unshare};

fn main() -> Result<()> {
    let nodes: u32 = std::env::args().nth(1).map_or(Ok(1000), |text| text.parse())?;
    unshare(CloneFlags::CLONE_NEWNET).context("root is needed, for a network namespace")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(nodes))
}

async fn measure(nodes: u32) -> Result<()> {
    for line in ["link add eth0 type veth peer name peer0", "link set peer0 up", "link set eth0 up"] {
        ip(line)?;
    }
    ip("addr add 172.16.0.0/12 dev eth0")?;
    let mut tunnels = Tunnels::new(&[IpVersion::V4])?;
    tunnels.set_settings(TunnelSettings { vxlan_v4: true, ..TunnelSettings::default() });
    let own = vtep(0);
    let ipv4 = Some(Ipv4Addr::new(172, 16, 0, 0));
    tunnels.set_own(OwnNode { ipv4, vxlan_v4: Some(own), ..OwnNode::default() });
    for number in 1..nodes {
        join(&mut tunnels, number)?;
    }
    let started = Instant::now();
    let writes = apply(&mut tunnels).await?;
    println!("{nodes} nodes from empty: {writes} writes in {:.0?}", started.elapsed());
    tunnels.queue_resync();
    let started = Instant::now();
    ensure!(apply(&mut tunnels).await? == 0, "a second look wrote");
    println!("looked through and left alone in {:.0?}", started.elapsed());
    join(&mut tunnels, nodes)?;
    let started = Instant::now();
    let writes = apply(&mut tunnels).await?;
    println!("one more node: {writes} writes in {:.1?}", started.elapsed());
    Ok(())
}

async fn apply(tunnels: &mut Tunnels) -> Result<usize> {
    let pass = tunnels.apply().await;
    ensure!(pass.errors.is_empty(), "{:?}", pass.errors);
    Ok(pass.writes)
}

fn join(tunnels: &mut Tunnels, number: u32) -> Result<()> {
    let vtep = vtep(number);
    let IpAddr::V4(first) = vtep.tunnel_ip else { unreachable!("the tunnels here are of IPv4") };
    tunnels.set_vtep(format!("n{number}"), Family::V4, Some(vtep));
    let route = Route { encapsulation: Encapsulation::Vxlan, hop: Hop::Tunnel(vtep.tunnel_ip) };
    tunnels.set_route(IpNet::V4(Ipv4Net::new(first, 26)?), Some(route));
    Ok(())
}

fn vtep(number: u32) -> Vtep {
    let at = |base: Ipv4Addr, step: u32| IpAddr::V4(Ipv4Addr::from(u32::from(base) + number * step));
    let [_, _, high, low] = number.to_be_bytes();
    Vtep {
        node_ip: at(Ipv4Addr::new(172, 16, 0, 0), 1),
        tunnel_ip: at(Ipv4Addr::new(10, 0, 0, 0), 64),
        mac: [0x66, 0, 0, 0, high, low],
    }
}

fn ip(line: &str) -> Result<()> {
    let status = Command::new("ip").args(line.split(' ')).status().context("ip")?;
    ensure!(status.success(), "ip {line} failed");
    Ok(())
}
