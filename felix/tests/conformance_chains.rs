//! `iptables_chains.json`: static, endpoint, group and dispatch chains, line for line with their hashes, and
//! the rules in the kernel's chains.

// Vectors that do not have the expected form fail the test, wherever that shows.
#![allow(clippy::unwrap_used)]

#[path = "conformance/vectors.rs"]
#[allow(dead_code)]
mod vectors;

use std::collections::{BTreeMap, BTreeSet};

use felix::iptables::hash::hook_hashes;
use felix::iptables::render::{append_line, chain_lines, insert_line};
use felix::iptables::{Chain, IpVersion, Rule, TableName};
use felix::rules::endpoint_marks::EndpointMarks;
use felix::rules::endpoints::{QosLimits, WorkloadInput};
use felix::rules::fragments::DenyAction;
use felix::rules::static_chains::DscpRule;
use felix::rules::{Direction, PolicyGroup, Renderer, RulesConfig, StaticInputs, TierGroups};
use serde_json::Value;
use vectors::*;

const FILE: &str = "iptables_chains.json";

/// What an entry point gives: whole chains, or rules for a chain of somebody else's.
enum Rendered {
    Chains(Vec<Chain>),
    Rules(Vec<Rule>),
}

fn group(vector: &Value, direction: Direction) -> PolicyGroup {
    PolicyGroup {
        direction: match text(vector, "direction") {
            "inbound" => Direction::Ingress,
            "outbound" => Direction::Egress,
            _ => direction,
        },
        selector: text(vector, "selector").to_owned(),
        policies: list(vector, "policies").iter().map(policy_key).collect(),
    }
}

fn tiers(args: &Value, key: &str) -> Vec<TierGroups> {
    let groups = |tier: &Value, key: &str, direction| -> Vec<PolicyGroup> {
        list(tier, key).iter().map(|vector| group(vector, direction)).collect()
    };
    list(args, key)
        .iter()
        .map(|tier| TierGroups {
            name: text(tier, "name").to_owned(),
            default_action: text(tier, "default_action").to_owned(),
            ingress: groups(tier, "ingress_policies", Direction::Ingress),
            egress: groups(tier, "egress_policies", Direction::Egress),
        })
        .collect()
}

fn inputs(config: &Value) -> StaticInputs {
    let address = |key: &str| Some(text(config, key).to_owned()).filter(|text| !text.is_empty());
    StaticInputs {
        ipip_tunnel_address: address("ipip_tunnel_address"),
        vxlan_tunnel_address: address("vxlan_tunnel_address"),
        vxlan_tunnel_address_v6: address("vxlan_tunnel_address_v6"),
        ..StaticInputs::default()
    }
}

