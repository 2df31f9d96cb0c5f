//! What agents see of objects, good and bad.

use syncer_common::model::{DeletionReason, Key, Update, Value};
use syncer_common::processors::{Converted, MAX_VALUE_BYTES, Processors};

const ROOT: &str = "/calico/resources/v3/projectcalico.org";

fn put(processors: &mut Processors, path: &str, spec: &str) -> Converted {
    processors.put(&format!("{ROOT}/{path}"), format!("{{\"metadata\":{{}},\"spec\":{spec}}}").as_bytes())
}

fn delete(processors: &mut Processors, path: &str) -> Converted {
    processors.delete(&format!("{ROOT}/{path}"))
}

/// `path = value kind` or `path - reason`, in order.
fn shown(updates: &[Update]) -> Vec<String> {
    updates
        .iter()
        .map(|update| {
            let path = update.key.path().expect("keys of updates have paths");
            match &update.value {
                Ok(Value::Config(text)) => format!("{path} = {text}"),
                Ok(Value::Ready(ready)) => format!("{path} = {ready}"),
                Ok(_) => format!("{path} ="),
                Err(reason) => format!("{path} - {reason:?}"),
            }
        })
        .collect()
}

fn policy(converted: &Converted) -> &proto::model::Policy {
    match converted.updates[0].live() {
        Some(Value::Policy(policy)) => policy,
        other => panic!("not a policy: {other:?}, {:?}", converted.error),
    }
}

#[test]
fn the_profile_that_allows_everything_is_always_there() {
    let mut processors = Processors::new();
    let initial = processors.initial();
    assert_eq!(shown(&initial), ["/calico/v1/policy/profile/projectcalico-default-allow/rules ="]);
    // A stored one does not replace it.
    let converted = put(&mut processors, "profiles/projectcalico-default-allow", "{}");
    assert_eq!(shown(&converted.updates), [""; 0]);
    assert_eq!(shown(&delete(&mut processors, "profiles/projectcalico-default-allow").updates), [""; 0]);
}

#[test]
fn what_waits_behind_another_object_comes_out_complete() {
    let mut processors = Processors::new();
    let pool = r#"{"cidr":"10.0.0.0/16"}"#;
    let first = put(&mut processors, "ippools/a", pool).updates;
    put(&mut processors, "ippools/b", pool);
    assert_eq!(delete(&mut processors, "ippools/a").updates, first);
}

