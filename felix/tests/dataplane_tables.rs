//! The table driver against the real kernel, with both backends.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane_support::{Lab, in_namespace};
use felix::iptables::chains::Owner;
use felix::iptables::plan::Hooks;
use felix::iptables::tables::Tables;
use felix::iptables::{Backend, Chain, InsertMode, IpVersion, Rule, TableName};

const BACKENDS: [Backend; 2] = [Backend::Nft, Backend::Legacy];

fn rule(matches: &str, action: &str) -> Rule {
    Rule { matches: matches.into(), action: format!("--jump {action}"), comments: Vec::new() }
}

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), rules }
}

/// A small but complete frame: dispatch to a policy chain that matches a set-free condition.
fn fill(tables: &mut Tables, policy: Vec<Rule>) {
    for version in IpVersion::ALL {
        let filter = tables.get_mut(version, TableName::Filter).expect("filter is driven");
        let hooks = Hooks {
            movable: vec![rule("", "cali-FORWARD")],
            last: vec![rule("-m mark --mark 0x10000/0x10000", "ACCEPT")],
        };
        filter.set_hooks(InsertMode::Insert, BTreeMap::from([("FORWARD".to_owned(), hooks)]));
        filter.offer(
            Owner::Static,
            vec![
                chain(
                    "cali-FORWARD",
                    vec![rule("--in-interface cali+", "cali-pi-web"), rule("", "cali-wait")],
                ),
                chain("cali-wait", vec![rule("-p tcp -m multiport --destination-ports 1:2,80", "RETURN")]),
            ],
            false,
        );
        filter.offer(Owner::Profile("web".into()), vec![chain("cali-pi-web", policy.clone())], false);
        filter.offer(
            Owner::Profile("unused".into()),
            vec![chain("cali-pi-unused", vec![rule("", "DROP")])],
            false,
        );
        let nat = tables.get_mut(version, TableName::Nat).expect("nat is driven");
        let hooks = Hooks { movable: vec![rule("", "cali-PREROUTING")], last: Vec::new() };
        nat.set_hooks(InsertMode::Insert, BTreeMap::from([("PREROUTING".to_owned(), hooks)]));
        nat.offer(Owner::Static, vec![chain("cali-PREROUTING", Vec::new())], false);
    }
}

async fn open(lab: &Lab, backend: Backend) -> Tables {
    Tables::open(&Arc::clone(&lab.commands), backend, &IpVersion::ALL).await.expect("the programs are there")
}

async fn apply(tables: &mut Tables) -> usize {
    let pass = tables.apply().await;
    assert!(pass.errors.is_empty(), "{:?}", pass.errors);
    pass.lines
}

fn saved(lab: &Lab, backend: Backend) -> String {
    let name = backend.name();
    lab.sh(&format!("iptables-{name}-save | grep '^[-:]' | sed 's/ \\[.*//'; ip6tables-{name}-save | grep '^[-:]' | sed 's/ \\[.*//'"))
}

fn each_backend(test: impl AsyncFn(Lab, Backend) + Copy + Send + 'static) {
    for backend in BACKENDS {
        in_namespace(
            &["iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-restore", "ip"],
            move |lab| async move { test(lab, backend).await },
        );
    }
}

#[test]
fn a_restarted_driver_writes_nothing() {
    each_backend(async |lab, backend| {
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, Vec::new());
        assert!(apply(&mut tables).await > 0);
        assert_eq!(apply(&mut tables).await, 0);
        let before = saved(&lab, backend);
        assert!(before.contains("cali-pi-web") && !before.contains("cali-pi-unused"), "{before}");

        let mut restarted = open(&lab, backend).await;
        fill(&mut restarted, Vec::new());
        assert_eq!(apply(&mut restarted).await, 0);
        assert_eq!(saved(&lab, backend), before);
    });
}

