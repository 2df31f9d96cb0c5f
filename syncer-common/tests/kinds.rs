//! What agents see of each kind beside policies and endpoints: good, each bad field, renamed, gone.

use serde_json::{Value as Json, json};
use syncer_common::apis::Resource;
use syncer_common::model::{DeletionReason, Key, Kind, Update, Value};
use syncer_common::processors::{Converted, Processors};
use syncer_common::validate;

const ROOT: &str = "/calico/resources/v3/projectcalico.org";

fn put(processors: &mut Processors, path: &str, object: Json) -> Converted {
    processors.put(&format!("{ROOT}/{path}"), object.to_string().as_bytes())
}

fn put_spec(processors: &mut Processors, path: &str, spec: Json) -> Converted {
    put(processors, path, json!({ "metadata": {}, "spec": spec }))
}

fn delete(processors: &mut Processors, path: &str) -> Converted {
    processors.delete(&format!("{ROOT}/{path}"))
}

/// `path`, and `=` or why it is gone.
fn shown(updates: &[Update]) -> Vec<String> {
    let show = |update: &Update| {
        let path = update.key.path().expect("keys of updates have paths");
        match &update.value {
            Ok(_) => format!("{path} ="),
            Err(reason) => format!("{path} - {reason:?}"),
        }
    };
    updates.iter().map(show).collect()
}

fn value(converted: &Converted) -> &Value {
    assert_eq!(converted.error, None);
    converted.updates[0].live().expect("a value")
}

/// The good object gives one entry; every bad one takes it away and names the field; the deletion takes it away.
fn one_entry(path: &str, good: Json, bad: Vec<(Json, &str)>) {
    let mut processors = Processors::new();
    let own = format!("{ROOT}/{path}");
    assert_eq!(shown(&put(&mut processors, path, good.clone()).updates), [format!("{own} =")]);
    for (bad, field) in bad {
        let converted = put(&mut processors, path, bad.clone());
        assert_eq!(shown(&converted.updates), [format!("{own} - Invalid")], "{bad}");
        let error = converted.error.expect("a report");
        assert_eq!((error.key.as_str(), error.field.as_str()), (own.as_str(), field), "{error}");
        assert!(!error.reason.is_empty());
        assert_eq!(shown(&put(&mut processors, path, good.clone()).updates), [format!("{own} =")]);
    }
    assert_eq!(shown(&delete(&mut processors, path).updates), [format!("{own} - Deleted")]);
    // A new name is another entry; the old one stays until it is deleted.
    let renamed = format!("{}-2", path);
    assert_eq!(shown(&put(&mut processors, &renamed, good).updates), [format!("{own}-2 =")]);
}

