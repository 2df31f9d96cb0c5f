//! What a rule matches, as one iptables match, after as many helping rules as it needs.
//!
//! A rule that asks for more than one iptables rule can match (several CIDRs on a side, more ports than
//! `multiport` takes, numbers and named ports together) is computed in blocks over two scratch bits: each
//! block matches one such list, bit 0 says that all blocks so far matched, and the rule proper then asks for
//! bit 0. Differing from upstream, bit 1 is cleared before the third block and every later one: left set by
//! the block before, it would let any packet through.

use felix_calc::output::{Icmp, Protocol, Rule as PolicyRule};

use super::config::Marks;
use super::fragments::{Match, always, clear_mark, is_of_family, port_lists, set_mark, set_masked_mark};
use crate::iptables::{IpVersion, Rule};

/// The helping rules, and the match that is right once they have run.
pub struct Compiled {
    pub blocks: Vec<Rule>,
    pub matches: Match,
}

/// None when the rule can match nothing in this family.
pub fn compile(marks: &Marks, version: IpVersion, rule: &PolicyRule) -> Option<Compiled> {
    if !family_fits(rule, version) {
        return None;
    }
    // iptables takes one protocol per rule. Beside a protocol, one that is excluded says nothing, unless
    // both are the same.
    let excluded = match (&rule.protocol, &rule.not_protocol) {
        (Some(protocol), Some(excluded)) if protocol_number(protocol) == protocol_number(excluded) => {
            return None;
        }
        (Some(_), Some(_)) => None,
        (_, excluded) => excluded.as_ref(),
    };
    let mut src = Side::source(rule, version)?;
    let mut dst = Side::destination(rule, version)?;
    let protocol = rule.protocol.as_ref().map(protocol_name);
    let base = || match &protocol {
        Some(protocol) => Match::new().protocol(protocol),
        None => Match::new(),
    };

    let mut blocks =
        Blocks { scratch0: marks.scratch0, scratch1: marks.scratch1, count: 0, rules: Vec::new() };
    for side in [&mut src, &mut dst] {
        if side.ports.len() + side.named_ports.len() > 1 {
            let words = side.words;
            let numbers = std::mem::take(&mut side.ports).into_iter().map(|list| words.ports(base(), &list));
            let named = std::mem::take(&mut side.named_ports);
            let named = named.iter().map(|id| Match::new().set(version, id, words.with_port));
            blocks.positive(numbers.chain(named));
        }
    }
    for side in [&mut src, &mut dst] {
        if side.nets.len() > 1 {
            let words = side.words;
            blocks.positive(std::mem::take(&mut side.nets).into_iter().map(|net| words.net(net)));
        }
    }
    for side in [&mut src, &mut dst] {
        // iptables takes a side's address once per rule, negated or not.
        if !side.not_nets.is_empty() && side.nets.len() + side.not_nets.len() > 1 {
            let words = side.words;
            blocks.negative(std::mem::take(&mut side.not_nets).into_iter().map(|net| words.net(net)));
        }
    }

    let mut matches = base();
    src.add_positive(&mut matches, version);
    dst.add_positive(&mut matches, version);
    if let Some(icmp) = rule.icmp {
        matches.push(icmp_match(version, icmp, false));
    }
    if let Some(protocol) = excluded {
        matches.push(format!("! -p {}", protocol_name(protocol)));
    }
    src.add_negative(&mut matches, version);
    dst.add_negative(&mut matches, version);
    if let Some(icmp) = rule.not_icmp {
        matches.push(icmp_match(version, icmp, true));
    }
    if blocks.count > 0 {
        matches = matches.mark_set(marks.scratch0);
    }
    Some(Compiled { blocks: blocks.rules, matches })
}

fn family_fits(rule: &PolicyRule, version: IpVersion) -> bool {
    let number = match version {
        IpVersion::V4 => 4,
        IpVersion::V6 => 6,
    };
    if rule.ip_version != 0 && rule.ip_version != number {
        return false;
    }
    // Types of ICMP are matched by a module of the family, which takes its own protocol only: with the other
    // one the whole table would not load.
    let other_icmp = match version {
        IpVersion::V4 => 58,
        IpVersion::V6 => 1,
    };
    let has_icmp = rule.icmp.is_some() || rule.not_icmp.is_some();
    if has_icmp && rule.protocol == Some(Protocol::Number(other_icmp)) {
        return false;
    }
    // Only the names imply a family; the numbers 1 and 58 are matched as they are.
    match &rule.protocol {
        Some(Protocol::Name(name)) if name == "icmp" => version == IpVersion::V4,
        Some(Protocol::Name(name)) if name == "icmpv6" => version == IpVersion::V6,
        _ => true,
    }
}

fn protocol_name(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Number(number) => number.to_string(),
        Protocol::Name(name) => name.clone(),
    }
}

