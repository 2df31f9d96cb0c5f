//! Reads what `ipset save` and `ipset list` print. Pure.

use std::collections::{BTreeMap, BTreeSet};

use felix_calc::output::IpSetKind;

use super::{Member, owned};
use crate::iptables::IpVersion;

/// A set as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSet {
    pub header: Header,
    /// `None` when a member could not be read: the set has to be filled anew.
    pub members: Option<BTreeSet<Member>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Option<IpSetKind>,
    pub family: String,
    pub max_size: u32,
}

/// Reads our sets of one family, line by line, and gives each away when it is whole: a node's sets together are many
/// times the largest of them.
pub struct SetReader {
    version: IpVersion,
    current: Option<(String, KernelSet)>,
}

impl SetReader {
    pub fn new(version: IpVersion) -> SetReader {
        SetReader { version, current: None }
    }

    /// Returns the set that ends before this line.
    pub fn line(&mut self, line: &str) -> Option<(String, KernelSet)> {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("create"), Some(name)) => {
                let made = || {
                    let set = KernelSet { header: header(words), members: Some(BTreeSet::new()) };
                    (name.to_owned(), set)
                };
                std::mem::replace(&mut self.current, owned(self.version, name).then(made))
            }
            (Some("add"), Some(name)) => {
                let set = self.current.as_mut().filter(|(current, _)| current == name);
                if let Some((_, set)) = set {
                    let read =
                        words.next().zip(set.header.kind).and_then(|(text, kind)| Member::parse(kind, text));
                    set.members = set.members.take().zip(read).map(|(mut members, read)| {
                        members.extend(read);
                        members
                    });
                }
                None
            }
            _ => None,
        }
    }

    /// Returns the last set.
    pub fn finish(self) -> Option<(String, KernelSet)> {
        self.current
    }
}

/// How many members our sets of one family have, from what `ipset list -terse` prints.
pub fn owned_sizes(version: IpVersion, listed: &str) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    let mut name = None;
    for line in listed.lines() {
        if let Some(found) = line.strip_prefix("Name: ") {
            name = Some(found).filter(|name| owned(version, name));
        } else if let (Some(text), Some(name)) = (line.strip_prefix("Number of entries: "), name) {
            sizes.extend(text.trim().parse().map(|size| (name.to_owned(), size)));
        }
    }
    sizes
}

fn header<'a>(mut words: impl Iterator<Item = &'a str>) -> Header {
    let kind = match words.next() {
        Some("hash:ip") => Some(IpSetKind::Ip),
        Some("hash:net") => Some(IpSetKind::Net),
        Some("hash:ip,port") => Some(IpSetKind::IpAndPort),
        _ => None,
    };
    let mut header = Header { kind, family: String::new(), max_size: 0 };
    while let Some(word) = words.next() {
        match word {
            "family" => header.family = words.next().unwrap_or_default().into(),
            "maxelem" => header.max_size = words.next().and_then(|n| n.parse().ok()).unwrap_or_default(),
            _ => {}
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
create cali40a hash:net family inet hashsize 1024 maxelem 1048576 bucketsize 12 initval 0xbf66ea70
add cali40a 10.0.0.0/8
add cali40a 1.2.3.4
create foreign hash:ip family inet hashsize 1024 maxelem 65536
add foreign 10.0.0.1
create cali60a hash:ip family inet6 hashsize 1024 maxelem 5
create cali40odd list:set size 8
add cali40odd foreign
";

    fn owned_sets() -> BTreeMap<String, KernelSet> {
        let mut reader = SetReader::new(IpVersion::V4);
        let mut sets: BTreeMap<_, _> = SAVED.lines().filter_map(|line| reader.line(line)).collect();
        sets.extend(reader.finish());
        sets
    }

    #[test]
    fn only_our_sets_of_the_family_are_read() {
        let sets = owned_sets();
        assert_eq!(sets.keys().collect::<Vec<_>>(), ["cali40a", "cali40odd"]);
        let a = &sets["cali40a"];
        assert_eq!(
            a.header,
            Header { kind: Some(IpSetKind::Net), family: "inet".into(), max_size: 1_048_576 }
        );
        let members: Vec<_> = a.members.iter().flatten().map(Member::to_string).collect();
        assert_eq!(members, ["1.2.3.4", "10.0.0.0/8"]);
    }

    #[test]
    fn an_unknown_type_has_no_trustworthy_members() {
        let odd = &owned_sets()["cali40odd"];
        assert_eq!((odd.header.kind, &odd.members), (None, &None));
    }
}
