//! Good inputs to start from.

use prost::Message;
use proto::{admin, model, sync};
use serde_json::{Value, json};
use syncer_common::model::Key;
use syncer_common::processors::Processors;

const ROOT: &str = "/calico/resources/v3/projectcalico.org";

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn lines<P: AsRef<str>>(objects: &[(P, Value)]) -> Vec<u8> {
    let lines: Vec<String> =
        objects.iter().map(|(path, value)| format!("{} {value}", path.as_ref())).collect();
    lines.join("\n").into_bytes()
}

pub(crate) fn keys() -> Vec<Vec<u8>> {
    let resources = objects().into_iter().map(|(path, _)| path.into_bytes());
    let old = stored_values().into_iter().map(|(path, _)| path.as_bytes().to_vec());
    let others = texts(&[
        "/calico/v1/Ready",
        "/calico/v1/config/LogSeverityScreen",
        "/calico/v1/host/n1/config/Interface/eth0",
        "/calico/v1/host/n1/wireguard",
        "/calico/v1/host/n1/metadata",
        "/calico/ipam/v2/virtual/lb/ipv6/block/fd00:10::-122",
        "/calico/bgp/v1/global/as_num",
        "/calico/bgp/v1/host/n1/ip_addr_v4",
        "/calico/felix/v1/host/n1/endpoint/eth0",
        "/calico/felix/v2/no-region/host/n1/status",
        "/calico/felix/v2/no-region/host/n1/last_reported_status",
        "/calico/felix/v2/no-region/host/n1/workload/k8s/shop%2fweb/endpoint/eth0",
        "/calico/v1/policy/tier/default/policy/knp.default.shop%2fallow",
        "/calico/v1/policy/tier/default/policy/shop%2fdefault.web",
    ]);
    resources.chain(old).chain(others).collect()
}

pub(crate) fn selectors() -> Vec<Vec<u8>> {
    texts(&[
        "all()",
        "a == 'x'",
        "has(projectcalico.org/namespace) && !has(b)",
        "a in {'x', \"y\",} || b not in {'z'}",
        "!(a != 'x' || b contains 'y') && (c starts with 'z' || d ends with '')",
        "((role == \"front\" && tier == \"web\") || global()) && !!has(k8s-app)",
        "app.kubernetes.io/name in {'web','api','db'} && zone == 'a' && zone in {'a','b'}",
    ])
}

