//! `deploy/crds/`: both folders are what `source.yaml` says, and a real API server that has them accepts good
//! objects of every kind and refuses bad ones.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;
use syncer_common::apis::{ApiKind, Resource};
use syncer_common::kubernetes::ApiGroup;
use syncer_common::testing::kubernetes::KubeServer;
use syncer_common::testing::require;
use syncer_common::validate;

const GROUPS: [(ApiGroup, &str, &str, &str); 2] =
    [(ApiGroup::V1, "v1", "crd.projectcalico.org", "v1"), (ApiGroup::V3, "v3", "projectcalico.org", "v3")];
/// Kinds that Kubernetes has in a form of its own.
const NOT_CUSTOM: [&str; 4] = ["LiveMigration", "Node", "Profile", "WorkloadEndpoint"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

fn source() -> Yaml {
    let text = std::fs::read_to_string(folder().join("source.yaml")).unwrap();
    let mut source: Yaml = serde_yaml_ng::from_str(&text).unwrap();
    // Once for each level: what is merged in may itself have something to merge.
    for _ in 0..2 {
        source.apply_merge().unwrap();
    }
    source
}

fn kinds(source: &Yaml) -> impl Iterator<Item = &Yaml> {
    source["kinds"].as_sequence().unwrap().iter()
}

/// Mappings in the order they are to be written.
fn mapping(entries: impl IntoIterator<Item = (&'static str, Option<Yaml>)>) -> Yaml {
    Yaml::Mapping(
        entries.into_iter().filter_map(|(key, value)| value.map(|value| (key.into(), value))).collect(),
    )
}

fn string_type() -> Option<Yaml> {
    Some(mapping([("type", Some("string".into()))]))
}

fn name<'a>(kind: &'a Yaml, version: &str, field: &str) -> &'a str {
    kind.get(version).unwrap_or(kind)[field].as_str().unwrap()
}

fn definition(kind: &Yaml, group: &str, version: &str) -> (String, Yaml) {
    let plural = name(kind, version, "plural");
    let own = name(kind, version, "kind");
    let scope = if kind.get("namespaced").is_some() { "Namespaced" } else { "Cluster" };
    let object = mapping([("type", Some("object".into()))]);
    let needs_spec = kind["spec"].get("required").map(|_| Yaml::Sequence(vec!["spec".into()]));
    let schema = mapping([
        ("description", Some(kind["description"].clone())),
        ("type", Some("object".into())),
        ("required", needs_spec),
        (
            "properties",
            Some(mapping([
                ("apiVersion", string_type()),
                ("kind", string_type()),
                ("metadata", Some(object)),
                ("spec", Some(kind["spec"].clone())),
                ("status", kind.get("status").cloned()),
            ])),
        ),
    ]);
    let names = mapping([
        ("kind", Some(own.into())),
        ("listKind", Some(format!("{own}List").into())),
        ("plural", Some(plural.into())),
        ("singular", Some(own.to_lowercase().into())),
    ]);
    let served = mapping([
        ("name", Some(version.into())),
        ("served", Some(true.into())),
        ("storage", Some(true.into())),
        ("schema", Some(mapping([("openAPIV3Schema", Some(schema))]))),
    ]);
    let definition = mapping([
        ("apiVersion", Some("apiextensions.k8s.io/v1".into())),
        ("kind", Some("CustomResourceDefinition".into())),
        ("metadata", Some(mapping([("name", Some(format!("{plural}.{group}").into()))]))),
        (
            "spec",
            Some(mapping([
                ("group", Some(group.into())),
                ("names", Some(names)),
                ("scope", Some(scope.into())),
                ("versions", Some(Yaml::Sequence(vec![served]))),
            ])),
        ),
    ]);
    (format!("{plural}.yaml"), definition)
}

fn write(value: &Yaml) -> String {
    format!(
        "# Written by syncer-common/tests/deploy_crds.rs from ../source.yaml: change that.\n{}",
        serde_yaml_ng::to_string(value).unwrap()
    )
}

