//! What configuration says about tunnels and about who writes routes to other nodes.

use regex::Regex;

use crate::iptables::IpVersion;

#[derive(Clone, Debug, PartialEq)]
pub struct TunnelSettings {
    /// From the pools unless configured.
    pub vxlan_v4: bool,
    pub vxlan_v6: bool,
    pub ipip: bool,
    pub vni: u32,
    pub port: u16,
    /// Zero: what the interfaces allow.
    pub vxlan_mtu_v4: u32,
    pub vxlan_mtu_v6: u32,
    pub ipip_mtu: u32,
    /// Interfaces that the MTU is taken from.
    pub mtu_interfaces: Pattern,
    /// ProgramClusterRoutes. VXLAN is always felix's.
    pub program: Program,
    /// RouteSyncDisabled: look, but do not touch routes.
    pub routes_disabled: bool,
    /// Routes on workload interfaces are the other driver's.
    pub prefixes: Vec<String>,
}

/// What of the routes without VXLAN felix writes; BIRD writes the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    pub ipip: bool,
    pub plain: bool,
}

impl Program {
    pub fn parse(text: &str) -> Result<Program, &'static str> {
        let known = [
            ("Disabled", false, false),
            ("EnabledIPIPOnly", true, false),
            ("EnabledNoEncapOnly", false, true),
            ("Enabled", true, true),
        ];
        let found = known.into_iter().find(|(name, ..)| name.eq_ignore_ascii_case(text));
        found
            .map(|(_, ipip, plain)| Program { ipip, plain })
            .ok_or("none of Disabled, EnabledIPIPOnly, EnabledNoEncapOnly, Enabled")
    }
}

/// A regular expression, compared by its text.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, &'static str> {
        Regex::new(text).map(Pattern).map_err(|_| "not a regular expression")
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Default for TunnelSettings {
    fn default() -> Self {
        const INTERFACES: &str = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)";
        TunnelSettings {
            vxlan_v4: false,
            vxlan_v6: false,
            ipip: false,
            vni: 4096,
            port: 4789,
            vxlan_mtu_v4: 0,
            vxlan_mtu_v6: 0,
            ipip_mtu: 0,
            mtu_interfaces: Pattern::parse(INTERFACES).expect("a regular expression"),
            program: Program { ipip: true, plain: false },
            routes_disabled: false,
            prefixes: vec!["cali".into()],
        }
    }
}

impl TunnelSettings {
    pub fn is_workload(&self, interface: &str) -> bool {
        self.prefixes.iter().any(|prefix| interface.starts_with(prefix.as_str()))
    }

    pub fn vxlan(&self, version: IpVersion) -> bool {
        match version {
            IpVersion::V4 => self.vxlan_v4,
            IpVersion::V6 => self.vxlan_v6,
        }
    }
}
