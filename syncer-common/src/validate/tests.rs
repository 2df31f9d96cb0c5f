//! Which field of an object is at fault.

use serde_json::{Value, json};

use super::{change, resource};
use crate::apis::Resource;

fn object(kind: &str, name: &str, spec: Value) -> Resource {
    let version = "projectcalico.org/v3";
    Resource::from_json(
        json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name }, "spec": spec }),
    )
    .unwrap()
}

fn faults(kind: &str, name: &str, spec: Value) -> Vec<String> {
    resource(&object(kind, name, spec)).into_iter().map(|error| error.field).collect()
}

#[test]
fn good_objects_have_no_faults() {
    for (kind, name, spec) in [
        (
            "IPPool",
            "p",
            json!({ "cidr": "10.0.0.0/16", "vxlanMode": "CrossSubnet", "nodeSelector": "has(a)" }),
        ),
        ("IPPool", "p6", json!({ "cidr": "fd00::/64", "blockSize": 122 })),
        (
            "NetworkPolicy",
            "team.web",
            json!({ "ingress": [{ "action": "Allow", "protocol": "TCP",
            "source": { "selector": "a == 'b'" }, "destination": { "ports": [80, "90:100", "http"] } }] }),
        ),
        ("NetworkPolicy", "knp.default.a.b.c", json!({})),
        ("GlobalNetworkPolicy", "g", json!({ "preDNAT": true, "applyOnForward": true })),
        (
            "WorkloadEndpoint",
            "n1-k8s-web--1-eth0",
            json!({ "node": "n1", "orchestrator": "k8s", "pod": "web-1",
            "endpoint": "eth0", "interfaceName": "cali1", "ipNetworks": ["10.0.0.1/32"] }),
        ),
        (
            "Node",
            "n1.example.org",
            json!({ "bgp": { "ipv4Address": "10.0.0.1/24", "routeReflectorClusterID": "1.0.0.1" } }),
        ),
        ("BGPPeer", "p", json!({ "nodeSelector": "has(rr)", "peerSelector": "has(rr)" })),
        (
            "BGPConfiguration",
            "default",
            json!({ "nodeToNodeMeshEnabled": false, "asNumber": "1.10",
            "communities": [{ "name": "c", "value": "65000:1" }] }),
        ),
        ("FelixConfiguration", "node.n1", json!({ "anything": true })),
    ] {
        assert_eq!(faults(kind, name, spec), [""; 0], "{kind} {name}");
    }
}

