//! Kubernetes' objects on their way to agents, and back: what becomes of each kind, what changes nothing, and what
//! holds of whatever an API server might send.

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
use syncer_common::apis::{ApiKind, Resource};
use syncer_common::kubernetes::{self, ApiGroup, ApiResource, Located, Options, Read};
use syncer_common::model::{BlockAffinityKey, DeletionReason, Key, Update, Value};
use syncer_common::processors::{Converted, Processors};
use syncer_common::selector::Selector;

const UID: &str = "30316465-6365-4463-ad63-3564622d3638";

fn options(group: ApiGroup) -> Options {
    Options { group, ..Options::default() }
}

fn resource(kind: &str) -> ApiResource {
    let all = kubernetes::resources_under("/calico/", &Options::default());
    all.into_iter()
        .find(|known| known.kind == kind && known.group != "crd.projectcalico.org")
        .expect("a kind")
}

fn read(kind: &str, object: &Json) -> Read {
    kubernetes::read(&resource(kind), &Options::default(), object.to_string().as_bytes()).expect("reads")
}

/// The object as agents get it.
fn converted(kind: &str, object: &Json) -> Converted {
    let read = read(kind, object);
    assert_eq!(read.findings, []);
    Processors::new().put(&read.path, &read.value.expect("takes part"))
}

fn updates(kind: &str, object: &Json) -> Vec<Update> {
    let Converted { updates, error } = converted(kind, object);
    assert_eq!(error, None);
    updates
}

fn live<'a>(updates: &'a [Update], path: &str) -> &'a Value {
    let update = updates.iter().find(|update| update.key.path().as_deref() == Ok(path));
    update.unwrap_or_else(|| panic!("no {path} in {updates:?}")).live().expect("a value")
}

fn pod() -> Json {
    json!({
        "metadata": {
            "name": "web-0", "namespace": "prod", "uid": UID, "resourceVersion": "7",
            "labels": { "app": "web", "pcns.forged": "yes" },
            "managedFields": [{ "manager": "kubelet", "time": "2026-01-01T00:00:00Z" }],
        },
        "spec": {
            "nodeName": "node-1", "serviceAccountName": "robot", "priority": 0,
            "containers": [{ "name": "c", "image": "i", "ports": [{ "name": "http", "containerPort": 80 }] }],
        },
        "status": {
            "phase": "Running", "podIP": "10.244.1.5", "podIPs": [{ "ip": "10.244.1.5" }, { "ip": "fd00::5" }],
            "conditions": [{ "type": "Ready", "lastProbeTime": null, "status": "True" }],
        },
    })
}

fn node() -> Json {
    json!({
        "metadata": {
            "name": "node-1", "uid": UID, "resourceVersion": "8", "labels": { "rack": "1" },
            "annotations": {
                "projectcalico.org/IPv4Address": "192.168.1.10/24",
                "projectcalico.org/IPv4IPIPTunnelAddr": "10.244.0.1",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": { "podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "192.168.1.10" }],
            "conditions": [{ "type": "Ready", "lastHeartbeatTime": "2026-01-01T00:00:00Z" }],
            "images": [{ "names": ["i"], "sizeBytes": 1 }],
        },
    })
}

fn migration(phase: &str, source_pod: Option<&str>) -> Json {
    let state = source_pod.map(|pod| json!({ "sourcePod": pod, "targetNode": "node-2" }));
    json!({
        "metadata": { "name": "move", "namespace": "vms", "uid": UID, "resourceVersion": "9", "labels": { "by": "drain" } },
        "spec": { "vmiName": "db" },
        "status": { "phase": phase, "migrationState": state },
    })
}

#[test]
fn migration_of_a_machine_names_both_ends() {
    let kind = "VirtualMachineInstanceMigration";
    let path = "/calico/resources/v3/projectcalico.org/livemigrations/vms/move";
    let migrated = |object| match live(&updates(kind, &object), path) {
        Value::LiveMigration(migration) => migration.clone(),
        other => panic!("{other:?}"),
    };
    let early = migrated(migration("Scheduling", None));
    assert_eq!(early.source, None);
    let selector = format!("vmi.kubevirt.io/id == \"db\" && kubevirt.io/migrationJobUID == \"{UID}\"");
    let canonical = |text: &str| Selector::parse(text).unwrap().canonical().to_owned();
    assert_eq!(canonical(&early.target_selector), canonical(&selector));
    for phase in ["Scheduled", "PreparingTarget", "TargetReady", "Running", "Failed"] {
        let source = migrated(migration(phase, Some("virt-launcher-db-x"))).source.unwrap();
        let (orchestrator, workload) = (source.orchestrator_id.as_str(), source.workload_id.as_str());
        assert_eq!((orchestrator, workload, &*source.endpoint_id), ("k8s", "vms/virt-launcher-db-x", ""));
    }
    let mut without_uid = migration("Running", None);
    without_uid["metadata"]["uid"] = "".into();
    let mut without_machine = migration("Running", None);
    without_machine["spec"] = json!({});
    let others = ["", "Pending", "Succeeded", "Other"].map(|phase| migration(phase, None));
    for object in others.into_iter().chain([without_uid, without_machine]) {
        let read = read(kind, &object);
        assert_eq!((read.path.as_str(), read.value), (path, None), "{object}");
    }
    let located = kubernetes::locate(path, &Options::default()).unwrap();
    assert_eq!((located.resource.kind, located.namespace.as_deref()), (kind, Some("vms")));
    let error = kubernetes::write(path, b"{}", &Options::default()).unwrap_err();
    assert!(error.reason.contains("VirtualMachineInstanceMigration move"), "{error:?}");
}

