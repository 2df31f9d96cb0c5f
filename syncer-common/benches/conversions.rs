//! Conversions per second, from what a datastore holds to what agents get, and the memory of 100,000 endpoints:
//! `cargo bench --workspace --bench conversions`. `max alloc` of `endpoints` is what they hold together.

use std::collections::BTreeMap;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use prost::Message;
use proto::model as v1;
use serde_json::{Value as Json, json};
use syncer_common::kubernetes::{self, Options};
use syncer_common::model::{Key, Value};
use syncer_common::processors::{Converted, Processors};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const ENDPOINTS: usize = 100_000;
const ROOT: &str = "/calico/resources/v3/projectcalico.org";

fn main() {
    divan::main();
}

fn resource(kind: &str, namespace: &str, name: &str, spec: Json) -> Json {
    json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": kind,
        "metadata": {
            "name": name, "namespace": namespace, "uid": "8d2f9a51-7c11-4a43-9f0f-2d0d4a3c0001",
            "creationTimestamp": "2025-01-02T03:04:05Z",
            "labels": { "app": "web", "pod-template-hash": "5d4f8c7b9", "projectcalico.org/namespace": namespace,
                        "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "web" },
        },
        "spec": spec,
    })
}

/// An endpoint of a cluster of 1,000 nodes.
fn endpoint(index: usize) -> (String, Vec<u8>) {
    let (node, pod) = (format!("node{}", index % 1_000), format!("web-5d4f8c7b9-{index:06}"));
    let namespace = format!("shop-{}", index % 200);
    let name = format!("{node}-k8s-{}-eth0", pod.replace('-', "--"));
    let spec = json!({
        "node": node, "orchestrator": "k8s", "pod": pod, "endpoint": "eth0", "containerID": format!("{index:064x}"),
        "interfaceName": format!("cali{index:011x}"), "mac": "ee:ee:ee:ee:ee:ee", "serviceAccountName": "web",
        "ipNetworks": [format!("10.{}.{}.{}/32", 64 + (index >> 16), index >> 8 & 255, index & 255)],
        "profiles": [format!("kns.{namespace}"), format!("ksa.{namespace}.web")],
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
    });
    let value = resource("WorkloadEndpoint", &namespace, &name, spec);
    (format!("{ROOT}/workloadendpoints/{namespace}/{name}"), value.to_string().into_bytes())
}

fn policy() -> (String, Vec<u8>) {
    let rule = |selector: &str| {
        json!({ "action": "Allow", "protocol": "TCP", "source": { "selector": selector, "namespaceSelector": "env == 'prod'" },
                "destination": { "ports": [80, "8000:8010"] } })
    };
    let rules: Vec<Json> =
        (0..5).map(|n| rule(&format!("role in {{'r{n}', 'front'}} && has(app)"))).collect();
    let spec = json!({ "tier": "default", "order": 100, "selector": "app == 'web' && !has(quarantine)",
                       "types": ["Ingress", "Egress"], "ingress": rules, "egress": [{ "action": "Allow" }] });
    let value = resource("NetworkPolicy", "shop", "default.web", spec);
    (format!("{ROOT}/networkpolicies/shop/default.web"), value.to_string().into_bytes())
}

/// A full block: 64 addresses, each with its attributes.
fn block() -> (String, Vec<u8>) {
    let attributes: Vec<Json> = (0..64)
        .map(|n| {
            json!({ "handle_id": format!("k8s-pod-network.{n:064x}"),
                    "secondary": { "namespace": "shop", "node": "node1", "pod": format!("web-5d4f8c7b9-{n:05}") } })
        })
        .collect();
    let allocations: Vec<usize> = (0..64).collect();
    let value = json!({ "cidr": "10.65.0.0/26", "affinity": "host:node1", "allocations": allocations,
                        "unallocated": [], "attributes": attributes, "deleted": false });
    ("/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-26".to_owned(), value.to_string().into_bytes())
}