#[test]
fn faults_are_found_where_they_are() {
    let rule = |rule: Value| json!({ "ingress": [{ "action": "Deny" }, rule] });
    for (kind, name, spec, field) in [
        ("Tier", "Security", json!({}), "metadata.name"),
        ("Tier", "a.b", json!({}), "metadata.name"),
        ("Tier", "t", json!({ "defaultAction": "Allow" }), "spec.defaultAction"),
        ("NetworkPolicy", "a.b.c", json!({}), "metadata.name"),
        ("NetworkPolicy", "p", json!({ "applyOnForward": true }), "spec.applyOnForward"),
        ("NetworkPolicy", "p", json!({ "types": ["Ingress", "Ingress"] }), "spec.types[1]"),
        ("GlobalNetworkPolicy", "p", json!({ "doNotTrack": true }), "spec.doNotTrack"),
        ("GlobalNetworkPolicy", "p", json!({ "selector": "a ==" }), "spec.selector"),
        ("Profile", "p", rule(json!({})), "spec.ingress[1].action"),
        ("Profile", "p", rule(json!({ "action": "Accept" })), "spec.ingress[1].action"),
        ("Profile", "p", rule(json!({ "action": "Deny", "ipVersion": 5 })), "spec.ingress[1].ipVersion"),
        ("Profile", "p", rule(json!({ "action": "Deny", "protocol": "TPC" })), "spec.ingress[1].protocol"),
        ("Profile", "p", rule(json!({ "action": "Deny", "protocol": 300 })), "spec.ingress[1].protocol"),
        (
            "Profile",
            "p",
            rule(json!({ "action": "Deny", "source": { "ports": [1] } })),
            "spec.ingress[1].source.ports",
        ),
        (
            "Profile",
            "p",
            rule(json!({ "action": "Deny", "protocol": "TCP", "icmp": { "type": 8 } })),
            "spec.ingress[1].icmp",
        ),
        (
            "Profile",
            "p",
            rule(json!({ "action": "Deny", "protocol": "ICMP", "icmp": { "code": 1 } })),
            "spec.ingress[1].icmp.type",
        ),
        (
            "Profile",
            "p",
            rule(json!({ "action": "Deny", "protocol": "ICMP", "ipVersion": 6 })),
            "spec.ingress[1].ipVersion",
        ),
        (
            "Profile",
            "p",
            rule(json!({ "action": "Deny", "destination": { "nets": ["::/0", "x"] } })),
            "spec.ingress[1].destination.nets[1]",
        ),
        (
            "Profile",
            "p",
            rule(
                json!({ "action": "Deny", "source": { "services": { "name": "s" }, "selector": "has(a)" } }),
            ),
            "spec.ingress[1].source.services",
        ),
        ("GlobalNetworkSet", "s", json!({ "nets": ["10.0.0.0/8", "10.0.0.0/40"] }), "spec.nets[1]"),
        ("HostEndpoint", "h", json!({ "node": "n1" }), "spec.interfaceName"),
        ("HostEndpoint", "h", json!({ "interfaceName": "eth0" }), "spec.node"),
        ("IPPool", "p", json!({ "cidr": "10.0.0.1/16" }), "spec.cidr"),
        ("IPPool", "p", json!({ "cidr": "10.0.0.0/28" }), "spec.cidr"),
        ("IPPool", "p", json!({ "cidr": "fd00::/64", "ipipMode": "Always" }), "spec.ipipMode"),
        ("IPPool", "p", json!({ "cidr": "10.0.0.0/16", "blockSize": 19 }), "spec.blockSize"),
        ("Node", "n", json!({ "bgp": { "ipv4Address": "fd00::1" } }), "spec.bgp.ipv4Address"),
        ("Node", "n", json!({ "bgp": {} }), "spec.bgp.ipv4Address"),
        ("BGPPeer", "p", json!({ "node": "n1" }), "spec.peerIP"),
        ("BGPPeer", "p", json!({ "peerIP": "10.0.0.1:bgp" }), "spec.peerIP"),
        ("BGPPeer", "p", json!({ "peerSelector": "has(rr)", "asNumber": 1 }), "spec.asNumber"),
        ("BGPConfiguration", "other", json!({}), "metadata.name"),
        ("BGPConfiguration", "node.n1", json!({ "asNumber": 1 }), "spec.asNumber"),
        ("ClusterInformation", "other", json!({}), "metadata.name"),
        ("IPAMBlock", "b", json!({ "cidr": "10.0.0.0/30", "allocations": [0] }), "spec.allocations[0]"),
        ("IPAMBlock", "b", json!({}), "spec.cidr"),
        ("BlockAffinity", "b", json!({ "cidr": "10.0.0.0/26" }), "spec.node"),
    ] {
        assert_eq!(faults(kind, name, spec.clone()), [field], "{kind} {name} {spec}");
    }
}

#[test]
fn workload_endpoints_agree_with_their_name() {
    let spec = json!({ "node": "n2", "orchestrator": "k8s", "pod": "web", "endpoint": "eth0",
        "interfaceName": "a-name-much-too-long", "ipNetworks": ["10.0.0.0/24"], "mac": "1:2" });
    assert_eq!(
        faults("WorkloadEndpoint", "n1-k8s-web-eth0", spec),
        ["spec.node", "spec.interfaceName", "spec.ipNetworks[0]", "spec.mac"]
    );
}

#[test]
fn pools_keep_what_their_blocks_were_cut_from() {
    let pool = |cidr: &str, size: u32| object("IPPool", "p", json!({ "cidr": cidr, "blockSize": size }));
    let changed = |new: &Resource| change(&pool("10.0.0.0/16", 26), new).len();
    assert_eq!(changed(&pool("10.0.0.0/16", 26)), 0);
    assert_eq!(changed(&pool("10.1.0.0/16", 26)), 1);
    assert_eq!(changed(&pool("10.1.0.0/16", 24)), 2);
    assert_eq!(changed(&object("IPPool", "p", json!({ "cidr": "10.0.0.0/16", "ipipMode": "Always" }))), 0);
}
