//! What no agent reads wakes no agent: of each kind that is written all the time, a change of an unread field takes no
//! position, and one of a field that is read takes one. docs/projection.md lists both.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value as Json, json};
use syncer_common::backend::{Event, KeyValue};
use syncer_common::kubernetes::{self, Options};
use syncer_common::syncer::SyncEvent;
use typha::metrics::Metrics;
use typha::pipeline::{Intake, Pipeline};
use typha::snapcache::{Cache, Shared};

/// A replica without its I/O: events in, positions out.
struct Replica {
    pipeline: Pipeline,
    cache: Arc<Shared>,
    revision: u64,
}

impl Replica {
    fn new() -> Self {
        let cache = Shared::new(Cache::new("e", ""));
        let mut pipeline = Pipeline::new(cache.clone(), Arc::new(Intake::default()), Metrics::new());
        pipeline.follow(&["etcd"]);
        Replica { pipeline, cache, revision: 0 }
    }

    /// An object was written; how many positions that took.
    fn put(&mut self, path: &str, value: Vec<u8>) -> u64 {
        let before = self.cache.read().head();
        self.revision += 1;
        let object = KeyValue {
            key: path.to_owned(),
            value: Bytes::from(value),
            create_revision: 1,
            mod_revision: self.revision,
        };
        let events = SyncEvent::Events { revision: self.revision, events: vec![Event::Put(object)] };
        self.pipeline.on_event(0, events, Instant::now());
        self.cache.read().head() - before
    }
}

/// How an object gets to the replica.
type Form = fn(&Json) -> (String, Vec<u8>);

/// As an API server says it.
fn of_kubernetes(object: &Json) -> (String, Vec<u8>) {
    let kind = object["kind"].as_str().unwrap();
    let known = kubernetes::watched(&Options::default());
    let resource = known.into_iter().find(|resource| resource.kind == kind).unwrap();
    let read = kubernetes::read(&resource, &Options::default(), object.to_string().as_bytes()).unwrap();
    (read.path, read.value.unwrap())
}

/// As etcd holds it: `path` is its key.
fn of_etcd(object: &Json) -> (String, Vec<u8>) {
    (object["path"].as_str().unwrap().to_owned(), object["value"].to_string().into_bytes())
}

/// `changes` are what is merged into the object (RFC 7386), each by itself.
fn check(form: Form, object: &Json, unread: &[Json], read: &[Json]) {
    let mut replica = Replica::new();
    let mut put = |object: &Json| {
        let (path, value) = form(object);
        replica.put(&path, value)
    };
    assert!(put(object) > 0, "{object} gives no entry");
    for change in unread {
        let mut changed = object.clone();
        merge(&mut changed, change);
        assert_ne!(changed, *object, "{change} changes nothing");
        assert_eq!(put(&changed), 0, "{change} is read by nobody");
        assert_eq!(put(object), 0);
    }
    for change in read {
        let mut changed = object.clone();
        merge(&mut changed, change);
        assert_eq!(put(&changed), 1, "{change} is read");
        assert_eq!(put(object), 1, "and so is its undoing");
    }
}

fn merge(into: &mut Json, change: &Json) {
    match (into, change) {
        (Json::Object(into), Json::Object(change)) => {
            for (name, value) in change {
                if value.is_null() {
                    into.remove(name);
                } else {
                    merge(into.entry(name).or_insert(Json::Null), value);
                }
            }
        }
        (into, change) => *into = change.clone(),
    }
}

/// What every write changes.
fn bookkeeping() -> Json {
    json!({ "metadata": { "resourceVersion": "4711", "generation": 3,
        "managedFields": [{ "manager": "kubelet", "time": "2026-01-01T00:00:09Z" }] } })
}

fn annotated(name: &str, value: &str) -> Json {
    json!({ "metadata": { "annotations": { name: value } } })
}

#[test]
fn heartbeats_of_a_kubernetes_node_are_no_events() {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n1", "uid": "30316465-6365-4463-ad63-3564622d3638", "resourceVersion": "1", "labels": { "rack": "1" },
            "annotations": { "projectcalico.org/IPv4Address": "192.168.1.10/24", "node.alpha.kubernetes.io/ttl": "0" } },
        "spec": { "podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.1.10" }],
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z" }] },
    });
    let unread = [
        bookkeeping(),
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:10Z" }] } }),
        json!({ "status": { "images": [{ "names": ["i"], "sizeBytes": 1 }], "allocatable": { "cpu": "4" }, "volumesInUse": ["v"] } }),
        json!({ "spec": { "unschedulable": true, "taints": [{ "key": "k", "effect": "NoSchedule" }], "podCIDRs": ["10.245.0.0/24"] } }),
        annotated("node.alpha.kubernetes.io/ttl", "15"),
        json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.1.10" }, { "type": "Hostname", "address": "n1" }] } }),
    ];
    let read = [
        json!({ "metadata": { "labels": { "rack": "2" } } }),
        json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.1.11" }] } }),
        annotated("projectcalico.org/ASNumber", "64512"),
    ];
    check(of_kubernetes, &node, &unread, &read);
}

