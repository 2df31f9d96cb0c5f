//! confd's settings: flags, environment (`CONFD_*` and the names that Calico's node uses) and file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use daemon::{Endpoint, Settings, Spec, spec};
use typha_client::ClientTls;

use crate::bgp::{LocalSettings, RouterId};
use crate::local::LocalFiles;
use crate::render::Syntax;

pub const PREFIX: &str = "CONFD";
pub const CONFIG_FILE: &str = "/etc/calico/confd.cfg";
const DEFAULT_TYPHA: &str = "127.0.0.1:5473";

pub static SPECS: &[Spec] = &[
    spec("Node", "", "This node's name in the datastore; also NODENAME, else the host's name"),
    spec("TyphaAddr", "", "Typhas, host:port with commas between; also FELIX_TYPHAADDR, else 127.0.0.1:5473"),
    spec("TyphaCAFile", "", "CA certificate of the typhas, for TLS (PEM)"),
    spec("TyphaCertFile", "", "Certificate of this agent (PEM); read again for every connection"),
    spec("TyphaKeyFile", "", "Key of the certificate (PEM)"),
    spec(
        "TyphaCN",
        "",
        "Common name that typhas' certificates have to have; with TLS this or TyphaURISAN is needed",
    ),
    spec("TyphaURISAN", "", "URI SAN that typhas' certificates have to have; either suffices"),
    spec("TyphaZone", "", "Zone of this node: typhas in it are preferred"),
    spec("BirdConfig", "/etc/calico/confd/config/bird.cfg", "The file that BIRD reads"),
    spec("BirdSocket", "/var/run/calico/bird.ctl", "BIRD's control socket"),
    spec("BirdBinary", "bird", "The BIRD 2 that checks a configuration before it is put in place"),
    spec("Syntax", "bird2", "bird2: stock BIRD 2; classic: Calico's BIRD, two daemons with three files each"),
    spec("Bird6Config", "/etc/calico/confd/config/bird6.cfg", "Classic only: the file that bird6 reads"),
    spec("Bird6Socket", "/var/run/calico/bird6.ctl", "Classic only: bird6's control socket"),
    spec("Bird6Binary", "bird6", "Classic only: the bird6 that checks a configuration"),
    spec("RouterId", "", "An address, or hash; the node's IPv4 address if not given; also CALICO_ROUTER_ID"),
    spec("BgpLogSeverity", "", "Overrides logSeverityScreen of BGPConfiguration; also BGP_LOGSEVERITYSCREEN"),
    spec(
        "AdvertiseClusterIps",
        "",
        "Replaces serviceClusterIPs of BGPConfiguration; also CALICO_ADVERTISE_CLUSTER_IPS",
    ),
    spec("KubernetesNode", "", "This node's name in Kubernetes, if it is another; also CALICO_K8S_NODE_REF"),
    spec(
        "IncompletePeers",
        "withhold",
        "A peering whose password or filter is missing: withhold it, or open it without as Calico does",
    ),
    spec(
        "SecretsDir",
        "/etc/calico/confd/secrets",
        "Where Secrets with passwords are mounted, a folder each",
    ),
    spec("SecretNamespace", "kube-system", "Whose Secrets count in manifests; also NAMESPACE"),
    spec(
        "EndpointStatusPathPrefix",
        "/var/run/calico",
        "Where felix's folder endpoint-status is; also CALICO_ENDPOINT_STATUS_PATH_PREFIX",
    ),
    spec("LogSeverityScreen", "info", "Log level, or a filter such as info,confd=debug"),
    spec("LogFormat", "text", "text or json"),
    spec("HealthEnabled", "false", "Serve /liveness and /readiness"),
    spec("HealthHost", "localhost", "Where health is served"),
    spec("HealthPort", "9096", "Where health is served"),
    spec("PrometheusMetricsEnabled", "false", "Serve /metrics"),
    spec("PrometheusMetricsHost", "", "Where metrics are served; every address if not given"),
    spec("PrometheusMetricsPort", "9094", "Where metrics are served"),
];

