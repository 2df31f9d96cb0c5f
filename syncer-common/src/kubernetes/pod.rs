//! Pods as WorkloadEndpoints.
//!
//! There are more of them than of anything else, and every heartbeat of a container changes one: what is not
//! read is not copied, and what does not matter is not in the value.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use sha1::{Digest, Sha1};

use super::object::{Meta, Stored, StoredMeta, Text, error, or_default, parse, resource_path};
use super::profile::{namespace_profile, service_account_profile};
use super::qos::{self, QosControls};
use super::{Options, Read};
use crate::apis::FieldError;

pub const KIND: &str = "WorkloadEndpoint";
pub const ORCHESTRATOR: &str = "k8s";
pub const ENDPOINT: &str = "eth0";

const POD_IPS: &str = "cni.projectcalico.org/podIPs";
const POD_IP: &str = "cni.projectcalico.org/podIP";
const AWS_POD_IPS: &str = "vpc.amazonaws.com/pod-ips";
const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";
const SOURCE_PREFIXES: &str = "cni.projectcalico.org/allowedSourcePrefixes";
const CONTAINER_ID: &str = "cni.projectcalico.org/containerID";
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";
const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";
/// From here on a name is left out of the labels; the endpoint has it all the same.
const LONG_SERVICE_ACCOUNT: usize = 63;
/// Bytes of the hash in an interface's name, in hexadecimal and without the last digit.
const INTERFACE_HASH: usize = 11;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    spec: Spec<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    status: Status<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec<'a> {
    #[serde(borrow)]
    node_name: Text<'a>,
    host_network: bool,
    service_account_name: Text<'a>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container<'a>>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container<'a> {
    #[serde(borrow, deserialize_with = "or_default")]
    ports: Vec<ContainerPort<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    container_port: u16,
    host_port: u16,
    protocol: Text<'a>,
    #[serde(rename = "hostIP")]
    host_ip: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status<'a> {
    #[serde(borrow)]
    phase: Text<'a>,
    #[serde(rename = "podIP")]
    pod_ip: Text<'a>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp<'a> {
    #[serde(borrow)]
    ip: Text<'a>,
}

/// What of a pod its key is made of.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Identity<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "or_default")]
    spec: Place<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Place<'a> {
    #[serde(borrow)]
    node_name: Text<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    orchestrator: &'static str,
    node: &'a str,
    #[serde(rename = "containerID", skip_serializing_if = "str::is_empty")]
    container_id: &'a str,
    pod: &'a str,
    endpoint: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_text")]
    ip_networks: Vec<IpNet>,
    #[serde(rename = "ipNATs", skip_serializing_if = "Vec::is_empty")]
    ip_nats: Vec<Nat>,
    profiles: Vec<String>,
    interface_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_text")]
    allow_spoofed_source_prefixes: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qos_controls: Option<QosControls>,
}

fn as_text<S: Serializer>(nets: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(nets.iter().map(IpNet::to_string))
}

#[derive(Debug, Serialize)]
struct Nat {
    #[serde(rename = "internalIP")]
    internal: IpAddr,
    #[serde(rename = "externalIP")]
    external: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port<'a> {
    name: &'a str,
    protocol: &'static str,
    port: u16,
    host_port: u16,
    #[serde(rename = "hostIP")]
    host_ip: &'a str,
}

/// The name of the endpoint of a pod on a node: dashes inside a part are doubled.
pub fn endpoint_name(node: &str, pod: &str) -> String {
    format!("{}-{ORCHESTRATOR}-{}-{ENDPOINT}", node.replace('-', "--"), pod.replace('-', "--"))
}

/// The host's end of the pair of interfaces, as the CNI plugin names it.
pub fn interface_name(prefix: &str, namespace: &str, pod: &str) -> String {
    let digest = Sha1::new().chain_update(namespace).chain_update(".").chain_update(pod).finalize();
    let mut name = prefix.to_owned();
    for byte in &digest[..INTERFACE_HASH.div_ceil(2)] {
        write!(name, "{byte:02x}").expect("a string takes everything");
    }
    name.truncate(prefix.len() + INTERFACE_HASH);
    name
}

