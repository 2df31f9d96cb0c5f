//! Old names in today's form: lower case, no other characters than letters, digits, dashes and dots.

use super::Old;

/// Profiles of namespaces were called otherwise.
const OLD_NAMESPACE_PROFILE: &str = "k8s_ns.";
const NAMESPACE_PROFILE: &str = "kns.";

impl Old {
    /// The name in today's form, with a word about it if it is another one.
    pub(super) fn renamed(&mut self, field: &str, old: &str) -> String {
        let new = name(old);
        if new != old {
            self.warn(field, format!("{old:?} is called {new:?} now: old names had other rules"));
        }
        new
    }

    pub(super) fn renamed_profiles(&mut self, profiles: Vec<String>) -> Vec<String> {
        let rename = |(index, profile): (usize, String)| {
            self.renamed_profile(&format!("spec.profiles[{index}]"), &profile)
        };
        profiles.into_iter().enumerate().map(rename).collect()
    }

    pub(super) fn renamed_profile(&mut self, field: &str, old: &str) -> String {
        match old.strip_prefix(OLD_NAMESPACE_PROFILE) {
            Some(namespace) => format!("{NAMESPACE_PROFILE}{}", self.renamed(field, namespace)),
            None => self.renamed(field, old),
        }
    }
}

/// Every part between dots begins and ends with a letter or digit.
fn name(old: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let plain: String = old.chars().map(allowed).collect();
    let parts = plain.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(".")
}

/// An address or a network as a name: `10-1-0-0-16`.
pub(super) fn of_address(text: &str) -> String {
    let name = text.replace(['.', ':', '/'], "-").to_ascii_lowercase();
    let (before, after) =
        (if name.starts_with('-') { "0" } else { "" }, if name.ends_with('-') { "0" } else { "" });
    format!("{before}{name}{after}")
}

/// A part of a workload endpoint's name.
pub(super) fn dashes_doubled(part: &str) -> String {
    part.replace('-', "--")
}
