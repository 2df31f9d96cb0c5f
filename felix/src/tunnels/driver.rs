//! The driver: makes the kernel's tunnel devices, neighbours, forwarding entries and routes to other nodes as wanted.
//!
//! The kernel is listed at the start, at every refresh, when an event contradicts what we know, and after a failure;
//! what a listing shows to differ from what we wrote was changed by somebody else, and is counted and logged. Within a
//! pass devices and entries come before the routes that need them and go after them; a route is replaced in one step.
//! While this node's address is on no interface, nothing that depends on it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;

use felix_calc::output::{Family, OwnNode, Route as ClusterRoute, Vtep};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::InfoKind;

use super::Forwarding;
use super::device::{self, Device, Found};
use super::settings::TunnelSettings;
use super::wanted::{self, Cluster, DEVICES, Host, PROTOCOL};
use crate::drift;
use crate::ifacemonitor::{Link, NeighbourChange};
use crate::iptables::IpVersion;
use crate::metrics;
use crate::routetable::netlink::{Netlink, NetlinkError};
use crate::routetable::{Neighbour, Route, listing, ownership};
use crate::rules::nat::IPIP_DEVICE;

/// What BIRD marks its routes with.
const PROTOCOL_BIRD: u8 = 12;

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{0}")]
    Impossible(String),
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    pub writes: usize,
    pub errors: Vec<TunnelError>,
}

pub struct Tunnels {
    netlink: Netlink,
    versions: Vec<IpVersion>,
    settings: TunnelSettings,
    cluster: Cluster,
    kernel: Kernel,
    listed: bool,
    resync: bool,
    dirty: bool,
    /// Devices that this kernel cannot make, as told to the operator.
    unsupported: BTreeMap<&'static str, String>,
}

/// What we know of the kernel.
#[derive(Default)]
struct Kernel {
    host: Host,
    devices: BTreeMap<String, Found>,
    neighbours: BTreeSet<Neighbour>,
    forwarding: BTreeSet<Forwarding>,
    /// Ours, and those that stand where ours should be.
    routes: BTreeSet<Route>,
}

impl Tunnels {
    pub fn new(versions: &[IpVersion]) -> Result<Tunnels, NetlinkError> {
        Ok(Tunnels {
            netlink: Netlink::open()?,
            versions: versions.to_vec(),
            settings: TunnelSettings::default(),
            cluster: Cluster::default(),
            kernel: Kernel::default(),
            listed: false,
            resync: true,
            dirty: true,
            unsupported: BTreeMap::new(),
        })
    }

    // === desired state ===

    pub fn set_settings(&mut self, settings: TunnelSettings) {
        if self.settings != settings {
            self.settings = settings;
            self.resync = true;
        }
    }

    pub fn set_own(&mut self, own: OwnNode) {
        self.dirty |= self.cluster.own != own;
        self.cluster.own = own;
    }

    pub fn set_vtep(&mut self, node: String, family: Family, vtep: Option<Vtep>) {
        match vtep {
            Some(vtep) => self.cluster.vteps.insert((node, family), vtep),
            None => self.cluster.vteps.remove(&(node, family)),
        };
        self.dirty = true;
    }

    pub fn set_route(&mut self, dst: IpNet, route: Option<ClusterRoute>) {
        match route {
            Some(route) => self.cluster.routes.insert(dst, route),
            None => self.cluster.routes.remove(&dst),
        };
        self.dirty = true;
    }

    /// Devices that are wanted and that this kernel cannot make, with the remedy.
    pub fn unsupported(&self) -> impl Iterator<Item = &String> {
        self.unsupported.values()
    }

    // === events ===

    pub fn queue_resync(&mut self) {
        self.resync = true;
    }

    pub fn needs_apply(&self) -> bool {
        self.resync || self.dirty
    }

    pub fn on_link(&mut self, link: &Link) {
        let changed = self.kernel.host.links.get(&link.index) != Some(link);
        self.resync |= changed && !self.settings.is_workload(&link.name);
    }

    pub fn on_link_gone(&mut self, index: u32) {
        self.resync |= self.kernel.host.links.contains_key(&index);
    }

    /// Addresses of the node's own interfaces, as just listed.
    pub fn on_addresses(&mut self, addresses: &[(u32, IpNet)]) {
        let own = |(index, _): &&(u32, IpNet)| self.kernel.host.links.contains_key(index);
        let now: BTreeSet<_> = addresses.iter().filter(own).collect();
        self.resync |= now != self.kernel.host.addresses.iter().collect();
    }