fn map(args: &Value, key: &str) -> BTreeMap<String, String> {
    let entries = args[key].as_object().into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn limits(args: &Value, direction: &str) -> QosLimits {
    let controls = args.get("qos_controls").unwrap_or(&Value::Null);
    QosLimits {
        packet_rate: number(controls, &format!("{direction}PacketRate")),
        packet_burst: number(controls, &format!("{direction}PacketBurst")),
        max_connections: number(controls, &format!("{direction}MaxConnections")),
    }
}

fn endpoint_mark(args: &Value) -> Option<u32> {
    args.get("ep_mark_mapper")?.get("mark_for_iface")?.as_u64().map(|mark| u32::try_from(mark).unwrap())
}

/// Upstream's entry point with these arguments. None where there is no counterpart.
fn render(func: &str, config: &Value, args: &Value, modern: bool) -> Option<Rendered> {
    let renderer = Renderer::new(vectors::config(config, modern));
    let v = version(args);
    let iface = text(args, "iface_name");
    let profiles = texts(args, "profile_i_ds");
    let default_iface = Some(text(args, "default_iface_name")).filter(|name| !name.is_empty());
    let host_ifaces: Vec<&str> =
        args["endpoints"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let chains = match func {
        "StaticFilterTableChains" => renderer.static_filter_chains(v),
        "StaticNATTableChains" => renderer.static_nat_chains(v, &inputs(config)),
        "StaticMangleTableChains" => renderer.static_mangle_chains(v),
        "StaticRawTableChains" => renderer.static_raw_chains(v),
        "StaticNATPreroutingChains" => vec![renderer.nat_prerouting(v)],
        "StaticNATPostroutingChains" => vec![renderer.nat_postrouting(v, &inputs(config))],
        "StaticManglePostroutingChain" => vec![renderer.mangle_postrouting(v)],
        "StaticRawPreroutingChain" => vec![renderer.raw_prerouting(v)],
        "StaticFilterForwardAppendRules" => return Some(Rendered::Rules(renderer.forward_append_rules())),
        "RPFilter" => return Some(Rendered::Rules(renderer.rpf_check(v))),
        "BlockedCIDRsToIptablesChains" => {
            let cidrs: BTreeSet<String> = texts(args, "cidrs").into_iter().collect();
            vec![renderer.blocked_cidrs(v, &cidrs)]
        }
        "NATOutgoingChain" => {
            let address = Some(text(config, "nat_outgoing_address")).filter(|address| !address.is_empty());
            vec![renderer.nat_outgoing(v, flag(args, "nat_outgoing_active"), address)]
        }
        "DNATsToIptablesChains" => vec![renderer.floating_ip_dnat(&map(args, "dnats"))],
        "SNATsToIptablesChains" => vec![renderer.floating_ip_snat(&map(args, "snats"))],
        "EgressDSCPChain" => {
            let rule = |rule: &Value| DscpRule {
                sources: text(rule, "src_addrs").to_owned(),
                value: u8::try_from(number(rule, "value")).unwrap(),
            };
            vec![renderer.egress_dscp(&list(args, "rules").iter().map(rule).collect::<Vec<_>>())]
        }
        "PolicyGroupToIptablesChains" => {
            vec![renderer.group_chain(&group(&args["group"], Direction::Ingress))]
        }
        "WorkloadEndpointToIptablesChains" => renderer.workload_endpoint(&WorkloadInput {
            iface,
            admin_up: flag(args, "admin_up"),
            tiers: &tiers(args, "tiers"),
            profiles: &profiles,
            ingress_limits: limits(args, "Ingress"),
            egress_limits: limits(args, "Egress"),
            endpoint_mark: endpoint_mark(args),
        }),
        "HostEndpointToFilterChains" => renderer.host_filter_chains(
            iface,
            &tiers(args, "tiers"),
            &tiers(args, "forward_tiers"),
            &profiles,
            endpoint_mark(args),
        ),
        "HostEndpointToMangleEgressChains" => {
            renderer.host_mangle_egress(iface, &tiers(args, "tiers"), &profiles)
        }
        "HostEndpointToMangleIngressChains" => {
            renderer.host_mangle_ingress(iface, &tiers(args, "pre_dnat_tiers"))
        }
        "HostEndpointToRawChains" => renderer.host_raw_chains(iface, &tiers(args, "untracked_tiers")),
        "WorkloadDispatchChains" => {
            let names: Vec<&str> =
                list(args, "endpoints").iter().map(|endpoint| text(&endpoint["value"], "name")).collect();
            renderer.workload_dispatch(v, &names)
        }
        "HostDispatchChains" => {
            renderer.host_dispatch_chains(&host_ifaces, default_iface, flag(args, "apply_on_forward"))
        }
        "FromHostDispatchChains" => renderer.from_host_dispatch(&host_ifaces, default_iface),
        "ToHostDispatchChains" => renderer.to_host_dispatch(&host_ifaces, default_iface),
        "EndpointMarkDispatchChains" => {
            let workloads: Vec<&str> =
                list(args, "wl_endpoints").iter().map(|endpoint| text(&endpoint["value"], "name")).collect();
            let hosts: Vec<&str> = args["hep_endpoints"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.as_str())
                .collect();
            let mask = u32::try_from(number(&args["ep_mark_mapper"], "mask")).unwrap();
            renderer.endpoint_mark_dispatch(&mut EndpointMarks::new(mask), &workloads, &hosts)
        }
        _ => return None,
    };
    Some(Rendered::Chains(chains))
}

/// The documented correction: where the kernel refuses REJECT, it is DROP, and the comment says so.
fn corrected(case: &Value, name: &str, lines: Vec<String>) -> Vec<String> {
    match text(case, "upstream_defect") {
        "" => return lines,
        "reject-outside-filter" => {}
        other => panic!("unknown defect {other}"),
    }
    let rules = lines
        .iter()
        .map(|line| {
            let (chain, mut rule) = parse_line(line);
            assert_eq!(chain, name);
            if rule.action == DenyAction::Reject.action() {
                rule.action = DenyAction::Drop.action();
                for comment in &mut rule.comments {
                    *comment = comment.replace("Reject ", "Drop ").into();
                }
            }
            rule
        })
        .collect();
    chain_lines(&Chain { name: name.to_owned(), rules })
}

#[test]
fn every_chain_renders_to_the_recorded_lines() {
    let Some(file) = load(FILE) else { return };
    let mut report = Report::default();
    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    for case in list(&file, "cases") {
        let (func, args) = (text(case, "func"), &case["args"]);
        let config = &file["configs"][text(case, "config")];
        let id = format!("{} {func}", text(case, "id"));
        for modern in [false, true] {
            let Some(rendered) = render(func, config, args, modern) else {
                *skipped.entry(func).or_default() += 1;
                break;
            };
            match rendered {
                Rendered::Chains(chains) => check_chains(&mut report, case, &id, chains, modern),
                Rendered::Rules(rules) => check_rules(&mut report, case, &id, rules),
            }
        }
    }
    for (func, count) in &skipped {
        println!("SKIPPED: {func}: {count} cases have no counterpart");
    }
    report.finish("chains");
    assert!(skipped.is_empty(), "some entry points have no counterpart: {skipped:?}");
}

fn check_chains(report: &mut Report, case: &Value, id: &str, chains: Vec<Chain>, modern: bool) {
    let expected = case["expected"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
    let expected_names: Vec<&str> = expected.iter().map(|chain| text(chain, "name")).collect();
    report.check(id, &names, &expected_names);
    for (chain, expected) in chains.iter().zip(expected) {
        let key = if modern && expected.get("lines_modern").is_some() { "lines_modern" } else { "lines" };
        let lines = corrected(case, text(expected, "name"), texts(expected, key));
        report.check(&format!("{id} {key}"), &chain_lines(chain), &lines);
    }
}

/// Rules without a chain of their own were recorded without hashes. `RPFilter` takes the action on spoofed
/// packets as an argument; with it given, the rest must be the same.
fn check_rules(report: &mut Report, case: &Value, id: &str, mut rules: Vec<Rule>) {
    let given = text(&case["args"], "drop_action_override");
    if let Some(last) = rules.last_mut().filter(|_| !given.is_empty()) {
        assert_eq!(last.action, DenyAction::Drop.action(), "{id}");
        last.action = given.to_owned();
    }
    let expected: Vec<Rule> = list(&case["expected"], "rules").iter().map(fragments).collect();
    report.check(id, &rules, &expected);
    let lines: Vec<String> = rules.iter().map(|rule| append_line("test", None, rule)).collect();
    report.check(id, &lines, &texts(&case["expected"], "lines"));
}

fn table(name: &str) -> TableName {
    match name {
        "raw" => TableName::Raw,
        "mangle" => TableName::Mangle,
        "nat" => TableName::Nat,
        "filter" => TableName::Filter,
        other => panic!("unknown table {other}"),
    }
}

#[test]
fn every_kernel_hook_has_the_recorded_lines() {
    let Some(file) = load(FILE) else { return };
    let mut report = Report::default();
    for case in list(&file, "kernel_hooks") {
        let variant = text(case, "config_variant");
        let allow_returns = match variant {
            "default" => Default::default(),
            "allow-action-return" => felix::rules::fragments::AllowAction::Return,
            other => panic!("unknown configuration {other}"),
        };
        let config = RulesConfig {
            filter_allow_action: allow_returns,
            mangle_allow_action: allow_returns,
            ..RulesConfig::default()
        };
        let append = match text(case, "mode") {
            "append-always" => true,
            "insert" => false,
            other => panic!("unknown mode {other}"),
        };
        let chain = text(case, "chain");
        let v = if number(case, "ip_version") == 6 { IpVersion::V6 } else { IpVersion::V4 };
        let rules: Vec<Rule> = Renderer::new(config)
            .hooks(table(text(case, "table")), v)
            .into_iter()
            .filter(|hook| hook.chain == chain && hook.append_always == append)
            .map(|hook| hook.rule)
            .collect();
        let line = if append { append_line } else { insert_line };
        let hashes = hook_hashes(chain, append, &rules);
        let lines: Vec<String> =
            rules.iter().zip(&hashes).map(|(rule, hash)| line(chain, Some(*hash), rule)).collect();
        report.check(&format!("{variant} {} {chain}", text(case, "table")), &lines, &texts(case, "lines"));
    }
    report.finish("hooks");
}