#[test]
fn filters_count_as_a_whole() {
    let rule = |rule: Json| json!({ "spec": { "exportV4": [{ "action": "Accept" }, rule] } });
    let with = |member: &str, value: Json| rule(json!({ "action": "Accept", member: value }));
    let at = |member: &'static str| format!("spec.exportV4[1].{member}").leak() as &str;
    let good = rule(json!({ "action": "Accept", "cidr": "10.1.2.3/16", "matchOperator": "In",
        "prefixLength": { "min": 16, "max": 24 }, "interface": "eth*", "source": "RemotePeers", "peerType": "eBGP",
        "communities": { "values": ["65000:1:2"] }, "asPathPrefix": [65001, "1.2"], "priority": 512,
        "operations": [{ "addCommunity": { "value": "65000:7" } }, { "prependASPath": { "prefix": [65001] } },
            { "setPriority": { "value": 100 } }] }));
    let bad = vec![
        (rule(json!({})), at("action")),
        (rule(json!({ "action": "Drop" })), at("action")),
        (with("cidr", json!("10.0.0.0/8")), at("matchOperator")),
        (with("matchOperator", json!("In")), at("cidr")),
        (rule(json!({ "action": "Reject", "cidr": "fd00::/8", "matchOperator": "In" })), at("cidr")),
        (rule(json!({ "action": "Reject", "cidr": "10.0.0/8", "matchOperator": "In" })), at("cidr")),
        (
            rule(json!({ "action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "Within" })),
            at("matchOperator"),
        ),
        (with("prefixLength", json!({ "min": 8 })), at("prefixLength")),
        (
            rule(
                json!({ "action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": { "max": 33 } }),
            ),
            at("prefixLength.max"),
        ),
        (
            rule(json!({ "action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In",
                "prefixLength": { "min": 24, "max": 16 } })),
            at("prefixLength.max"),
        ),
        (with("interface", json!("eth0\"; evil")), at("interface")),
        (with("source", json!("LocalPeers")), at("source")),
        (with("peerType", json!("ebgp")), at("peerType")),
        (with("communities", json!({ "values": [] })), at("communities.values")),
        (with("communities", json!({ "values": ["1:1", "1:2"] })), at("communities.values")),
        (with("communities", json!({ "values": ["65536:1"] })), at("communities.values[0]")),
        (with("asPathPrefix", json!(["x"])), at("asPathPrefix[0]")),
        (with("priority", json!(0)), at("priority")),
        (with("operations", json!([{}])), at("operations[0]")),
        (
            with(
                "operations",
                json!([{ "setPriority": { "value": 1 }, "addCommunity": { "value": "1:1" } }]),
            ),
            at("operations[0]"),
        ),
        (with("operations", json!([{ "setPriority": {} }])), at("operations[0].setPriority.value")),
        (
            with("operations", json!([{ "addCommunity": { "value": "1" } }])),
            at("operations[0].addCommunity.value"),
        ),
        (with("operations", json!([{ "prependASPath": {} }])), at("operations[0].prependASPath.prefix")),
        (
            rule(json!({ "action": "Reject", "operations": [{ "setPriority": { "value": 1 } }] })),
            at("operations"),
        ),
        (with("neighbour", json!("a")), at("neighbour")),
    ];
    one_entry("bgpfilters/f", good.clone(), bad);
    let converted = put(&mut Processors::new(), "bgpfilters/f", good);
    let Value::BgpFilter(filter) = value(&converted) else { panic!("no filter") };
    let rule = &filter.export_v4[1];
    assert_eq!(
        (rule.cidr.as_str(), rule.as_path_prefix.as_slice()),
        ("10.1.0.0/16", [65001, 65538].as_slice())
    );
    assert_eq!(
        (rule.prefix_length_min, rule.prefix_length_max, rule.priority),
        (Some(16), Some(24), Some(512))
    );
    assert_eq!(rule.operations.len(), 3);
    assert!(filter.import_v4.is_empty() && filter.export_v6.is_empty() && filter.import_v6.is_empty());
}

#[test]
fn status_requests_name_a_node_and_what_to_report() {
    let spec = |spec: Json| json!({ "spec": spec });
    let good = spec(json!({ "node": "n1", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 30 }));
    let bad = vec![
        (spec(json!({ "classes": ["Agent"] })), "spec.node"),
        (spec(json!({ "node": "n1", "classes": ["Agent", "Pods"] })), "spec.classes[1]"),
        (spec(json!({ "node": "n1", "classes": ["BGP", "BGP"] })), "spec.classes[1]"),
        (spec(json!({ "node": "n1", "updatePeriodSeconds": 86401 })), "spec.updatePeriodSeconds"),
        (spec(json!({ "node": "n1", "updatePeriodSeconds": -1 })), "spec.updatePeriodSeconds"),
    ];
    one_entry("caliconodestatuses/s", good.clone(), bad);
    let converted = put(&mut Processors::new(), "caliconodestatuses/s", good);
    let Value::CalicoNodeStatus(status) = value(&converted) else { panic!("no request") };
    assert_eq!((status.node.as_str(), status.update_period_seconds), ("n1", Some(30)));
    assert_eq!(Kind::for_agent("node-status"), [Kind::CalicoNodeStatus]);
}

#[test]
fn migrations_name_one_thing_at_each_end() {
    let spec = |spec: Json| json!({ "spec": spec });
    // As Go writes it, and as people do.
    let written = spec(json!({
        "Source": { "WorkloadEndpoint": {
            "Hostname": "n1", "OrchestratorID": "openstack", "WorkloadID": "vm", "EndpointID": "port" } },
        "Target": { "WorkloadEndpoint": { "Hostname": "n2", "WorkloadID": "vm" } },
    }));
    let good = spec(json!({
        "source": { "workload": { "orchestratorID": "k8s", "workloadID": "shop/vm" } },
        "target": { "selector": "vm == 'a'" },
    }));
    let bad = vec![
        (spec(json!({ "source": {} })), "spec.source"),
        (spec(json!({ "source": { "selector": "all()" } })), "spec.source"),
        (spec(json!({ "source": { "workload": {}, "workloadEndpoint": {} } })), "spec.source"),
        (spec(json!({ "target": { "workload": {} } })), "spec.target"),
        (spec(json!({ "target": { "selector": "vm ==" } })), "spec.target.selector"),
    ];
    one_entry("livemigrations/shop/move", good.clone(), bad);
    let entry = |object| {
        let converted = put(&mut Processors::new(), "livemigrations/shop/move", object);
        let Value::LiveMigration(migration) = value(&converted) else { panic!("no migration") };
        migration.clone()
    };
    let migration = entry(good);
    assert_eq!((migration.source.unwrap().workload_id.as_str(), migration.target), ("shop/vm", None));
    let migration = entry(written);
    let (source, target) = (migration.source.unwrap(), migration.target.unwrap());
    assert_eq!((source.endpoint_id.as_str(), target.hostname.as_str()), ("port", "n2"));
    // Nobody raises the priority of routes of migrating workloads yet.
    assert!(!Kind::FELIX.contains(&Kind::LiveMigration) && !Kind::CONFD.contains(&Kind::LiveMigration));
}

#[test]
fn services_are_reduced_to_what_is_routed_to_them() {
    let path = "kubernetesservice/shop/web";
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop", "annotations": { "a": "b" } },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "externalIPs": ["192.0.2.9"], "loadBalancerIP": "192.0.2.10", "externalTrafficPolicy": "Local",
            "ipFamilies": ["IPv4", "IPv6"], "sessionAffinity": "None",
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080, "targetPort": "web" },
                      { "port": 53, "protocol": "UDP", "targetPort": 5353 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.10" }, { "hostname": "lb.example.org" }] } },
    });
    let mut processors = Processors::new();
    let converted = put(&mut processors, path, service.clone());
    let Value::Service(first) = value(&converted).clone() else { panic!("no service") };
    assert_eq!(first.cluster_ips, ["10.96.0.7", "fd00:96::7"]);
    assert_eq!(
        (first.external_ips.as_slice(), first.ingress_ips.as_slice()),
        (["192.0.2.9".to_owned()].as_slice(), ["192.0.2.10".to_owned()].as_slice())
    );
    assert_eq!(
        (first.load_balancer_ip.as_str(), first.external_traffic_policy.as_str()),
        ("192.0.2.10", "Local")
    );

    // What nobody reads changes nothing.
    let mut noise = service.clone();
    noise["metadata"]["annotations"]["a"] = json!("c");
    noise["metadata"]["resourceVersion"] = json!("7");
    noise["spec"]["sessionAffinity"] = json!("ClientIP");
    assert_eq!(put(&mut processors, path, noise).updates, converted.updates);

    let headless = json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } });
    let converted = put(&mut processors, path, headless);
    let Value::Service(none) = value(&converted) else { panic!("no service") };
    assert!(none.cluster_ips.is_empty());

    let mut partly = service.clone();
    partly["spec"]["externalIPs"] = json!(["x", "192.0.2.9"]);
    let converted = put(&mut processors, path, partly);
    let Some(Value::Service(kept)) = converted.updates[0].live() else { panic!("no service") };
    assert_eq!(*kept, first);
    assert_eq!(converted.error.unwrap().field, "spec.externalIPs[0]");

    let spec = |member: &str, value: Json| json!({ "spec": { member: value } });
    one_entry(
        path,
        service,
        vec![
            (spec("type", json!("Balanced")), "type"),
            (spec("externalTrafficPolicy", json!("Remote")), "externalTrafficPolicy"),
            (spec("clusterIPs", json!("10.0.0.1")), "spec.clusterIPs"),
        ],
    );
}

