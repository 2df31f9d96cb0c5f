//! `felix render`: what a node would hold, as text, without touching any kernel.
//!
//! The same calculation and the same model as in the daemon, with a sink that collects. The text is a function of
//! its input alone: sections with headings, everything sorted. Interfaces are taken to be up, and the node's own
//! addresses are those that its Node object gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use felix_calc::Graph;
use felix_calc::output::{Family, IpSetKind, Output, OwnNode, Route, Vtep};
use ipnet::IpNet;
use syncer_common::manifests;
use syncer_common::model::{Update, WorkloadEndpointKey};

use crate::dataplane::model::{HostInterface, Model, Sink};
use crate::dataplane::params::DataplaneParams;
use crate::ifacemonitor::Link;
use crate::ipsets::{Member, kernel_name, render as ipset_lines};
use crate::iptables::chains::{ChainSet, Owner};
use crate::iptables::plan::Hooks;
use crate::iptables::render::{Features, append_line, insert_line};
use crate::iptables::{Chain, InsertMode, IpVersion, TableName, hash};
use crate::routetable::{RouteKind, Workload};
use crate::tunnels::wanted::{self, Cluster};

/// Renders the node that the manifests give. Problems with single objects are told to `report` and passed over.
pub fn render_manifests(
    node: &str,
    manifests: &Path,
    versions: &[IpVersion],
    local: BTreeMap<String, String>,
    report: &mut dyn FnMut(String),
) -> String {
    let (updates, errors) = manifests::load_updates(manifests);
    errors.iter().for_each(|error| report(error.to_string()));
    render(node, updates, versions, local, report)
}

/// The same from updates.
pub fn render(
    node: &str,
    updates: Vec<Update>,
    versions: &[IpVersion],
    local: BTreeMap<String, String>,
    report: &mut dyn FnMut(String),
) -> String {
    let mut graph = Graph::new(node);
    updates.into_iter().for_each(|update| graph.on_update(update));
    graph.on_in_sync();
    let mut model = Model::new(versions, Features::all(), local);
    for output in graph.flush() {
        if let Output::HostUpdate { node: name, host } = &output
            && name == node
        {
            let v4 = host.ipv4.map(IpAddr::V4);
            let addresses = v4.into_iter().chain(host.ipv6.map(IpAddr::V6)).collect();
            model.on_interfaces(vec![HostInterface { name: "eth0".into(), addresses }]);
        }
        model.on_output(output);
    }
    let mut collected = Collected::default();
    for error in model.flush(&mut collected) {
        report(error.to_string());
    }
    let mut text = String::new();
    for &version in versions {
        collected.write(&mut text, version, &model).expect("writing to a String cannot fail");
    }
    text
}

#[derive(Default)]
struct Collected {
    tables: BTreeMap<(IpVersion, TableName), ChainSet>,
    sets: BTreeMap<String, (IpSetKind, BTreeSet<String>)>,
    workloads: BTreeMap<WorkloadEndpointKey, Workload>,
    cluster: Cluster,
}

impl Sink for Collected {
    fn chains(
        &mut self,
        version: IpVersion,
        table: TableName,
        owner: Owner,
        chains: Vec<Chain>,
        always_needed: bool,
    ) {
        self.tables.entry((version, table)).or_default().offer(owner, chains, always_needed);
    }

    fn hooks(
        &mut self,
        version: IpVersion,
        table: TableName,
        mode: InsertMode,
        hooks: BTreeMap<String, Hooks>,
    ) {
        self.tables.entry((version, table)).or_default().set_hooks(mode, hooks);
    }

    fn set_replace(&mut self, id: &str, kind: IpSetKind, members: &BTreeSet<String>) {
        self.sets.insert(id.to_owned(), (kind, members.clone()));
    }

    fn set_change(&mut self, id: &str, added: &[String], removed: &[String]) {
        if let Some((_, members)) = self.sets.get_mut(id) {
            members.retain(|member| !removed.contains(member));
            members.extend(added.iter().cloned());
        }
    }

    fn set_remove(&mut self, id: &str) {
        self.sets.remove(id);
    }

    fn workload(&mut self, id: &WorkloadEndpointKey, workload: Option<Workload>) {
        match workload {
            Some(workload) => self.workloads.insert(id.clone(), workload),
            None => self.workloads.remove(id),
        };
    }

    fn params(&mut self, _params: &DataplaneParams) {}

    fn own_node(&mut self, own: &OwnNode) {
        self.cluster.own = own.clone();
    }

    fn vtep(&mut self, node: &str, family: Family, vtep: Option<Vtep>) {
        if let Some(vtep) = vtep {
            self.cluster.vteps.insert((node.to_owned(), family), vtep);
        }
    }

    fn route(&mut self, dst: IpNet, route: Option<Route>) {
        if let Some(route) = route {
            self.cluster.routes.insert(dst, route);
        }
    }
}

