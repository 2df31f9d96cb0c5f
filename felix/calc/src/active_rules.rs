//! Active policies and profiles: those that some local endpoint needs, or that say themselves that every
//! node needs them.
//!
//! Local endpoint labels × policy selectors. Policies come checked (`rule_scanner`); a refused or staged
//! one never gets here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message as _;
use syncer_common::labelindex::{LabelIndex, MatchEvent};
use syncer_common::model::{HostEndpointKey, PolicyKey, WorkloadEndpointKey, values};
use syncer_common::selector::Selector;

use crate::rule_scanner::is_always_needed;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum EndpointKey {
    Workload(WorkloadEndpointKey),
    Host(HostEndpointKey),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LocalEndpoint {
    Workload(values::WorkloadEndpoint),
    Host(values::HostEndpoint),
}

#[derive(Default)]
pub(crate) struct ActiveRules {
    index: LabelIndex<EndpointKey, PolicyKey>,
    policies: HashMap<PolicyKey, Policy>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// Encoded, as the rules of policies.
    profiles: HashMap<String, Box<[u8]>>,
    /// How many local endpoints name each profile.
    profile_users: HashMap<String, usize>,
    dirty: Dirty,
}

/// What has to be worked out anew.
#[derive(Default)]
pub(crate) struct Dirty {
    pub policies: BTreeSet<PolicyKey>,
    pub profiles: BTreeSet<String>,
    pub endpoints: BTreeSet<EndpointKey>,
}

struct Policy {
    /// Without its rules.
    head: values::Policy,
    /// Those, encoded: most policies of a cluster concern no endpoint here, and rules are large as values.
    rules: Box<[u8]>,
    endpoints: BTreeSet<EndpointKey>,
}

impl Policy {
    fn new(mut head: values::Policy) -> Policy {
        let rules = values::Policy {
            inbound_rules: std::mem::take(&mut head.inbound_rules),
            outbound_rules: std::mem::take(&mut head.outbound_rules),
            ..values::Policy::default()
        };
        Policy { head, rules: rules.encode_to_vec().into(), endpoints: BTreeSet::new() }
    }

    fn value(&self) -> values::Policy {
        let rules = values::Policy::decode(&*self.rules).expect("they were encoded here");
        let values::Policy { inbound_rules, outbound_rules, .. } = rules;
        values::Policy { inbound_rules, outbound_rules, ..self.head.clone() }
    }
}

struct Endpoint {
    value: LocalEndpoint,
    policies: BTreeSet<PolicyKey>,
}

impl LocalEndpoint {
    fn profile_ids(&self) -> &[String] {
        match self {
            Self::Workload(endpoint) => &endpoint.profile_ids,
            Self::Host(endpoint) => &endpoint.profile_ids,
        }
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Workload(endpoint) => &endpoint.labels,
            Self::Host(endpoint) => &endpoint.labels,
        }
    }
}

impl ActiveRules {
    pub fn set_endpoint(&mut self, key: EndpointKey, value: Option<LocalEndpoint>) {
        let events = match value {
            Some(value) => {
                let (labels, profiles) = (value.labels().clone(), value.profile_ids().to_vec());
                self.use_profiles(&profiles);
                let old = match self.endpoints.get_mut(&key) {
                    Some(endpoint) => Some(std::mem::replace(&mut endpoint.value, value)),
                    None => {
                        let endpoint = Endpoint { value, policies: BTreeSet::new() };
                        self.endpoints.insert(key.clone(), endpoint).map(|endpoint| endpoint.value)
                    }
                };
                if let Some(old) = old {
                    self.drop_profiles(old.profile_ids());
                }
                self.index.update_item(key.clone(), labels, profiles)
            }
            None => {
                let Some(endpoint) = self.endpoints.remove(&key) else { return };
                self.drop_profiles(endpoint.value.profile_ids());
                self.index.delete_item(&key)
            }
        };
        self.apply(events);
        self.dirty.endpoints.insert(key);
    }

