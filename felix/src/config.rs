//! Felix's settings on its own node: flags, environment (`FELIX_*`) and file.
//!
//! Settings in the table below are felix's own; some of them may change while it runs (`HOT`), the others are read once.
//! Every other parameter of Calico's Felix may be given here, too (`FELIX_CHAININSERTMODE=append`): it then overrides
//! what the datastore says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use daemon::settings::SettingsError;
use daemon::{Endpoint, Ports, Settings, Spec, spec};
use typha_client::ClientTls;

use crate::iptables::Backend;

pub const PREFIX: &str = "FELIX";
pub const CONFIG_FILE: &str = "/etc/calico/felix.cfg";
const DEFAULT_TYPHA: &str = "127.0.0.1:5473";

pub static SPECS: &[Spec] = &[
    spec(
        "FelixHostname",
        "",
        "This node's name in the datastore; also --node or NODENAME, else the host's name",
    ),
    spec("TyphaAddr", "", "Typhas, host:port with commas between; 127.0.0.1:5473 if not given"),
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
    spec("IptablesBackend", "auto", "auto, nft or legacy"),
    spec("Ipv6Support", "true", "Program IPv6 too, where the kernel has it"),
    spec(
        "EndpointStatusPathPrefix",
        "/var/run/calico",
        "Folder for files that say which workloads are up; none: no files",
    ),
    spec(
        "StateFile",
        "/var/lib/bulrush/felix.state",
        "The last proven state of the cluster, in force after a reboot until a server answers; none: no file",
    ),
    spec("LogSeverityScreen", "info", "Log level, or a filter such as info,felix=debug"),
    spec("LogFormat", "text", "text or json"),
    spec("HealthEnabled", "false", "Serve /liveness and /readiness"),
    spec("HealthHost", "localhost", "Where health is served"),
    spec("HealthPort", "9099", "Where health is served"),
    spec("PrometheusMetricsEnabled", "false", "Serve /metrics"),
    spec("PrometheusMetricsHost", "", "Where metrics are served; every address if not given"),
    spec("PrometheusMetricsPort", "9091", "Where metrics are served"),
];

/// Parameters by which rendering and the dataplane go, as far as they are known by name: what may be given here
/// and in the datastore.
const PARAMETERS: &[&str] = &[
    "AllowIPIPPacketsFromWorkloads",
    "AllowVXLANPacketsFromWorkloads",
    "ChainInsertMode",
    "DefaultEndpointToHostAction",
    "DeviceRouteProtocol",
    "DeviceRouteSourceAddress",
    "DeviceRouteSourceAddressIPv6",
    "DisableConntrackInvalidCheck",
    "ExternalNodesCIDRList",
    "FailsafeInboundHostPorts",
    "FailsafeOutboundHostPorts",
    "IPForwarding",
    "IPv4NormalRoutePriority",
    "IPv6NormalRoutePriority",
    "InterfaceExclude",
    "InterfacePrefix",
    "InterfaceRefreshInterval",
    "IpInIpEnabled",
    "IpInIpMtu",
    "IpsetsRefreshInterval",
    "IptablesFilterAllowAction",
    "IptablesFilterDenyAction",
    "IptablesMangleAllowAction",
    "IptablesMarkMask",
    "IptablesNATOutgoingInterfaceFilter",
    "IptablesPostWriteCheckIntervalSecs",
    "IptablesRefreshInterval",
    "KubeNodePortRanges",
    "LogActionRateLimit",
    "LogActionRateLimitBurst",
    "LogPrefix",
    "MTUIfacePattern",
    "MaxIpsetSize",
    "NATOutgoingAddress",
    "NATOutgoingExclusions",
    "NATPortRange",
    "ProgramClusterRoutes",
    "RemoveExternalRoutes",
    "RouteRefreshInterval",
    "RouteSyncDisabled",
    "ServiceLoopPrevention",
    "VXLANEnabled",
    "VXLANEnabledV6",
    "VXLANMTU",
    "VXLANMTUV6",
    "VXLANPort",
    "VXLANVNI",
    "WorkloadSourceSpoofing",
];

/// Settings that take effect while felix runs.
pub const LOG_LEVEL: &str = "LogSeverityScreen";
pub const BACKEND: &str = "IptablesBackend";
pub const STATUS_PREFIX: &str = "EndpointStatusPathPrefix";
const HOT: [&str; 9] = [
    LOG_LEVEL,
    BACKEND,
    STATUS_PREFIX,
    "HealthEnabled",
    "HealthHost",
    "HealthPort",
    "PrometheusMetricsEnabled",
    "PrometheusMetricsHost",
    "PrometheusMetricsPort",
];