/// One object of every kind that agents read, as etcd holds it.
fn objects() -> Vec<(String, Value)> {
    let resource = |path: &str, kind: &str, spec: Value| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut metadata = json!({ "name": name, "uid": "3f9c9e4e-5a6f-4f0e-8a63-0d9c4d2f0001" });
        if path.split('/').count() == 3 {
            metadata["namespace"] = json!(path.split('/').nth(1));
        }
        metadata["labels"] = json!({ "app": "web", "zone": "a" });
        let object =
            json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec });
        (format!("{ROOT}/{path}"), object)
    };
    let rules = json!([
        { "action": "Allow", "protocol": "TCP",
          "source": { "selector": "role == 'front'", "namespaceSelector": "env == 'prod'",
                      "serviceAccounts": { "names": ["web"], "selector": "team == 'a'" } },
          "destination": { "ports": [80, "8000:8010", "http"], "notNets": ["10.9.0.0/16"] } },
        { "action": "Deny", "protocol": "ICMP", "icmp": { "type": 8, "code": 0 }, "source": { "nets": ["10.0.0.0/8"] } },
        { "action": "Log", "ipVersion": 6, "notProtocol": 132, "destination": { "notSelector": "has(x)" },
          "metadata": { "annotations": { "why": "because" } } },
    ]);
    let policy = json!({
        "tier": "default", "order": 10.5, "selector": "app == 'web'", "types": ["Ingress", "Egress"],
        "serviceAccountSelector": "all()", "ingress": rules, "egress": [{ "action": "Allow" }],
        "performanceHints": ["AssumeNeededOnEveryNode"],
    });
    let global = json!({
        "tier": "security", "order": 1, "namespaceSelector": "has(env)", "selector": "all()", "types": ["Ingress"],
        "ingress": rules, "preDNAT": true, "applyOnForward": true,
    });
    let kubernetes = json!({
        "podSelector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] },
        "policyTypes": ["Ingress"], "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }],
        "stagedAction": "Set",
    });
    let mut staged = policy.clone();
    staged["stagedAction"] = json!("Set");
    vec![
        resource("networkpolicies/shop/default.web", "NetworkPolicy", policy.clone()),
        resource("globalnetworkpolicies/security.base", "GlobalNetworkPolicy", global.clone()),
        resource("stagednetworkpolicies/shop/default.staged", "StagedNetworkPolicy", staged),
        resource("stagedglobalnetworkpolicies/security.staged", "StagedGlobalNetworkPolicy", global),
        resource("stagedkubernetesnetworkpolicies/shop/knp", "StagedKubernetesNetworkPolicy", kubernetes),
        resource(
            "kubernetesnetworkpolicies/shop/knp.default.allow",
            "KubernetesNetworkPolicy",
            policy.clone(),
        ),
        resource("tiers/security", "Tier", json!({ "order": 100, "defaultAction": "Pass" })),
        resource(
            "profiles/kns.shop",
            "Profile",
            json!({ "ingress": rules, "egress": [{ "action": "Allow" }], "labelsToApply": { "pcns.env": "prod" } }),
        ),
        resource(
            "workloadendpoints/shop/n1-k8s-web--1-eth0",
            "WorkloadEndpoint",
            json!({
                "node": "n1", "orchestrator": "k8s", "pod": "web-1", "endpoint": "eth0", "containerID": "c0ffee",
                "interfaceName": "cali1234567890a", "mac": "ee:ee:ee:ee:ee:ee",
                "ipNetworks": ["10.65.0.2/32", "fd00:10::2/128"], "profiles": ["kns.shop", "ksa.shop.web"],
                "ipNATs": [{ "internalIP": "10.65.0.2", "externalIP": "192.0.2.7" }],
                "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
                "serviceAccountName": "web", "allowSpoofedSourcePrefixes": ["10.66.0.0/24"],
            }),
        ),
        resource(
            "hostendpoints/n1-eth0",
            "HostEndpoint",
            json!({ "node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1", "2001:db8::1"],
                    "profiles": ["hosts"], "ports": [{ "name": "ssh", "protocol": "TCP", "port": 22 }] }),
        ),
        resource(
            "ippools/default",
            "IPPool",
            json!({ "cidr": "10.65.0.0/16", "blockSize": 26, "ipipMode": "Always", "vxlanMode": "Never",
                    "natOutgoing": true, "disabled": false, "nodeSelector": "all()",
                    "allowedUses": ["Workload", "Tunnel"], "assignmentMode": "Automatic" }),
        ),
        resource(
            "networksets/shop/friends",
            "NetworkSet",
            json!({ "nets": ["198.51.100.0/24", "2001:db8::/64"] }),
        ),
        resource(
            "globalnetworksets/enemies",
            "GlobalNetworkSet",
            json!({ "nets": ["203.0.113.7", "10.0.0.0/8"] }),
        ),
        resource(
            "nodes/n1",
            "Node",
            json!({
                "bgp": { "asNumber": 64512, "ipv4Address": "192.0.2.1/24", "ipv6Address": "2001:db8::1/64",
                         "ipv4IPIPTunnelAddr": "10.65.0.1", "routeReflectorClusterID": "244.0.0.1" },
                "ipv4VXLANTunnelAddr": "10.65.0.3", "vxlanTunnelMACAddr": "66:00:00:00:00:01",
                "addresses": [{ "address": "192.0.2.1/24", "type": "CalicoNodeIP" }, { "address": "192.0.2.9" }],
                "wireguard": { "interfaceIPv4Address": "10.65.0.4" },
            }),
        ),
        resource(
            "felixconfigurations/default",
            "FelixConfiguration",
            json!({ "logSeverityScreen": "Info", "ipipMTU": 1440, "iptablesRefreshInterval": "1m30s",
                    "failsafeInboundHostPorts": [{ "protocol": "tcp", "port": 22, "net": "0.0.0.0/0" }],
                    "routeTableRanges": [{ "min": 1, "max": 250 }], "bpfEnabled": false,
                    "externalNodesList": ["192.0.2.0/24"], "healthTimeoutOverrides": [{ "name": "x", "timeout": "5s" }] }),
        ),
        resource("felixconfigurations/node.n1", "FelixConfiguration", json!({ "interfacePrefix": "cali" })),
        resource(
            "clusterinformations/default",
            "ClusterInformation",
            json!({ "clusterGUID": "00f3", "clusterType": "k8s,bgp", "calicoVersion": "v3.30.0", "datastoreReady": true }),
        ),
        resource(
            "bgpconfigurations/default",
            "BGPConfiguration",
            json!({
                "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true, "asNumber": "64512", "listenPort": 179,
                "serviceClusterIPs": [{ "cidr": "10.96.0.0/12" }],
                "communities": [{ "name": "c", "value": "65001:100" }],
                "prefixAdvertisements": [{ "cidr": "10.65.0.0/16", "communities": ["c", "65001:200:3"] }],
                "nodeMeshPassword": { "secretKeyRef": { "name": "s", "key": "k" } },
                "nodeMeshMaxRestartTime": "2m", "ignoredInterfaces": ["docker0"],
            }),
        ),
        resource(
            "bgppeers/rack",
            "BGPPeer",
            json!({ "nodeSelector": "rack == 'r1'", "peerIP": "192.0.2.254:1790", "asNumber": 64600,
                    "sourceAddress": "UseNodeIP", "keepOriginalNextHop": true, "maxRestartTime": "10s",
                    "filters": ["f"], "ttlSecurity": 1, "numAllowedLocalASNumbers": 2 }),
        ),
        (
            "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-26".to_owned(),
            json!({ "cidr": "10.65.0.0/26", "affinity": "host:n1", "allocations": [0, null, 1],
                    "unallocated": [1, 3], "deleted": false,
                    "attributes": [{ "handle_id": "h", "secondary": { "node": "n1", "pod": "web-1" } },
                                   { "handle_id": "i", "secondary": { "node": "n2" } }] }),
        ),
        (
            "/calico/ipam/v2/host/n1/ipv4/block/10.65.0.0-26".to_owned(),
            json!({ "state": "confirmed", "deleted": "false" }),
        ),
    ]
}

