//! The functions that BGPFilter objects become. Both syntaxes have them in the same words.

use super::MAX_PREFERENCE;
use super::text::Text;
use crate::bgp::{Community, Direction, Family, Filter, NetMatch, Operation, Operator, PeerType, Rule};

/// The function of one direction and family; nothing where the filter has no rules for them.
pub fn function(out: &mut Text, filter: &Filter, direction: Direction, family: Family) {
    let rules = filter.rules(direction, family);
    if rules.is_empty() {
        return;
    }
    let argument = if filter.by_peer_type(direction, family) { "bool is_same_as" } else { "" };
    out.line(format_args!(
        "function {}({argument}) {{ # BGPFilter({})",
        name(filter, direction, family),
        filter.name
    ));
    rules.iter().for_each(|rule| self::rule(out, rule));
    out.line("}");
}

/// Calls of the filters of a peering.
pub fn calls<'a>(
    filters: impl Iterator<Item = &'a Filter>,
    direction: Direction,
    family: Family,
    same_as: bool,
) -> Vec<String> {
    filters
        .filter(|filter| !filter.rules(direction, family).is_empty())
        .map(|filter| {
            let argument =
                if filter.by_peer_type(direction, family) { same_as.to_string() } else { String::new() };
            format!("{}({argument});", name(filter, direction, family))
        })
        .collect()
}

fn name(filter: &Filter, direction: Direction, family: Family) -> String {
    let direction = match direction {
        Direction::Import => "import",
        Direction::Export => "export",
    };
    format!("'bgp_{}_{direction}FilterV{}'", filter.short_name(), family.version())
}

fn rule(out: &mut Text, rule: &Rule) {
    let mut conditions: Vec<String> = Vec::new();
    conditions.extend(rule.net.as_ref().map(net));
    if rule.remote_peers {
        conditions.push("((defined(source))&&(source ~ [ RTS_BGP ]))".to_owned());
    }
    if let Some(interface) = &rule.interface {
        conditions.push(format!("((defined(ifname))&&(ifname ~ \"{interface}\"))"));
    }
    if let Some(community) = &rule.community {
        let list = match community {
            Community::Standard(..) => "bgp_community",
            Community::Large(..) => "bgp_large_community",
        };
        conditions.push(format!("({} ~ {list})", tuple(community)));
    }
    if !rule.as_path_prefix.is_empty() {
        conditions.push(format!("(bgp_path ~ [= {} * =])", numbers(&rule.as_path_prefix, " ")));
    }
    if let Some(priority) = rule.priority {
        let preference = MAX_PREFERENCE - priority;
        conditions.push(format!("(defined(bgp_local_pref)&&(bgp_local_pref = {preference}))"));
    }
    let mut actions: Vec<String> = rule.operations.iter().map(operation).collect();
    actions.push(if rule.accept { "accept;" } else { "reject;" }.to_owned());
    let mut statement = actions.join(" ");
    if !conditions.is_empty() {
        statement = format!("if ({}) then {{ {statement} }}", conditions.join("&&"));
    }
    match rule.peer_type {
        None => {}
        Some(PeerType::Internal) => statement = format!("if (is_same_as) then {{ {statement} }}"),
        Some(PeerType::External) => statement = format!("if (!is_same_as) then {{ {statement} }}"),
    }
    out.line(format_args!("  {statement}"));
}

fn net(net: &NetMatch) -> String {
    let written = &net.written;
    match net.lengths {
        // A network is never equal to a set: it is in it or not.
        Some((min, max)) => {
            let operator = match net.operator {
                Operator::Equal | Operator::In => "~",
                Operator::NotEqual | Operator::NotIn => "!~",
            };
            format!("(net {operator} [ {written}{{{min},{max}}} ])")
        }
        None => {
            let operator = match net.operator {
                Operator::Equal => "=",
                Operator::NotEqual => "!=",
                Operator::In => "~",
                Operator::NotIn => "!~",
            };
            format!("(net {operator} {written})")
        }
    }
}

fn operation(operation: &Operation) -> String {
    match operation {
        Operation::AddCommunity(community) => add(community),
        // Each call puts one number in front, so the first is given last.
        Operation::PrependAsPath(path) => path
            .iter()
            .rev()
            .map(|number| format!("bgp_path.prepend({number});"))
            .collect::<Vec<_>>()
            .join(" "),
        Operation::SetPriority(priority) => format!("bgp_local_pref = {};", MAX_PREFERENCE - priority),
    }
}

/// The statement that gives a route a community.
pub fn add(community: &Community) -> String {
    let list = match community {
        Community::Standard(..) => "bgp_community",
        Community::Large(..) => "bgp_large_community",
    };
    format!("{list}.add({});", tuple(community))
}

fn tuple(community: &Community) -> String {
    match community {
        Community::Standard(a, b) => format!("({a}, {b})"),
        Community::Large(a, b, c) => format!("({a}, {b}, {c})"),
    }
}

fn numbers(numbers: &[u32], between: &str) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}
