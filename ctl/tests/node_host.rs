//! `node checksystem` and `node diags`, on this host.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ctl(path: &str, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulrushctl"));
    let ran = command.env_clear().env("PATH", path).args(args).output().expect("the program starts");
    let Output { status, stdout, stderr } = ran;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output in UTF-8");
    Ended { code: status.code(), out: text(stdout), err: text(stderr) }
}

fn links() -> Vec<u8> {
    Command::new("ip").args(["-o", "link"]).output().expect("ip").stdout
}

/// This machine runs our nodes in its tests: it can be one.
#[test]
fn what_a_host_lacks_is_found_by_trying() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("BULRUSH_REQUIRE").is_none(), "needs root");
        println!("SKIPPED: needs root");
        return;
    }
    let before = links();
    let ended = ctl(PATH, &["node", "checksystem"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in
        ["match set                    OK", "ipset, hash:net              OK", "This host can be a node.\n"]
    {
        assert!(ended.out.contains(part), "{part} is missing:\n{}", ended.out);
    }
    assert_eq!(links(), before, "what was tried is gone");

    // Without its programs a host can not be one, and each is named.
    let bare = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink("/usr/bin/unshare", bare.path().join("unshare")).expect("a link");
    let ended = ctl(bare.path().to_str().expect("a path in UTF-8"), &["node", "checksystem"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in [
        "no program iptables: install the package iptables",
        "no program ipset",
        "thing(s) that every node needs",
    ] {
        assert!(ended.out.contains(part), "{part} is missing:\n{}", ended.out);
    }
}

#[test]
fn a_bundle_holds_what_tells_about_the_node_and_is_the_owners() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bundle = folder.path().join("n1.tar.gz");
    let file = bundle.to_str().expect("a path in UTF-8");
    let ended = ctl(PATH, &["node", "diags", "--out", file]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mode = std::fs::metadata(&bundle).expect("a bundle").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed = Command::new("tar").args(["-tzf", file]).output().expect("tar").stdout;
    let listed = String::from_utf8(listed).expect("names in UTF-8");
    for part in [
        "network/addresses",
        "network/routes",
        "policy/iptables",
        "policy/ipsets",
        "files/usr/lib/os-release",
    ] {
        assert!(listed.contains(part), "{part} is missing:\n{listed}");
    }
    let again = ctl(PATH, &["node", "diags", "--out", file]);
    assert!(
        again.code == Some(1) && again.err.contains("cannot be written"),
        "nothing is overwritten: {again:?}"
    );
}
