//! What ought to become of a packet: Calico's semantics read off a [`World`] by brute force.
//!
//! Shares nothing with the calculation, the renderer or `explain`: no sets, no marks, no chains.

use std::net::IpAddr;

use felix_calc::explain::{Packet, Protocol};
use ipnet::IpNet;

use crate::entries::{local_ip, remote_ip};
use crate::world::{Act, Labels, Owner, Proto, RuleSpec, Sel, SideMatch, Where, World};

const FAILSAFE_IN: [(u8, u16); 9] =
    [(6, 22), (17, 68), (6, 179), (6, 2379), (6, 2380), (6, 5473), (6, 6443), (6, 6666), (6, 6667)];
const FAILSAFE_OUT: [(u8, u16); 9] =
    [(17, 53), (17, 67), (6, 179), (6, 2379), (6, 2380), (6, 5473), (6, 6443), (6, 6666), (6, 6667)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Local(usize),
    Host,
    Out,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// Whether the packet gets through.
pub fn judge(world: &World, packet: &Packet, from: End, to: End) -> bool {
    let ports = match packet.protocol {
        Protocol::Ports { src, dst, .. } => Some((src, dst)),
        _ => None,
    };
    let number = packet.protocol.number();
    let owns = |owner: &Owner, ip| owner.addresses.iter().any(|at| local_ip(*at, packet.src.is_ipv4()) == ip);
    if let End::Local(n) = from
        && !owns(&world.locals[n], packet.src)
    {
        return false;
    }
    // Which ends a host endpoint governs.
    let named = world.host.as_ref().is_some_and(|host| host.interface == "eth0");
    let any = world.host.as_ref().is_some_and(|host| host.interface == "*");
    let governed = |end: End| match end {
        End::Host => false,
        End::Out => named || any,
        End::Local(_) => any,
    };
    let host = |at: &[Where], way, ends| {
        world.host.as_ref().and_then(|host| tiers(world, &host.owner, at, way, ends, packet))
    };
    let failsafe = |list: &[(u8, u16)]| ports.is_some_and(|(_, dst)| list.contains(&(number, dst)));
    let answers = |list: &[(u8, u16)]| ports.is_some_and(|(src, _)| list.contains(&(number, src)));

    // What the kernel meets first decides first; an early yes spares the host endpoint's later questions.
    let mut settled = false;
    if from == End::Out && named && !failsafe(&FAILSAFE_IN) && !answers(&FAILSAFE_OUT) {
        match host(&[Where::Untracked], Way::In, false) {
            Some(false) => return false,
            Some(true) => settled = true,
            None => {}
        }
    }
    if governed(from) && !settled && !failsafe(&FAILSAFE_IN) {
        match host(&[Where::PreDnat], Way::In, false) {
            Some(false) => return false,
            Some(true) => settled = true,
            None => {}
        }
    }
    let normal = [Where::Normal, Where::OnForward];
    let workload = |n: usize, way| {
        let owner = &world.locals[n];
        tiers(world, owner, &normal, way, true, packet).unwrap_or_else(|| profiles(world, owner, way, packet))
    };
    let host_normal = |way| {
        host(&normal, way, true).unwrap_or_else(|| {
            world.host.as_ref().is_some_and(|host| profiles(world, &host.owner, way, packet))
        })
    };
    let leaves = |n: usize| {
        let tunnels = number == 4 || number == 17 && ports.is_some_and(|(_, dst)| dst == 4789);
        !tunnels && workload(n, Way::Out)
    };
    match (from, to) {
        (End::Local(n), End::Host) => {
            let discovery = matches!(packet.protocol, Protocol::IcmpV6 { kind: 130..=133 | 135 | 136, .. });
            discovery || leaves(n) && world.to_host != "DROP"
        }
        (End::Out, End::Host) => !governed(from) || settled || failsafe(&FAILSAFE_IN) || host_normal(Way::In),
        (End::Host, End::Local(_) | End::Host) => true,
        (End::Host, End::Out) => {
            if named
                && !failsafe(&FAILSAFE_OUT)
                && !answers(&FAILSAFE_IN)
                && let Some(said) = host(&[Where::Untracked], Way::Out, false)
            {
                return said;
            }
            !governed(to) || failsafe(&FAILSAFE_OUT) || host_normal(Way::Out)
        }
        (from, to) => {
            let forward = [Where::OnForward];
            if governed(from) && !settled && host(&forward, Way::In, true) == Some(false) {
                return false;
            }
            if let End::Local(n) = from
                && !leaves(n)
            {
                return false;
            }
            if let End::Local(n) = to
                && !workload(n, Way::In)
            {
                return false;
            }
            !governed(to) || host(&forward, Way::Out, true) != Some(false)
        }
    }
}

fn tiers(world: &World, owner: &Owner, at: &[Where], way: Way, ends: bool, packet: &Packet) -> Option<bool> {
    let labels = inherited(world, owner);
    let mut names: Vec<(bool, f64, &str)> = ["default", "t1", "t2", "absent"]
        .iter()
        .map(|name| match world.tiers.iter().find(|tier| tier.name == *name) {
            Some(tier) => (false, tier.order.unwrap_or(f64::INFINITY), *name),
            None => (true, f64::INFINITY, *name),
        })
        .collect();
    names.sort_by(|l, r| l.partial_cmp(r).expect("orders are numbers"));
    for (_, _, name) in names {
        let mut policies: Vec<_> = world
            .policies
            .iter()
            .filter(|p| p.tier == name && at.contains(&p.at) && selects(&p.sel, &labels))
            .filter(|p| if way == Way::In { p.ingress } else { p.egress })
            .collect();
        policies.sort_by(|l, r| {
            let key = |p: &crate::world::PolicySpec| (p.order.unwrap_or(f64::INFINITY), p.name.clone());
            key(l).partial_cmp(&key(r)).expect("orders are numbers")
        });
        let mut passed = policies.is_empty();
        'policies: for policy in policies {
            for rule in if way == Way::In { &policy.inbound } else { &policy.outbound } {
                if rule.act != Act::Log && matches(world, rule, packet) {
                    match rule.act {
                        Act::Allow => return Some(true),
                        Act::Deny => return Some(false),
                        _ => {
                            passed = true;
                            break 'policies;
                        }
                    }
                }
            }
        }
        let passes = world.tiers.iter().any(|tier| tier.name == name && tier.pass);
        if ends && !passed && !passes {
            return Some(false);
        }
    }
    None
}