impl Collected {
    fn write(&self, text: &mut String, version: IpVersion, model: &Model) -> std::fmt::Result {
        let family = match version {
            IpVersion::V4 => "IPv4",
            IpVersion::V6 => "IPv6",
        };
        if !text.is_empty() {
            writeln!(text)?;
        }
        writeln!(text, "# {family} IP sets (ipset restore)")?;
        let mut lines = BTreeMap::new();
        for (id, (kind, members)) in &self.sets {
            let name = kernel_name(version, id);
            let mut set = String::new();
            ipset_lines::create(&mut set, &name, *kind, version, model.params().max_ipset_size);
            let members: BTreeSet<Member> =
                members.iter().filter_map(|member| Member::parse(*kind, member)).flatten().collect();
            for member in members.iter().filter(|member| member.version() == version) {
                writeln!(set, "add {name} {member}")?;
            }
            lines.insert(name, set);
        }
        lines.values().for_each(|set| text.push_str(set));
        for table in TableName::ALL {
            let Some(chains) = self.tables.get(&(version, table)) else { continue };
            writeln!(
                text,
                "\n# {family} table {} (iptables-restore --noflush)\n*{}",
                table.name(),
                table.name()
            )?;
            let wanted = chains.wanted();
            for name in wanted.keys() {
                writeln!(text, ":{name} - -")?;
            }
            for (chain, hooks) in chains.hooks() {
                let ids = hash::hook_hashes(chain, false, &hooks.movable);
                let movable = hooks.movable.iter().zip(&ids);
                match chains.mode() {
                    InsertMode::Insert => {
                        for (rule, id) in movable.rev() {
                            writeln!(text, "{}", insert_line(chain, Some(*id), rule))?;
                        }
                    }
                    InsertMode::Append => {
                        for (rule, id) in movable {
                            writeln!(text, "{}", append_line(chain, Some(*id), rule))?;
                        }
                    }
                }
                for (rule, id) in hooks.last.iter().zip(hash::hook_hashes(chain, true, &hooks.last)) {
                    writeln!(text, "{}", append_line(chain, Some(id), rule))?;
                }
            }
            for wanted in wanted.values() {
                for (rule, id) in wanted.chain.rules.iter().zip(&wanted.hashes) {
                    writeln!(text, "{}", append_line(&wanted.chain.name, Some(*id), rule))?;
                }
            }
            writeln!(text, "COMMIT")?;
        }
        writeln!(text, "\n# {family} routes of local workloads (ip route)")?;
        let settings = &model.params().routes;
        let mut routes = BTreeSet::new();
        for workload in self.workloads.values() {
            for net in workload.nets.iter().filter(|net| net.addr().is_ipv4() == (version == IpVersion::V4)) {
                let metric = settings.metric.get(&version).copied().unwrap_or_default();
                let scope = if version == IpVersion::V4 { " scope link" } else { "" };
                let protocol = settings.ownership.protocol;
                routes.insert((
                    *net,
                    format!("{net} dev {}{scope} proto {protocol} metric {metric}", workload.interface),
                ));
            }
        }
        for (_, route) in routes {
            writeln!(text, "{route}")?;
        }
        self.write_cluster_routes(text, version, model)?;
        Ok(())
    }
}

impl Collected {
    /// As on a node with one interface, `eth0`, that holds its address, and with every tunnel device there.
    fn write_cluster_routes(&self, text: &mut String, version: IpVersion, model: &Model) -> std::fmt::Result {
        let own = &self.cluster.own;
        let names: Vec<&str> = ["eth0"].into_iter().chain(wanted::DEVICES).collect();
        let links = names
            .iter()
            .zip(1..)
            .map(|(name, index)| (index, Link { index, name: (*name).to_owned(), up: true, mtu: 1500 }));
        let addresses = own.ipv4.map(IpAddr::V4).into_iter().chain(own.ipv6.map(IpAddr::V6));
        let host = wanted::Host {
            links: links.collect(),
            addresses: addresses.map(|address| (1, IpNet::from(address))).collect(),
        };
        let routes = wanted::routes(&self.cluster, &model.params().tunnels, &[version], &host);
        if routes.is_empty() {
            return Ok(());
        }
        writeln!(text, "\n# routes to other nodes (ip route)")?;
        for route in routes.into_values().flatten() {
            if route.kind == RouteKind::Blackhole {
                writeln!(text, "blackhole {} proto {}", route.dst, route.protocol)?;
                continue;
            }
            let name = route.interface.and_then(|index| host.links.get(&index)).map_or("", |link| &link.name);
            let via = route.gateway.map_or_else(String::new, |via| format!(" via {via}"));
            let onlink = if route.onlink { " onlink" } else { "" };
            writeln!(text, "{}{via} dev {name} proto {}{onlink}", route.dst, route.protocol)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.244.0.0/16, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-web-eth0, namespace: default, labels: {app: web, projectcalico.org/namespace: default, projectcalico.org/orchestrator: k8s}}
spec: {orchestrator: k8s, node: n1, pod: web, endpoint: eth0, containerID: c, ipNetworks: [10.244.1.2/32], interfaceName: cali1234}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {selector: app == 'web', types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'web'}}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: broken, namespace: default}
spec: {selector: 'app ==', types: [Ingress]}
";

    fn rendered(node: &str, versions: &[IpVersion]) -> (String, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), MANIFESTS).unwrap();
        let mut problems = Vec::new();
        let text = render_manifests(node, folder.path(), versions, BTreeMap::new(), &mut |problem| {
            problems.push(problem)
        });
        (text, problems)
    }

    #[test]
    fn the_text_holds_sets_chains_and_routes_and_is_always_the_same() {
        let (text, problems) = rendered("n1", &IpVersion::ALL);
        for part in [
            "# IPv4 IP sets",
            "add cali40masq-ipam-pools 10.244.0.0/16\n",
            "# IPv6 table filter",
            ":cali-pi-np/default/web - -\n",
            "-I FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" --jump cali-FORWARD\n",
            "10.244.1.2/32 dev cali1234 scope link proto 3 metric 1024\n",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert_eq!(rendered("n1", &IpVersion::ALL).0, text);
        assert!(problems.iter().any(|problem| problem.contains("broken")), "{problems:?}");
    }

    #[test]
    fn a_node_without_workloads_has_the_frame_only() {
        let (text, _) = rendered("n2", &[IpVersion::V4]);
        assert!(text.contains("Unknown interface") && !text.contains("cali1234") && !text.contains("IPv6"));
    }
}
