//! Values as the datastore holds them: the v1 JSON forms and raw text, read and written back.
//!
//! Two spellings of one value (a bare address and its `/32`, a port as text, members left out or `null`)
//! have the same canonical text, so that tools can compare what is stored with what would be written. A
//! value that does not read as its key's type has none: nothing is guessed.

mod calico;
mod forms;
mod resource;
mod scalars;

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Key;
pub use calico::{calico_json, carried};

/// Reads `raw` as the value of `key` and writes it again; `None` when it does not parse.
pub fn canonical_value(key: &Key, raw: &[u8]) -> Option<String> {
    match key {
        Key::ReadyFlag => Some((raw == b"true").to_string()),
        Key::GlobalConfig { .. }
        | Key::HostConfig { .. }
        | Key::GlobalBgpConfig { .. }
        | Key::NodeBgpConfig { .. }
        | Key::BgpNode { .. }
        | Key::IpamHost { .. } => String::from_utf8(raw.to_vec()).ok(),
        Key::WorkloadEndpoint(_) => rewrite::<forms::WorkloadEndpoint>(raw),
        Key::HostEndpoint(_) => rewrite::<forms::HostEndpoint>(raw),
        Key::Policy(_) | Key::LegacyPolicy { .. } => rewrite::<forms::Policy>(raw),
        Key::Tier { .. } => rewrite::<forms::Tier>(raw),
        Key::ProfileRules { .. } => rewrite::<forms::ProfileRules>(raw),
        Key::ProfileLabels { .. } => rewrite::<Option<BTreeMap<String, String>>>(raw),
        Key::NetworkSet { .. } => rewrite::<forms::NetworkSet>(raw),
        Key::IpPool { .. } => rewrite::<forms::IpPool>(raw),
        Key::Block { .. } => rewrite::<forms::Block>(raw),
        // Before affinities had a state, the value was empty.
        Key::BlockAffinity(_) if raw.is_empty() => rewrite::<forms::BlockAffinity>(b"{}"),
        Key::BlockAffinity(_) => rewrite::<forms::BlockAffinity>(raw),
        Key::Resource(resource) => resource::canonical(&resource.kind, raw),
        Key::Wireguard { .. } => rewrite::<forms::Wireguard>(raw),
        Key::IpamHandle { .. } => rewrite::<forms::IpamHandle>(raw),
        Key::IpamConfig => rewrite::<forms::IpamConfig>(raw),
        Key::HostMetadata { .. } => rewrite::<forms::Nothing>(raw),
        Key::OrchRefs { .. } => rewrite::<serde_json::Value>(raw),
        Key::GlobalBgpPeer { .. } | Key::NodeBgpPeer { .. } => rewrite::<forms::BgpPeer>(raw),
        Key::ActiveStatusReport { .. } | Key::LastStatusReport { .. } => rewrite::<forms::StatusReport>(raw),
        Key::HostEndpointStatus { .. } | Key::WorkloadEndpointStatus { .. } => {
            rewrite::<forms::EndpointStatus>(raw)
        }
    }
}

/// An entry as an old Typha sent it (policies by tier and name, before 3.32), in today's form: its key and its
/// canonical value. The tier in the path is the policy's, whatever the value says. Other entries keep their key.
pub fn upgraded_entry(path: &str, raw: &[u8]) -> Option<(Key, String)> {
    let key = Key::parse(path)?;
    let value = match key.legacy_tier() {
        None => canonical_value(&key, raw)?,
        Some(tier) => {
            let mut policy: forms::Policy = serde_json::from_slice(raw).ok()?;
            policy.upgrade(tier);
            serde_json::to_string(&policy).ok()?
        }
    };
    Some((key.upgrade(), value))
}

