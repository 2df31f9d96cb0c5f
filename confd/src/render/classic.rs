//! Configuration for the BIRD that Calico's node brings along: three files for each family, read by two
//! daemons. Token for token what Calico's confd writes, so that either can take over from the other.

use super::filters::{add, calls, function};
use super::text::{Text, comment};
use super::{File, MAX_PREFERENCE};
use crate::bgp::{
    BgpModel, Direction, Encapsulation, Family, FamilyModel, Filter, LogLevel, NextHop, Peer, Pool,
};

/// The files of a family; the first includes the others.
pub(super) fn files(model: &BgpModel, family: &FamilyModel) -> Vec<File> {
    let names = match family.family {
        Family::V4 => ["bird.cfg", "bird_aggr.cfg", "bird_ipam.cfg"],
        Family::V6 => ["bird6.cfg", "bird6_aggr.cfg", "bird6_ipam.cfg"],
    };
    let [main, aggregates, addresses] = names;
    let mut texts = [Text::default(), Text::default(), Text::default()];
    for text in &mut texts {
        text.line(format_args!(
            "# Of node {}, written by confd: changes made here are lost.",
            comment(&model.node)
        ));
    }
    self::main(&mut texts[0], model, family, aggregates, addresses);
    self::aggregates(&mut texts[1], family);
    export(&mut texts[2], model, family);
    kernel(&mut texts[2], model, family);
    let files = [main, aggregates, addresses].into_iter().zip(texts);
    files.map(|(name, text)| File { name, text: text.0 }).collect()
}

fn main(out: &mut Text, model: &BgpModel, family: &FamilyModel, aggregates: &str, addresses: &str) {
    out.line("function apply_communities ()\n{");
    for advertisement in family.advertisements.iter().filter(|one| !one.communities.is_empty()) {
        out.line(format_args!("  if ( net ~ {} ) then {{", advertisement.cidr));
        advertisement
            .communities
            .iter()
            .for_each(|community| out.line(format_args!("    {}", add(community))));
        out.line("  }");
    }
    out.line("}");
    out.line("template kernel kernel_template {\n  learn;\n  persist;\n  scan time 2;\n  import all;\n}");
    let (debug, peer_debug) = match model.log_level {
        LogLevel::Debug => ("  debug all;\n", "  debug all;\n"),
        LogLevel::Info => ("  debug { states };\n", "  debug { states, routes, filters, events };\n"),
        LogLevel::Quiet => ("", ""),
    };
    let ignored: String = model.ignored_interfaces.iter().map(|name| format!("-\"{name}\", ")).collect();
    out.line(format_args!(
        "template direct direct_template {{\n{debug}  interface {ignored}-\"cali*\", -\"kube-ipvs*\", \"*\";\n}}"
    ));
    out.line(format_args!("include \"{aggregates}\";\ninclude \"{addresses}\";"));
    out.line(format_args!("router id {};", model.router_id));
    let address =
        family.address.filter(|_| model.bind_node_address).map(|address| format!(" address {address}"));
    let port = model.listen_port.map(|port| format!(" port {port}"));
    if address.is_some() || port.is_some() {
        out.line(format_args!("listen bgp{}{};", address.unwrap_or_default(), port.unwrap_or_default()));
    }
    out.line(
        "protocol kernel from kernel_template {\n  export filter calico_kernel_programming;\n  \
         graceful restart;\n  merge paths on;\n}",
    );
    out.line(format_args!("protocol device {{\n{debug}  scan time 2;\n}}"));
    out.line("protocol direct from direct_template {\n}");
    if family.address.is_none() {
        return;
    }
    out.line(format_args!(
        "template bgp bgp_template {{\n{peer_debug}  description \"Connection to BGP peer\";\n  \
         local as {};\n  gateway recursive;\n  add paths on;\n  graceful restart;\n  \
         connect delay time 2;\n  connect retry time 5;\n  error wait time 5,30;\n}}",
        model.local_as
    ));
    for filter in model.filters.values() {
        function(out, filter, Direction::Import, family.family);
        function(out, filter, Direction::Export, family.family);
    }
    family.peers.iter().for_each(|peer| self::peer(out, model, family, peer));
}

