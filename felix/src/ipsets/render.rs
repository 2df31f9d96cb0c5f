//! Lines for `ipset restore`. Pure.

use std::fmt::Write as _;

use felix_calc::output::IpSetKind;

use super::Member;
use crate::iptables::IpVersion;

pub fn create(text: &mut String, name: &str, kind: IpSetKind, version: IpVersion, max_size: u32) {
    let kind = match kind {
        IpSetKind::Ip => "hash:ip",
        IpSetKind::Net => "hash:net",
        IpSetKind::IpAndPort => "hash:ip,port",
    };
    line(text, format_args!("create {name} {kind} family {} maxelem {max_size}", family(version)));
}

/// Removals come first, so that a set near its limit does not overflow on the way.
pub fn change<'a>(
    text: &mut String,
    name: &str,
    remove: impl Iterator<Item = &'a Member>,
    add: impl Iterator<Item = &'a Member>,
) {
    for member in remove {
        line(text, format_args!("del {name} {member} -exist"));
    }
    for member in add {
        line(text, format_args!("add {name} {member} -exist"));
    }
}

pub fn swap(text: &mut String, from: &str, to: &str) {
    line(text, format_args!("swap {from} {to}"));
}

pub fn destroy(text: &mut String, name: &str) {
    line(text, format_args!("destroy {name}"));
}

pub fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "inet",
        IpVersion::V6 => "inet6",
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("writing to a String cannot fail");
}
