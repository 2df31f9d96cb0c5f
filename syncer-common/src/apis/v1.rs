//! Resources as Calico 2 wrote them (`apiVersion: v1`), and what they are called today.
//!
//! Pure: one document in, today's resources and warnings out. What has no form today and restricts something
//! (a tag that a rule matches, a member of a rule that is not known) is an error: left out, the rule would
//! match more than it said. What has none and restricts nothing is left out with a warning. Names follow
//! today's rules; the same old name always becomes the same new one, so that references between objects hold.

mod endpoints;
mod fields;
mod names;
mod network;
mod policy;

use std::collections::BTreeSet;

use serde_json::Value;

use super::{FieldError, Resource, prune_nulls};
use fields::Fields;

/// What old resources carry as `apiVersion`.
pub const API_VERSION: &str = "v1";

const KINDS: [&str; 7] =
    ["bgpPeer", "hostEndpoint", "ipPool", "node", "policy", "profile", "workloadEndpoint"];

/// Today's resources, and what an operator should know about how they came to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upgraded {
    pub resources: Vec<Resource>,
    /// `kind(name): field: what became of it`
    pub warnings: Vec<String>,
}

type Result<T> = std::result::Result<T, FieldError>;

/// Whether a document, or the first object of a list, is of the old form.
pub fn is_old(document: &Value) -> bool {
    match document {
        Value::Array(items) => items.first().is_some_and(is_old),
        document => document.get("apiVersion").and_then(Value::as_str) == Some(API_VERSION),
    }
}

/// Reads one document: an object, a list of objects, or an object that holds a list (`kind: ipPoolList`).
/// Objects in it that are of today's form already stay as they are.
pub fn upgrade(mut document: Value) -> Result<Upgraded> {
    prune_nulls(&mut document);
    let mut upgraded = Upgraded::default();
    add(document, "", &mut upgraded)?;
    let mut seen = BTreeSet::new();
    for resource in &upgraded.resources {
        if !seen.insert(resource.id()) {
            let reason = format!("two objects of the list become {}: rename one of them", resource.id());
            return Err(FieldError::new("metadata.name", reason));
        }
    }
    Ok(upgraded)
}

fn add(document: Value, at: &str, upgraded: &mut Upgraded) -> Result<()> {
    let within = |error: FieldError| match at {
        "" => error,
        at => FieldError::new(format!("{at}.{}", error.field), error.reason),
    };
    let mut object = match document {
        Value::Array(items) => return add_all(items, at, upgraded),
        Value::Object(object) => object,
        _ => return Err(within(FieldError::new("the document", "neither an object nor a list of objects"))),
    };
    let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if version != API_VERSION {
        let resource = Resource::from_json(Value::Object(object)).map_err(within)?;
        upgraded.resources.push(resource);
        return Ok(());
    }
    // `List` is what other tools call a list of anything.
    if kind.strip_suffix("List").is_some_and(|of| of.is_empty() || KINDS.contains(&of)) {
        return match object.remove("items") {
            Some(Value::Array(items)) => add_all(items, &join(at, "items"), upgraded),
            _ => Err(within(FieldError::new("items", format!("missing: a {kind} holds a list of objects")))),
        };
    }
    if !KINDS.contains(&kind.as_str()) {
        let reason = format!("{kind:?} is none of the old kinds {}", KINDS.join(", "));
        return Err(within(FieldError::new("kind", reason)));
    }
    let mut old = Old::new(&kind, object).map_err(within)?;
    let resource = old.upgrade().and_then(Resource::from_json).map_err(within)?;
    let id = resource.id();
    upgraded.warnings.extend(old.warnings.into_iter().map(|warning| format!("{id}: {warning}")));
    upgraded.resources.push(resource);
    Ok(())
}

fn add_all(items: Vec<Value>, at: &str, upgraded: &mut Upgraded) -> Result<()> {
    items.into_iter().enumerate().try_for_each(|(index, item)| add(item, &format!("{at}[{index}]"), upgraded))
}

fn join(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

/// One old object on its way.
struct Old {
    kind: String,
    metadata: Fields,
    spec: Fields,
    /// `field: reason`
    warnings: Vec<String>,
}

impl Old {
    fn new(kind: &str, mut object: serde_json::Map<String, Value>) -> Result<Self> {
        let metadata = Fields::of(object.remove("metadata"), "metadata")?;
        let spec = Fields::of(object.remove("spec"), "spec")?;
        let mut old = Old { kind: kind.to_owned(), metadata, spec, warnings: Vec::new() };
        for member in
            object.keys().filter(|member| !["apiVersion", "kind", "status"].contains(&member.as_str()))
        {
            old.warn(member, "not known: left out");
        }
        Ok(old)
    }

    fn warn(&mut self, field: &str, reason: impl AsRef<str>) {
        self.warnings.push(format!("{field}: {}", reason.as_ref()));
    }

    fn upgrade(&mut self) -> Result<Value> {
        let value = match self.kind.as_str() {
            "bgpPeer" => self.bgp_peer(),
            "hostEndpoint" => self.host_endpoint(),
            "ipPool" => self.pool(),
            "node" => self.node(),
            "policy" => self.policy(),
            "profile" => self.profile(),
            _ => self.workload_endpoint(),
        }?;
        // Members of policies and profiles that are not known may be what made them match less.
        if matches!(self.kind.as_str(), "policy" | "profile") {
            self.spec.nothing_left()?;
        }
        for field in self.metadata.left().into_iter().chain(self.spec.left()) {
            self.warn(&field, "not known: left out");
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