/// Variables of Calico's node that stand for one of ours, unless ours is given.
const ALIASES: [(&str, &str); 8] = [
    ("CALICO_K8S_NODE_REF", "KubernetesNode"),
    ("NAMESPACE", "SecretNamespace"),
    ("CALICO_ENDPOINT_STATUS_PATH_PREFIX", "EndpointStatusPathPrefix"),
    ("NODENAME", "Node"),
    ("FELIX_TYPHAADDR", "TyphaAddr"),
    ("CALICO_ROUTER_ID", "RouterId"),
    ("BGP_LOGSEVERITYSCREEN", "BgpLogSeverity"),
    ("CALICO_ADVERTISE_CLUSTER_IPS", "AdvertiseClusterIps"),
];

#[derive(Clone, Debug)]
pub struct Config {
    pub local: LocalSettings,
    pub typhas: Vec<String>,
    pub typha_tls: Option<ClientTls>,
    pub typha_zone: String,
    pub local_files: LocalFiles,
    pub syntax: Syntax,
    /// One for each of the syntax's daemons, in the order in which they are rendered.
    pub birds: Vec<Bird>,
    pub log_level: String,
    pub log_format: String,
    pub health: Option<Endpoint>,
    pub metrics: Option<Endpoint>,
}

/// A BIRD daemon: what it reads, where it answers, and which program checks.
#[derive(Clone, Debug)]
pub struct Bird {
    pub config: PathBuf,
    pub socket: PathBuf,
    pub binary: PathBuf,
}

/// The table of settings, for flags and `--help`.
pub fn settings() -> Settings {
    Settings::new(PREFIX, SPECS)
}

/// Everything that was given: flags, then the environment, then the file.
pub fn load(
    matches: &clap::ArgMatches,
    environment: &[(String, String)],
    file: Option<&Path>,
) -> anyhow::Result<Settings> {
    let settings = settings().with_flags(matches).with_environment(environment.iter().cloned());
    // Aliases come after our own variables and before the file.
    let missing = ALIASES.iter().filter(|(_, name)| settings.raw(name).is_none());
    let aliases: Vec<(String, String)> = missing
        .filter_map(|(alias, name)| {
            let (_, value) = environment.iter().find(|(variable, _)| variable == alias)?;
            Some((format!("{PREFIX}_{name}"), value.clone()))
        })
        .collect();
    let settings = settings.with_environment(aliases);
    match file {
        Some(file) => Ok(settings.with_file(file, true)?),
        None => Ok(settings.with_file(Path::new(CONFIG_FILE), false)?),
    }
}

/// TLS to typha.
fn typha_tls(settings: &Settings) -> anyhow::Result<Option<ClientTls>> {
    let names = ["TyphaCAFile", "TyphaCertFile", "TyphaKeyFile", "TyphaCN", "TyphaURISAN"];
    let mut values: [String; 5] = Default::default();
    for (name, value) in names.iter().zip(&mut values) {
        *value = settings.get(name)?;
    }
    ClientTls::from_settings(names, values).map_err(|error| settings.refuse("TyphaCAFile", error).into())
}

impl Config {
    pub fn from_settings(settings: &Settings) -> anyhow::Result<Config> {
        let endpoint = |on: &str, host: &str, port: &str| -> anyhow::Result<Option<Endpoint>> {
            if !settings.get::<bool>(on)? {
                return Ok(None);
            }
            Ok(Some(Endpoint::new(settings.get::<String>(host)?, settings.get(port)?)))
        };
        let typhas: Vec<String> = settings.get("TyphaAddr")?;
        let bird = |config: &str, socket: &str, binary: &str| -> anyhow::Result<Bird> {
            Ok(Bird {
                config: settings.get(config)?,
                socket: settings.get(socket)?,
                binary: find_program(settings.get(binary)?),
            })
        };
        let syntax: Syntax = parsed(settings, "Syntax")?;
        let mut birds = vec![bird("BirdConfig", "BirdSocket", "BirdBinary")?];
        if syntax == Syntax::Classic {
            birds.push(bird("Bird6Config", "Bird6Socket", "Bird6Binary")?);
        }
        Ok(Config {
            local: local_settings(settings)?,
            local_files: local_files(settings)?,
            syntax,
            birds,
            typhas: if typhas.is_empty() { vec![DEFAULT_TYPHA.to_owned()] } else { typhas },
            typha_tls: typha_tls(settings)?,
            typha_zone: settings.get("TyphaZone")?,
            log_level: settings.get("LogSeverityScreen")?,
            log_format: settings.get("LogFormat")?,
            health: endpoint("HealthEnabled", "HealthHost", "HealthPort")?,
            metrics: endpoint("PrometheusMetricsEnabled", "PrometheusMetricsHost", "PrometheusMetricsPort")?,
        })
    }
}