fn profiles(world: &World, owner: &Owner, way: Way, packet: &Packet) -> bool {
    for name in &owner.profiles {
        let Some((_, _, inbound, outbound)) = world.profiles.iter().find(|profile| profile.0 == *name) else {
            return false;
        };
        for rule in if way == Way::In { inbound } else { outbound } {
            if rule.act != Act::Log && matches(world, rule, packet) {
                match rule.act {
                    Act::Allow => return true,
                    Act::Deny => return false,
                    _ => break,
                }
            }
        }
    }
    false
}

fn matches(world: &World, rule: &RuleSpec, packet: &Packet) -> bool {
    let v4 = packet.src.is_ipv4();
    let number = packet.protocol.number();
    let is = |proto: &Proto| match proto {
        Proto::Number(n) => *n == number,
        Proto::Name("tcp") => number == 6,
        Proto::Name("udp") => number == 17,
        Proto::Name("sctp") => number == 132,
        Proto::Name("icmp") => v4 && number == 1,
        Proto::Name("icmpv6") => !v4 && number == 58,
        Proto::Name(other) => panic!("no protocol {other}"),
    };
    let icmp = |(want, want_code): (u8, Option<u8>)| match packet.protocol {
        Protocol::Icmp { kind, code } | Protocol::IcmpV6 { kind, code } => {
            kind == want && want_code.is_none_or(|want| want == code)
        }
        _ => false,
    };
    let (sport, dport) = match packet.protocol {
        Protocol::Ports { src, dst, .. } => (Some(src), Some(dst)),
        _ => (None, None),
    };
    (rule.version == 0 || (rule.version == 4) == v4)
        && rule.proto.as_ref().is_none_or(is)
        && !rule.not_proto.as_ref().is_some_and(is)
        && rule.icmp.is_none_or(icmp)
        && !rule.not_icmp.is_some_and(icmp)
        && matches_side(world, rule, &rule.src, packet.src, number, sport)
        && matches_side(world, rule, &rule.dst, packet.dst, number, dport)
}

