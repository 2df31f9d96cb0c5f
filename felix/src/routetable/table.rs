//! The driver of workload routes: `ADDRESS dev IFACE scope link` for every local workload whose interface is up,
//! and, for IPv4, a permanent neighbour entry with the workload's MAC.
//!
//! The kernel is listed at the start, at every refresh, when an event contradicts what we know, and after a
//! failure. A route is replaced in one step, so moving an address never leaves a gap. A route that we did not
//! make on a workload interface gets some seconds of grace: the CNI plugin may be faster than the datastore, with an
//! address that another workload had, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::netlink::{Netlink, NetlinkError};
use super::ownership::Ownership;
use super::{Neighbour, Route, RouteKind, conntrack, listing, sysctl};
use crate::commands::Commands;
use crate::drift;
use crate::ifacemonitor::Interfaces;
use crate::iptables::IpVersion;
use crate::metrics;

/// How long an unknown route on a workload interface may wait for its endpoint.
const GRACE: Duration = Duration::from_secs(10);

/// What a local workload needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub interface: String,
    pub nets: Vec<IpNet>,
    pub mac: Option<[u8; 6]>,
    pub spoofing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    pub ownership: Ownership,
    pub metric: BTreeMap<IpVersion, u32>,
    pub source: BTreeMap<IpVersion, IpAddr>,
    pub prefixes: Vec<String>,
    /// RouteSyncDisabled: look, but do not touch routes.
    pub disabled: bool,
}

impl Default for RouteSettings {
    fn default() -> Self {
        RouteSettings {
            ownership: Ownership::default(),
            metric: IpVersion::ALL.into_iter().map(|version| (version, 1024)).collect(),
            source: BTreeMap::new(),
            prefixes: vec!["cali".into()],
            disabled: false,
        }
    }
}

impl RouteSettings {
    pub fn is_workload(&self, interface: &str) -> bool {
        self.prefixes.iter().any(|prefix| interface.starts_with(prefix.as_str()))
    }
}

/// Something that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("interface {interface}: {source}")]
    Interface { interface: String, source: sysctl::SysctlError },
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    pub writes: usize,
    pub errors: Vec<RouteError>,
}

pub struct RouteTable {
    netlink: Netlink,
    commands: Arc<dyn Commands>,
    versions: Vec<IpVersion>,
    settings: RouteSettings,
    workloads: BTreeMap<String, Workload>,
    interfaces: Interfaces,
    /// Routes by workload interfaces in the kernel.
    routes: BTreeSet<Route>,
    neighbours: BTreeSet<Neighbour>,
    /// What we made routes for in this run, and by which interface. Kept until no workload has the address.
    made: BTreeSet<(IpNet, u32)>,
    unknown_since: BTreeMap<Route, Instant>,
    /// Interfaces that changed since the last listing: the kernel takes their routes along.
    flapped: BTreeSet<u32>,
    /// Interfaces whose settings were written, by index.
    configured: BTreeMap<u32, (String, bool)>,
    /// Interfaces that the kernel would not set up or give a route in the last pass.
    failed: BTreeSet<String>,
    rp_filter: String,
    resync: bool,
    dirty: bool,
    /// When the next unknown route's grace ends.
    due: Option<Instant>,
}

impl RouteTable {
    pub fn new(commands: Arc<dyn Commands>, versions: &[IpVersion]) -> Result<RouteTable, NetlinkError> {
        Ok(RouteTable {
            netlink: Netlink::open()?,
            commands,
            versions: versions.to_vec(),
            settings: RouteSettings::default(),
            workloads: BTreeMap::new(),
            interfaces: Interfaces::default(),
            routes: BTreeSet::new(),
            neighbours: BTreeSet::new(),
            made: BTreeSet::new(),
            unknown_since: BTreeMap::new(),
            flapped: BTreeSet::new(),
            configured: BTreeMap::new(),
            failed: BTreeSet::new(),
            rp_filter: sysctl::default_reverse_path_filter(),
            resync: true,
            dirty: true,
            due: None,
        })
    }

    // === desired state ===

