//! typha's settings: one table gives flags, `TYPHA_*` variables, file entries, defaults and help.
//!
//! Names and meanings are Calico's where both have them. Read once at start; a value that cannot be used is an
//! error that names it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon::logging::Format;
use daemon::settings::SettingsError;
use daemon::{Endpoint, Settings, Spec, logging, spec};
use syncer_common::backend::config::{EtcdConfig, KubernetesConfig, Secret, StoreConfig};
use syncer_common::kubernetes::ApiGroup;
use transport::{ClientTls, Expected, Files, ServerTls};

use crate::syncserver::{self, Discovery, Options};

pub const PREFIX: &str = "TYPHA";
/// Read when it is there and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/calico/typha.cfg";

/// Every setting.
pub const SPECS: &[Spec] = &[
    spec(
        "DatastoreType",
        "etcdv3",
        "Where the cluster's state is: etcdv3, kubernetes, or directory (a folder of manifests)",
    ),
    spec("EtcdEndpoints", "", "etcd servers, with commas, as http://host:port or https://host:port"),
    spec("EtcdScheme", "http", "Scheme of EtcdAddr"),
    spec("EtcdAddr", "127.0.0.1:2379", "etcd server as host:port, if EtcdEndpoints is not set"),
    spec("EtcdCaFile", "", "CA certificate of the etcd servers (PEM)"),
    spec("EtcdCertFile", "", "Client certificate for etcd (PEM)"),
    spec("EtcdKeyFile", "", "Key of the client certificate (PEM)"),
    spec("EtcdUsername", "", "etcd user"),
    spec(
        "EtcdPassword",
        "",
        "Password of the etcd user; better in the environment or the file than as a flag",
    ),
    spec(
        "Kubeconfig",
        "",
        "Kubeconfig file, for DatastoreType kubernetes; empty = the service account of this pod",
    ),
    spec("KubeContext", "", "Context of the kubeconfig; empty = its current one"),
    spec(
        "CalicoAPIGroup",
        "",
        "Group of Calico's custom resources, crd.projectcalico.org/v1 or projectcalico.org/v3; empty = ask the server",
    ),
    spec("UsePodCIDR", "false", "Blocks come from the nodes' pod CIDRs instead of Calico's IPAM"),
    spec(
        "InterfacePrefix",
        "cali",
        "What the names of pods' interfaces start with, for DatastoreType kubernetes: the first of felix's prefixes",
    ),
    spec("Directory", "", "Folder of manifests, for DatastoreType directory"),
    spec(
        "SecretNamespace",
        "kube-system",
        "Namespace of the Secrets that BGPPeers and the BGPConfiguration name",
    ),
    spec(
        "AcceptHistory",
        "",
        "History id of a restored datastore whose deletions are to be believed (see the log)",
    ),
    spec("ReplicaName", "", "This replica's name in hellos and status [default: the host's name]"),
    spec("ServerHost", "", "Address to serve agents on; empty = all addresses"),
    spec("ServerPort", "5473", "Port to serve agents on; none = any free one"),
    spec(
        "Replicas",
        "",
        "host:port of the replicas, with commas; a name stands for all its addresses. On Kubernetes, if not given, the \
         endpoints of K8sServiceName",
    ),
    spec("K8sNamespace", "kube-system", "Namespace of typha's service"),
    spec("K8sServiceName", "calico-typha", "typha's service; none = replicas are not looked for"),
    spec("K8sPortName", "calico-typha", "The service's port for agents"),
    spec(
        "K8sServicePollIntervalSecs",
        "5",
        "How often replicas are looked for and asked how many clients they have",
    ),
    spec("ConnectionRebalancing", "true", "Move agents to replicas with fewer, until all have as many"),
    spec("CAFile", "", "CA certificate of agents, for TLS on the port that serves them (PEM)"),
    spec("ServerCertFile", "", "Certificate of this server (PEM); read again when it changes"),
    spec("ServerKeyFile", "", "Key of the certificate (PEM)"),
    spec(
        "ClientCN",
        "",
        "Common name that agents' certificates have to have; with TLS this or ClientURISAN is needed",
    ),
    spec("ClientURISAN", "", "URI SAN that agents' certificates have to have; either suffices"),
    spec(
        "ClientNodeBinding",
        "off",
        "require: an agent may only be the node and agent that its certificate names (URI SAN \
         spiffe://DOMAIN/node/NODE/agent/AGENT)",
    ),
    spec(
        "MaxConcurrentSnapshots",
        "none",
        "Snapshots that are sent side by side, others wait for their turn; none = 16 for each processor",
    ),
    spec("MaxConnectionsPerAddress", "10000", "Connections from one address; none = no limit"),
    spec("ServerHandshakeTimeoutSecs", "10", "How long TLS, and a new stream's hello, may take"),
    spec(
        "ServerMinBatchingAgeThresholdSecs",
        "0.01",
        "The shortest time between two messages with changes; up to 0.1 s where they are many or the nodes are busy",
    ),
    spec(
        "ShutdownTimeoutSecs",
        "20",
        "On SIGTERM, how long agents have at most to leave before their streams are ended",
    ),
    spec(
        "StatusWritesPerSecond",
        "200",
        "How much agents' reports (status of endpoints, felix and BGP) may write to the datastore; none = nothing",
    ),
    spec("HealthEnabled", "true", "Serve /liveness and /readiness"),
    spec("HealthHost", "localhost", "Address of the health port; none = all addresses"),
    spec("HealthPort", "9098", "Health port"),
    spec("PrometheusMetricsEnabled", "false", "Serve /metrics"),
    spec("PrometheusMetricsHost", "", "Address of the metrics port; empty = all addresses"),
    spec("PrometheusMetricsPort", "9093", "Metrics port; may be the health port if the hosts are equal"),
    spec(
        "TracingEndpoint",
        "",
        "OpenTelemetry collector for traces of updates, OTLP over gRPC (http://host:4317); empty = no traces",
    ),
    spec(
        "TracingSampleRatio",
        "0.01",
        "Which part of the revisions is traced, the same ones by all replicas",
    ),
    spec(
        "LogSeverityScreen",
        "info",
        "Level (error, warn, info, debug, trace) or filter (info,typha=debug) of the log",
    ),
    spec("LogFormat", "text", "text, or json for one object a line"),
];

