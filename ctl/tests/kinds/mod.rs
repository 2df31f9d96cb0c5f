//! One manifest of every kind, and what is done with all of them on any datastore.

use syncer_common::apis::ApiKind;

use crate::support::Ctl;

/// (kind, namespace, name, spec, a patch of it, a part of the spec afterwards)
type Case = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
pub const CASES: [Case; 26] = [
    ("BGPConfiguration", "", "default", "{asNumber: 64512, nodeToNodeMeshEnabled: true}", "{asNumber: 64513}", "asNumber: 64513"),
    ("BGPFilter", "", "no-default", "{importV4: [{action: Reject, matchOperator: Equal, cidr: 0.0.0.0/0}]}", "{importV4: [{action: Accept}]}", "action: Accept"),
    ("BGPPeer", "", "tor", "{peerIP: 192.0.2.1, asNumber: 64600}", "{asNumber: 64601}", "asNumber: 64601"),
    ("BlockAffinity", "", "n1-10-65-0-0-26", "{cidr: 10.65.0.0/26, node: n1, state: pending, type: host, deleted: \"false\"}", "{state: confirmed}", "state: confirmed"),
    ("CalicoNodeStatus", "", "n1", "{node: n1, classes: [BGP], updatePeriodSeconds: 10}", "{updatePeriodSeconds: 20}", "updatePeriodSeconds: 20"),
    ("ClusterInformation", "", "default", "{clusterGUID: 0f0f, calicoVersion: v3.32.0, clusterType: \"k8s,bgp\", datastoreReady: false}", "{datastoreReady: true}", "datastoreReady: true"),
    ("FelixConfiguration", "", "default", "{logPrefix: bulrush}", "{logPrefix: other}", "logPrefix: other"),
    ("GlobalNetworkPolicy", "", "deny", "{selector: \"app == 'web'\", order: 10, ingress: [{action: Deny}]}", "{order: 20}", "order: 20"),
    ("GlobalNetworkSet", "", "bogons", "{nets: [192.0.2.0/24]}", "{nets: [198.51.100.0/24]}", "198.51.100.0/24"),
    ("HostEndpoint", "", "n1-eth0", "{node: n1, interfaceName: eth0}", "{interfaceName: eth1}", "interfaceName: eth1"),
    ("IPAMBlock", "", "10-65-0-0-26", "{cidr: 10.65.0.0/26, affinity: \"host:n1\", allocations: [0, null], attributes: [{handle_id: net.web, secondary: {node: n1, pod: web, namespace: shop}}], unallocated: [1], deleted: false}", "{affinity: \"host:n2\"}", "affinity: host:n2"),
    ("IPAMConfig", "", "default", "{strictAffinity: false, autoAllocateBlocks: true, maxBlocksPerHost: 4}", "{strictAffinity: true}", "strictAffinity: true"),
    ("IPAMHandle", "", "net.web", "{handleID: net.web, block: {10.65.0.0/26: 1}, deleted: false}", "{block: {10.65.0.0/26: 2}}", "10.65.0.0/26: 2"),
    ("IPPool", "", "main", "{cidr: 10.65.0.0/16, natOutgoing: true}", "{disabled: true}", "disabled: true"),
    ("IPReservation", "", "gateways", "{reservedCIDRs: [10.65.255.0/24]}", "{reservedCIDRs: [10.65.254.0/24]}", "10.65.254.0/24"),
    ("KubeControllersConfiguration", "", "default", "{logSeverityScreen: Info, controllers: {}}", "{logSeverityScreen: Debug}", "logSeverityScreen: Debug"),
    ("LiveMigration", "shop", "move", "{}", "{note: none}", "note: none"),
    ("NetworkPolicy", "shop", "web", "{selector: \"app == 'web'\", ingress: [{action: Allow}]}", "{order: 5}", "order: 5"),
    ("NetworkSet", "shop", "partners", "{nets: [203.0.113.0/24]}", "{nets: [203.0.113.0/25]}", "203.0.113.0/25"),
    ("Node", "", "n1", "{bgp: {ipv4Address: 10.0.0.1/24}}", "{bgp: {asNumber: 64700}}", "asNumber: 64700"),
    ("Profile", "", "web", "{labelsToApply: {role: web}}", "{labelsToApply: {role: db}}", "role: db"),
    ("StagedGlobalNetworkPolicy", "", "deny", "{selector: all(), ingress: [{action: Deny}]}", "{order: 3}", "order: 3"),
    ("StagedKubernetesNetworkPolicy", "shop", "web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}", "{stagedAction: Delete}", "stagedAction: Delete"),
    ("StagedNetworkPolicy", "shop", "web", "{selector: all(), ingress: [{action: Deny}]}", "{order: 4}", "order: 4"),
    ("Tier", "", "security", "{order: 100}", "{order: 200}", "order: 200"),
    ("WorkloadEndpoint", "shop", "n1-k8s-web-eth0", "{node: n1, orchestrator: k8s, pod: web, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.65.0.0/32]}", "{interfaceName: cali2}", "interfaceName: cali2"),
];

