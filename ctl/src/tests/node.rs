//! `delete node`: what goes with it, and what stays.

use serde_json::json;

use super::*;

const BLOCK: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26";
const OTHERS_BLOCK: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.0.64-26";
const EMPTY_BLOCK: &str = "/calico/ipam/v2/assignment/ipv4/block/10.244.0.128-26";

fn allocations(of: &[(usize, usize)]) -> Vec<Value> {
    let mut all = vec![Value::Null; 64];
    of.iter().for_each(|(ordinal, index)| all[*ordinal] = json!(index));
    all
}

/// n1 with two blocks, an address in n2's, a tunnel address, a pod and its own objects; n10 and n2 are others.
async fn cluster() -> Memory {
    let store = Memory::default();
    let objects = "
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 10.0.0.1/24, ipv4IPIPTunnelAddr: 10.244.0.1}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 10.0.0.2/24}}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-web-eth0, namespace: shop}
spec: {node: n1, orchestrator: k8s, pod: web, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.244.0.0/32]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n2-k8s-db-eth0, namespace: shop}
spec: {node: n2, orchestrator: k8s, pod: db, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.244.0.2/32]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n1-eth0}
spec: {node: n1, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: n1-tor}
spec: {node: n1, peerIP: 10.0.0.254, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: all-tor}
spec: {peerIP: 10.0.0.253, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.n1}
spec: {logPrefix: n1}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {logPrefix: all}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.n1}
spec: {logSeverityScreen: Info}
";
    run(&store, Verb::Apply, objects).await.unwrap();
    let put = |key: &str, value: Value| store.with(|state| state.put(key, Bytes::from(value.to_string())));
    put(
        BLOCK,
        json!({
            "cidr": "10.244.0.0/26", "affinity": "host:n1", "sequenceNumber": 7,
            "allocations": allocations(&[(0, 1), (1, 0), (2, 2)]),
            "unallocated": (3..64).collect::<Vec<_>>(),
            "sequenceNumberForAllocation": {"0": 5, "2": 6},
            "attributes": [
                // An old allocation: it names no node.
                {"handle_id": "ipip-tunnel-addr-n1", "secondary": {"type": "ipipTunnelAddress"}},
                {"handle_id": "net.web", "secondary": {"node": "n1", "pod": "web"}},
                {"handle_id": "net.db", "secondary": {"node": "n2", "pod": "db"}},
            ],
        }),
    );
    put(
        OTHERS_BLOCK,
        json!({
            "cidr": "10.244.0.64/26", "affinity": "host:n2", "sequenceNumber": 1,
            "allocations": allocations(&[(0, 0), (5, 0), (6, 1)]), "unallocated": [],
            "attributes": [{"handle_id": "net.x", "secondary": {"node": "n1"}}, {"handle_id": "net.y", "secondary": {"node": "n2"}}],
        }),
    );
    put(
        EMPTY_BLOCK,
        json!({"cidr": "10.244.0.128/26", "affinity": "host:n1", "allocations": allocations(&[]), "attributes": []}),
    );
    for (host, cidr) in [
        ("n1", "10.244.0.0-26"),
        ("n1", "10.244.0.128-26"),
        ("n2", "10.244.0.64-26"),
        ("n10", "10.244.9.0-26"),
    ] {
        put(&format!("/calico/ipam/v2/host/{host}/ipv4/block/{cidr}"), json!({"state": "confirmed"}));
    }
    put("/calico/ipam/v2/host/n1", json!({}));
    put("/calico/ipam/v2/handle/net.web", json!({"block": {"10.244.0.0/26": 1}}));
    put("/calico/ipam/v2/handle/net.x", json!({"block": {"10.244.0.64/26": 2, "10.244.9.0/26": 1}}));
    put("/calico/ipam/v2/handle/net.db", json!({"block": {"10.244.0.0/26": 1}}));
    store
}

