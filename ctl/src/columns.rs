//! The tables of `get`: headings and cells as `calicoctl` prints them.

use anyhow::{Result, anyhow};
use serde_json::Value;
use syncer_common::apis::Resource;

type Column = (&'static str, fn(&Resource) -> String);

const NAME: Column = ("NAME", |r| r.metadata.name.clone());

/// The columns of `get KIND`.
pub fn main(kind: &str) -> &'static [Column] {
    match kind {
        "IPPool" => &[NAME, ("CIDR", |r| text(r, "cidr")), ("SELECTOR", |r| or(r, "nodeSelector", "all()"))],
        "Tier" => &[NAME, ("ORDER", |r| text(r, "order"))],
        "BGPPeer" => &[
            NAME,
            ("PEERIP", |r| text(r, "peerIP")),
            ("NODE", peer_node),
            ("ASN", |r| or(r, "asNumber", "0")),
        ],
        "BGPConfiguration" => &[
            NAME,
            ("LOGSEVERITY", |r| text(r, "logSeverityScreen")),
            ("MESHENABLED", |r| text(r, "nodeToNodeMeshEnabled")),
            ("ASNUMBER", |r| or(r, "asNumber", "-")),
        ],
        "HostEndpoint" => &[NAME, ("NODE", |r| text(r, "node"))],
        "WorkloadEndpoint" => &[
            ("WORKLOAD", workload),
            ("NODE", |r| text(r, "node")),
            ("NETWORKS", |r| text(r, "ipNetworks")),
            ("INTERFACE", |r| text(r, "interfaceName")),
        ],
        "IPAMBlock" => &[("CIDR", |r| text(r, "cidr")), ("AFFINITY", |r| text(r, "affinity"))],
        "BlockAffinity" => &[
            NAME,
            ("CIDR", |r| text(r, "cidr")),
            ("NODE", |r| text(r, "node")),
            ("STATE", |r| text(r, "state")),
        ],
        _ => &[NAME],
    }
}

/// The columns of `get KIND -o wide`.
pub fn wide(kind: &str) -> &'static [Column] {
    match kind {
        "IPPool" => &[
            NAME,
            ("CIDR", |r| text(r, "cidr")),
            ("NAT", |r| or(r, "natOutgoing", "false")),
            ("IPIPMODE", |r| or(r, "ipipMode", "Never")),
            ("VXLANMODE", |r| or(r, "vxlanMode", "Never")),
            ("DISABLED", |r| or(r, "disabled", "false")),
            ("SELECTOR", |r| or(r, "nodeSelector", "all()")),
        ],
        "Node" => &[
            NAME,
            // In parentheses: not the node's own, but the cluster's default (`get` fills in a configured one).
            ("ASN", |r| or(r, "bgp.asNumber", "(64512)")),
            ("IPV4", |r| text(r, "bgp.ipv4Address")),
            ("IPV6", |r| text(r, "bgp.ipv6Address")),
        ],
        "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
            &[NAME, ("ORDER", |r| text(r, "order")), ("SELECTOR", |r| text(r, "selector"))]
        }
        "NetworkSet" | "GlobalNetworkSet" => &[NAME, ("NETS", |r| text(r, "nets"))],
        "Profile" => &[NAME, ("LABELS", |r| text(r, "labelsToApply"))],
        "Tier" => {
            &[NAME, ("ORDER", |r| text(r, "order")), ("DEFAULTACTION", |r| or(r, "defaultAction", "Deny"))]
        }
        "HostEndpoint" => &[
            NAME,
            ("NODE", |r| text(r, "node")),
            ("INTERFACE", |r| text(r, "interfaceName")),
            ("IPS", |r| text(r, "expectedIPs")),
            ("PROFILES", |r| text(r, "profiles")),
        ],
        "WorkloadEndpoint" => &[
            NAME,
            ("WORKLOAD", workload),
            ("NODE", |r| text(r, "node")),
            ("NETWORKS", |r| text(r, "ipNetworks")),
            ("INTERFACE", |r| text(r, "interfaceName")),
            ("PROFILES", |r| text(r, "profiles")),
            ("NATS", |r| text(r, "ipNATs")),
        ],
        other => main(other),
    }
}

