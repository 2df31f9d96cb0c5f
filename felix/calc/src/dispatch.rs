//! Which part an update concerns, and what is fit to reach it.
//!
//! An entry that fails a check is treated as absent and reported once, here, with key, field and reason.
//! Only endpoints of this node reach `ActiveRules`; everything with addresses reaches `Members`.

use std::fmt::Debug;

use syncer_common::model::{Key, PolicyKey, ResourceKey, Update, Value, values};
use syncer_common::selector::Selector;

use crate::active_rules::{EndpointKey, LocalEndpoint};
use crate::addresses::nets;
use crate::graph::Graph;
use crate::hosts::host_of;
use crate::ip_set::ServiceName;
use crate::item::{Contribution, Entry};
use crate::rule_scanner::{scan_policy, scan_profile};

/// The value when it is of the key's own kind; anything else is absent.
macro_rules! value_of {
    ($update:expr, $variant:path) => {
        match $update.value {
            Ok($variant(value)) => Some(value),
            Ok(_) => {
                report(&$update.key, "value", "of another kind than its key");
                None
            }
            Err(_) => None,
        }
    };
}

impl Graph {
    pub fn on_update(&mut self, update: Update) {
        match &update.key {
            Key::WorkloadEndpoint(_) => {
                let value = value_of!(update, Value::WorkloadEndpoint);
                self.on_workload_endpoint(update.key, value);
            }
            Key::HostEndpoint(_) => {
                let value = value_of!(update, Value::HostEndpoint);
                self.on_host_endpoint(update.key, value);
            }
            Key::NetworkSet { .. } => {
                let value = value_of!(update, Value::NetworkSet);
                self.members.set_item(&update.key, value.as_ref().map(Entry::from));
            }
            Key::Policy(key) => {
                let key = key.clone();
                self.on_policy(key, value_of!(update, Value::Policy));
            }
            Key::Tier { name } => {
                let name = name.clone();
                self.tiers.set(name, value_of!(update, Value::Tier));
                self.active.mark_all_endpoints();
            }
            Key::ProfileRules { name } => {
                let name = name.clone();
                self.on_profile_rules(name, value_of!(update, Value::ProfileRules));
            }
            Key::ProfileLabels { name } => {
                let name = name.clone();
                let labels = value_of!(update, Value::ProfileLabels).map(|value| value.labels);
                self.active.set_profile_labels(&name, labels.clone());
                self.members.set_profile_labels(&name, labels);
            }
            Key::IpPool { cidr } => {
                let cidr = *cidr;
                let pool = value_of!(update, Value::IpPool);
                self.routes.set_pool(cidr, pool.as_ref());
                self.pools.set(cidr, pool);
            }
            Key::Block { cidr } => {
                let cidr = *cidr;
                self.routes.set_block(cidr, value_of!(update, Value::IpamBlock));
            }
            Key::GlobalConfig { name } => {
                let name = name.clone();
                self.config.set_global(name, value_of!(update, Value::Config));
            }
            Key::HostConfig { host, name } if *host == self.node => {
                let name = name.clone();
                self.config.set_host(name, value_of!(update, Value::Config));
            }
            Key::ReadyFlag => self.config.set_ready(value_of!(update, Value::Ready)),
            Key::Resource(ResourceKey { kind, name, .. }) if kind == "Node" => {
                let name = name.clone();
                self.on_node(name, value_of!(update, Value::Node));
            }
            Key::Resource(ResourceKey { kind, name, .. }) if kind == "FelixConfiguration" => {
                let name = name.clone();
                self.config.set_scoped(name, value_of!(update, Value::FelixConfiguration));
            }
            Key::Resource(ResourceKey { kind, name, .. })
                if kind == "BGPConfiguration" && name == "default" =>
            {
                let value = value_of!(update, Value::BgpConfiguration).unwrap_or_default();
                let mut cidrs = nets(&update.key, "service_cluster_ips", &value.service_cluster_ips);
                cidrs.extend(nets(&update.key, "service_external_ips", &value.service_external_ips));
                cidrs.extend(nets(
                    &update.key,
                    "service_load_balancer_ips",
                    &value.service_load_balancer_ips,
                ));
                self.service_cidrs = cidrs.into_iter().collect();
            }
            Key::Resource(ResourceKey { kind, namespace, .. }) if kind == "KubernetesEndpointSlice" => {
                let namespace = namespace.clone();
                let slice = value_of!(update, Value::EndpointSlice).map(|slice| {
                    let service = ServiceName { namespace, name: slice.service_name.clone() };
                    (service, Contribution::from(&slice))
                });
                self.members.set_slice(update.key, slice);
            }
            _ => {}
        }
    }

    fn on_workload_endpoint(&mut self, key: Key, value: Option<values::WorkloadEndpoint>) {
        let value = value.filter(|value| {
            let named = !value.name.is_empty();
            if !named {
                report(&key, "name", "no interface");
            }
            named
        });
        self.members.set_item(&key, value.as_ref().map(Entry::from));
        if let Key::WorkloadEndpoint(key) = key
            && key.host == self.node
        {
            self.routes.set_workload(&key, value.as_ref());
            self.active.set_endpoint(EndpointKey::Workload(key), value.map(LocalEndpoint::Workload));
        }
    }

    fn on_host_endpoint(&mut self, key: Key, value: Option<values::HostEndpoint>) {
        self.members.set_item(&key, value.as_ref().map(Entry::from));
        if let Key::HostEndpoint(key) = key
            && key.host == self.node
        {
            self.active.set_endpoint(EndpointKey::Host(key), value.map(LocalEndpoint::Host));
        }
    }

    /// Staged policies change nothing. A policy that does not scan is absent.
    fn on_policy(&mut self, key: PolicyKey, value: Option<values::Policy>) {
        let value = value.filter(|_| !key.kind.starts_with("Staged")).and_then(|policy| {
            if let Err(error) = scan_policy(&policy) {
                report(&key, &error.field, &error.reason);
                return None;
            }
            match Selector::parse(&policy.selector) {
                Ok(selector) => Some((policy, selector)),
                Err(error) => {
                    report(&key, "selector", &error.to_string());
                    None
                }
            }
        });
        self.active.set_policy(key, value);
    }

    /// A profile that does not scan is missing, which denies.
    fn on_profile_rules(&mut self, name: String, value: Option<values::ProfileRules>) {
        let value = value.filter(|rules| match scan_profile(rules) {
            Ok(_) => true,
            Err(error) => {
                report(&name, &error.field, &error.reason);
                false
            }
        });
        self.active.set_profile_rules(name, value);
    }

    fn on_node(&mut self, name: String, value: Option<values::Node>) {
        if name == self.node {
            let labels = value.as_ref().map(|node| node.labels.clone()).unwrap_or_default();
            self.config.set_node_labels(labels);
        }
        self.routes.set_node(&name, value.as_ref());
        self.hosts.set(name, value.as_ref().map(host_of));
    }
}

fn report(key: &dyn Debug, field: &str, reason: &str) {
    tracing::warn!(?key, field, reason, "entry treated as absent");
}
