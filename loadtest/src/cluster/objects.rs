//! The objects of a synthetic cluster, as Calico's tools write them to etcd.

use serde_json::{Map, Value as Json, json};

const ROOT: &str = "/calico/resources/v3/projectcalico.org";
/// Label that says when a change was due, in microseconds since the run began; never 0.
pub const MARK: &str = "loadtest.bulrush/due";
const APPS: [&str; 8] = ["web", "api", "cart", "search", "mail", "queue", "cache", "db"];
pub(super) const TIERS: [(&str, f64); 3] =
    [("security", 100.0), ("platform", 200.0), ("default", 1_000_000.0)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub value: Vec<u8>,
}

/// A uid that is the same in every run: values must not differ.
fn uid(seed: &str) -> String {
    let hash = blake3::hash(seed.as_bytes());
    let hex = hash.to_hex();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

pub(super) fn resource(
    kind: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    labels: Json,
    spec: Json,
) -> Object {
    let key = match namespace {
        "" => format!("{ROOT}/{plural}/{name}"),
        namespace => format!("{ROOT}/{plural}/{namespace}/{name}"),
    };
    let mut metadata = Map::new();
    metadata.insert("name".into(), name.into());
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), uid(&key).into());
    metadata.insert("creationTimestamp".into(), "2026-01-02T03:04:05Z".into());
    if !labels.is_null() {
        metadata.insert("labels".into(), labels);
    }
    let value = json!({
        "kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec,
    });
    Object { key, value: value.to_string().into_bytes() }
}

pub fn cluster_wide() -> Vec<Object> {
    let info =
        json!({ "clusterGUID": "loadtest", "clusterType": "k8s,bulrush-loadtest", "datastoreReady": true });
    let pool = json!({
        "cidr": "10.64.0.0/12", "blockSize": 26, "vxlanMode": "CrossSubnet", "natOutgoing": true, "nodeSelector": "all()",
        "ipipMode": "Never", "allowedUses": ["Workload", "Tunnel"],
    });
    let mut all = vec![
        resource("ClusterInformation", "clusterinformations", "", "default", Json::Null, info),
        resource("IPPool", "ippools", "", "loadtest", Json::Null, pool),
    ];
    all.extend(TIERS.iter().map(|(name, order)| {
        resource("Tier", "tiers", "", name, Json::Null, json!({ "order": order, "defaultAction": "Deny" }))
    }));
    all
}

pub fn node_name(index: usize) -> String {
    format!("node-{index:05}")
}

/// Its own, with the length of the network that all nodes are in.
pub fn node_address(index: usize) -> String {
    format!("172.16.{}.{}/16", index >> 8, index & 255)
}

pub fn node(index: usize) -> Object {
    let labels = json!({ "kubernetes.io/hostname": node_name(index), "rack": format!("r{}", index / 40) });
    let spec = json!({
        "bgp": { "ipv4Address": node_address(index) },
        "orchRefs": [{ "nodeName": node_name(index), "orchestrator": "k8s" }],
    });
    resource("Node", "nodes", "", &node_name(index), labels, spec)
}

pub fn address(node: usize, slot: usize) -> String {
    let number = (10 << 24 | 64 << 16) + (node * 64 + slot) as u32;
    std::net::Ipv4Addr::from(number).to_string()
}

fn cidr(node: usize) -> String {
    format!("{}/26", address(node, 0))
}

/// Addresses of a node of ours, by its name.
pub fn pod_cidr(node: &str) -> Option<String> {
    Some(cidr(node.strip_prefix("node-")?.parse().ok()?))
}

/// The node's block, as Calico's IPAM writes it.
pub fn block(node: usize, taken: &[bool]) -> Object {
    let cidr = cidr(node);
    let unallocated: Vec<usize> = (0..taken.len()).filter(|slot| !taken[*slot]).collect();
    let allocations: Vec<Option<usize>> = taken.iter().map(|taken| taken.then_some(0)).collect();
    let value = json!({
        "cidr": cidr, "affinity": format!("host:{}", node_name(node)), "allocations": allocations,
        "unallocated": unallocated,
        "attributes": [{ "handle_id": "loadtest", "secondary": { "node": node_name(node) } }],
    });
    let key = format!("/calico/ipam/v2/assignment/ipv4/block/{}", cidr.replace('/', "-"));
    Object { key, value: value.to_string().into_bytes() }
}

pub(super) fn namespace_name(index: usize) -> String {
    format!("team-{index:03}")
}

