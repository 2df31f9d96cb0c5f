//! `ipset_ids.json`: names of sets, chains and groups, marks and log prefixes.

// Vectors that do not have the expected form fail the test, wherever that shows.
#![allow(clippy::unwrap_used)]

#[path = "conformance/vectors.rs"]
#[allow(dead_code)]
mod vectors;

use std::collections::BTreeMap;

use felix::ipsets::{kernel_name, names as sets};
use felix::iptables::IpVersion;
use felix::rules::endpoint_marks::EndpointMarks;
use felix::rules::names::{self, EndpointChain, nflog};
use felix::rules::{Direction, PolicyGroup};
use felix_calc::ip_set::{IpSetDef, PortProtocol};
use serde_json::Value;
use syncer_common::selector::Selector;
use vectors::*;

const FILE: &str = "ipset_ids.json";

fn check_kernel_names(report: &mut Report, entry: &Value, id: &str) {
    report.check(id, &kernel_name(IpVersion::V4, id).as_str(), &text(entry, "ipset_v4"));
    report.check(id, &kernel_name(IpVersion::V6, id).as_str(), &text(entry, "ipset_v6"));
}

fn direction(entry: &Value) -> Direction {
    match text(entry, "direction") {
        "inbound" => Direction::Ingress,
        "outbound" => Direction::Egress,
        other => panic!("unknown direction {other}"),
    }
}

#[test]
fn every_array_of_names_is_reproduced() {
    let Some(file) = load(FILE) else { return };
    let mut report = Report::default();
    for (array, entries) in file.as_object().unwrap() {
        // What describes the file is text, or a list of texts.
        let Some(entries) = entries.as_array().filter(|entries| entries.iter().all(Value::is_object)) else {
            continue;
        };
        if array == "endpoint_marks" {
            endpoint_marks(&mut report, entries);
            continue;
        }
        for entry in entries {
            check(&mut report, array, entry);
        }
    }
    report.finish("names");
}

fn check(report: &mut Report, array: &str, entry: &Value) {
    let id = text(entry, "id");
    match array {
        "builtin_sets" => check_kernel_names(report, entry, id),
        "selector_sets" => {
            let selector = Selector::parse(text(entry, "selector")).unwrap();
            report.check(array, &selector.canonical(), &text(entry, "canonical"));
            report.check(array, &selector.uid().as_str(), &id);
            check_kernel_names(report, entry, id);
        }
        "named_port_sets" => {
            let selector = Selector::parse(text(entry, "selector")).unwrap();
            let protocol = PortProtocol::named(text(entry, "protocol"));
            let set = IpSetDef::named_port(selector, protocol, text(entry, "named_port"));
            report.check(array, &set.id.as_str(), &id);
            check_kernel_names(report, entry, id);
        }
        "service_sets" => {
            let (namespace, name) = text(entry, "service").split_once('/').unwrap();
            let set = IpSetDef::service(namespace, name, flag(entry, "include_ports"));
            report.check(array, &set.id.as_str(), &id);
            check_kernel_names(report, entry, id);
        }
        "temp_sets" => {
            let n = number(entry, "n");
            report.check(array, &sets::temporary_name(IpVersion::V4, n).as_str(), &text(entry, "ipset_v4"));
            report.check(array, &sets::temporary_name(IpVersion::V6, n).as_str(), &text(entry, "ipset_v6"));
        }
        "policy_chain_names" => {
            let key = policy_key(entry);
            report.check(array, &names::policy_id(&key).as_str(), &id);
            let inbound = names::policy_chain(&key, Direction::Ingress);
            report.check(array, &inbound.as_str(), &text(entry, "inbound"));
            let outbound = names::policy_chain(&key, Direction::Egress);
            report.check(array, &outbound.as_str(), &text(entry, "outbound"));
        }
        "profile_chain_names" => {
            let inbound = names::profile_chain(text(entry, "name"), Direction::Ingress);
            report.check(array, &inbound.as_str(), &text(entry, "inbound"));
            let outbound = names::profile_chain(text(entry, "name"), Direction::Egress);
            report.check(array, &outbound.as_str(), &text(entry, "outbound"));
        }
        "endpoint_chain_names" => {
            let kinds = [
                ("fh", EndpointChain::FromHost),
                ("th", EndpointChain::ToHost),
                ("fhfw", EndpointChain::FromHostForward),
                ("thfw", EndpointChain::ToHostForward),
                ("fw", EndpointChain::FromWorkload),
                ("tw", EndpointChain::ToWorkload),
                ("sm", EndpointChain::SetMark),
            ];
            for (key, kind) in kinds {
                let name = names::endpoint_chain(kind, text(entry, "iface"));
                report.check(array, &name.as_str(), &text(entry, key));
            }
        }
        "policy_group_ids" => {
            let group = PolicyGroup {
                direction: direction(entry),
                selector: text(entry, "selector").to_owned(),
                policies: list(entry, "policies").iter().map(policy_key).collect(),
            };
            report.check(array, &group.uid().as_str(), &text(entry, "uid"));
            report.check(array, &group.chain_name().as_str(), &text(entry, "chain"));
        }
        "nflog_prefixes" => {
            let direction = match text(entry, "dir") {
                "I" => Direction::Ingress,
                _ => Direction::Egress,
            };
            let prefix = match text(entry, "form") {
                "rule" => {
                    let letter = |key: &str| text(entry, key).chars().next().unwrap();
                    let index = usize::try_from(number(entry, "index")).unwrap();
                    nflog::rule(letter("action"), letter("owner"), direction, index, id)
                }
                "end-of-tier-drop" => nflog::end_of_tier(true, direction, text(entry, "tier")),
                "end-of-tier-pass" => nflog::end_of_tier(false, direction, text(entry, "tier")),
                "no-profile-match" => nflog::no_profile(direction),
                other => panic!("unknown form {other}"),
            };
            report.check(array, &prefix.as_str(), &text(entry, "prefix"));
        }
        "vtep_macs" => {
            let mac = |v6| felix::rules::names::vtep_mac(text(entry, "node"), v6);
            report.check(array, &mac(false).as_str(), &text(entry, "mac"));
            report.check(array, &mac(true).as_str(), &text(entry, "mac_v6"));
        }
        other => panic!("no check is known for {other}"),
    }
}

/// The entries of one mask do not collide, so that the order of allocation does not matter.
fn endpoint_marks(report: &mut Report, entries: &[Value]) {
    let mut by_mask: BTreeMap<u64, EndpointMarks> = BTreeMap::new();
    for entry in entries {
        let mask = number(entry, "mask");
        let marks = by_mask.entry(mask).or_insert_with(|| EndpointMarks::new(u32::try_from(mask).unwrap()));
        let iface = text(entry, "iface");
        report.check(iface, &marks.mark(iface).map(u64::from), &Some(number(entry, "mark")));
        report.check(iface, &u64::from(marks.non_cali_mark()), &number(entry, "non_cali_mark"));
    }
}
