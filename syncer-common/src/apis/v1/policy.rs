//! Policies, profiles and their rules.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::network::object;
use super::{FieldError, Old, Result};
use crate::apis::scalars::Protocol;

/// What the namespace's label was called; endpoints of today's software do not have it.
const OLD_NAMESPACE_LABEL: &str = "calico/k8s_ns";

/// As today's resources spell them.
const PROTOCOLS: [&str; 6] = ["TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite"];

impl Old {
    pub(super) fn policy(&mut self) -> Result<Value> {
        let name = self.metadata.need("name")?;
        let name = self.renamed("metadata.name", &name);
        let mut spec = Map::new();
        spec.extend(self.spec.take("order").map(|order| ("order".to_owned(), order)));
        if let Some(selector) = self.spec.text("selector")? {
            self.old_label("spec.selector", &selector);
            spec.insert("selector".into(), selector.into());
        }
        self.rules(&mut spec)?;
        for field in ["doNotTrack", "preDNAT"] {
            if self.spec.truth(field)? {
                spec.insert(field.into(), true.into());
                // These always applied to what is forwarded; today that has to be said.
                spec.insert("applyOnForward".into(), true.into());
            }
        }
        if self.spec.truth("applyOnForward")? {
            spec.insert("applyOnForward".into(), true.into());
        }
        let types = self.directions(&spec)?;
        spec.insert("types".into(), types.into());
        Ok(object("GlobalNetworkPolicy", json!({ "name": name }), spec))
    }

    /// A policy without `types` applied to both directions, whatever rules it had.
    fn directions(&mut self, spec: &Map<String, Value>) -> Result<Vec<&'static str>> {
        let given = self.spec.texts("types")?;
        if given.is_empty() {
            if spec.contains_key("preDNAT") {
                return Ok(vec!["Ingress"]);
            }
            for (field, direction) in [("ingress", "Ingress"), ("egress", "Egress")] {
                if !spec.contains_key(field) {
                    let reason = format!(
                        "{direction} is among them, as the old policy had it: without rules it denies all {field}; \
                         take it out if that is not meant"
                    );
                    self.warn("spec.types", reason);
                }
            }
            return Ok(vec!["Ingress", "Egress"]);
        }
        let direction = |(index, text): (usize, &String)| match text.to_ascii_lowercase().as_str() {
            "ingress" => Ok("Ingress"),
            "egress" => Ok("Egress"),
            _ => Err(FieldError::new(
                format!("spec.types[{index}]"),
                format!("{text:?} is neither ingress nor egress"),
            )),
        };
        given.iter().enumerate().map(direction).collect()
    }

    pub(super) fn profile(&mut self) -> Result<Value> {
        let name = self.metadata.need("name")?;
        let name = self.renamed_profile("metadata.name", &name);
        let mut spec = Map::new();
        let labels = self.metadata.labels("labels")?;
        if !labels.is_empty() {
            spec.insert("labelsToApply".into(), labels.into());
        }
        let tags = self.metadata.texts("tags")?;
        if !tags.is_empty() {
            let reason = format!(
                "tags ({}) are no more: give the profile a label for each, and select by it",
                tags.join(", ")
            );
            self.warn("metadata.tags", reason);
        }
        self.rules(&mut spec)?;
        Ok(object("Profile", json!({ "name": name }), spec))
    }

    fn rules(&mut self, spec: &mut Map<String, Value>) -> Result<()> {
        for direction in ["ingress", "egress"] {
            let mut rules = Vec::new();
            for (index, old) in self.spec.list(direction)?.into_iter().enumerate() {
                let fields = Fields::of(Some(old), format!("spec.{direction}[{index}]"))?;
                rules.push(self.rule(fields)?);
            }
            if !rules.is_empty() {
                spec.insert(direction.into(), rules.into());
            }
        }
        Ok(())
    }

    fn rule(&mut self, mut old: Fields) -> Result<Value> {
        let action = old.need("action")?;
        let action = match action.as_str() {
            "allow" => "Allow",
            "deny" => "Deny",
            "log" => "Log",
            "pass" | "next-tier" => "Pass",
            other => return Err(old.error("action", format!("{other:?} is none of allow, deny, log, pass"))),
        };
        let mut rule = Map::new();
        rule.insert("action".into(), action.into());
        for field in ["protocol", "notProtocol"] {
            if let Some(value) = old.take(field) {
                let protocol: Protocol =
                    serde_json::from_value(value).map_err(|error| old.error(field, error.to_string()))?;
                rule.insert(field.into(), spelled(&protocol).map_err(|reason| old.error(field, reason))?);
            }
        }
        for field in ["ipVersion", "icmp", "notICMP"] {
            rule.extend(old.take(field).map(|value| (field.to_owned(), value)));
        }
        for side in ["source", "destination"] {
            if let Some(old) = old.object(side)? {
                let side_of_rule = self.side(old)?;
                if !side_of_rule.is_empty() {
                    rule.insert(side.into(), side_of_rule.into());
                }
            }
        }
        old.nothing_left()?;
        Ok(rule.into())
    }

    fn side(&mut self, mut old: Fields) -> Result<Map<String, Value>> {
        for tag in ["tag", "notTag"] {
            if let Some(text) = old.text(tag)? {
                let reason = format!(
                    "tags are no more, and without it the rule would match more: \
                     give the profile a label for {text:?} and match it with selector"
                );
                return Err(old.error(tag, reason));
            }
        }
        let mut side = Map::new();
        for (one, many) in [("net", "nets"), ("notNet", "notNets")] {
            let mut nets: Vec<String> = old.text(one)?.into_iter().collect();
            nets.extend(old.texts(many)?);
            if !nets.is_empty() {
                side.insert(many.into(), nets.into());
            }
        }
        for selector in ["selector", "notSelector"] {
            if let Some(text) = old.text(selector)? {
                self.old_label(&old.path(selector), &text);
                side.insert(selector.into(), text.into());
            }
        }
        for ports in ["ports", "notPorts"] {
            let list = old.list(ports)?;
            if !list.is_empty() {
                side.insert(ports.into(), list.into());
            }
        }
        old.nothing_left()?;
        Ok(side)
    }

    fn old_label(&mut self, field: &str, selector: &str) {
        if selector.contains(OLD_NAMESPACE_LABEL) {
            let reason = format!(
                "new endpoints do not have the label {OLD_NAMESPACE_LABEL}: select by projectcalico.org/namespace"
            );
            self.warn(field, reason);
        }
    }
}

fn spelled(protocol: &Protocol) -> std::result::Result<Value, String> {
    match protocol {
        Protocol::Number(number) => Ok((*number).into()),
        Protocol::Name(name) => PROTOCOLS
            .iter()
            .find(|known| known.eq_ignore_ascii_case(name))
            .map(|known| Value::from(*known))
            .ok_or_else(|| format!("{name:?} is none of {}, or 0-255", PROTOCOLS.join(", ").to_lowercase())),
    }
}
