//! The built program on a real Kubernetes API server.

mod kinds;
mod support;

use support::Ctl;
use syncer_common::kubernetes::ApiGroup;
use syncer_common::testing::kubernetes::KubeServer;

/// What is Kubernetes' own there: read, and changed where it comes from.
const NOT_OURS: [&str; 4] = ["LiveMigration", "Node", "Profile", "WorkloadEndpoint"];

const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations: {projectcalico.org/IPv4Address: 10.0.0.1/24}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  annotations: {cni.projectcalico.org/podIP: 10.65.0.0/32}
spec: {nodeName: n1, containers: [{name: c, image: none}]}
";

fn ctl(server: &KubeServer, group: &str) -> Ctl {
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
    Ctl::new(&[("DATASTORE_TYPE", "kubernetes"), ("KUBECONFIG", kubeconfig), ("CALICO_API_GROUP", group)])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_lives_in_kubernetes() {
    let Some(server) = KubeServer::start().await else { return };
    server.apply(CLUSTER).await;
    for (group, name) in [(ApiGroup::V1, "crd.projectcalico.org/v1"), (ApiGroup::V3, "projectcalico.org/v3")]
    {
        server.install_crds(group).await;
        let ctl = ctl(&server, name);
        kinds::all_kinds(&ctl, &NOT_OURS);
        kubernetes_own(&ctl);
        addresses(&ctl);
    }
}

/// Printed as on any datastore; an attempt to write says what to change instead, and touches nothing.
fn kubernetes_own(ctl: &Ctl) {
    assert_eq!(
        ctl.ok(&["get", "node", "-o", "wide"]),
        "NAME   ASN       IPV4          IPV6\nn1     (64512)   10.0.0.1/24\n"
    );
    let endpoints = ctl.ok(&["get", "wep", "-A"]);
    assert!(
        endpoints
            .lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("shop        web        n1     10.65.0.0/32")),
        "{endpoints}"
    );
    let profiles = ctl.ok(&["get", "profile", "-o", "name"]);
    for name in ["kns.shop", "ksa.shop.default", "projectcalico-default-allow"] {
        assert!(profiles.contains(&format!("profile/{name}\n")), "{profiles}");
    }
    for (args, part) in [
        (vec!["delete", "node", "n1"], "nodes n1 of Kubernetes"),
        (vec!["label", "profile", "kns.shop", "a=b"], "comes from the Namespace shop: change that instead"),
        (vec!["delete", "wep", "n1-k8s-web-eth0", "-n", "shop"], "pods shop/web of Kubernetes"),
    ] {
        let ended = ctl.run(&args);
        assert_eq!(ended.code, 1, "{args:?}: {ended:?}");
        assert!(ended.err.contains(part), "{args:?}: {ended:?}");
    }
    assert_eq!(ctl.ok(&["get", "node", "-o", "name"]), "node/n1\n");
}

fn addresses(ctl: &Ctl) {
    let ipam = ["IPPool", "IPAMBlock", "IPAMHandle", "BlockAffinity"];
    let text: Vec<String> =
        kinds::CASES.iter().filter(|case| ipam.contains(&case.0)).map(kinds::manifest).collect();
    ctl.apply(&text.join("---\n"));
    let table = ctl.ok(&["ipam", "show", "--show-blocks"]);
    assert!(table.contains("| Block    | 10.65.0.0/26 |        64 |     1 (2%) |     63 (98%) |"), "{table}");
    assert!(ctl.ok(&["ipam", "show", "--ip=10.65.0.0"]).contains("  pod: web\n"));
    let info = ctl.ok(&["datastore", "info"]);
    for part in [
        "Datastore:    kubernetes\n",
        "Reachable:    yes",
        "  kubernetes/pods ",
        "  IPAMBlock ",
        "  WorkloadEndpoint ",
    ] {
        assert!(info.contains(part), "{part} is missing: {info}");
    }
    let none = ctl.run_with(&["delete", "-f", "-"], &text.join("---\n"));
    assert_eq!(none.code, 0, "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_gone_is_named() {
    let Some(mut server) = KubeServer::start().await else { return };
    let ctl = ctl(&server, "crd.projectcalico.org/v1");
    server.stop();
    let info = ctl.run(&["datastore", "info"]);
    assert_eq!(info.code, 1, "{info:?}");
    let ended = ctl.run(&["get", "ippool"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{ended:?}");
    let kubeconfig = &ctl.variables.iter().find(|(name, _)| name == "KUBECONFIG").expect("set above").1;
    assert!(ended.err.contains(&format!("Datastore: kubernetes, Access: {kubeconfig}; ")), "{ended:?}");
}
