//! Parameters of the dataplane that may change while it runs, and their reading. Pure.
//!
//! Values come from the datastore, overlaid with what flags, environment and file give on this node. One that
//! cannot be read is reported by name and keeps its default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::iptables::{InsertMode, IpVersion};
use crate::routetable::ownership::Ownership;
use crate::routetable::table::RouteSettings;
use crate::rules::ParamError;
use crate::tunnels::settings::{Pattern, Program, TunnelSettings};

#[derive(Clone, Debug, PartialEq)]
pub struct DataplaneParams {
    pub insert_mode: InsertMode,
    /// A full read of all tables at least this often; zero: never.
    pub tables_refresh: Duration,
    /// Without a generation to ask: how often tables are read to see whether somebody else wrote.
    pub tables_check: Duration,
    pub ipsets_refresh: Duration,
    pub routes_refresh: Duration,
    pub interfaces_refresh: Duration,
    pub max_ipset_size: u32,
    pub routes: RouteSettings,
    pub tunnels: TunnelSettings,
    pub ip_forwarding: bool,
    /// Workloads may use the sources that their endpoint asks for beside its own. Whoever may create a pod may ask.
    pub source_spoofing: bool,
    /// Interfaces whose addresses are not the host's.
    pub interface_exclude: Vec<String>,
    /// Addresses beside the nodes' that tunnels may come from.
    pub external_nodes: Vec<IpNet>,
}

impl Default for DataplaneParams {
    fn default() -> Self {
        DataplaneParams {
            insert_mode: InsertMode::Insert,
            tables_refresh: Duration::from_secs(180),
            tables_check: Duration::from_secs(5),
            ipsets_refresh: Duration::from_secs(90),
            routes_refresh: Duration::from_secs(90),
            interfaces_refresh: Duration::from_secs(90),
            max_ipset_size: 1_048_576,
            routes: RouteSettings::default(),
            tunnels: TunnelSettings::default(),
            ip_forwarding: true,
            source_spoofing: false,
            interface_exclude: vec!["kube-ipvs0".into()],
            external_nodes: Vec::new(),
        }
    }
}

impl DataplaneParams {
    pub fn from_params(
        params: &BTreeMap<String, String>,
        prefixes: &[String],
    ) -> (DataplaneParams, Vec<ParamError>) {
        let mut reader = Reader { params, errors: Vec::new() };
        let read = reader.read_all(prefixes);
        (read, reader.errors)
    }
}

struct Reader<'a> {
    params: &'a BTreeMap<String, String>,
    errors: Vec<ParamError>,
}