#[test]
fn pod_becomes_a_workload_endpoint() {
    let updates = updates("Pod", &pod());
    let path = "/calico/v1/host/node-1/workload/k8s/prod%2fweb-0/endpoint/eth0";
    let Value::WorkloadEndpoint(endpoint) = live(&updates, path) else { panic!("{updates:?}") };
    assert_eq!(endpoint.ipv4_nets, ["10.244.1.5/32"]);
    assert_eq!(endpoint.ipv6_nets, ["fd00::5/128"]);
    assert_eq!(endpoint.profile_ids, ["kns.prod", "ksa.prod.robot"]);
    assert_eq!(endpoint.name, kubernetes::interface_name("cali", "prod", "web-0"));
    assert_eq!((endpoint.ports[0].name.as_str(), endpoint.ports[0].port), ("http", 80));
    let labels: Vec<_> = endpoint.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    assert_eq!(
        labels,
        [
            "app=web",
            "projectcalico.org/namespace=prod",
            "projectcalico.org/orchestrator=k8s",
            "projectcalico.org/serviceaccount=robot",
        ]
    );
}

#[test]
fn pod_that_ended_gives_its_endpoint_up() {
    for (pointer, value) in [
        ("/status/phase", json!("Succeeded")),
        ("/status/phase", json!("Failed")),
        (
            "/metadata",
            json!({
                "name": "web-0", "namespace": "prod", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": { "cni.projectcalico.org/podIP": "" },
            }),
        ),
    ] {
        let mut ended = pod();
        *ended.pointer_mut(pointer).unwrap() = value;
        let updates = updates("Pod", &ended);
        assert_eq!(updates.len(), 1, "{pointer}");
        assert_eq!(updates[0].value, Err(DeletionReason::Deleted), "{pointer}");
        assert!(matches!(updates[0].key, Key::WorkloadEndpoint(_)));
    }
}

#[test]
fn pod_of_the_hosts_network_and_pod_without_a_node_are_none_of_ours() {
    let mut on_host = pod();
    on_host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(read("Pod", &on_host).value, None);
    assert_eq!(read("Pod", &on_host).path, read("Pod", &pod()).path);
    let mut pending = pod();
    pending["spec"]["nodeName"] = Json::Null;
    assert_eq!(read("Pod", &pending).value, None);
    // Nothing is there to be deleted either.
    let deleted = Processors::new().delete(&read("Pod", &pending).path);
    assert_eq!((deleted.updates, deleted.error), (vec![], None));
}

#[test]
fn pod_with_a_bad_limit_works_and_is_reported() {
    let mut limited = pod();
    limited["metadata"]["annotations"] = json!({ "qos.projectcalico.org/ingressBandwidth": "fast" });
    let read = read("Pod", &limited);
    assert_eq!(
        read.findings[0].to_string(),
        "metadata.annotations[qos.projectcalico.org/ingressBandwidth]: \"fast\" is not a quantity"
    );
    let updates = Processors::new().put(&read.path, &read.value.unwrap()).updates;
    assert!(updates[0].live().is_some());
}

