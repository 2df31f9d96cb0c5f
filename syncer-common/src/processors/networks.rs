//! Pools and network sets.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proto::model as v1;

use super::Outcome;
use super::addresses::parse_net;
use super::findings::Findings;
use super::rules::NAMESPACE_LABEL;
use crate::apis::network::IpPoolSpec;
use crate::apis::policy::NetworkSetSpec;
use crate::apis::{FieldError, Resource};
use crate::model::{Key, ResourceKey, Update, Value};

pub(super) fn convert_pool(resource: &Resource) -> Result<Outcome, FieldError> {
    let spec: IpPoolSpec = resource.typed_spec()?;
    let cidr = spec.cidr.parse::<IpNet>().map(|cidr| cidr.trunc()).map_err(|_| {
        FieldError::new("spec.cidr", format!("{:?} is not a CIDR such as 10.65.0.0/16", spec.cidr))
    })?;
    let assignment_mode =
        if spec.assignment_mode.is_empty() { "Automatic".to_owned() } else { spec.assignment_mode };
    let pool = v1::IpPool {
        cidr: cidr.to_string(),
        ipip_mode: encapsulation(&spec.ipip_mode, "spec.ipipMode")?,
        vxlan_mode: encapsulation(&spec.vxlan_mode, "spec.vxlanMode")?,
        masquerade: spec.nat_outgoing,
        disabled: spec.disabled,
        disable_bgp_export: spec.disable_bgp_export,
        allowed_uses: spec.allowed_uses,
        assignment_mode,
    };
    Ok(Outcome::Shared(Box::new((Key::IpPool { cidr }, Value::IpPool(pool)))))
}

fn encapsulation(mode: &str, field: &str) -> Result<String, FieldError> {
    Ok(match mode {
        "" | "Never" => "",
        "Always" => "always",
        "CrossSubnet" => "cross-subnet",
        other => {
            return Err(FieldError::new(field, format!("{other:?} is none of Never, Always, CrossSubnet")));
        }
    }
    .to_owned())
}

pub(super) fn network_set_key(key: &ResourceKey) -> Key {
    Key::NetworkSet { name: format!("{}/{}", key.namespace, key.name) }
}

/// Bad networks are left out: a set has its other members all the same.
fn network_set(
    resource: &Resource,
    labels: BTreeMap<String, String>,
    profile_ids: Vec<String>,
    findings: &mut Findings,
) -> Result<Value, FieldError> {
    let spec: NetworkSetSpec = resource.typed_spec()?;
    let mut nets = Vec::with_capacity(spec.nets.len());
    for (index, net) in spec.nets.iter().enumerate() {
        match parse_net(net) {
            Ok(net) => nets.push(net.to_string()),
            Err(reason) => findings.note(format!("spec.nets[{index}]"), reason),
        }
    }
    Ok(Value::NetworkSet(v1::NetworkSet { nets, labels, profile_ids }))
}

pub(super) fn convert_network_set(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Update, FieldError> {
    let mut labels = resource.metadata.labels.clone();
    labels.insert(NAMESPACE_LABEL.to_owned(), key.namespace.clone());
    let profiles = vec![format!("kns.{}", key.namespace)];
    Ok(Update::set(network_set_key(key), network_set(resource, labels, profiles, findings)?))
}

pub(super) fn convert_global_network_set(
    key: &ResourceKey,
    resource: &Resource,
    findings: &mut Findings,
) -> Result<Outcome, FieldError> {
    let value = network_set(resource, resource.metadata.labels.clone(), Vec::new(), findings)?;
    Ok(Outcome::Shared(Box::new((Key::NetworkSet { name: key.name.clone() }, value))))
}