#[test]
fn only_the_changed_chain_is_written_and_counters_elsewhere_stay() {
    each_backend(async |lab, backend| {
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, vec![rule("", "RETURN")]);
        apply(&mut tables).await;
        fill(&mut tables, vec![rule("-p udp", "DROP"), rule("", "RETURN")]);
        let lines = apply(&mut tables).await;
        // Two families: table, chain or position, two rules, commit.
        assert!((1..=12).contains(&lines), "{lines}");
        assert_eq!(apply(&mut tables).await, 0);
        let now = saved(&lab, backend);
        assert_eq!(now.matches("-p udp").count(), 2, "{now}");
    });
}

#[test]
fn what_is_deleted_by_hand_comes_back() {
    each_backend(async |lab, backend| {
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, vec![rule("", "DROP")]);
        apply(&mut tables).await;
        let before = saved(&lab, backend);
        let program = format!("iptables-{}", backend.name());
        for damage in ["-F cali-pi-web", "-F", "-D FORWARD 1", "-I FORWARD -s 1.2.3.4 -j ACCEPT"] {
            lab.sh(&format!("{program} {damage}"));
            assert_ne!(saved(&lab, backend), before);
            assert!(tables.look_now(), "{damage} went unnoticed");
            apply(&mut tables).await;
            if damage.starts_with("-I") {
                lab.sh(&format!("{program} -D FORWARD -s 1.2.3.4 -j ACCEPT"));
                tables.queue_resync();
                assert_eq!(apply(&mut tables).await, 0);
            }
            assert_eq!(saved(&lab, backend), before, "after {damage}");
        }
    });
}

#[test]
fn an_undisturbed_table_is_not_read_again_with_the_nft_backend() {
    in_namespace(&["iptables-nft-restore", "ip"], |lab| async move {
        let mut tables = open(&lab, Backend::Nft).await;
        fill(&mut tables, vec![rule("", "DROP")]);
        apply(&mut tables).await;
        assert!(!tables.look_now(), "our own writes look foreign");
        fill(&mut tables, vec![rule("", "RETURN")]);
        apply(&mut tables).await;
        assert!(!tables.look_now(), "our own change looks foreign");
        lab.sh("nft add table inet somebody");
        assert!(tables.look_now(), "a foreign write went unnoticed");
        assert_eq!(apply(&mut tables).await, 0);
        assert!(!tables.look_now());
    });
}

#[test]
fn foreign_rules_stay_and_leftovers_go() {
    each_backend(async |lab, backend| {
        let program = format!("iptables-{}", backend.name());
        lab.sh(&format!(
            "{program} -A FORWARD -s 9.9.9.9 -j DROP; {program} -N MINE; {program} -A MINE -j ACCEPT; \
             {program} -N cali-leftover; {program} -A cali-leftover -j DROP; {program} -A FORWARD -j cali-leftover; \
             {program} -N felix-old; {program} -A INPUT -m comment --comment cali:aaaaaaaaaaaaaaaa -j felix-old"
        ));
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, vec![rule("", "DROP")]);
        apply(&mut tables).await;
        let now = saved(&lab, backend);
        assert!(now.contains("-s 9.9.9.9/32 -j DROP") && now.contains("-A MINE -j ACCEPT"), "{now}");
        assert!(!now.contains("leftover") && !now.contains("felix-old"), "{now}");
        let forward: Vec<_> = now.lines().filter(|line| line.starts_with("-A FORWARD")).take(3).collect();
        assert!(
            forward[0].ends_with("-j cali-FORWARD")
                && forward[1].contains("9.9.9.9")
                && forward[2].ends_with("-j ACCEPT"),
            "{forward:?}"
        );
        assert_eq!(apply(&mut tables).await, 0);
    });
}

#[test]
fn chains_that_are_no_longer_wanted_go() {
    each_backend(async |lab, backend| {
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, vec![rule("", "DROP")]);
        apply(&mut tables).await;
        for version in IpVersion::ALL {
            let filter = tables.get_mut(version, TableName::Filter).expect("filter is driven");
            filter.offer(Owner::Static, vec![chain("cali-FORWARD", vec![rule("", "RETURN")])], false);
            filter.offer(Owner::Profile("web".into()), Vec::new(), false);
        }
        apply(&mut tables).await;
        let now = saved(&lab, backend);
        assert!(!now.contains("cali-pi-web") && !now.contains("cali-wait"), "{now}");
        assert_eq!(apply(&mut tables).await, 0);
    });
}

