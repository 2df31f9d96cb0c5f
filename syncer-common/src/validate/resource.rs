//! v3 objects, before they are written: every mistake, by field.

use ipnet::IpNet;
use serde_json::Value as Json;

use super::rule;
use crate::apis::bgp::ClusterInformationSpec;
use crate::apis::ipam::{Affinity, Block, read_block};
use crate::apis::network::{
    EndpointPort, HostEndpointSpec, IpPoolSpec, IpReservationSpec, IpamConfigSpec, LiveMigrationSpec,
    NodeSpec, NodeStatus, WorkloadEndpointSpec,
};
use crate::apis::operations::{CalicoNodeStatusSpec, KubeControllersConfigurationSpec};
use crate::apis::policy::{NetworkSetSpec, PolicySpec, ProfileSpec, TierSpec};
use crate::apis::{ApiKind, FieldError, Resource};
use crate::processors::{
    DEFAULT_ALLOW_PROFILE, interface_address, ipv4, ipv6, mac, parse_address, parse_net, split_workload_name,
};
use crate::selector::Selector;

const STAGED_ACTIONS: [&str; 5] = ["", "Set", "Delete", "Learn", "Ignore"];
const MAX_SELECTOR: usize = 1024;
pub(super) const LOG_LEVELS: [&str; 8] = ["", "Trace", "Debug", "Info", "Warning", "Error", "Fatal", "None"];
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// The kernel's limit for interface names, without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

const MAX_IP_COOLDOWN_SECONDS: u32 = 1200;
const MAX_STATUS_PERIOD_SECONDS: u32 = 24 * 60 * 60;

/// Everything that is wrong with an object; nothing when it is good.
pub fn resource(resource: &Resource) -> Vec<FieldError> {
    match resource.key_path() {
        Ok(_) => stored(resource),
        Err(error) => vec![error],
    }
}

/// The same, of an object whose place is known: it may be of a kind that nobody writes here, such as
/// Kubernetes' own, which are taken as its API server let them pass.
pub fn stored(resource: &Resource) -> Vec<FieldError> {
    if ApiKind::by_kind(&resource.kind).is_none() {
        return Vec::new();
    }
    let mut errors = Errors::default();
    errors.names(resource);
    if let Err(error) = errors.spec(resource) {
        errors.0.push(error);
    }
    errors.0
}

/// A block as etcd has it.
pub(crate) fn block(block: &Block) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let Ok(cidr) = block.cidr.parse::<IpNet>() else { return errors.0 };
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    if 1_usize.checked_shl(bits).is_some_and(|size| block.allocations.len() > size) {
        errors.add("allocations", format!("{} are more than {cidr} has", block.allocations.len()));
    }
    for (ordinal, index) in block.allocations.iter().enumerate() {
        if index.is_some_and(|index| index >= block.attributes.len()) {
            let reason = format!("refers to none of the {} attributes", block.attributes.len());
            errors.add(format!("allocations[{ordinal}]"), reason);
        }
    }
    errors.0
}

/// An affinity as etcd has it.
pub(crate) fn affinity(affinity: &Affinity) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.one_of("state", &affinity.state, &["", "confirmed", "pending", "pendingDeletion"]);
    errors.0
}

/// What may not change when an object is replaced.
pub fn change(old: &Resource, new: &Resource) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if new.kind == "IPPool" {
        for field in ["cidr", "blockSize"] {
            let (before, after) = (old.spec.get(field), new.spec.get(field));
            if before.is_some() && after.is_some() && before != after {
                let reason =
                    "cannot be changed: blocks are allocated from the pool as it is; create another pool";
                errors.push(FieldError::new(format!("spec.{field}"), reason));
            }
        }
    }
    errors
}

