//! What old objects become, and what is said about them.

use serde_json::{Value, json};

use super::{Upgraded, upgrade};
use crate::validate;

fn old(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec })
}

/// One object: as JSON, with its warnings. What comes out is valid.
fn one(kind: &str, metadata: Value, spec: Value) -> (Value, Vec<String>) {
    let Upgraded { mut resources, warnings } = upgrade(old(kind, metadata, spec)).unwrap();
    assert_eq!(resources.len(), 1);
    let resource = resources.remove(0);
    assert_eq!(validate::resource(&resource), [], "{resource:?}");
    (serde_json::to_value(resource).unwrap(), warnings)
}

fn new(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec })
}

fn field(document: Value) -> String {
    upgrade(document).unwrap_err().field
}

#[test]
fn peers_are_named_after_scope_node_and_address() {
    let (peer, warnings) = one(
        "bgpPeer",
        json!({ "scope": "node", "node": "rack1-a", "peerIP": "10.9.0.1" }),
        json!({ "asNumber": 64600 }),
    );
    let spec = json!({ "node": "rack1-a", "peerIP": "10.9.0.1", "asNumber": 64600 });
    assert_eq!(peer, new("BGPPeer", json!({ "name": "node-rack1-a-10-9-0-1" }), spec));
    assert!(warnings.is_empty());
    let (peer, _) =
        one("bgpPeer", json!({ "scope": "global", "peerIP": "fd00::" }), json!({ "asNumber": "1.2" }));
    assert_eq!(peer["metadata"]["name"], "global-fd00--0");
    assert_eq!(peer["spec"].get("node"), None);
    let peer = |metadata| field(old("bgpPeer", metadata, json!({ "asNumber": 1 })));
    assert_eq!(peer(json!({ "scope": "node", "peerIP": "10.9.0.1" })), "metadata.node");
    assert_eq!(peer(json!({ "scope": "rack", "peerIP": "10.9.0.1" })), "metadata.scope");
    assert_eq!(peer(json!({ "scope": "global", "peerIP": "10.9.0" })), "metadata.peerIP");
}

#[test]
fn host_endpoints_carry_their_node_in_front() {
    let (endpoint, warnings) = one(
        "hostEndpoint",
        json!({ "name": "uplink", "node": "db-1", "labels": { "zone": "a" } }),
        json!({ "interfaceName": "eth0", "expectedIPs": ["10.2.0.5"], "profiles": ["hosts"] }),
    );
    let spec = json!({ "node": "db-1", "interfaceName": "eth0", "expectedIPs": ["10.2.0.5"], "profiles": ["hosts"] });
    assert_eq!(
        endpoint,
        new("HostEndpoint", json!({ "name": "db-1.uplink", "labels": { "zone": "a" } }), spec)
    );
    assert!(warnings.is_empty());
}

#[test]
fn pools_are_named_after_their_network_and_say_how_they_tunnel() {
    let mode = |ipip: Value| {
        let spec = json!({ "ipip": ipip, "nat-outgoing": true });
        one("ipPool", json!({ "cidr": "10.7.0.0/16" }), spec).0["spec"]["ipipMode"].clone()
    };
    assert_eq!(mode(json!({ "enabled": true, "mode": "cross-subnet" })), "CrossSubnet");
    assert_eq!(mode(json!({ "enabled": true })), "Always");
    assert_eq!(mode(json!({ "enabled": false, "mode": "always" })), "Never");
    let (pool, warnings) = one("ipPool", json!({ "cidr": "10.7.3.1/16" }), json!({ "nat-outgoing": true }));
    let spec = json!({ "cidr": "10.7.0.0/16", "ipipMode": "Never", "natOutgoing": true, "disabled": false });
    assert_eq!(pool, new("IPPool", json!({ "name": "10-7-0-0-16" }), spec));
    assert_eq!(warnings, ["IPPool(10-7-0-0-16): metadata.cidr: 10.7.3.1/16 is written 10.7.0.0/16"]);
    let bad = json!({ "ipip": { "enabled": true, "mode": "sometimes" } });
    assert_eq!(field(old("ipPool", json!({ "cidr": "10.7.0.0/16" }), bad)), "spec.ipip.mode");
}

#[test]
fn nodes_keep_their_bgp_settings() {
    let bgp = json!({ "asNumber": 64513, "ipv4Address": "10.3.0.1/24", "ipv6Address": "fd00:3::1/120" });
    let (node, warnings) = one("node", json!({ "name": "Worker_1" }), json!({ "bgp": bgp }));
    assert_eq!(node, new("Node", json!({ "name": "worker-1" }), json!({ "bgp": bgp })));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("Node(worker-1): metadata.name: \"Worker_1\""), "{warnings:?}");
}