    pub fn set_settings(&mut self, settings: RouteSettings) {
        if self.settings != settings {
            self.settings = settings;
            self.resync = true;
        }
    }

    pub fn set_workload(&mut self, id: String, workload: Option<Workload>) {
        let before = match workload {
            Some(workload) if self.workloads.get(&id) == Some(&workload) => return,
            Some(workload) => self.workloads.insert(id, workload),
            None => self.workloads.remove(&id),
        };
        drop(before);
        self.dirty = true;
    }

    // === events ===

    pub fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    pub fn queue_resync(&mut self) {
        self.resync = true;
    }

    pub fn on_link(&mut self, link: crate::ifacemonitor::Link) {
        let index = link.index;
        let before = self.interfaces.by_index(index).map(|old| old.name.clone());
        let workload = [Some(&link.name), before.as_ref()]
            .into_iter()
            .flatten()
            .any(|name| self.settings.is_workload(name));
        if self.interfaces.set(link) && workload {
            // The kernel drops routes of an interface that goes down, partly without an event.
            self.resync = true;
            self.flapped.insert(index);
            if self.interfaces.by_index(index).is_some_and(|link| !link.up) {
                self.configured.remove(&index);
            }
        }
    }

    pub fn on_link_gone(&mut self, index: u32) {
        self.configured.remove(&index);
        if self.interfaces.remove(index).is_some_and(|link| self.settings.is_workload(&link.name)) {
            self.resync = true;
        }
    }

    /// An event that tells of a route as we know it is our own echo.
    pub fn on_route(&mut self, route: &Route, there: bool) {
        let Some(link) = route.interface.and_then(|index| self.interfaces.by_index(index)) else { return };
        if !self.settings.is_workload(&link.name) {
            return;
        }
        let key = |known: &&Route| {
            known.dst == route.dst && known.interface == route.interface && known.metric == route.metric
        };
        if self.routes.iter().find(key).is_some() != there {
            self.resync = true;
        }
    }

    pub fn needs_apply(&self) -> bool {
        self.resync || self.dirty || self.due.is_some_and(|due| due <= Instant::now())
    }

    /// When there is something to do without an event.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a workload's interface is up, set up, and has its routes.
    pub fn is_up(&self, id: &str) -> bool {
        let Some(workload) = self.workloads.get(id) else { return false };
        let Some(link) = self.interfaces.by_name(&workload.interface) else { return false };
        let routed = |net: &IpNet| {
            self.routes.iter().any(|route| route.dst == *net && route.interface == Some(link.index))
        };
        link.up
            && self.configured.contains_key(&link.index)
            && (self.settings.disabled || workload.nets.iter().all(routed))
    }

    /// Whether a workload's interface is there, but could not be set up or given its routes.
    pub fn has_failed(&self, id: &str) -> bool {
        self.workloads.get(id).is_some_and(|workload| self.failed.contains(&workload.interface))
    }