/// Those that are stored as they are written.
fn resources() -> Vec<(String, Value)> {
    objects().into_iter().filter(|(_, object)| object["kind"].is_string()).collect()
}

pub(crate) fn values() -> Vec<Vec<u8>> {
    let all = objects();
    let one_by_one = all.iter().map(|object| lines(std::slice::from_ref(object)));
    let mut seeds: Vec<Vec<u8>> = one_by_one.collect();
    // Two that claim one key; one that comes and goes; everything at once.
    for (path, value) in &all {
        if ["hostendpoints", "ippools", "globalnetworksets"].iter().any(|plural| path.contains(plural)) {
            let twins = lines(&[(format!("{path}-b"), value.clone()), (path.clone(), value.clone())]);
            seeds.extend([[&twins, path.as_bytes()].join(&b'\n'), twins]);
        }
        let mut goes = lines(&[(path.clone(), value.clone())]);
        goes.extend(format!("\n{path}").into_bytes());
        seeds.push(goes);
    }
    seeds.extend(all.chunks(4).map(lines));
    // Next to nothing is given, and the one that counts goes.
    let pool = json!({ "spec": { "cidr": "10.65.0.0/16" } });
    let pools = ["a", "b"].map(|name| (format!("{ROOT}/ippools/{name}"), pool.clone()));
    seeds.push([lines(&pools), format!("{ROOT}/ippools/a").into_bytes()].join(&b'\n'));
    seeds
}

