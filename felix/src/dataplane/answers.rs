//! What the dataplane says about itself: `felix status` and `felix explain`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Instant;

use felix_calc::explain::{self, Packet, Place, Protocol, Settings, contains, verdict};
use ipnet::IpNet;
use syncer_common::model::Key;

use super::model::Model;
use super::status::{EndpointState, StatusFiles};
use crate::ipsets::member::Protocol as PortProtocol;
use crate::ipsets::{IpSets, Member};
use crate::iptables::IpVersion;
use crate::iptables::tables::Tables;
use crate::routetable::RouteTable;
use crate::rules::ANY_INTERFACE;
use crate::tunnels::Tunnels;

/// What is to be known of the last passes.
#[derive(Debug, Default)]
pub struct History {
    pub passes: u64,
    pub last_good: Option<Instant>,
    /// Cut that the last good pass programmed.
    pub cut: Option<u64>,
    /// Of the last pass, if it was programmed in part.
    pub failures: Vec<String>,
    pub failed_at: Option<Instant>,
    /// Parameters of the datastore that cannot be used, with the reason.
    pub refused: Vec<String>,
}

impl History {
    /// A parameter that cannot be used; said once.
    pub fn refuse(&mut self, reason: String) {
        if !self.refused.contains(&reason) {
            tracing::warn!("{reason}");
            self.refused.push(reason);
        }
    }
}

/// What the dataplane holds, to answer from.
pub struct Answers<'a> {
    pub model: &'a Model,
    pub tables: &'a Tables,
    pub ipsets: &'a BTreeMap<IpVersion, IpSets>,
    pub routes: &'a RouteTable,
    pub tunnels: &'a Tunnels,
    pub status: &'a StatusFiles,
    pub history: &'a History,
    pub started: bool,
    pub dirty: bool,
}

