//! The text for BIRD 2, against a golden file. `BULRUSH_GOLDEN=write` rewrites it; review the difference.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use confd::render::{Syntax, meaning};
use syncer_common::model::{Update, Value, values};

use support::*;

fn cluster() -> Vec<Update> {
    vec![
        node("n1", "172.30.0.11/24", "fd30::11/64"),
        node("n2", "172.30.0.12/24", "fd30::12/64"),
        pool("10.244.0.0/16"),
        pool_with("10.245.0.0/16", |pool| pool.disable_bgp_export = true),
        pool_with("10.246.0.0/16", |pool| pool.vxlan_mode = "always".into()),
        pool_with("10.247.0.0/16", |pool| pool.ipip_mode = "cross-subnet".into()),
        pool("fd10::/48"),
        block("n1", "10.244.140.64/26"),
        block_in("n1", "10.244.9.0/26", "pending"),
        block("n1", "fd10::40/122"),
        block("n2", "10.244.7.0/26"),
        configuration(|it| {
            it.service_cluster_ips = vec!["10.96.0.0/12".into()];
            it.ignored_interfaces = vec!["dc-*".into()];
            it.communities = vec![values::Community { name: "blue".into(), value: "65000:7".into() }];
            it.prefix_advertisements = vec![values::PrefixAdvertisement {
                cidr: "10.244.0.0/16".into(),
                communities: vec!["blue".into(), "65000:1:2".into()],
            }];
        }),
        peer("rack", |peer| {
            peer.peer_ip = "172.30.0.254:1790".into();
            peer.as_number = 65010;
            peer.keepalive_seconds = Some(5);
            peer.next_hop_mode = "Self".into();
            peer.reachable_by = "172.30.0.253".into();
            peer.ttl_security = Some(2);
        }),
    ]
}

#[test]
fn the_whole_file_is_as_reviewed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/n1.bird.cfg");
    let text = rendered("n1", &cluster()).text().to_owned();
    if std::env::var_os("BULRUSH_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden);
}

#[test]
fn the_marker_changes_with_the_meaning_and_only_with_it() {
    let base = rendered("n1", &cluster());
    let mut more = cluster();
    more.push(block("n2", "10.244.8.0/26"));
    assert_eq!(rendered("n1", &more).marker, base.marker, "another node's block");
    more.push(block("n1", "10.244.8.64/26"));
    assert_ne!(rendered("n1", &more).marker, base.marker);
    assert!(meaning(base.text()).contains(&base.marker));
}

#[test]
fn text_from_the_datastore_cannot_leave_its_place() {
    let mut updates = cluster();
    updates.push(peer("evil\nprotocol bgp Evil {}", |peer| {
        peer.peer_ip = "172.30.0.77".into();
        peer.as_number = 65010;
    }));
    updates.push(configuration(|it| {
        it.ignored_interfaces = vec!["x\"; } protocol static evil { ".into(), "ok0".into()];
        it.prefix_advertisements = vec![values::PrefixAdvertisement {
            cidr: "10.0.0.0/8".into(),
            communities: vec!["1:1)); accept; #".into()],
        }];
    }));
    let mut model = confd::bgp::Model::default();
    updates.into_iter().for_each(|update| {
        model.on_update(update);
    });
    let model = model.compute(&local("n1"));
    let text = confd::render::render(&model, Syntax::Bird2).remove(0).text().to_owned();
    assert!(!text.lines().any(|line| line.starts_with("protocol bgp Evil")), "{text}");
    assert!(!text.contains("static evil") && text.contains("-\"ok0\""));
    assert!(!text.contains("accept; #"));
    assert_eq!(model.problems.len(), 2, "{:?}", model.problems);
}

#[test]
fn peers_share_their_filters_and_bird_reads_five_thousand_of_them() {
    let cluster = |count: u32| -> Vec<Update> {
        (0..count)
            .map(|n| node(&format!("n{n}"), &format!("10.1.{}.{}/16", n / 250, n % 250 + 1), ""))
            .collect()
    };
    let lines = |count| rendered("n0", &cluster(count)).text().lines().count();
    let (small, large) = (lines(100), lines(1000));
    let per_peer = (large - small) as f64 / 900.0;
    assert!(per_peer < 7.0, "{per_peer} lines per peer: filters are shared, not written out");

    let Some(bird) = support::lab::bird() else {
        assert!(!support::cases::required(), "BIRD is not installed");
        println!("SKIPPED: BIRD is not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bird.cfg");
    std::fs::write(&file, rendered("n0", &cluster(5001)).text()).unwrap();
    let start = std::time::Instant::now();
    let check = std::process::Command::new(bird).arg("-p").arg("-c").arg(&file).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    println!("5,000 peers parse in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
}

#[test]
fn filters_of_an_object_are_written_once_for_each_kind_of_peer() {
    let mut updates = cluster();
    let rule = |action: &str, cidr: &str| values::BgpFilterRule {
        action: action.into(),
        cidr: cidr.into(),
        match_operator: if cidr.is_empty() { "" } else { "In" }.into(),
        ..Default::default()
    };
    let filter = values::BgpFilter {
        import_v4: vec![rule("Accept", "0.0.0.0/0"), rule("Reject", "")],
        ..Default::default()
    };
    updates.push(Update::set(resource("BGPFilter", "only"), Value::BgpFilter(filter)));
    for n in 1..=20 {
        updates.push(peer(&format!("tor-{n}"), |peer| {
            peer.peer_ip = format!("172.31.0.{n}");
            peer.as_number = 65010;
            peer.filters = vec!["only".into()];
        }));
    }
    let text = rendered("n1", &updates).text().to_owned();
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(count("function 'bgp_only_importFilterV4'()"), 1, "{text}");
    assert_eq!(count("filter import_v4_"), 1 + 20, "one definition, twenty uses:\n{text}");
    assert_eq!(count("export filter export_ebgp_v4_"), 0, "it has no rules for exports");
}

#[test]
fn a_syntax_is_one_of_two_words() {
    assert_eq!("bird2".parse(), Ok(Syntax::Bird2));
    assert_eq!("classic".parse(), Ok(Syntax::Classic));
    assert!("bird3".parse::<Syntax>().unwrap_err().to_string().contains("use bird2 or classic"));
}