#[derive(Clone)]
pub struct Config {
    pub store: StoreConfig,
    /// Where BGP passwords are.
    pub secret_namespace: String,
    pub use_pod_cidr: bool,
    /// A history whose deletions the operator believes after a fork; empty = none.
    pub accept_history: String,
    pub server: Endpoint,
    pub options: Options,
    /// Writes of agents' status; 0 = none.
    pub status_writes: f64,
    pub health: Option<Endpoint>,
    pub metrics: Option<Endpoint>,
    /// The OpenTelemetry collector, and the part of the revisions that is traced.
    pub tracing: Option<(tonic::transport::Endpoint, f64)>,
    pub log_level: String,
    pub log_format: Format,
}

impl Config {
    pub fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let port = |name: &str| settings.get::<u16>(name);
        let endpoint = |enabled: &str, host: &str, number: &str| -> Result<Option<Endpoint>, SettingsError> {
            let on = settings.get::<bool>(enabled)?;
            Ok(on.then_some(Endpoint::new(settings.get::<String>(host)?, port(number)?)))
        };
        let replica = match settings.get::<String>("ReplicaName")? {
            name if name.is_empty() => host_name(),
            name => name,
        };
        let format: String = settings.get("LogFormat")?;
        Ok(Config {
            secret_namespace: settings.get("SecretNamespace")?,
            store: store(settings)?,
            use_pod_cidr: settings.get("UsePodCIDR")?,
            accept_history: settings.get("AcceptHistory")?,
            server: Endpoint::new(settings.get::<String>("ServerHost")?, port("ServerPort")?),
            options: Options {
                replica,
                software: syncserver::software(),
                peers: settings.get("Replicas")?,
                discovery: discovery(settings)?,
                peer_interval: positive(settings, "K8sServicePollIntervalSecs")?,
                peer_tls: peer_tls(settings)?,
                rebalance: settings.get("ConnectionRebalancing")?,
                handshake_timeout: positive(settings, "ServerHandshakeTimeoutSecs")?,
                per_address: settings.get("MaxConnectionsPerAddress")?,
                snapshots: settings.get("MaxConcurrentSnapshots")?,
                bind_clients: binding(settings)?,
                tls: tls(settings)?.map(Arc::new),
                coalesce: settings.get("ServerMinBatchingAgeThresholdSecs")?,
                drain: settings.get("ShutdownTimeoutSecs")?,
                ..Options::default()
            },
            status_writes: match settings.get::<f64>("StatusWritesPerSecond")? {
                rate if rate.is_finite() && rate >= 0.0 => rate,
                _ => return Err(settings.refuse("StatusWritesPerSecond", "has to be 0 or more")),
            },
            health: endpoint("HealthEnabled", "HealthHost", "HealthPort")?,
            metrics: endpoint("PrometheusMetricsEnabled", "PrometheusMetricsHost", "PrometheusMetricsPort")?,
            tracing: tracing(settings)?,
            log_level: settings.get("LogSeverityScreen")?,
            log_format: logging::format(&format).map_err(|error| settings.refuse("LogFormat", error))?,
        })
    }
}

