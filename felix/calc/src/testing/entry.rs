//! Entries of the datastore in short form: what a test does not care about has a default.

use std::collections::BTreeMap;

use syncer_common::model::{
    HostEndpointKey, Key, PolicyKey, ResourceKey, Value, WorkloadEndpointKey, values,
};

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Key,
    pub value: Value,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Entry {
    pub fn workload(host: &str, name: &str, nets: &[&str], labels: Labels<'_>) -> Self {
        let (ipv6_nets, ipv4_nets) = strings(nets).into_iter().partition(|net| net.contains(':'));
        let key = WorkloadEndpointKey {
            host: host.into(),
            orchestrator: "k8s".into(),
            workload: format!("default/{name}"),
            endpoint: "eth0".into(),
        };
        let value = values::WorkloadEndpoint {
            state: "active".into(),
            name: format!("cali{name}"),
            ipv4_nets,
            ipv6_nets,
            labels: map(labels),
            ..Default::default()
        };
        Entry { key: Key::WorkloadEndpoint(key), value: Value::WorkloadEndpoint(value) }
    }

    pub fn host_endpoint(host: &str, name: &str, addresses: &[&str], labels: Labels<'_>) -> Self {
        let (v6, v4) = strings(addresses).into_iter().partition(|address| address.contains(':'));
        let value = values::HostEndpoint {
            name: name.into(),
            expected_ipv4_addrs: v4,
            expected_ipv6_addrs: v6,
            labels: map(labels),
            ..Default::default()
        };
        let key = HostEndpointKey { host: host.into(), endpoint: format!("{host}-{name}") };
        Entry { key: Key::HostEndpoint(key), value: Value::HostEndpoint(value) }
    }

    pub fn network_set(name: &str, nets: &[&str], labels: Labels<'_>) -> Self {
        let value = values::NetworkSet { nets: strings(nets), labels: map(labels), ..Default::default() };
        Entry { key: Key::NetworkSet { name: name.into() }, value: Value::NetworkSet(value) }
    }

    /// Endpoints of a Service: addresses, and ports by protocol and number.
    pub fn slice(
        namespace: &str,
        name: &str,
        service: &str,
        addresses: &[&str],
        ports: &[(&str, u32)],
    ) -> Self {
        let port = |&(protocol, port): &(&str, u32)| values::EndpointPort {
            protocol: Some(protocol_named(protocol)),
            port: Some(port),
            ..Default::default()
        };
        let endpoint =
            |address: &&str| values::Endpoint { addresses: strings(&[address]), ..Default::default() };
        let value = values::EndpointSlice {
            service_name: service.into(),
            endpoints: addresses.iter().map(endpoint).collect(),
            ports: ports.iter().map(port).collect(),
            ..Default::default()
        };
        let kind = "KubernetesEndpointSlice".into();
        let key = ResourceKey { kind, namespace: namespace.into(), name: name.into() };
        Entry { key: Key::Resource(key), value: Value::EndpointSlice(value) }
    }

    pub fn policy(name: &str, selector: &str) -> Self {
        let key =
            PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name: name.into() };
        let value =
            values::Policy { tier: "default".into(), selector: selector.into(), ..Default::default() };
        Entry { key: Key::Policy(key), value: Value::Policy(value) }
    }

    pub fn policy_of_kind(kind: &str, namespace: &str, name: &str, selector: &str) -> Self {
        let Entry { value, .. } = Self::policy(name, selector);
        let key = PolicyKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        Entry { key: Key::Policy(key), value }.edit_policy(|policy| policy.namespace = namespace.into())
    }

    pub fn tier(name: &str, order: Option<f64>, default_action: &str) -> Self {
        let value = values::Tier { order, default_action: default_action.into() };
        Entry { key: Key::Tier { name: name.into() }, value: Value::Tier(value) }
    }

    pub fn profile_labels(name: &str, labels: Labels<'_>) -> Self {
        let value = values::ProfileLabels { labels: map(labels) };
        Entry { key: Key::ProfileLabels { name: name.into() }, value: Value::ProfileLabels(value) }
    }

    pub fn profile_rules(name: &str, inbound: Vec<Rule>, outbound: Vec<Rule>) -> Self {
        let rules = |rules: Vec<Rule>| rules.into_iter().map(|rule| rule.0).collect();
        let value = values::ProfileRules { inbound_rules: rules(inbound), outbound_rules: rules(outbound) };
        Entry { key: Key::ProfileRules { name: name.into() }, value: Value::ProfileRules(value) }
    }

    pub fn global_config(name: &str, value: &str) -> Self {
        Entry { key: Key::GlobalConfig { name: name.into() }, value: Value::Config(value.into()) }
    }

    pub fn host_config(host: &str, name: &str, value: &str) -> Self {
        let key = Key::HostConfig { host: host.into(), name: name.into() };
        Entry { key, value: Value::Config(value.into()) }
    }

    pub fn scoped_config(name: &str, node_selector: &str, parameters: Labels<'_>) -> Self {
        let value =
            values::FelixConfiguration { node_selector: node_selector.into(), parameters: map(parameters) };
        Entry { key: resource("FelixConfiguration", name), value: Value::FelixConfiguration(value) }
    }

    /// BGPConfiguration `default` with ranges of cluster, external and load balancer addresses.
    pub fn service_ranges(cluster: &[&str], external: &[&str], load_balancer: &[&str]) -> Self {
        let value = values::BgpConfiguration {
            service_cluster_ips: strings(cluster),
            service_external_ips: strings(external),
            service_load_balancer_ips: strings(load_balancer),
            ..Default::default()
        };
        Entry { key: resource("BGPConfiguration", "default"), value: Value::BgpConfiguration(value) }
    }

    pub fn node(name: &str, address: &str, labels: Labels<'_>) -> Self {
        let bgp = values::NodeBgp { ipv4_address: address.into(), ..Default::default() };
        let value = values::Node { labels: map(labels), bgp: Some(bgp), ..Default::default() };
        Entry { key: resource("Node", name), value: Value::Node(value) }
    }

    pub fn pool(cidr: &str) -> Self {
        let value = values::IpPool { cidr: cidr.into(), masquerade: true, ..Default::default() };
        let cidr = cidr.parse().expect("CIDRs in tests parse");
        Entry { key: Key::IpPool { cidr }, value: Value::IpPool(value) }
    }

    /// A pool with `vxlan_mode` or `ipip_mode`: `always`, `cross-subnet`.
    pub fn pool_with(cidr: &str, vxlan_mode: &str, ipip_mode: &str) -> Self {
        let mut entry = Self::pool(cidr);
        if let Value::IpPool(pool) = &mut entry.value {
            (pool.vxlan_mode, pool.ipip_mode) = (vxlan_mode.into(), ipip_mode.into());
        }
        entry
    }

    /// A block of a node, and who borrowed addresses of it.
    pub fn block(cidr: &str, node: &str, borrowed: &[(&str, &str)]) -> Self {
        let affinity = if node.is_empty() { String::new() } else { format!("host:{node}") };
        let value = values::IpamBlock { cidr: cidr.into(), affinity, borrowed: map(borrowed) };
        let cidr = cidr.parse().expect("CIDRs in tests parse");
        Entry { key: Key::Block { cidr }, value: Value::IpamBlock(value) }
    }

    /// A node with addresses (`172.30.0.21/16`) and VXLAN tunnel addresses, each of both families or empty.
    pub fn vxlan_node(name: &str, [ipv4, ipv6]: [&str; 2], [tunnel4, tunnel6]: [&str; 2]) -> Self {
        let bgp =
            values::NodeBgp { ipv4_address: ipv4.into(), ipv6_address: ipv6.into(), ..Default::default() };
        let value = values::Node {
            bgp: Some(bgp),
            ipv4_vxlan_tunnel_addr: tunnel4.into(),
            ipv6_vxlan_tunnel_addr: tunnel6.into(),
            ..Default::default()
        };
        Entry { key: resource("Node", name), value: Value::Node(value) }
    }

    pub fn profiles(mut self, names: &[&str]) -> Self {
        let profile_ids = match &mut self.value {
            Value::WorkloadEndpoint(endpoint) => &mut endpoint.profile_ids,
            Value::HostEndpoint(endpoint) => &mut endpoint.profile_ids,
            Value::NetworkSet(set) => &mut set.profile_ids,
            other => panic!("no profiles in {other:?}"),
        };
        *profile_ids = strings(names);
        self
    }

    /// A floating address of a workload.
    pub fn floating(self, external: &str, internal: &str) -> Self {
        let nat = values::IpNat { internal_ip: internal.into(), external_ip: external.into() };
        self.edit_workload(|endpoint| match nat.internal_ip.contains(':') {
            true => endpoint.ipv6_nats.push(nat),
            false => endpoint.ipv4_nats.push(nat),
        })
    }

    pub fn qos(self, qos: values::QosControls) -> Self {
        self.edit_workload(|endpoint| endpoint.qos = Some(qos))
    }

    fn edit_workload(mut self, edit: impl FnOnce(&mut values::WorkloadEndpoint)) -> Self {
        match &mut self.value {
            Value::WorkloadEndpoint(endpoint) => edit(endpoint),
            other => panic!("no workload: {other:?}"),
        }
        self
    }

    pub fn port(mut self, name: &str, protocol: &str, port: u32) -> Self {
        let ports = match &mut self.value {
            Value::WorkloadEndpoint(endpoint) => &mut endpoint.ports,
            Value::HostEndpoint(endpoint) => &mut endpoint.ports,
            other => panic!("no ports in {other:?}"),
        };
        let protocol = Some(protocol_named(protocol));
        ports.push(values::NamedPort { name: name.into(), protocol, port });
        self
    }

    pub fn inbound(self, rule: Rule) -> Self {
        self.edit_policy(|policy| policy.inbound_rules.push(rule.0))
    }

    pub fn outbound(self, rule: Rule) -> Self {
        self.edit_policy(|policy| policy.outbound_rules.push(rule.0))
    }

    pub fn order(self, order: f64) -> Self {
        self.edit_policy(|policy| policy.order = Some(order))
    }

    pub fn in_tier(self, tier: &str) -> Self {
        self.edit_policy(|policy| policy.tier = tier.into())
    }

    pub fn types(self, types: &[&str]) -> Self {
        self.edit_policy(|policy| policy.types = strings(types))
    }

    pub fn edit_policy(mut self, edit: impl FnOnce(&mut values::Policy)) -> Self {
        match &mut self.value {
            Value::Policy(policy) => edit(policy),
            other => panic!("not a policy: {other:?}"),
        }
        self
    }
}