#[test]
fn a_chain_that_the_kernel_refuses_is_closed_and_the_rest_is_written() {
    each_backend(async |lab, backend| {
        let mut tables = open(&lab, backend).await;
        fill(&mut tables, vec![rule("-m set --match-set cali40absent src", "RETURN")]);
        apply(&mut tables).await;
        let now = saved(&lab, backend);
        assert!(now.contains("cali-wait") && now.contains("Refused by the kernel"), "{now}");
        // What it lacked is there now.
        lab.sh("ipset create cali40absent hash:net; ipset create cali60absent hash:net family inet6");
        fill(&mut tables, vec![rule("-m set --match-set cali40absent src", "RETURN")]);
        tables.lift();
        let v6 = tables.get_mut(IpVersion::V6, TableName::Filter).expect("filter is driven");
        v6.offer(
            Owner::Profile("web".into()),
            vec![chain("cali-pi-web", vec![rule("-m set --match-set cali60absent src", "RETURN")])],
            false,
        );
        apply(&mut tables).await;
        let now = saved(&lab, backend);
        assert!(
            !now.contains("Refused") && now.contains("cali40absent") && now.contains("cali60absent"),
            "{now}"
        );
    });
}

#[test]
fn the_other_backends_leftovers_are_swept() {
    in_namespace(&["iptables-nft-restore", "iptables-legacy-restore", "ip"], |lab| async move {
        let mut legacy = open(&lab, Backend::Legacy).await;
        fill(&mut legacy, vec![rule("", "DROP")]);
        apply(&mut legacy).await;
        lab.sh("iptables-legacy -A FORWARD -s 9.9.9.9 -j DROP");
        let mut nft = open(&lab, Backend::Nft).await;
        fill(&mut nft, vec![rule("", "DROP")]);
        apply(&mut nft).await;
        let pass = nft.sweep_other(&lab.commands, &IpVersion::ALL).await;
        assert!(pass.errors.is_empty() && pass.lines > 0, "{pass:?}");
        let left = saved(&lab, Backend::Legacy);
        assert!(!left.contains("cali") && left.contains("9.9.9.9"), "{left}");
        assert!(saved(&lab, Backend::Nft).contains("cali-pi-web"));
    });
}

/// Real programs, of which the first so many restores fail.
struct Failing {
    real: Arc<dyn felix::commands::Commands>,
    failures: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl felix::commands::Commands for Failing {
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut felix::commands::OnLine<'_>,
    ) -> Result<(), felix::commands::CommandError> {
        use std::sync::atomic::Ordering::Relaxed;
        let due =
            !stdin.is_empty() && self.failures.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
        if due {
            let stderr = "Resource temporarily unavailable".into();
            return Err(felix::commands::CommandError::Failed { command: program.into(), status: 4, stderr });
        }
        self.real.lines(program, args, stdin, line).await
    }
}

#[test]
fn a_failed_write_is_repeated_from_a_fresh_read() {
    each_backend(async |lab, backend| {
        for (failures, recovers) in [(2, true), (100, false)] {
            let failing = Failing { real: lab.commands.clone(), failures: failures.into() };
            let mut tables =
                Tables::open(&(Arc::new(failing) as _), backend, &[IpVersion::V4]).await.unwrap();
            let filter = tables.get_mut(IpVersion::V4, TableName::Filter).unwrap();
            let hooks = Hooks { movable: vec![rule("", "cali-FORWARD")], last: Vec::new() };
            filter.set_hooks(InsertMode::Insert, BTreeMap::from([("FORWARD".to_owned(), hooks)]));
            filter.offer(
                Owner::Static,
                vec![
                    chain("cali-FORWARD", vec![rule("", &format!("cali-x{failures}"))]),
                    chain(&format!("cali-x{failures}"), Vec::new()),
                ],
                false,
            );
            let pass = tables.apply().await;
            assert_eq!(pass.errors.is_empty(), recovers, "{:?}", pass.errors);
            assert_eq!(tables.is_dirty(), !recovers);
            assert_eq!(saved(&lab, backend).contains(&format!("cali-x{failures}")), recovers);
        }
    });
}