#[test]
fn policies_become_global_ones_that_apply_as_they_did() {
    let (policy, warnings) = one(
        "policy",
        json!({ "name": "cache" }),
        json!({
            "order": 20, "selector": "tier == 'cache'", "doNotTrack": true,
            "ingress": [
                { "action": "allow", "protocol": "tcp",
                  "source": { "net": "10.1.0.0/16", "nets": ["10.2.0.0/16"], "selector": "app == 'web'" },
                  "destination": { "ports": [11211, "12000:12010"] } },
                { "action": "log", "protocol": "icmpv6", "icmp": { "type": 128 } },
                { "action": "deny", "notProtocol": "17", "source": { "notNet": "10.9.0.0/16" } },
            ],
        }),
    );
    let spec = json!({
        "order": 20, "selector": "tier == 'cache'", "doNotTrack": true, "applyOnForward": true,
        "types": ["Ingress", "Egress"],
        "ingress": [
            { "action": "Allow", "protocol": "TCP",
              "source": { "nets": ["10.1.0.0/16", "10.2.0.0/16"], "selector": "app == 'web'" },
              "destination": { "ports": [11211, "12000:12010"] } },
            { "action": "Log", "protocol": "ICMPv6", "icmp": { "type": 128 } },
            { "action": "Deny", "notProtocol": 17, "source": { "notNets": ["10.9.0.0/16"] } },
        ],
    });
    assert_eq!(policy, new("GlobalNetworkPolicy", json!({ "name": "cache" }), spec));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("spec.types") && warnings[0].contains("denies all egress"), "{warnings:?}");
    let both = json!({ "ingress": [{ "action": "pass" }], "egress": [{ "action": "allow" }] });
    assert_eq!(one("policy", json!({ "name": "p" }), both).1, [""; 0]);
    let only = json!({ "types": ["ingress"], "egress": [] });
    let (policy, warnings) = one("policy", json!({ "name": "p" }), only);
    assert_eq!((policy["spec"]["types"].clone(), warnings.len()), (json!(["Ingress"]), 0));
}

#[test]
fn profiles_apply_their_labels_and_say_that_tags_are_gone() {
    let (profile, warnings) = one(
        "profile",
        json!({ "name": "web", "labels": { "profile": "web" }, "tags": ["front", "dmz"] }),
        json!({ "ingress": [{ "action": "deny", "source": { "net": "10.1.2.0/24" } }], "egress": [{ "action": "allow" }] }),
    );
    let spec = json!({
        "labelsToApply": { "profile": "web" },
        "ingress": [{ "action": "Deny", "source": { "nets": ["10.1.2.0/24"] } }],
        "egress": [{ "action": "Allow" }],
    });
    assert_eq!(profile, new("Profile", json!({ "name": "web" }), spec));
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("Profile(web): metadata.tags: tags (front, dmz) are no more"),
        "{warnings:?}"
    );
    let (profile, warnings) = one("profile", json!({ "name": "k8s_ns.shop" }), json!({}));
    assert_eq!((profile["metadata"]["name"].as_str(), warnings.len()), (Some("kns.shop"), 0));
}