impl Answers<'_> {
    pub fn answer(&self, words: &[String]) -> Result<String, String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["status"] => Ok(self.status_text()),
            ["explain", from, to, port, interface] => self.explain(from, to, port, interface),
            _ => Err(format!("felix does not know the question {words:?}")),
        }
    }

    /// By kind and name, each endpoint of this node.
    fn endpoints(&self) -> Vec<(String, EndpointState)> {
        let workloads = self.model.workloads().map(|(key, endpoint)| {
            let name = format!("workload {} {} ({})", key.workload, key.endpoint, endpoint.interface);
            (name, self.status.state(&Key::WorkloadEndpoint(key.clone())))
        });
        let hosts = self.model.host_endpoints().map(|(key, _)| {
            let state = self.status.state(&Key::HostEndpoint(key.clone()));
            (format!("host endpoint {}", key.endpoint), state)
        });
        workloads.chain(hosts).collect()
    }

    fn status_text(&self) -> String {
        let history = self.history;
        let ago = |at: Instant| format!("{:.1} s ago", at.elapsed().as_secs_f64());
        let mut lines = Vec::new();
        lines.push(match (self.started, history.last_good) {
            (false, _) => "waiting for the first proven state; the kernel is as it was found".to_owned(),
            (true, None) => "the first state is not programmed yet".to_owned(),
            (true, Some(at)) => {
                let cut = history.cut.map_or_else(String::new, |cut| format!(", up to cut {cut}"));
                format!("programmed {}{cut}; {} passes since the start", ago(at), history.passes)
            }
        });
        lines.push(format!("iptables backend {}", self.tables.backend().name()));
        let (endpoints, policies) = self.model.counts();
        lines.push(format!("{endpoints} endpoints, {policies} active policies"));
        for (version, sets) in self.ipsets {
            let members: usize = sets.wanted().map(|(_, _, members)| members.len()).sum();
            lines.push(format!("{version:?}: {} IP sets with {members} members", sets.wanted().count()));
        }
        let mut pending: Vec<String> = Vec::new();
        if self.dirty {
            pending.push("changes that no pass has seen".to_owned());
        }
        pending.extend(
            self.tables.dirty().map(|(version, table)| format!("{version:?} table {}", table.name())),
        );
        let sets = self.ipsets.iter().filter(|(_, sets)| sets.has_updates() || sets.has_deletions());
        pending.extend(sets.map(|(version, _)| format!("{version:?} IP sets")));
        if self.routes.needs_apply() || self.tunnels.needs_apply() {
            pending.push("routes".to_owned());
        }
        lines.push(match pending.is_empty() {
            true => "nothing is pending".to_owned(),
            false => format!("pending: {}", pending.join(", ")),
        });
        if let Some(at) = history.failed_at {
            lines.push(format!("last error, {}:", ago(at)));
            lines.extend(history.failures.iter().map(|failure| format!("  {failure}")));
        }
        lines.extend(
            self.status.failure().map(|failure| format!("status files cannot be written: {failure}")),
        );
        for (version, table, chain, reason) in self.tables.closed() {
            lines.push(format!(
                "closed by the kernel's refusal: {version:?} {} {chain}: {reason}",
                table.name()
            ));
        }
        lines.extend(self.tunnels.unsupported().map(|text| format!("missing: {text}")));
        lines.extend(history.refused.iter().map(|refused| format!("not in force: {refused}")));
        for (name, state) in self.endpoints() {
            lines.push(format!("{:<5} {name}", state.name()));
        }
        lines.join("\n") + "\n"
    }

    fn explain(&self, from: &str, to: &str, port: &str, interface: &str) -> Result<String, String> {
        let protocol = Protocol::parse(port)?;
        let (from, to) = (self.find(from, interface)?, self.find(to, interface)?);
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
        let mut pairs = pairs.filter(|(from, to)| from.0.is_ipv4() == to.0.is_ipv4());
        let (from, to) = pairs.next().ok_or("the two ends have no address of the same family")?;
        let packet = Packet { src: from.0, dst: to.0, protocol };
        let sets = KernelSets(self.ipsets);
        let settings = Settings::from_params(&self.model.merged_params());
        let stages = self.model.explained(&sets, &settings).path(&packet, &from.1, &to.1);
        let mut text = format!("{packet}\n");
        for stage in &stages {
            writeln!(text, "{stage}").map_err(|error| error.to_string())?;
        }
        if stages.is_empty() {
            text.push_str("nothing polices it here\n");
        }
        if self.dirty {
            text.push_str("note: changes wait to be programmed\n");
        }
        text.push_str(&format!("\n{} by this node\n", verdict(&stages)));
        Ok(text)
    }

    /// The addresses of a local workload, by name or address, of the node itself, or of somebody else.
    fn find(&self, text: &str, interface: &str) -> Result<Vec<(IpAddr, Place)>, String> {
        let mut workloads = self.model.workloads().flat_map(|(key, endpoint)| {
            let nets = endpoint.ipv4_nets.iter().chain(&endpoint.ipv6_nets);
            nets.map(move |net| (key, net.addr()))
        });
        let Ok(ip) = text.parse::<IpAddr>() else {
            let named = workloads.filter(|(key, _)| {
                key.workload == text || key.workload.rsplit(['/', '.']).next() == Some(text)
            });
            let found: Vec<_> = named.map(|(key, ip)| (ip, Place::Workload(key.clone()))).collect();
            return match found.is_empty() {
                true => Err(format!("no workload of this node is called {text:?}; give addresses of others")),
                false => Ok(found),
            };
        };
        if let Some((key, _)) = workloads.find(|(_, own)| *own == ip) {
            return Ok(vec![(ip, Place::Workload(key.clone()))]);
        }
        if self.model.interfaces().iter().any(|interface| interface.addresses.contains(&ip)) {
            return Ok(vec![(ip, Place::Host)]);
        }
        let owners = self.model.host_owners();
        let mut named = owners.keys().filter(|name| *name != ANY_INTERFACE);
        let governs = match (interface, named.next(), named.next()) {
            ("", Some(only), None) => Some(only.as_str()),
            ("", Some(_), Some(_)) => {
                return Err("several interfaces have host endpoints: say which with --interface".into());
            }
            ("", None, _) => None,
            (given, _, _) => Some(given),
        };
        Ok(vec![(ip, Place::Outside(governs.and_then(|name| owners.get(name)).cloned()))])
    }
}

/// The sets as the drivers hold them.
struct KernelSets<'a>(&'a BTreeMap<IpVersion, IpSets>);

impl KernelSets<'_> {
    fn holds(&self, id: &str, member: &Member) -> bool {
        self.0.get(&member.version()).is_some_and(|sets| sets.holds(id, member))
    }
}

impl explain::Sets for KernelSets<'_> {
    fn has_address(&self, id: &str, ip: IpAddr) -> bool {
        self.holds(id, &Member::Ip(ip)) || contains(ip, |net: IpNet| self.holds(id, &Member::Net(net)))
    }

    fn has_port(&self, id: &str, ip: IpAddr, protocol: u8, port: u16) -> bool {
        PortProtocol::of(protocol).is_some_and(|protocol| self.holds(id, &Member::IpPort(ip, protocol, port)))
    }
}