/// As with Calico: all of it or nothing.
fn tls(settings: &Settings) -> Result<Option<ServerTls>, SettingsError> {
    let given = |name: &str| settings.get::<String>(name);
    let clients = Expected { common_name: given("ClientCN")?, uri_san: given("ClientURISAN")? };
    let files = ["CAFile", "ServerCertFile", "ServerKeyFile"];
    let names = clients != Expected::default();
    let missing: Vec<&str> = files.into_iter().filter(|name| settings.raw(name).is_none()).collect();
    match (missing.as_slice(), names) {
        ([], true) => {}
        ([], false) => return Err(settings.refuse("ClientCN", "is needed with TLS, or ClientURISAN")),
        ([_, _, _], false) => return Ok(None),
        ([missing, ..], _) => {
            return Err(settings.refuse(
                missing,
                "is needed, too, for TLS: CAFile, ServerCertFile, ServerKeyFile and \
                 ClientCN or ClientURISAN go together",
            ));
        }
    }
    let [ca, cert, key] = files.map(|name| settings.get::<PathBuf>(name));
    let files = Files { ca: ca?, cert: cert?, key: key? };
    ServerTls::new(files, clients).map(Some).map_err(|error| settings.refuse("ServerCertFile", error))
}

fn tracing(settings: &Settings) -> Result<Option<(tonic::transport::Endpoint, f64)>, SettingsError> {
    let endpoint: String = settings.get("TracingEndpoint")?;
    if endpoint.is_empty() {
        return Ok(None);
    }
    if !endpoint.starts_with("http://") {
        let reason = format!(
            "{endpoint:?} is not http://host:port: for TLS, use a collector on this host that forwards"
        );
        return Err(settings.refuse("TracingEndpoint", reason));
    }
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint)
        .map_err(|error| settings.refuse("TracingEndpoint", error))?;
    match settings.get::<f64>("TracingSampleRatio")? {
        ratio if (0.0..=1.0).contains(&ratio) => Ok(Some((endpoint, ratio))),
        _ => Err(settings.refuse("TracingSampleRatio", "has to be from 0 to 1")),
    }
}

fn discovery(settings: &Settings) -> Result<Discovery, SettingsError> {
    let names: Vec<String> = settings.get("Replicas")?;
    if !names.is_empty() {
        return Ok(Discovery::Names(names));
    }
    let service: String = settings.get("K8sServiceName")?;
    match store(settings)? {
        StoreConfig::Kubernetes(config) if !service.is_empty() => Ok(Discovery::Kubernetes {
            config: Box::new(config),
            namespace: settings.get("K8sNamespace")?,
            service,
            port: settings.get("K8sPortName")?,
        }),
        _ => Ok(Discovery::None),
    }
}

