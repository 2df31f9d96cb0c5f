//! Configuration for stock BIRD 2: one file for both families.
//!
//! Filters are named and shared, and peers come from a template: with a filter written out in every peer,
//! parsing takes time in the square of their number (11 s for a mesh of 5,000, against 0.02 s).
//!
//! What BIRD 1 did by itself has to be said to BIRD 2: `metric 0` in the kernel protocols (its default of
//! 32 would override every `krt_metric`), and that connected routes are not written back to the kernel.
//! BIRD 2 has no tunnels: IPIP routes are always felix's.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{MARKER, Rendered, meaning};
use crate::bgp::{
    Advertisement, BgpModel, Community, Encapsulation, Family, FamilyModel, LogLevel, NextHop, Origin, Peer,
    Problem,
};

pub const FILE_NAME: &str = "bird.cfg";

/// A local preference is this less the route's metric, so that the metric travels.
const MAX_PREFERENCE: u32 = 2_147_483_647;

/// Route protocols that felix marks its routes with (`boot` and Calico's own 80).
const FELIX_ROUTE_PROTOCOLS: &str = "[3, 80]";

/// The longest restart time that a BGP message can carry, in seconds.
const MAX_RESTART_SECONDS: u64 = 4095;

pub(super) fn render(model: &BgpModel) -> Rendered {
    let mut body = Text::default();
    general(&mut body, model);
    for family in model.families() {
        routes(&mut body, model, family);
        if family.address.is_some() {
            sessions(&mut body, model, family);
        }
    }
    let body = body.0;
    let mut marker = String::with_capacity(32);
    for byte in &Sha256::digest(meaning(&body).as_bytes())[..16] {
        push(&mut marker, format_args!("{byte:02x}"));
    }
    let text = format!(
        "# BIRD 2 configuration of node {}, written by confd: changes made here are lost.\n\
         define {MARKER} = \"{marker}\";\n\n{body}",
        comment(&model.node)
    );
    Rendered {
        file_name: FILE_NAME,
        text,
        marker,
        peers: model.peers().map(Peer::name).collect(),
        problems: problems(model),
    }
}

fn problems(model: &BgpModel) -> Vec<Problem> {
    let ipip = |family: &FamilyModel| {
        family.pools.iter().any(|pool| matches!(pool.encapsulation, Encapsulation::Ipip { .. }))
    };
    if model.cluster_routes.ipip && ipip(&model.v4) {
        vec![Problem::new(
            "BGPConfiguration(default)",
            "spec.programClusterRoutes",
            "stock BIRD cannot write IPIP routes: they are left to felix",
        )]
    } else {
        Vec::new()
    }
}

fn general(out: &mut Text, model: &BgpModel) {
    out.line(format_args!("router id {};", model.router_id));
    // Without an end, one dead neighbour would keep a restarted BIRD from writing routes for minutes.
    out.line("graceful restart wait 15;");
    match model.log_level {
        LogLevel::Debug => out.line("debug protocols all;"),
        LogLevel::Info => out.line("debug protocols { states, events };"),
        LogLevel::Quiet => {}
    }
    out.line("");
    out.line("protocol device {\n  scan time 2;\n}");
    let ignored: String =
        model.ignored_interfaces.iter().map(|pattern| format!("-\"{pattern}\", ")).collect();
    out.line(format_args!(
        "protocol direct {{\n  ipv4;\n  ipv6;\n  interface {ignored}-\"cali*\", -\"kube-ipvs*\", \"*\";\n}}"
    ));
}