/// A bare name is looked for on the path, and where Debian keeps daemons, which a path may lack.
fn find_program(program: PathBuf) -> PathBuf {
    if program.components().count() != 1 {
        return program;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(&program))
        .find(|file| file.is_file());
    found.unwrap_or(program)
}

/// What the node itself contributes to its configuration.
pub fn local_settings(settings: &Settings) -> anyhow::Result<LocalSettings> {
    let mut node: String = settings.get("Node")?;
    if node.is_empty() {
        node = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("reading the host's name; give --node or NODENAME")?
            .trim()
            .to_lowercase();
    }
    if node.is_empty() {
        bail!("this node has no name: give --node or NODENAME");
    }
    let router_id = match settings.raw("RouterId").unwrap_or_default() {
        "" => RouterId::NodeAddress,
        "hash" => RouterId::Hash,
        text => match text.parse::<Ipv4Addr>() {
            Ok(id) if !id.is_unspecified() => RouterId::Fixed(id),
            _ => bail!(settings.refuse(
                "RouterId",
                format!("{text:?} is neither hash nor a number written like an IPv4 address")
            )),
        },
    };
    Ok(LocalSettings {
        node,
        router_id,
        log_severity: settings.raw("BgpLogSeverity").map(str::to_owned),
        advertise_cluster_ips: match settings.raw("AdvertiseClusterIps") {
            Some(_) => Some(settings.get("AdvertiseClusterIps")?),
            None => None,
        },
        kubernetes_node: settings.raw("KubernetesNode").filter(|name| !name.is_empty()).map(str::to_owned),
        incomplete_peers: parsed(settings, "IncompletePeers")?,
    })
}

/// A setting that is one of few words.
fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    settings: &Settings,
    name: &str,
) -> anyhow::Result<T> {
    let text: String = settings.get(name)?;
    text.parse().map_err(|error| anyhow::anyhow!(settings.refuse(name, format!("{error}"))))
}

pub fn local_files(settings: &Settings) -> anyhow::Result<LocalFiles> {
    let prefix: PathBuf = settings.get("EndpointStatusPathPrefix")?;
    Ok(LocalFiles { secrets: settings.get("SecretsDir")?, endpoint_status: prefix.join("endpoint-status") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(environment: &[(&str, &str)], flags: &[&str]) -> anyhow::Result<Config> {
        let command = clap::Command::new("confd").args(settings().args());
        let matches = command.try_get_matches_from([&["confd"], flags].concat()).unwrap();
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Config::from_settings(&load(&matches, &environment, None)?)
    }

    #[test]
    fn our_variables_win_over_those_of_calico_and_flags_over_both() {
        let calico = [("NODENAME", "n1"), ("FELIX_TYPHAADDR", "a:1"), ("CALICO_ROUTER_ID", "hash")];
        let read = config(&calico, &[]).unwrap();
        assert_eq!((read.local.node.as_str(), read.local.router_id), ("n1", RouterId::Hash));
        assert_eq!(read.typhas, ["a:1"]);
        let ours = [&calico[..], &[("CONFD_TYPHAADDR", "b:1,c:2"), ("CONFD_NODE", "n2")]].concat();
        let read = config(&ours, &["--node", "n3"]).unwrap();
        assert_eq!((read.local.node.as_str(), read.typhas), ("n3", vec!["b:1".to_owned(), "c:2".to_owned()]));
    }

    #[test]
    fn a_router_id_that_is_none_is_refused_by_name() {
        let error = config(&[("NODENAME", "n1"), ("CONFD_ROUTERID", "fd00::1")], &[]).unwrap_err();
        assert!(format!("{error:#}").contains("CONFD_ROUTERID"), "{error:#}");
    }
}
