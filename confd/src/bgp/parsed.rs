//! BGPPeer objects with their text parsed and what they refer to at hand.

use std::net::{IpAddr, SocketAddr};

use syncer_common::model::values;
use syncer_common::selector::Selector;

use super::filters::Filter;
use super::peers::{NodeView, Password, can_be_peer};
use super::{IncompletePeers, Problem};
/// BIRD refuses a keepalive time beyond the hold time, which nobody can set and is 240 s.
const KEEPALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=240;
const TTL_HOPS: std::ops::RangeInclusive<u32> = 1..=255;

/// A BGPPeer with its text parsed.
pub(super) struct Parsed<'a> {
    pub name: &'a str,
    pub object: &'a values::BgpPeer,
    node_selector: Option<Selector>,
    pub peer: Target,
    pub reachable_by: Option<IpAddr>,
    pub keepalive_seconds: Option<u64>,
    pub password: Option<Password>,
    /// Those that exist, in the object's order.
    pub filters: Vec<String>,
    /// Why it may not be opened, if so.
    pub withheld: Option<(&'static str, String)>,
}

pub(super) enum Target {
    Address(IpAddr, Option<u16>),
    Nodes(Selector),
    /// Workloads of the node itself, as felix reports them.
    LocalWorkloads,
}

/// What the objects refer to.
pub(super) struct References<'a> {
    pub secrets: &'a super::Secrets,
    pub filters: &'a std::collections::BTreeMap<String, Filter>,
    pub incomplete: IncompletePeers,
}

impl References<'_> {
    /// A Secret's key as a password, or why there is none.
    pub fn password(&self, reference: &values::SecretKeyRef) -> Result<Password, String> {
        let values::SecretKeyRef { name, key } = reference;
        let text = self
            .secrets
            .get(name, key)
            .ok_or_else(|| format!("the password (Secret {name}, key {key}) is not available"))?;
        Password::new(text).map_err(|why| format!("the password (Secret {name}, key {key}) {why}"))
    }
}

impl Parsed<'_> {
    pub fn is_global(&self) -> bool {
        self.object.node.is_empty() && self.node_selector.is_none()
    }

    /// Whether the object speaks about this node's own side.
    pub fn covers(&self, node: &NodeView<'_>) -> bool {
        match &self.node_selector {
            Some(selector) => node.selected(selector),
            None => self.object.node.is_empty() || self.object.node == node.name,
        }
    }
}

/// `None`, with a problem, where the object cannot be understood.
pub(super) fn parse<'a>(
    name: &'a str,
    object: &'a values::BgpPeer,
    references: &References<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Parsed<'a>> {
    let mut problem = |field: &str, reason: String| {
        problems.push(Problem::new(format!("BGPPeer({name})"), field, reason));
    };
    let mut selector = |text: &str, field: &str| match Selector::parse(text) {
        Ok(selector) => Some(selector),
        Err(error) => {
            problem(field, format!("{text:?}: {error}; the peer is left out"));
            None
        }
    };
    let node_selector = if object.node.is_empty() && !object.node_selector.is_empty() {
        Some(selector(&object.node_selector, "spec.nodeSelector")?)
    } else {
        None
    };
    let peer = if !object.local_workload_selector.is_empty() {
        // Felix selects the workloads; its reports name this object.
        Target::LocalWorkloads
    } else if !object.peer_selector.is_empty() {
        Target::Nodes(selector(&object.peer_selector, "spec.peerSelector")?)
    } else {
        match parse_peer_ip(&object.peer_ip) {
            Some((address, _)) if !can_be_peer(address) => {
                problem("spec.peerIP", format!("{address} cannot be a BGP peer; the peer is left out"));
                return None;
            }
            Some((address, port)) => Target::Address(address, port),
            None => {
                let text = &object.peer_ip;
                problem(
                    "spec.peerIP",
                    format!("{text:?} is neither an address nor address:port; the peer is left out"),
                );
                return None;
            }
        }
    };
    let keepalive_seconds = object.keepalive_seconds.filter(|seconds| KEEPALIVE_SECONDS.contains(seconds));
    if let (Some(seconds), None) = (object.keepalive_seconds, keepalive_seconds) {
        let (least, most) = (KEEPALIVE_SECONDS.start(), KEEPALIVE_SECONDS.end());
        problem(
            "spec.keepaliveTime",
            format!("{seconds} s is not within {least}-{most} s: BIRD's default is used"),
        );
    }
    if object.ttl_security.is_some_and(|hops| !TTL_HOPS.contains(&hops)) {
        problem("spec.ttlSecurity", "not within 1-255 hops; the peer is left out".into());
        return None;
    }
    let reachable_by = if object.reachable_by.is_empty() {
        None
    } else {
        let gateway = object.reachable_by.parse::<IpAddr>().ok();
        if gateway.is_none() {
            let text = &object.reachable_by;
            problem("spec.reachableBy", format!("{text:?} is not an address: no route to the peer is added"));
        }
        gateway
    };
    let mut withheld = None;
    let password = match object.password.as_ref().map(|reference| references.password(reference)) {
        None => None,
        Some(Ok(password)) => Some(password),
        Some(Err(reason)) => {
            withheld = Some(("spec.password", reason));
            None
        }
    };
    let (filters, missing): (Vec<String>, Vec<String>) =
        object.filters.iter().cloned().partition(|filter| references.filters.contains_key(filter));
    if withheld.is_none() && !missing.is_empty() {
        // Opened without its filters it could let in, or give away, what they are there to stop.
        withheld =
            Some(("spec.filters", format!("BGPFilter objects are not available ({})", missing.join(", "))));
    }
    if let (IncompletePeers::Open, Some((field, reason))) = (references.incomplete, &withheld) {
        problem(field, format!("{reason}; the peer is opened without, as incomplete peers are set to open"));
        withheld = None;
    }
    Some(Parsed {
        name,
        object,
        node_selector,
        peer,
        reachable_by,
        keepalive_seconds,
        password,
        filters,
        withheld,
    })
}

/// `address`, `address:port` or `[v6 address]:port`.
fn parse_peer_ip(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse().ok().map(|address| (address, None));
    }
    let socket: SocketAddr = text.parse().ok()?;
    (socket.port() > 0).then_some((socket.ip(), Some(socket.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses_may_carry_a_port() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(parse_peer_ip("10.0.0.1"), Some((address("10.0.0.1"), None)));
        assert_eq!(parse_peer_ip("10.0.0.1:1790"), Some((address("10.0.0.1"), Some(1790))));
        assert_eq!(parse_peer_ip("[2001::9]:1791"), Some((address("2001::9"), Some(1791))));
        assert_eq!(parse_peer_ip("2001::9"), Some((address("2001::9"), None)));
        for bad in ["", "10.0.0.1:0", "10.0.0.1:99999", "host:1", "[10.0.0"] {
            assert_eq!(parse_peer_ip(bad), None, "{bad}");
        }
    }
}
