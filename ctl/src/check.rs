//! `validate`: what is wrong with manifests, without any datastore.
//!
//! The same checks as before a write, by the same code as typha's: what passes here is accepted there. On top
//! come warnings about objects that are good by themselves, and not beside each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use ipnet::IpNet;
use syncer_common::processors::Processors;

use crate::Report;
use crate::files::{self, Found};
use crate::old::Forms;

pub fn run(paths: &[PathBuf], namespace: &str) -> Result<Report> {
    let files::Loaded { found, mut mistakes, mut warnings } = files::load(paths, namespace, Forms::Calico)?;
    if found.is_empty() && mistakes.is_empty() {
        bail!("No resources specified");
    }
    let mut processors = Processors::new();
    let unreadable = mistakes.len();
    let mut refused = 0;
    for found in &found {
        let wrong = files::check(&found.resource, &mut processors);
        refused += usize::from(!wrong.is_empty());
        mistakes.extend(wrong.iter().map(|error| found.mistake(error)));
    }
    warnings.extend(duplicates(&found));
    warnings.extend(overlapping_pools(&found));
    let mut text = String::new();
    for mistake in &mistakes {
        writeln!(text, "{mistake}")?;
    }
    if mistakes.is_empty() {
        let kind = &found[0].resource.kind;
        let of = match found.iter().all(|other| other.resource.kind == *kind) {
            true => format!(" '{kind}'"),
            false => String::new(),
        };
        writeln!(text, "Successfully validated {}{of} resource(s)", found.len())?;
    } else {
        let (bad, all) = (unreadable + refused, unreadable + found.len());
        writeln!(text, "{} mistake(s) in {bad} of {all} resource(s)", mistakes.len())?;
    }
    Ok(Report { text, warnings, complete: mistakes.is_empty(), exit: None })
}

/// Objects with one identity: whoever applies them keeps the last.
fn duplicates(found: &[Found]) -> Vec<String> {
    let mut first: BTreeMap<String, &Found> = BTreeMap::new();
    let mut warnings = Vec::new();
    for found in found {
        let Ok(path) = found.resource.key_path() else { continue };
        if let Some(before) = first.insert(path, found) {
            warnings.push(format!(
                "{} ({}): is also in {}:{}, and the later one counts: remove one of the two",
                found.place,
                found.resource.id(),
                before.place.file.display(),
                before.place.line,
            ));
        }
    }
    warnings
}

/// Pools that share addresses would give them out twice.
fn overlapping_pools(found: &[Found]) -> Vec<String> {
    let cidr = |found: &Found| found.resource.spec.get("cidr")?.as_str()?.parse::<IpNet>().ok();
    let pools: Vec<(&Found, IpNet)> = found
        .iter()
        .filter(|found| found.resource.kind == "IPPool")
        .filter_map(|found| Some((found, cidr(found)?.trunc())))
        .collect();
    let mut warnings = Vec::new();
    for (index, (pool, cidr)) in pools.iter().enumerate() {
        for (other, theirs) in &pools[..index] {
            let same = pool.resource.metadata.name == other.resource.metadata.name;
            if !same && (cidr.contains(theirs) || theirs.contains(cidr)) {
                warnings.push(format!(
                    "{} ({}): spec.cidr: {cidr} overlaps {theirs} of {} in {}:{}: addresses of both could be \
                     given out twice",
                    pool.place,
                    pool.resource.id(),
                    other.resource.id(),
                    other.place.file.display(),
                    other.place.line,
                ));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str =
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.0.0.0/16}\n";

    fn validate(files: &[(&str, &str)]) -> Report {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let report = run(&[dir.path().into()], "default").unwrap();
        let plain = |text: &str| text.replace(&format!("{}/", dir.path().display()), "");
        let warnings = report.warnings.iter().map(|warning| plain(warning)).collect();
        Report { text: plain(&report.text), warnings, complete: report.complete, exit: None }
    }

    #[test]
    fn good_manifests_are_counted() {
        let report = validate(&[("a.yaml", POOL)]);
        assert_eq!(report.text, "Successfully validated 1 'IPPool' resource(s)\n");
        assert!(report.complete && report.warnings.is_empty());
    }

    #[test]
    fn every_mistake_of_every_file_is_listed() {
        let bad = POOL.replace("10.0.0.0/16", "fd00::/33, ipipMode: Always, blockSize: 10");
        let report = validate(&[("a.yaml", "kind: [\n"), ("b.yaml", &format!("{POOL}---\n{bad}"))]);
        assert!(!report.complete);
        let lines: Vec<&str> = report.text.lines().collect();
        assert_eq!(lines.len(), 4, "{}", report.text);
        assert!(lines[0].starts_with("a.yaml:2: document 1: the document: "), "{}", lines[0]);
        assert!(lines[1].starts_with("b.yaml:6: document 2 (IPPool(a)): spec.blockSize: "), "{}", lines[1]);
        assert!(lines[2].starts_with("b.yaml:6: document 2 (IPPool(a)): spec.ipipMode: "), "{}", lines[2]);
        assert_eq!(lines[3], "3 mistake(s) in 2 of 3 resource(s)");
    }

    #[test]
    fn what_only_typha_refuses_is_a_mistake_too() {
        // A member of a list of addresses: left out by typha, with a finding.
        let set = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s}\nspec: {nets: [10.0.0.0/8, nonsense]}\n";
        let report = validate(&[("a.yaml", set)]);
        assert!(report.text.contains("(GlobalNetworkSet(s)): spec.nets[1]: "), "{}", report.text);
        assert!(!report.complete);
    }

    #[test]
    fn duplicates_and_overlaps_are_warnings() {
        let small = POOL.replace("{name: a}", "{name: b}").replace("10.0.0.0/16", "10.0.7.0/24");
        let report = validate(&[("a.yaml", POOL), ("b.yaml", &format!("# again\n{POOL}---\n{small}"))]);
        assert!(report.complete, "{}", report.text);
        assert_eq!(
            report.warnings[0],
            "b.yaml:2: document 1 (IPPool(a)): is also in a.yaml:1, and the later one counts: remove one of the two"
        );
        assert_eq!(report.warnings.len(), 3, "{:?}", report.warnings);
        assert!(
            report.warnings[1].starts_with("b.yaml:7: document 2 (IPPool(b)): spec.cidr: 10.0.7.0/24 overlaps 10.0.0.0/16 of IPPool(a) in a.yaml:1: "),
            "{}",
            report.warnings[1]
        );
    }
}