/// What is to be in the folder of a group, by file name.
fn generated(group: &str, version: &str) -> BTreeMap<String, String> {
    let source = source();
    let mut files: BTreeMap<String, String> = kinds(&source)
        .map(|kind| definition(kind, group, version))
        .map(|(file, definition)| (file, write(&definition)))
        .collect();
    let resources = files.keys().map(|file| Yaml::from(file.as_str())).collect();
    let kustomization = mapping([
        ("apiVersion", Some("kustomize.config.k8s.io/v1beta1".into())),
        ("kind", Some("Kustomization".into())),
        ("resources", Some(Yaml::Sequence(resources))),
    ]);
    files.insert("kustomization.yaml".into(), write(&kustomization));
    files
}

#[test]
fn folders_are_in_step_with_the_source() {
    for (_, folder_name, group, version) in GROUPS {
        let folder = folder().join(folder_name);
        let wanted = generated(group, version);
        if std::env::var_os("BULRUSH_REGENERATE").is_some() {
            std::fs::remove_dir_all(&folder).ok();
            std::fs::create_dir_all(&folder).unwrap();
            for (file, content) in &wanted {
                std::fs::write(folder.join(file), content).unwrap();
            }
        }
        let found: BTreeMap<String, String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let content = std::fs::read_to_string(entry.path()).unwrap();
                (entry.file_name().into_string().unwrap(), content)
            })
            .collect();
        for file in wanted.keys().chain(found.keys()) {
            let remedy = "run this test with BULRUSH_REGENERATE=1";
            assert!(wanted.get(file) == found.get(file), "{folder_name}/{file} is out of step: {remedy}");
        }
    }
}

#[test]
fn every_kind_is_defined_as_the_model_has_it() {
    let source = source();
    let defined: Vec<_> = kinds(&source)
        .map(|kind| (name(kind, "v1", "kind"), name(kind, "v1", "plural"), kind.get("namespaced").is_some()))
        .collect();
    let known: Vec<_> = ApiKind::all()
        .filter(|kind| !NOT_CUSTOM.contains(&kind.kind))
        .map(|kind| (kind.kind, kind.plural, kind.namespaced))
        .collect();
    assert_eq!(defined, known);
}