/// Settings that name this process's own place, which the datastore never gives.
const LOCAL_ONLY: [&str; 2] = ["FelixHostname", "TyphaAddr"];

/// What Calico's Felix does when these are on, and this one does not: name, values that ask for nothing, what is missing.
const MISSING: [(&str, &[&str], &str); 5] = [
    ("BPFEnabled", &["false", "0", "no"], "there is no eBPF dataplane: iptables and IP sets are programmed"),
    (
        "NFTablesMode",
        &["disabled", "auto"],
        "there is no native nftables dataplane: set IptablesBackend=nft for iptables on nftables",
    ),
    ("PolicySyncPathPrefix", &[], "there is no policy sync server"),
    ("WireguardEnabled", &["false", "0", "no"], "traffic between nodes is not encrypted"),
    ("WireguardEnabledV6", &["false", "0", "no"], "traffic between nodes is not encrypted"),
];

/// What the datastore asks for and this felix does not do, as said to the operator.
fn missing(datastore: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    MISSING.iter().filter_map(|(name, off, what)| {
        let (_, value) = datastore.iter().find(|(given, _)| given.eq_ignore_ascii_case(name))?;
        let asks = !value.trim().is_empty()
            && !value.eq_ignore_ascii_case("none")
            && !off.iter().any(|off| value.trim().eq_ignore_ascii_case(off));
        asks.then(|| format!("parameter {name}={value:?}: {what}"))
    })
}

/// What the datastore asks for and a running felix cannot take up, as said to the operator: what it does not do, and
/// parameters that are read once, before there is a server to ask.
pub fn not_in_force(datastore: &BTreeMap<String, String>) -> Vec<String> {
    let fixed = |name: &str| {
        let mut known = SPECS.iter().map(|spec| spec.name);
        let known = known.find(|known| known.eq_ignore_ascii_case(name))?;
        (!LOCAL_ONLY.contains(&known) && !HOT.contains(&known)).then_some(known)
    };
    datastore
        .iter()
        .filter_map(|(name, value)| Some((fixed(name)?, value)))
        .map(|(name, value)| {
            let variable = name.to_ascii_uppercase();
            format!("parameter {name}={value:?} of the datastore is read at the start only: set {PREFIX}_{variable}, or {name} in {CONFIG_FILE}, and restart felix")
        })
        .chain(missing(datastore))
        .collect()
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub typhas: Vec<String>,
    pub typha_tls: Option<ClientTls>,
    pub typha_zone: String,
    /// None: look which one others use.
    pub backend: Option<Backend>,
    pub ipv6: bool,
    pub status_prefix: PathBuf,
    pub state_file: Option<PathBuf>,
    pub log_level: String,
    pub log_format: String,
    pub ports: Ports,
    /// Parameters that override the datastore's.
    pub parameters: BTreeMap<String, String>,
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
    let mut settings = settings().with_flags(matches).with_environment(environment.iter().cloned());
    if let Some(node) = matches.try_get_one::<String>("node").ok().flatten() {
        settings = settings.with_environment([(format!("{PREFIX}_FELIXHOSTNAME"), node.clone())]);
    } else if settings.raw("FelixHostname").is_none()
        && let Some((_, node)) = environment.iter().find(|(name, _)| name == "NODENAME")
    {
        settings = settings.with_environment([(format!("{PREFIX}_FELIXHOSTNAME"), node.clone())]);
    }
    match file {
        Some(file) => Ok(settings.with_file(file, true)?),
        None => Ok(settings.with_file(Path::new(CONFIG_FILE), false)?),
    }
}

/// Names in the file that mean nothing to felix.
pub fn unknown(settings: &Settings) -> Vec<String> {
    let parameter = |name: &String| PARAMETERS.iter().any(|known| known.eq_ignore_ascii_case(name));
    settings.unknown().into_iter().filter(|name| !parameter(name)).collect()
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
        let typhas: Vec<String> = settings.get("TyphaAddr")?;
        let backend: String = settings.get(BACKEND)?;
        let backend = parse_backend(&backend).map_err(|reason| settings.refuse(BACKEND, reason))?;
        let parameters = PARAMETERS
            .iter()
            .chain(&HOT)
            .filter_map(|name| Some(((*name).to_owned(), settings.raw(name)?.to_owned())))
            .collect();
        let state_file: String = settings.get("StateFile")?;
        let state_file = (!matches!(state_file.as_str(), "" | "none")).then(|| PathBuf::from(state_file));
        Ok(Config {
            node: node_name(settings)?,
            typhas: if typhas.is_empty() { vec![DEFAULT_TYPHA.to_owned()] } else { typhas },
            typha_tls: typha_tls(settings)?,
            typha_zone: settings.get("TyphaZone")?,
            backend,
            ipv6: settings.get("Ipv6Support")?,
            status_prefix: settings.get("EndpointStatusPathPrefix")?,
            state_file,
            log_level: settings.get("LogSeverityScreen")?,
            log_format: settings.get("LogFormat")?,
            ports: ports(settings)?,
            parameters,
        })
    }
}