fn rewrite<T: Serialize + DeserializeOwned>(raw: &[u8]) -> Option<String> {
    let value: T = serde_json::from_slice(raw).ok()?;
    serde_json::to_string(&value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(raw: &str) -> Option<String> {
        let key = Key::parse("/calico/v1/policy/GlobalNetworkPolicy//p").unwrap();
        canonical_value(&key, raw.as_bytes())
    }

    #[test]
    fn spellings_of_one_value_have_one_form() {
        let rule = |rule: &str| policy(&format!(r#"{{"order":10.0,"inbound_rules":[{rule}]}}"#));
        let plain = rule(r#"{"action":"allow","protocol":6,"dst_ports":[80],"src_nets":["10.0.0.1/32"]}"#);
        let other = rule(
            r#"{"protocol":"6","action":"allow","dst_ports":["80:80"],"src_nets":["10.0.0.1"],"!protocol":null}"#,
        );
        assert!(plain.is_some());
        assert_eq!(plain, other);
        assert!(plain.unwrap().contains(r#""order":10,"#));
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let canonical = policy(r#"{"order":9.223370368477478e19}"#).unwrap();
        assert_eq!(policy(&canonical), Some(canonical.clone()));
        let key = Key::parse("/calico/resources/v3/projectcalico.org/bgpconfigurations/c").unwrap();
        let canonical = canonical_value(&key, br#"{"spec":{"n":92233703684774775808}}"#).unwrap();
        assert_eq!(canonical_value(&key, canonical.as_bytes()), Some(canonical));
    }

    #[test]
    fn values_out_of_range_are_no_values() {
        for bad in [
            r#"{"protocol":256}"#,
            r#"{"protocol":"256"}"#,
            r#"{"dst_ports":[65536]}"#,
            r#"{"dst_ports":["90:80"]}"#,
            r#"{"src_nets":["10.0.0.0/33"]}"#,
            r#"{"icmp_type":256}"#,
        ] {
            assert_eq!(policy(&format!(r#"{{"inbound_rules":[{bad}]}}"#)), None, "{bad}");
        }
    }

    #[test]
    fn empty_value_is_a_block_affinity_of_old_and_nothing_else() {
        let affinity = Key::parse("/calico/ipam/v2/host/n/ipv4/block/10.0.0.0-26").unwrap();
        assert_eq!(canonical_value(&affinity, b"").unwrap(), r#"{"state":"","deleted":false}"#);
        assert_eq!(policy(""), None);
    }

    #[test]
    fn policies_of_an_old_typha_get_their_tier_from_the_path() {
        let rule =
            r#"{"action":"deny","src_net":"10.0.0.0/8","src_nets":["192.0.2.1"],"!dst_net":"fd00::/8"}"#;
        for (path, now) in [
            ("security/policy/shop%2fknp.default.web", "KubernetesNetworkPolicy/shop/web"),
            ("security/policy/shop%2fstaged:knp.default.web", "StagedKubernetesNetworkPolicy/shop/web"),
            ("security/policy/shop%2fstaged:web", "StagedNetworkPolicy/shop/web"),
            ("security/policy/shop%2fsecurity.web", "NetworkPolicy/shop/security.web"),
            ("security/policy/staged:web", "StagedGlobalNetworkPolicy//web"),
            ("security/policy/kcnp.web", "KubernetesClusterNetworkPolicy//web"),
            ("security/policy/security.web", "GlobalNetworkPolicy//security.web"),
        ] {
            let raw = format!(r#"{{"tier":"default","selector":"a == 'b'","inbound_rules":[{rule}]}}"#);
            let (key, value) =
                upgraded_entry(&format!("/calico/v1/policy/tier/{path}"), raw.as_bytes()).unwrap();
            assert_eq!(key.path().unwrap(), format!("/calico/v1/policy/{now}"));
            let value: serde_json::Value = serde_json::from_str(&value).unwrap();
            assert_eq!((&value["tier"], &value["selector"]), (&"security".into(), &"a == 'b'".into()));
            let rule = &value["inbound_rules"][0];
            assert_eq!(rule["src_nets"], serde_json::json!(["192.0.2.1/32", "10.0.0.0/8"]));
            assert_eq!(rule["!dst_nets"], serde_json::json!(["fd00::/8"]));
            assert!(rule.get("src_net").is_none());
        }
        assert_eq!(upgraded_entry("/calico/v1/policy/tier/t/policy/p", b"{"), None);
        let (key, value) = upgraded_entry("/calico/v1/policy/tier/t/metadata", b"{\"order\":1}").unwrap();
        assert_eq!((key, value.as_str()), (Key::Tier { name: "t".into() }, "{\"order\":1}"));
    }
}