#[test]
fn namespace_and_service_account_become_profiles() {
    let namespace = json!({ "metadata": { "name": "prod", "uid": UID, "labels": { "team": "blue" } } });
    let updates = updates("Namespace", &namespace);
    let Value::ProfileLabels(labels) = live(&updates, "/calico/v1/policy/profile/kns.prod/labels") else {
        panic!("{updates:?}")
    };
    assert_eq!(labels.labels["pcns.team"], "blue");
    assert_eq!(labels.labels["pcns.projectcalico.org/name"], "prod");
    let Value::ProfileRules(rules) = live(&updates, "/calico/v1/policy/profile/kns.prod/rules") else {
        panic!("{updates:?}")
    };
    assert_eq!((rules.inbound_rules[0].action.as_str(), rules.outbound_rules.len()), ("allow", 1));

    let account =
        json!({ "metadata": { "name": "r.1", "namespace": "prod", "uid": UID, "labels": { "a": "b" } } });
    let updates = self::updates("ServiceAccount", &account);
    let Value::ProfileLabels(labels) = live(&updates, "/calico/v1/policy/profile/ksa.prod.r.1/labels") else {
        panic!("{updates:?}")
    };
    assert_eq!(labels.labels["pcsa.a"], "b");
    let Value::ProfileRules(rules) = live(&updates, "/calico/v1/policy/profile/ksa.prod.r.1/rules") else {
        panic!("{updates:?}")
    };
    assert_eq!((rules.inbound_rules.len(), rules.outbound_rules.len()), (0, 0));
}

#[test]
fn node_keeps_what_calico_noted() {
    let updates = updates("Node", &node());
    let tunnel = live(&updates, "/calico/v1/host/node-1/config/IpInIpTunnelAddr");
    assert_eq!(*tunnel, Value::Config("10.244.0.1".into()));
    let node = live(&updates, "/calico/resources/v3/projectcalico.org/nodes/node-1");
    let Value::Node(node) = node else { panic!("{updates:?}") };
    assert_eq!(node.labels["rack"], "1");
    assert_eq!(node.bgp.as_ref().unwrap().ipv4_address, "192.168.1.10/24");
    let addresses: Vec<_> =
        node.addresses.iter().map(|own| (own.address.as_str(), own.r#type.as_str())).collect();
    assert_eq!(addresses, [("192.168.1.10/24", "CalicoNodeIP"), ("192.168.1.10", "InternalIP")]);
}

#[test]
fn network_policy_becomes_a_policy() {
    let object = json!({
        "metadata": { "name": "web", "namespace": "prod", "uid": UID },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "ports": [{ "port": 80 }], "from": [{ "namespaceSelector": {} }] }],
        },
    });
    let updates = updates("NetworkPolicy", &object);
    let Value::Policy(policy) = live(&updates, "/calico/v1/policy/KubernetesNetworkPolicy/prod/web") else {
        panic!("{updates:?}")
    };
    assert_eq!((policy.tier.as_str(), policy.order), ("default", Some(1000.0)));
    let pods = r#"projectcalico.org/orchestrator == "k8s""#;
    let selected = format!(r#"(({pods} && app == "web") && projectcalico.org/namespace == "prod")"#);
    assert_eq!(policy.selector, selected);
    let source = policy.inbound_rules[0].src.as_ref().unwrap();
    assert_eq!(source.selector, format!("(has(projectcalico.org/namespace) && {pods})"));
    assert_eq!(policy.types, ["ingress"]);
}

#[test]
fn cluster_network_policy_becomes_a_policy_and_a_named_port_one_of_every_protocol() {
    let object = json!({
        "metadata": { "name": "guard", "uid": UID },
        "spec": {
            "tier": "Admin", "priority": 7, "subject": { "namespaces": {} },
            "ingress": [{
                "name": "r", "action": "Deny", "from": [{ "namespaces": {} }],
                "protocols": [{ "destinationNamedPort": "http" }],
            }],
            "egress": [{ "action": "Pass", "to": [{ "networks": ["10.0.0.0/8"] }] }],
        },
    });
    let updates = updates("ClusterNetworkPolicy", &object);
    let Value::Policy(policy) = live(&updates, "/calico/v1/policy/KubernetesClusterNetworkPolicy//guard")
    else {
        panic!("{updates:?}")
    };
    assert_eq!((policy.tier.as_str(), policy.order), ("kube-admin", Some(7.0)));
    let protocols: Vec<String> =
        policy.inbound_rules.iter().map(|rule| format!("{:?} {}", rule.protocol, rule.action)).collect();
    assert_eq!(protocols.len(), 3, "{protocols:?}");
    for (rule, name) in protocols.iter().zip(["tcp", "udp", "sctp"]) {
        assert!(rule.contains(name) && rule.ends_with("deny"), "{rule}");
    }
    assert_eq!(policy.outbound_rules[0].action, "next-tier");
    assert_eq!(policy.outbound_rules[0].dst.as_ref().unwrap().nets, ["10.0.0.0/8"]);
}