/// None: the one that others use.
pub fn parse_backend(text: &str) -> Result<Option<Backend>, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "auto" | "" => Ok(None),
        "nft" => Ok(Some(Backend::Nft)),
        "legacy" => Ok(Some(Backend::Legacy)),
        _ => Err(format!("{text:?} is none of auto, nft, legacy")),
    }
}

/// Where health and metrics are served.
pub fn ports(settings: &Settings) -> Result<Ports, SettingsError> {
    let endpoint = |on: &str, host: &str, port: &str| {
        let on = settings.get::<bool>(on)?;
        Ok(on.then_some(Endpoint::new(settings.get::<String>(host)?, settings.get(port)?)))
    };
    Ok(Ports {
        health: endpoint("HealthEnabled", "HealthHost", "HealthPort")?,
        metrics: endpoint("PrometheusMetricsEnabled", "PrometheusMetricsHost", "PrometheusMetricsPort")?,
    })
}

fn node_name(settings: &Settings) -> anyhow::Result<String> {
    let mut node: String = settings.get("FelixHostname")?;
    if node.is_empty() {
        node = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("reading the host's name; give --node or FELIX_FELIXHOSTNAME")?
            .trim()
            .to_lowercase();
    }
    if node.is_empty() {
        bail!("this node has no name: give --node or FELIX_FELIXHOSTNAME");
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(environment: &[(&str, &str)], flags: &[&str]) -> anyhow::Result<Config> {
        let command =
            clap::Command::new("felix").arg(clap::Arg::new("node").long("node")).args(settings().args());
        let matches = command.try_get_matches_from([&["felix"], flags].concat()).unwrap();
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Config::from_settings(&load(&matches, &environment, None)?)
    }

    #[test]
    fn the_nodes_name_comes_from_the_nearest_source() {
        let env = [("NODENAME", "n1"), ("FELIX_FelixHostname", "n2")];
        assert_eq!(config(&env[..1], &[]).unwrap().node, "n1");
        assert_eq!(config(&env, &[]).unwrap().node, "n2");
        assert_eq!(config(&env, &["--node", "n3"]).unwrap().node, "n3");
    }

    #[test]
    fn parameters_given_here_are_kept_for_the_dataplane() {
        let read = config(
            &[("NODENAME", "n"), ("FELIX_CHAININSERTMODE", "append"), ("FELIX_IPTABLESBACKEND", "NFT")],
            &[],
        );
        let read = read.unwrap();
        let given = [("ChainInsertMode", "append"), ("IptablesBackend", "NFT")];
        assert_eq!(read.parameters, given.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(read.backend, Some(Backend::Nft));
    }

    #[test]
    fn what_needs_a_restart_is_named_with_where_to_set_it() {
        let params = [
            ("ipv6support", "false"),
            ("InterfacePrefix", "tap"),
            ("PrometheusMetricsEnabled", "true"),
            ("FelixHostname", "x"),
            ("IptablesBackend", "nft"),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let said = not_in_force(&params);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("Ipv6Support=\"false\"") && said[0].contains("FELIX_IPV6SUPPORT"));
    }

    #[test]
    fn what_this_felix_does_not_do_is_said_when_it_is_asked_for() {
        let said =
            |name: &str, value: &str| not_in_force(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        for (name, value) in
            [("bpfEnabled", "true"), ("NFTablesMode", "Enabled"), ("WireguardEnabled", "true")]
        {
            assert_eq!(said(name, value).len(), 1, "{name}");
        }
        for (name, value) in
            [("bpfEnabled", "false"), ("NFTablesMode", "Auto"), ("PolicySyncPathPrefix", "none")]
        {
            assert_eq!(said(name, value), [""; 0], "{name}");
        }
    }

    #[test]
    fn an_unknown_backend_is_refused_by_name() {
        let error = config(&[("NODENAME", "n"), ("FELIX_IPTABLESBACKEND", "bpf")], &[]).unwrap_err();
        assert!(format!("{error:#}").contains("FELIX_IPTABLESBACKEND"), "{error:#}");
    }
}