pub(super) fn path(object: &[u8]) -> Result<String, FieldError> {
    let Identity { metadata, spec } = parse(object)?;
    path_of(&metadata, &spec.node_name)
}

/// A pod without a node has a path that nothing is ever stored at.
fn path_of(metadata: &Meta<'_>, node: &str) -> Result<String, FieldError> {
    if metadata.name.is_empty() {
        return Err(error("metadata.name", "missing"));
    }
    resource_path(KIND, &metadata.namespace, &endpoint_name(node, &metadata.name))
}

pub(super) fn read(object: &[u8], options: &Options) -> Result<Read, FieldError> {
    let pod: Pod<'_> = parse(object)?;
    let path = path_of(&pod.metadata, &pod.spec.node_name)?;
    let resource_version = pod.metadata.resource_version.to_string();
    if pod.spec.node_name.is_empty() || pod.spec.host_network {
        return Ok(Read { path, resource_version, ..Read::default() });
    }
    let mut findings = Vec::new();
    let value = pod.to_stored(options, &mut findings)?;
    Ok(Read { path, value: Some(value), findings, resource_version })
}

impl Pod<'_> {
    fn to_stored(&self, options: &Options, findings: &mut Vec<FieldError>) -> Result<Vec<u8>, FieldError> {
        let Pod { metadata, spec, .. } = self;
        let mut ip_networks = self.ip_networks()?;
        if self.is_finished() {
            // Its addresses may belong to another pod already.
            ip_networks.clear();
        }
        let mut profiles = vec![namespace_profile(&metadata.namespace)];
        if !spec.service_account_name.is_empty() {
            profiles.push(service_account_profile(&metadata.namespace, &spec.service_account_name));
        }
        let endpoint = Endpoint {
            orchestrator: ORCHESTRATOR,
            node: &spec.node_name,
            container_id: metadata.annotation(CONTAINER_ID),
            pod: &metadata.name,
            endpoint: ENDPOINT,
            service_account_name: &spec.service_account_name,
            ip_nats: self.floating_ips(&ip_networks)?,
            ip_networks,
            profiles,
            interface_name: interface_name(&options.interface_prefix, &metadata.namespace, &metadata.name),
            ports: self.ports(),
            allow_spoofed_source_prefixes: self.source_prefixes()?,
            qos_controls: qos::read(metadata, findings),
        };
        let name = endpoint_name(&spec.node_name, &metadata.name);
        let stored = StoredMeta {
            name: &name,
            generate_name: &metadata.generate_name,
            namespace: &metadata.namespace,
            uid: &metadata.uid,
            creation_timestamp: &metadata.creation_timestamp,
            labels: self.labels(),
            annotations: metadata
                .annotations
                .get_key_value(NETWORK_STATUS)
                .map(|(k, v)| (k.clone(), v.clone()))
                .into_iter()
                .collect(),
        };
        Ok(Stored::new(KIND, stored, endpoint, None::<()>).to_vec())
    }

    fn labels(&self) -> super::object::Labels<'_> {
        let Pod { metadata, spec, .. } = self;
        let mut labels: super::object::Labels<'_> = metadata
            .labels
            .iter()
            .map(|(label, value)| (Text::from(&**label), Text::from(&**value)))
            .collect();
        labels.insert(NAMESPACE_LABEL.into(), Text::from(&*metadata.namespace));
        labels.insert(ORCHESTRATOR_LABEL.into(), ORCHESTRATOR.into());
        let account = &*spec.service_account_name;
        if !account.is_empty() && account.len() < LONG_SERVICE_ACCOUNT {
            labels.insert(SERVICE_ACCOUNT_LABEL.into(), account.into());
        }
        labels
    }

    /// What the kubelet reports counts; before that, what the CNI plugin noted.
    fn ip_networks(&self) -> Result<Vec<IpNet>, FieldError> {
        let Pod { metadata, status, .. } = self;
        if !status.pod_ips.is_empty() {
            let ips = status.pod_ips.iter().enumerate();
            return ips
                .map(|(index, own)| address(&own.ip, || format!("status.podIPs[{index}].ip")))
                .collect();
        }
        if !status.pod_ip.is_empty() {
            return Ok(vec![address(&status.pod_ip, || "status.podIP".to_owned())?]);
        }
        for annotation in [POD_IPS, POD_IP, AWS_POD_IPS] {
            let text = metadata.annotation(annotation);
            if !text.is_empty() {
                let field = || format!("metadata.annotations[{annotation}]");
                return text.split(',').map(|ip| address(ip, field)).collect();
            }
        }
        Ok(Vec::new())
    }

    /// Ended, or being deleted with its network gone: the plugin blanks its annotation then.
    fn is_finished(&self) -> bool {
        if matches!(&*self.status.phase, "Failed" | "Succeeded" | "Completed") {
            return true;
        }
        let blank = |name| self.metadata.annotations.get(name).is_some_and(|text| text.is_empty());
        !self.metadata.deletion_timestamp.is_empty() && (blank(POD_IP) || blank(AWS_POD_IPS))
    }

    fn floating_ips(&self, ip_networks: &[IpNet]) -> Result<Vec<Nat>, FieldError> {
        let Some(text) = self.metadata.annotations.get(FLOATING_IPS).filter(|_| !ip_networks.is_empty())
        else {
            return Ok(Vec::new());
        };
        let field = || format!("metadata.annotations[{FLOATING_IPS}]");
        if let Some(net) = ip_networks.iter().find(|net| net.prefix_len() != net.max_prefix_len()) {
            return Err(error(field(), format!("the pod's own {net} is not a single address")));
        }
        let floating = list(text, field)?;
        let internal = |v6| ip_networks.iter().rev().map(IpNet::addr).find(|ip| ip.is_ipv6() == v6);
        let nat =
            |external: String| internal(external.contains(':')).map(|internal| Nat { internal, external });
        Ok(floating.into_iter().filter_map(nat).collect())
    }

    fn source_prefixes(&self) -> Result<Vec<IpNet>, FieldError> {
        let text = self.metadata.annotation(SOURCE_PREFIXES);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let field = || format!("metadata.annotations[{SOURCE_PREFIXES}]");
        let prefix = |text: String| {
            let net = text.parse::<IpNet>().map(|net| net.trunc());
            net.map_err(|_| error(field(), format!("{text:?} is not a CIDR")))
        };
        list(text, field)?.into_iter().map(prefix).collect()
    }

    /// Those with a name, which rules refer to, and those with a port of the host.
    fn ports(&self) -> Vec<Port<'_>> {
        let containers = self.spec.containers.iter().chain(&self.spec.init_containers);
        containers
            .flat_map(|container| &container.ports)
            .filter(|port| port.container_port != 0 && (!port.name.is_empty() || port.host_port != 0))
            .filter_map(|port| {
                let protocol = match &*port.protocol {
                    "" | "TCP" => "TCP",
                    "UDP" => "UDP",
                    "SCTP" => "SCTP",
                    _ => return None,
                };
                Some(Port {
                    name: &port.name,
                    protocol,
                    port: port.container_port,
                    host_port: port.host_port,
                    host_ip: &port.host_ip,
                })
            })
            .collect()
    }
}

/// An address, or one with the length of its network.
fn address(text: &str, field: impl Fn() -> String) -> Result<IpNet, FieldError> {
    let text = text.trim();
    let net = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
    net.map_err(|_| error(field(), format!("{text:?} is not an IP address")))
}

fn list(text: &str, field: impl Fn() -> String) -> Result<Vec<String>, FieldError> {
    serde_json::from_str(text).map_err(|reason| {
        error(field(), format!("not a JSON list of strings such as [\"10.0.0.1\"]: {reason}"))
    })
}