fn peer(out: &mut Text, model: &BgpModel, family: &FamilyModel, peer: &Peer) {
    out.line(format_args!("protocol bgp {} from bgp_template {{ # {}", peer.name(), comment(&peer.because)));
    if let Some(number) = peer.local_as {
        out.line(format_args!("  local as {number};"));
    }
    let port = peer.port.map(|port| format!(" port {port}")).unwrap_or_default();
    out.line(format_args!("  neighbor {}{port} as {};", peer.address, peer.remote_as));
    if let Some(source) = peer.source {
        out.line(format_args!("  source address {source};"));
    }
    match peer.ttl_security {
        Some(hops) => out.line(format_args!("  ttl security on;\n  multihop {hops};")),
        None => out.line("  ttl security off;\n  multihop;"),
    }
    let filters: Vec<&Filter> = peer.filters.iter().filter_map(|name| model.filters.get(name)).collect();
    let call = |out: &mut Text, direction| {
        for call in calls(filters.iter().copied(), direction, family.family, peer.same_as) {
            out.line(format_args!("    {call}"));
        }
    };
    let priority = family.route_priority;
    out.line("  import filter {");
    call(out, Direction::Import);
    out.line(format_args!(
        "    if (defined(bgp_local_pref)&&(bgp_local_pref > {})) then\n      preference = 200;\n    accept;\n  }};",
        MAX_PREFERENCE - priority
    ));
    out.line(format_args!(
        "  export filter {{\n    if (defined(source) && source = RTS_BGP && defined(bgp_local_pref)) then {{\n      \
         krt_metric = {MAX_PREFERENCE} - bgp_local_pref;\n    }} else {{\n      \
         if (!defined(krt_metric)) then {{ krt_metric = {priority}; }}\n      \
         bgp_local_pref = {MAX_PREFERENCE} - krt_metric;\n    }}"
    ));
    call(out, Direction::Export);
    out.line(format_args!("    calico_export_to_bgp_peers({});\n    reject;\n  }};", peer.same_as));
    if peer.passive {
        out.line("  passive on;");
    }
    if let Some(seconds) = peer.restart_seconds {
        out.line(format_args!("  graceful restart time {seconds};"));
    }
    if let Some(seconds) = peer.keepalive_seconds {
        out.line(format_args!("  keepalive time {seconds};"));
    }
    if let (true, Some(id)) = (peer.reflector_client, model.cluster_id) {
        out.line(format_args!("  rr client;\n  rr cluster id {id};"));
    }
    if let Some(password) = &peer.password {
        out.line(format_args!("  password \"{}\";", password.reveal()));
    }
    match peer.next_hop {
        NextHop::Auto => {}
        NextHop::Own => out.line("  next hop self;"),
        NextHop::Keep => out.line("  next hop keep;"),
    }
    if let Some(times) = peer.allowed_own_as {
        out.line(format_args!("  allow local as {times};"));
    }
    out.line("}");
}

/// The node's own blocks and static routes, and the function that announces blocks as a whole.
fn aggregates(out: &mut Text, family: &FamilyModel) {
    let gateways: Vec<String> = family
        .peers
        .iter()
        .filter_map(|peer| {
            Some(format!("route {}/{} via {};", peer.address, family.family.bits(), peer.reachable_by?))
        })
        .collect();
    out.line("template static static_template {");
    let blackholes = family.blocks.iter().filter(|block| block.has_blackhole()).map(|block| &block.cidr);
    for net in blackholes.chain(&family.statics) {
        out.line(format_args!("  route {net} blackhole;"));
    }
    gateways.iter().for_each(|route| out.line(format_args!("  {route}")));
    out.line("}");
    if !(family.blocks.is_empty() && family.statics.is_empty() && gateways.is_empty()) {
        out.line("protocol static from static_template {\n}");
    }
    out.line("function calico_aggr ()\n{");
    for block in family.blocks.iter().filter(|block| block.aggregated) {
        let cidr = block.cidr;
        out.line(format_args!("  if ( net = {cidr} ) then {{ accept; }}"));
        out.line(format_args!(
            "  if ( net ~ {cidr} && krt_metric < {} ) then {{ accept; }}",
            family.route_priority
        ));
        out.line(format_args!("  if ( net ~ {cidr} ) then {{ reject; }}"));
    }
    out.line("}");
}