    pub fn set_policy(&mut self, key: PolicyKey, value: Option<(values::Policy, Selector)>) {
        let events = match value {
            Some((value, selector)) => {
                let mut policy = Policy::new(value);
                if let Some(old) = self.policies.remove(&key) {
                    // Order, tier and types show in the endpoints.
                    self.dirty.endpoints.extend(old.endpoints.iter().cloned());
                    policy.endpoints = old.endpoints;
                }
                self.policies.insert(key.clone(), policy);
                self.index.update_selector(key.clone(), selector)
            }
            None => {
                if self.policies.remove(&key).is_none() {
                    return;
                }
                self.index.delete_selector(&key)
            }
        };
        self.apply(events);
        self.dirty.policies.insert(key);
    }

    pub fn set_profile_rules(&mut self, name: String, rules: Option<values::ProfileRules>) {
        match rules {
            Some(rules) => self.profiles.insert(name.clone(), rules.encode_to_vec().into()),
            None => self.profiles.remove(&name),
        };
        if self.profile_users.contains_key(&name) {
            self.dirty.profiles.insert(name);
        }
    }

    pub fn set_profile_labels(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        let events = match labels {
            Some(labels) => self.index.update_parent(name, labels),
            None => self.index.delete_parent(name),
        };
        self.apply(events);
    }

    /// Something that all endpoints depend on has changed.
    pub fn mark_all_endpoints(&mut self) {
        self.dirty.endpoints.extend(self.endpoints.keys().cloned());
    }

    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    pub fn active_policy(&self, key: &PolicyKey) -> Option<values::Policy> {
        self.policies
            .get(key)
            .filter(|policy| !policy.endpoints.is_empty() || is_always_needed(&policy.head))
            .map(Policy::value)
    }

    /// Nothing when no local endpoint names the profile; `Some(None)` when one does and it is missing.
    pub fn active_profile(&self, name: &str) -> Option<Option<values::ProfileRules>> {
        let decode = |rules: &[u8]| values::ProfileRules::decode(rules).expect("it was encoded here");
        self.profile_users.contains_key(name).then(|| self.profiles.get(name).map(|rules| decode(rules)))
    }

    pub fn endpoint(&self, key: &EndpointKey) -> Option<&LocalEndpoint> {
        self.endpoints.get(key).map(|endpoint| &endpoint.value)
    }

    /// Without their rules, which decide nothing about order.
    pub fn policies_of(&self, key: &EndpointKey) -> impl Iterator<Item = (&PolicyKey, &values::Policy)> {
        let matching = self.endpoints.get(key).into_iter().flat_map(|endpoint| &endpoint.policies);
        matching.filter_map(|key| self.policies.get_key_value(key)).map(|(key, policy)| (key, &policy.head))
    }

    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    fn use_profiles(&mut self, names: &[String]) {
        for name in names {
            let users = self.profile_users.entry(name.clone()).or_insert(0);
            *users += 1;
            if *users == 1 {
                self.dirty.profiles.insert(name.clone());
            }
        }
    }

    fn drop_profiles(&mut self, names: &[String]) {
        for name in names {
            let users = self.profile_users.get_mut(name).expect("each use of a profile is dropped once");
            *users -= 1;
            if *users == 0 {
                self.profile_users.remove(name);
                self.dirty.profiles.insert(name.clone());
            }
        }
    }

    fn apply(&mut self, events: Vec<MatchEvent<EndpointKey, PolicyKey>>) {
        for event in events {
            let started = matches!(event, MatchEvent::Started { .. });
            let (MatchEvent::Started { item, selector } | MatchEvent::Stopped { item, selector }) = event;
            if let Some(endpoint) = self.endpoints.get_mut(&item) {
                if started {
                    endpoint.policies.insert(selector.clone());
                } else {
                    endpoint.policies.remove(&selector);
                }
            }
            if let Some(policy) = self.policies.get_mut(&selector) {
                let was_active = !policy.endpoints.is_empty();
                if started {
                    policy.endpoints.insert(item.clone());
                } else {
                    policy.endpoints.remove(&item);
                }
                if was_active == policy.endpoints.is_empty() {
                    self.dirty.policies.insert(selector);
                }
            }
            self.dirty.endpoints.insert(item);
        }
    }
}
