//! `bulrushctl certs`: what it makes, what it refuses. That agents and operators get in with it, and nobody else, is
//! shown with a real typha: typha/tests/convergence.rs.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use support::Ctl;

/// Every file below, relative to the folder.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => _ = found.insert(path.strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    found
}

fn expected(nodes: &[&str]) -> BTreeSet<String> {
    let agents = nodes.iter().flat_map(|node| ["felix", "confd"].map(|agent| format!("{node}/{agent}")));
    let names = ["ca", "typha", "operator"].map(str::to_owned).into_iter().chain(agents);
    names.flat_map(|name| [format!("{name}.crt"), format!("{name}.key")]).collect()
}

#[test]
fn a_lab_has_a_ca_and_a_certificate_for_typha_an_operator_and_each_agent_of_each_node() {
    let (ctl, temporary) = (Ctl::new(&[]), tempfile::tempdir().unwrap());
    let lab = temporary.path().join("lab");
    let folder = lab.display().to_string();
    let said = ctl.ok(&["certs", "--out", &folder, "--nodes", "3"]);
    assert!(said.contains("3 node(s)") && said.contains(&format!("TYPHA_CAFILE={folder}/ca.crt")), "{said}");
    assert_eq!(files(&lab), expected(&["node-1", "node-2", "node-3"]));
    for file in files(&lab) {
        let mode = std::fs::metadata(lab.join(&file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if file.ends_with(".key") { 0o600 } else { 0o644 }, "{file}");
    }

    // A lab that is in use is not made anew.
    let before = std::fs::read(lab.join("ca.crt")).unwrap();
    let again = ctl.run(&["certs", "--out", &folder]);
    assert!(again.code == 1 && again.err.contains("has a CA already"), "{again:?}");
    assert_eq!(std::fs::read(lab.join("ca.crt")).unwrap(), before);
}

#[test]
fn nodes_have_the_names_that_they_are_given() {
    let (ctl, temporary) = (Ctl::new(&[]), tempfile::tempdir().unwrap());
    let made = |name: &str, more: &[&str]| {
        let folder = temporary.path().join(name);
        ctl.ok(&[&["certs", "--out", &folder.display().to_string()], more].concat());
        files(&folder)
    };
    assert_eq!(made("prefixed", &["--nodes", "2", "--node-prefix", "w"]), expected(&["w1", "w2"]));
    assert_eq!(made("named", &["--node", "rack-1.lab", "--node", "x"]), expected(&["rack-1.lab", "x"]));
}

#[test]
fn names_that_would_leave_the_folder_and_contradictions_are_refused() {
    let (ctl, temporary) = (Ctl::new(&[]), tempfile::tempdir().unwrap());
    let lab = temporary.path().join("lab");
    let folder = lab.display().to_string();
    let run = |more: &[&str]| ctl.run(&[&["certs", "--out", &folder], more].concat());
    for bad in ["../x", "..", ".", ""] {
        let refused = run(&["--node", bad]);
        assert!(refused.code == 1 && refused.err.contains("is no name of a node"), "{bad}: {refused:?}");
    }
    for usage in [&["--node", "x", "--nodes", "2"][..], &["--nodes", "many"], &["--valid", "soon"]] {
        assert_eq!(run(usage).code, 2, "{usage:?}");
    }
    assert!(!lab.exists(), "nothing is made of it");
}
