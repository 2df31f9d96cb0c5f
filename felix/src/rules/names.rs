//! Names that felix gives to chains, policies and groups, and the prefixes of its packet logs.
//!
//! All are upstream's, so that a node that is switched over keeps its chains, and tools that read the names
//! go on working.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use sha3::Sha3_224;
use syncer_common::model::PolicyKey;

/// Characters of a chain's name that every kernel and every tool takes.
const CHAIN_LIMIT: usize = 28;
/// Characters of a group's uid.
const GROUP_UID_LENGTH: usize = 20;
/// Bytes of an NFLOG prefix from which on it is shortened.
const NFLOG_LIMIT: usize = 63;
/// What a shortened NFLOG prefix keeps at each end.
const NFLOG_KEPT: usize = 10;

/// Stands for the interface of a host endpoint that applies to all interfaces.
pub const ANY_INTERFACE: &str = "any-interface-at-all";

pub const FILTER_INPUT: &str = "cali-INPUT";
pub const FILTER_FORWARD: &str = "cali-FORWARD";
pub const OUTPUT: &str = "cali-OUTPUT";
pub const PREROUTING: &str = "cali-PREROUTING";
pub const POSTROUTING: &str = "cali-POSTROUTING";
pub const WORKLOAD_TO_HOST: &str = "cali-wl-to-host";
pub const FROM_WORKLOAD_DISPATCH: &str = "cali-from-wl-dispatch";
pub const TO_WORKLOAD_DISPATCH: &str = "cali-to-wl-dispatch";
pub const FROM_HOST_ENDPOINT: &str = "cali-from-host-endpoint";
pub const TO_HOST_ENDPOINT: &str = "cali-to-host-endpoint";
pub const FROM_HOST_FORWARD: &str = "cali-from-hep-forward";
pub const TO_HOST_FORWARD: &str = "cali-to-hep-forward";
pub const FAILSAFE_IN: &str = "cali-failsafe-in";
pub const FAILSAFE_OUT: &str = "cali-failsafe-out";
pub const CIDR_BLOCK: &str = "cali-cidr-block";
pub const FORWARD_CHECK: &str = "cali-forward-check";
pub const FORWARD_ENDPOINT_MARK: &str = "cali-forward-endpoint-mark";
pub const SET_ENDPOINT_MARK: &str = "cali-set-endpoint-mark";
pub const FROM_ENDPOINT_MARK: &str = "cali-from-endpoint-mark";
pub const RPF_SKIP: &str = "cali-rpf-skip";
pub const WIREGUARD_INCOMING_MARK: &str = "cali-wireguard-incoming-mark";
pub const FLOATING_IP_DNAT: &str = "cali-fip-dnat";
pub const FLOATING_IP_SNAT: &str = "cali-fip-snat";
pub const NAT_OUTGOING: &str = "cali-nat-outgoing";
pub const EGRESS_DSCP: &str = "cali-egress-dscp";

/// Seen from the endpoint: ingress is what arrives at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub fn letter(self) -> char {
        match self {
            Direction::Ingress => 'I',
            Direction::Egress => 'E',
        }
    }

    pub fn nflog_group(self) -> u32 {
        match self {
            Direction::Ingress => 1,
            Direction::Egress => 2,
        }
    }
}

/// Chains that belong to one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointChain {
    ToWorkload,
    FromWorkload,
    ToHost,
    FromHost,
    ToHostForward,
    FromHostForward,
    SetMark,
}

pub fn endpoint_chain(kind: EndpointChain, iface: &str) -> String {
    let prefix = match kind {
        EndpointChain::ToWorkload => "cali-tw-",
        EndpointChain::FromWorkload => "cali-fw-",
        EndpointChain::ToHost => "cali-th-",
        EndpointChain::FromHost => "cali-fh-",
        EndpointChain::ToHostForward => "cali-thfw-",
        EndpointChain::FromHostForward => "cali-fhfw-",
        EndpointChain::SetMark => "cali-sm-",
    };
    limited(prefix, iface, CHAIN_LIMIT)
}

pub fn policy_chain(key: &PolicyKey, direction: Direction) -> String {
    let prefix = match direction {
        Direction::Ingress => "cali-pi-",
        Direction::Egress => "cali-po-",
    };
    limited(prefix, &policy_id(key), CHAIN_LIMIT)
}

pub fn profile_chain(name: &str, direction: Direction) -> String {
    let prefix = match direction {
        Direction::Ingress => "cali-pri-",
        Direction::Egress => "cali-pro-",
    };
    limited(prefix, name, CHAIN_LIMIT)
}

pub fn group_chain(uid: &str, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("cali-gi-{uid}"),
        Direction::Egress => format!("cali-go-{uid}"),
    }
}

/// The chain below `root` for the interfaces that go on with this character.
pub fn dispatch_child(root: &str, next: &str) -> String {
    limited(&format!("{root}-"), next, CHAIN_LIMIT)
}

/// Kind as it is written in policy ids.
pub fn short_kind(kind: &str) -> &str {
    match kind {
        "NetworkPolicy" => "np",
        "GlobalNetworkPolicy" => "gnp",
        "KubernetesNetworkPolicy" => "knp",
        "KubernetesClusterNetworkPolicy" | "ClusterNetworkPolicy" => "kcnp",
        "StagedNetworkPolicy" => "snp",
        "StagedGlobalNetworkPolicy" => "sgnp",
        "StagedKubernetesNetworkPolicy" => "sknp",
        other => other,
    }
}

/// Staged policies are computed and shown, never enforced.
pub fn is_staged(kind: &str) -> bool {
    kind.starts_with("Staged")
}