pub fn manifest((kind, namespace, name, spec, ..): &Case) -> String {
    let namespace = if namespace.is_empty() { String::new() } else { format!(", namespace: {namespace}") };
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n"
    )
}

/// Creates, lists, prints, labels, patches, applies again and deletes one object.
fn through_its_life(ctl: &Ctl, case: &Case) {
    let (kind, namespace, name, _, patch, part) = case;
    let text = manifest(case);
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let context = |step: &str| format!("{kind} {name}: {step}");
    let created = ctl.run_with(&["create", "-f", "-"], &text);
    assert_eq!(created.code, 0, "{}: {created:?}", context("create"));
    assert_eq!(created.out, format!("Successfully created 1 '{kind}' resource(s)\n"));
    let again = ctl.run_with(&["create", "-f", "-"], &text);
    assert_eq!(again.code, 1, "{}: {again:?}", context("create again"));
    assert!(again.err.contains("resource already exists: "), "{}: {again:?}", context("create again"));

    let listed = ctl.ok(&["get", kind, "-A", "-o", "name"]);
    let line = format!("{}/{name}", kind.to_lowercase());
    assert!(listed.lines().any(|listed| listed == line), "{}: {listed}", context("list"));
    let printed = ctl.ok(&["get", kind, name, "-n", namespace, "-o", "yaml"]);

    // Objects of IPAM have no labels in etcd.
    if !matches!(*kind, "IPAMBlock" | "BlockAffinity" | "IPAMHandle" | "IPAMConfig") {
        ctl.ok(&["label", kind, name, "-n", namespace, "rack=a7"]);
        let labelled = ctl.ok(&["get", kind, name, "-n", namespace, "-o", "yaml"]);
        assert!(labelled.contains("rack: a7"), "{}: {labelled}", context("label"));
        ctl.ok(&["label", kind, name, "-n", namespace, "rack", "--remove"]);
    }

    ctl.ok(&["patch", kind, name, "-n", namespace, "-p", &format!("{{spec: {patch}}}")]);
    let patched = ctl.ok(&["get", kind, name, "-n", namespace, "-o", "yaml"]);
    assert!(patched.contains(part), "{}: {patched}", context("patch"));
    // What was printed first is outdated by now, and says so.
    if printed.contains("resourceVersion") {
        let outdated = ctl.run_with(&["replace", "-f", "-"], &printed);
        assert_eq!(outdated.code, 1, "{}: {outdated:?}", context("replace with an old revision"));
        assert!(outdated.err.contains("update conflict"), "{}: {outdated:?}", context("replace"));
    }
    // What was printed last is as it is.
    assert_eq!(ctl.apply(&patched), format!("Successfully applied 1 '{kind}' resource(s)\n"));
    assert_eq!(ctl.ok(&["get", kind, name, "-n", namespace, "-o", "yaml"]), patched, "{}", context("apply"));

    let deleted = ctl.ok(&["delete", kind, name, "-n", namespace]);
    assert!(deleted.ends_with(&format!("Successfully deleted 1 '{kind}' resource(s)\n")), "{deleted}");
    let gone = ctl.run(&["get", kind, name, "-n", namespace]);
    assert_eq!(gone.code, 1, "{}: {gone:?}", context("get after delete"));
    assert!(gone.err.contains("resource does not exist"), "{}: {gone:?}", context("get after delete"));
}

/// Every kind that the datastore writes.
pub fn all_kinds(ctl: &Ctl, skip: &[&str]) {
    for kind in ApiKind::all() {
        let case = CASES.iter().find(|case| case.0 == kind.kind);
        let case = case.unwrap_or_else(|| panic!("no manifest of kind {}", kind.kind));
        if !skip.contains(&kind.kind) {
            through_its_life(ctl, case);
        }
    }
}