#[test]
fn a_parameter_has_one_owner() {
    let mut processors = Processors::new();
    put(&mut processors, "clusterinformations/default", r#"{"clusterType":"k8s"}"#);
    for (name, field) in [("default", "clusterType"), ("node.n1", "ipInIpTunnelAddr")] {
        let spec = format!(r#"{{"{field}":"10.0.0.1","logSeverityScreen":"Info"}}"#);
        let converted = put(&mut processors, &format!("felixconfigurations/{name}"), &spec);
        assert_eq!(converted.updates.len(), 1, "{name}");
        assert!(converted.error.unwrap().reason.contains("belongs to the"), "{name}");
        assert_eq!(
            delete(&mut processors, &format!("felixconfigurations/{name}")).updates.len(),
            1,
            "{name}"
        );
    }
}

#[test]
fn a_name_with_an_escaped_slash_is_refused() {
    let mut processors = Processors::new();
    let converted = put(&mut processors, "stagednetworkpolicies/shop/a%2fb", "{}");
    assert_eq!(shown(&converted.updates), [""; 0]);
    assert_eq!(shown(&delete(&mut processors, "stagednetworkpolicies/shop/a%2fb").updates), [""; 0]);
    assert_eq!(converted.error.unwrap().field, "metadata.name");
}

#[test]
fn a_host_endpoint_needs_a_node_that_fits_its_path() {
    let converted =
        put(&mut Processors::new(), "hostendpoints/h", r#"{"node":"n1/x","interfaceName":"eth0"}"#);
    assert_eq!((shown(&converted.updates), converted.error.unwrap().field), (vec![], "spec.node".to_owned()));
}

#[test]
fn selectors_leave_in_canonical_form() {
    let spec =
        r#"{"selector":"app=='web'","ingress":[{"action":"Allow","source":{"selector":"b in {'y','x'}"}}]}"#;
    let converted = put(&mut Processors::new(), "networkpolicies/shop/web", spec);
    assert_eq!(converted.error, None);
    let policy = policy(&converted);
    assert_eq!(policy.selector, r#"(app == "web" && projectcalico.org/namespace == "shop")"#);
    let source = policy.inbound_rules[0].src.as_ref().unwrap();
    assert_eq!(source.selector, r#"(projectcalico.org/namespace == "shop" && b in {"x", "y"})"#);
    assert!(policy.inbound_rules[0].dst.is_none());
}

#[test]
fn a_policy_that_would_mean_more_than_it_says_is_refused_whole() {
    let mut processors = Processors::new();
    for (spec, field) in [
        (r#"{"namespaceSelector":"bad selector"}"#, "spec.namespaceSelector"),
        (r#"{"serviceAccountSelector":"=="}"#, "spec.serviceAccountSelector"),
        (r#"{"selector":"a = b"}"#, "spec.selector"),
        (
            r#"{"ingress":[{"action":"Allow","source":{"nets":["10.0.0.0/33"]}}]}"#,
            "spec.ingress[0].source.nets[0]",
        ),
        (
            r#"{"ingress":[{"action":"Allow","destination":{"ports":[80]}}]}"#,
            "spec.ingress[0].destination.ports",
        ),
        (r#"{"ingress":[{"action":"Allow","icmp":{"type":8}}]}"#, "spec.ingress[0].icmp"),
        (r#"{"ingress":[{"action":"Alow"}]}"#, "spec.ingress[0].action"),
        (
            r#"{"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":["a b"]}}]}"#,
            "spec.ingress[0].destination.ports[0]",
        ),
        (r#"{"order":"soon"}"#, "spec.order"),
    ] {
        let converted = put(&mut processors, "globalnetworkpolicies/p", spec);
        assert_eq!(
            shown(&converted.updates),
            ["/calico/v1/policy/GlobalNetworkPolicy//p - Invalid"],
            "{spec}"
        );
        let error = converted.error.unwrap();
        assert_eq!(error.key, format!("{ROOT}/globalnetworkpolicies/p"));
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn garbage_is_reported_with_its_key_and_takes_the_entry_away() {
    let mut processors = Processors::new();
    let path = format!("{ROOT}/tiers/t");
    for value in [b"{".as_slice(), b"[]", b"", b"\xff\xfe", b"{\"metadata\": 5}"] {
        let converted = processors.put(&path, value);
        assert_eq!(shown(&converted.updates), ["/calico/v1/policy/tier/t/metadata - Invalid"]);
        assert_eq!(converted.error.unwrap().key, path);
    }
    let large = vec![b' '; MAX_VALUE_BYTES + 1];
    let error = processors.put(&path, &large).error.unwrap();
    assert!(error.reason.contains("bytes are more than"), "{error}");
}

#[test]
fn unknown_kinds_are_reported_and_foreign_keys_are_not() {
    let mut processors = Processors::new();
    let converted = processors.put(&format!("{ROOT}/sprockets/s"), b"{}");
    assert!(converted.updates.is_empty() && converted.error.is_some());
    for path in [
        "/calico/ipam/v2/handle/h",
        "/calico/ipam/v2/config",
        "/calico/felix/v2/no-region/host/h/status",
        "/calico/something/else",
        "/calico/resources/v3/projectcalico.org/ipreservations/r",
    ] {
        let converted = processors.put(path, b"{}");
        assert!(converted.updates.is_empty() && converted.error.is_none(), "{path}");
        assert!(processors.delete(path).updates.is_empty());
    }
}

#[test]
fn pools_with_one_cidr_take_turns_by_name() {
    let mut processors = Processors::new();
    let key = "/calico/v1/ipam/v4/pool/10.0.0.0-16";
    let set = |processors: &mut Processors, name: &str, spec: &str| {
        shown(&put(processors, &format!("ippools/{name}"), spec).updates)
    };
    assert_eq!(set(&mut processors, "b", r#"{"cidr":"10.0.0.0/16"}"#), [format!("{key} =")]);
    assert_eq!(set(&mut processors, "a", r#"{"cidr":"10.0.0.0/16"}"#), [format!("{key} =")]);
    // A pool that turns bad makes room for the next one.
    assert_eq!(
        set(&mut processors, "a", r#"{"cidr":"10.0.0.0/16","ipipMode":"Sometimes"}"#),
        [format!("{key} =")]
    );
    let both = r#"{"cidr":"10.0.0.0/16","ipipMode":"Always","vxlanMode":"Always"}"#;
    assert_eq!(set(&mut processors, "b", both), [format!("{key} - Invalid")]);
    assert_eq!(shown(&delete(&mut processors, "ippools/b").updates), [""; 0]);
}

#[test]
fn clearing_forgets_who_held_a_key() {
    let mut processors = Processors::new();
    put(&mut processors, "ippools/a", r#"{"cidr":"10.0.0.0/16"}"#);
    processors.clear();
    let updates = put(&mut processors, "ippools/b", r#"{"cidr":"10.0.0.0/16"}"#).updates;
    assert_eq!(shown(&updates), ["/calico/v1/ipam/v4/pool/10.0.0.0-16 ="]);
}

#[test]
fn workload_endpoints_without_addresses_are_no_endpoints() {
    let mut processors = Processors::new();
    let path = "workloadendpoints/default/n1-k8s-web--1-eth0";
    let key = "/calico/v1/host/n1/workload/k8s/default%2fweb-1/endpoint/eth0";
    let good = r#"{"node":"n1","orchestrator":"k8s","pod":"web-1","endpoint":"eth0","interfaceName":"cali1","ipNetworks":["10.65.0.2"],"profiles":["kns.default"]}"#;
    let converted = put(&mut processors, path, good);
    assert_eq!(shown(&converted.updates), [format!("{key} =")]);
    let Some(Value::WorkloadEndpoint(endpoint)) = converted.updates[0].live() else { panic!("no endpoint") };
    assert_eq!(endpoint.ipv4_nets, ["10.65.0.2/32"]);
    assert_eq!(
        shown(&put(&mut processors, path, r#"{"interfaceName":"cali1"}"#).updates),
        [format!("{key} - Deleted")]
    );
    let bad = put(&mut processors, path, &good.replace("\"10.65.0.2\"", "\"10.65.0.2\",\"x\""));
    assert_eq!(shown(&bad.updates), [format!("{key} - Invalid")]);
    assert_eq!(bad.error.unwrap().field, "spec.ipNetworks[1]");
    assert_eq!(shown(&delete(&mut processors, path).updates), [format!("{key} - Deleted")]);
}

#[test]
fn a_new_workload_of_the_same_name_is_another_incarnation() {
    let mut processors = Processors::new();
    let mut incarnation = |uid: &str| {
        let value = format!(
            r#"{{"metadata":{{"uid":"{uid}"}},"spec":{{"interfaceName":"cali1","ipNetworks":["10.65.0.2/32"]}}}}"#
        );
        let path = format!("{ROOT}/workloadendpoints/default/n1-k8s-web-eth0");
        let converted = processors.put(&path, value.as_bytes());
        match converted.updates[0].live() {
            Some(Value::WorkloadEndpoint(endpoint)) => endpoint.incarnation.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_ne!(incarnation("1"), incarnation("2"));
}

#[test]
fn configuration_that_is_unset_is_deleted_with_its_object() {
    let mut processors = Processors::new();
    let path = "felixconfigurations/default";
    let set = put(
        &mut processors,
        path,
        r#"{"logSeverityScreen":"Debug","ipipEnabled":true,"routeRefreshInterval":"90s"}"#,
    );
    let mut entries = shown(&set.updates);
    entries.sort();
    assert_eq!(
        entries,
        [
            "/calico/v1/config/IpInIpEnabled = true",
            "/calico/v1/config/LogSeverityScreen = Debug",
            "/calico/v1/config/RouteRefreshInterval = 90",
        ]
    );
    let less = shown(&put(&mut processors, path, r#"{"logSeverityScreen":"Info","ipipEnabled":""}"#).updates);
    assert_eq!(
        less,
        [
            "/calico/v1/config/IpInIpEnabled - Deleted",
            "/calico/v1/config/RouteRefreshInterval - Deleted",
            "/calico/v1/config/LogSeverityScreen = Info",
        ]
    );
    let gone = shown(&delete(&mut processors, path).updates);
    assert_eq!(gone, ["/calico/v1/config/LogSeverityScreen - Deleted"]);
}

#[test]
fn felix_configurations_of_other_names_travel_with_their_selector() {
    let converted = put(
        &mut Processors::new(),
        "felixconfigurations/edge",
        r#"{"nodeSelector":"edge=='yes'","vxlanMTU":1400}"#,
    );
    let Some(Value::FelixConfiguration(configuration)) = converted.updates[0].live() else {
        panic!("{converted:?}")
    };
    assert_eq!(configuration.node_selector, "edge == \"yes\"");
    assert_eq!(configuration.parameters["VXLANMTU"], "1400");
}

#[test]
fn the_ready_flag_goes_with_the_description_of_the_cluster() {
    let mut processors = Processors::new();
    let path = "clusterinformations/default";
    assert_eq!(
        shown(&put(&mut processors, path, r#"{"datastoreReady":true}"#).updates),
        ["/calico/v1/Ready = true"]
    );
    assert_eq!(
        shown(&put(&mut processors, path, r#"{"datastoreReady":false}"#).updates),
        ["/calico/v1/Ready = false"]
    );
    assert_eq!(shown(&delete(&mut processors, path).updates), ["/calico/v1/Ready - Deleted"]);
}

#[test]
fn a_bad_tunnel_address_leaves_the_rest_of_the_node_alone() {
    let spec = r#"{"bgp":{"ipv4Address":"172.30.0.21/16","ipv4IPIPTunnelAddr":"x"},"ipv4VXLANTunnelAddr":"10.65.0.1"}"#;
    let converted = put(&mut Processors::new(), "nodes/n1", spec);
    let shown = shown(&converted.updates);
    assert_eq!(shown[0], "/calico/v1/host/n1/config/IpInIpTunnelAddr - Invalid");
    assert_eq!(shown[1], "/calico/v1/host/n1/config/IPv4VXLANTunnelAddr = 10.65.0.1");
    let node = converted.updates.iter().find_map(|update| match update.live() {
        Some(Value::Node(node)) => Some(node),
        _ => None,
    });
    let node = node.expect("the node itself");
    assert_eq!(node.bgp.as_ref().unwrap().ipv4_address, "172.30.0.21/16");
    assert_eq!(converted.error.unwrap().field, "spec.bgp.ipv4IPIPTunnelAddr");
}

#[test]
fn blocks_are_reduced_to_owner_and_borrowed_addresses() {
    let mut processors = Processors::new();
    let path = "/calico/ipam/v2/assignment/ipv4/block/10.65.0.0-29";
    let block = br#"{"cidr":"10.65.0.0/29","affinity":"host:n1","allocations":[0,1,null,2,3,null,null,null],
        "attributes":[{"handle_id":"a","secondary":{"node":"n1"}},{"handle_id":"b","secondary":{"node":"n2"}},
        {"releasedAt":"2026-01-01T00:00:00Z"},{"handle_id":"c","secondary":null}],"unallocated":[2]}"#;
    let converted = processors.put(path, block);
    assert_eq!(converted.error, None);
    let Some(Value::IpamBlock(block)) = converted.updates[0].live() else { panic!("no block") };
    assert_eq!((block.cidr.as_str(), block.affinity.as_str()), ("10.65.0.0/29", "host:n1"));
    assert_eq!(block.borrowed.iter().collect::<Vec<_>>(), [(&"10.65.0.1".to_owned(), &"n2".to_owned())]);
    for bad in [r#"{"cidr":"10.66.0.0/29"}"#, r#"{"cidr":"10.65.0.0/29","allocations":[0]}"#] {
        let converted = processors.put(path, bad.as_bytes());
        assert_eq!(converted.updates[0].value, Err(DeletionReason::Invalid), "{bad}");
    }
    let old = processors.put(path, br#"{"cidr":"10.65.0.0/29","hostAffinity":"n3"}"#);
    let Some(Value::IpamBlock(block)) = old.updates[0].live() else { panic!("no block") };
    assert_eq!(block.affinity, "host:n3");
}

#[test]
fn affinities_without_a_value_are_confirmed_ones() {
    let converted = Processors::new().put("/calico/ipam/v2/host/n1/ipv4/block/10.65.0.0-26", b"");
    let Some(Value::BlockAffinity(affinity)) = converted.updates[0].live() else { panic!("no affinity") };
    assert_eq!((affinity.state.as_str(), affinity.deleted), ("", false));
    assert!(matches!(&converted.updates[0].key, Key::BlockAffinity(key) if key.host == "n1"));
    let path = "/calico/ipam/v2/host/n1/ipv4/block/10.65.0.0-26";
    let bad = Processors::new().put(path, br#"{"state":"perhaps"}"#);
    assert_eq!(bad.updates[0].value, Err(DeletionReason::Invalid));
    assert_eq!(bad.error.unwrap().field, "state");
    let others =
        Processors::new().put("/calico/ipam/v2/virtual/load-balancer/ipv4/block/10.65.0.0-26", b"{}");
    assert!(others.updates.is_empty() && others.error.is_none());
}

#[test]
fn network_sets_lose_their_bad_members_only() {
    let converted =
        put(&mut Processors::new(), "globalnetworksets/s", r#"{"nets":["10.0.0.1/8","x","fd00::1"]}"#);
    let Some(Value::NetworkSet(set)) = converted.updates[0].live() else { panic!("no set") };
    assert_eq!(set.nets, ["10.0.0.0/8", "fd00::1/128"]);
    assert_eq!(converted.error.unwrap().field, "spec.nets[1]");
}

#[test]
fn peers_need_exactly_one_kind_of_target() {
    let mut processors = Processors::new();
    let good = put(&mut processors, "bgppeers/p", r#"{"nodeSelector":"has(rr)","peerSelector":"has(rr)"}"#);
    assert_eq!(good.error, None);
    let bad = put(&mut processors, "bgppeers/p", r#"{"peerIP":"10.0.0.1","peerSelector":"has(rr)"}"#);
    assert_eq!(bad.updates[0].value, Err(DeletionReason::Invalid));
}

/// As if they were objects, they give nothing, and take nothing away.
#[test]
fn paths_with_an_empty_part_are_no_objects() {
    for rest in [
        "profiles/",
        "nodes/",
        "networksets/shop/",
        "networkpolicies//d",
        "networksets//s",
        "workloadendpoints//n-k8s-p-eth0",
        "felixconfigurations/",
    ] {
        let path = format!("/calico/resources/v3/projectcalico.org/{rest}");
        let mut processors = Processors::new();
        let put = processors.put(&path, br#"{"metadata":{"name":""},"spec":{}}"#);
        assert!(put.updates.is_empty() && put.error.is_some(), "{path}: {put:?}");
        assert!(processors.delete(&path).updates.is_empty(), "{path}");
    }
}