#[test]
fn restarts_and_phases_of_a_remote_pod_are_no_events() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-0", "namespace": "shop", "uid": "30316465-6365-4463-ad63-3564622d3638", "resourceVersion": "1",
            "labels": { "app": "web" }, "annotations": { "cni.projectcalico.org/containerID": "aa" } },
        "spec": { "nodeName": "n1", "serviceAccountName": "robot",
            "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "http", "containerPort": 80 }] }] },
        "status": { "phase": "Running", "podIP": "10.244.1.5", "podIPs": [{ "ip": "10.244.1.5" }],
            "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    let unread = [
        bookkeeping(),
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }], "phase": "Pending" } }),
        json!({ "status": { "containerStatuses": [{ "name": "c", "restartCount": 7 }], "startTime": "2026-01-01T00:00:00Z" } }),
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["f"] } }),
        json!({ "spec": { "priority": 5, "tolerations": [{ "operator": "Exists" }] } }),
        annotated("cni.projectcalico.org/containerID", "bb"),
        annotated("example.org/noise", "1"),
    ];
    let read = [
        json!({ "metadata": { "labels": { "app": "db" } } }),
        json!({ "status": { "podIP": "10.244.1.6", "podIPs": [{ "ip": "10.244.1.6" }] } }),
        json!({ "metadata": { "uid": "41316465-6365-4463-ad63-3564622d3638" } }),
    ];
    check(of_kubernetes, &pod, &unread, &read);
}

#[test]
fn ports_and_affinities_of_a_service_are_no_events() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop", "resourceVersion": "1", "labels": { "a": "b" } },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "externalIPs": ["192.0.2.8", "192.0.2.9"], "externalTrafficPolicy": "Local", "ipFamilies": ["IPv4", "IPv6"],
            "selector": { "app": "web" }, "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.20" }, { "ip": "192.0.2.21" }] } },
    });
    let unread = [
        bookkeeping(),
        json!({ "metadata": { "labels": { "a": "c" }, "annotations": { "x": "y" } } }),
        json!({ "spec": { "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "nodePort": 30443, "targetPort": "web" }] } }),
        json!({ "spec": { "selector": { "app": "other" }, "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
            "healthCheckNodePort": 31000, "allocateLoadBalancerNodePorts": false } }),
        json!({ "spec": { "externalIPs": ["192.0.2.9", "192.0.2.8"], "ipFamilies": ["IPv6", "IPv4"] } }),
        json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.21", "ipMode": "VIP" }, { "ip": "192.0.2.20" }] },
            "conditions": [{ "type": "Ready", "status": "True" }] } }),
    ];
    let read = [
        json!({ "spec": { "clusterIPs": ["10.96.0.7"] } }),
        json!({ "spec": { "externalIPs": ["192.0.2.8"] } }),
        json!({ "spec": { "externalTrafficPolicy": "Cluster" } }),
        json!({ "spec": { "type": "NodePort" } }),
        json!({ "spec": { "loadBalancerIP": "192.0.2.20" } }),
        json!({ "spec": { "ipFamilies": ["IPv4"] } }),
        json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.20" }] } } }),
    ];
    check(of_kubernetes, &service, &unread, &read);
}