/// Objects of every kind that our own validation accepts too: (kind, name, spec).
fn good() -> Vec<(&'static str, &'static str, Value)> {
    let rules = json!([
        { "action": "Allow", "ipVersion": 4, "protocol": "TCP",
          "source": { "nets": ["10.0.0.0/8", "192.0.2.1"], "selector": "role == 'web'", "namespaceSelector": "all()" },
          "destination": { "ports": [80, "8000:8100", "http-alt"], "notNets": ["fd00::/8"] },
          "http": { "methods": ["GET"], "paths": [{ "exact": "/" }, { "prefix": "/a" }] },
          "metadata": { "annotations": { "why": "web" } } },
        { "action": "Deny", "protocol": "icmp", "icmp": { "type": 8, "code": 0 }, "notProtocol": 132 },
        { "action": "Pass", "protocol": "17", "source": { "serviceAccounts": { "names": ["sa"], "selector": "a == 'b'" } } },
        { "action": "Log", "destination": { "services": { "name": "web", "namespace": "shop" } } },
    ]);
    let policy = json!({ "tier": "default", "order": 10.5, "selector": "all()", "types": ["Ingress", "Egress"],
        "serviceAccountSelector": "has(x)", "ingress": rules, "egress": rules,
        "performanceHints": ["AssumeNeededOnEveryNode"] });
    let with = |base: &Value, more: Value| {
        let mut merged = base.clone();
        merged.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        merged
    };
    let global =
        with(&policy, json!({ "doNotTrack": true, "applyOnForward": true, "namespaceSelector": "global()" }));
    vec![
        (
            "BGPConfiguration",
            "default",
            json!({ "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true,
            "asNumber": "1.10", "listenPort": 179, "serviceClusterIPs": [{ "cidr": "10.96.0.0/12" }],
            "communities": [{ "name": "c", "value": "65000:1:2" }, { "name": "d", "value": "1:2" }],
            "prefixAdvertisements": [{ "cidr": "10.65.0.0/16", "communities": ["c"] }],
            "nodeMeshPassword": { "secretKeyRef": { "name": "bgp", "key": "mesh" } },
            "nodeMeshMaxRestartTime": "2m0s", "ignoredInterfaces": ["eth*"], "someLaterField": { "a": [1] } }),
        ),
        ("BGPConfiguration", "node.n1", json!({ "logSeverityScreen": "" })),
        (
            "BGPFilter",
            "f",
            json!({ "exportV4": [{ "action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In",
            "prefixLength": { "min": 24, "max": 32 }, "source": "RemotePeers", "peerType": "eBGP",
            "communities": { "values": ["65000:1"] }, "operations": [{ "setPriority": { "value": 1 } }] },
            { "action": "Reject" }], "importV6": [{ "action": "Reject", "interface": "eth0" }] }),
        ),
        (
            "BGPPeer",
            "p",
            json!({ "nodeSelector": "all()", "peerIP": "[fd00::1]:1179", "asNumber": 4294967295_u32,
            "password": { "secretKeyRef": { "name": "bgp", "key": "p" } }, "filters": ["f"], "ttlSecurity": 1,
            "keepaliveTime": "60s", "nextHopMode": "Keep", "sourceAddress": "None", "reachableBy": "fd00::2" }),
        ),
        ("BGPPeer", "selected", json!({ "node": "n1", "peerSelector": "has(rr)" })),
        (
            "BlockAffinity",
            "n1-10-65-0-0-26",
            json!({ "cidr": "10.65.0.0/26", "node": "n1", "state": "confirmed",
            "type": "host", "deleted": "false" }),
        ),
        (
            "BlockAffinity",
            "n2-10-65-0-64-26",
            json!({ "cidr": "10.65.0.64/26", "node": "n2", "deleted": true }),
        ),
        (
            "CalicoNodeStatus",
            "n1",
            json!({ "node": "n1", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 10 }),
        ),
        (
            "ClusterInformation",
            "default",
            json!({ "clusterGUID": "abc", "clusterType": "k8s,bgp", "calicoVersion": "v3.32",
            "datastoreReady": true, "variant": "Calico" }),
        ),
        (
            "FelixConfiguration",
            "default",
            json!({ "ipv6Support": true, "iptablesRefreshInterval": "1m30s",
            "iptablesMarkMask": 4294901760_u32, "kubeNodePortRanges": [30000, "31000:32000"],
            "failsafeInboundHostPorts": [{ "protocol": "tcp", "port": 22 }, { "protocol": "UDP", "port": 68, "net": "10.0.0.0/8" }],
            "failsafeOutboundHostPorts": [], "healthTimeoutOverrides": [{ "name": "calc", "timeout": "30s" }],
            "bpfEnabled": false, "someLaterField": { "nested": [true] } }),
        ),
        ("FelixConfiguration", "edge", json!({ "nodeSelector": "zone == 'edge'", "vxlanVNI": 4097 })),
        ("GlobalNetworkPolicy", "g", global.clone()),
        (
            "GlobalNetworkPolicy",
            "platform.before",
            json!({ "tier": "platform", "preDNAT": true, "applyOnForward": true,
            "selector": "has(host)", "types": ["Ingress"] }),
        ),
        ("GlobalNetworkSet", "s", json!({ "nets": ["10.0.0.0/8", "fd00::/8", "192.0.2.7"] })),
        (
            "HostEndpoint",
            "h",
            json!({ "node": "n1", "interfaceName": "*", "expectedIPs": ["192.0.2.1"], "profiles": ["p"],
            "ports": [{ "name": "ssh", "protocol": "TCP", "port": 22 }] }),
        ),
        (
            "IPAMBlock",
            "10-65-0-0-30",
            json!({ "cidr": "10.65.0.0/30", "affinity": "host:n1", "allocations": [0, null, null, null],
            "unallocated": [1, 2, 3], "attributes": [{ "handle_id": "k8s-pod-network.1", "secondary": { "node": "n1" } }],
            "sequenceNumber": 1_700_000_000_000_000_001_i64, "sequenceNumberForAllocation": { "0": 1_700_000_000_000_000_000_i64 },
            "deleted": false, "strictAffinity": false, "affinityClaimTime": "2026-01-02T03:04:05Z" }),
        ),
        (
            "IPAMConfig",
            "default",
            json!({ "strictAffinity": false, "autoAllocateBlocks": true, "maxBlocksPerHost": 20,
            "ipCooldownSeconds": 30 }),
        ),
        (
            "IPAMHandle",
            "k8s-pod-network.1",
            json!({ "handleID": "k8s-pod-network.1", "block": { "10.65.0.0/30": 1 },
            "deleted": false }),
        ),
        (
            "IPPool",
            "v4",
            json!({ "cidr": "10.65.0.0/16", "blockSize": 26, "ipipMode": "CrossSubnet", "vxlanMode": "Never",
            "natOutgoing": true, "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"], "assignmentMode": "Automatic" }),
        ),
        (
            "IPPool",
            "v6",
            json!({ "cidr": "fd00:65::/48", "vxlanMode": "Always", "ipipMode": "", "blockSize": 122 }),
        ),
        ("IPReservation", "r", json!({ "reservedCIDRs": ["10.65.0.0/30", "10.65.1.1"] })),
        (
            "KubeControllersConfiguration",
            "default",
            json!({ "logSeverityScreen": "Info", "controllers": { "node": { "reconcilerPeriod": "5m" } } }),
        ),
        ("NetworkPolicy", "n", policy.clone()),
        ("NetworkPolicy", "platform.allow-dns", json!({ "tier": "platform" })),
        ("NetworkSet", "s", json!({ "nets": ["192.0.2.0/24"] })),
        ("StagedGlobalNetworkPolicy", "g", with(&global, json!({ "stagedAction": "Set" }))),
        (
            "StagedKubernetesNetworkPolicy",
            "k",
            json!({ "stagedAction": "Learn", "podSelector": { "matchLabels": { "a": "b" } },
            "policyTypes": ["Ingress"], "ingress": [{ "ports": [{ "protocol": "TCP", "port": "http" }, { "port": 80, "endPort": 90 }],
            "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
                { "namespaceSelector": { "matchExpressions": [{ "key": "x", "operator": "Exists" }] } }] }] }),
        ),
        ("StagedNetworkPolicy", "n", with(&policy, json!({ "stagedAction": "Delete" }))),
        ("Tier", "platform", json!({ "order": 100, "defaultAction": "Pass" })),
    ]
}

