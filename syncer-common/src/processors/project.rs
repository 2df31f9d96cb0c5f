//! The canonical form of values: two spellings of one thing leave here equal.

use crate::model::{Key, PolicyKey, Value};
use crate::selector::normalise;
use proto::model as v1;

/// Protocols that have ports.
const WITH_PORTS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Rules about a port of any protocol, which only cluster network policies have: one for each protocol.
pub(super) fn spell_out_protocols(key: &Key, value: &mut Value) {
    let (Key::Policy(PolicyKey { kind, .. }), Value::Policy(policy)) = (key, value) else { return };
    if kind == "KubernetesClusterNetworkPolicy" {
        for rules in [&mut policy.inbound_rules, &mut policy.outbound_rules] {
            *rules = std::mem::take(rules).into_iter().flat_map(spelled_out).collect();
        }
    }
}

fn spelled_out(rule: v1::Rule) -> Vec<v1::Rule> {
    let has_ports = rule.dst.as_ref().is_some_and(|side| !side.ports.is_empty());
    if rule.protocol.is_some() || !has_ports {
        return vec![rule];
    }
    let named = |name: &str| v1::Protocol { id: Some(v1::protocol::Id::Name(name.to_owned())) };
    WITH_PORTS.iter().map(|name| v1::Rule { protocol: Some(named(name)), ..rule.clone() }).collect()
}

/// Selectors in canonical form. Empty ones stay empty: in a rule that means no selector, not `all()`. Defaults that
/// one datastore's writers fill in and another's do not. Lists whose order says nothing are sorted: controllers
/// write them in another one each time.
pub(super) fn canonical(key: &Key, value: &mut Value) {
    match value {
        Value::Policy(policy) => {
            let staged = matches!(key, Key::Policy(PolicyKey { kind, .. }) if kind.starts_with("Staged"));
            if staged && policy.staged_action.is_empty() {
                policy.staged_action = "Set".into();
            }
            policy.selector = normalise(&policy.selector);
            rules(&mut policy.inbound_rules);
            rules(&mut policy.outbound_rules);
        }
        Value::ProfileRules(profile) => {
            rules(&mut profile.inbound_rules);
            rules(&mut profile.outbound_rules);
        }
        Value::IpPool(pool) if pool.allowed_uses.is_empty() => {
            pool.allowed_uses = ["Workload", "Tunnel"].map(str::to_owned).to_vec();
        }
        Value::BgpPeer(peer) => {
            selector(&mut peer.node_selector);
            selector(&mut peer.peer_selector);
            selector(&mut peer.local_workload_selector);
        }
        Value::FelixConfiguration(configuration) => selector(&mut configuration.node_selector),
        Value::Service(service) => {
            let v1::Service { cluster_ips, external_ips, ingress_ips, ip_families, .. } = service;
            for list in [cluster_ips, external_ips, ingress_ips, ip_families] {
                list.sort_unstable();
            }
        }
        Value::EndpointSlice(slice) => {
            for endpoint in &mut slice.endpoints {
                endpoint.addresses.sort_unstable();
                endpoint.ready.take_if(|ready| *ready);
            }
            slice.endpoints.sort_unstable_by(|a, b| {
                let order = |own: &v1::Endpoint| (own.node_name.clone(), own.ready);
                a.addresses.cmp(&b.addresses).then_with(|| order(a).cmp(&order(b)))
            });
            slice.ports.sort_unstable_by_key(|port| (port.port, port.name.clone(), protocol(port)));
        }
        _ => {}
    }
}

fn rules(rules: &mut [v1::Rule]) {
    for side in rules.iter_mut().flat_map(|rule| rule.src.iter_mut().chain(rule.dst.iter_mut())) {
        selector(&mut side.selector);
        selector(&mut side.not_selector);
    }
}

fn protocol(port: &v1::EndpointPort) -> Option<(u32, String)> {
    port.protocol.as_ref()?.id.as_ref().map(|id| match id {
        v1::protocol::Id::Number(number) => (*number, String::new()),
        v1::protocol::Id::Name(name) => (0, name.clone()),
    })
}

fn selector(text: &mut String) {
    if !text.is_empty() {
        *text = normalise(text);
    }
}