#[test]
fn service_and_its_slices_travel() {
    let service = json!({
        "metadata": { "name": "web", "namespace": "prod", "uid": UID },
        "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "ClusterIP",
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "http" }] },
    });
    let path = "/calico/resources/v3/projectcalico.org/kubernetesservice/prod/web";
    let updates = updates("Service", &service);
    let Value::Service(service) = live(&updates, path) else { panic!("{updates:?}") };
    assert_eq!(service.cluster_ips, ["10.96.0.1"]);
    let slice = json!({
        "metadata": { "name": "web-1", "namespace": "prod", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4", "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        "endpoints": [{ "addresses": ["10.244.1.5"], "conditions": { "ready": true }, "nodeName": "node-1" }],
    });
    let path = "/calico/resources/v3/projectcalico.org/kubernetesendpointslices/prod/web-1";
    let updates = self::updates("EndpointSlice", &slice);
    let Value::EndpointSlice(slice) = live(&updates, path) else { panic!("{updates:?}") };
    assert_eq!(slice.endpoints[0].addresses, ["10.244.1.5"]);
}

#[test]
fn staged_kubernetes_policy_carries_its_rules() {
    let value = json!({ "metadata": {}, "spec": {
        "stagedAction": "Set", "podSelector": {},
        "ingress": [{ "from": [{ "ipBlock": { "cidr": "bogus" } }, { "podSelector": {} }] }],
    }});
    let path = "/calico/resources/v3/projectcalico.org/stagedkubernetesnetworkpolicies/prod/s";
    let Converted { updates, error } = Processors::new().put(path, value.to_string().as_bytes());
    assert_eq!(error.unwrap().field, "spec.ingress[0].from[0].ipBlock.cidr");
    let Some(Value::Policy(policy)) = updates[0].live() else { panic!("{updates:?}") };
    assert_eq!((policy.inbound_rules.len(), policy.staged_action.as_str()), (1, "Set"));
}

/// What changes all the time, and says nothing to agents, is no part of a value.
#[test]
fn heartbeats_change_no_value() {
    let custom = json!({
        "metadata": { "name": "p", "resourceVersion": "1", "generation": 1, "uid": UID },
        "spec": { "cidr": "10.0.0.0/16" },
    });
    let service = json!({
        "metadata": { "name": "s", "namespace": "n", "resourceVersion": "1" }, "spec": { "clusterIP": "10.96.0.1" },
    });
    let pool =
        kubernetes::watched(&Options::default()).into_iter().find(|known| known.kind == "IPPool").unwrap();
    for (resource, object) in
        [(resource("Pod"), pod()), (resource("Node"), node()), (pool, custom), (resource("Service"), service)]
    {
        let value = |object: &Json| {
            kubernetes::read(&resource, &Options::default(), object.to_string().as_bytes()).unwrap().value
        };
        let mut later = object.clone();
        later["metadata"]["resourceVersion"] = json!("99");
        later["metadata"]["managedFields"] =
            json!([{ "manager": "kubelet", "time": "2026-01-01T00:00:10Z" }]);
        if let Some(conditions) = later.pointer_mut("/status/conditions/0") {
            conditions["lastHeartbeatTime"] = json!("2026-01-01T00:00:10Z");
            later["status"]["containerStatuses"] = json!([{ "restartCount": 1 }]);
            later["status"]["images"] = json!([]);
        }
        assert_ne!(object, later);
        assert_eq!(value(&object), value(&later), "{}", resource.kind);
    }
}

#[test]
fn resources_are_found_by_their_part_of_the_key_space() {
    let under = |prefix: &str, group| -> Vec<&str> {
        kubernetes::resources_under(prefix, &options(group)).iter().map(|known| known.plural).collect()
    };
    let root = "/calico/resources/v3/projectcalico.org";
    assert_eq!(under(&format!("{root}/ippools/"), ApiGroup::V1), ["ippools"]);
    assert_eq!(under(&format!("{root}/ippools/default"), ApiGroup::V3), ["ippools"]);
    assert_eq!(under(&format!("{root}/workloadendpoints/prod/"), ApiGroup::V1), ["pods"]);
    assert_eq!(under(&format!("{root}/profiles/"), ApiGroup::V1), ["namespaces", "serviceaccounts"]);
    assert_eq!(under(&format!("{root}/profiles/kns.prod"), ApiGroup::V1), ["namespaces"]);
    assert_eq!(under(&format!("{root}/networkpolicies/"), ApiGroup::V1), ["networkpolicies"]);
    assert_eq!(under("/calico/ipam/v2/host/n1/", ApiGroup::V1), ["blockaffinities"]);
    assert_eq!(under("/calico/ipam/v2/config", ApiGroup::V1), ["ipamconfigs"]);
    assert_eq!(under("/calico/ipam/v2/config", ApiGroup::V3), ["ipamconfigurations"]);
    assert_eq!(under("/calico/v1/", ApiGroup::V1), [""; 0]);
    // Everything is somewhere, and everything that is watched can be read.
    let all = kubernetes::resources_under("/calico/", &Options::default());
    assert!(kubernetes::watched(&Options::default()).iter().all(|watched| all.contains(watched)));
    // Blocks come either from the allocator or from the nodes.
    let pod_cidrs = Options { use_pod_cidr: true, ..Options::default() };
    assert!(!kubernetes::watched(&pod_cidrs).iter().any(|known| known.kind == "IPAMBlock"));
}

