//! `confd render` as a program: what it prints, writes and refuses.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const MANIFESTS: &str = "\
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 172.30.0.11/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 172.30.0.12/24}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: secret}
spec: {peerIP: 10.9.0.1, asNumber: 65001, password: {secretKeyRef: {name: s, key: k}}}
";

fn confd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_confd")).args(args).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| text(entry.unwrap().file_name().as_encoded_bytes()))
        .collect();
    names.sort();
    names
}

#[test]
fn it_prints_the_files_written_and_names_what_is_withheld() {
    let dir = tempfile::tempdir().unwrap();
    let (manifests, out) = (dir.path().join("manifests"), dir.path().join("out"));
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("all.yaml"), MANIFESTS).unwrap();
    let path = |path: &Path| path.display().to_string();
    let ran = confd(&["render", "--node", "n1", "--manifests", &path(&manifests), "--out", &path(&out)]);
    let (stdout, stderr) = (text(&ran.stdout), text(&ran.stderr));
    assert!(ran.status.success(), "{stderr}");
    assert_eq!(stdout, format!("{}\n", out.join("bird.cfg").display()));
    assert!(stderr.contains("BGPPeer(secret)") && stderr.contains("Global_10_9_0_1"), "{stderr}");
    let written = std::fs::read_to_string(out.join("bird.cfg")).unwrap();
    assert!(written.contains("protocol bgp Mesh_172_30_0_12") && !written.contains("10.9.0.1"), "{written}");
    assert_eq!(names(dir.path()), ["manifests", "out"]);
    assert_eq!((names(&manifests), names(&out)), (vec!["all.yaml".to_owned()], vec!["bird.cfg".to_owned()]));
}

#[test]
fn the_classic_syntax_gives_six_files_and_opens_what_is_incomplete_unless_told_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let (manifests, out) = (dir.path().join("all.yaml"), dir.path().join("out/."));
    std::fs::write(&manifests, MANIFESTS).unwrap();
    let render = |more: &[&str]| {
        let (manifests, out) = (manifests.display().to_string(), out.display().to_string());
        let base =
            ["render", "--node", "n1", "--manifests", &manifests, "--out", &out, "--syntax", "classic"];
        let ran = confd(&[&base, more].concat());
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        assert!(text(&ran.stderr).contains("BGPPeer(secret)"), "named either way");
        std::fs::read_to_string(out.clone() + "/bird.cfg").unwrap()
    };
    assert!(render(&[]).contains("protocol bgp Global_10_9_0_1"));
    assert!(!render(&["--incomplete-peers", "withhold"]).contains("Global_10_9_0_1"));
    let six = ["bird.cfg", "bird6.cfg", "bird6_aggr.cfg", "bird6_ipam.cfg", "bird_aggr.cfg", "bird_ipam.cfg"];
    assert_eq!(names(&dir.path().join("out")), six);
}

#[test]
fn a_secret_beside_the_objects_gives_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: kube-system}\nstringData: {k: hunter2}\n";
    std::fs::write(dir.path().join("all.yaml"), format!("{MANIFESTS}{secret}")).unwrap();
    let (manifests, out) = (dir.path().display().to_string(), dir.path().join("out").display().to_string());
    let ran = confd(&["render", "--node", "n1", "--manifests", &manifests, "--out", &out]);
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
    let written = std::fs::read_to_string(out + "/bird.cfg").unwrap();
    assert!(written.contains("password \"hunter2\";"), "{written}");
    assert!(!text(&ran.stdout).contains("hunter2"));
}

#[test]
fn a_missing_folder_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let ran = confd(&["render", "--node", "n1", "--manifests", "/nowhere", "--out", &out]);
    assert!(!ran.status.success() && text(&ran.stderr).contains("/nowhere"));
    assert!(names(dir.path()).is_empty(), "nothing is written");
}

#[test]
fn help_names_every_setting() {
    let ran = confd(&["--help"]);
    let help = text(&ran.stdout);
    for setting in
        ["--bird-socket", "--bird-config", "--bird-binary", "CONFD_TYPHAADDR", "FELIX_TYPHAADDR", "NODENAME"]
    {
        assert!(help.contains(setting), "{setting} is missing:\n{help}");
    }
}
