//! The drivers: what the model hands over, and the order in which it goes into the kernel.

use std::collections::{BTreeMap, BTreeSet};

use felix_calc::output::{Family, IpSetKind, OwnNode, Route, Vtep};
use ipnet::IpNet;
use syncer_common::model::WorkloadEndpointKey;

use super::model::Sink;
use super::params::DataplaneParams;
use crate::ipsets::IpSets;
use crate::iptables::chains::Owner;
use crate::iptables::plan::Hooks;
use crate::iptables::tables::Tables;
use crate::iptables::{Chain, InsertMode, IpVersion, TableName};
use crate::routetable::{self, RouteTable, Workload};
use crate::tunnels::{self, Tunnels};

pub struct Kernel {
    pub tables: Tables,
    pub ipsets: BTreeMap<IpVersion, IpSets>,
    pub routes: RouteTable,
    pub tunnels: Tunnels,
    pub forwarding: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub set_lines: usize,
    pub table_lines: usize,
    pub route_writes: usize,
}

impl Count {
    pub fn any(self) -> bool {
        self.set_lines + self.table_lines + self.route_writes > 0
    }
}

pub struct Written {
    pub count: Count,
    /// All tables are as wanted.
    pub tables: bool,
    /// They are, and so are the IP sets.
    pub rules: bool,
    pub failures: Vec<String>,
}

impl Kernel {
    pub fn on_route(&mut self, route: &routetable::Route, there: bool) {
        self.routes.on_route(route, there);
        self.tunnels.on_route(route, there);
    }

    /// Sets come before the rules that refer to them, and both before what is deleted; routes of workloads are written
    /// beside them, because without their rules workloads are closed.
    pub async fn write(&mut self) -> Written {
        let Kernel { tables, ipsets, routes, .. } = self;
        let rules = async {
            let mut lines = 0;
            let mut errors: Vec<String> = Vec::new();
            let updates = ipsets
                .values_mut()
                .map(async |sets| if sets.has_updates() { sets.apply_updates().await } else { Ok(0) });
            for result in futures::future::join_all(updates).await {
                match result {
                    Ok(written) => lines += written,
                    Err(error) => errors.push(error.to_string()),
                }
            }
            if lines > 0 {
                tables.lift();
            }
            let pass = tables.apply().await;
            for (version, table, error) in &pass.errors {
                tracing::error!(?version, table = table.name(), %error, "table could not be written; trying again");
                errors.push(error.to_string());
            }
            (lines, pass, errors)
        };
        let (rules, routes) = tokio::join!(rules, async {
            if routes.needs_apply() { routes.apply().await } else { routetable::table::Pass::default() }
        });
        let (set_lines, tables, errors) = rules;
        let in_place = errors.is_empty();
        let mut failures = errors;
        // After the rules, which say who may send into a tunnel.
        let mut beyond = tunnels::driver::Pass::default();
        if self.tunnels.needs_apply() {
            beyond = self.tunnels.apply().await;
        }
        for error in &beyond.errors {
            tracing::warn!(%error, "tunnel or route to another node could not be set up; trying again");
            failures.push(error.to_string());
        }
        for error in &routes.errors {
            tracing::warn!(%error, "route or interface could not be set up; trying again");
            failures.push(error.to_string());
        }
        let count =
            Count { set_lines, table_lines: tables.lines, route_writes: routes.writes + beyond.writes };
        Written { count, tables: tables.errors.is_empty(), rules: in_place, failures }
    }
}

impl Sink for Kernel {
    fn chains(
        &mut self,
        version: IpVersion,
        table: TableName,
        owner: Owner,
        chains: Vec<Chain>,
        always_needed: bool,
    ) {
        if let Some(table) = self.tables.get_mut(version, table) {
            table.offer(owner, chains, always_needed);
        }
    }

    fn hooks(
        &mut self,
        version: IpVersion,
        table: TableName,
        mode: InsertMode,
        hooks: BTreeMap<String, Hooks>,
    ) {
        if let Some(table) = self.tables.get_mut(version, table) {
            table.set_hooks(mode, hooks);
        }
    }

    fn set_replace(&mut self, id: &str, kind: IpSetKind, members: &BTreeSet<String>) {
        for sets in self.ipsets.values_mut() {
            sets.replace(id, kind, members.iter().map(String::as_str));
        }
    }

    fn set_change(&mut self, id: &str, added: &[String], removed: &[String]) {
        for sets in self.ipsets.values_mut() {
            sets.change(id, added.iter().map(String::as_str), removed.iter().map(String::as_str));
        }
    }

    fn set_remove(&mut self, id: &str) {
        self.ipsets.values_mut().for_each(|sets| sets.remove(id));
    }

    fn workload(&mut self, id: &WorkloadEndpointKey, workload: Option<Workload>) {
        self.routes.set_workload(workload_id(id), workload);
    }

    fn params(&mut self, params: &DataplaneParams) {
        self.ipsets.values_mut().for_each(|sets| sets.set_max_size(params.max_ipset_size));
        self.routes.set_settings(params.routes.clone());
        self.tunnels.set_settings(params.tunnels.clone());
    }

    fn own_node(&mut self, own: &OwnNode) {
        self.tunnels.set_own(own.clone());
    }

    fn vtep(&mut self, node: &str, family: Family, vtep: Option<Vtep>) {
        self.tunnels.set_vtep(node.to_owned(), family, vtep);
    }

    fn route(&mut self, dst: IpNet, route: Option<Route>) {
        self.tunnels.set_route(dst, route);
    }
}

/// The id under which the route table knows a workload.
pub fn workload_id(key: &WorkloadEndpointKey) -> String {
    format!("{} {} {}", key.orchestrator, key.workload, key.endpoint)
}