#[tokio::test]
async fn what_belongs_to_a_node_goes_with_it() {
    let store = cluster().await;
    assert_eq!(
        delete(&store, "node", "n1").await.unwrap(),
        "Released with Node(n1): 1 BGPConfiguration, 1 BGPPeer, 1 FelixConfiguration, 1 HostEndpoint, \
         1 WorkloadEndpoint, 4 address(es), 2 block(s)\nSuccessfully deleted 1 'Node' resource(s)\n"
    );
    let v3 = "/calico/resources/v3/projectcalico.org";
    assert_eq!(
        store.keys(),
        [
            BLOCK.to_owned(),
            OTHERS_BLOCK.to_owned(),
            "/calico/ipam/v2/handle/net.db".to_owned(),
            "/calico/ipam/v2/handle/net.x".to_owned(),
            "/calico/ipam/v2/host/n10/ipv4/block/10.244.9.0-26".to_owned(),
            "/calico/ipam/v2/host/n2/ipv4/block/10.244.0.64-26".to_owned(),
            format!("{v3}/bgppeers/all-tor"),
            format!("{v3}/felixconfigurations/default"),
            format!("{v3}/nodes/n2"),
            format!("{v3}/workloadendpoints/shop/n2-k8s-db-eth0"),
        ]
    );
    // n2 has an address in it: it stays, and is nobody's.
    let block = store.stored(BLOCK);
    assert_eq!((&block["affinity"], &block["sequenceNumber"]), (&Value::Null, &json!(8)));
    assert_eq!(block["allocations"], json!(allocations(&[(2, 0)])));
    assert_eq!(
        block["attributes"],
        json!([{"handle_id": "net.db", "secondary": {"node": "n2", "pod": "db"}}])
    );
    assert_eq!(block["unallocated"], json!((3..64).chain([0, 1]).collect::<Vec<_>>()));
    assert_eq!(block["sequenceNumberForAllocation"], json!({"2": 6}));
    let theirs = store.stored(OTHERS_BLOCK);
    assert_eq!(
        (&theirs["affinity"], &theirs["allocations"]),
        (&json!("host:n2"), &json!(allocations(&[(6, 0)])))
    );
    assert_eq!(store.stored("/calico/ipam/v2/handle/net.x"), json!({"block": {"10.244.9.0/26": 1}}));
}

#[tokio::test]
async fn addresses_rest_where_the_cluster_wants_it() {
    let store = cluster().await;
    store.with(|state| {
        state.put("/calico/ipam/v2/config", Bytes::from_static(br#"{"ipCooldownSeconds":30}"#))
    });
    delete(&store, "node", "n1").await.unwrap();
    let block = store.stored(BLOCK);
    let resting: Vec<_> = (0..64).filter(|i| !block["allocations"][i].is_null()).collect();
    assert_eq!(resting, [0, 1, 2], "none is free yet");
    for ordinal in 0..2 {
        let index = usize::try_from(block["allocations"][ordinal].as_u64().unwrap()).unwrap();
        assert!(block["attributes"][index]["releasedAt"].is_string(), "{block}");
    }
    assert_eq!(block["unallocated"].as_array().unwrap().len(), 61);
}

#[tokio::test]
async fn a_writer_in_between_loses_nothing() {
    let store = cluster().await;
    let mut theirs = store.stored(BLOCK);
    theirs["attributes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"handle_id": "net.new", "secondary": {"node": "n2"}}));
    theirs["allocations"][9] = json!(3);
    store.with(|state| state.interference.push((BLOCK.into(), Bytes::from(theirs.to_string()))));
    delete(&store, "node", "n1").await.unwrap();
    let block = store.stored(BLOCK);
    let index = usize::try_from(block["allocations"][9].as_u64().unwrap()).unwrap();
    assert_eq!(block["attributes"][index]["handle_id"], "net.new");
}

#[tokio::test]
async fn only_the_node_goes_where_nodes_are_not_ours() {
    let store = cluster().await;
    let before = store.keys().len();
    let verb = Verb::Delete { skip_not_exists: false, release: false };
    write::delete_named(&store, verb, "node", &["n1".to_owned()], "default").await.unwrap();
    assert_eq!(store.keys().len(), before - 1);
}