/// A name that has no number here stands for itself.
fn protocol_number(protocol: &Protocol) -> Result<u8, &str> {
    match protocol {
        Protocol::Number(number) => Ok(*number),
        Protocol::Name(name) => match name.as_str() {
            "icmp" => Ok(1),
            "tcp" => Ok(6),
            "udp" => Ok(17),
            "icmpv6" => Ok(58),
            "sctp" => Ok(132),
            "udplite" => Ok(136),
            other => Err(other),
        },
    }
}

fn icmp_match(version: IpVersion, icmp: Icmp, negated: bool) -> String {
    let (module, option) = match version {
        IpVersion::V4 => ("icmp", "--icmp-type"),
        IpVersion::V6 => ("icmp6", "--icmpv6-type"),
    };
    let not = if negated { "! " } else { "" };
    let kind = match icmp.code {
        Some(code) => format!("{}/{code}", icmp.icmp_type),
        None => icmp.icmp_type.to_string(),
    };
    format!("-m {module} {not}{option} {kind}")
}

/// How a side of the packet is spelled.
struct Words {
    net: &'static str,
    ports: &'static str,
    address: &'static str,
    with_port: &'static str,
}

const SOURCE: Words =
    Words { net: "--source", ports: "--source-ports", address: "src", with_port: "src,src" };
const DESTINATION: Words =
    Words { net: "--destination", ports: "--destination-ports", address: "dst", with_port: "dst,dst" };

impl Words {
    fn net(&self, net: &str) -> Match {
        Match::new().raw(format!("{} {net}", self.net))
    }

    fn ports(&self, base: Match, list: &str) -> Match {
        base.raw(format!("-m multiport {} {list}", self.ports))
    }
}

/// One side's terms, reduced to the family.
struct Side<'a> {
    words: &'static Words,
    nets: Vec<&'a str>,
    sets: &'a [String],
    /// Destination only: sets of address and port, from Services.
    port_sets: &'a [String],
    ports: Vec<String>,
    named_ports: &'a [String],
    not_nets: Vec<&'a str>,
    not_sets: &'a [String],
    not_ports: Vec<String>,
    not_named_ports: &'a [String],
}

impl<'a> Side<'a> {
    fn source(rule: &'a PolicyRule, version: IpVersion) -> Option<Self> {
        Some(Side {
            words: &SOURCE,
            nets: nets(&rule.src_nets, version, false)?,
            sets: &rule.src_ip_set_ids,
            port_sets: &[],
            ports: port_lists(&rule.src_ports),
            named_ports: &rule.src_named_port_ip_set_ids,
            not_nets: nets(&rule.not_src_nets, version, true)?,
            not_sets: &rule.not_src_ip_set_ids,
            not_ports: port_lists(&rule.not_src_ports),
            not_named_ports: &rule.not_src_named_port_ip_set_ids,
        })
    }

    fn destination(rule: &'a PolicyRule, version: IpVersion) -> Option<Self> {
        Some(Side {
            words: &DESTINATION,
            nets: nets(&rule.dst_nets, version, false)?,
            sets: &rule.dst_ip_set_ids,
            port_sets: &rule.dst_ip_port_set_ids,
            ports: port_lists(&rule.dst_ports),
            named_ports: &rule.dst_named_port_ip_set_ids,
            not_nets: nets(&rule.not_dst_nets, version, true)?,
            not_sets: &rule.not_dst_ip_set_ids,
            not_ports: port_lists(&rule.not_dst_ports),
            not_named_ports: &rule.not_dst_named_port_ip_set_ids,
        })
    }

    fn add_positive(&self, matches: &mut Match, version: IpVersion) {
        let words = self.words;
        let mut built = std::mem::take(matches);
        for net in &self.nets {
            built = built.and(words.net(net));
        }
        for id in self.sets {
            built = built.set(version, id, words.address);
        }
        for id in self.port_sets {
            built = built.set(version, id, words.with_port);
        }
        for list in &self.ports {
            built = words.ports(built, list);
        }
        for id in self.named_ports {
            built = built.set(version, id, words.with_port);
        }
        *matches = built;
    }

    fn add_negative(&self, matches: &mut Match, version: IpVersion) {
        let words = self.words;
        let mut built = std::mem::take(matches);
        for net in &self.not_nets {
            built = built.raw(format!("! {} {net}", words.net));
        }
        for id in self.not_sets {
            built = built.not_set(version, id, words.address);
        }
        for list in &self.not_ports {
            built = built.raw(format!("-m multiport ! {} {list}", words.ports));
        }
        for id in self.not_named_ports {
            built = built.not_set(version, id, words.with_port);
        }
        *matches = built;
    }
}