/// Blocks, statics, filters and the kernel protocol of a family.
fn routes(out: &mut Text, model: &BgpModel, family: &FamilyModel) {
    let v = version(family.family);
    let priority = family.route_priority;

    out.line(format_args!("\nprotocol static static{v} {{"));
    out.line(format_args!("  ipv{v};"));
    for block in family.blocks.iter().filter(|block| block.has_blackhole()) {
        out.line(format_args!("  route {} blackhole;", block.cidr));
    }
    for net in &family.statics {
        out.line(format_args!("  route {net} blackhole;"));
    }
    for peer in &family.peers {
        if let Some(gateway) = peer.reachable_by {
            out.line(format_args!("  route {}/{} via {gateway};", peer.address, family.family.bits()));
        }
    }
    out.line("}");

    out.line(format_args!("\nfunction communities_v{v}() {{"));
    family.advertisements.iter().for_each(|advertisement| communities(out, advertisement));
    out.line("}");

    out.line(format_args!(
        "\n# The blocks of this node go out as a whole; what is inside stays here, unless its"
    ));
    out.line(format_args!("# metric marks it as on the move.\nfunction blocks_v{v}() {{"));
    for block in family.blocks.iter().filter(|block| block.aggregated) {
        let cidr = block.cidr;
        out.line(format_args!("  if net = {cidr} then accept;"));
        out.line(format_args!("  if net ~ {cidr} && krt_metric < {priority} then accept;"));
        out.line(format_args!("  if net ~ {cidr} then reject;"));
    }
    out.line("}");

    out.line(format_args!("\nfunction export_v{v}(bool ibgp_peer) {{"));
    for pool in family.pools.iter().filter(|pool| !pool.export) {
        out.line(format_args!("  if net ~ {} then reject;  # disableBGPExport", pool.cidr));
    }
    out.line("  if ibgp_peer then {");
    out.line("    if ifname ~ \"*.cali\" || ifname ~ \"*.calico\" || ifname ~ \"tunl0\" then reject;");
    // BIRD learns felix's routes to other nodes and would pass them on; a route of a local workload has
    // no gateway.
    out.line(format_args!(
        "    if source = RTS_INHERIT && defined(krt_source) && krt_source ~ {FELIX_ROUTE_PROTOCOLS} && gw != :: then reject;"
    ));
    out.line("  }");
    out.line("  if ifname ~ \"bpf*.cali\" then reject;");
    out.line(format_args!("  communities_v{v}();\n  blocks_v{v}();"));
    for net in family.statics.iter().chain(&family.reflected) {
        out.line(format_args!("  if net ~ {net} then accept;"));
    }
    for pool in family.pools.iter().filter(|pool| pool.export) {
        out.line(format_args!("  if net ~ {} then accept;", pool.cidr));
    }
    out.line("}");

    out.line(format_args!("\nfilter kernel_v{v} {{"));
    out.line("  if source = RTS_DEVICE then reject;");
    for net in &family.kernel_rejects {
        out.line(format_args!("  if net ~ {net} then reject;"));
    }
    out.line("  if source = RTS_BGP && !defined(krt_metric) then {");
    out.line(format_args!("    krt_metric = {priority};"));
    out.line(format_args!(
        "    if defined(bgp_local_pref) then krt_metric = {MAX_PREFERENCE} - bgp_local_pref;"
    ));
    out.line(format_args!("    if krt_metric < {priority} then preference = 200;\n  }}"));
    for pool in &family.pools {
        // IPIP needs a tunnel, which BIRD 2 has not.
        let ours = model.cluster_routes.owns(pool.encapsulation) && pool.encapsulation == Encapsulation::None;
        if ours {
            out.line(format_args!("  if net ~ {} then accept;", pool.cidr));
        } else {
            out.line(format_args!("  if net ~ {} then reject;  # felix", pool.cidr));
        }
    }
    out.line("  accept;\n}");

    out.line(format_args!("\nprotocol kernel kernel{v} {{"));
    out.line("  learn;\n  persist;\n  scan time 2;\n  metric 0;\n  graceful restart;\n  merge paths on;");
    out.line(format_args!("  ipv{v} {{\n    import all;\n    export filter kernel_v{v};\n  }};\n}}"));
}

fn communities(out: &mut Text, advertisement: &Advertisement) {
    if advertisement.communities.is_empty() {
        return;
    }
    out.line(format_args!("  if net ~ {} then {{", advertisement.cidr));
    for community in &advertisement.communities {
        match community {
            Community::Standard(a, b) => out.line(format_args!("    bgp_community.add(({a}, {b}));")),
            Community::Large(a, b, c) => {
                out.line(format_args!("    bgp_large_community.add(({a}, {b}, {c}));"))
            }
        }
    }
    out.line("  }");
}