/// A rule in short form.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule(pub values::Rule);

pub fn allow() -> Rule {
    action("allow")
}

pub fn deny() -> Rule {
    action("deny")
}

pub fn pass() -> Rule {
    action("next-tier")
}

fn action(action: &str) -> Rule {
    Rule(values::Rule { action: action.into(), ..Default::default() })
}

impl Rule {
    pub fn protocol(mut self, name: &str) -> Self {
        self.0.protocol = Some(protocol_named(name));
        self
    }

    pub fn from(self, selector: &str) -> Self {
        self.edit_src(|side| side.selector = selector.into())
    }

    pub fn to(self, selector: &str) -> Self {
        self.edit_dst(|side| side.selector = selector.into())
    }

    pub fn not_from(self, selector: &str) -> Self {
        self.edit_src(|side| side.not_selector = selector.into())
    }

    pub fn to_port(self, name: &str) -> Self {
        let port = values::port::Port::Name(name.into());
        self.edit_dst(|side| side.ports.push(values::Port { port: Some(port) }))
    }

    pub fn not_to_port(self, name: &str) -> Self {
        let port = values::port::Port::Name(name.into());
        self.edit_dst(|side| side.not_ports.push(values::Port { port: Some(port) }))
    }

    pub fn to_number(self, first: u32, last: u32) -> Self {
        let port = values::port::Port::Range(values::PortRange { first, last });
        self.edit_dst(|side| side.ports.push(values::Port { port: Some(port) }))
    }

    pub fn edit_src(mut self, edit: impl FnOnce(&mut values::EntityRule)) -> Self {
        edit(self.0.src.get_or_insert_default());
        self
    }

    pub fn edit_dst(mut self, edit: impl FnOnce(&mut values::EntityRule)) -> Self {
        edit(self.0.dst.get_or_insert_default());
        self
    }
}

fn protocol_named(name: &str) -> values::Protocol {
    values::Protocol { id: Some(values::protocol::Id::Name(name.into())) }
}

fn resource(kind: &str, name: &str) -> Key {
    Key::Resource(ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() })
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn map(pairs: Labels<'_>) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
