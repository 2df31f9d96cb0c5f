//! BGPFilter objects, typed: which routes a peering takes and gives.
//!
//! A filter counts as a whole. With one rule that cannot be used it would pass other routes than it was
//! written to pass, so it is unusable, and the peerings that name it are not opened.

use ipnet::IpNet;
use syncer_common::model::values;
use syncer_common::model::values::bgp_filter_operation::Operation as Given;

use super::aggregates::Community;
use super::{Family, Problem};

/// Longer names get a shorter function name: BIRD's symbols end at 64 characters.
const MAX_NAME: usize = 45;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Import,
    Export,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub name: String,
    pub import_v4: Vec<Rule>,
    pub export_v4: Vec<Rule>,
    pub import_v6: Vec<Rule>,
    pub export_v6: Vec<Rule>,
}

/// What is absent matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub accept: bool,
    pub net: Option<NetMatch>,
    /// Only routes from BGP.
    pub remote_peers: bool,
    pub interface: Option<String>,
    pub community: Option<Community>,
    pub as_path_prefix: Vec<u32>,
    pub priority: Option<u32>,
    pub peer_type: Option<PeerType>,
    pub operations: Vec<Operation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetMatch {
    pub net: IpNet,
    /// The network in the words of its object: `5000::0/64` stays that.
    pub written: String,
    pub operator: Operator,
    /// Of routes, both inclusive.
    pub lengths: Option<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerType {
    Internal,
    External,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    AddCommunity(Community),
    /// The path begins with these numbers afterwards.
    PrependAsPath(Vec<u32>),
    SetPriority(u32),
}

impl Filter {
    pub fn rules(&self, direction: Direction, family: Family) -> &[Rule] {
        match (direction, family) {
            (Direction::Import, Family::V4) => &self.import_v4,
            (Direction::Export, Family::V4) => &self.export_v4,
            (Direction::Import, Family::V6) => &self.import_v6,
            (Direction::Export, Family::V6) => &self.export_v6,
        }
    }

    /// Whether its function has to be told what kind of peer it serves.
    pub fn by_peer_type(&self, direction: Direction, family: Family) -> bool {
        self.rules(direction, family).iter().any(|rule| rule.peer_type.is_some())
    }

    pub(super) fn parse(name: &str, given: &values::BgpFilter) -> Result<Filter, Problem> {
        let list = |rules: &[values::BgpFilterRule], field: &str, family| {
            let rules = rules.iter().enumerate();
            rules
                .map(|(index, rule)| {
                    self::rule(rule, family).map_err(|(member, reason)| {
                        Problem::new(
                            format!("BGPFilter({name})"),
                            format!("spec.{field}[{index}].{member}"),
                            format!("{reason}; the filter cannot be used"),
                        )
                    })
                })
                .collect::<Result<Vec<Rule>, Problem>>()
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Problem::new(
                format!("BGPFilter({name:?})"),
                "metadata.name",
                "not a name that BIRD can use; the filter cannot be used",
            ));
        }
        Ok(Filter {
            name: name.to_owned(),
            import_v4: list(&given.import_v4, "importV4", Family::V4)?,
            export_v4: list(&given.export_v4, "exportV4", Family::V4)?,
            import_v6: list(&given.import_v6, "importV6", Family::V6)?,
            export_v6: list(&given.export_v6, "exportV6", Family::V6)?,
        })
    }

    /// The part of a function's name that stands for the filter.
    pub fn short_name(&self) -> String {
        use sha2::{Digest, Sha256};
        if self.name.len() <= MAX_NAME {
            return self.name.clone();
        }
        let digest = Sha256::digest(self.name.as_bytes());
        let hash: String = digest[..8].iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{}_{hash}", &self.name[..28])
    }
}

type Fault = (&'static str, String);

fn rule(given: &values::BgpFilterRule, family: Family) -> Result<Rule, Fault> {
    let accept = match given.action.as_str() {
        "Accept" => true,
        "Reject" => false,
        other => return Err(("action", format!("{other:?} is neither Accept nor Reject"))),
    };
    let remote_peers = match given.source.as_str() {
        "" => false,
        "RemotePeers" => true,
        other => return Err(("source", format!("{other:?} is not RemotePeers"))),
    };
    let peer_type = match given.peer_type.as_str() {
        "" => None,
        "iBGP" => Some(PeerType::Internal),
        "eBGP" => Some(PeerType::External),
        other => return Err(("peerType", format!("{other:?} is neither iBGP nor eBGP"))),
    };
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '#' | ';');
    if !given.interface.chars().all(plain) {
        return Err(("interface", format!("{:?} is not an interface's name or pattern", given.interface)));
    }
    let community = match given.communities.as_slice() {
        [] => None,
        [one] => Some(community(one).map_err(|reason| ("communities", reason))?),
        _ => return Err(("communities", "more than one value".to_owned())),
    };
    if !accept && !given.operations.is_empty() {
        return Err(("operations", "only an Accept rule can change a route".to_owned()));
    }
    Ok(Rule {
        accept,
        net: net(given, family)?,
        remote_peers,
        interface: Some(given.interface.clone()).filter(|name| !name.is_empty()),
        community,
        as_path_prefix: given.as_path_prefix.clone(),
        priority: given.priority.map(|value| priority(value).map_err(|why| ("priority", why))).transpose()?,
        peer_type,
        operations: given
            .operations
            .iter()
            .map(|given| operation(given).map_err(|reason| ("operations", reason)))
            .collect::<Result<_, _>>()?,
    })
}

