//! The stored form of v3 resources: metadata brought to its canonical shape, the spec left alone.
//!
//! Policies are stored under a name that may carry a prefix; their true name is in an annotation, or is
//! what remains without the prefix of the default tier. An annotation that does not parse makes the whole
//! value unreadable, since its name cannot be known.

use serde_json::{Map, Value};

const METADATA_ANNOTATION: &str = "projectcalico.org/metadata";
const DEFAULT_TIER: &str = "default";
const DEFAULT_TIER_PREFIX: &str = "default.";

/// Reads and rewrites a resource; `None` when it is not one.
pub(super) fn canonical(kind: &str, raw: &[u8]) -> Option<String> {
    let Value::Object(mut resource) = serde_json::from_slice(raw).ok()? else { return None };
    let mut metadata = match resource.remove("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return None,
    };
    if stores_name_apart(kind) {
        let tier = resource.get("spec").and_then(|spec| spec.get("tier")).and_then(Value::as_str);
        restore_policy_name(&mut metadata, tier.unwrap_or_default())?;
    }
    metadata.retain(|_, value| !is_blank(value));
    resource.retain(|field, value| field == "spec" || !is_blank(value));
    resource.insert("metadata".to_owned(), Value::Object(metadata));
    if has_spec(kind) {
        let spec = resource.entry("spec").or_insert(Value::Null);
        match spec {
            Value::Object(_) => {}
            Value::Null => *spec = Value::Object(Map::new()),
            _ => return None,
        }
    }
    serde_json::to_string(&resource).ok()
}

fn stores_name_apart(kind: &str) -> bool {
    ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"]
        .iter()
        .any(|policy| policy.eq_ignore_ascii_case(kind))
}

/// Kubernetes' own objects are shaped differently.
fn has_spec(kind: &str) -> bool {
    !["KubernetesService", "KubernetesEndpointSlice"].iter().any(|own| own.eq_ignore_ascii_case(kind))
}

fn restore_policy_name(metadata: &mut Map<String, Value>, tier: &str) -> Option<()> {
    let annotation = metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
        .and_then(|annotations| annotations.remove(METADATA_ANNOTATION));
    if let Some(annotation) = annotation {
        let stored: Value = serde_json::from_str(annotation.as_str()?).ok()?;
        if let Some(name) = stored.as_object()?.get("name") {
            metadata.insert("name".to_owned(), Value::String(name.as_str()?.to_owned()));
        }
    } else if tier.is_empty() || tier == DEFAULT_TIER {
        let plain = metadata
            .get("name")
            .and_then(Value::as_str)
            .and_then(|name| name.strip_prefix(DEFAULT_TIER_PREFIX))
            .map(str::to_owned);
        if let Some(name) = plain {
            metadata.insert("name".to_owned(), Value::String(name));
        }
    }
    Some(())
}

/// What writers leave out.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_name_comes_from_the_annotation() {
        let raw = br#"{"metadata":{"name":"default.x","annotations":{"projectcalico.org/metadata":"{\"name\":\"y\"}","k":"v"}},"spec":{}}"#;
        assert_eq!(
            canonical("NetworkPolicy", raw).unwrap(),
            r#"{"metadata":{"annotations":{"k":"v"},"name":"y"},"spec":{}}"#
        );
    }

    #[test]
    fn prefix_of_the_default_tier_is_not_part_of_the_name() {
        let raw = br#"{"metadata":{"name":"default.x"},"spec":{"tier":"default"}}"#;
        let text = canonical("GlobalNetworkPolicy", raw).unwrap();
        assert!(text.contains(r#""name":"x""#), "{text}");
    }

    #[test]
    fn other_tiers_and_kinds_keep_the_stored_name() {
        let raw = br#"{"metadata":{"name":"default.x"},"spec":{"tier":"web"}}"#;
        assert!(canonical("NetworkPolicy", raw).unwrap().contains("default.x"));
        let raw = br#"{"metadata":{"name":"default.x"},"spec":{}}"#;
        assert!(canonical("IPPool", raw).unwrap().contains("default.x"));
    }
}
