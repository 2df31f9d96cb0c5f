//! IP sets: members and text forms (pure), and the driver that writes only differences.
//!
//! A set of the calculation holds both families; each family's driver takes its own members out of it.

pub mod member;
pub mod names;
pub mod parse;
pub mod render;
pub mod sets;

pub use member::Member;
pub use sets::IpSets;

use crate::iptables::IpVersion;

/// Longest set name that the kernel takes.
const NAME_LIMIT: usize = 31;

/// The name in the kernel of the set with this id: `cali40…`, `cali60…`.
pub fn kernel_name(version: IpVersion, id: &str) -> String {
    let mut name = format!("{}{id}", prefix(version));
    name.truncate(
        name.char_indices()
            .map(|(i, c)| i + c.len_utf8())
            .take_while(|end| *end <= NAME_LIMIT)
            .last()
            .unwrap_or(0),
    );
    name
}

fn prefix(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "cali40",
        IpVersion::V6 => "cali60",
    }
}

/// Names of a set that is being filled before it takes another's place.
fn temporary_prefix(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "cali4t",
        IpVersion::V6 => "cali6t",
    }
}

/// Whether a set of this name is ours, from this run or a former one.
pub fn owned(version: IpVersion, name: &str) -> bool {
    name.starts_with(prefix(version)) || name.starts_with(temporary_prefix(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_family_and_end_at_the_kernels_limit() {
        assert_eq!(kernel_name(IpVersion::V4, "this-host"), "cali40this-host");
        let long = kernel_name(IpVersion::V6, "s:0123456789abcdefghijklmnopqrstuvwxyz");
        assert_eq!(long, "cali60s:0123456789abcdefghijklm");
        assert_eq!(long.len(), NAME_LIMIT);
        assert!(owned(IpVersion::V6, &long) && !owned(IpVersion::V4, &long));
        assert!(owned(IpVersion::V4, "cali4t0") && !owned(IpVersion::V4, "KUBE-CLUSTER-IP"));
    }
}
