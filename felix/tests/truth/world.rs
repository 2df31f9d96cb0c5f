//! A small cluster, made up at random: endpoints, network sets, profiles, tiers, policies. Plain data, from which
//! both the entries of the datastore and the expected fates are made (`entries`, `judge`).

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

pub const LOCALS: usize = 4;
pub const REMOTES: usize = 3;
/// Addresses that nobody has.
pub const STRANGERS: usize = 4;
const KEYS: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 3] = ["x", "y", "z"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "alt"];
const PROFILES: [&str; 3] = ["p0", "p1", "missing"];
/// Those that policies, packets and named ports draw from, so that they meet.
pub const PORTS: [u16; 12] = [22, 53, 68, 80, 179, 443, 1000, 1001, 1002, 8080, 4789, 60000];

pub type Labels = Vec<(&'static str, &'static str)>;

#[derive(Clone, Debug)]
pub enum Sel {
    All,
    Has(&'static str),
    Eq(&'static str, &'static str),
    Ne(&'static str, &'static str),
    In(&'static str, Vec<&'static str>),
    Not(Box<Sel>),
    And(Box<Sel>, Box<Sel>),
    Or(Box<Sel>, Box<Sel>),
}

#[derive(Clone, Debug)]
pub struct Owner {
    pub name: String,
    pub labels: Labels,
    pub profiles: Vec<&'static str>,
    /// Indexes into the addresses of its place; the same in both families.
    pub addresses: Vec<usize>,
    /// Name, protocol, number.
    pub ports: Vec<(&'static str, &'static str, u16)>,
}

#[derive(Clone, Debug)]
pub struct NetSet {
    pub name: String,
    pub labels: Labels,
    pub nets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Allow,
    Deny,
    Pass,
    Log,
}

#[derive(Clone, Debug)]
pub enum Proto {
    Name(&'static str),
    Number(u8),
}

#[derive(Clone, Debug, Default)]
pub struct SideMatch {
    pub nets: Vec<String>,
    pub not_nets: Vec<String>,
    pub sel: Option<Sel>,
    pub not_sel: Option<Sel>,
    pub ports: Vec<(u16, u16)>,
    pub named: Vec<&'static str>,
    pub not_ports: Vec<(u16, u16)>,
    pub not_named: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub struct RuleSpec {
    pub act: Act,
    pub version: u8,
    pub proto: Option<Proto>,
    pub not_proto: Option<Proto>,
    pub icmp: Option<(u8, Option<u8>)>,
    pub not_icmp: Option<(u8, Option<u8>)>,
    pub src: SideMatch,
    pub dst: SideMatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Normal,
    OnForward,
    Untracked,
    PreDnat,
}

#[derive(Clone, Debug)]
pub struct PolicySpec {
    pub name: String,
    pub tier: &'static str,
    pub order: Option<f64>,
    pub sel: Sel,
    pub ingress: bool,
    pub egress: bool,
    pub at: Where,
    pub inbound: Vec<RuleSpec>,
    pub outbound: Vec<RuleSpec>,
}

#[derive(Clone, Debug)]
pub struct TierSpec {
    pub name: &'static str,
    pub order: Option<f64>,
    pub pass: bool,
}

/// The host endpoint: of the uplink, of all interfaces, or none.
#[derive(Clone, Debug)]
pub struct HostSpec {
    pub interface: &'static str,
    pub owner: Owner,
}

#[derive(Clone, Debug)]
pub struct World {
    pub locals: Vec<Owner>,
    pub remotes: Vec<Owner>,
    pub nets: Vec<NetSet>,
    /// Name, labels, rules in and out.
    pub profiles: Vec<(&'static str, Labels, Vec<RuleSpec>, Vec<RuleSpec>)>,
    pub tiers: Vec<TierSpec>,
    pub policies: Vec<PolicySpec>,
    pub host: Option<HostSpec>,
    pub to_host: &'static str,
}

impl World {
    pub fn random(rng: &mut StdRng, policies: usize) -> World {
        // Few selectors, so that policies in a row share one and are grouped.
        let selectors: Vec<Sel> = (0..5).map(|_| sel(rng, 2)).collect();
        let tiers = vec![
            TierSpec { name: "default", order: None, pass: false },
            TierSpec { name: "t1", order: Some(100.0), pass: rng.random_bool(0.5) },
            TierSpec {
                name: "t2",
                order: Some(f64::from(rng.random_range(50..150))),
                pass: rng.random_bool(0.5),
            },
        ];
        let host = match rng.random_range(0..10) {
            0..4 => None,
            4..8 => Some("eth0"),
            _ => Some("*"),
        };
        World {
            locals: (0..LOCALS).map(|n| owner(rng, format!("local{n}"), vec![2 * n, 2 * n + 1])).collect(),
            // Two remote endpoints share an address.
            remotes: (0..REMOTES)
                .map(|n| owner(rng, format!("remote{n}"), vec![n, n.saturating_sub(1)]))
                .collect(),
            nets: (0..2)
                .map(|n| NetSet {
                    name: format!("net{n}"),
                    labels: labels(rng),
                    nets: (0..rng.random_range(1..4)).map(|_| net(rng)).collect(),
                })
                .collect(),
            profiles: ["p0", "p1"].map(|name| (name, labels(rng), rules(rng, 3), rules(rng, 3))).to_vec(),
            tiers,
            policies: (0..policies).map(|n| policy(rng, n, &selectors)).collect(),
            host: host.map(|interface| HostSpec { interface, owner: owner(rng, "uplink".into(), vec![]) }),
            to_host: ["DROP", "ACCEPT", "RETURN"].choose(rng).copied().unwrap_or("DROP"),
        }
    }
}

fn owner(rng: &mut StdRng, name: String, addresses: Vec<usize>) -> Owner {
    let mut profiles: Vec<&'static str> = PROFILES.to_vec();
    profiles.retain(|name| rng.random_bool(if *name == "missing" { 0.1 } else { 0.6 }));
    let ports = (0..rng.random_range(0..4))
        .map(|_| (pick(rng, &PORT_NAMES), pick(rng, &["tcp", "udp", "sctp"]), pick(rng, &PORTS)))
        .collect();
    Owner { name, labels: labels(rng), profiles, addresses, ports }
}

fn labels(rng: &mut StdRng) -> Labels {
    let mut labels = Vec::new();
    for key in KEYS {
        if rng.random_bool(0.6) {
            labels.push((key, pick(rng, &VALUES)));
        }
    }
    labels
}

fn sel(rng: &mut StdRng, depth: usize) -> Sel {
    let (key, value) = (pick(rng, &KEYS), pick(rng, &VALUES));
    match rng.random_range(0..if depth == 0 { 6 } else { 10 }) {
        0 => Sel::All,
        1 => Sel::Has(key),
        2 | 3 => Sel::Eq(key, value),
        4 => Sel::Ne(key, value),
        5 => Sel::In(key, vec![value, pick(rng, &VALUES)]),
        6 => Sel::Not(Box::new(sel(rng, depth - 1))),
        7 | 8 => Sel::Or(Box::new(sel(rng, depth - 1)), Box::new(sel(rng, depth - 1))),
        _ => Sel::And(Box::new(sel(rng, depth - 1)), Box::new(sel(rng, depth - 1))),
    }
}

fn policy(rng: &mut StdRng, n: usize, selectors: &[Sel]) -> PolicySpec {
    let at = match rng.random_range(0..10) {
        0 => Where::Untracked,
        1 => Where::PreDnat,
        2..5 => Where::OnForward,
        _ => Where::Normal,
    };
    let ingress = at == Where::PreDnat || rng.random_bool(0.8);
    PolicySpec {
        name: format!("policy{:02}-{n}", rng.random_range(0..100)),
        // A tier that does not exist comes last and denies.
        tier: pick(rng, &["default", "default", "default", "t1", "t1", "t2", "t2", "absent"]),
        order: if rng.random_bool(0.3) { None } else { Some(f64::from(rng.random_range(0..4))) },
        sel: selectors.choose(rng).cloned().unwrap_or(Sel::All),
        ingress,
        egress: at != Where::PreDnat && (!ingress || rng.random_bool(0.5)),
        at,
        inbound: rules(rng, 4),
        outbound: rules(rng, 4),
    }
}

fn rules(rng: &mut StdRng, most: usize) -> Vec<RuleSpec> {
    (0..rng.random_range(0..=most)).map(|_| rule(rng)).collect()
}

fn rule(rng: &mut StdRng) -> RuleSpec {
    let act = match rng.random_range(0..20) {
        0..10 => Act::Allow,
        10..14 => Act::Deny,
        14..18 => Act::Pass,
        _ => Act::Log,
    };
    let mut rule = RuleSpec {
        act,
        version: pick(rng, &[0, 0, 0, 0, 4, 6]),
        proto: None,
        not_proto: None,
        icmp: None,
        not_icmp: None,
        src: side(rng),
        dst: side(rng),
    };
    match rng.random_range(0..10) {
        // Ports need a protocol that has some.
        0..6 => {
            rule.proto = Some(pick_of(
                rng,
                &[
                    Proto::Name("tcp"),
                    Proto::Name("udp"),
                    Proto::Name("sctp"),
                    Proto::Number(6),
                    Proto::Number(17),
                ],
            ));
            ports(rng, &mut rule.src, 0.15);
            ports(rng, &mut rule.dst, 0.7);
        }
        6 => {
            let v4 = rng.random_bool(0.5);
            rule.proto = Some(Proto::Name(if v4 { "icmp" } else { "icmpv6" }));
            let kind = if v4 { pick(rng, &[8, 13]) } else { pick(rng, &[128, 139]) };
            let icmp = Some((kind, rng.random_bool(0.5).then(|| pick(rng, &[0, 1]))));
            match rng.random_range(0..3) {
                0 => {}
                1 => rule.icmp = icmp,
                _ => rule.not_icmp = icmp,
            }
        }
        7 => rule.proto = Some(Proto::Number(pick(rng, &[253, 1, 58]))),
        8 => {
            rule.not_proto = Some(pick_of(rng, &[Proto::Name("tcp"), Proto::Name("udp"), Proto::Number(253)]))
        }
        // Named ports bring their protocol along.
        _ => {
            if rng.random_bool(0.5) {
                rule.dst.named.push(pick(rng, &PORT_NAMES));
            }
        }
    }
    rule
}

fn side(rng: &mut StdRng) -> SideMatch {
    let mut side = SideMatch::default();
    if rng.random_bool(0.25) {
        side.nets = (0..rng.random_range(1..5)).map(|_| net(rng)).collect();
    }
    if rng.random_bool(0.12) {
        side.not_nets = (0..rng.random_range(1..4)).map(|_| net(rng)).collect();
    }
    if rng.random_bool(0.35) {
        side.sel = Some(sel(rng, 1));
    }
    if rng.random_bool(0.12) {
        side.not_sel = Some(sel(rng, 1));
    }
    side
}

fn ports(rng: &mut StdRng, side: &mut SideMatch, chance: f64) {
    // Now and then more than one `multiport` takes.
    let many = if rng.random_bool(0.15) { 20 } else { 3 };
    if rng.random_bool(chance) {
        side.ports = ranges(rng, many);
        if rng.random_bool(0.3) {
            side.named = (0..rng.random_range(1..3)).map(|_| pick(rng, &PORT_NAMES)).collect();
            if rng.random_bool(0.5) {
                side.ports.clear();
            }
        }
    }
    if rng.random_bool(0.15) {
        side.not_ports = ranges(rng, many);
    }
    if rng.random_bool(0.1) {
        side.not_named = vec![pick(rng, &PORT_NAMES)];
    }
}

fn ranges(rng: &mut StdRng, most: usize) -> Vec<(u16, u16)> {
    (0..rng.random_range(1..=most))
        .map(|_| {
            let first = pick(rng, &PORTS);
            (first, first.saturating_add(pick(rng, &[0, 0, 2, 100])))
        })
        .collect()
}

/// Around the addresses that are used, of either family.
fn net(rng: &mut StdRng) -> String {
    pick_of(
        rng,
        &[
            "10.65.0.0/24",
            "10.65.0.0/30",
            "10.65.0.4/30",
            "10.65.0.1/32",
            "10.66.0.0/24",
            "10.66.0.1/32",
            "10.0.0.0/8",
            "192.0.2.0/24",
            "192.0.2.2/31",
            "0.0.0.0/0",
            "172.30.0.1/32",
            "fd65::/64",
            "fd65::/126",
            "fd65::4/126",
            "fd65::1/128",
            "fd66::/64",
            "fd66::1/128",
            "2001:db8::/32",
            "2001:db8::2/127",
            "::/0",
        ],
    )
    .to_owned()
}

pub fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    *from.choose(rng).expect("there is something to choose from")
}

fn pick_of<T: Clone>(rng: &mut StdRng, from: &[T]) -> T {
    from.choose(rng).cloned().expect("there is something to choose from")
}