#[test]
fn slices_travel_with_their_service_and_only_then() {
    let path = "kubernetesendpointslices/shop/web-x";
    let slice = |address_type: &str, endpoints: Json| {
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-x", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": address_type, "endpoints": endpoints,
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }, { "name": null, "port": null }] })
    };
    let endpoints = json!([
        { "addresses": ["10.65.0.2"], "conditions": { "ready": true, "serving": true, "terminating": false },
          "nodeName": "n1", "targetRef": { "kind": "Pod" } },
        { "addresses": ["10.65.0.3"], "conditions": { "ready": null } },
    ]);
    let good = slice("IPv4", endpoints.clone());
    let mut processors = Processors::new();
    let converted = put(&mut processors, path, good.clone());
    let Value::EndpointSlice(first) = value(&converted).clone() else { panic!("no slice") };
    assert_eq!((first.service_name.as_str(), first.address_type.as_str()), ("web", "IPv4"));
    assert_eq!((first.endpoints[0].ready, first.endpoints[0].node_name.as_str()), (None, "n1"));
    assert_eq!(
        (first.endpoints[1].ready, first.endpoints[1].addresses.as_slice()),
        (None, ["10.65.0.3".to_owned()].as_slice())
    );
    assert_eq!((first.ports[0].port, first.ports[1].port), (None, Some(8080)));

    let mut noise = good.clone();
    noise["metadata"]["resourceVersion"] = json!("9");
    noise["endpoints"][0]["targetRef"]["uid"] = json!("u");
    assert_eq!(put(&mut processors, path, noise).updates, converted.updates);

    let mixed = json!([{ "addresses": ["10.65.0.2", "fd00::2", "x"] }]);
    let converted = put(&mut processors, path, slice("IPv4", mixed));
    let Some(Value::EndpointSlice(kept)) = converted.updates[0].live() else { panic!("no slice") };
    assert_eq!(kept.endpoints[0].addresses, ["10.65.0.2"]);
    assert_eq!(converted.error.unwrap().field, "endpoints[0].addresses[1]");

    let mut nobodys = good.clone();
    nobodys["metadata"]["labels"] = json!({});
    for filtered in [nobodys, slice("FQDN", json!([{ "addresses": ["a.example.org"] }]))] {
        let converted = put(&mut processors, path, filtered);
        assert_eq!(shown(&converted.updates), [format!("{ROOT}/{path} - Deleted")]);
        assert_eq!(converted.error, None);
    }
    let mut protocol = good.clone();
    protocol["ports"][0]["protocol"] = json!("TPC");
    let bad = vec![
        (slice("IPv5", endpoints), "addressType"),
        (slice("IPv4", json!({})), "endpoints"),
        (slice("IPv4", json!([{ "conditions": { "ready": "yes" } }])), "endpoints[0].conditions.ready"),
        (protocol, "ports[0].protocol"),
    ];
    one_entry(path, good, bad);
}