#[test]
fn the_end_of_a_pod_is_one_event_of_its_slice_and_not_three() {
    let endpoint = |address: &str, node: &str, conditions: Json| json!({ "addresses": [address], "conditions": conditions, "nodeName": node });
    let ready = || json!({ "ready": true, "serving": true, "terminating": false });
    let (first, second) = (endpoint("10.65.0.2", "n1", ready()), endpoint("10.65.0.3", "n2", ready()));
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "web-x", "namespace": "shop", "resourceVersion": "1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "endpoints": [first, second],
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }, { "name": "dns", "protocol": "UDP", "port": 53 }],
    });
    let endpoints = |first: Json, second: &Json| json!({ "endpoints": [first, second] });
    let first_with = |name: &str, value: Json| {
        let mut other = first.clone();
        other[name] = value;
        endpoints(other, &second)
    };
    let unread = [
        bookkeeping(),
        annotated("endpoints.kubernetes.io/last-change-trigger-time", "2026-01-01T00:00:00Z"),
        first_with("conditions", json!({ "ready": true, "serving": false, "terminating": true })),
        first_with("conditions", json!({})),
        first_with("targetRef", json!({ "kind": "Pod", "resourceVersion": "9" })),
        first_with("zone", json!("a")),
        first_with("hints", json!({ "forZones": [{ "name": "a" }] })),
        endpoints(second.clone(), &first),
        json!({ "ports": [{ "name": "dns", "protocol": "UDP", "port": 53 }, { "name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "http" }] }),
    ];
    let read = [
        first_with("conditions", json!({ "ready": false })),
        first_with("nodeName", json!("n3")),
        first_with("addresses", json!(["10.65.0.9"])),
        json!({ "ports": [{ "name": "http", "protocol": "TCP", "port": 8081 }] }),
        json!({ "metadata": { "labels": { "kubernetes.io/service-name": "shop" } } }),
    ];
    check(of_kubernetes, &slice, &unread, &read);
}

#[test]
fn an_address_taken_by_the_owner_of_a_block_is_no_event() {
    let block = |allocations: Json, attributes: Json| json!({ "value": { "allocations": allocations, "attributes": attributes } });
    let own = || json!({ "handle_id": "a", "secondary": { "node": "n1", "pod": "web-0" } });
    let other = |node: &str| json!({ "handle_id": "b", "secondary": { "node": node } });
    let object = json!({
        "path": "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-30",
        "value": { "cidr": "10.65.0.0/30", "affinity": "host:n1", "sequenceNumber": 7, "unallocated": [2, 3],
            "allocations": [0, 1, null, null], "attributes": [own(), other("n2")] },
    });
    let unread = [
        json!({ "value": { "sequenceNumber": 8, "sequenceNumberForAllocation": { "2": 8 }, "unallocated": [3, 2] } }),
        json!({ "value": { "affinityClaimTime": "2026-01-01T00:00:00Z" } }),
        block(json!([0, 1, 0, null]), json!([own(), other("n2")])),
        block(json!([null, 1, null, null]), json!([own(), other("n2")])),
        block(
            json!([0, 1, null, null]),
            json!([{ "handle_id": "c", "secondary": { "node": "n1", "pod": "web-1" } }, other("n2")]),
        ),
        // Its attributes in another order.
        block(json!([1, 0, null, null]), json!([other("n2"), own()])),
        // Released by its node, and cooling down.
        block(
            json!([2, 1, null, null]),
            json!([own(), other("n2"), { "releasedAt": "2026-01-01T00:00:00Z" }]),
        ),
    ];
    let read = [
        json!({ "value": { "affinity": "host:n3" } }),
        block(json!([0, 1, null, null]), json!([own(), other("n3")])),
        block(json!([0, null, null, null]), json!([own(), other("n2")])),
        block(json!([0, 1, 1, null]), json!([own(), other("n2")])),
    ];
    check(of_etcd, &object, &unread, &read);
}

#[test]
fn status_and_references_of_calicos_own_nodes_and_endpoints_are_no_events() {
    let root = "/calico/resources/v3/projectcalico.org";
    let node = json!({
        "path": format!("{root}/nodes/n1"),
        "value": { "kind": "Node", "apiVersion": "projectcalico.org/v3",
            "metadata": { "name": "n1", "labels": { "rack": "1" }, "resourceVersion": "1" },
            "spec": { "bgp": { "ipv4Address": "172.30.0.21/16" }, "orchRefs": [{ "nodeName": "n1", "orchestrator": "k8s" }] },
            "status": {} },
    });
    let unread = [
        json!({ "value": { "metadata": { "resourceVersion": "2", "annotations": { "a": "b" }, "creationTimestamp": "2026-01-01T00:00:00Z" } } }),
        json!({ "value": { "spec": { "orchRefs": [{ "nodeName": "n1", "orchestrator": "openstack" }], "interfaces": [{ "name": "eth0", "addresses": ["172.30.0.21"] }] } } }),
        json!({ "value": { "status": { "podCIDRs": ["10.244.0.0/24"] } } }),
    ];
    let read = [
        json!({ "value": { "metadata": { "labels": { "rack": "2" } } } }),
        json!({ "value": { "spec": { "bgp": { "asNumber": 64513 } } } }),
    ];
    check(of_etcd, &node, &unread, &read);

    let endpoint = json!({
        "path": format!("{root}/workloadendpoints/shop/n1-k8s-web-eth0"),
        "value": { "kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
            "metadata": { "name": "n1-k8s-web-eth0", "namespace": "shop", "resourceVersion": "1", "labels": { "app": "web" } },
            "spec": { "node": "n1", "orchestrator": "k8s", "pod": "web", "endpoint": "eth0", "interfaceName": "cali1",
                "containerID": "aa", "ipNetworks": ["10.65.0.2/32"], "profiles": ["kns.shop"] } },
    });
    let unread = [
        json!({ "value": { "metadata": { "resourceVersion": "2", "annotations": { "a": "b" } } } }),
        json!({ "value": { "spec": { "containerID": "bb" } } }),
    ];
    let read = [
        json!({ "value": { "metadata": { "labels": { "app": "db" } } } }),
        json!({ "value": { "spec": { "profiles": ["kns.shop", "ksa.shop.robot"] } } }),
        json!({ "value": { "spec": { "ipNetworks": ["10.65.0.3/32"] } } }),
    ];
    check(of_etcd, &endpoint, &unread, &read);
}