    /// An event that tells of a route as we know it is our own echo.
    pub fn on_route(&mut self, route: &Route, there: bool) {
        let same = |known: &&Route| known.dst == route.dst && known.metric == route.metric;
        let in_place = self.kernel.routes.iter().any(|known| same(&known));
        if self.is_ours(route) || in_place {
            self.resync |= self.kernel.routes.contains(route) != there;
        }
    }

    pub fn on_neighbour(&mut self, change: &NeighbourChange) {
        let ours = |device: &Found| device.link.index == change.interface && device.vxlan.is_some();
        if !self.kernel.devices.values().any(ours) {
            return;
        }
        let Some(address) = change.address else { return };
        let expected = if change.family == AddressFamily::Bridge {
            let mut known = self.kernel.forwarding.iter().filter(|known| known.interface == change.interface);
            known.any(|known| known.node_ip == address && Some(known.mac) == change.mac)
        } else {
            let mut known = self.kernel.neighbours.iter().filter(|known| known.interface == change.interface);
            match known.find(|known| known.address == address) {
                Some(known) => {
                    let right = change.there && change.permanent && Some(known.mac) == change.mac;
                    self.resync |= !right;
                    return;
                }
                None => false,
            }
        };
        self.resync |= expected != (change.there && change.permanent);
    }