#[test]
fn nodes_give_the_ends_of_encrypted_tunnels() {
    let own = "/calico/v1/host/n1/wireguard";
    let key = "jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY=";
    let node =
        |spec: Json, status: Json| json!({ "metadata": {}, "spec": { "wireguard": spec }, "status": status });
    let mut processors = Processors::new();
    let mut wireguard = |object: Json| {
        let converted = put(&mut processors, "nodes/n1", object);
        let update = converted.updates.into_iter().find(|update| matches!(update.key, Key::Wireguard { .. }));
        (update.expect("an entry").value, converted.error.map(|error| error.field))
    };
    let (value, error) =
        wireguard(node(json!({ "interfaceIPv4Address": "10.65.0.9" }), json!({ "wireguardPublicKey": key })));
    let Ok(Value::Wireguard(first)) = value else { panic!("no tunnel") };
    assert_eq!(
        (first.interface_ipv4_addr.as_str(), first.public_key.as_str(), error),
        ("10.65.0.9", key, None)
    );
    for (spec, status, field) in [
        (json!({ "interfaceIPv4Address": "fd00::1" }), json!({}), "spec.wireguard.interfaceIPv4Address"),
        (json!({ "interfaceIPv6Address": "10.0.0.1" }), json!({}), "spec.wireguard.interfaceIPv6Address"),
        (json!({}), json!({ "wireguardPublicKey": "short" }), "status.wireguardPublicKey"),
    ] {
        assert_eq!(wireguard(node(spec, status)), (Err(DeletionReason::Deleted), Some(field.to_owned())));
    }
    assert_eq!(wireguard(json!({ "spec": {} })), (Err(DeletionReason::Deleted), None));
    assert!(shown(&delete(&mut processors, "nodes/n1").updates).contains(&format!("{own} - Deleted")));
}