#[test]
fn what_kubernetes_keeps_itself_is_changed_there() {
    let root = "/calico/resources/v3/projectcalico.org";
    for (path, says) in [
        (format!("{root}/workloadendpoints/prod/n1-k8s-web-eth0"), "comes from the Pod web: change that"),
        (format!("{root}/profiles/kns.prod"), "comes from the Namespace prod: change that"),
        (format!("{root}/nodes/n1"), "comes from the Node n1: change that"),
        (format!("{root}/profiles/own"), "holds nothing that Kubernetes keeps"),
        (format!("{root}/workloadendpoints/prod/n1-cni-x-eth0"), "holds nothing that Kubernetes keeps"),
        ("/calico/v1/Ready".to_owned(), "holds nothing that Kubernetes keeps"),
    ] {
        let error = kubernetes::write(&path, b"{}", &Options::default()).unwrap_err();
        assert!(error.reason.contains(says), "{path}: {error}");
    }
}

/// A wrapped policy of an older release: the custom resource has the name with the tier in front.
#[test]
fn names_of_old_policies_lose_the_tier() {
    let resource = kubernetes::resources_under(
        "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/",
        &options(ApiGroup::V1),
    );
    let name = |group, annotation: Option<&str>| {
        let mut object = json!({ "metadata": { "name": "default.web" }, "spec": {} });
        if let Some(annotation) = annotation {
            object["metadata"]["annotations"] = json!({ "projectcalico.org/metadata": annotation });
        }
        let read = kubernetes::read(&resource[0], &options(group), object.to_string().as_bytes()).unwrap();
        assert!(read.path.ends_with("/default.web"), "the key has the object's name");
        Resource::from_stored(&read.path, &read.value.unwrap()).unwrap().metadata.name
    };
    assert_eq!(name(ApiGroup::V1, None), "web");
    assert_eq!(name(ApiGroup::V1, Some(r#"{"creationTimestamp":null}"#)), "web");
    assert_eq!(name(ApiGroup::V1, Some(r#"{"name":"default.web"}"#)), "default.web");
    assert_eq!(name(ApiGroup::V3, None), "default.web");
}

#[test]
fn wrapping_resource_shows_only_what_others_read() {
    let path = "/calico/resources/v3/projectcalico.org/networkpolicies/prod/web";
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {
            "name": "web", "namespace": "prod", "uid": "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c",
            "labels": { "projectcalico.org/tier": "default", "own": "x" },
            "annotations": { "note": "y", "projectcalico.org/metadata": "{\"name\":\"web\"}" },
            "ownerReferences": [
                { "apiVersion": "projectcalico.org/v3", "kind": "Tier", "name": "t", "uid": UID },
                { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": UID },
            ],
        },
        "spec": { "selector": "all()" },
    });
    let written = kubernetes::write(path, value.to_string().as_bytes(), &options(ApiGroup::V1)).unwrap();
    assert_eq!(written.resource.api_version(), "crd.projectcalico.org/v1");
    assert_eq!((written.namespace.as_deref(), written.name.as_str()), (Some("prod"), "web"));
    let metadata = &written.object["metadata"];
    assert_eq!(metadata["uid"], UID);
    assert_eq!(metadata["labels"], json!({ "projectcalico.org/tier": "default" }));
    let owners = json!([
        {
            "apiVersion": "crd.projectcalico.org/v1", "kind": "Tier", "name": "t",
            "uid": "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c",
        },
        { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": UID },
    ]);
    assert_eq!(metadata["ownerReferences"], owners);
    let annotations = metadata["annotations"].as_object().unwrap();
    assert_eq!(annotations.len(), 1);
    let hidden: Json =
        serde_json::from_str(annotations["projectcalico.org/metadata"].as_str().unwrap()).unwrap();
    assert_eq!(hidden["name"], "web");
    assert_eq!(hidden["labels"], value["metadata"]["labels"]);
    assert_eq!(hidden["annotations"], json!({ "note": "y" }));
}

#[test]
fn affinities_are_labelled_for_selection() {
    let key = Key::BlockAffinity(BlockAffinityKey {
        host: "node-a".into(),
        cidr: "10.65.0.0/26".parse().unwrap(),
        affinity_type: "host".into(),
    });
    let written =
        kubernetes::write(&key.path().unwrap(), br#"{"state":"confirmed"}"#, &Options::default()).unwrap();
    assert_eq!(written.name, "node-a-10-65-0-0-26");
    assert_eq!(
        written.object["metadata"]["labels"],
        json!({
            "projectcalico.org/hostname-hash": "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA",
            "projectcalico.org/affinity-type": "host",
            "projectcalico.org/ip-version": "4",
        })
    );
    let spec = json!({
        "cidr": "10.65.0.0/26", "node": "node-a", "type": "host", "state": "confirmed", "deleted": "false",
    });
    assert_eq!(written.object["spec"], spec);
}

// === Properties ===

fn group() -> impl Strategy<Value = ApiGroup> {
    prop_oneof![Just(ApiGroup::V1), Just(ApiGroup::V3)]
}

/// Names as the API server takes them.
fn dns_name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn uid() -> impl Strategy<Value = String> {
    "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<i32>().prop_map(|number| json!(f64::from(number) / 4.0)),
        "\\PC{0,12}".prop_map(Json::from),
        prop::sample::select(vec![
            "10.0.0.0/8",
            "fd00::1",
            "80:90",
            "TCP",
            "In",
            "Deny",
            "all()",
            "{\"name\":1}",
            "[]"
        ])
        .prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-zA-Z/.]{1,8}", inner, 0..4)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

fn labels() -> impl Strategy<Value = Map<String, Json>> {
    let name =
        prop_oneof!["[a-z]{1,6}", "projectcalico\\.org/[a-z]{1,6}", "x\\.operator\\.tigera\\.io/[a-z]{1,4}"];
    prop::collection::btree_map(name, "\\PC{0,6}".prop_map(Json::from), 1..4)
        .prop_map(|labels| labels.into_iter().collect())
}

fn owners() -> impl Strategy<Value = Json> {
    let version = prop::sample::select(vec!["crd.projectcalico.org/v1", "apps/v1"]);
    prop::collection::vec((version, uid(), dns_name()), 1..3).prop_map(|owners| {
        let owner =
            |(version, uid, name)| json!({ "apiVersion": version, "kind": "K", "name": name, "uid": uid });
        owners.into_iter().map(owner).collect()
    })
}

fn metadata() -> impl Strategy<Value = Map<String, Json>> {
    (dns_name(), dns_name(), uid(), labels(), labels(), prop::option::of(owners()), any::<[bool; 4]>())
        .prop_map(|(name, namespace, uid, labels, annotations, owners, given)| {
            let mut metadata = Map::new();
            metadata.insert("name".into(), name.into());
            metadata.insert("namespace".into(), namespace.into());
            metadata.insert("uid".into(), uid.into());
            let optional = [
                ("labels", Json::Object(labels)),
                ("annotations", Json::Object(annotations)),
                ("creationTimestamp", json!("2026-01-01T00:00:00Z")),
                ("finalizers", json!(["a/b"])),
            ];
            for ((name, value), _) in optional.into_iter().zip(given).filter(|(_, given)| *given) {
                metadata.insert(name.into(), value);
            }
            metadata.extend(owners.map(|owners| ("ownerReferences".to_owned(), owners)));
            metadata
        })
}

/// Resources that hold a v3 resource.
fn custom_kind() -> impl Strategy<Value = &'static ApiKind> {
    let own = |kind: &&ApiKind| {
        kind.is_v3_stored() && !["Node", "Profile", "WorkloadEndpoint", "LiveMigration"].contains(&kind.kind)
    };
    prop::sample::select(ApiKind::all().filter(own).collect::<Vec<_>>())
}

fn custom_resource(kind: &ApiKind, group: ApiGroup) -> ApiResource {
    let prefix = format!("/calico/resources/v3/projectcalico.org/{}/", kind.plural);
    kubernetes::resources_under(&prefix, &options(group)).remove(0)
}

fn json_of(read: &Read) -> Json {
    serde_json::from_slice(read.value.as_ref().expect("a value")).expect("values are JSON")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_twin_of_the_twin_is_the_original(uid in uid()) {
        let twin = kubernetes::twin_uid(&uid, "uid").unwrap();
        prop_assert_eq!(&kubernetes::twin_uid(&twin, "uid").unwrap(), &uid);
        prop_assert_eq!(&twin[14..16], &uid[14..16]);
    }

    /// Nothing of a resource is lost on the way to the datastore's form and back.
    #[test]
    fn custom_resources_keep_everything(
        kind in custom_kind(), group in group(), mut metadata in metadata(), spec in any_json(), status in any_json(),
    ) {
        let options = options(group);
        let resource = custom_resource(kind, group);
        if !kind.namespaced {
            metadata.remove("namespace");
        }
        let mut object = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind, "metadata": metadata, "spec": spec,
            "status": status,
        });
        for part in ["spec", "status"] {
            if object[part].is_null() {
                object.as_object_mut().unwrap().remove(part);
            }
        }
        let mut sent = object.clone();
        sent["metadata"]["resourceVersion"] = json!("12");
        sent["metadata"]["managedFields"] = json!([]);
        let read = kubernetes::read(&resource, &options, sent.to_string().as_bytes()).unwrap();
        prop_assert_eq!(&read.resource_version, "12");
        let value = read.value.clone().unwrap();
        let written = kubernetes::write(&read.path, &value, &options).unwrap();
        prop_assert_eq!(&written.resource, &resource);
        for field in ["name", "namespace", "uid", "finalizers"] {
            prop_assert_eq!(&written.object["metadata"][field], &object["metadata"][field]);
        }
        if group == ApiGroup::V3 {
            prop_assert_eq!(&written.object, &object);
        }
        let again = kubernetes::read(&resource, &options, written.object.to_string().as_bytes()).unwrap();
        prop_assert_eq!(json_of(&again), json_of(&read));
        prop_assert_eq!(again.path, read.path);
    }

    #[test]
    fn paths_lead_back_to_objects(name in dns_name(), namespace in dns_name(), node in dns_name(), group in group()) {
        let options = options(group);
        for resource in kubernetes::resources_under("/calico/resources/", &options) {
            let object = json!({
                "metadata": { "name": name, "namespace": namespace, "uid": UID }, "spec": { "nodeName": node },
            });
            let path = kubernetes::path(&resource, &options, object.to_string().as_bytes());
            let namespace = resource.namespaced.then(|| namespace.clone());
            let located = path.and_then(|path| kubernetes::locate(&path, &options));
            prop_assert_eq!(located, Some(Located { resource, namespace, name: name.clone() }));
        }
    }

    #[test]
    fn ipam_objects_keep_everything(
        group in group(), host in "[a-z0-9.-]{1,260}", address in any::<[u8; 4]>(), length in 20..=32_u8,
        kind in prop::sample::select(vec!["host", "virtual"]), handle in "[A-Za-z0-9.-]{1,40}", deleted in any::<bool>(),
    ) {
        let cidr = ipnet::IpNet::new(address.into(), length).unwrap().trunc();
        let affinity = BlockAffinityKey { host: host.clone(), cidr, affinity_type: kind.to_owned() };
        let options = options(group);
        for (key, value) in [
            (Key::Block { cidr }, json!({
                "cidr": cidr.to_string(), "affinity": format!("host:{host}"), "allocations": [null, 0],
                "affinity_claim_time": "2026-01-01T00:00:00Z", "unallocated": [2, 3], "sequenceNumber": 17,
                "attributes": [{ "handle_id": handle, "secondary": { "node": host } }], "deleted": deleted,
                "sequenceNumberForAllocation": { "1": 17 },
            })),
            (Key::BlockAffinity(affinity), json!({ "state": "pending", "deleted": deleted })),
            (Key::IpamHandle { id: handle.clone() }, json!({ "block": { cidr.to_string(): 2 }, "deleted": deleted })),
            (Key::IpamConfig, json!({ "strict_affinity": deleted, "auto_allocate_blocks": true, "maxBlocksPerHost": 4 })),
        ] {
            let path = key.path().unwrap();
            let written = kubernetes::write(&path, value.to_string().as_bytes(), &options).unwrap();
            prop_assert!(written.name.len() < 253 && !written.name.is_empty());
            let located = kubernetes::locate(&path, &options).unwrap();
            prop_assert_eq!((&located.resource, &located.name), (&written.resource, &written.name));
            let object = written.object.to_string();
            let read = kubernetes::read(&written.resource, &options, object.as_bytes()).unwrap();
            prop_assert_eq!(&read.path, &path);
            prop_assert_eq!(json_of(&read), value);
            prop_assert_eq!(kubernetes::path(&written.resource, &options, object.as_bytes()), Some(path));
        }
    }
}

/// Something of each kind that is well formed, for changing it.
fn samples() -> Vec<(ApiResource, Json)> {
    let policy = json!({
        "metadata": { "name": "np", "namespace": "prod", "uid": UID },
        "spec": {
            "podSelector": { "matchLabels": { "a": "b" } }, "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }],
                "ports": [{ "port": 80, "endPort": 90, "protocol": "TCP" }] }],
            "egress": [{ "to": [{ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] } }] }],
        },
    });
    let cluster_policy = json!({
        "metadata": { "name": "cnp", "uid": UID },
        "spec": {
            "tier": "Admin", "priority": 1, "subject": { "pods": { "namespaceSelector": {}, "podSelector": {} } },
            "ingress": [{ "name": "r", "action": "Deny", "from": [{ "namespaces": {} }],
                "protocols": [{ "tcp": { "destinationPort": { "range": { "start": 1, "end": 2 } } } }] }],
            "egress": [{ "action": "Accept", "to": [{ "networks": ["10.0.0.0/8"] }],
                "protocols": [{ "destinationNamedPort": "http" }] }],
        },
    });
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({
        "cni.projectcalico.org/floatingIPs": "[\"1.2.3.4\"]", "qos.projectcalico.org/egressBandwidth": "1Gi",
        "cni.projectcalico.org/allowedSourcePrefixes": "[\"10.0.0.0/8\"]", "qos.projectcalico.org/dscp": "AF21",
    });
    let mut node = node();
    node["metadata"]["annotations"]["projectcalico.org/Interfaces"] =
        json!("[{\"name\":\"e\",\"addresses\":[\"10.0.0.1\"]}]");
    let wrapped = json!({
        "metadata": { "name": "x", "namespace": "n", "uid": UID, "labels": { "a": "b" }, "annotations": {
            "projectcalico.org/metadata": "{\"name\":\"y\",\"labels\":{\"c\":\"d\"},\"ownerReferences\":[]}",
        }},
        "spec": { "cidr": "10.0.0.0/26", "node": "n1", "type": "host", "state": "confirmed", "deleted": "false",
            "allocations": [0], "attributes": [{ "handle_id": "h" }], "unallocated": [] },
    });
    let account =
        json!({ "metadata": { "name": "x", "namespace": "n", "uid": UID, "labels": { "a": "b" } } });
    kubernetes::resources_under("/calico/", &Options::default())
        .into_iter()
        .map(|resource| {
            let object = match (resource.group, resource.kind) {
                (_, "Pod") => &pod,
                ("", "Node") => &node,
                ("networking.k8s.io", _) => &policy,
                (_, "ClusterNetworkPolicy") => &cluster_policy,
                ("crd.projectcalico.org", _) => &wrapped,
                _ => &account,
            };
            (resource, object.clone())
        })
        .collect()
}

