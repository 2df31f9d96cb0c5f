//! Configuration for stock BIRD 2: one file for both families.
//!
//! Filters are named and shared, and peers come from a template: with a filter written out in every peer,
//! parsing takes time in the square of their number (11 s for a mesh of 5,000, against 0.02 s).
//!
//! What BIRD 1 did by itself has to be said to BIRD 2: `metric 0` in the kernel protocols (its default of
//! 32 would override every `krt_metric`), and that connected routes are not written back to the kernel.
//! BIRD 2 has no tunnels: IPIP routes are always felix's.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::filters::{add, calls, function};
use super::text::{Text, comment, push};
use super::{File, MARKER, MAX_PREFERENCE, Rendered};
use crate::bgp::{
    Advertisement, BgpModel, Direction, Encapsulation, FamilyModel, Filter, LogLevel, NextHop, Origin, Peer,
    Problem,
};

pub const FILE_NAME: &str = "bird.cfg";

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
    let marker = super::marker(std::iter::once(body.as_str()));
    let text = format!(
        "# BIRD 2 configuration of node {}, written by confd: changes made here are lost.\n\
         define {MARKER} = \"{marker}\";\n\n{body}",
        comment(&model.node)
    );
    Rendered {
        files: vec![File { name: FILE_NAME, text }],
        marker,
        marked: true,
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
    let v = family.family.version();
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
    // A blackhole for one address of a Service would keep the node itself from reaching it.
    for net in &family.statics {
        if !family.kernel_rejects.iter().any(|range| range.contains(net)) {
            out.line(format_args!("  if source = RTS_STATIC && net = {net} then reject;"));
        }
    }
    for address in &family.wireguard_next_hops {
        out.line(format_args!("  if defined(bgp_next_hop) && bgp_next_hop = {address} then reject;"));
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
    advertisement.communities.iter().for_each(|community| out.line(format_args!("    {}", add(community))));
    out.line("  }");
}

/// Filters, templates and peers of a family.
fn sessions(out: &mut Text, model: &BgpModel, family: &FamilyModel) {
    let v = family.family.version();
    let priority = family.route_priority;

    for filter in used(model, family) {
        function(out, filter, Direction::Import, family.family);
        function(out, filter, Direction::Export, family.family);
    }
    // One filter for all peers that need the same, whatever their number.
    let mut filters: BTreeMap<String, (Direction, bool, Vec<String>)> = BTreeMap::new();
    for direction in [Direction::Import, Direction::Export] {
        for same_as in [true, false] {
            let name = filter_name(family, direction, same_as, &[]);
            filters.insert(name, (direction, same_as, Vec::new()));
        }
        for peer in family.peers.iter().filter(|peer| !peer.filters.is_empty()) {
            let calls = peer_calls(model, family, peer, direction);
            let name = filter_name(family, direction, peer.same_as, &calls);
            filters.insert(name, (direction, peer.same_as, calls));
        }
    }
    for (name, (direction, same_as, calls)) in &filters {
        out.line(format_args!("\nfilter {name} {{"));
        match direction {
            Direction::Import => {
                calls.iter().for_each(|call| out.line(format_args!("  {call}")));
                out.line(format_args!(
                    "  if defined(bgp_local_pref) && bgp_local_pref > {} then preference = 200;",
                    MAX_PREFERENCE - priority
                ));
                out.line("  accept;\n}");
            }
            Direction::Export => {
                out.line(format_args!(
                    "  if source = RTS_BGP && defined(bgp_local_pref) then krt_metric = {MAX_PREFERENCE} - bgp_local_pref;"
                ));
                out.line(format_args!(
                    "  else {{\n    if !defined(krt_metric) then krt_metric = {priority};"
                ));
                out.line(format_args!("    bgp_local_pref = {MAX_PREFERENCE} - krt_metric;\n  }}"));
                calls.iter().for_each(|call| out.line(format_args!("  {call}")));
                out.line(format_args!("  export_v{v}({same_as});\n  reject;\n}}"));
            }
        }
    }
    for same_as in [true, false] {
        let kind = if same_as { "ibgp" } else { "ebgp" };
        out.line(format_args!("\ntemplate bgp {kind}{v} {{\n  multihop;\n  graceful restart;"));
        out.line("  connect delay time 1;\n  connect retry time 3;\n  error wait time 1, 10;");
        out.line(format_args!("  ipv{v} {{\n    gateway recursive;\n    add paths on;"));
        out.line(format_args!(
            "    import filter {};\n    export filter {};\n  }};\n}}",
            filter_name(family, Direction::Import, same_as, &[]),
            filter_name(family, Direction::Export, same_as, &[]),
        ));
    }
    out.line("");
    family.peers.iter().for_each(|peer| self::peer(out, model, family, peer));
}

/// The filters that some peer of the family names.
fn used<'a>(model: &'a BgpModel, family: &FamilyModel) -> impl Iterator<Item = &'a Filter> {
    let names: BTreeSet<&String> = family.peers.iter().flat_map(|peer| &peer.filters).collect();
    model.filters.iter().filter(move |(name, _)| names.contains(name)).map(|(_, filter)| filter)
}

fn peer_calls(model: &BgpModel, family: &FamilyModel, peer: &Peer, direction: Direction) -> Vec<String> {
    let filters = peer.filters.iter().filter_map(|name| model.filters.get(name));
    calls(filters, direction, family.family, peer.same_as)
}

/// Equal for peers whose routes pass the same, and the same in every rendering: BIRD compares filters by
/// name first, and sends a peer's routes again where its filter is another.
fn filter_name(family: &FamilyModel, direction: Direction, same_as: bool, calls: &[String]) -> String {
    let v = family.family.version();
    let own = match (direction, same_as) {
        (Direction::Import, _) => format!("import_v{v}"),
        (Direction::Export, true) => format!("export_ibgp_v{v}"),
        (Direction::Export, false) => format!("export_ebgp_v{v}"),
    };
    if calls.is_empty() {
        return own;
    }
    let digest = Sha256::digest(calls.join(" "));
    let hash: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{own}_{hash}")
}

fn peer(out: &mut Text, model: &BgpModel, family: &FamilyModel, peer: &Peer) {
    let v = family.family.version();
    out.line(format_args!(
        "protocol bgp {} from {}{v} {{ # {}",
        peer.name(),
        if peer.same_as { "ibgp" } else { "ebgp" },
        comment(&peer.because)
    ));
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
    if let Some(password) = &peer.password {
        out.line(format_args!("  password \"{}\";", password.reveal()));
    }
    let mut channel = String::new();
    for (direction, word) in [(Direction::Import, "import"), (Direction::Export, "export")] {
        let calls = peer_calls(model, family, peer, direction);
        if !calls.is_empty() {
            let name = filter_name(family, direction, peer.same_as, &calls);
            push(&mut channel, format_args!(" {word} filter {name};"));
        }
    }
    match peer.next_hop {
        NextHop::Auto => {}
        NextHop::Own => channel.push_str(" next hop self;"),
        NextHop::Keep => channel.push_str(" next hop keep;"),
    }
    if !channel.is_empty() {
        out.line(format_args!("  ipv{v} {{{channel} }};"));
    }
    out.line("}");
}

/// With both sides connecting, collisions cost many seconds; so where the other side certainly has this
/// peering too, the lower address connects and the greater one is waited for.
fn is_passive(family: &FamilyModel, peer: &Peer) -> bool {
    let lower = family.address.is_some_and(|own| peer.address.to_string() > own.to_string());
    peer.passive || (peer.mirrored && peer.origin != Origin::Mesh && lower)
}
