//! A synthetic cluster in Kubernetes: what Kubernetes keeps in objects of its own is written as such.
//!
//! The cluster is that of etcd, object for object: workload endpoints become running pods, profiles the namespaces and
//! service accounts that they come from, nodes those of Kubernetes with Calico's annotations. All else is a custom
//! resource, which the datastore's client writes. Nobody else is needed: neither scheduler nor kubelet nor controllers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::{Map, Value as Json, json};
use syncer_common::backend::config::KubernetesConfig;
use syncer_common::backend::kubernetes::{KubernetesStore, Timing};
use syncer_common::backend::{self, Error};
use syncer_common::kubernetes::{ApiResource, Located, Options, locate, node_annotations};

use crate::cluster;

/// A server under load may take long over a write, and whether one counted that was given up nobody knows.
const ANSWER: Duration = Duration::from_secs(30);
/// For controllers to empty a namespace.
const GONE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const POD_IP: &str = "cni.projectcalico.org/podIP";
const POD_IPS: &str = "cni.projectcalico.org/podIPs";

pub struct Kubernetes {
    store: Arc<KubernetesStore>,
    /// Controllers run beside the API server: they empty a namespace that is deleted and let go of it.
    controllers: bool,
}

impl Kubernetes {
    pub async fn open(config: KubernetesConfig) -> Result<Self> {
        let timing = Timing { request: ANSWER, ..Timing::default() };
        let store = Arc::new(KubernetesStore::open_with(config, timing).await?);
        // Controllers make one in every namespace; an API server alone has none.
        let resource = ApiResource {
            group: "",
            version: "v1",
            plural: "serviceaccounts",
            kind: "ServiceAccount",
            namespaced: true,
        };
        let account = Located { resource, namespace: Some("default".into()), name: "default".into() };
        let controllers = exists(store.request(Method::GET, &account, "", &Json::Null).await)?;
        Ok(Kubernetes { store, controllers })
    }

    pub fn store(&self) -> Arc<KubernetesStore> {
        self.store.clone()
    }

    /// Writes an object of Kubernetes' own. `new`: it is not there yet.
    pub async fn put(&self, object: &Located, value: &[u8], new: bool) -> Result<()> {
        let kind = object.resource.kind;
        let whole = native(object, value).with_context(|| format!("converting to a {kind}"))?;
        if !new {
            let changed = json!({ "metadata": { "labels": whole["metadata"]["labels"] } });
            self.store.request(Method::PATCH, object, "", &changed).await?;
            return Ok(());
        }
        match self.store.request(Method::POST, object, "", &whole).await {
            // A controller was first.
            Err(Error::Conflict { .. }) if kind == "ServiceAccount" => {}
            created => drop(created?),
        }
        if kind == "Pod" {
            // As the kubelet reports it: with the API server a pod begins as pending.
            let status = json!({ "status": whole["status"] });
            self.store.request(Method::PATCH, object, "status", &status).await?;
        }
        Ok(())
    }