fn pod() -> Vec<u8> {
    let container = json!({
        "name": "web", "image": "registry.example/web:1.2.3", "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
        "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets", "readOnly": true }],
    });
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": "2025-01-02T03:04:05Z" });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-5d4f8c7b9-abcde", "namespace": "shop", "uid": "8d2f9a51-7c11-4a43-9f0f-2d0d4a3c0001",
                      "resourceVersion": "123456", "creationTimestamp": "2025-01-02T03:04:05Z",
                      "labels": { "app": "web", "pod-template-hash": "5d4f8c7b9" },
                      "annotations": { "cni.projectcalico.org/containerID": "c0ffee", "cni.projectcalico.org/podIP": "10.65.0.2/32" } },
        "spec": { "nodeName": "node1", "serviceAccountName": "web", "containers": [container],
                  "volumes": [{ "name": "token", "projected": { "sources": [] } }] },
        "status": { "phase": "Running", "podIP": "10.65.0.2", "podIPs": [{ "ip": "10.65.0.2" }], "hostIP": "192.0.2.1",
                    "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")] },
    })
    .to_string()
    .into_bytes()
}

/// The entries of an object that converts as it should.
fn converted(processors: &mut Processors, path: &str, value: &[u8]) -> Converted {
    let converted = processors.put(path, value);
    assert!(converted.error.is_none() && !converted.updates.is_empty(), "{path}: {:?}", converted.error);
    converted
}

fn stored(bencher: Bencher, (path, value): (String, Vec<u8>)) {
    let mut processors = Processors::new();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| converted(&mut processors, &path, &value));
}

#[divan::bench]
fn workload_endpoint(bencher: Bencher) {
    stored(bencher, endpoint(7));
}

#[divan::bench]
fn network_policy(bencher: Bencher) {
    stored(bencher, policy());
}

#[divan::bench]
fn ipam_block(bencher: Bencher) {
    stored(bencher, block());
}

#[divan::bench]
fn kubernetes_pod(bencher: Bencher) {
    let (options, pod) = (Options::default(), pod());
    let pods = kubernetes::watched(&options).into_iter().find(|resource| resource.plural == "pods");
    let pods = pods.expect("pods are watched");
    let mut processors = Processors::new();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        let read = kubernetes::read(&pods, &options, &pod).expect("the pod reads");
        converted(&mut processors, &read.path, &read.value.expect("the pod has an endpoint"))
    });
}

/// As typed values, the way a calculation holds them.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn endpoints_100k_typed(bencher: Bencher) {
    let mut processors = Processors::new();
    bencher.counter(ItemsCount::new(ENDPOINTS)).bench_local(|| {
        let mut held: BTreeMap<Key, Value> = BTreeMap::new();
        for index in 0..ENDPOINTS {
            let (path, value) = endpoint(index);
            let updates = converted(&mut processors, &path, &value).updates;
            held.extend(updates.into_iter().filter_map(|update| Some((update.key, update.value.ok()?))));
        }
        assert_eq!(held.len(), ENDPOINTS);
        held
    });
}

/// As paths and encoded values, the way a cache holds them.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn endpoints_100k_encoded(bencher: Bencher) {
    let mut processors = Processors::new();
    bencher.counter(ItemsCount::new(ENDPOINTS)).bench_local(|| {
        let mut held: BTreeMap<Box<str>, Box<[u8]>> = BTreeMap::new();
        for index in 0..ENDPOINTS {
            let (path, value) = endpoint(index);
            for update in converted(&mut processors, &path, &value).updates {
                let path = update.key.path().expect("an entry has a path").into_boxed_str();
                let value = v1::Value { kind: update.value.ok() };
                held.insert(path, value.encode_to_vec().into_boxed_slice());
            }
        }
        assert_eq!(held.len(), ENDPOINTS);
        held
    });
}