/// Puts something in the place of one member, found by walking where `way` points.
fn replace(place: &mut Json, way: &[usize], with: Json) {
    let Some((step, rest)) = way.split_first() else {
        *place = with;
        return;
    };
    match place {
        Json::Object(members) if !members.is_empty() => {
            let index = step % members.len();
            replace(members.values_mut().nth(index).expect("within the members"), rest, with);
        }
        Json::Array(items) if !items.is_empty() => {
            let index = step % items.len();
            replace(&mut items[index], rest, with);
        }
        leaf => *leaf = with,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is sent, it is read or refused with a reason, and what was read does no harm further on.
    #[test]
    fn anything_may_be_sent(
        group in group(), use_pod_cidr in any::<bool>(), which in any::<prop::sample::Index>(),
        way in prop::collection::vec(any::<usize>(), 1..8), with in any_json(),
    ) {
        let options = Options { group, use_pod_cidr, ..Options::default() };
        let samples = samples();
        let (resource, mut object) = samples[which.index(samples.len())].clone();
        let intact = kubernetes::read(&resource, &options, object.to_string().as_bytes());
        prop_assert!(intact.is_ok(), "{}: {:?}", resource.kind, intact);
        replace(&mut object, &way, with);
        let bytes = object.to_string().into_bytes();
        let path = kubernetes::path(&resource, &options, &bytes);
        match kubernetes::read(&resource, &options, &bytes) {
            Err(error) => prop_assert!(!error.field.is_empty() && !error.reason.is_empty()),
            Ok(read) => {
                prop_assert_eq!(path.as_ref(), Some(&read.path));
                if let Some(value) = read.value {
                    Processors::new().put(&read.path, &value);
                    let _written = kubernetes::write(&read.path, &value, &options);
                }
            }
        }
    }

    #[test]
    fn any_bytes_may_be_sent(bytes in prop::collection::vec(any::<u8>(), 0..64), path in "[/a-z0-9.-]{0,40}") {
        for resource in kubernetes::resources_under("/calico/", &Options::default()) {
            prop_assert!(kubernetes::read(&resource, &Options::default(), &bytes).is_err());
        }
        let _located = kubernetes::locate(&path, &Options::default());
        let _located = kubernetes::locate(&format!("/calico/resources/v3/projectcalico.org{path}"), &Options::default());
        let _written = kubernetes::write(&format!("/calico/ipam/v2{path}"), &bytes, &Options::default());
    }
}