/// Values of the v1 model, as JSON.
fn stored_values() -> Vec<(&'static str, Value)> {
    let rule = json!({ "action": "allow", "protocol": "tcp", "src_selector": "a == 'b'", "dst_ports": [80, "1:2", "http"],
                       "src_nets": ["10.0.0.0/8"], "!dst_nets": ["10.1.0.0/16"], "icmp_type": 8 });
    vec![
        (
            "/calico/v1/policy/NetworkPolicy/shop/web",
            json!({ "tier": "default", "order": 10, "selector": "all()", "inbound_rules": [rule],
                    "outbound_rules": [{ "action": "deny" }], "types": ["ingress"] }),
        ),
        ("/calico/v1/policy/tier/security/metadata", json!({ "order": 100, "default_action": "Pass" })),
        ("/calico/v1/policy/profile/p%2f1/rules", json!({ "inbound_rules": [rule], "outbound_rules": [] })),
        ("/calico/v1/policy/profile/p%2f1/labels", json!({ "a": "b" })),
        (
            "/calico/v1/host/n1/workload/k8s/shop%2fweb-1/endpoint/eth0",
            json!({ "state": "active", "name": "cali123", "mac": "ee:ee:ee:ee:ee:ee", "profile_ids": ["p"],
                    "ipv4_nets": ["10.65.0.2/32"], "ipv6_nets": [], "labels": { "a": "b" },
                    "ports": [{ "name": "http", "protocol": "tcp", "port": 80 }] }),
        ),
        (
            "/calico/v1/host/n1/endpoint/eth0",
            json!({ "name": "eth0", "expected_ipv4_addrs": ["192.0.2.1"], "profile_ids": [], "labels": {} }),
        ),
        ("/calico/v1/netset/shop%2fset", json!({ "nets": ["10.0.0.0/8"], "labels": { "a": "b" } })),
        (
            "/calico/v1/ipam/v4/pool/10.65.0.0-16",
            json!({ "cidr": "10.65.0.0/16", "ipip_mode": "always", "masquerade": true }),
        ),
        (
            "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-26",
            json!({ "cidr": "10.65.0.0/26", "affinity": "host:n1", "allocations": [0, null], "unallocated": [1],
                    "attributes": [{ "handle_id": "h", "secondary": { "node": "n1" } }], "deleted": false }),
        ),
        (
            "/calico/ipam/v2/host/n1/ipv4/block/10.65.0.0-26",
            json!({ "state": "confirmed", "deleted": false }),
        ),
        ("/calico/ipam/v2/handle/h1", json!({ "block": { "10.65.0.0/26": 1 }, "deleted": false })),
        ("/calico/v1/host/n1/wireguard", json!({ "interfaceIPv4Addr": "10.65.0.4", "publicKey": "k" })),
    ]
}

pub(crate) fn stored() -> Vec<Vec<u8>> {
    let old = stored_values().into_iter().map(|object| lines(&[object]));
    let today = resources().into_iter().map(|object| lines(&[object]));
    old.chain(today).collect()
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let resources: Vec<Value> = resources()
        .into_iter()
        .map(|(_, object)| object)
        .filter(|object| !object["kind"].as_str().unwrap_or_default().starts_with("Kubernetes"))
        .collect();
    let yaml = syncer_common::manifests::value_to_yaml;
    let mut seeds: Vec<Vec<u8>> = resources.iter().map(|resource| yaml(resource).into_bytes()).collect();
    seeds.extend(resources.iter().map(|resource| resource.to_string().into_bytes()));
    seeds.push(resources.iter().take(3).map(yaml).collect::<Vec<_>>().join("---\n").into_bytes());
    let list = json!({ "apiVersion": "projectcalico.org/v3", "kind": "List", "items": resources[6..9] });
    seeds.push(yaml(&list).into_bytes());
    seeds.extend(texts(&[
        "# nothing but words\n",
        "apiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {name: 10-65-0-0-26}\nspec: {cidr: 10.65.0.0/26, affinity: 'host:n1', allocations: [0], attributes: [{secondary: {node: n1}}]}\n",
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: n1-10-65-0-0-26}\nspec: {cidr: 10.65.0.0/26, node: n1, state: confirmed, deleted: 'false'}\n",
        "apiVersion: projectcalico.org/v3\nkind: IPAMHandle\nmetadata: {name: h1}\nspec: {handleID: h1, block: {10.65.0.0/26: 1}, deleted: false}\n",
    ]));
    seeds
}