#[test]
fn blocks_of_pod_cidrs_come_and_go_with_the_node() {
    let mut processors = Processors::new().use_pod_cidr(true);
    let node = |cidrs: Json| json!({ "metadata": {}, "spec": {}, "status": { "podCIDRs": cidrs } });
    let block = |cidr: &str| format!("/calico/ipam/v2/assignment/ipv4/block/{cidr}");
    let affinity = |node: &str, cidr: &str| format!("/calico/ipam/v2/host/{node}/ipv4/block/{cidr}");
    let mut blocks = |name: &str, object: Option<Json>| {
        let path = format!("nodes/{name}");
        let converted = match object {
            Some(object) => put(&mut processors, &path, object),
            None => delete(&mut processors, &path),
        };
        let mut shown = shown(&converted.updates);
        shown.retain(|text| text.starts_with("/calico/ipam/"));
        shown.sort();
        (shown, converted.error.map(|error| error.field))
    };
    let (shown, error) = blocks("n1", Some(node(json!(["10.1.0.5/24", "10.2.0.0/24"]))));
    let all = ["10.1.0.0-24", "10.2.0.0-24"];
    let mut expected: Vec<String> =
        all.iter().flat_map(|cidr| [block(cidr), affinity("n1", cidr)]).map(|path| path + " =").collect();
    expected.sort();
    assert_eq!((shown, error), (expected, None));
    // What vanishes from the list is deleted; what does not read is named.
    let (shown, error) = blocks("n1", Some(node(json!(["10.1.0.0/24", "x"]))));
    assert!(shown.contains(&(block("10.2.0.0-24") + " - Deleted")), "{shown:?}");
    assert!(shown.contains(&(affinity("n1", "10.2.0.0-24") + " - Deleted")), "{shown:?}");
    assert_eq!(error.as_deref(), Some("status.podCIDRs[1]"));
    // Two nodes with one network: the first by name has it, until it goes.
    let (shown, _) = blocks("n2", Some(node(json!(["10.1.0.0/24"]))));
    assert_eq!(shown, [affinity("n2", "10.1.0.0-24") + " ="]);
    let (shown, _) = blocks("n1", None);
    assert_eq!(shown, [block("10.1.0.0-24") + " =", affinity("n1", "10.1.0.0-24") + " - Deleted"]);
    let (shown, _) = blocks("n2", None);
    assert_eq!(shown, [block("10.1.0.0-24") + " - Deleted", affinity("n2", "10.1.0.0-24") + " - Deleted"]);
    // IPAM has no say then.
    let stored = processors.put(&block("10.65.0.0-26"), br#"{"cidr":"10.65.0.0/26","affinity":"host:n1"}"#);
    assert!(stored.updates.is_empty() && stored.error.is_none());
    assert!(processors.delete(&block("10.1.0.0-24")).updates.is_empty());
}

#[test]
fn staged_policies_are_carried_with_their_action() {
    let mut processors = Processors::new();
    for (path, own) in [
        ("stagednetworkpolicies/shop/p", "StagedNetworkPolicy/shop/p"),
        ("stagedglobalnetworkpolicies/p", "StagedGlobalNetworkPolicy//p"),
        ("stagedkubernetesnetworkpolicies/shop/p", "StagedKubernetesNetworkPolicy/shop/p"),
    ] {
        let own = format!("/calico/v1/policy/{own}");
        let converted = put_spec(&mut processors, path, json!({ "stagedAction": "Learn" }));
        let Value::Policy(policy) = value(&converted) else { panic!("no policy") };
        assert_eq!(policy.staged_action, "Learn");
        let deleted = put_spec(&mut processors, path, json!({ "stagedAction": "Delete" }));
        assert_eq!((shown(&deleted.updates), deleted.error), (vec![format!("{own} - Deleted")], None));
        let bad = put_spec(&mut processors, path, json!({ "stagedAction": "Maybe" }));
        assert_eq!(bad.error.unwrap().field, "spec.stagedAction");
        assert_eq!(shown(&delete(&mut processors, path).updates), [format!("{own} - Deleted")]);
    }
}

#[test]
fn kinds_that_nobody_reads_are_checked_all_the_same() {
    let mut processors = Processors::new();
    for (path, spec, field) in [
        ("ipreservations/r", json!({ "reservedCIDRs": ["10.0.0.0/8", "x"] }), "spec.reservedCIDRs[1]"),
        ("ipreservations/r", json!({ "reservedCIDRs": ["10.0.0.1", "10.0.0.1"] }), "spec.reservedCIDRs[1]"),
        ("kubecontrollersconfigurations/default", json!({ "healthChecks": "On" }), "spec.healthChecks"),
        (
            "kubecontrollersconfigurations/default",
            json!({ "controllers": { "node": { "reconcilerPeriod": "-5m" } } }),
            "spec.controllers.node.reconcilerPeriod",
        ),
    ] {
        let converted = put_spec(&mut processors, path, spec);
        assert!(converted.updates.is_empty());
        assert_eq!(converted.error.unwrap().field, field);
    }
    for (path, spec) in [
        ("ipreservations/r", json!({ "reservedCIDRs": ["10.0.0.0/28", "fd00::1"] })),
        (
            "kubecontrollersconfigurations/default",
            json!({ "controllers": { "node": { "reconcilerPeriod": "5m" } } }),
        ),
    ] {
        let converted = put_spec(&mut processors, path, spec);
        assert_eq!((converted.updates, converted.error), (vec![], None), "{path}");
    }
    let config = |processors: &mut Processors, value: &str| {
        processors.put("/calico/ipam/v2/config", value.as_bytes()).error.map(|error| error.field)
    };
    assert_eq!(config(&mut processors, r#"{"strict_affinity":true,"ipCooldownSeconds":60}"#), None);
    let bad = r#"{"strict_affinity":false,"auto_allocate_blocks":false}"#;
    assert_eq!(config(&mut processors, bad).as_deref(), Some("spec.autoAllocateBlocks"));
    assert_eq!(
        config(&mut processors, r#"{"ipCooldownSeconds":1201}"#).as_deref(),
        Some("spec.ipCooldownSeconds")
    );
}

#[test]
fn what_validation_says_of_an_object_is_what_is_reported_of_it() {
    // Accepted as far as it goes, refused, and not read by anybody: the first mistake is the same everywhere.
    for (path, spec) in [
        ("ippools/p", json!({ "cidr": "10.0.0.0/16", "blockSize": 19 })),
        ("ippools/p", json!({ "cidr": "10.0.0.0/16", "allowedUses": ["Workload", "Workload"] })),
        ("nodes/n", json!({ "bgp": { "ipv4Address": "fd00::1" } })),
        ("nodes/n", json!({ "bgp": { "ipv4Address": "10.0.0.1", "ipv4IPIPTunnelAddr": "fd00::1" } })),
        ("nodes/n", json!({ "addresses": [{ "address": "10.0.0.1", "type": "Loopback" }] })),
        ("hostendpoints/h", json!({ "node": "n", "expectedIPs": ["10.0.0.1", "10.0.0.1"] })),
        ("bgppeers/p", json!({ "peerIP": "10.0.0.1", "reachableBy": "fd00::1" })),
        ("bgppeers/p", json!({ "peerIP": "10.0.0.1", "password": {} })),
        ("bgppeers/p", json!({ "peerIP": "10.0.0.1", "keepaliveTime": "-3s" })),
        ("bgpconfigurations/default", json!({ "bindMode": "Any" })),
        (
            "bgpconfigurations/default",
            json!({ "prefixAdvertisements": [{ "cidr": "10.0.0.0/8", "communities": ["gone"] }] }),
        ),
        ("felixconfigurations/default", json!({ "iptablesBackend": "ebpf" })),
        ("felixconfigurations/default", json!({ "routeRefreshInterval": 90 })),
        ("felixconfigurations/default", json!({ "healthPort": 70000 })),
        (
            "globalnetworkpolicies/p",
            json!({ "ingress": [{ "action": "Allow", "protocol": "TCP", "icmp": { "type": 8 } }] }),
        ),
        ("globalnetworkpolicies/p", json!({ "types": ["Ingress", "ingress"] })),
        ("networksets/shop/s", json!({ "nets": ["10.0.0.0/8", "10.0.0.0/33"] })),
        ("tiers/t", json!({ "defaultAction": "Allow" })),
        ("ipreservations/r", json!({ "reservedCIDRs": ["x"] })),
        (
            "bgpfilters/f",
            json!({ "importV6": [{ "action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In" }] }),
        ),
    ] {
        let path = format!("{ROOT}/{path}");
        let bytes = json!({ "metadata": {}, "spec": spec }).to_string();
        let object = Resource::from_stored(&path, bytes.as_bytes()).unwrap();
        let found = validate::resource(&object);
        let reported = Processors::new().put(&path, bytes.as_bytes()).error.expect("a report");
        assert_eq!(
            found.first().map(|error| error.field.as_str()),
            Some(reported.field.as_str()),
            "{path}: {spec}"
        );
    }
}

#[test]
fn lists_that_are_too_long_are_reported_and_stay_in_force() {
    let nets: Vec<String> = (0..257).map(|n| format!("10.0.{}.{}/32", n / 256, n % 256)).collect();
    let spec = json!({ "ingress": [{ "action": "Allow", "source": { "nets": nets } }] });
    let converted = put_spec(&mut Processors::new(), "globalnetworkpolicies/p", spec);
    assert!(converted.updates[0].live().is_some());
    let error = converted.error.unwrap();
    assert_eq!(error.field, "spec.ingress[0].source.nets");
    assert!(error.reason.contains("use a network set"), "{error}");
}

#[test]
fn every_kind_of_value_has_a_name_and_a_key() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_name(kind.name()), Some(kind));
    }
    for kinds in [Kind::FELIX.as_slice(), &Kind::CONFD, &Kind::NODE_STATUS] {
        assert!(kinds.iter().all(|kind| kinds.iter().filter(|other| *other == kind).count() == 1));
    }
    let key = |path: &str| Kind::of(&Key::parse(path).unwrap());
    assert_eq!(key("/calico/v1/host/n/wireguard"), Some(Kind::Wireguard));
    assert_eq!(key(&format!("{ROOT}/kubernetesservice/ns/s")), Some(Kind::Service));
    assert_eq!(key(&format!("{ROOT}/kubernetesendpointslices/ns/s")), Some(Kind::EndpointSlice));
    assert_eq!(key(&format!("{ROOT}/bgpfilters/f")), Some(Kind::BgpFilter));
    assert_eq!(key(&format!("{ROOT}/profiles/p")), None);
    assert_eq!(key(&format!("{ROOT}/livemigrations/ns/m")), Some(Kind::LiveMigration));
}