    // === kernel ===

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
        let devices = wanted::devices(&self.cluster, &self.settings, &self.versions, &self.kernel.host);
        self.unsupported.retain(|name, _| devices.contains_key(name));
        let mut changed = false;
        for (name, device) in &devices {
            match device {
                Ok(device) => changed |= self.ensure(device, &mut pass).await,
                Err(reason) => {
                    tracing::debug!(device = name, reason, "left as it is");
                    pass.errors.push(TunnelError::Impossible(reason.clone()));
                }
            }
        }
        if changed && let Err(error) = self.list().await {
            pass.errors.push(error.into());
            self.resync = true;
            return pass;
        }
        let (neighbours, forwarding) = wanted::entries(&self.cluster, &self.settings, &self.kernel.host);
        self.add_entries(&neighbours, &forwarding, &mut pass).await;
        if !self.settings.routes_disabled {
            self.apply_routes(&mut pass).await;
        }
        self.remove_entries(&neighbours, &forwarding, &mut pass).await;
        let unwanted: Vec<Found> = DEVICES
            .iter()
            .filter(|name| !devices.contains_key(*name))
            .filter_map(|name| self.kernel.devices.get(*name).cloned())
            .collect();
        for found in unwanted {
            self.retire(&found, &mut pass).await;
        }
        self.resync |= !pass.errors.is_empty();
        metrics::cluster_routes(self.kernel.routes.len());
        pass
    }

    async fn list(&mut self) -> Result<(), NetlinkError> {
        let mut kernel = Kernel::default();
        for found in device::devices().await? {
            if self.settings.is_workload(&found.link.name) {
                continue;
            }
            kernel.host.links.insert(found.link.index, found.link.clone());
            if DEVICES.contains(&found.link.name.as_str()) {
                kernel.devices.insert(found.link.name.clone(), found);
            }
        }
        kernel.host.addresses = listing::interface_addresses().await?;
        kernel.host.addresses.retain(|(index, _)| kernel.host.links.contains_key(index));
        let vxlan: Vec<u32> = kernel
            .devices
            .values()
            .filter(|found| found.vxlan.is_some())
            .map(|found| found.link.index)
            .collect();
        if !vxlan.is_empty() {
            for &version in &self.versions {
                kernel.neighbours.extend(listing::neighbours(version).await?);
            }
            kernel.neighbours.retain(|neighbour| vxlan.contains(&neighbour.interface));
            kernel.forwarding.extend(device::forwarding_entries().await?);
            kernel.forwarding.retain(|entry| vxlan.contains(&entry.interface));
        }
        let mut before = std::mem::replace(&mut self.kernel, kernel);
        let mut routes = BTreeSet::new();
        for &version in &self.versions {
            routes.extend(listing::routes(version).await?);
        }
        routes.retain(|route| self.is_ours(route));
        self.kernel.routes = routes;
        if self.listed {
            // An interface that went takes along what is on it: no news.
            let there = |index: u32| self.kernel.host.links.get(&index).is_some_and(|link| link.up);
            before.routes.retain(|route| route.interface.is_none_or(there));
            before.neighbours.retain(|neighbour| there(neighbour.interface));
            before.forwarding.retain(|entry| there(entry.interface));
            audit("route", &before.routes, &self.kernel.routes);
            audit("neighbour", &before.neighbours, &self.kernel.neighbours);
            audit("forwarding entry", &before.forwarding, &self.kernel.forwarding);
        }
        self.listed = true;
        Ok(())
    }

    /// Routes that this driver may remove: of our protocol, all by a VXLAN device, BIRD's by `tunl0` if felix writes
    /// those.
    fn is_ours(&self, route: &Route) -> bool {
        if ownership::is_made_by_the_kernel(route) {
            return false;
        }
        let Some(index) = route.interface else { return route.protocol == PROTOCOL };
        let Some(link) = self.kernel.host.links.get(&index) else { return false };
        match self.kernel.devices.get(&link.name) {
            Some(found) if found.vxlan.is_some() => true,
            Some(found) if found.link.name == IPIP_DEVICE => {
                route.protocol == PROTOCOL || (self.settings.program.ipip && route.protocol == PROTOCOL_BIRD)
            }
            _ => route.protocol == PROTOCOL,
        }
    }

    /// Makes a device as wanted. Returns whether the kernel has to be listed anew.
    async fn ensure(&mut self, device: &Device, pass: &mut Pass) -> bool {
        let mut changed = false;
        let found = self.kernel.devices.get(device.name);
        let kind = if device.vxlan.is_some() { InfoKind::Vxlan } else { InfoKind::IpIp };
        let fits = |found: &&Found| found.kind.as_ref() == Some(&kind) && found.vxlan == device.vxlan;
        if let Some(other) = found.filter(|found| !fits(found)) {
            tracing::info!(device = device.name, "its parameters differ; making it anew");
            changed = true;
            if !done(self.netlink.delete_device(&other.link).await, pass) {
                return changed;
            }
        }
        match found.filter(fits) {
            None => {
                match self.netlink.add_device(device).await {
                    Err(error) if error.is_unsupported() => {
                        self.report_unsupported(device, &error);
                        return changed;
                    }
                    result => {
                        if !done(result, pass) {
                            return true;
                        }
                    }
                }
                self.unsupported.remove(device.name);
                changed = true;
            }
            Some(found) if found.link.mtu != device.mtu || !found.admin_up => {
                changed |= done(self.netlink.set_device(&found.link, device.mtu).await, pass);
            }
            Some(_) => {}
        }
        if changed && let Err(error) = self.list().await {
            pass.errors.push(error.into());
            return true;
        }
        let Some(index) = self.kernel.devices.get(device.name).map(|found| found.link.index) else {
            return true;
        };
        changed | self.ensure_address(index, device.address, pass).await
    }

    async fn ensure_address(&mut self, index: u32, address: Option<IpAddr>, pass: &mut Pass) -> bool {
        let wanted = address.map(IpNet::from);
        let held: Vec<IpNet> =
            self.kernel.host.addresses.iter().filter(|(of, _)| *of == index).map(|(_, net)| *net).collect();
        let mut changed = false;
        if let Some(net) = wanted.filter(|net| !held.contains(net)) {
            changed |= done(self.netlink.add_address(index, net.addr()).await, pass);
        }
        for net in held.into_iter().filter(|net| Some(*net) != wanted && !is_link_local(net)) {
            changed |= done(self.netlink.delete_address(index, net).await, pass);
        }
        changed
    }

    /// Said once; the routes that need it wait, everything else goes on.
    fn report_unsupported(&mut self, device: &Device, error: &NetlinkError) {
        let module = if device.vxlan.is_some() { "vxlan" } else { "ipip" };
        let text = format!(
            "device {}: this kernel has no module {module}: load it (`modprobe {module}`), or give the pools another mode; \
             blocks of such pools are not reached until then",
            device.name
        );
        if self.unsupported.insert(device.name, text.clone()).is_none() {
            tracing::error!(%error, "{text}");
        }
    }

    /// Takes away a device that no pool wants. `tunl0` is the kernel's: only its addresses are ours.
    async fn retire(&mut self, found: &Found, pass: &mut Pass) {
        if found.vxlan.is_some() {
            if done(self.netlink.delete_device(&found.link).await, pass) {
                let index = found.link.index;
                self.kernel.devices.remove(&found.link.name);
                self.kernel.host.links.remove(&index);
                self.kernel.host.addresses.retain(|(of, _)| *of != index);
                self.kernel.neighbours.retain(|neighbour| neighbour.interface != index);
                self.kernel.forwarding.retain(|entry| entry.interface != index);
                self.kernel.routes.retain(|route| route.interface != Some(index));
            }
        } else if found.link.name == IPIP_DEVICE && self.ensure_address(found.link.index, None, pass).await {
            let index = found.link.index;
            self.kernel.host.addresses.retain(|(of, _)| *of != index);
        }
    }

    async fn add_entries(
        &mut self,
        neighbours: &BTreeSet<Neighbour>,
        forwarding: &BTreeSet<Forwarding>,
        pass: &mut Pass,
    ) {
        // Entries of other nodes under the same MAC would get copies of every packet: they go first.
        let stale: Vec<Forwarding> = self
            .kernel
            .forwarding
            .iter()
            .filter(|entry| !forwarding.contains(entry))
            .filter(|entry| {
                forwarding.iter().any(|new| (new.interface, new.mac) == (entry.interface, entry.mac))
            })
            .copied()
            .collect();
        for entry in stale {
            if done(self.netlink.delete_forwarding(&entry).await, pass) {
                self.kernel.forwarding.remove(&entry);
            }
        }
        let missing: Vec<_> = forwarding.difference(&self.kernel.forwarding).copied().collect();
        for entry in missing {
            if done(self.netlink.replace_forwarding(&entry).await, pass) {
                self.kernel.forwarding.insert(entry);
            }
        }
        let missing: Vec<_> = neighbours.difference(&self.kernel.neighbours).copied().collect();
        for entry in missing {
            if done(self.netlink.replace_neighbour(&entry).await, pass) {
                let same = |old: &Neighbour| (old.interface, old.address) == (entry.interface, entry.address);
                self.kernel.neighbours.retain(|old| !same(old));
                self.kernel.neighbours.insert(entry);
            }
        }
    }

    async fn remove_entries(
        &mut self,
        neighbours: &BTreeSet<Neighbour>,
        forwarding: &BTreeSet<Forwarding>,
        pass: &mut Pass,
    ) {
        // Those of a device that goes anyway go with it.
        let kept = |index: u32| {
            let found = self.kernel.devices.values().find(|found| found.link.index == index);
            found.is_some_and(|found| {
                IpVersion::ALL
                    .iter()
                    .any(|v| wanted::vxlan_device(*v) == found.link.name && self.settings.vxlan(*v))
            })
        };
        let old: Vec<_> = self.kernel.neighbours.difference(neighbours).copied().collect();
        let old: Vec<_> = old.into_iter().filter(|entry| kept(entry.interface)).collect();
        let old_forwarding: Vec<_> = self.kernel.forwarding.difference(forwarding).copied().collect();
        let old_forwarding: Vec<_> =
            old_forwarding.into_iter().filter(|entry| kept(entry.interface)).collect();
        for entry in old {
            if done(self.netlink.delete_neighbour(&entry).await, pass) {
                self.kernel.neighbours.remove(&entry);
            }
        }
        for entry in old_forwarding {
            if done(self.netlink.delete_forwarding(&entry).await, pass) {
                self.kernel.forwarding.remove(&entry);
            }
        }
    }

    async fn apply_routes(&mut self, pass: &mut Pass) {
        let wanted = wanted::routes(&self.cluster, &self.settings, &self.versions, &self.kernel.host);
        for route in wanted
            .values()
            .flatten()
            .filter(|route| !self.kernel.routes.contains(*route))
            .cloned()
            .collect::<Vec<_>>()
        {
            match self.netlink.replace_route(&route).await {
                // The event of the interface brings us back.
                Err(error) if error.is_down() || error.is_absent() => {}
                result => {
                    if done(result, pass) {
                        let same = |old: &Route| (old.dst, old.metric) == (route.dst, route.metric);
                        self.kernel.routes.retain(|old| !same(old));
                        self.kernel.routes.insert(route);
                    }
                }
            }
        }
        let unwanted: Vec<Route> = self
            .kernel
            .routes
            .iter()
            .filter(|route| match wanted.get(&route.dst) {
                Some(Some(right)) => right != *route,
                // Wanted, but its interface is not to be found: what stands there stays.
                Some(None) => false,
                None => true,
            })
            .cloned()
            .collect();
        for route in unwanted {
            if done(self.netlink.delete_route(&route).await, pass) {
                self.kernel.routes.remove(&route);
            }
        }
    }
}

/// Counts a write, or notes its failure. What should go and is gone is as good.
fn done(result: Result<(), NetlinkError>, pass: &mut Pass) -> bool {
    match result {
        Ok(()) => pass.writes += 1,
        Err(error) if error.is_absent() => {}
        Err(error) => {
            pass.errors.push(error.into());
            return false;
        }
    }
    true
}

/// What somebody else took away or added.
fn audit<T: Ord + Debug>(what: &'static str, before: &BTreeSet<T>, now: &BTreeSet<T>) {
    let removed = before.difference(now).map(|item| (format!("{item:?}"), "removed"));
    let added = now.difference(before).map(|item| (format!("{item:?}"), "added"));
    drift::report(what, removed.chain(added));
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}