/// `np/namespace/name`, `gnp/name`.
pub fn policy_id(key: &PolicyKey) -> String {
    format!("{}/{}", short_kind(&key.kind), qualified_name(key))
}

/// `namespace/name`, or the name alone.
pub fn qualified_name(key: &PolicyKey) -> String {
    if key.namespace.is_empty() { key.name.clone() } else { format!("{}/{}", key.namespace, key.name) }
}

/// Identity of a group: what it selects, which way, and its members in order. The selector counts as it
/// was written.
pub fn group_uid(selector: &str, direction: Direction, members: &[PolicyKey]) -> String {
    let word = match direction {
        Direction::Ingress => "inbound",
        Direction::Egress => "outbound",
    };
    let mut digest = Sha3_224::new();
    digest.update(format!("{selector}\n{word}\n{}\n", members.len()).as_bytes());
    for key in members {
        let line = format!("{{Name: {}, Namespace: {}, Kind: {}}}\n", key.name, key.namespace, key.kind);
        digest.update(line.as_bytes());
    }
    let mut uid = URL_SAFE_NO_PAD.encode(digest.finalize());
    uid.truncate(GROUP_UID_LENGTH);
    uid
}

/// The MAC address of a node's VXLAN device: from the node's name, so that every node can tell it.
pub fn vtep_mac(node: &str, v6: bool) -> String {
    let suffix = if v6 { "-v6" } else { "" };
    let digest = Sha1::digest(format!("{node}{suffix}").as_bytes());
    let mut mac = "66".to_owned();
    for byte in &digest[..5] {
        mac.push_str(&format!(":{byte:02x}"));
    }
    mac
}

/// Whether a restore line can hold this as a word, unquoted. Names come from the datastore: one that it
/// cannot hold would spoil the whole transaction, or be read as something else.
pub fn is_plain_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\`#".contains(&b))
}

/// A word that is the name of one interface: no pattern, and nothing that is read as an option.
pub fn is_interface(name: &str) -> bool {
    is_plain_word(name) && !name.is_empty() && !name.contains('+') && !name.starts_with(['-', '!'])
}

/// Prefix and suffix, the suffix hashed where both together are too long, where they are exactly as long as
/// allowed and could be taken for a hashed name, or where a line could not hold it.
fn limited(prefix: &str, suffix: &str, limit: usize) -> String {
    let length = prefix.len() + suffix.len();
    let fits = length < limit || (length == limit && !suffix.starts_with('_'));
    if fits && is_plain_word(suffix) {
        return format!("{prefix}{suffix}");
    }
    let mut name = format!("{prefix}_{}", URL_SAFE_NO_PAD.encode(Sha256::digest(suffix.as_bytes())));
    name.truncate(limit);
    name
}

/// NFLOG prefixes: what a collector of flow logs gets to know about the rule that a packet hit.
pub mod nflog {
    use super::*;

    /// `action` is A, D or P; `owner` P for a policy, R for a profile.
    pub fn rule(action: char, owner: char, direction: Direction, index: usize, id: &str) -> String {
        shortened(format!("{action}{owner}{}{index}|{id}", direction.letter()))
    }

    pub fn end_of_tier(denied: bool, direction: Direction, tier: &str) -> String {
        let action = if denied { 'D' } else { 'P' };
        shortened(format!("{action}P{}|{tier}", direction.letter()))
    }

    pub fn no_profile(direction: Direction) -> String {
        format!("DR{}", direction.letter())
    }

    fn shortened(prefix: String) -> String {
        let plain = |c: char| if is_plain_word(c.encode_utf8(&mut [0; 4])) { c } else { '_' };
        let prefix: String = prefix.chars().map(plain).collect();
        if prefix.len() < NFLOG_LIMIT {
            return prefix;
        }
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(prefix.as_bytes()));
        let room = NFLOG_LIMIT - 2 * NFLOG_KEPT - 2;
        let (head, tail) = (&prefix[..NFLOG_KEPT], &prefix[prefix.len() - NFLOG_KEPT..]);
        format!("{head}_{}_{tail}", &hash[..room])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_that_looks_hashed_is_hashed_only_at_the_limit() {
        let at_limit = format!("_{}", "x".repeat(19));
        assert_ne!(limited("cali-pi-", &at_limit, 28), format!("cali-pi-{at_limit}"));
        assert_eq!(limited("cali-pi-", "_short", 28), "cali-pi-_short");
        assert_eq!(limited("cali-pi-", &"x".repeat(20), 28).len(), 28);
    }

    #[test]
    fn names_that_a_line_cannot_hold_are_hashed() {
        for name in ["a b", "a\n-A INPUT", "a\"b", "ä"] {
            let chain = profile_chain(name, Direction::Ingress);
            assert!(chain.starts_with("cali-pri-_") && is_plain_word(&chain), "{name}: {chain}");
            assert!(is_plain_word(&nflog::rule('A', 'R', Direction::Ingress, 0, name)));
        }
    }

    #[test]
    fn a_pattern_is_no_interface() {
        assert!(is_interface("cali1234567890a") && is_interface("eth0.100"));
        assert!(!is_interface("cali+") && !is_interface("") && !is_interface("! eth0"));
    }

    #[test]
    fn the_order_of_members_is_part_of_a_groups_identity() {
        let key = |name: &str| PolicyKey {
            kind: "GlobalNetworkPolicy".into(),
            namespace: String::new(),
            name: name.into(),
        };
        let forth = group_uid("all()", Direction::Ingress, &[key("a"), key("b")]);
        let back = group_uid("all()", Direction::Ingress, &[key("b"), key("a")]);
        assert_ne!(forth, back);
        assert_ne!(forth, group_uid("all()", Direction::Egress, &[key("a"), key("b")]));
    }
}