/// The columns with these headings.
pub fn chosen(kind: &str, headings: &[String]) -> Result<Vec<Column>> {
    let all = || wide(kind).iter().chain(main(kind));
    let column = |heading: &String| {
        all().find(|(known, _)| known.eq_ignore_ascii_case(heading)).copied().ok_or_else(|| {
            let known: Vec<&str> = wide(kind).iter().map(|(heading, _)| *heading).collect();
            anyhow!("{kind} has no column {heading}: choose from {}", known.join(","))
        })
    };
    headings.iter().map(column).collect()
}

/// Three blanks between columns, none at the end of a line.
pub fn table(columns: &[Column], rows: &[Resource], with_namespace: bool) -> String {
    let namespace: [Column; 1] = [("NAMESPACE", |r| r.metadata.namespace.clone())];
    let columns: Vec<_> = namespace.iter().filter(|_| with_namespace).chain(columns).collect();
    let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, cell)| cell(row)).collect()));
    let widths: Vec<_> = (0..columns.len())
        .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<_> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("   ").trim_end();
        text.push('\n');
    }
    text
}

fn text(resource: &Resource, field: &str) -> String {
    or(resource, field, "")
}

/// A field of the spec as a cell, or what stands for it when it is absent.
fn or(resource: &Resource, field: &str, absent: &str) -> String {
    let value = field.split('.').try_fold(&resource.spec, |value, part| value.get(part));
    value.map_or_else(|| absent.to_owned(), cell)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(members) => {
            members.iter().map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

fn peer_node(resource: &Resource) -> String {
    match (text(resource, "node"), text(resource, "nodeSelector")) {
        (node, _) if !node.is_empty() => node,
        (_, selector) if !selector.is_empty() => selector,
        _ => "(global)".into(),
    }
}

fn workload(resource: &Resource) -> String {
    ["pod", "containerID", "workload"]
        .iter()
        .map(|field| text(resource, field))
        .find(|name| !name.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(kind: &str, name: &str, spec: Value) -> Resource {
        let document = json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec});
        Resource::from_json(document).unwrap()
    }

    #[test]
    fn pools_print_as_calicoctl_prints_them() {
        let pool = resource(
            "IPPool",
            "default-ipv4-ippool",
            json!({"cidr": "10.244.0.0/16", "natOutgoing": true, "ipipMode": "Always"}),
        );
        assert_eq!(
            table(main("IPPool"), std::slice::from_ref(&pool), false),
            "NAME                  CIDR            SELECTOR\ndefault-ipv4-ippool   10.244.0.0/16   all()\n"
        );
        assert_eq!(
            table(wide("IPPool"), &[pool], false),
            "NAME                  CIDR            NAT    IPIPMODE   VXLANMODE   DISABLED   SELECTOR\n\
             default-ipv4-ippool   10.244.0.0/16   true   Always     Never       false      all()\n"
        );
    }

    #[test]
    fn peers_say_whom_they_belong_to() {
        let global = resource("BGPPeer", "node-peer-to-rr", json!({"peerSelector": "has(route-reflector)"}));
        let selected = resource("BGPPeer", "rr-to-rr-peer", json!({"nodeSelector": "has(route-reflector)"}));
        assert_eq!(
            table(main("BGPPeer"), &[global, selected], false),
            "NAME              PEERIP   NODE                   ASN\n\
             node-peer-to-rr            (global)               0\n\
             rr-to-rr-peer              has(route-reflector)   0\n"
        );
    }

    #[test]
    fn all_namespaces_put_the_namespace_first() {
        let endpoint = resource(
            "WorkloadEndpoint",
            "n1-k8s-web-eth0",
            json!({"node": "n1", "pod": "web", "ipNetworks": ["10.0.0.1/32"], "interfaceName": "cali1"}),
        );
        assert_eq!(
            table(main("WorkloadEndpoint"), &[endpoint], true),
            "NAMESPACE   WORKLOAD   NODE   NETWORKS      INTERFACE\ndefault     web        n1     10.0.0.1/32   cali1\n"
        );
    }
}