fn export(out: &mut Text, model: &BgpModel, family: &FamilyModel) {
    out.line(
        "function reject_local_routes () {\n  if (defined(ifname)) then {\n    \
         if (ifname ~ \"bpf*.cali\") then { reject; }\n  }\n}",
    );
    out.line("function calico_export_to_bgp_peers(bool internal_peer) {");
    for pool in family.pools.iter().filter(|pool| !pool.export) {
        out.line(format_args!("  if (net ~ {}) then {{ reject; }} # disableBGPExport", pool.cidr));
    }
    let tunnel = if model.cluster_routes.ipip { "" } else { " || (ifname ~ \"tunl0\")" };
    out.line(format_args!(
        "  if (internal_peer) then {{\n    if (defined(ifname)) then {{\n      \
         if ((ifname ~ \"*.cali\") || (ifname ~ \"*.calico\"){tunnel}) then {{ reject; }}\n    }}\n  }}"
    ));
    out.line("  reject_local_routes();\n  apply_communities();\n  calico_aggr();");
    for net in family.statics.iter().chain(&family.reflected) {
        out.line(format_args!("  if ( net ~ {net} ) then {{ accept; }}"));
    }
    for pool in family.pools.iter().filter(|pool| pool.export) {
        out.line(format_args!("  if (net ~ {}) then {{ accept; }}", pool.cidr));
    }
    out.line("}");
}

fn kernel(out: &mut Text, model: &BgpModel, family: &FamilyModel) {
    let priority = family.route_priority;
    out.line("filter calico_kernel_programming {");
    for net in &family.kernel_rejects {
        out.line(format_args!("  if ( net ~ {net} ) then {{ reject; }}"));
    }
    out.line(format_args!(
        "  if (defined(source) && (source = RTS_BGP) && !defined(krt_metric)) then {{\n    \
         krt_metric = {priority};\n    \
         if (defined(bgp_local_pref)) then {{ krt_metric = {MAX_PREFERENCE} - bgp_local_pref; }}\n    \
         if (krt_metric < {priority}) then {{ preference = 200; }}\n  }}"
    ));
    for address in &family.wireguard_next_hops {
        out.line(format_args!("  if (defined(bgp_next_hop) && bgp_next_hop = {address}) then {{ reject; }}"));
    }
    for pool in &family.pools {
        if let Some(action) = pool_action(model, family, pool) {
            out.line(format_args!("  if (net ~ {}) then {{ {action} }}", pool.cidr));
        }
    }
    out.line("  accept;\n}");
}

/// What BIRD does with the routes of a pool, towards the kernel.
fn pool_action(model: &BgpModel, family: &FamilyModel, pool: &Pool) -> Option<String> {
    let owned = model.cluster_routes.owns(pool.encapsulation);
    if family.family == Family::V6 {
        return (!owned).then(|| "reject;".to_owned());
    }
    // Without the node's subnet nothing can be said about tunnels.
    let subnet = family.subnet?;
    Some(match pool.encapsulation {
        _ if !owned => "reject;".to_owned(),
        Encapsulation::Ipip { cross_subnet: true } => format!(
            "if (defined(bgp_next_hop)&&(bgp_next_hop ~ {subnet})) then krt_tunnel=\"\"; \
             else krt_tunnel=\"tunl0\"; accept;"
        ),
        Encapsulation::Ipip { cross_subnet: false } => "krt_tunnel=\"tunl0\"; accept;".to_owned(),
        Encapsulation::None | Encapsulation::Vxlan => "accept;".to_owned(),
    })
}