/// Its profile, that of its service account, and its policies.
pub fn namespace(index: usize, policies: usize) -> Vec<Object> {
    let name = namespace_name(index);
    let spec = json!({
        "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }],
        "labelsToApply": {
            "pcns.projectcalico.org/name": name, "pcns.env": if index.is_multiple_of(3) { "prod" } else { "test" },
        },
    });
    let account = json!({ "labelsToApply": { "pcsa.projectcalico.org/name": "default" } });
    let mut all = vec![
        resource("Profile", "profiles", "", &format!("kns.{name}"), Json::Null, spec),
        resource("Profile", "profiles", "", &format!("ksa.{name}.default"), Json::Null, account),
    ];
    all.extend((0..policies).map(|policy| {
        let (from, to) = from_and_to(policy);
        let spec = json!({
            "tier": "default", "order": 1000 + policy, "selector": format!("app == '{to}'"), "types": ["Ingress"],
            "ingress": [{
                "action": "Allow", "protocol": "TCP", "source": { "selector": format!("app == '{from}'") },
                "destination": { "ports": [8080, "9000:9010"] },
            }],
        });
        resource("NetworkPolicy", "networkpolicies", &name, &format!("{from}-to-{to}"), Json::Null, spec)
    }));
    all
}

/// Apps that a namespace's policy is about.
pub(super) fn from_and_to(policy: usize) -> (&'static str, &'static str) {
    (APPS[policy % APPS.len()], APPS[(policy + 1) % APPS.len()])
}

/// That a version of a policy denies.
pub(super) fn port(version: u32) -> u32 {
    10_000 + version % 50_000
}

pub fn global_policy(index: usize, version: u32) -> Object {
    let tier = TIERS[index % 2].0;
    let spec = json!({
        "tier": tier, "order": 10 + index, "selector": "all()", "types": ["Ingress", "Egress"],
        "ingress": [
            { "action": "Deny", "source": { "selector": format!("set == 's{index}'") } },
            { "action": "Pass" },
        ],
        "egress": [
            { "action": "Deny", "protocol": "TCP", "destination": { "ports": [port(version)] } },
            { "action": "Pass" },
        ],
    });
    resource(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        "",
        &format!("{tier}.{index:03}"),
        Json::Null,
        spec,
    )
}

/// Of a network set.
pub(super) fn nets(index: usize) -> Vec<String> {
    let net = |number: usize| format!("198.{}.{}.0/24", 18 + (number >> 8), number & 255);
    (index * 20..index * 20 + 20).map(net).collect()
}

pub fn network_set(index: usize) -> Object {
    resource(
        "GlobalNetworkSet",
        "globalnetworksets",
        "",
        &format!("s{index:03}"),
        json!({ "set": format!("s{index}") }),
        json!({ "nets": nets(index) }),
    )
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub id: usize,
    pub node: usize,
    pub slot: usize,
    pub namespace: usize,
    pub version: u32,
}

impl Pod {
    pub(super) fn app(&self) -> &'static str {
        APPS[self.id % APPS.len()]
    }

    /// On its node.
    pub(super) fn interface(&self) -> String {
        format!("cali{:011x}", self.id)
    }

    fn pod_name(&self) -> String {
        format!(
            "{}-{:08x}-{:05}",
            self.app(),
            (self.namespace as u32 + 1).wrapping_mul(2_654_435_761),
            self.id
        )
    }

    fn endpoint_name(&self) -> String {
        let escaped = |part: &str| part.replace('-', "--");
        format!("{}-k8s-{}-eth0", escaped(&node_name(self.node)), escaped(&self.pod_name()))
    }

    pub fn key(&self) -> String {
        format!("{ROOT}/workloadendpoints/{}/{}", namespace_name(self.namespace), self.endpoint_name())
    }

    /// `mark`: when it was due; 0 = from the beginning.
    pub fn object(&self, mark: u64) -> Object {
        let namespace = namespace_name(self.namespace);
        let mut labels = json!({
            "app": self.app(), "pod-template-hash": format!("{:08x}", self.id / 4), "version": format!("v{}", self.version),
            "projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s",
            "projectcalico.org/serviceaccount": "default",
        });
        if mark > 0 {
            labels[MARK] = mark.to_string().into();
        }
        let spec = json!({
            "node": node_name(self.node), "orchestrator": "k8s", "pod": self.pod_name(), "endpoint": "eth0",
            "interfaceName": self.interface(), "serviceAccountName": "default",
            "ipNetworks": [format!("{}/32", address(self.node, self.slot))],
            "profiles": [format!("kns.{namespace}"), format!("ksa.{namespace}.default")],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        });
        resource("WorkloadEndpoint", "workloadendpoints", &namespace, &self.endpoint_name(), labels, spec)
    }
}
