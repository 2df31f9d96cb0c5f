//! BGP configuration, peers and filters.

use super::resource::{Errors, LOG_LEVELS};
use super::value::is_peer_address;
use crate::apis::bgp::{
    BgpConfigurationSpec, BgpFilterOperation, BgpFilterRule, BgpFilterSpec, BgpPeerSpec, Password,
};
use crate::apis::scalars::GoDuration;
use crate::processors::{ipv4, ipv6, parse_address, parse_net};

/// Local preference is `i32::MAX - priority`, and there is none below one.
const MAX_PRIORITY: u32 = 2_147_483_646;

impl Errors {
    pub fn bgp_peer(&mut self, spec: &BgpPeerSpec) {
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
            let v6 = |text: &str| text.matches(':').count() > 1;
            if !spec.peer_ip.is_empty() && v6(&spec.reachable_by) != v6(&spec.peer_ip) {
                self.add("spec.reachableBy", format!("{} is not of peerIP's family", spec.reachable_by));
            }
        }
        if spec.keep_original_next_hop && !spec.next_hop_mode.is_empty() {
            self.add(
                "spec.keepOriginalNextHop",
                "nextHopMode is given too, which replaces it: remove this one",
            );
        }
        self.password("spec.password", spec.password.as_ref());
        self.duration("spec.maxRestartTime", spec.max_restart_time);
        self.duration("spec.keepaliveTime", spec.keepalive_time);
        self.distinct("spec.filters", &spec.filters);
    }

    pub fn bgp_configuration(&mut self, spec: &BgpConfigurationSpec, name: &str) {
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
        self.one_of("spec.logSeverityScreen", &spec.log_severity_screen, &LOG_LEVELS);
        self.one_of("spec.bindMode", &spec.bind_mode, &["", "None", "NodeIP"]);
        let aggregation = &spec.service_load_balancer_aggregation;
        self.one_of("spec.serviceLoadBalancerAggregation", aggregation, &["", "Enabled", "Disabled"]);
        let owners = ["", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly", "Enabled"];
        self.one_of("spec.programClusterRoutes", &spec.program_cluster_routes, &owners);
        self.password("spec.nodeMeshPassword", spec.node_mesh_password.as_ref());
        self.duration("spec.nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time);
        self.distinct("spec.ignoredInterfaces", &spec.ignored_interfaces);
        for (field, priority) in [
            ("spec.ipv4NormalRoutePriority", spec.ipv4_normal_route_priority),
            ("spec.ipv6NormalRoutePriority", spec.ipv6_normal_route_priority),
        ] {
            if let Some(priority) = priority {
                self.priority(field, priority);
            }
        }
        for (field, text, v6) in [
            ("spec.localWorkloadPeeringIPV4", &spec.local_workload_peering_ip_v4, false),
            ("spec.localWorkloadPeeringIPV6", &spec.local_workload_peering_ip_v6, true),
        ] {
            if !text.is_empty() {
                self.check(field, if v6 { ipv6(text) } else { ipv4(text) });
            }
        }
        for (field, items) in [
            ("serviceClusterIPs", &spec.service_cluster_ips),
            ("serviceExternalIPs", &spec.service_external_ips),
            ("serviceLoadBalancerIPs", &spec.service_load_balancer_ips),
        ] {
            for (index, item) in items.iter().enumerate() {
                self.check(format!("spec.{field}[{index}].cidr"), parse_net(&item.cidr));
            }
        }
        for (index, community) in spec.communities.iter().enumerate() {
            let field = format!("spec.communities[{index}]");
            if community.name.is_empty() {
                self.add(format!("{field}.name"), "missing");
            }
            if spec.communities[..index].iter().any(|other| other.name == community.name) {
                self.add(format!("{field}.name"), format!("{} is given twice", community.name));
            }
            self.check(format!("{field}.value"), community_value(&community.value));
        }
        for (index, prefix) in spec.prefix_advertisements.iter().enumerate() {
            let field = format!("spec.prefixAdvertisements[{index}]");
            self.check(format!("{field}.cidr"), parse_net(&prefix.cidr));
            for (position, text) in prefix.communities.iter().enumerate() {
                let named = spec.communities.iter().any(|community| community.name == *text);
                // An object of one node may use names of the default one.
                let elsewhere = name != "default" && !text.contains(':');
                if !named && !elsewhere && community_value(text).is_err() {
                    let reason =
                        format!("{text:?} is neither aa:nn, aa:nn:mm nor a name in spec.communities");
                    self.add(format!("{field}.communities[{position}]"), reason);
                }
            }
        }
        if spec.listen_port == Some(0) {
            self.add("spec.listenPort", "0 is not a port to listen on");
        }
    }

    pub fn bgp_filter(&mut self, spec: &BgpFilterSpec) {
        for (list, rules, v6) in spec.lists() {
            for (index, rule) in rules.iter().enumerate() {
                self.filter_rule(&format!("spec.{list}[{index}]"), rule, v6);
            }
        }
    }

    fn filter_rule(&mut self, field: &str, rule: &BgpFilterRule, v6: bool) {
        self.one_of(format!("{field}.action"), &rule.action, &["Accept", "Reject"]);
        let length = if v6 { 128 } else { 32 };
        match (rule.cidr.as_str(), rule.match_operator.as_str()) {
            ("", "") => {}
            ("", _) => self.add(format!("{field}.cidr"), "missing: matchOperator needs it"),
            (_, "") => self.add(format!("{field}.matchOperator"), "missing: cidr needs it"),
            (cidr, operator) => {
                let operators = ["Equal", "NotEqual", "In", "NotIn"];
                self.one_of(format!("{field}.matchOperator"), operator, &operators);
                match parse_net(cidr) {
                    Ok(net) if net.addr().is_ipv6() == v6 => {}
                    Ok(net) => self.add(format!("{field}.cidr"), format!("{net} is of the other family")),
                    Err(reason) => self.add(format!("{field}.cidr"), reason),
                }
            }
        }
        if let Some(prefix) = &rule.prefix_length {
            if rule.cidr.is_empty() {
                self.add(format!("{field}.prefixLength"), "needs cidr");
            }
            for (name, bound) in [("min", prefix.min), ("max", prefix.max)] {
                if bound.is_some_and(|bound| bound > length) {
                    self.add(format!("{field}.prefixLength.{name}"), format!("more than {length}"));
                }
            }
            if prefix.min.zip(prefix.max).is_some_and(|(min, max)| min > max) {
                self.add(format!("{field}.prefixLength.max"), "less than min");
            }
        }
        // It ends up between quotes in BIRD's configuration.
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\#;".contains(&byte);
        if !rule.interface.bytes().all(plain) {
            let reason = format!("{:?} is not the name of an interface or a pattern", rule.interface);
            self.add(format!("{field}.interface"), reason);
        }
        self.one_of(format!("{field}.source"), &rule.source, &["", "RemotePeers"]);
        self.one_of(format!("{field}.peerType"), &rule.peer_type, &["", "eBGP", "iBGP"]);
        if let Some(communities) = &rule.communities {
            let field = format!("{field}.communities.values");
            match communities.values.as_slice() {
                [one] => self.check(format!("{field}[0]"), community_value(one)),
                many => self.add(field, format!("{} are given: give exactly one", many.len())),
            }
        }
        if let Some(priority) = rule.priority {
            self.priority(&format!("{field}.priority"), priority);
        }
        if rule.action != "Accept" && !rule.operations.is_empty() {
            self.add(format!("{field}.operations"), "only with action Accept");
        }
        for (index, operation) in rule.operations.iter().enumerate() {
            self.operation(&format!("{field}.operations[{index}]"), operation);
        }
    }

    fn operation(&mut self, field: &str, operation: &BgpFilterOperation) {
        match operation {
            BgpFilterOperation { add_community: Some(add), prepend_as_path: None, set_priority: None } => {
                self.check(format!("{field}.addCommunity.value"), community_value(&add.value));
            }
            BgpFilterOperation { add_community: None, prepend_as_path: Some(path), set_priority: None } => {
                if path.prefix.is_empty() {
                    self.add(format!("{field}.prependASPath.prefix"), "missing");
                }
            }
            BgpFilterOperation { add_community: None, prepend_as_path: None, set_priority: Some(set) } => {
                match set.value {
                    Some(priority) => self.priority(&format!("{field}.setPriority.value"), priority),
                    None => self.add(format!("{field}.setPriority.value"), "missing"),
                }
            }
            _ => self.add(field, "give exactly one of addCommunity, prependASPath and setPriority"),
        }
    }

    fn priority(&mut self, field: &str, priority: u32) {
        if !(1..=MAX_PRIORITY).contains(&priority) {
            self.add(field, format!("{priority} is not in 1 to {MAX_PRIORITY}"));
        }
    }

    fn password(&mut self, field: &str, password: Option<&Password>) {
        let Some(password) = password else { return };
        match &password.secret_key_ref {
            None => self.add(format!("{field}.secretKeyRef"), "missing: passwords are read from Secrets"),
            Some(reference) => {
                for (name, text) in [("name", &reference.name), ("key", &reference.key)] {
                    if text.is_empty() {
                        self.add(format!("{field}.secretKeyRef.{name}"), "missing");
                    }
                }
            }
        }
    }

    fn duration(&mut self, field: &str, duration: Option<GoDuration>) {
        if duration.is_some_and(|duration| duration.negative) {
            self.add(field, "negative");
        }
    }
}

/// `aa:nn`, or large: `aa:nn:mm`.
fn community_value(text: &str) -> Result<(), String> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<Option<u32>> =
        text.split(':').map(|part| digits(part).then(|| part.parse().ok()).flatten()).collect();
    let fits = |max: u32| parts.iter().all(|part| part.is_some_and(|part| part <= max));
    if parts.len() == 2 && fits(65535) || parts.len() == 3 && fits(u32::MAX) {
        Ok(())
    } else {
        Err(format!("{text:?} is not aa:nn or aa:nn:mm"))
    }
}