    /// Deletes an object of Kubernetes' own, and returns when it is gone.
    pub async fn delete(&self, object: &Located) -> Result<()> {
        let now = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        let mut left = match self.store.request(Method::DELETE, object, "", &now).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            left => left?,
        };
        if object.resource.kind != "Namespace" {
            return Ok(());
        }
        if !self.controllers {
            // It stays for as long as nobody says that it is empty.
            left["spec"]["finalizers"] = json!([]);
            exists(self.store.request(Method::PUT, object, "finalize", &left).await)?;
            return Ok(());
        }
        let deadline = Instant::now() + GONE;
        while exists(self.store.request(Method::GET, object, "", &Json::Null).await)? {
            ensure!(
                Instant::now() < deadline,
                "namespace {} is still there after {} s: `kubectl get namespace {} -o yaml` says what it waits for",
                object.name,
                GONE.as_secs(),
                object.name
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn exists(answer: backend::Result<Json>) -> backend::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The object of Kubernetes' own that stands for a key, if one does.
pub fn own(key: &str) -> Option<Located> {
    // Which group serves Calico's kinds is nothing to those of Kubernetes.
    locate(key, &Options::default()).filter(|object| object.resource.group.is_empty())
}

/// As people know it: `Pod team-001/web-1`.
pub fn name(key: &str) -> String {
    match locate(key, &Options::default()) {
        Some(Located { resource, namespace: Some(namespace), name }) => {
            format!("{} {namespace}/{name}", resource.kind)
        }
        Some(Located { resource, namespace: None, name }) => format!("{} {name}", resource.kind),
        None => key.to_owned(),
    }
}

/// What every cluster has, or a typha in it: it is no synthetic cluster's, and none disturbs it.
pub fn is_system(key: &str) -> bool {
    let Some(Located { resource, namespace, name }) = locate(key, &Options::default()) else { return false };
    let namespace = match resource.kind {
        "Namespace" => name,
        "ServiceAccount" | "Service" | "EndpointSlice" => namespace.unwrap_or_default(),
        _ => return false,
    };
    matches!(namespace.as_str(), "default" | "bulrush-system") || namespace.starts_with("kube-")
}

/// The object of Kubernetes' own for the value that etcd would hold.
fn native(object: &Located, value: &[u8]) -> Result<Json> {
    let Located { resource, namespace, name } = object;
    let mut value: Json = serde_json::from_slice(value)?;
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.as_str().into();
    }
    let mut whole = json!({ "apiVersion": resource.version, "kind": resource.kind });
    match resource.kind {
        "Pod" => {
            metadata["labels"] = without_prefix(&value["metadata"]["labels"], "");
            let networks = value["spec"]["ipNetworks"].as_array().into_iter().flatten();
            let networks: Vec<&str> = networks.filter_map(Json::as_str).collect();
            metadata["annotations"] = json!({
                POD_IP: networks.first().context("spec.ipNetworks: an endpoint without an address")?,
                POD_IPS: networks.join(","),
            });
            whole["spec"] = pod_spec(&value["spec"]);
            whole["status"] = running(&networks);
        }
        "Node" => {
            metadata["labels"] = value["metadata"]["labels"].take();
            let mut annotations = node_annotations(value.to_string().as_bytes())?;
            annotations.retain(|_, text| !text.is_null());
            metadata["annotations"] = annotations.into();
            let cidr = cluster::pod_cidr(name);
            whole["spec"] = json!({
                "podCIDR": cidr, "podCIDRs": [cidr],
                // Where there is a scheduler it is not to put pods of others there.
                "taints": [{ "key": "loadtest.bulrush/simulated", "effect": "NoSchedule" }],
            });
            let address = value["spec"]["bgp"]["ipv4Address"].as_str().unwrap_or_default();
            let address = address.split_once('/').map_or(address, |(address, _)| address);
            whole["status"] = json!({
                "addresses": [
                    { "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name },
                ],
                "conditions": [{ "type": "Ready", "status": "True" }],
            });
        }
        kind => {
            let prefix = if kind == "Namespace" { "pcns." } else { "pcsa." };
            metadata["labels"] = without_prefix(&value["spec"]["labelsToApply"], prefix);
        }
    }
    whole["metadata"] = metadata;
    Ok(whole)
}

/// Labels of the object itself: without what the conversion adds.
fn without_prefix(labels: &Json, prefix: &str) -> Json {
    let labels = labels.as_object().into_iter().flatten();
    let own = labels.filter_map(|(label, value)| Some((label.strip_prefix(prefix)?, value)));
    let own = own.filter(|(label, _)| !label.starts_with("projectcalico.org/"));
    Json::Object(own.map(|(label, value)| (label.to_owned(), value.clone())).collect::<Map<_, _>>())
}

fn pod_spec(endpoint: &Json) -> Json {
    let ports = endpoint["ports"].as_array().into_iter().flatten().map(
        |port| json!({ "name": port["name"], "protocol": port["protocol"], "containerPort": port["port"] }),
    );
    json!({
        "nodeName": endpoint["node"], "serviceAccountName": endpoint["serviceAccountName"],
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
        // Its node has no kubelet: whoever minds that is not to evict it.
        "tolerations": [{ "operator": "Exists" }],
        "containers": [{
            "name": "app", "image": "loadtest.invalid/simulated", "ports": ports.collect::<Vec<_>>(),
        }],
    })
}

fn running(networks: &[&str]) -> Json {
    let addresses = networks.iter().map(|net| net.split_once('/').map_or(*net, |(address, _)| address));
    let addresses: Vec<Json> = addresses.map(|address| json!({ "ip": address })).collect();
    json!({
        "phase": "Running", "podIP": addresses[0]["ip"], "podIPs": addresses,
        "conditions": [{ "type": "Ready", "status": "True" }],
    })
}

#[cfg(test)]
mod tests {
    use syncer_common::kubernetes::read;

    use super::*;
    use crate::cluster::{Change, Cluster, Object};
    use crate::shape::Shape;

    /// The value that agents' side makes of the object, beside that in etcd.
    fn both_ways(Object { key, value }: &Object) -> Option<(&'static str, Json, Json)> {
        let object = own(key)?;
        let mut there = native(&object, value).unwrap();
        // The API server's.
        there["metadata"]["uid"] = "0e4a9d2f-5a6c-4c1e-9f43-111111111111".into();
        let found = read(&object.resource, &Options::default(), there.to_string().as_bytes()).unwrap();
        assert_eq!((&found.path, found.findings), (key, vec![]));
        let found = serde_json::from_slice(&found.value.expect("an object that counts")).unwrap();
        Some((object.resource.kind, found, serde_json::from_slice(value).unwrap()))
    }

    #[test]
    fn what_kubernetes_keeps_means_what_etcd_would_hold() {
        let shape =
            Shape { nodes: 3, pods: 12, namespaces: 2, policies: 1, global_policies: 2, network_sets: 1 };
        let mut cluster = Cluster::new(shape, 7);
        let mut objects = cluster.objects();
        objects.extend((1..50).flat_map(|mark| cluster.churn(mark)).filter_map(|change| match change {
            Change::Put(object) => Some(object),
            Change::Delete(_) => None,
        }));
        let mut kinds = std::collections::BTreeMap::<_, usize>::new();
        for object in &objects {
            let Some((kind, found, etcd)) = both_ways(object) else { continue };
            *kinds.entry(kind).or_default() += 1;
            let same = |field: &str| assert_eq!(found.pointer(field), etcd.pointer(field), "{kind} {field}");
            match kind {
                "Pod" => {
                    for field in ["node", "pod", "endpoint", "serviceAccountName", "ipNetworks", "profiles"] {
                        same(&format!("/spec/{field}"));
                    }
                    same("/metadata/labels");
                    same("/spec/ports/0/name");
                    same("/spec/ports/0/port");
                }
                "Node" => {
                    same("/metadata/labels");
                    same("/spec/bgp");
                    same("/spec/orchRefs");
                    assert!(found["status"]["podCIDRs"][0].as_str().unwrap().ends_with("/26"), "{found}");
                }
                "Namespace" => {
                    same("/spec/labelsToApply");
                    same("/spec/ingress");
                    same("/spec/egress");
                }
                _ => same("/spec/labelsToApply"),
            }
        }
        assert_eq!((kinds["Node"], kinds["Namespace"], kinds["ServiceAccount"]), (3, 2, 2), "{kinds:?}");
        assert!(kinds["Pod"] > 30, "{kinds:?}");
    }

    #[test]
    fn what_every_cluster_has_is_nobodys() {
        let key = |rest: &str| format!("/calico/resources/v3/projectcalico.org/{rest}");
        for system in [
            "profiles/kns.default",
            "profiles/kns.kube-system",
            "profiles/ksa.kube-system.coredns",
            "kubernetesservice/default/kubernetes",
            "kubernetesendpointslices/default/kubernetes",
        ] {
            assert!(is_system(&key(system)), "{system}");
        }
        for (other, known) in [
            ("profiles/kns.team-000", "Namespace team-000"),
            ("nodes/n1", "Node n1"),
            ("tiers/default", "Tier default"),
            ("workloadendpoints/kube-system/n1-k8s-dns-eth0", "Pod kube-system/dns"),
        ] {
            assert!(!is_system(&key(other)), "{other}");
            assert_eq!(name(&key(other)), known);
        }
    }
}