fn net(given: &values::BgpFilterRule, family: Family) -> Result<Option<NetMatch>, Fault> {
    let lengths_given = given.prefix_length_min.is_some() || given.prefix_length_max.is_some();
    if given.cidr.is_empty() {
        return if lengths_given {
            Err(("prefixLength", "given without a cidr".to_owned()))
        } else {
            Ok(None)
        };
    }
    let net = match given.cidr.parse::<IpNet>() {
        Ok(net) if Family::of_net(net) == family => net,
        _ => return Err(("cidr", format!("{:?} is not a CIDR of this family", given.cidr))),
    };
    let operator = match given.match_operator.as_str() {
        "Equal" => Operator::Equal,
        "NotEqual" => Operator::NotEqual,
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        other => {
            return Err(("matchOperator", format!("{other:?} is none of Equal, NotEqual, In, NotIn")));
        }
    };
    let lengths = if lengths_given {
        let bits = u32::from(family.bits());
        let own = u32::from(net.prefix_len());
        let min = given.prefix_length_min.unwrap_or(own).clamp(own, bits);
        let max = given.prefix_length_max.unwrap_or(bits).min(bits);
        if max < min {
            return Err(("prefixLength", format!("no route inside {net} is as short as {max}")));
        }
        // Both are at most 128.
        Some((min as u8, max as u8))
    } else {
        None
    };
    // A network with host bits is a syntax error to every BIRD.
    let written = if net == net.trunc() { given.cidr.clone() } else { net.trunc().to_string() };
    Ok(Some(NetMatch { net: net.trunc(), written, operator, lengths }))
}

fn operation(given: &values::BgpFilterOperation) -> Result<Operation, String> {
    match &given.operation {
        Some(Given::AddCommunity(value)) => Ok(Operation::AddCommunity(community(value)?)),
        Some(Given::PrependAsPath(path)) => Ok(Operation::PrependAsPath(path.numbers.clone())),
        Some(Given::SetPriority(value)) => Ok(Operation::SetPriority(priority(*value)?)),
        None => Err("an operation that is not known".to_owned()),
    }
}

fn community(text: &str) -> Result<Community, String> {
    Community::parse(text).ok_or_else(|| format!("{text:?} is not a community"))
}

fn priority(value: u32) -> Result<u32, String> {
    if (1..super::model::MAX_ROUTE_PRIORITY).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{value} is not a priority"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(change: impl FnOnce(&mut values::BgpFilterRule)) -> values::BgpFilterRule {
        let mut rule = values::BgpFilterRule { action: "Accept".into(), ..Default::default() };
        change(&mut rule);
        rule
    }

    #[test]
    fn one_bad_rule_makes_the_filter_unusable_and_is_named() {
        let good = accept(|_| {});
        let bad = accept(|rule| {
            rule.cidr = "10.0.0.0/8".into();
            rule.match_operator = "Within".into();
        });
        let given = values::BgpFilter { import_v4: vec![good, bad], ..Default::default() };
        let problem = Filter::parse("f", &given).unwrap_err();
        assert_eq!(
            (problem.object.as_str(), problem.field.as_str()),
            ("BGPFilter(f)", "spec.importV4[1].matchOperator")
        );
    }

    #[test]
    fn host_bits_are_masked_and_lengths_stay_within_the_family() {
        let given = accept(|rule| {
            rule.cidr = "10.2.0.1/16".into();
            rule.match_operator = "In".into();
            rule.prefix_length_min = Some(4);
            rule.prefix_length_max = Some(99);
        });
        let found = net(&given, Family::V4).unwrap().unwrap();
        assert_eq!((found.written.as_str(), found.lengths), ("10.2.0.0/16", Some((16, 32))));
        assert!(net(&given, Family::V6).is_err());
    }

    #[test]
    fn long_names_are_shortened_as_calico_does() {
        let name = "this-bgp-filter-name-is-clearly-longer-than-45-characters";
        let filter = Filter::parse(name, &values::BgpFilter::default()).unwrap();
        assert_eq!(filter.short_name(), "this-bgp-filter-name-is-clea_FED461E4A1772591");
    }
}
