//! iptables: rendering and hashing (pure), and the driver that writes only differences.

mod audit;
pub mod chains;
pub mod features;
pub mod generation;
pub mod hash;
pub mod parse;
pub mod plan;
pub mod render;
pub mod restore;
pub mod table;
pub mod tables;

use std::borrow::Cow;

/// A rule as fragments of an `iptables-restore` line: `-A <chain> [hash comment] [comments] match action`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Match fragment, may be empty: `-m mark --mark 0x1/0x1`.
    pub matches: String,
    /// Action fragment, may be empty: `--jump DROP`.
    pub action: String,
    /// Unescaped comments; rendering makes them safe.
    pub comments: Vec<Cow<'static, str>>,
}

/// A chain of ours with its rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub rules: Vec<Rule>,
}

impl Chain {
    /// Gives up the room that was left for more: chains are kept as long as they are wanted.
    fn shrink(&mut self) {
        self.rules.shrink_to_fit();
        for rule in &mut self.rules {
            rule.matches.shrink_to_fit();
            rule.action.shrink_to_fit();
            rule.comments.shrink_to_fit();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableName {
    Raw,
    Mangle,
    Nat,
    Filter,
}

impl TableName {
    /// In the order in which a packet meets them; filter is written last, when what it needs is there.
    pub const ALL: [TableName; 4] = [TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Filter];
}

impl IpVersion {
    pub const ALL: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];
}

/// Which of the kernel's two implementations the programs talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        }
    }
}

/// Where our rules stand in chains of the kernel: ChainInsertMode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InsertMode {
    #[default]
    Insert,
    Append,
}