#[derive(Default)]
pub(super) struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(FieldError::new(field, reason));
    }

    pub fn check<T>(&mut self, field: impl Into<String>, result: Result<T, String>) {
        if let Err(reason) = result {
            self.add(field, reason);
        }
    }

    pub fn one_of(&mut self, field: impl Into<String>, value: &str, allowed: &[&str]) {
        if !allowed.contains(&value) {
            let allowed: Vec<&str> = allowed.iter().copied().filter(|value| !value.is_empty()).collect();
            self.add(field, format!("{value:?} is none of {}", allowed.join(", ")));
        }
    }

    pub fn selector(&mut self, field: impl Into<String>, text: &str) {
        let field = field.into();
        if text.len() > MAX_SELECTOR {
            self.add(&field, format!("{} characters are more than {MAX_SELECTOR}", text.len()));
        }
        if let Err(error) = Selector::parse(text) {
            self.add(field, error.to_string());
        }
    }

    pub fn distinct(&mut self, field: &str, items: &[String]) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.add(format!("{field}[{index}]"), format!("{item} is given twice"));
            }
        }
    }

    pub fn nets(&mut self, field: &str, nets: &[String]) {
        for (index, net) in nets.iter().enumerate() {
            self.check(format!("{field}[{index}]"), parse_net(net));
        }
    }

    fn interface(&mut self, field: &str, name: &str) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let good = name == "*" || name.bytes().all(allowed) && name != "." && name != "..";
        if !name.is_empty() && (name.len() > MAX_INTERFACE_NAME || !good) {
            self.add(field, format!("{name:?} is not the name of an interface"));
        }
    }

    fn ports(&mut self, ports: &[EndpointPort], names_needed: bool) {
        for (index, port) in ports.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            if port.name.is_empty() && names_needed {
                self.add(format!("{field}.name"), "missing");
            }
            if !port.name.is_empty()
                && ports[..index]
                    .iter()
                    .any(|other| other.name == port.name && other.protocol == port.protocol)
            {
                self.add(format!("{field}.name"), format!("{} is given twice", port.name));
            }
            if !(1..=65535).contains(&port.port) {
                self.add(format!("{field}.port"), format!("{} is not between 1 and 65535", port.port));
            }
            match &port.protocol {
                None => self.add(format!("{field}.protocol"), "missing"),
                Some(protocol) => self.check(format!("{field}.protocol"), rule::protocol(protocol)),
            }
        }
    }

    fn names(&mut self, resource: &Resource) {
        let (name, kind) = (resource.metadata.name.as_str(), resource.kind.as_str());
        match kind {
            // Their identity is in the spec.
            "IPAMBlock" | "BlockAffinity" | "IPAMHandle" | "IPAMConfig" => {}
            "Tier" => self.check("metadata.name", label(name)),
            "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
                let converted =
                    ["knp.default.", "ossg.default."].iter().find_map(|prefix| name.strip_prefix(prefix));
                let result = match converted {
                    Some(rest) => subdomain(rest),
                    None => policy_name(name),
                };
                self.check("metadata.name", result);
            }
            _ => self.check("metadata.name", subdomain(name)),
        }
        if !resource.metadata.namespace.is_empty() {
            self.check("metadata.namespace", label(&resource.metadata.namespace));
        }
    }

    fn spec(&mut self, resource: &Resource) -> Result<(), FieldError> {
        match resource.kind.as_str() {
            "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
                self.policy(&resource.typed_spec()?, resource);
            }
            "Profile" => {
                let spec: ProfileSpec = resource.typed_spec()?;
                if resource.metadata.name == DEFAULT_ALLOW_PROFILE {
                    self.add("metadata.name", "this profile is built in and cannot be written");
                }
                rule::rules(self, "spec.ingress", &spec.ingress);
                rule::rules(self, "spec.egress", &spec.egress);
            }
            "Tier" => {
                let spec: TierSpec = resource.typed_spec()?;
                if spec.order.is_some_and(|order| !order.is_finite()) {
                    self.add("spec.order", "not a finite number");
                }
                self.one_of("spec.defaultAction", &spec.default_action, &["", "Deny", "Pass"]);
            }
            "NetworkSet" | "GlobalNetworkSet" => {
                let spec: NetworkSetSpec = resource.typed_spec()?;
                self.nets("spec.nets", &spec.nets);
            }
            "WorkloadEndpoint" => self.workload(&resource.typed_spec()?, &resource.metadata.name),
            "HostEndpoint" => self.host_endpoint(&resource.typed_spec()?),
            "IPPool" => self.pool(&resource.typed_spec()?),
            "Node" => self.node(&resource.typed_spec()?, &resource.typed_status()?),
            "BGPPeer" => self.bgp_peer(&resource.typed_spec()?),
            "BGPFilter" => self.bgp_filter(&resource.typed_spec()?),
            "BGPConfiguration" => self.bgp_configuration(&resource.typed_spec()?, &resource.metadata.name),
            "ClusterInformation" => {
                let _: ClusterInformationSpec = resource.typed_spec()?;
                self.one_of("metadata.name", &resource.metadata.name, &["default"]);
            }
            "FelixConfiguration" => self.felix_configuration(resource),
            "KubeControllersConfiguration" => self.controllers(&resource.typed_spec()?),
            "CalicoNodeStatus" => self.node_status(&resource.typed_spec()?),
            "LiveMigration" => self.migration(&resource.typed_spec()?),
            "StagedKubernetesNetworkPolicy" => {
                let action = resource.spec.get("stagedAction").and_then(Json::as_str).unwrap_or_default();
                self.one_of("spec.stagedAction", action, &STAGED_ACTIONS);
            }
            "IPReservation" => {
                let spec: IpReservationSpec = resource.typed_spec()?;
                self.nets("spec.reservedCIDRs", &spec.reserved_cidrs);
                self.distinct("spec.reservedCIDRs", &spec.reserved_cidrs);
            }
            "IPAMBlock" => self.block(&resource.to_stored()),
            "IPAMConfig" => self.ipam_config(&resource.typed_spec()?),
            "BlockAffinity" => {
                let member = |field| resource.spec.get(field).and_then(Json::as_str).unwrap_or_default();
                let state = Affinity { state: member("state").to_owned(), ..Affinity::default() };
                self.within("spec", affinity(&state));
                self.one_of("spec.type", member("type"), &["", "host", "virtual"]);
            }
            "IPAMHandle" => {
                let blocks = resource.spec.get("block").and_then(Json::as_object);
                for (cidr, count) in blocks.into_iter().flatten() {
                    let field = format!("spec.block[{cidr}]");
                    self.check(field.clone(), parse_net(cidr));
                    if count.as_u64().is_none() {
                        self.add(field, format!("{count} is not a number of addresses"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn policy(&mut self, spec: &PolicySpec, resource: &Resource) {
        let global = resource.metadata.namespace.is_empty();
        if !spec.tier.is_empty() {
            self.check("spec.tier", label(&spec.tier));
        }
        if spec.order.is_some_and(|order| !order.is_finite()) {
            self.add("spec.order", "not a finite number");
        }
        self.selector("spec.selector", &spec.selector);
        self.selector("spec.serviceAccountSelector", &spec.service_account_selector);
        self.selector("spec.namespaceSelector", &spec.namespace_selector);
        for (index, direction) in spec.types.iter().enumerate() {
            self.one_of(format!("spec.types[{index}]"), direction, &["Ingress", "Egress"]);
            if spec.types[..index].contains(direction) {
                self.add(format!("spec.types[{index}]"), format!("{direction} is given twice"));
            }
        }
        rule::rules(self, "spec.ingress", &spec.ingress);
        rule::rules(self, "spec.egress", &spec.egress);
        let only_global = [
            ("spec.namespaceSelector", !spec.namespace_selector.is_empty()),
            ("spec.doNotTrack", spec.do_not_track),
            ("spec.preDNAT", spec.pre_dnat),
            ("spec.applyOnForward", spec.apply_on_forward),
        ];
        for (field, given) in only_global {
            if given && !global {
                self.add(field, "only a global policy can have this");
            }
        }
        if spec.do_not_track && spec.pre_dnat {
            self.add("spec.preDNAT", "a policy is either doNotTrack or preDNAT, not both");
        }
        for (field, given) in [("spec.doNotTrack", spec.do_not_track), ("spec.preDNAT", spec.pre_dnat)] {
            if given && !spec.apply_on_forward {
                self.add(field, "needs applyOnForward: true");
            }
        }
        if spec.pre_dnat
            && (!spec.egress.is_empty() || spec.types.iter().any(|direction| direction == "Egress"))
        {
            self.add("spec.egress", "a preDNAT policy cannot have egress rules");
        }
        if resource.kind.starts_with("Staged") {
            self.one_of("spec.stagedAction", &spec.staged_action, &STAGED_ACTIONS);
        }
        for (index, hint) in spec.performance_hints.iter().enumerate() {
            self.one_of(format!("spec.performanceHints[{index}]"), hint, &["AssumeNeededOnEveryNode"]);
        }
    }

    fn workload(&mut self, spec: &WorkloadEndpointSpec, name: &str) {
        match split_workload_name(name) {
            None => {
                let form = "node-orchestrator-workload-endpoint, with dashes inside a part doubled";
                self.add("metadata.name", format!("{name:?} is not of the form {form}"));
            }
            Some([node, orchestrator, workload, endpoint]) => {
                let own = match orchestrator.as_str() {
                    "k8s" => ("spec.pod", &spec.pod),
                    "cni" => ("spec.containerID", &spec.container_id),
                    "libnetwork" => ("spec.orchestrator", &spec.orchestrator),
                    _ => ("spec.workload", &spec.workload),
                };
                let mut parts = vec![
                    ("spec.node", &spec.node, &node),
                    ("spec.orchestrator", &spec.orchestrator, &orchestrator),
                    ("spec.endpoint", &spec.endpoint, &endpoint),
                ];
                if orchestrator != "libnetwork" {
                    parts.push((own.0, own.1, &workload));
                }
                for (field, given, named) in parts {
                    if given != named {
                        self.add(field, format!("{given:?} is not {named:?}, as metadata.name has it"));
                    }
                }
            }
        }
        if spec.interface_name.is_empty() {
            self.add("spec.interfaceName", "missing");
        }
        self.interface("spec.interfaceName", &spec.interface_name);
        let mut addresses = Vec::new();
        for (index, network) in spec.ip_networks.iter().enumerate() {
            let field = format!("spec.ipNetworks[{index}]");
            match parse_net(network) {
                Ok(net) if net.prefix_len() == net.max_prefix_len() => addresses.push(net.addr()),
                Ok(net) => self.add(field, format!("{net} is more than one address")),
                Err(reason) => self.add(field, reason),
            }
        }
        for (index, nat) in spec.ip_nats.iter().enumerate() {
            let field = format!("spec.ipNATs[{index}]");
            self.check(format!("{field}.externalIP"), parse_address(&nat.external_ip));
            match parse_address(&nat.internal_ip) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => {
                    self.add(format!("{field}.internalIP"), format!("{address} is not in ipNetworks"))
                }
                Err(reason) => self.add(format!("{field}.internalIP"), reason),
            }
        }
        self.nets("spec.allowSpoofedSourcePrefixes", &spec.allow_spoofed_source_prefixes);
        if !spec.mac.is_empty() {
            self.check("spec.mac", mac(&spec.mac));
        }
        self.distinct("spec.profiles", &spec.profiles);
        self.ports(&spec.ports, false);
    }

    fn host_endpoint(&mut self, spec: &HostEndpointSpec) {
        if spec.node.is_empty() {
            self.add("spec.node", "missing");
        }
        if spec.interface_name.is_empty() && spec.expected_ips.is_empty() {
            self.add("spec.interfaceName", "give interfaceName or expectedIPs");
        }
        self.interface("spec.interfaceName", &spec.interface_name);
        for (index, address) in spec.expected_ips.iter().enumerate() {
            self.check(format!("spec.expectedIPs[{index}]"), parse_address(address));
        }
        self.distinct("spec.expectedIPs", &spec.expected_ips);
        self.distinct("spec.profiles", &spec.profiles);
        self.ports(&spec.ports, true);
    }

    fn pool(&mut self, spec: &IpPoolSpec) {
        let modes = ["", "Never", "Always", "CrossSubnet"];
        self.one_of("spec.ipipMode", &spec.ipip_mode, &modes);
        self.one_of("spec.vxlanMode", &spec.vxlan_mode, &modes);
        let on = |mode: &str| !matches!(mode, "" | "Never");
        if on(&spec.ipip_mode) && on(&spec.vxlan_mode) {
            self.add("spec.vxlanMode", "a pool has one encapsulation: set ipipMode or vxlanMode to Never");
        }
        self.selector("spec.nodeSelector", &spec.node_selector);
        self.selector("spec.namespaceSelector", &spec.namespace_selector);
        for (index, allowed) in spec.allowed_uses.iter().enumerate() {
            let uses = ["Workload", "Tunnel", "LoadBalancer"];
            self.one_of(format!("spec.allowedUses[{index}]"), allowed, &uses);
        }
        self.distinct("spec.allowedUses", &spec.allowed_uses);
        if spec.allowed_uses.len() > 1 && spec.allowed_uses.iter().any(|allowed| allowed == "LoadBalancer") {
            self.add(
                "spec.allowedUses",
                "LoadBalancer cannot be combined with other uses: create a pool for it",
            );
        }
        self.one_of("spec.assignmentMode", &spec.assignment_mode, &["", "Automatic", "Manual"]);
        let Ok(cidr) = spec.cidr.parse::<IpNet>() else {
            return self.add("spec.cidr", format!("{:?} is not a CIDR such as 10.65.0.0/16", spec.cidr));
        };
        if cidr != cidr.trunc() {
            self.add("spec.cidr", format!("{cidr} has host bits set: write {}", cidr.trunc()));
        }
        let (sizes, default, v6) = match cidr {
            IpNet::V4(_) => (20..=32, 26, false),
            IpNet::V6(_) => (116..=128, 122, true),
        };
        let block_size = spec.block_size.filter(|size| *size != 0).unwrap_or(default);
        if !sizes.contains(&block_size) {
            let range = format!("{} to {}", sizes.start(), sizes.end());
            self.add("spec.blockSize", format!("{block_size} is not in {range}"));
        } else if u32::from(cidr.prefix_len()) > block_size {
            self.add("spec.cidr", format!("{cidr} is smaller than one block (/{block_size})"));
        }
        if v6 && on(&spec.ipip_mode) {
            self.add("spec.ipipMode", "IPIP carries IPv4 only");
        }
        if let IpNet::V4(cidr) = cidr
            && cidr.prefix_len() > 0
            && cidr.network().is_link_local()
        {
            self.add("spec.cidr", format!("{cidr} is link-local"));
        }
    }

    fn node(&mut self, spec: &NodeSpec, status: &NodeStatus) {
        if let Some(bgp) = &spec.bgp {
            if bgp.ipv4_address.is_empty() && bgp.ipv6_address.is_empty() {
                self.add("spec.bgp.ipv4Address", "give ipv4Address or ipv6Address");
            }
            let addresses = [
                ("spec.bgp.ipv4Address", &bgp.ipv4_address, false),
                ("spec.bgp.ipv6Address", &bgp.ipv6_address, true),
            ];
            for (field, text, v6) in addresses {
                if text.is_empty() {
                    continue;
                }
                self.check(field, interface_address(text));
                if interface_address(text).is_ok() && text.contains(':') != v6 {
                    self.add(field, format!("{text} is of the other family"));
                }
            }
            let cluster = &bgp.route_reflector_cluster_id;
            if !cluster.is_empty() && cluster.parse::<std::net::Ipv4Addr>().is_err() {
                let field = "spec.bgp.routeReflectorClusterID";
                self.add(field, format!("{cluster:?} is not written like an IPv4 address"));
            }
            self.given("spec.bgp.ipv4IPIPTunnelAddr", &bgp.ipv4_ipip_tunnel_addr, ipv4);
        }
        let wireguard = spec.wireguard.clone().unwrap_or_default();
        self.given("spec.ipv4VXLANTunnelAddr", &spec.ipv4_vxlan_tunnel_addr, ipv4);
        self.given("spec.ipv6VXLANTunnelAddr", &spec.ipv6_vxlan_tunnel_addr, ipv6);
        self.given("spec.vxlanTunnelMACAddr", &spec.vxlan_tunnel_mac_addr, mac);
        self.given("spec.vxlanTunnelMACAddrV6", &spec.vxlan_tunnel_mac_addr_v6, mac);
        self.given("spec.wireguard.interfaceIPv4Address", &wireguard.interface_ipv4_address, ipv4);
        self.given("spec.wireguard.interfaceIPv6Address", &wireguard.interface_ipv6_address, ipv6);
        for (index, address) in spec.addresses.iter().enumerate() {
            self.check(format!("spec.addresses[{index}].address"), interface_address(&address.address));
            let types = ["", "CalicoNodeIP", "InternalIP", "ExternalIP"];
            self.one_of(format!("spec.addresses[{index}].type"), &address.r#type, &types);
        }
        self.nets("status.podCIDRs", &status.pod_cidrs);
    }

    /// What is not given needs no check.
    fn given(&mut self, field: &str, text: &str, parse: fn(&str) -> Result<String, String>) {
        if !text.is_empty() {
            self.check(field, parse(text));
        }
    }

    fn migration(&mut self, spec: &LiveMigrationSpec) {
        let ends = [
            ("spec.source", &spec.source, ["workload", "workloadEndpoint"]),
            ("spec.target", &spec.target, ["selector", "workloadEndpoint"]),
        ];
        for (field, end, names) in ends {
            let Some(end) = end else { continue };
            let given = [
                ("selector", end.selector.is_some()),
                ("workload", end.workload.is_some()),
                ("workloadEndpoint", end.workload_endpoint.is_some()),
            ];
            let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
            if given.len() != 1 || !names.contains(&given[0]) {
                self.add(field, format!("has to have exactly one of {}", names.join(", ")));
            }
        }
        if let Some(selector) = spec.target.as_ref().and_then(|target| target.selector.as_deref()) {
            self.selector("spec.target.selector", selector);
        }
    }

    fn node_status(&mut self, spec: &CalicoNodeStatusSpec) {
        if spec.node.is_empty() {
            self.add("spec.node", "missing: name the node that is to report");
        }
        for (index, class) in spec.classes.iter().enumerate() {
            self.one_of(format!("spec.classes[{index}]"), class, &["Agent", "BGP", "Routes"]);
        }
        self.distinct("spec.classes", &spec.classes);
        if let Some(period) = spec.update_period_seconds.filter(|period| *period > MAX_STATUS_PERIOD_SECONDS)
        {
            let reason = format!("{period} is more than a day ({MAX_STATUS_PERIOD_SECONDS})");
            self.add("spec.updatePeriodSeconds", reason);
        }
    }

    fn controllers(&mut self, spec: &KubeControllersConfigurationSpec) {
        self.one_of("spec.logSeverityScreen", &spec.log_severity_screen, &LOG_LEVELS);
        self.one_of("spec.healthChecks", &spec.health_checks, &["", "Enabled", "Disabled"]);
        let mut periods = vec![("spec.etcdV3CompactionPeriod".to_owned(), spec.etcd_v3_compaction_period)];
        for (name, controller) in &spec.controllers {
            let field = format!("spec.controllers.{name}");
            periods.push((format!("{field}.reconcilerPeriod"), controller.reconciler_period));
            periods.push((format!("{field}.leakGracePeriod"), controller.leak_grace_period));
        }
        for (field, period) in periods {
            if period.is_some_and(|period| period.negative) {
                self.add(field, "negative");
            }
        }
    }

    fn ipam_config(&mut self, spec: &IpamConfigSpec) {
        if !spec.strict_affinity && spec.auto_allocate_blocks == Some(false) {
            let reason =
                "without it, and without strictAffinity, no address could be given out: set one of the two";
            self.add("spec.autoAllocateBlocks", reason);
        }
        if spec.ip_cooldown_seconds > MAX_IP_COOLDOWN_SECONDS {
            let reason = format!("{} is not in 0 to {MAX_IP_COOLDOWN_SECONDS}", spec.ip_cooldown_seconds);
            self.add("spec.ipCooldownSeconds", reason);
        }
    }

    fn block(&mut self, stored: &[u8]) {
        match read_block(stored) {
            Ok(stored) => self.within("spec", block(&stored)),
            Err(error) => self.within("spec", vec![error]),
        }
    }

    fn within(&mut self, parent: &str, errors: Vec<FieldError>) {
        for FieldError { field, reason } in errors {
            self.add(format!("{parent}.{field}"), reason);
        }
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A DNS label.
fn label(text: &str) -> Result<(), String> {
    if is_label(text) && text.len() <= MAX_LABEL {
        return Ok(());
    }
    let allowed = "lower-case letters, digits and dashes, beginning and ending with a letter or digit";
    Err(format!("{text:?} must be {allowed}, at most {MAX_LABEL} characters"))
}

/// A DNS name.
fn subdomain(text: &str) -> Result<(), String> {
    if text.len() <= MAX_NAME && text.split('.').all(is_label) {
        return Ok(());
    }
    let allowed =
        "lower-case letters, digits, dashes and dots, every part beginning and ending with a letter or digit";
    Err(format!("{text:?} must be {allowed}, at most {MAX_NAME} characters"))
}

/// A policy: its name alone, or with its tier in front.
fn policy_name(text: &str) -> Result<(), String> {
    subdomain(text)?;
    if text.split('.').count() > 2 {
        return Err(format!("{text:?} has more than one dot: write <name> or <tier>.<name>"));
    }
    Ok(())
}