/// Replicas have certificates of the same name; that is all that they look at in one another.
fn peer_tls(settings: &Settings) -> Result<Option<ClientTls>, SettingsError> {
    if settings.raw("CAFile").is_none() {
        return Ok(None);
    }
    let [ca, cert, key] =
        ["CAFile", "ServerCertFile", "ServerKeyFile"].map(|name| settings.get::<PathBuf>(name));
    Ok(Some(ClientTls { files: Files { ca: ca?, cert: cert?, key: key? }, server: Expected::default() }))
}

fn binding(settings: &Settings) -> Result<bool, SettingsError> {
    match settings.get::<String>("ClientNodeBinding")?.to_ascii_lowercase().as_str() {
        "require" if settings.raw("CAFile").is_none() => {
            Err(settings
                .refuse("ClientNodeBinding", "needs TLS: set CAFile, ServerCertFile and ServerKeyFile"))
        }
        "require" => Ok(true),
        "off" | "" => Ok(false),
        other => {
            Err(settings.refuse("ClientNodeBinding", format!("{other:?} is not known: use off or require")))
        }
    }
}

fn positive(settings: &Settings, name: &str) -> Result<Duration, SettingsError> {
    match settings.get::<Duration>(name)? {
        Duration::ZERO => Err(settings.refuse(name, "has to be more than 0 seconds")),
        duration => Ok(duration),
    }
}

fn store(settings: &Settings) -> Result<StoreConfig, SettingsError> {
    let kind: String = settings.get("DatastoreType")?;
    match kind.to_ascii_lowercase().as_str() {
        "etcdv3" | "etcd" => {
            let config = etcd(settings)?;
            config.checked_endpoints().map_err(|error| settings.refuse("EtcdEndpoints", error))?;
            Ok(StoreConfig::Etcd(config))
        }
        "kubernetes" => Ok(StoreConfig::Kubernetes(kubernetes(settings)?)),
        "directory" => match settings.get::<Option<PathBuf>>("Directory")? {
            Some(path) => Ok(StoreConfig::directory(path)),
            None => Err(settings.refuse("Directory", "is needed with DatastoreType directory")),
        },
        other => Err(settings
            .refuse("DatastoreType", format!("{other:?} is not known: use etcdv3, kubernetes or directory"))),
    }
}

fn kubernetes(settings: &Settings) -> Result<KubernetesConfig, SettingsError> {
    let group: String = settings.get("CalicoAPIGroup")?;
    let group = match group.as_str() {
        "" => None,
        "crd.projectcalico.org/v1" => Some(ApiGroup::V1),
        "projectcalico.org/v3" => Some(ApiGroup::V3),
        other => {
            let reason =
                format!("{other:?} is not known: use crd.projectcalico.org/v1 or projectcalico.org/v3");
            return Err(settings.refuse("CalicoAPIGroup", reason));
        }
    };
    Ok(KubernetesConfig {
        kubeconfig: settings.get("Kubeconfig")?,
        context: settings.get("KubeContext")?,
        group,
        use_pod_cidr: settings.get("UsePodCIDR")?,
        interface_prefix: settings.get("InterfacePrefix")?,
    })
}

