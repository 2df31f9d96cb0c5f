//! Peers, pools and nodes.

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::super::API_VERSION;
use super::{Old, Result, names};
use crate::processors::parse_address;

impl Old {
    pub(super) fn bgp_peer(&mut self) -> Result<Value> {
        let address = self.metadata.need("peerIP")?;
        let address = parse_address(&address).map_err(|reason| self.metadata.error("peerIP", reason))?;
        let scope = self.metadata.need("scope")?;
        let node = self.metadata.text("node")?;
        let mut spec = Map::new();
        spec.insert("peerIP".into(), address.to_string().into());
        let name = names::of_address(&address.to_string());
        let name = match (scope.as_str(), node) {
            ("global", None) => format!("global-{name}"),
            ("global", Some(_)) => {
                return Err(self
                    .metadata
                    .error("node", "a global peer has none: remove it, or write scope: node"));
            }
            ("node", None) => {
                return Err(self.metadata.error("node", "missing: scope node needs the node's name"));
            }
            ("node", Some(node)) => {
                let node = self.renamed("metadata.node", &node);
                let name = format!("node-{node}-{name}");
                spec.insert("node".into(), node.into());
                name
            }
            (other, _) => {
                return Err(self.metadata.error("scope", format!("{other:?} is neither global nor node")));
            }
        };
        match self.spec.take("asNumber") {
            Some(number) => spec.insert("asNumber".into(), number),
            None => return Err(self.spec.error("asNumber", "missing")),
        };
        Ok(object("BGPPeer", json!({ "name": name }), spec))
    }

    pub(super) fn pool(&mut self) -> Result<Value> {
        let text = self.metadata.need("cidr")?;
        let cidr: IpNet = text.parse().map_err(|_| {
            self.metadata.error("cidr", format!("{text:?} is not a CIDR such as 10.65.0.0/16"))
        })?;
        let cidr = cidr.trunc();
        if cidr.to_string() != text {
            self.warn("metadata.cidr", format!("{text} is written {cidr}"));
        }
        let mut mode = "Never";
        if let Some(mut ipip) = self.spec.object("ipip")? {
            let named = ipip.text("mode")?;
            if ipip.truth("enabled")? {
                mode = match named.as_deref() {
                    None | Some("always") => "Always",
                    Some("cross-subnet") => "CrossSubnet",
                    Some(other) => {
                        return Err(
                            ipip.error("mode", format!("{other:?} is neither always nor cross-subnet"))
                        );
                    }
                };
            }
            for field in ipip.left() {
                self.warn(&field, "not known: left out");
            }
        }
        let mut spec = Map::new();
        spec.insert("cidr".into(), cidr.to_string().into());
        spec.insert("ipipMode".into(), mode.into());
        spec.insert("natOutgoing".into(), self.spec.truth("nat-outgoing")?.into());
        spec.insert("disabled".into(), self.spec.truth("disabled")?.into());
        Ok(object("IPPool", json!({ "name": names::of_address(&cidr.to_string()) }), spec))
    }

    pub(super) fn node(&mut self) -> Result<Value> {
        let name = self.metadata.need("name")?;
        let name = self.renamed("metadata.name", &name);
        let mut spec = Map::new();
        if let Some(mut old) = self.spec.object("bgp")? {
            let mut bgp = Map::new();
            for field in ["asNumber", "ipv4Address", "ipv6Address"] {
                bgp.extend(old.take(field).map(|value| (field.to_owned(), value)));
            }
            for field in old.left() {
                self.warn(&field, "not known: left out");
            }
            if !bgp.is_empty() {
                spec.insert("bgp".into(), bgp.into());
            }
        }
        let mut metadata = json!({ "name": name });
        let labels = self.metadata.labels("labels")?;
        if !labels.is_empty() {
            metadata["labels"] = labels.into();
        }
        Ok(object("Node", metadata, spec))
    }
}

pub(super) fn object(kind: &str, metadata: Value, spec: Map<String, Value>) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec })
}
