//! `ipam show`.

use serde_json::json;

use super::*;
use crate::ipam;

/// A block of n1 with an address of a pod of its own, one of a pod of n2, one that cools down, one of nobody.
fn block() -> Value {
    let mut allocations = vec![Value::Null; 64];
    (allocations[0], allocations[1], allocations[2], allocations[3]) =
        (json!(0), json!(1), json!(2), json!(3));
    json!({
        "cidr": "10.244.0.0/26",
        "affinity": "host:n1",
        "allocations": allocations,
        "unallocated": (4..64).collect::<Vec<_>>(),
        "attributes": [
            {"handle_id": "k8s-pod-network.1", "secondary": {"node": "n1", "pod": "web", "namespace": "shop"},
             "alternateOwnerAttrs": {"pod": "web-2"}},
            {"handle_id": "k8s-pod-network.2", "secondary": {"node": "n2", "pod": "db", "namespace": "shop"}},
            {"handle_id": null, "secondary": null, "releasedAt": "2026-08-01T00:00:00Z"},
            {"handle_id": "old", "secondary": {}},
        ],
    })
}

async fn cluster() -> Memory {
    let store = Memory::default();
    run(&store, Verb::Apply, POOL).await.unwrap();
    let put = |key: &str, value: Value| store.with(|state| state.put(key, Bytes::from(value.to_string())));
    put("/calico/ipam/v2/assignment/ipv4/block/10.244.0.0-26", block());
    put(
        "/calico/ipam/v2/assignment/ipv4/block/10.99.0.0-26",
        json!({"cidr": "10.99.0.0/26", "allocations": []}),
    );
    store
}

#[tokio::test]
async fn pools_and_blocks_are_counted() {
    let store = cluster().await;
    assert_eq!(
        ipam::utilization(&store, true).await.unwrap(),
        "+----------+---------------+-----------+------------+--------------+-------------+\n\
         | GROUPING | CIDR          | IPS TOTAL | IPS IN USE |     IPS FREE | IPS COOLING |\n\
         +----------+---------------+-----------+------------+--------------+-------------+\n\
         | IP Pool  | 10.244.0.0/16 |     65536 |     4 (0%) | 65532 (100%) |      1 (0%) |\n\
         | Block    | 10.244.0.0/26 |        64 |     4 (6%) |     60 (94%) |      1 (2%) |\n\
         | Block    | 10.99.0.0/26  |        64 |     0 (0%) |    64 (100%) |      0 (0%) |\n\
         +----------+---------------+-----------+------------+--------------+-------------+\n\
         \nNote: 1 block(s) are in no pool: 10.99.0.0/26\n"
    );
    let pools = ipam::utilization(&store, false).await.unwrap();
    assert!(pools.contains("IP Pool") && !pools.contains("| Block"), "{pools}");
}

#[tokio::test]
async fn reserved_addresses_are_not_free() {
    let store = cluster().await;
    // Two that overlap; three of the addresses are in use already.
    let reserved = "apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: r}\n\
                    spec: {reservedCIDRs: [10.244.0.0/30, 10.244.0.0/29, 10.1.0.0/16]}\n";
    run(&store, Verb::Apply, reserved).await.unwrap();
    let text = ipam::utilization(&store, true).await.unwrap();
    assert!(
        text.contains("| Block    | 10.244.0.0/26 |        64 |     4 (6%) |     56 (88%) |      8 (12%) |      1 (2%) |"),
        "{text}"
    );
}

#[tokio::test]
async fn pools_of_any_size_have_a_share() {
    let store = Memory::default();
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: six}\nspec: {cidr: \"fd00::/48\"}\n";
    run(&store, Verb::Apply, pool).await.unwrap();
    let text = ipam::utilization(&store, false).await.unwrap();
    assert!(
        text.contains("| IP Pool  | fd00::/48 | 1.2089e+24 |     0 (0%) | 1.2089e+24 (100%) |"),
        "{text}"
    );
}

#[tokio::test]
async fn an_address_names_its_owner() {
    let store = cluster().await;
    assert_eq!(
        ipam::one(&store, "10.244.0.0").await.unwrap(),
        "IP 10.244.0.0 is in use\nHandle ID: k8s-pod-network.1\nActive Owner Attributes:\n  namespace: shop\n  \
         node: n1\n  pod: web\nAlternate Owner Attributes:\n  pod: web-2\nBlock: 10.244.0.0/26 of n1\n"
    );
    assert_eq!(
        ipam::one(&store, "10.244.0.3").await.unwrap(),
        "IP 10.244.0.3 is in use\nHandle ID: old\nNo Active Owner attributes defined\nBlock: 10.244.0.0/26 of n1\n"
    );
    let cooling = ipam::one(&store, "10.244.0.2").await.unwrap();
    assert!(cooling.starts_with("IP 10.244.0.2 was released at 2026-08-01T00:00:00Z"), "{cooling}");
    for free in ["10.244.0.63", "10.244.7.1", "192.0.2.1"] {
        assert_eq!(ipam::one(&store, free).await.unwrap(), format!("{free} is not assigned\n"));
    }
    let error = ipam::one(&store, "10.244.0").await.unwrap_err().to_string();
    assert!(error.contains("--ip 10.244.0: is not an IP address"), "{error}");
}

#[tokio::test]
async fn addresses_out_of_another_nodes_block_are_borrowed() {
    let store = cluster().await;
    assert_eq!(
        ipam::borrowed(&store).await.unwrap(),
        "+------------+----------------+---------------+-------------+------+--------------+\n\
         | IP         | BORROWING-NODE | BLOCK         | BLOCK OWNER | TYPE | ALLOCATED-TO |\n\
         +------------+----------------+---------------+-------------+------+--------------+\n\
         | 10.244.0.1 | n2             | 10.244.0.0/26 | n1          | pod  | shop/db      |\n\
         +------------+----------------+---------------+-------------+------+--------------+\n\
         \nNote: found 1 IP allocations without an explicit node association. Unable to determine if they are \
         borrowed.\n"
    );
}

#[tokio::test]
async fn settings_are_shown_with_their_defaults() {
    let store = Memory::default();
    let text = ipam::configuration(&store).await.unwrap();
    for line in
        ["| StrictAffinity     | false |", "| AutoAllocateBlocks | true  |", "| MaxBlocksPerHost   | 0     |"]
    {
        assert!(text.contains(line), "{text}");
    }
    store.with(|state| {
        state.put(
            "/calico/ipam/v2/config",
            Bytes::from_static(
                br#"{"strict_affinity":true,"auto_allocate_blocks":false,"maxBlocksPerHost":4}"#,
            ),
        )
    });
    let text = ipam::configuration(&store).await.unwrap();
    for line in
        ["| StrictAffinity     | true  |", "| AutoAllocateBlocks | false |", "| MaxBlocksPerHost   | 4     |"]
    {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn a_block_that_cannot_be_read_does_not_hide_the_others() {
    let store = cluster().await;
    store.with(|state| {
        state.put("/calico/ipam/v2/assignment/ipv4/block/10.244.0.64-26", Bytes::from_static(b"{"))
    });
    let text = ipam::utilization(&store, true).await.unwrap();
    assert!(text.contains("10.244.0.0/26") && !text.contains("10.244.0.64/26"), "{text}");
}