pub(crate) fn old() -> Vec<Vec<u8>> {
    let object = |kind: &str, metadata: Value, spec: Value| json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec });
    let rule = json!({ "action": "allow", "protocol": "tcp", "source": { "net": "10.1.0.0/16", "selector": "a == 'b'" },
                       "destination": { "ports": [80, "1:2"] } });
    let objects = [
        object(
            "bgpPeer",
            json!({ "scope": "node", "node": "rack1-a", "peerIP": "10.9.0.1" }),
            json!({ "asNumber": 64600 }),
        ),
        object(
            "hostEndpoint",
            json!({ "name": "uplink", "node": "db-1", "labels": { "zone": "a" } }),
            json!({ "interfaceName": "eth0", "expectedIPs": ["10.2.0.5"], "profiles": ["hosts"] }),
        ),
        object(
            "ipPool",
            json!({ "cidr": "10.7.0.0/16" }),
            json!({ "ipip": { "enabled": true, "mode": "cross-subnet" }, "nat-outgoing": true }),
        ),
        object(
            "node",
            json!({ "name": "worker-1" }),
            json!({ "bgp": { "asNumber": 64513, "ipv4Address": "10.3.0.1/24" } }),
        ),
        object(
            "policy",
            json!({ "name": "cache" }),
            json!({ "order": 20, "selector": "tier == 'cache'", "doNotTrack": true, "ingress": [rule], "egress": [{ "action": "pass" }] }),
        ),
        object(
            "profile",
            json!({ "name": "web", "labels": { "profile": "web" }, "tags": ["t"] }),
            json!({ "ingress": [rule], "egress": [{ "action": "allow" }] }),
        ),
        object(
            "workloadEndpoint",
            json!({ "name": "eth0", "node": "rack1-a", "orchestrator": "k8s", "workload": "shop.web-1", "labels": { "a": "b" } }),
            json!({ "ipNetworks": ["10.4.0.2/32"], "interfaceName": "cali123", "mac": "ee:ee:ee:ee:ee:ee", "profiles": ["k8s_ns.shop"] }),
        ),
    ];
    let mut seeds: Vec<Vec<u8>> = objects.iter().map(|object| object.to_string().into_bytes()).collect();
    seeds.push(Value::from(objects.to_vec()).to_string().into_bytes());
    seeds.push(
        json!({ "apiVersion": "v1", "kind": "policyList", "items": [objects[4]] }).to_string().into_bytes(),
    );
    seeds
}

/// Objects of the Kubernetes API: plural (of Calico's own group: after `calico/`) and object.
pub(crate) fn kubernetes() -> Vec<Vec<u8>> {
    let metadata = |namespace: &str, name: &str| {
        let mut metadata = json!({ "name": name, "uid": "8d2f9a51-7c11-4a43-9f0f-2d0d4a3c0002", "resourceVersion": "1234",
                                   "creationTimestamp": "2025-01-02T03:04:05Z", "labels": { "app": "web" } });
        if !namespace.is_empty() {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    };
    let objects = vec![
        (
            "pods",
            json!({ "apiVersion": "v1", "kind": "Pod",
                    "metadata": metadata("shop", "web-1"),
                    "spec": { "nodeName": "n1", "serviceAccountName": "web",
                              "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80, "protocol": "TCP" },
                                               { "containerPort": 53, "hostPort": 53, "protocol": "UDP" }] }] },
                    "status": { "phase": "Running", "podIP": "10.65.0.2", "podIPs": [{ "ip": "10.65.0.2" }, { "ip": "fd00:10::2" }] } }),
        ),
        (
            "nodes",
            json!({ "apiVersion": "v1", "kind": "Node",
                    "metadata": { "name": "n1", "uid": "8d2f9a51-7c11-4a43-9f0f-2d0d4a3c0003", "labels": { "zone": "a" },
                        "annotations": { "projectcalico.org/IPv4Address": "192.0.2.1/24", "projectcalico.org/ASNumber": "64512",
                                         "projectcalico.org/IPv4IPIPTunnelAddr": "10.65.0.1" } },
                    "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
                    "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] } }),
        ),
        ("namespaces", json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata("", "shop") })),
        (
            "serviceaccounts",
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("shop", "web") }),
        ),
        (
            "networkpolicies",
            json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata("shop", "allow"),
                    "spec": { "podSelector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "a", "operator": "NotIn", "values": ["b", "c"] }] },
                              "policyTypes": ["Ingress", "Egress"],
                              "ingress": [{ "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "x": "y" } } },
                                                     { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }],
                                            "ports": [{ "port": 80, "protocol": "TCP" }, { "port": "http" }, { "port": 1, "endPort": 9 }] }],
                              "egress": [{}] } }),
        ),
        (
            "clusternetworkpolicies",
            json!({ "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": metadata("", "admin"),
                    "spec": { "tier": "Admin", "priority": 10, "subject": { "namespaces": { "matchLabels": { "env": "prod" } } },
                              "ingress": [{ "name": "r", "action": "Accept", "from": [{ "namespaces": { "matchLabels": { "a": "b" } } }] }],
                              "egress": [{ "action": "Deny", "to": [{ "networks": ["10.0.0.0/8"] }] }] } }),
        ),
        (
            "services",
            json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata("shop", "web"), "spec": { "clusterIP": "10.96.0.1" } }),
        ),
        (
            "endpointslices",
            json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("shop", "web-x"), "addressType": "IPv4", "endpoints": [] }),
        ),
        (
            "calico/ipamblocks",
            json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock", "metadata": { "name": "10-65-0-0-26" },
                    "spec": { "cidr": "10.65.0.0/26", "affinity": "host:n1", "allocations": [0, null], "unallocated": [1],
                              "attributes": [{ "handle_id": "h", "secondary": { "node": "n1" } }], "deleted": false } }),
        ),
        (
            "calico/blockaffinities",
            json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity", "metadata": { "name": "n1-10-65-0-0-26" },
                    "spec": { "cidr": "10.65.0.0/26", "node": "n1", "state": "confirmed", "deleted": "false", "type": "host" } }),
        ),
    ];
    let mut objects: Vec<(String, Value)> =
        objects.into_iter().map(|(plural, object)| (plural.to_owned(), object)).collect();
    for (path, object) in self::objects() {
        let plural = [
            "globalnetworkpolicies",
            "tiers",
            "hostendpoints",
            "ippools",
            "networksets",
            "felixconfigurations",
            "bgppeers",
        ]
        .into_iter()
        .find(|plural| path.contains(&format!("/{plural}/")));
        objects.extend(plural.map(|plural| (format!("calico/{plural}"), object)));
    }
    let mut seeds: Vec<Vec<u8>> = objects.iter().map(|object| lines(std::slice::from_ref(object))).collect();
    seeds.extend(objects.chunks(3).map(lines));
    seeds
}