impl Reader<'_> {
    fn read_all(&mut self, prefixes: &[String]) -> DataplaneParams {
        let d = DataplaneParams::default();
        let mut source = BTreeMap::new();
        for (version, name) in
            [(IpVersion::V4, "DeviceRouteSourceAddress"), (IpVersion::V6, "DeviceRouteSourceAddressIPv6")]
        {
            let address: Option<IpAddr> =
                self.read(name, None, |text| text.parse().map(Some).map_err(|_| "not an address"));
            source.extend(address.map(|address| (version, address)));
        }
        let metric = [(IpVersion::V4, "IPv4NormalRoutePriority"), (IpVersion::V6, "IPv6NormalRoutePriority")];
        let metric = metric.into_iter().map(|(version, name)| (version, self.number(name, 1024))).collect();
        DataplaneParams {
            insert_mode: self.read("ChainInsertMode", d.insert_mode, |text| {
                match text.to_ascii_lowercase().as_str() {
                    "insert" => Ok(InsertMode::Insert),
                    "append" => Ok(InsertMode::Append),
                    _ => Err("neither insert nor append"),
                }
            }),
            tables_refresh: self.seconds("IptablesRefreshInterval", d.tables_refresh),
            tables_check: self.seconds("IptablesPostWriteCheckIntervalSecs", d.tables_check),
            ipsets_refresh: self.seconds("IpsetsRefreshInterval", d.ipsets_refresh),
            routes_refresh: self.seconds("RouteRefreshInterval", d.routes_refresh),
            interfaces_refresh: self.seconds("InterfaceRefreshInterval", d.interfaces_refresh),
            max_ipset_size: self.number("MaxIpsetSize", d.max_ipset_size),
            routes: RouteSettings {
                ownership: Ownership {
                    protocol: self.read("DeviceRouteProtocol", d.routes.ownership.protocol, |text| {
                        text.parse().map_err(|_| "not a number from 0 to 255")
                    }),
                    remove_external: self.flag("RemoveExternalRoutes", d.routes.ownership.remove_external),
                },
                metric,
                source,
                prefixes: prefixes.to_vec(),
                disabled: self.flag("RouteSyncDisabled", d.routes.disabled),
            },
            tunnels: TunnelSettings {
                vni: self.read("VXLANVNI", d.tunnels.vni, |text| match text.parse() {
                    Ok(vni) if vni < 1 << 24 => Ok(vni),
                    _ => Err("not a number below 16777216"),
                }),
                port: self.read("VXLANPort", d.tunnels.port, |text| match text.parse() {
                    Ok(port) if port > 0 => Ok(port),
                    _ => Err("not a port"),
                }),
                vxlan_mtu_v4: self.number("VXLANMTU", 0),
                vxlan_mtu_v6: self.number("VXLANMTUV6", 0),
                ipip_mtu: self.number("IpInIpMtu", 0),
                mtu_interfaces: self.read("MTUIfacePattern", d.tunnels.mtu_interfaces, Pattern::parse),
                program: self.read("ProgramClusterRoutes", d.tunnels.program, Program::parse),
                routes_disabled: self.flag("RouteSyncDisabled", d.routes.disabled),
                prefixes: prefixes.to_vec(),
                ..TunnelSettings::default()
            },
            ip_forwarding: self.read("IPForwarding", d.ip_forwarding, |text| {
                match text.to_ascii_lowercase().as_str() {
                    "enabled" => Ok(true),
                    "disabled" => Ok(false),
                    _ => Err("neither Enabled nor Disabled"),
                }
            }),
            source_spoofing: self.read("WorkloadSourceSpoofing", d.source_spoofing, |text| {
                match text.to_ascii_lowercase().as_str() {
                    "any" => Ok(true),
                    "disabled" => Ok(false),
                    _ => Err("neither Any nor Disabled"),
                }
            }),
            interface_exclude: self.read("InterfaceExclude", d.interface_exclude, |text| Ok(list(text))),
            external_nodes: self.read("ExternalNodesCIDRList", d.external_nodes, |text| {
                let nets: Result<Vec<IpNet>, _> =
                    list(text).iter().map(|item| net(item).ok_or("not a list of CIDRs")).collect();
                nets
            }),
        }
    }

    fn read<T>(&mut self, name: &str, default: T, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> T {
        let given = self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        let Some((_, value)) = given.filter(|(_, value)| !value.trim().is_empty()) else { return default };
        match parse(value.trim()) {
            Ok(value) => value,
            Err(reason) => {
                self.errors.push(ParamError { name: name.to_owned(), value: value.clone(), reason });
                default
            }
        }
    }

    fn number(&mut self, name: &str, default: u32) -> u32 {
        self.read(name, default, |text| text.parse().map_err(|_| "not a number"))
    }

    fn seconds(&mut self, name: &str, default: Duration) -> Duration {
        self.read(name, default, |text| {
            let seconds =
                text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "not a number of seconds")?;
            Duration::try_from_secs_f64(seconds).map_err(|_| "not a number of seconds")
        })
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        self.read(name, default, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" | "none" => Ok(false),
            _ => Err("neither true nor false"),
        })
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_value_is_reported_and_the_others_apply() {
        let params =
            [("chaininsertmode", "Append"), ("DeviceRouteProtocol", "800"), ("IpsetsRefreshInterval", "10s")];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (read, errors) = DataplaneParams::from_params(&params, &["tap".into()]);
        assert_eq!((read.insert_mode, read.ipsets_refresh), (InsertMode::Append, Duration::from_secs(10)));
        assert_eq!(read.routes.ownership.protocol, 3);
        assert_eq!(read.routes.prefixes, ["tap"]);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].name, "DeviceRouteProtocol");
    }
}