fn etcd(settings: &Settings) -> Result<EtcdConfig, SettingsError> {
    let mut endpoints: Vec<String> = settings.get("EtcdEndpoints")?;
    if endpoints.is_empty() {
        let (scheme, address): (String, String) = (settings.get("EtcdScheme")?, settings.get("EtcdAddr")?);
        endpoints = vec![format!("{scheme}://{address}")];
    }
    let config = EtcdConfig {
        endpoints,
        ca_file: settings.get("EtcdCaFile")?,
        cert_file: settings.get("EtcdCertFile")?,
        key_file: settings.get("EtcdKeyFile")?,
        username: settings.get("EtcdUsername")?,
        password: settings.get::<Option<String>>("EtcdPassword")?.map(Secret::new),
    };
    for (one, other, name) in [
        (config.cert_file.is_some(), config.key_file.is_some(), "EtcdCertFile"),
        (config.username.is_some(), config.password.is_some(), "EtcdUsername"),
    ] {
        if one != other {
            let both = if name == "EtcdCertFile" { "EtcdKeyFile" } else { "EtcdPassword" };
            return Err(settings.refuse(name, format!("goes together with {both}: set both or neither")));
        }
    }
    Ok(config)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "typha".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = Settings::new(PREFIX, SPECS).with_environment(variables);
        Config::read(&settings).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_that_operators_know() {
        let config = read(&[]).unwrap();
        assert_eq!(config.store, StoreConfig::etcd(["http://127.0.0.1:2379"]));
        assert_eq!(config.server, Endpoint::new("", 5473));
        assert_eq!(config.health, Some(Endpoint::new("localhost", 9098)));
        assert_eq!(config.metrics, None);
        assert_eq!(config.options.coalesce, Duration::from_millis(10));
        assert!(!config.options.replica.is_empty());
    }

    #[test]
    fn directory_and_etcd_are_chosen_by_type() {
        let config = read(&[("TYPHA_DATASTORETYPE", "directory"), ("TYPHA_DIRECTORY", "/store")]).unwrap();
        assert_eq!(config.store, StoreConfig::directory("/store"));
        let config = read(&[("TYPHA_ETCDENDPOINTS", "http://a:1,http://b:2")]).unwrap();
        assert_eq!(config.store, StoreConfig::etcd(["http://a:1", "http://b:2"]));
        let config = read(&[
            ("TYPHA_DATASTORETYPE", "kubernetes"),
            ("TYPHA_KUBECONFIG", "/k"),
            ("TYPHA_CALICOAPIGROUP", "projectcalico.org/v3"),
        ])
        .unwrap();
        let group = Some(ApiGroup::V3);
        let expected = KubernetesConfig {
            kubeconfig: Some("/k".into()),
            group,
            interface_prefix: Some("cali".into()),
            ..Default::default()
        };
        assert_eq!(config.store, StoreConfig::Kubernetes(expected));
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        for (variables, says) in [
            (&[("TYPHA_DATASTORETYPE", "directory")][..], "Directory (not set): is needed"),
            (
                &[("TYPHA_DATASTORETYPE", "kubernetes"), ("TYPHA_CALICOAPIGROUP", "v3")][..],
                "TYPHA_CALICOAPIGROUP: \"v3\" is not known",
            ),
            (&[("TYPHA_DATASTORETYPE", "consul")][..], "TYPHA_DATASTORETYPE: \"consul\" is not known"),
            (&[("TYPHA_SERVERPORT", "x")][..], "TYPHA_SERVERPORT: \"x\" is not a number"),
            (&[("TYPHA_ETCDCERTFILE", "c")][..], "TYPHA_ETCDCERTFILE: goes together with EtcdKeyFile"),
            (&[("TYPHA_SERVERHANDSHAKETIMEOUTSECS", "0")][..], "more than 0 seconds"),
            (&[("TYPHA_LOGFORMAT", "xml")][..], "TYPHA_LOGFORMAT"),
            (&[("TYPHA_CAFILE", "ca"), ("TYPHA_CLIENTCN", "c")][..], "ServerCertFile (not set): is needed"),
            (
                &[("TYPHA_CAFILE", "ca"), ("TYPHA_SERVERCERTFILE", "c"), ("TYPHA_SERVERKEYFILE", "k")][..],
                "ClientCN (not set): is needed with TLS, or ClientURISAN",
            ),
            (&[("TYPHA_CLIENTCN", "c")][..], "CAFile (not set): is needed"),
            (&[("TYPHA_CLIENTNODEBINDING", "require")][..], "needs TLS"),
        ] {
            let Err(error) = read(variables) else { panic!("accepted: {variables:?}") };
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn password_is_never_printed() {
        let config = read(&[("TYPHA_ETCDUSERNAME", "u"), ("TYPHA_ETCDPASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{:?}", config.store).contains("hunter2"));
    }
}