    /// Routes as they would be with every interface up, for printing: destination and interface.
    pub fn described<'a>(workloads: impl Iterator<Item = &'a Workload>) -> BTreeSet<(IpNet, String)> {
        workloads.flat_map(|w| w.nets.iter().map(|net| (*net, w.interface.clone()))).collect()
    }

    // === kernel ===

    /// Makes the kernel's routes, neighbours and interface settings as wanted.
    pub async fn apply(&mut self) -> Pass {
        let mut pass = Pass::default();
        if self.resync
            && let Err(error) = self.list().await
        {
            pass.errors.push(error.into());
            return pass;
        }
        self.resync = false;
        self.dirty = false;
        self.due = None;
        self.failed.clear();
        self.configure_interfaces(&mut pass);
        if self.settings.disabled {
            metrics::routes(0);
        } else {
            self.apply_routes(&mut pass).await;
            self.apply_neighbours(&mut pass).await;
        }
        if !pass.errors.is_empty() {
            self.resync = true;
        }
        pass
    }

    async fn list(&mut self) -> Result<(), NetlinkError> {
        let mut links = Interfaces::default();
        links.replace_all(listing::links().await?);
        let interfaces = std::mem::replace(&mut self.interfaces, links);
        let mut routes = BTreeSet::new();
        for &version in &self.versions {
            routes.extend(listing::routes(version).await?);
        }
        // What was made here stays ours when its interface is given a name that is no workload's.
        let ours = |dst: IpNet, index: u32| {
            self.interfaces.by_index(index).is_some_and(|link| self.settings.is_workload(&link.name))
                || self.made.contains(&(dst, index))
        };
        routes.retain(|route| route.interface.is_some_and(|index| ours(route.dst, index)));
        let mut neighbours: BTreeSet<_> = listing::neighbours(IpVersion::V4).await?.into_iter().collect();
        neighbours.retain(|neighbour| ours(neighbour.address.into(), neighbour.interface));
        let flapped = std::mem::take(&mut self.flapped);
        let steady = |index: u32| {
            let up = |links: &Interfaces| links.by_index(index).is_some_and(|link| link.up);
            up(&interfaces) && up(&self.interfaces) && !flapped.contains(&index)
        };
        let lost = self.routes.difference(&routes).filter(|route| self.is_made(route));
        let lost = lost.filter(|route| route.interface.is_some_and(steady));
        drift::report("workload route", lost.map(|route| (route.dst.to_string(), "removed")));
        (self.routes, self.neighbours) = (routes, neighbours);
        Ok(())
    }

    fn configure_interfaces(&mut self, pass: &mut Pass) {
        for workload in self.workloads.values() {
            let Some(link) = self.interfaces.by_name(&workload.interface).filter(|link| link.up) else {
                continue;
            };
            let wanted = (workload.interface.clone(), workload.spoofing);
            if self.configured.get(&link.index) == Some(&wanted) {
                continue;
            }
            match sysctl::workload(&workload.interface, &self.versions, workload.spoofing, &self.rp_filter) {
                Ok(()) => {
                    self.configured.insert(link.index, wanted);
                }
                // The event of its end is on its way.
                Err(_) if sysctl::is_gone(&workload.interface) => {}
                Err(source) => {
                    self.failed.insert(workload.interface.clone());
                    pass.errors.push(RouteError::Interface { interface: workload.interface.clone(), source });
                }
            }
        }
    }

    /// Wanted routes by destination; of several workloads with one address the newest interface has it.
    fn wanted_routes(&self) -> BTreeMap<IpNet, (Route, Option<[u8; 6]>)> {
        let mut wanted: BTreeMap<IpNet, (Route, Option<[u8; 6]>)> = BTreeMap::new();
        for workload in self.workloads.values() {
            let Some(link) = self.interfaces.by_name(&workload.interface).filter(|link| link.up) else {
                continue;
            };
            for net in &workload.nets {
                let version = version(net);
                if !self.versions.contains(&version) {
                    continue;
                }
                let route = Route {
                    dst: net.trunc(),
                    kind: RouteKind::Unicast,
                    interface: Some(link.index),
                    metric: self.settings.metric.get(&version).copied().unwrap_or(1024),
                    protocol: self.settings.ownership.protocol,
                    link_scope: version == IpVersion::V4,
                    gateway: None,
                    onlink: false,
                    source: self.settings.source.get(&version).copied(),
                };
                match wanted.get(&route.dst) {
                    Some((other, _)) if other.interface >= route.interface => {}
                    _ => {
                        wanted.insert(route.dst, (route, workload.mac));
                    }
                }
            }
        }
        wanted
    }

    async fn apply_routes(&mut self, pass: &mut Pass) {
        let wanted = self.wanted_routes();
        let mut forgotten = BTreeSet::new();
        for (dst, (route, _)) in &wanted {
            let moved = self.routes.iter().any(|old| old.dst == *dst && old.interface != route.interface);
            if !self.routes.contains(route) {
                match self.netlink.replace_route(route).await {
                    Ok(()) => {
                        pass.writes += 1;
                        // The kernel has one route per destination and metric: ours took the other's place.
                        self.routes.retain(|old| {
                            !(old.dst == *dst && old.metric == route.metric && dst.addr().is_ipv4())
                        });
                        self.routes.insert(route.clone());
                        // A former run's route counts, too: the address may have moved while felix was away.
                        if moved {
                            forgotten.insert(dst.addr());
                        }
                    }
                    // The link event that follows brings us back.
                    Err(error) if error.is_down() || error.is_absent() => continue,
                    Err(error) => {
                        let link = route.interface.and_then(|index| self.interfaces.by_index(index));
                        self.failed.extend(link.map(|link| link.name.clone()));
                        pass.errors.push(error.into());
                        continue;
                    }
                }
            }
            let Some(index) = route.interface else { continue };
            if self.made.insert((*dst, index)) {
                self.made.retain(|(net, index)| net != dst || self.interfaces.by_index(*index).is_some());
            }
        }
        metrics::routes(wanted.values().filter(|(route, _)| self.routes.contains(route)).count());
        let now = Instant::now();
        let unwanted: Vec<Route> = self
            .routes
            .iter()
            .filter(|route| wanted.get(&route.dst).is_none_or(|(want, _)| want != *route))
            .filter(|route| self.settings.ownership.owns(route))
            .cloned()
            .collect();
        self.unknown_since.retain(|route, _| unwanted.contains(route));
        for route in unwanted {
            if !self.is_made(&route) {
                let since = *self.unknown_since.entry(route.clone()).or_insert(now);
                let due = since + GRACE;
                if due > now {
                    self.due = Some(self.due.map_or(due, |other| other.min(due)));
                    continue;
                }
            }
            match self.netlink.delete_route(&route).await {
                Err(error) if !error.is_absent() => {
                    pass.errors.push(error.into());
                    continue;
                }
                result => pass.writes += usize::from(result.is_ok()),
            }
            self.routes.remove(&route);
            self.unknown_since.remove(&route);
            if !wanted.contains_key(&route.dst) {
                forgotten.insert(route.dst.addr());
            }
        }
        // The kernel takes routes along with their interface, which a CNI plugin removes before the datastore hears of it.
        let there: BTreeSet<_> =
            self.routes.iter().filter_map(|route| Some((route.dst, route.interface?))).collect();
        let declared: BTreeSet<IpNet> =
            self.workloads.values().flat_map(|workload| workload.nets.iter().map(IpNet::trunc)).collect();
        self.made.retain(|made| {
            let stays = there.contains(made) || declared.contains(&made.0);
            if !stays && !there.iter().any(|(dst, _)| *dst == made.0) {
                forgotten.insert(made.0.addr());
            }
            stays
        });
        // When all routes are right: each takes a few programs.
        conntrack::forget_all(&*self.commands, forgotten).await;
    }

    fn is_made(&self, route: &Route) -> bool {
        route.interface.is_some_and(|index| self.made.contains(&(route.dst, index)))
    }

    async fn apply_neighbours(&mut self, pass: &mut Pass) {
        let wanted: BTreeSet<Neighbour> = self
            .wanted_routes()
            .into_iter()
            .filter(|(dst, _)| dst.addr().is_ipv4() && dst.prefix_len() == 32)
            .filter_map(|(dst, (route, mac))| {
                Some(Neighbour { interface: route.interface?, address: dst.addr(), mac: mac? })
            })
            .collect();
        for neighbour in wanted.difference(&self.neighbours.clone()) {
            match self.netlink.replace_neighbour(neighbour).await {
                Ok(()) => {
                    pass.writes += 1;
                    self.neighbours.retain(|old| {
                        (old.interface, old.address) != (neighbour.interface, neighbour.address)
                    });
                    self.neighbours.insert(*neighbour);
                }
                Err(error) if error.is_down() || error.is_absent() => {}
                Err(error) => pass.errors.push(error.into()),
            }
        }
        for neighbour in self.neighbours.clone().difference(&wanted) {
            match self.netlink.delete_neighbour(neighbour).await {
                Err(error) if !error.is_absent() => pass.errors.push(error.into()),
                result => {
                    pass.writes += usize::from(result.is_ok());
                    self.neighbours.remove(neighbour);
                }
            }
        }
    }
}

fn version(net: &IpNet) -> IpVersion {
    match net {
        IpNet::V4(_) => IpVersion::V4,
        IpNet::V6(_) => IpVersion::V6,
    }
}
