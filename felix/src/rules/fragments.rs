//! Match and action fragments, spelled as upstream spells them: the spelling is part of the hashes.

use std::borrow::Cow;

use crate::ipsets::kernel_name;
use crate::iptables::{IpVersion, Rule};

/// `--jump DROP` is good in every table; the kernel refuses REJECT outside filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyAction {
    #[default]
    Drop,
    Reject,
}

impl DenyAction {
    pub fn action(self) -> String {
        jump(match self {
            DenyAction::Drop => "DROP",
            DenyAction::Reject => "REJECT",
        })
    }

    /// First word of the comments on denying rules.
    pub fn verb(self) -> &'static str {
        match self {
            DenyAction::Drop => "Drop",
            DenyAction::Reject => "Reject",
        }
    }
}

/// What happens to an accepted packet: it passes for good, or goes on to the rules of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowAction {
    #[default]
    Accept,
    Return,
}

impl AllowAction {
    pub fn action(self) -> String {
        match self {
            AllowAction::Accept => accept(),
            AllowAction::Return => ret(),
        }
    }
}

/// A match under construction: fragments in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct Match(Vec<String>);

impl Match {
    pub fn new() -> Self {
        Match::default()
    }

    pub fn raw(mut self, fragment: impl Into<String>) -> Self {
        self.0.push(fragment.into());
        self
    }

    pub fn push(&mut self, fragment: impl Into<String>) {
        self.0.push(fragment.into());
    }

    /// Both matches, the other's fragments last.
    pub fn and(mut self, other: Match) -> Self {
        self.0.extend(other.0);
        self
    }

    pub fn mark_set(self, mark: u32) -> Self {
        self.raw(format!("-m mark --mark {mark:#x}/{mark:#x}"))
    }

    pub fn mark_clear(self, mark: u32) -> Self {
        self.raw(format!("-m mark --mark 0/{mark:#x}"))
    }

    pub fn mark_not_clear(self, mark: u32) -> Self {
        self.raw(format!("-m mark ! --mark 0/{mark:#x}"))
    }

    pub fn mark_is(self, mark: u32, mask: u32) -> Self {
        self.raw(format!("-m mark --mark {mark:#x}/{mask:#x}"))
    }

    pub fn mark_is_not(self, mark: u32, mask: u32) -> Self {
        self.raw(format!("-m mark ! --mark {mark:#x}/{mask:#x}"))
    }

    pub fn in_interface(self, name: &str) -> Self {
        self.raw(format!("--in-interface {name}"))
    }

    pub fn out_interface(self, name: &str) -> Self {
        self.raw(format!("--out-interface {name}"))
    }

    pub fn protocol(self, protocol: &str) -> Self {
        self.raw(format!("-p {protocol}"))
    }

    pub fn conntrack(self, state: &str) -> Self {
        self.raw(format!("-m conntrack --ctstate {state}"))
    }

    pub fn source(self, net: &str) -> Self {
        self.raw(format!("--source {net}"))
    }

    pub fn destination(self, net: &str) -> Self {
        self.raw(format!("--destination {net}"))
    }

    pub fn source_ports(self, ports: &str) -> Self {
        self.raw(format!("-m multiport --source-ports {ports}"))
    }

    pub fn destination_ports(self, ports: &str) -> Self {
        self.raw(format!("-m multiport --destination-ports {ports}"))
    }

    pub fn set(self, version: IpVersion, id: &str, side: &str) -> Self {
        self.raw(format!("-m set --match-set {} {side}", kernel_name(version, id)))
    }

    pub fn not_set(self, version: IpVersion, id: &str, side: &str) -> Self {
        self.raw(format!("-m set ! --match-set {} {side}", kernel_name(version, id)))
    }

    pub fn to_local(self) -> Self {
        self.raw("-m addrtype --dst-type LOCAL")
    }

    pub fn from_local(self) -> Self {
        self.raw("-m addrtype --src-type LOCAL")
    }

    /// The rule that does `action` on this match.
    pub fn then(self, action: impl Into<String>) -> Rule {
        Rule { matches: self.0.join(" "), action: action.into(), comments: Vec::new() }
    }
}

impl Rule {
    pub(super) fn comment(mut self, comment: impl Into<Cow<'static, str>>) -> Self {
        self.comments.push(comment.into());
        self
    }
}

/// A rule for every packet.
pub fn always(action: impl Into<String>) -> Rule {
    Match::new().then(action)
}

pub fn jump(target: &str) -> String {
    format!("--jump {target}")
}

pub fn goto(target: &str) -> String {
    format!("--goto {target}")
}

pub fn accept() -> String {
    jump("ACCEPT")
}

pub fn ret() -> String {
    jump("RETURN")
}

pub fn drop() -> String {
    jump("DROP")
}

pub fn notrack() -> String {
    jump("NOTRACK")
}

pub fn set_mark(mark: u32) -> String {
    format!("--jump MARK --set-mark {mark:#x}/{mark:#x}")
}

pub fn clear_mark(mask: u32) -> String {
    format!("--jump MARK --set-mark 0/{mask:#x}")
}

pub fn set_masked_mark(mark: u32, mask: u32) -> String {
    format!("--jump MARK --set-mark {mark:#x}/{mask:#x}")
}

/// Whether an address or CIDR in text belongs to the family.
pub fn is_of_family(net: &str, version: IpVersion) -> bool {
    net.contains(':') == (version == IpVersion::V6)
}

/// Port ranges as `multiport` takes them, split so that none exceeds its 15 slots: a single port takes one,
/// a range two.
pub fn port_lists(ports: &[(u16, u16)]) -> Vec<String> {
    const SLOTS: usize = 15;
    let mut lists = Vec::new();
    let mut list: Vec<String> = Vec::new();
    let mut used = 0;
    for &(first, last) in ports {
        let (text, slots) =
            if first == last { (first.to_string(), 1) } else { (format!("{first}:{last}"), 2) };
        if used + slots > SLOTS {
            lists.push(list.join(","));
            list.clear();
            used = 0;
        }
        list.push(text);
        used += slots;
    }
    if !list.is_empty() {
        lists.push(list.join(","));
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lists_hold_fifteen_slots_at_most() {
        let singles: Vec<_> = (1..=16).map(|port| (port, port)).collect();
        assert_eq!(port_lists(&singles), ["1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "16"]);
        let ranges: Vec<_> = (1..=8).map(|n| (n * 10, n * 10 + 1)).collect();
        assert_eq!(port_lists(&ranges).len(), 2);
        assert!(port_lists(&[]).is_empty());
    }
}