#[test]
fn workload_endpoints_find_their_namespace_and_name() {
    let metadata = |labels: Value| json!({ "name": "eth0", "workload": "shop.web-5f", "orchestrator": "k8s", "node": "rack-1", "labels": labels });
    let spec = json!({ "interfaceName": "cali12", "mac": "ca:fe:00:00:00:01", "ipNetworks": ["10.65.0.3/32"],
        "ipNATs": [{ "internalIP": "10.65.0.3", "externalIP": "192.0.2.3" }], "profiles": ["k8s_ns.shop"] });
    for labels in [json!({ "app": "web", "calico/k8s_ns": "shop" }), json!({ "app": "web" })] {
        let (endpoint, warnings) = one("workloadEndpoint", metadata(labels), spec.clone());
        assert_eq!(endpoint["metadata"]["name"], "rack--1-k8s-web--5f-eth0");
        assert_eq!(endpoint["metadata"]["namespace"], "shop");
        assert_eq!(endpoint["metadata"]["labels"]["projectcalico.org/namespace"], "shop");
        assert_eq!(endpoint["metadata"]["labels"]["projectcalico.org/orchestrator"], "k8s");
        assert_eq!(endpoint["metadata"]["labels"]["app"], "web");
        let expected = json!({ "node": "rack-1", "orchestrator": "k8s", "pod": "web-5f", "endpoint": "eth0",
            "interfaceName": "cali12", "mac": "ca:fe:00:00:00:01", "ipNetworks": ["10.65.0.3/32"],
            "ipNATs": [{ "internalIP": "10.65.0.3", "externalIP": "192.0.2.3" }], "profiles": ["kns.shop"] });
        assert_eq!(endpoint["spec"], expected);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    let other = |orchestrator: &str| {
        let metadata = json!({ "name": "e0", "workload": "w1", "orchestrator": orchestrator, "node": "n" });
        let (endpoint, _) = one("workloadEndpoint", metadata, json!({ "interfaceName": "cali1" }));
        assert_eq!(endpoint["metadata"]["namespace"], "default");
        endpoint["metadata"]["name"].as_str().unwrap().to_owned()
    };
    assert_eq!(other("cni"), "n-cni-w1-e0");
    assert_eq!(other("libnetwork"), "n-libnetwork-libnetwork-e0");
    assert_eq!(other("openstack"), "n-openstack-w1-e0");
}

#[test]
fn rules_that_would_match_more_are_refused_by_field() {
    let policy = |rule: Value| field(old("policy", json!({ "name": "p" }), json!({ "egress": [rule] })));
    assert_eq!(policy(json!({ "action": "allow", "source": { "tag": "web" } })), "spec.egress[0].source.tag");
    assert_eq!(
        policy(json!({ "action": "allow", "destination": { "sector": "a" } })),
        "spec.egress[0].destination.sector"
    );
    assert_eq!(policy(json!({ "action": "allow", "prtocol": "tcp" })), "spec.egress[0].prtocol");
    assert_eq!(policy(json!({ "action": "allow", "protocol": "tpc" })), "spec.egress[0].protocol");
    assert_eq!(policy(json!({ "action": "Allow" })), "spec.egress[0].action");
    assert_eq!(policy(json!({ "source": {} })), "spec.egress[0].action");
    assert_eq!(policy(json!("allow")), "spec.egress[0]");
    let selector = json!({ "name": "p" });
    assert_eq!(field(old("policy", selector, json!({ "namespaceSelector": "a" }))), "spec.namespaceSelector");
}

#[test]
fn members_that_are_not_known_are_named() {
    let document = json!({ "apiVersion": "v1", "kind": "node", "metadata": { "name": "n", "colour": "red" },
        "spec": { "bgp": { "ipv4Address": "10.3.0.1", "mtu": 1400 } }, "extra": 1 });
    let warnings = upgrade(document).unwrap().warnings;
    let named = |field: &str| warnings.contains(&format!("Node(n): {field}: not known: left out"));
    assert!(named("extra") && named("metadata.colour") && named("spec.bgp.mtu"), "{warnings:?}");
    let selector = json!({ "selector": "calico/k8s_ns == 'a'", "types": ["ingress"] });
    assert!(one("policy", json!({ "name": "p" }), selector).1[0].contains("projectcalico.org/namespace"));
}

#[test]
fn lists_hold_objects_and_errors_say_which() {
    let node = |name: &str| old("node", json!({ "name": name }), json!({}));
    let names = |document: Value| -> Vec<String> {
        upgrade(document).unwrap().resources.into_iter().map(|resource| resource.metadata.name).collect()
    };
    assert_eq!(names(json!([node("a"), node("b")])), ["a", "b"]);
    let list = |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "items": [node("a"), node("b")] });
    assert_eq!(names(list("nodeList")), ["a", "b"]);
    assert_eq!(names(list("List")), ["a", "b"]);
    let today = new("Tier", json!({ "name": "t" }), json!({}));
    assert_eq!(names(json!([node("a"), today])), ["a", "t"]);
    assert_eq!(field(json!([node("a"), { "apiVersion": "v1", "kind": "pod" }])), "[1].kind");
    assert_eq!(
        field(
            json!({ "apiVersion": "v1", "kind": "nodeList", "items": [{ "apiVersion": "v1", "kind": "node" }] })
        ),
        "items[0].metadata.name"
    );
    assert_eq!(field(json!({ "apiVersion": "v1", "kind": "nodeList" })), "items");
    assert_eq!(field(json!("node")), "the document");
    let twice = upgrade(json!([node("a_b"), node("a-b")])).unwrap_err();
    assert!(twice.reason.contains("Node(a-b)"), "{twice}");
}