pub(crate) fn wire() -> Vec<Vec<u8>> {
    let mut processors = Processors::new();
    let mut entries = Vec::new();
    for (seq, (path, value)) in objects().into_iter().enumerate() {
        for update in processors.put(&path, value.to_string().as_bytes()).updates {
            entries.push(sync::Entry {
                key: update.key.path().unwrap_or_default(),
                seq: seq as u64,
                cause: vec![sync::Cause { source: 77, revision: 7 }],
                value: update.value.ok().map(|kind| model::Value { kind: Some(kind) }),
                ..sync::Entry::default()
            });
        }
    }
    let batch = sync::Batch { entries: entries.iter().take(3).cloned().collect(), more: true };
    let hello = sync::ClientHello {
        version: 1,
        node: "n1".into(),
        agent: "felix".into(),
        session: Some(sync::Session { boot_id: "b".into(), counter: 3 }),
        kinds: vec!["Policy".into()],
        resume: Some(sync::Token::default()),
        ..sync::ClientHello::default()
    };
    let gone = sync::Entry {
        key: Key::ReadyFlag.path().unwrap_or_default(),
        deleted: true,
        ..sync::Entry::default()
    };
    let with = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    let mut seeds = vec![
        with(0, server(sync::server_message::Message::Batch(batch.clone()))),
        with(
            0,
            server(sync::server_message::Message::Hello(sync::ServerHello {
                version: 1,
                kinds: vec!["Policy".into()],
                ..Default::default()
            })),
        ),
        with(0, server(sync::server_message::Message::GoAway(sync::GoAway::default()))),
        with(
            1,
            sync::ClientMessage { message: Some(sync::client_message::Message::Hello(hello)) }
                .encode_to_vec(),
        ),
        with(3, batch.encode_to_vec()),
        with(4, gone.encode_to_vec()),
        with(
            5,
            admin::StatusReply {
                replica: "r".into(),
                entries: [("Policy".to_owned(), 3)].into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        with(
            6,
            admin::WaitReply { reached: vec!["n1".into()], known: true, ..Default::default() }
                .encode_to_vec(),
        ),
    ];
    seeds.extend(entries.iter().map(|entry| with(4, entry.encode_to_vec())));
    seeds.extend(entries.iter().filter_map(|entry| Some(with(2, entry.value.as_ref()?.encode_to_vec()))));
    seeds
}

fn server(message: sync::server_message::Message) -> Vec<u8> {
    sync::ServerMessage { message: Some(message) }.encode_to_vec()
}
