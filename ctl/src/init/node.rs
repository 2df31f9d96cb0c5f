//! What the Node object of this host says.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use syncer_common::apis::Resource;
use syncer_common::apis::scalars::AsNumber;

use super::detect::{Family, Interface, Method};
use super::options::Options;

/// The field of the address in `spec.bgp`.
fn field(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4Address",
        Family::V6 => "ipv6Address",
    }
}

fn text<'a>(node: &'a Resource, pointer: &str) -> &'a str {
    node.spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The address that a Node object names, with the length of its network if it has one.
pub fn address(node: &Resource, family: Family) -> Option<IpNet> {
    parse(text(node, &format!("/bgp/{}", field(family))))
}

/// With its host bits; a bare address is a network of its own.
fn parse(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// The node's addresses are decided: what they are now, and what was said about them.
#[derive(Debug, Default)]
pub struct Decided {
    /// In words, for the operator.
    pub notes: Vec<String>,
    /// Families whose address changed.
    pub changed: Vec<(Family, IpNet)>,
}

/// Writes the addresses, AS number and reference into the Node's spec.
pub fn decide(node: &mut Resource, options: &Options, interfaces: &[Interface]) -> Result<Decided> {
    let mut decided = Decided::default();
    let internal: Vec<IpAddr> = node
        .spec
        .get("addresses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|address| address["type"] == "InternalIP")
        .filter_map(|address| address["address"].as_str()?.parse().ok())
        .collect();
    for (family, wanted, method, variable) in [
        (Family::V4, &options.ip, &options.ip_autodetection_method, "IP"),
        (Family::V6, &options.ip6, &options.ip6_autodetection_method, "IP6"),
    ] {
        let stored = address(node, family);
        let wanted = wanted.as_deref().filter(|text| !text.is_empty());
        let found = match wanted {
            Some("none") => stored,
            None if stored.is_some() || family == Family::V6 => stored,
            None | Some("autodetect") => {
                let found = Method::parse(method)
                    .with_context(|| format!("{variable}_AUTODETECTION_METHOD"))?
                    .detect(family, interfaces, &internal);
                match (found, stored) {
                    (Some(found), _) => Some(found),
                    (None, Some(stored)) => {
                        let note = format!(
                            "no IPv{} address found by {method}: {stored} stays, as it is stored",
                            family.number()
                        );
                        decided.notes.push(note);
                        Some(stored)
                    }
                    (None, None) => bail!(
                        "no IPv{} address of this host found by {method}: set {variable} to the address, or \
                         {variable}_AUTODETECTION_METHOD to another method",
                        family.number()
                    ),
                }
            }
            Some(literal) => {
                let net = parse(literal).filter(|net| Family::of(net.addr()) == family);
                let net = net.with_context(|| {
                    format!(
                        "{variable}: {literal:?} is no IPv{} address, `autodetect` or `none`",
                        family.number()
                    )
                })?;
                Some(if literal.contains('/') { net } else { on_interface(net, interfaces) })
            }
        };
        let Some(found) = found else { continue };
        if stored != Some(found) {
            set(&mut node.spec, "bgp", field(family), found.to_string().into());
            decided.changed.push((family, found));
        }
    }
    if let Some(number) = options.as_number.as_deref().filter(|text| !text.is_empty()) {
        let AsNumber(number) = number.parse().map_err(|error| anyhow::anyhow!("AS: {number:?}: {error}"))?;
        set(&mut node.spec, "bgp", "asNumber", number.into());
    }
    if let Some(name) = options.k8s_node_ref.as_deref().filter(|text| !text.is_empty()) {
        reference(&mut node.spec, name);
    }
    Ok(decided)
}

/// A bare address has the length of the interface that holds it.
fn on_interface(address: IpNet, interfaces: &[Interface]) -> IpNet {
    let mut held = interfaces.iter().flat_map(|interface| &interface.nets);
    held.find(|net| net.addr() == address.addr()).copied().unwrap_or(address)
}

pub fn set(spec: &mut Value, group: &str, name: &str, value: Value) {
    if !spec.is_object() {
        *spec = json!({});
    }
    let spec = spec.as_object_mut().expect("it was made one");
    let place = match group {
        "" => spec,
        group => {
            let group = spec.entry(group).or_insert_with(|| json!({}));
            if !group.is_object() {
                *group = json!({});
            }
            group.as_object_mut().expect("it was made one")
        }
    };
    place.insert(name.into(), value);
}

/// Removes a field, and the group that it leaves empty.
pub fn unset(spec: &mut Value, group: &str, name: &str) {
    let Some(spec) = spec.as_object_mut() else { return };
    if group.is_empty() {
        spec.remove(name);
    } else if let Some(fields) = spec.get_mut(group).and_then(Value::as_object_mut) {
        fields.remove(name);
        if fields.is_empty() {
            spec.remove(group);
        }
    }
}

fn reference(spec: &mut Value, name: &str) {
    if !spec.is_object() {
        *spec = Value::Object(Map::new());
    }
    let spec = spec.as_object_mut().expect("it was made one");
    let references = spec.entry("orchRefs").or_insert_with(|| json!([]));
    let Some(references) = references.as_array_mut() else { return };
    match references.iter_mut().find(|reference| reference["orchestrator"] == "k8s") {
        Some(reference) => reference["nodeName"] = name.into(),
        None => references.push(json!({"nodeName": name, "orchestrator": "k8s"})),
    }
}

/// Another node that has an address of this one.
pub fn taken(node: &Resource, others: &[Resource]) -> Result<()> {
    for other in others.iter().filter(|other| other.metadata.name != node.metadata.name) {
        for family in Family::BOTH {
            let (Some(own), Some(theirs)) = (address(node, family), address(other, family)) else { continue };
            if own.addr() == theirs.addr() {
                bail!(
                    "{} is the address of Node({}) already: give each node its own (IP{}), delete the other if it \
                     is gone, or set DISABLE_NODE_IP_CHECK=true",
                    own.addr(),
                    other.metadata.name,
                    if family == Family::V6 { "6" } else { "" }
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use syncer_common::apis::ApiKind;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(args: &[&str]) -> Options {
        Line::parse_from(std::iter::once("init").chain(args.iter().copied())).options
    }

    fn node(name: &str, spec: Value) -> Resource {
        let mut node = Resource::named(ApiKind::by_kind("Node").unwrap(), "", name);
        node.spec = spec;
        node
    }

    fn host() -> Vec<Interface> {
        vec![Interface {
            name: "eth0".into(),
            index: 2,
            up: true,
            nets: vec!["192.0.2.5/24".parse().unwrap(), "2001:db8::5/64".parse().unwrap()],
        }]
    }

    #[test]
    fn addresses_are_detected_kept_or_given() {
        for (args, stored, expected) in [
            (&[][..], json!({}), json!({"bgp": {"ipv4Address": "192.0.2.5/24"}})),
            (
                &[],
                json!({"bgp": {"ipv4Address": "10.0.0.9/8"}}),
                json!({"bgp": {"ipv4Address": "10.0.0.9/8"}}),
            ),
            (
                &["--ip", "autodetect", "--ip6", "autodetect"],
                json!({"bgp": {"ipv4Address": "10.0.0.9/8"}}),
                json!({"bgp": {"ipv4Address": "192.0.2.5/24", "ipv6Address": "2001:db8::5/64"}}),
            ),
            (&["--ip", "none"], json!({}), json!({})),
            (&["--ip", "192.0.2.5"], json!({}), json!({"bgp": {"ipv4Address": "192.0.2.5/24"}})),
            (&["--ip", "192.0.2.7"], json!({}), json!({"bgp": {"ipv4Address": "192.0.2.7/32"}})),
            (
                &["--ip", "192.0.2.7/20", "--as", "65001", "--k8s-node-ref", "k"],
                json!({"orchRefs": [{"nodeName": "old", "orchestrator": "k8s"}]}),
                json!({"bgp": {"asNumber": 65001, "ipv4Address": "192.0.2.7/20"},
                       "orchRefs": [{"nodeName": "k", "orchestrator": "k8s"}]}),
            ),
        ] {
            let mut node = node("n1", stored.clone());
            decide(&mut node, &options(args), &host()).unwrap();
            assert_eq!(node.spec, expected, "{args:?} on {stored}");
        }
    }

    #[test]
    fn a_stored_address_outlives_a_detection_that_fails() {
        let stored = json!({"bgp": {"ipv4Address": "10.0.0.9/8"}});
        let mut node = node("n1", stored.clone());
        let options = options(&["--ip", "autodetect", "--ip-autodetection-method", "interface=eth7"]);
        let decided = decide(&mut node, &options, &host()).unwrap();
        assert_eq!(node.spec, stored);
        assert!(decided.notes[0].contains("10.0.0.9/8 stays"), "{decided:?}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_variable() {
        for (args, part) in [
            (&["--ip", "2001:db8::5"][..], "IP: \"2001:db8::5\" is no IPv4 address"),
            (&["--ip6", "x"], "IP6: \"x\""),
            (&["--ip-autodetection-method", "interface=eth7"], "set IP to the address"),
            (&["--ip-autodetection-method", "luck"], "IP_AUTODETECTION_METHOD"),
            (&["--as", "minus"], "AS: \"minus\""),
        ] {
            let error = decide(&mut node("n1", json!({})), &options(args), &host()).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }

    #[test]
    fn an_address_that_another_node_has_is_refused() {
        let own = node("n1", json!({"bgp": {"ipv4Address": "192.0.2.5/24"}}));
        let other = node("n2", json!({"bgp": {"ipv4Address": "192.0.2.5/16"}}));
        assert!(taken(&own, std::slice::from_ref(&own)).is_ok());
        let error = taken(&own, &[other]).unwrap_err().to_string();
        assert!(error.contains("Node(n2)") && error.contains("DISABLE_NODE_IP_CHECK"), "{error}");
    }
}
