//! What a writer fills in, so that every reader finds it. Kinds that are not here have no such defaults:
//! their readers know what absent means.

use serde_json::{Map, Value, json};

use super::Resource;

/// Tells readers the tier of a policy without reading its spec.
const TIER_LABEL: &str = "projectcalico.org/tier";
const DEFAULT_TIER: &str = "default";
const BLOCK_SIZES: (u32, u32) = (26, 122);

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => false,
    }
}

fn fill(spec: &mut Map<String, Value>, field: &str, value: Value) {
    if is_empty(spec.get(field)) {
        spec.insert(field.to_owned(), value);
    }
}

impl Resource {
    /// Idempotent. Leaves alone what does not have the right shape: validation names it.
    pub fn fill_defaults(&mut self) {
        if self.spec.is_null() {
            self.spec = Value::Object(Map::new());
        }
        let Some(spec) = self.spec.as_object_mut() else { return };
        match self.kind.as_str() {
            "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
                fill(spec, "tier", DEFAULT_TIER.into());
                fill_types(spec);
                if self.kind.starts_with("Staged") {
                    fill(spec, "stagedAction", "Set".into());
                }
                if let Some(tier) = spec.get("tier").and_then(Value::as_str) {
                    self.metadata.labels.insert(TIER_LABEL.to_owned(), tier.to_owned());
                }
            }
            "StagedKubernetesNetworkPolicy" => fill(spec, "stagedAction", "Set".into()),
            "Tier" => fill(spec, "defaultAction", "Deny".into()),
            "IPPool" => {
                let v6 = spec.get("cidr").and_then(Value::as_str).is_some_and(|cidr| cidr.contains(':'));
                let block_size = if v6 { BLOCK_SIZES.1 } else { BLOCK_SIZES.0 };
                fill(spec, "blockSize", block_size.into());
                fill(spec, "ipipMode", "Never".into());
                fill(spec, "vxlanMode", "Never".into());
                fill(spec, "nodeSelector", "all()".into());
                fill(spec, "allowedUses", json!(["Workload", "Tunnel"]));
                fill(spec, "assignmentMode", "Automatic".into());
            }
            _ => {}
        }
    }
}

/// A policy without directions applies to those it has rules for; without egress rules to ingress.
fn fill_types(spec: &mut Map<String, Value>) {
    let (ingress, egress) = (!is_empty(spec.get("ingress")), !is_empty(spec.get("egress")));
    let types = match (ingress, egress) {
        (_, false) => json!(["Ingress"]),
        (false, true) => json!(["Egress"]),
        (true, true) => json!(["Ingress", "Egress"]),
    };
    fill(spec, "types", types);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: &str, spec: Value) -> Value {
        let mut resource = Resource::default();
        (resource.kind, resource.spec) = (kind.into(), spec);
        resource.fill_defaults();
        resource.spec
    }

    #[test]
    fn policies_without_types_apply_where_they_have_rules() {
        let types = |spec| filled("NetworkPolicy", spec)["types"].clone();
        assert_eq!(types(Value::Null), json!(["Ingress"]));
        assert_eq!(types(json!({ "egress": [{}] })), json!(["Egress"]));
        assert_eq!(types(json!({ "ingress": [{}], "egress": [{}] })), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({ "types": ["Egress"] })), json!(["Egress"]));
    }

    #[test]
    fn pools_get_the_block_size_of_their_family() {
        assert_eq!(filled("IPPool", json!({ "cidr": "10.0.0.0/16" }))["blockSize"], 26);
        assert_eq!(filled("IPPool", json!({ "cidr": "fd00::/48" }))["blockSize"], 122);
        assert_eq!(filled("IPPool", json!({ "cidr": "10.0.0.0/16", "blockSize": 24 }))["blockSize"], 24);
    }
}
