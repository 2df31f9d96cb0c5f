//! Evaluates tiers, policies and profiles over a packet.

use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::Packet;
use super::{Action, Direction, Matched, Node, Protocol, Step, Verdict};
use crate::output::{Icmp, Protocol as RuleProtocol, Rule, Tier};

const PASS: &str = "Pass";

impl Node<'_> {
    /// What the tiers say; none: they leave it to others. `ends`: a tier without a decision denies, unless its
    /// default action passes.
    pub(super) fn tiers(
        &self,
        tiers: &[Tier],
        way: Direction,
        ends: bool,
        packet: &Packet,
        steps: &mut Vec<Step>,
    ) -> Option<Verdict> {
        for tier in tiers {
            let policies = match way {
                Direction::Ingress => &tier.ingress,
                Direction::Egress => &tier.egress,
            };
            let mut passed = policies.is_empty();
            for reference in policies {
                let policy = self.policies.get(&reference.key);
                let rules = policy.map_or(&[][..], |policy| match way {
                    Direction::Ingress => &policy.inbound,
                    Direction::Egress => &policy.outbound,
                });
                let matched = self.first_match(rules, packet);
                steps.push(Step::Policy { tier: tier.name.clone(), key: reference.key.clone(), matched });
                match matched.map(|matched| matched.action) {
                    Some(Action::Allow) => return Some(Verdict::Allow),
                    Some(Action::Deny) => return Some(Verdict::Deny),
                    Some(Action::Pass) => {
                        passed = true;
                        break;
                    }
                    None => {}
                }
            }
            if !passed && ends && tier.default_action != PASS {
                steps.push(Step::EndOfTier { tier: tier.name.clone() });
                return Some(Verdict::Deny);
            }
        }
        None
    }

    /// What the profiles say: who is allowed by none is denied.
    pub(super) fn profiles(
        &self,
        names: &[String],
        way: Direction,
        packet: &Packet,
        steps: &mut Vec<Step>,
    ) -> Verdict {
        for name in names {
            let rules = self.profiles.get(name).map_or(&[][..], |profile| match way {
                Direction::Ingress => &profile.inbound,
                Direction::Egress => &profile.outbound,
            });
            let matched = self.first_match(rules, packet);
            steps.push(Step::Profile { name: name.clone(), matched });
            match matched.map(|matched| matched.action) {
                Some(Action::Allow) => return Verdict::Allow,
                Some(Action::Deny) => return Verdict::Deny,
                // There is no tier after profiles: a pass ends the profile, nothing more.
                Some(Action::Pass) | None => {}
            }
        }
        steps.push(Step::NoProfile);
        Verdict::Deny
    }

    /// The first rule that ends the list for this packet; logging ones only log.
    fn first_match(&self, rules: &[Rule], packet: &Packet) -> Option<Matched> {
        let deciding = rules.iter().enumerate().filter_map(|(rule, body)| {
            let action = match body.action.as_str() {
                "allow" | "" => Action::Allow,
                "deny" => Action::Deny,
                "pass" | "next-tier" => Action::Pass,
                _ => return None,
            };
            Some((Matched { rule, action }, body))
        });
        deciding.into_iter().find(|(_, body)| self.matches(body, packet)).map(|(matched, _)| matched)
    }

    fn matches(&self, rule: &Rule, packet: &Packet) -> bool {
        self.matches_family_and_protocol(rule, packet)
            && self.matches_side(&Side::source(rule), packet)
            && self.matches_side(&Side::destination(rule), packet)
    }

    fn matches_family_and_protocol(&self, rule: &Rule, packet: &Packet) -> bool {
        let v4 = packet.dst.is_ipv4();
        let family = match &rule.protocol {
            // The names imply a family, the numbers do not.
            Some(RuleProtocol::Name(name)) if name == "icmp" => v4,
            Some(RuleProtocol::Name(name)) if name == "icmpv6" => !v4,
            _ => true,
        };
        let number = packet.protocol.number();
        let is = |protocol: &RuleProtocol| protocol_number(protocol) == Some(number);
        let (kind, code) = match packet.protocol {
            Protocol::Icmp { kind, code } | Protocol::IcmpV6 { kind, code } => (Some(kind), code),
            _ => (None, 0),
        };
        let icmp = |want: &Icmp| kind == Some(want.icmp_type) && want.code.is_none_or(|want| want == code);
        (rule.ip_version == 0 || (rule.ip_version == 4) == v4)
            && family
            && rule.protocol.as_ref().is_none_or(is)
            && !rule.not_protocol.as_ref().is_some_and(is)
            && rule.icmp.as_ref().is_none_or(icmp)
            && !rule.not_icmp.as_ref().is_some_and(icmp)
    }

    fn matches_side(&self, side: &Side<'_>, packet: &Packet) -> bool {
        let (ip, port) = match (side.way, packet.protocol) {
            (Direction::Egress, Protocol::Ports { src, .. }) => (packet.src, Some(src)),
            (Direction::Ingress, Protocol::Ports { dst, .. }) => (packet.dst, Some(dst)),
            (Direction::Egress, _) => (packet.src, None),
            (Direction::Ingress, _) => (packet.dst, None),
        };
        let in_range = |ranges: &[(u16, u16)]| {
            port.is_some_and(|port| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)))
        };
        let in_port_set = |ids: &[String]| {
            let number = packet.protocol.number();
            port.is_some_and(|port| ids.iter().any(|id| self.sets.has_port(id, ip, number, port)))
        };
        let has = |id: &String| self.sets.has_address(id, ip);
        let any_port = side.ports.is_empty() && side.named_ports.is_empty();
        (side.nets.is_empty() || within(side.nets, ip))
            // Excluded networks of the other family alone switch the rule off for this one.
            && (side.not_nets.is_empty()
                || side.not_nets.iter().filter_map(|net| parse(net)).any(|net| net.addr().is_ipv4() == ip.is_ipv4())
                    && !within(side.not_nets, ip))
            && side.sets.iter().all(has)
            && !side.not_sets.iter().any(has)
            && side.service_sets.iter().all(|id| in_port_set(std::slice::from_ref(id)))
            && (any_port || in_range(side.ports) || in_port_set(side.named_ports))
            && !in_range(side.not_ports)
            && !in_port_set(side.not_named_ports)
    }
}