/// (kind, spec, what the refusal names): a wrong type, a wrong value, or something missing.
fn bad() -> Vec<(&'static str, Value, &'static str)> {
    let rule = |rule: Value| json!({ "ingress": [rule] });
    vec![
        ("BGPConfiguration", json!({ "asNumber": "x" }), "spec.asNumber"),
        ("BGPConfiguration", json!({ "communities": [{ "value": "no-ip" }] }), "spec.communities[0].value"),
        ("BGPFilter", json!({ "exportV4": [{ "cidr": "10.0.0.0/8" }] }), "spec.exportV4[0].action"),
        (
            "BGPFilter",
            json!({ "importV4": [{ "action": "Accept", "prefixLength": { "max": 129 } }] }),
            "prefixLength.max",
        ),
        ("BGPPeer", json!({ "node": "n1" }), "give one of peerIP"),
        (
            "BGPPeer",
            json!({ "node": "n1", "nodeSelector": "all()", "peerIP": "192.0.2.1" }),
            "give node or nodeSelector",
        ),
        ("BGPPeer", json!({ "peerIP": "192.0.2.1", "keepaliveTime": "60" }), "spec.keepaliveTime"),
        ("BlockAffinity", json!({ "cidr": "10.65.0.0/26" }), "spec.node"),
        ("BlockAffinity", json!({ "cidr": "10.65.0.0/26", "node": "n", "deleted": "maybe" }), "spec.deleted"),
        ("BlockAffinity", json!({ "cidr": "10.65.0.0/26", "node": "n", "state": "lost" }), "spec.state"),
        ("CalicoNodeStatus", json!({ "node": "n", "classes": ["Weather"] }), "spec.classes[0]"),
        ("ClusterInformation", json!({ "datastoreReady": "yes" }), "spec.datastoreReady"),
        ("FelixConfiguration", json!({ "iptablesRefreshInterval": "often" }), "spec.iptablesRefreshInterval"),
        ("FelixConfiguration", json!({ "vxlanPort": 70000 }), "spec.vxlanPort"),
        (
            "FelixConfiguration",
            json!({ "failsafeInboundHostPorts": [{ "protocol": "tcp" }] }),
            "failsafeInboundHostPorts[0].port",
        ),
        ("GlobalNetworkPolicy", json!({ "doNotTrack": true }), "applyOnForward"),
        (
            "GlobalNetworkPolicy",
            json!({ "doNotTrack": true, "preDNAT": true, "applyOnForward": true }),
            "not both",
        ),
        (
            "GlobalNetworkPolicy",
            json!({ "preDNAT": true, "applyOnForward": true, "types": ["Egress"] }),
            "cannot have egress",
        ),
        ("GlobalNetworkSet", json!({ "nets": ["everywhere"] }), "spec.nets[0]"),
        ("HostEndpoint", json!({ "interfaceName": "eth0" }), "spec.node"),
        ("HostEndpoint", json!({ "node": "n1" }), "give interfaceName or expectedIPs"),
        (
            "HostEndpoint",
            json!({ "node": "n1", "interfaceName": "a-name-much-too-long" }),
            "spec.interfaceName",
        ),
        ("IPAMBlock", json!({ "allocations": [] }), "spec.cidr"),
        ("IPAMBlock", json!({ "cidr": "10.0.0.0/30", "allocations": ["0"] }), "spec.allocations[0]"),
        ("IPAMConfig", json!({ "ipCooldownSeconds": 1201 }), "spec.ipCooldownSeconds"),
        ("IPAMHandle", json!({ "block": { "10.0.0.0/30": "one" } }), "spec.block.10.0.0.0/30"),
        ("IPPool", Value::Null, "spec"),
        ("IPPool", json!({ "natOutgoing": true }), "spec.cidr"),
        ("IPPool", json!({ "cidr": "10.0.0.0" }), "spec.cidr"),
        ("IPPool", json!({ "cidr": "10.0.0.0/16", "ipipMode": "Sometimes" }), "spec.ipipMode"),
        (
            "IPPool",
            json!({ "cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "Always" }),
            "one encapsulation",
        ),
        ("IPReservation", json!({ "reservedCIDRs": "10.0.0.0/8" }), "spec.reservedCIDRs"),
        ("KubeControllersConfiguration", json!([]), "spec"),
        ("NetworkPolicy", rule(json!({ "protocol": "TCP" })), "spec.ingress[0].action"),
        ("NetworkPolicy", rule(json!({ "action": "Accept" })), "spec.ingress[0].action"),
        ("NetworkPolicy", rule(json!({ "action": "Deny", "ipVersion": 5 })), "spec.ingress[0].ipVersion"),
        ("NetworkPolicy", rule(json!({ "action": "Deny", "protocol": "TPC" })), "spec.ingress[0].protocol"),
        ("NetworkPolicy", rule(json!({ "action": "Deny", "protocol": 256 })), "spec.ingress[0].protocol"),
        ("NetworkPolicy", rule(json!({ "action": "Deny", "source": { "ports": [0] } })), "source.ports[0]"),
        ("NetworkPolicy", rule(json!({ "action": "Deny", "icmp": { "type": 255 } })), "icmp.type"),
        (
            "NetworkPolicy",
            rule(json!({ "action": "Deny", "destination": { "services": {} } })),
            "services.name",
        ),
        ("NetworkPolicy", json!({ "types": ["Sideways"] }), "spec.types[0]"),
        ("NetworkPolicy", json!({ "types": ["Ingress", "Ingress"] }), "spec.types"),
        ("NetworkPolicy", json!({ "selector": "a".repeat(1025) }), "spec.selector"),
        ("NetworkPolicy", json!({ "order": "first" }), "spec.order"),
        ("NetworkPolicy", json!({ "applyOnForward": true }), "applyOnForward"),
        ("NetworkSet", json!({ "nets": [1] }), "spec.nets"),
        ("StagedGlobalNetworkPolicy", json!({ "stagedAction": "Try" }), "spec.stagedAction"),
        (
            "StagedKubernetesNetworkPolicy",
            json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "x" } }] }] }),
            "ipBlock.cidr",
        ),
        ("StagedNetworkPolicy", json!({ "egress": [{}] }), "spec.egress[0].action"),
        ("Tier", json!({ "defaultAction": "Allow" }), "spec.defaultAction"),
    ]
}

