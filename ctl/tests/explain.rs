//! `bulrushctl explain` over a folder of manifests, as a process.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

use std::process::{Command, Output};

const CLUSTER: &str = "
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 172.30.0.1/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 172.30.0.2/24}}
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: open}
spec:
  ingress: [{action: Allow}]
  egress: [{action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-web--1-eth0, namespace: shop, labels: {app: web, projectcalico.org/namespace: shop, projectcalico.org/orchestrator: k8s}}
spec: {node: n1, orchestrator: k8s, pod: web-1, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.65.1.1/32], profiles: [open]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n2-k8s-db--0-eth0, namespace: shop, labels: {app: db, projectcalico.org/namespace: shop, projectcalico.org/orchestrator: k8s}}
spec: {node: n2, orchestrator: k8s, pod: db-0, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.65.2.1/32], profiles: [open], ports: [{name: sql, port: 5432, protocol: TCP}]}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.base}
spec:
  tier: security
  selector: all()
  types: [Egress]
  egress:
  - {action: Deny, destination: {nets: [192.0.2.0/24]}}
  - {action: Pass}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: app == 'db'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: app == 'web'}, destination: {ports: [sql]}}
";

fn explain(from: &str, to: &str, port: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.yaml");
    std::fs::write(&file, CLUSTER).unwrap();
    let bulrushctl = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_bulrushctl"))
            .args(args)
            .env("DATASTORE_TYPE", "directory")
            .env("BULRUSH_DIRECTORY", folder.path().join("store"))
            .output()
            .unwrap()
    };
    std::fs::create_dir(folder.path().join("store")).unwrap();
    let applied = bulrushctl(&["apply", "-f", file.to_str().unwrap()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let Output { status, stdout, stderr } =
        bulrushctl(&["explain", "--from", from, "--to", to, "--port", port]);
    let text = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (status.code(), text)
}

#[test]
fn both_sides_are_explained_tier_by_tier() {
    let (code, text) = explain("shop/web-1", "shop/db-0", "tcp/5432");
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "tcp from 10.65.1.1 port 32768 to 10.65.2.1 port 5432",
        "node n1",
        "tier security, GlobalNetworkPolicy security.base: rule 2: pass",
        "profile open: rule 1: allow",
        "node n2",
        "tier default, NetworkPolicy shop/db: rule 1: allow",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    assert!(text.ends_with("\nallowed\n"), "{text}");
}

#[test]
fn a_denied_connection_names_who_denies_and_fails() {
    let (code, text) = explain("web-1", "10.65.2.1", "tcp/80");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("tier default, NetworkPolicy shop/db: no rule matches\n"), "{text}");
    assert!(text.contains("tier default: ends, its policies apply and none decided: deny\n"), "{text}");
    let (code, text) = explain("db-0", "192.0.2.9", "udp/53");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("GlobalNetworkPolicy security.base: rule 1: deny"), "{text}");
    assert!(!text.contains("node n1"), "{text}");
}

#[test]
fn a_name_that_nobody_has_is_named() {
    let (code, text) = explain("shop/nobody", "db-0", "tcp/80");
    assert_eq!(code, Some(1));
    assert!(text.contains("\"shop/nobody\"") && text.contains("get workloadendpoint"), "{text}");
    let (_, text) = explain("web-1", "db-0", "tcp");
    assert!(text.contains("--port") && text.contains("tcp/443"), "{text}");
}

#[test]
fn a_workload_does_not_reach_its_own_node_by_default() {
    let (code, text) = explain("web-1", "n1", "tcp/22");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("DefaultEndpointToHostAction is Drop"), "{text}");
    assert_eq!(explain("n1", "web-1", "tcp/22").0, Some(0));
}