/// One side's terms. `way`: whether it looks at where packets come from or where they go.
struct Side<'a> {
    way: Direction,
    nets: &'a [String],
    not_nets: &'a [String],
    sets: &'a [String],
    not_sets: &'a [String],
    service_sets: &'a [String],
    ports: &'a [(u16, u16)],
    named_ports: &'a [String],
    not_ports: &'a [(u16, u16)],
    not_named_ports: &'a [String],
}

impl<'a> Side<'a> {
    fn source(rule: &'a Rule) -> Self {
        Side {
            way: Direction::Egress,
            nets: &rule.src_nets,
            not_nets: &rule.not_src_nets,
            sets: &rule.src_ip_set_ids,
            not_sets: &rule.not_src_ip_set_ids,
            service_sets: &[],
            ports: &rule.src_ports,
            named_ports: &rule.src_named_port_ip_set_ids,
            not_ports: &rule.not_src_ports,
            not_named_ports: &rule.not_src_named_port_ip_set_ids,
        }
    }

    fn destination(rule: &'a Rule) -> Self {
        Side {
            way: Direction::Ingress,
            nets: &rule.dst_nets,
            not_nets: &rule.not_dst_nets,
            sets: &rule.dst_ip_set_ids,
            not_sets: &rule.not_dst_ip_set_ids,
            service_sets: &rule.dst_ip_port_set_ids,
            ports: &rule.dst_ports,
            named_ports: &rule.dst_named_port_ip_set_ids,
            not_ports: &rule.not_dst_ports,
            not_named_ports: &rule.not_dst_named_port_ip_set_ids,
        }
    }
}

fn within(nets: &[String], ip: IpAddr) -> bool {
    nets.iter().filter_map(|net| parse(net)).any(|net| net.contains(&ip))
}

fn parse(net: &str) -> Option<IpNet> {
    crate::addresses::net(net)
}

fn protocol_number(protocol: &RuleProtocol) -> Option<u8> {
    match protocol {
        RuleProtocol::Number(number) => Some(*number),
        RuleProtocol::Name(name) => match name.as_str() {
            "icmp" => Some(1),
            "tcp" => Some(6),
            "udp" => Some(17),
            "icmpv6" => Some(58),
            "sctp" => Some(132),
            "udplite" => Some(136),
            _ => None,
        },
    }
}