fn matches_side(
    world: &World,
    rule: &RuleSpec,
    side: &SideMatch,
    ip: IpAddr,
    number: u8,
    port: Option<u16>,
) -> bool {
    let inside = |nets: &[String]| nets.iter().any(|net| net.parse::<IpNet>().expect("a CIDR").contains(&ip));
    let same_family = |nets: &[String]| nets.iter().any(|net| net.contains('.') == ip.is_ipv4());
    if !side.nets.is_empty() && !inside(&side.nets) {
        return false;
    }
    if !side.not_nets.is_empty() && (!same_family(&side.not_nets) || inside(&side.not_nets)) {
        return false;
    }
    // Both selectors are asked of the same owner, if there is a positive one.
    let wanted = |labels: &Labels| {
        side.sel.as_ref().is_none_or(|sel| selects(sel, labels))
            && !(side.sel.is_some() && side.not_sel.as_ref().is_some_and(|sel| selects(sel, labels)))
    };
    let owners = || world.locals.iter().map(|o| (o, true)).chain(world.remotes.iter().map(|o| (o, false)));
    let has_ip = |owner: &Owner, local: bool| {
        let address = if local { local_ip } else { remote_ip };
        owner.addresses.iter().any(|at| address(*at, ip.is_ipv4()) == ip)
    };
    let owned = |fits: &dyn Fn(&Labels) -> bool| {
        owners().any(|(owner, local)| has_ip(owner, local) && fits(&inherited(world, owner)))
            || world.nets.iter().any(|set| fits(&set.labels) && inside(&set.nets))
    };
    let named = |names: &[&str]| {
        owners().any(|(owner, local)| {
            has_ip(owner, local)
                && wanted(&inherited(world, owner))
                && owner.ports.iter().any(|(name, protocol, n)| {
                    let protocol = match *protocol {
                        "tcp" => 6,
                        "udp" => 17,
                        _ => 132,
                    };
                    let narrowed = match rule.proto {
                        Some(Proto::Name("tcp") | Proto::Number(6)) => protocol == 6,
                        Some(Proto::Name("udp") | Proto::Number(17)) => protocol == 17,
                        Some(Proto::Name("sctp") | Proto::Number(132)) => protocol == 132,
                        _ => true,
                    };
                    names.contains(name) && narrowed && protocol == number && port == Some(*n)
                })
        })
    };
    let in_ranges =
        |ranges: &[(u16, u16)]| port.is_some_and(|port| ranges.iter().any(|(a, b)| *a <= port && port <= *b));
    if side.sel.is_some() && !owned(&wanted) {
        return false;
    }
    if let (None, Some(not_sel)) = (&side.sel, &side.not_sel)
        && owned(&|labels| selects(not_sel, labels))
    {
        return false;
    }
    let any = side.ports.is_empty() && side.named.is_empty();
    (any || in_ranges(&side.ports) || named(&side.named))
        && !in_ranges(&side.not_ports)
        && !named(&side.not_named)
}

/// An owner's own labels, and those of its profiles where it has none.
fn inherited(world: &World, owner: &Owner) -> Labels {
    let mut labels = owner.labels.clone();
    for name in &owner.profiles {
        for (key, value) in
            world.profiles.iter().filter(|profile| profile.0 == *name).flat_map(|profile| &profile.1)
        {
            if !labels.iter().any(|(known, _)| known == key) {
                labels.push((key, value));
            }
        }
    }
    labels
}

fn selects(sel: &Sel, labels: &Labels) -> bool {
    let get = |key: &str| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
    match sel {
        Sel::All => true,
        Sel::Has(key) => get(key).is_some(),
        Sel::Eq(key, value) => get(key) == Some(value),
        Sel::Ne(key, value) => get(key) != Some(value),
        Sel::In(key, values) => get(key).is_some_and(|value| values.contains(&value)),
        Sel::Not(inner) => !selects(inner, labels),
        Sel::And(left, right) => selects(left, labels) && selects(right, labels),
        Sel::Or(left, right) => selects(left, labels) || selects(right, labels),
    }
}
