//! iptables: rendering and hashing (pure), and the driver that writes only differences.

/// A rule as fragments of an `iptables-restore` line: `-A <chain> [hash comment] [comments] match action`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Match fragment, may be empty: `-m mark --mark 0x1/0x1`.
    pub matches: String,
    /// Action fragment, may be empty: `--jump DROP`.
    pub action: String,
    /// Unescaped comments; rendering makes them safe.
    pub comments: Vec<String>,
}

/// A chain of ours with its rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub rules: Vec<Rule>,
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