/// A server that has the definitions of both groups, and clients for a kind in one of them.
struct Subject {
    client: kube::Client,
    source: Yaml,
    group: &'static str,
    version: &'static str,
}

impl Subject {
    /// Server-side apply under strict validation; what the server then has.
    async fn apply(&self, kind: &str, name: &str, spec: &Value) -> kube::Result<DynamicObject> {
        let entry = kinds(&self.source).find(|entry| entry["kind"] == kind).unwrap();
        let own = self::name(entry, self.version, "kind");
        let gvk = GroupVersionKind::gvk(self.group, self.version, own);
        let resource = ApiResource::from_gvk_with_plural(&gvk, self::name(entry, self.version, "plural"));
        let objects: Api<DynamicObject> = match entry.get("namespaced") {
            Some(_) => Api::namespaced_with(self.client.clone(), "default", &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let mut object =
            json!({ "apiVersion": resource.api_version, "kind": own, "metadata": { "name": name } });
        if !spec.is_null() {
            object["spec"] = spec.clone();
        }
        let params = PatchParams::apply("test").force().validation_strict();
        objects.patch(name, &params, &Patch::Apply(&object)).await?;
        objects.get(name).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn good_objects_are_kept_whole_and_bad_ones_refused() {
    let Some(server) = KubeServer::shared().await else { return };
    for (group, folder, group_name, version) in GROUPS {
        server.install_crds(group).await;
        let subject = Subject { client: server.client().await, source: source(), group: group_name, version };
        for (kind, name, spec) in good() {
            let stored = subject.apply(kind, name, &spec).await;
            let stored = stored.unwrap_or_else(|error| panic!("{folder} {kind} {name}: {error}"));
            assert_eq!(stored.data["spec"], spec, "{folder} {kind} {name}: something was lost");
        }
        for (kind, spec, named) in bad() {
            let refused = subject.apply(kind, "bad", &spec).await;
            let reason = match refused {
                Ok(_) => panic!("{folder} {kind} was accepted: {spec}"),
                Err(kube::Error::Api(status)) => status.message,
                Err(error) => panic!("{folder} {kind} {spec}: {error}"),
            };
            assert!(reason.contains(named), "{folder} {kind} {spec}: {reason}");
        }
        let moved = subject.apply("IPPool", "v4", &json!({ "cidr": "10.66.0.0/16", "blockSize": 26 })).await;
        assert!(moved.unwrap_err().to_string().contains("create another pool"), "{folder}");
    }
}

/// Real objects: those of the conversion vectors that our own validation accepts.
fn objects_of_the_vectors() -> Vec<Resource> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    let Ok(vectors) = std::fs::read(folder.join("k8s_conversion.json")) else {
        assert!(!require::required(), "no vectors in {}, and BULRUSH_REQUIRE=1", folder.display());
        println!("SKIPPED: no vectors in {}; set BULRUSH_CONFORMANCE", folder.display());
        return Vec::new();
    };
    let mut found = Vec::new();
    collect(&serde_json::from_slice(&vectors).unwrap(), &mut found);
    found.retain(|resource| {
        !NOT_CUSTOM.contains(&resource.kind.as_str()) && validate::resource(resource).is_empty()
    });
    found
}

fn collect(value: &Value, found: &mut Vec<Resource>) {
    if let Ok(resource) = Resource::from_json(value.clone()) {
        found.push(resource);
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(members) => members.values().for_each(|member| collect(member, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_our_own_validation_accepts_is_accepted_whole() {
    let objects = objects_of_the_vectors();
    if objects.is_empty() {
        return;
    }
    assert!(objects.len() > 50, "{} objects", objects.len());
    let Some(server) = KubeServer::shared().await else { return };
    for (group, folder, group_name, version) in GROUPS {
        server.install_crds(group).await;
        let subject = Subject { client: server.client().await, source: source(), group: group_name, version };
        for (index, object) in objects.iter().enumerate() {
            // A new name for each: a pool's CIDR, for one, cannot change.
            let stored = subject.apply(&object.kind, &format!("vector-{index}"), &object.spec).await;
            let stored = stored.unwrap_or_else(|error| panic!("{folder} {object:?}: {error}"));
            assert_eq!(stored.data["spec"], object.spec, "{folder} {object:?}: something was lost");
        }
    }
}

#[test]
fn our_own_validation_accepts_the_good_objects() {
    for (kind, name, spec) in good() {
        let mut object =
            json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": { "name": name } });
        object["spec"] = spec;
        let resource = Resource::from_json(object).unwrap();
        assert_eq!(validate::resource(&resource), [], "{kind} {name}");
    }
}

#[test]
fn every_kind_has_good_and_bad_examples() {
    for kind in kinds(&source()) {
        let kind = kind["kind"].as_str().unwrap();
        assert!(good().iter().any(|(own, ..)| *own == kind), "{kind} has no good example");
        assert!(bad().iter().any(|(own, ..)| *own == kind), "{kind} has no bad example");
    }
}