/// The CIDRs of this family. None when the list, though not empty, leaves nothing that could match: no CIDR
/// of the family, or a negated one that covers all of it.
fn nets(all: &[String], version: IpVersion, negated: bool) -> Option<Vec<&str>> {
    let of_family: Vec<&str> =
        all.iter().map(String::as_str).filter(|net| is_of_family(net, version)).collect();
    let covers_all = negated && of_family.iter().any(|net| matches!(*net, "0.0.0.0/0" | "::/0"));
    if covers_all || (of_family.is_empty() && !all.is_empty()) { None } else { Some(of_family) }
}

/// The helping rules so far.
struct Blocks {
    scratch0: u32,
    scratch1: u32,
    count: usize,
    rules: Vec<Rule>,
}

impl Blocks {
    /// Starts the first block with bit 0 as it has to be if nothing matches.
    fn begin(&mut self, matched: bool) {
        if self.count == 0 {
            let initial = if matched { self.scratch0 } else { 0 };
            self.rules.push(always(set_masked_mark(initial, self.scratch0 | self.scratch1)));
        }
        self.count += 1;
    }

    /// The packet has to match one of these.
    fn positive(&mut self, matches: impl Iterator<Item = Match>) {
        self.begin(false);
        if self.count == 1 {
            let action = set_mark(self.scratch0);
            self.rules.extend(matches.map(|matches| matches.then(action.clone())));
            return;
        }
        if self.count > 2 {
            self.rules.push(always(clear_mark(self.scratch1)));
        }
        let action = set_mark(self.scratch1);
        self.rules.extend(matches.map(|matches| matches.then(action.clone())));
        self.rules.push(Match::new().mark_clear(self.scratch1).then(clear_mark(self.scratch0)));
    }

    /// The packet must match none of these.
    fn negative(&mut self, matches: impl Iterator<Item = Match>) {
        self.begin(true);
        let action = clear_mark(self.scratch0);
        self.rules.extend(matches.map(|matches| matches.then(action.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn compiled(rule: &PolicyRule, version: IpVersion) -> Option<Vec<Rule>> {
        let marks = crate::rules::RulesConfig::default().marks;
        compile(&marks, version, rule).map(|compiled| {
            let mut rules = compiled.blocks;
            rules.push(compiled.matches.then("--jump RETURN"));
            rules
        })
    }

    #[test]
    fn the_second_scratch_bit_is_cleared_before_the_third_block() {
        let rule = PolicyRule {
            src_ports: (1..=8).map(|n| (n * 10, n * 10 + 1)).collect(),
            src_nets: text(&["10.0.0.0/8", "11.0.0.0/8"]),
            dst_nets: text(&["12.0.0.0/8", "13.0.0.0/8"]),
            ..PolicyRule::default()
        };
        let marks = crate::rules::RulesConfig::default().marks;
        let rules = compiled(&rule, IpVersion::V4).unwrap();
        let clears: Vec<_> = rules
            .iter()
            .filter(|rule| rule.matches.is_empty() && rule.action == clear_mark(marks.scratch1))
            .collect();
        assert_eq!(clears.len(), 1);
    }

    #[test]
    fn a_list_of_the_other_family_alone_switches_the_rule_off() {
        for (positive, negated) in [(text(&["fd00::/8"]), vec![]), (vec![], text(&["fd00::/8"]))] {
            let rule = PolicyRule { src_nets: positive, not_dst_nets: negated, ..PolicyRule::default() };
            assert!(compiled(&rule, IpVersion::V4).is_none());
            assert!(compiled(&rule, IpVersion::V6).is_some());
        }
    }

    #[test]
    fn a_protocol_beside_an_excluded_one_is_matched_alone() {
        let rule = |excluded| PolicyRule {
            protocol: Some(Protocol::Name("tcp".into())),
            not_protocol: Some(excluded),
            ..PolicyRule::default()
        };
        assert!(compiled(&rule(Protocol::Number(6)), IpVersion::V4).is_none());
        let rules = compiled(&rule(Protocol::Number(17)), IpVersion::V4).unwrap();
        assert_eq!(rules[0].matches, "-p tcp");
    }

    #[test]
    fn icmp_types_of_the_other_family_never_reach_the_kernel() {
        let rule = PolicyRule {
            protocol: Some(Protocol::Number(58)),
            icmp: Some(Icmp { icmp_type: 128, code: None }),
            ..PolicyRule::default()
        };
        assert!(compiled(&rule, IpVersion::V4).is_none());
        assert!(compiled(&rule, IpVersion::V6).is_some());
    }

    #[test]
    fn only_protocol_names_imply_a_family() {
        let named = PolicyRule { protocol: Some(Protocol::Name("icmp".into())), ..PolicyRule::default() };
        assert!(compiled(&named, IpVersion::V6).is_none());
        let numbered = PolicyRule { protocol: Some(Protocol::Number(1)), ..PolicyRule::default() };
        assert!(compiled(&numbered, IpVersion::V6).is_some());
    }
}
