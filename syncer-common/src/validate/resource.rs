//! v3 objects, before they are written: every mistake, by field.

use ipnet::IpNet;
use serde_json::Value as Json;

use super::rule;
use super::value::is_peer_address;
use crate::apis::bgp::{BgpConfigurationSpec, BgpPeerSpec, ClusterInformationSpec};
use crate::apis::ipam::read_block;
use crate::apis::network::{EndpointPort, HostEndpointSpec, IpPoolSpec, NodeSpec, WorkloadEndpointSpec};
use crate::apis::policy::{NetworkSetSpec, PolicySpec, ProfileSpec, TierSpec};
use crate::apis::{FieldError, Resource};
use crate::processors::{DEFAULT_ALLOW_PROFILE, parse_address, parse_net, split_workload_name};
use crate::selector::Selector;

const MAX_SELECTOR: usize = 1024;
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// The kernel's limit for interface names, without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Everything that is wrong with an object; nothing when it is good.
pub fn resource(resource: &Resource) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if let Err(error) = resource.key_path() {
        return vec![error];
    }
    errors.names(resource);
    if let Err(error) = errors.spec(resource) {
        errors.0.push(error);
    }
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
                self.one_of("spec.defaultAction", &spec.default_action, &["", "Deny", "Pass"]);
            }
            "NetworkSet" | "GlobalNetworkSet" => {
                let spec: NetworkSetSpec = resource.typed_spec()?;
                self.nets("spec.nets", &spec.nets);
            }
            "WorkloadEndpoint" => self.workload(&resource.typed_spec()?, &resource.metadata.name),
            "HostEndpoint" => self.host_endpoint(&resource.typed_spec()?),
            "IPPool" => self.pool(&resource.typed_spec()?),
            "Node" => self.node(&resource.typed_spec()?),
            "BGPPeer" => self.bgp_peer(&resource.typed_spec()?),
            "BGPConfiguration" => self.bgp_configuration(&resource.typed_spec()?, &resource.metadata.name),
            "ClusterInformation" => {
                let _: ClusterInformationSpec = resource.typed_spec()?;
                self.one_of("metadata.name", &resource.metadata.name, &["default"]);
            }
            "FelixConfiguration" => {
                let selector = resource.spec.get("nodeSelector").and_then(Json::as_str).unwrap_or_default();
                self.selector("spec.nodeSelector", selector);
            }
            "IPAMBlock" => self.block(&resource.to_stored()),
            "BlockAffinity" => {
                let member = |field| resource.spec.get(field).and_then(Json::as_str).unwrap_or_default();
                let states = ["", "confirmed", "pending", "pendingDeletion"];
                self.one_of("spec.state", member("state"), &states);
                self.one_of("spec.type", member("type"), &["", "host", "virtual"]);
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
            let actions = ["", "Set", "Delete", "Learn", "Ignore"];
            self.one_of("spec.stagedAction", &spec.staged_action, &actions);
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
        if !spec.mac.is_empty() && !is_mac(&spec.mac) {
            self.add("spec.mac", format!("{:?} is not a MAC address", spec.mac));
        }
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

    fn node(&mut self, spec: &NodeSpec) {
        let interface = |text: &str| {
            let good = parse_address(text).is_ok() || text.parse::<IpNet>().is_ok();
            if good { Ok(()) } else { Err(format!("{text:?} is neither an address nor an address/length")) }
        };
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
                self.check(field, interface(text));
                if interface(text).is_ok() && text.contains(':') != v6 {
                    self.add(field, format!("{text} is of the other family"));
                }
            }
            let cluster = &bgp.route_reflector_cluster_id;
            if !cluster.is_empty() && cluster.parse::<std::net::Ipv4Addr>().is_err() {
                let field = "spec.bgp.routeReflectorClusterID";
                self.add(field, format!("{cluster:?} is not written like an IPv4 address"));
            }
            if !bgp.ipv4_ipip_tunnel_addr.is_empty() {
                self.check("spec.bgp.ipv4IPIPTunnelAddr", parse_address(&bgp.ipv4_ipip_tunnel_addr));
            }
        }
        for (field, text) in [
            ("spec.ipv4VXLANTunnelAddr", &spec.ipv4_vxlan_tunnel_addr),
            ("spec.ipv6VXLANTunnelAddr", &spec.ipv6_vxlan_tunnel_addr),
        ] {
            if !text.is_empty() {
                self.check(field, parse_address(text));
            }
        }
        for (field, text) in [
            ("spec.vxlanTunnelMACAddr", &spec.vxlan_tunnel_mac_addr),
            ("spec.vxlanTunnelMACAddrV6", &spec.vxlan_tunnel_mac_addr_v6),
        ] {
            if !text.is_empty() && !is_mac(text) {
                self.add(field, format!("{text:?} is not a MAC address"));
            }
        }
        for (index, address) in spec.addresses.iter().enumerate() {
            self.check(format!("spec.addresses[{index}].address"), interface(&address.address));
        }
    }

    fn bgp_peer(&mut self, spec: &BgpPeerSpec) {
        if !spec.node.is_empty() && !spec.node_selector.is_empty() {
            self.add("spec.nodeSelector", "node is given too: give one of the two");
        }
        let targets = [&spec.peer_ip, &spec.peer_selector, &spec.local_workload_selector];
        if targets.iter().filter(|target| !target.is_empty()).count() != 1 {
            self.add("spec.peerIP", "give one of peerIP, peerSelector and localWorkloadSelector");
        }
        if !spec.peer_ip.is_empty() && !is_peer_address(&spec.peer_ip) {
            self.add("spec.peerIP", format!("{:?} is neither an address nor address:port", spec.peer_ip));
        }
        if !spec.peer_selector.is_empty() && spec.as_number.is_some() {
            self.add("spec.asNumber", "peerSelector takes the AS numbers of the nodes it selects");
        }
        self.selector("spec.nodeSelector", &spec.node_selector);
        self.selector("spec.peerSelector", &spec.peer_selector);
        self.selector("spec.localWorkloadSelector", &spec.local_workload_selector);
        self.one_of("spec.sourceAddress", &spec.source_address, &["", "UseNodeIP", "None"]);
        self.one_of("spec.nextHopMode", &spec.next_hop_mode, &["", "Auto", "Self", "Keep"]);
        self.one_of("spec.reversePeering", &spec.reverse_peering, &["", "Auto", "Manual"]);
        if !spec.reachable_by.is_empty() {
            self.check("spec.reachableBy", parse_address(&spec.reachable_by));
        }
    }

    fn bgp_configuration(&mut self, spec: &BgpConfigurationSpec, name: &str) {
        if name != "default" {
            if !name.starts_with("node.") {
                self.add("metadata.name", format!("{name:?} is neither default nor node.<name>"));
            }
            for (field, given) in [
                ("spec.nodeToNodeMeshEnabled", spec.node_to_node_mesh_enabled.is_some()),
                ("spec.asNumber", spec.as_number.is_some()),
            ] {
                if given {
                    self.add(field, "only the object named default can have this");
                }
            }
        }
        let levels = ["", "Trace", "Debug", "Info", "Warning", "Error", "Fatal", "None"];
        self.one_of("spec.logSeverityScreen", &spec.log_severity_screen, &levels);
        for (field, items) in [
            ("serviceClusterIPs", &spec.service_cluster_ips),
            ("serviceExternalIPs", &spec.service_external_ips),
            ("serviceLoadBalancerIPs", &spec.service_load_balancer_ips),
        ] {
            for (index, item) in items.iter().enumerate() {
                self.check(format!("spec.{field}[{index}].cidr"), parse_net(&item.cidr));
            }
        }
        for (index, prefix) in spec.prefix_advertisements.iter().enumerate() {
            self.check(format!("spec.prefixAdvertisements[{index}].cidr"), parse_net(&prefix.cidr));
        }
        for (index, community) in spec.communities.iter().enumerate() {
            let field = format!("spec.communities[{index}].value");
            let parts: Vec<Option<u32>> = community.value.split(':').map(|part| part.parse().ok()).collect();
            let fits = |max: u32| parts.iter().all(|part| part.is_some_and(|part| part <= max));
            if !(parts.len() == 2 && fits(65535) || parts.len() == 3 && fits(u32::MAX)) {
                self.add(field, format!("{:?} is not aa:nn or aa:nn:mm", community.value));
            }
        }
        if spec.listen_port == Some(0) {
            self.add("spec.listenPort", "0 is not a port to listen on");
        }
    }

    fn block(&mut self, stored: &[u8]) {
        let block = match read_block(stored) {
            Ok(block) => block,
            Err(error) => return self.add(format!("spec.{}", error.field), error.reason),
        };
        let Ok(cidr) = block.cidr.parse::<IpNet>() else { return };
        let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        if 1_usize.checked_shl(bits).is_some_and(|size| block.allocations.len() > size) {
            self.add("spec.allocations", format!("{} are more than {cidr} has", block.allocations.len()));
        }
        for (ordinal, index) in block.allocations.iter().enumerate() {
            if index.is_some_and(|index| index >= block.attributes.len()) {
                let reason = format!("refers to none of the {} attributes", block.attributes.len());
                self.add(format!("spec.allocations[{ordinal}]"), reason);
            }
        }
    }
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    bytes.len() == 6
        && bytes.iter().all(|byte| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit()))
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