/// Filters, templates and peers of a family.
fn sessions(out: &mut Text, model: &BgpModel, family: &FamilyModel) {
    let v = version(family.family);
    let priority = family.route_priority;

    out.line(format_args!("\nfilter import_v{v} {{"));
    out.line(format_args!(
        "  if defined(bgp_local_pref) && bgp_local_pref > {} then preference = 200;",
        MAX_PREFERENCE - priority
    ));
    out.line("  accept;\n}");
    for (kind, internal) in [("ibgp", true), ("ebgp", false)] {
        out.line(format_args!("\nfilter export_{kind}_v{v} {{"));
        out.line(format_args!(
            "  if source = RTS_BGP && defined(bgp_local_pref) then krt_metric = {MAX_PREFERENCE} - bgp_local_pref;"
        ));
        out.line(format_args!("  else {{\n    if !defined(krt_metric) then krt_metric = {priority};"));
        out.line(format_args!("    bgp_local_pref = {MAX_PREFERENCE} - krt_metric;\n  }}"));
        out.line(format_args!("  export_v{v}({internal});\n  reject;\n}}"));
        out.line(format_args!("\ntemplate bgp {kind}{v} {{"));
        out.line("  multihop;\n  graceful restart;");
        out.line("  connect delay time 1;\n  connect retry time 3;\n  error wait time 1, 10;");
        out.line(format_args!("  ipv{v} {{\n    gateway recursive;\n    add paths on;"));
        out.line(format_args!(
            "    import filter import_v{v};\n    export filter export_{kind}_v{v};\n  }};\n}}"
        ));
    }
    out.line("");
    family.peers.iter().for_each(|peer| self::peer(out, model, family, peer));
}

fn peer(out: &mut Text, model: &BgpModel, family: &FamilyModel, peer: &Peer) {
    let v = version(family.family);
    let template = if peer.same_as { "ibgp" } else { "ebgp" };
    out.line(format_args!("protocol bgp {} from {template}{v} {{ # {}", peer.name(), comment(&peer.because)));
    let mut local = String::from("local");
    // BIRD can listen on one address only where the session says which.
    let source = peer.source.or(family.address.filter(|_| model.bind_node_address));
    if let Some(source) = source {
        push(&mut local, format_args!(" {source}"));
    }
    if let Some(port) = model.listen_port {
        push(&mut local, format_args!(" port {port}"));
    }
    out.line(format_args!("  {local} as {};", peer.local_as.unwrap_or(model.local_as)));
    if model.bind_node_address {
        out.line("  strict bind on;");
    }
    let port = peer.port.map(|port| format!(" port {port}")).unwrap_or_default();
    out.line(format_args!("  neighbor {}{port} as {};", peer.address, peer.remote_as));
    if let Some(hops) = peer.ttl_security {
        out.line(format_args!("  ttl security on;\n  multihop {hops};"));
    }
    if is_passive(family, peer) {
        out.line("  passive on;");
    }
    if let Some(seconds) = peer.restart_seconds {
        out.line(format_args!("  graceful restart time {};", seconds.min(MAX_RESTART_SECONDS)));
    }
    if let Some(seconds) = peer.keepalive_seconds {
        out.line(format_args!("  keepalive time {seconds};"));
    }
    if let (true, Some(id)) = (peer.reflector_client, model.cluster_id) {
        out.line(format_args!("  rr client;\n  rr cluster id {id};"));
    }
    if let Some(times) = peer.allowed_own_as {
        out.line(format_args!("  allow local as {times};"));
    }
    match peer.next_hop {
        NextHop::Auto => {}
        NextHop::Own => out.line(format_args!("  ipv{v} {{ next hop self; }};")),
        NextHop::Keep => out.line(format_args!("  ipv{v} {{ next hop keep; }};")),
    }
    out.line("}");
}

/// With both sides connecting, collisions cost many seconds; so where the other side certainly has this
/// peering too, the lower address connects and the greater one is waited for.
fn is_passive(family: &FamilyModel, peer: &Peer) -> bool {
    let lower = family.address.is_some_and(|own| peer.address.to_string() > own.to_string());
    peer.passive || (peer.mirrored && peer.origin != Origin::Mesh && lower)
}

fn version(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// Text from the datastore inside a comment: it must not end the line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Text that grows by lines.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: impl std::fmt::Display) {
        push(&mut self.0, format_args!("{line}\n"));
    }
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("writing to a string cannot fail");
}
