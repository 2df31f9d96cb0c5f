//! IP set and route drivers against the real kernel.

#![allow(clippy::unwrap_used)] // a test's helpers are tests, too

mod dataplane_support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dataplane_support::{Lab, eventually, in_namespace};
use felix::commands::{CommandError, Commands, OnLine};
use felix::ifacemonitor::{Event, Monitor};
use felix::ipsets::IpSets;
use felix::iptables::IpVersion;
use felix::routetable::{RouteTable, Workload};
use felix_calc::output::IpSetKind;

const LIMIT: Duration = Duration::from_secs(10);

fn listed(lab: &Lab) -> String {
    lab.sh("ipset save | sed 's/ hashsize.*//' | sort")
}

#[test]
fn sets_are_written_by_difference_in_both_families() {
    in_namespace(&["ipset", "ip"], |lab| async move {
        lab.sh("ipset create foreign hash:ip; ipset create cali40leftover hash:net; ipset create cali60leftover hash:net family inet6");
        let members = ["10.0.0.0/8", "192.168.1.1/32", "fd00::/8", "0.0.0.0/0"];
        let mut families =
            IpVersion::ALL.map(|version| IpSets::new(version, lab.commands.clone(), 1_048_576));
        for sets in &mut families {
            sets.replace("nets", IpSetKind::Net, members);
            sets.replace("ports", IpSetKind::IpAndPort, ["10.0.0.1,tcp:80", "fd00::1,sctp:81"]);
            assert!(sets.apply_updates().await.unwrap() > 0);
            assert_eq!(sets.apply_deletions().await, 1);
        }
        let now = listed(&lab);
        assert!(!now.contains("leftover") && now.contains("foreign"), "{now}");
        for member in [
            "cali40nets 10.0.0.0/8",
            "cali40nets 128.0.0.0/1",
            "cali60nets fd00::/8",
            "cali60ports fd00::1,sctp:81",
        ] {
            assert!(now.contains(&format!("add {member}\n")), "{member} in {now}");
        }

        // Another run finds everything as it should be.
        for version in IpVersion::ALL {
            let mut sets = IpSets::new(version, lab.commands.clone(), 1_048_576);
            sets.replace("nets", IpSetKind::Net, members);
            sets.replace("ports", IpSetKind::IpAndPort, ["10.0.0.1,tcp:80", "fd00::1,sctp:81"]);
            assert_eq!(sets.apply_updates().await.unwrap(), 0);
            assert!(!sets.has_deletions());
        }

        let [v4, _] = &mut families;
        v4.change("nets", ["172.16.0.0/12"], ["192.168.1.1"]);
        assert_eq!(v4.apply_updates().await.unwrap(), 2);
        let before = listed(&lab);
        for damage in [
            "ipset add cali40nets 9.9.9.9",
            "ipset del cali40nets 10.0.0.0/8",
            "ipset destroy cali40ports",
            "ipset flush cali40nets",
        ] {
            lab.sh(damage);
            v4.queue_resync();
            assert!(v4.apply_updates().await.unwrap() > 0, "{damage}");
            assert_eq!(listed(&lab), before, "{damage}");
        }
    });
}

#[test]
fn a_set_with_other_parameters_is_swapped_while_rules_use_it() {
    in_namespace(&["ipset", "iptables-nft", "ip"], |lab| async move {
        lab.sh("ipset create cali40a hash:net maxelem 10; iptables-nft -A FORWARD -m set --match-set cali40a src -j DROP");
        let mut sets = IpSets::new(IpVersion::V4, lab.commands.clone(), 1000);
        sets.replace("a", IpSetKind::Net, ["10.0.0.0/8"]);
        sets.apply_updates().await.unwrap();
        assert!(lab.sh("ipset save cali40a").contains("maxelem 1000"));
        assert!(!lab.sh("ipset list -name").contains("cali4t"));
    });
}

/// Keeps what the programs are given.
struct Recorded {
    commands: Arc<dyn Commands>,
    inputs: Mutex<Vec<String>>,
}

#[async_trait]
impl Commands for Recorded {
    async fn lines(
        &self,
        program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        self.inputs.lock().unwrap().extend((!stdin.is_empty()).then(|| stdin.to_owned()));
        self.commands.lines(program, args, stdin, line).await
    }
}

impl Recorded {
    fn take(&self) -> String {
        self.inputs.lock().unwrap().drain(..).collect()
    }
}

#[test]
fn a_set_of_100_000_members_grows_is_changed_by_difference_and_swapped() {
    const BIG: &str = "cali40big";
    in_namespace(&["ipset", "iptables-nft", "ip"], |lab| async move {
        let recorded = Arc::new(Recorded { commands: lab.commands.clone(), inputs: Mutex::default() });
        let members: Vec<String> =
            (0..100_000u32).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
        let wanted = || members.iter().map(String::as_str);
        let held = || {
            let header = lab.sh(&format!("ipset list -terse {BIG}"));
            let entries = header.lines().find_map(|line| line.strip_prefix("Number of entries: "));
            entries.map(|number| number.parse::<usize>().unwrap())
        };

        // A limit that is too low: the set is refused, the others are written. Raised, it has its place.
        let mut sets = IpSets::new(IpVersion::V4, recorded.clone(), 65_536);
        sets.replace("big", IpSetKind::Net, wanted());
        sets.replace("small", IpSetKind::Net, ["10.0.0.0/8"]);
        for _ in 0..2 {
            let error = sets.apply_updates().await.unwrap_err().to_string();
            assert!(error.contains("Hash is full"), "{error}");
        }
        assert!(lab.sh("ipset save cali40small").contains("add cali40small 10.0.0.0/8"));
        sets.set_max_size(262_144);
        sets.apply_updates().await.unwrap();
        assert_eq!(held(), Some(100_000));
        lab.sh(&format!("iptables-nft -A FORWARD -m set --match-set {BIG} src -j DROP"));

        // A few members: as many lines, whatever the size.
        recorded.take();
        sets.change("big", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], ["10.0.0.5", "10.1.0.5"]);
        assert_eq!(sets.apply_updates().await.unwrap(), 5);
        let written = recorded.take();
        let expected =
            ["10.0.0.5", "10.1.0.5"].map(|member| format!("del {BIG} {member} -exist\n")).into_iter().chain(
                ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|member| format!("add {BIG} {member} -exist\n")),
            );
        assert_eq!(written, expected.collect::<String>());
        assert_eq!(held(), Some(100_001));

        // Another run finds it, and repairs what differs only.
        lab.sh(&format!("ipset del {BIG} 10.0.0.9; ipset add {BIG} 198.51.100.0/24"));
        let mut sets = IpSets::new(IpVersion::V4, recorded.clone(), 262_144);
        sets.replace("big", IpSetKind::Net, wanted());
        sets.replace("small", IpSetKind::Net, ["10.0.0.0/8"]);
        // Back: two of before and that one; away: three of before and that net.
        assert_eq!(sets.apply_updates().await.unwrap(), 7);
        assert_eq!(held(), Some(100_000));

        // More room, while a rule uses it.
        sets.set_max_size(1_048_576);
        sets.apply_updates().await.unwrap();
        assert_eq!(held(), Some(100_000));
        assert!(lab.sh(&format!("ipset list -terse {BIG}")).contains("maxelem 1048576"));
        assert!(!lab.sh("ipset list -name").contains("cali4t"));

        sets.remove("big");
        assert_eq!(sets.apply_deletions().await, 0, "a rule uses it");
        lab.sh("iptables-nft -F FORWARD");
        sets.queue_resync();
        sets.apply_updates().await.unwrap();
        assert_eq!(sets.apply_deletions().await, 1);
        assert!(!lab.sh("ipset list -name").contains(BIG));
    });
}

#[test]
fn a_set_of_another_type_is_made_anew_once_no_rule_uses_it() {
    in_namespace(&["ipset", "iptables-nft", "ip"], |lab| async move {
        lab.sh("ipset create cali40free hash:ip; ipset add cali40free 10.0.0.1; ipset create cali40used hash:ip,port");
        lab.sh("iptables-nft -A FORWARD -m set --match-set cali40used src,src -j DROP");
        let mut sets = IpSets::new(IpVersion::V4, lab.commands.clone(), 1000);
        for id in ["free", "used", "new"] {
            sets.replace(id, IpSetKind::Net, ["10.0.0.0/8"]);
        }
        // The kernel swaps only sets of one type.
        sets.apply_updates().await.unwrap_err();
        let error = sets.apply_updates().await.unwrap_err().to_string();
        assert!(error.contains("in use by a kernel component"), "{error}");
        let saved = lab.sh("ipset save");
        for name in ["cali40free", "cali40new"] {
            assert!(saved.contains(&format!("create {name} hash:net ")), "{saved}");
            assert!(saved.contains(&format!("add {name} 10.0.0.0/8")), "{saved}");
        }
        lab.sh("iptables-nft -F FORWARD");
        sets.apply_updates().await.unwrap();
        assert!(lab.sh("ipset save cali40used").contains("add cali40used 10.0.0.0/8"));
    });
}

fn workload(interface: &str, nets: &[&str]) -> Workload {
    Workload {
        interface: interface.into(),
        nets: nets.iter().map(|net| net.parse().expect("a CIDR")).collect(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        spoofing: false,
    }
}

async fn apply(routes: &mut RouteTable) -> usize {
    let pass = routes.apply().await;
    assert!(pass.errors.is_empty(), "{:?}", pass.errors);
    pass.writes
}

#[test]
fn workload_routes_follow_interfaces_and_are_repaired() {
    in_namespace(&["ip", "conntrack"], |lab| async move {
        lab.veth("cali1");
        lab.sh("ip link add eth0 type veth peer name peth0 && ip link set eth0 up && ip link set peth0 up && ip addr add 172.30.0.1/16 dev eth0");
        lab.sh("ip route add 9.9.9.0/24 via 172.30.0.9");
        lab.running("cali1").await;
        let mut monitor = Monitor::open().unwrap();
        let mut routes = RouteTable::new(lab.commands.clone(), &IpVersion::ALL).unwrap();
        routes.set_workload("one".into(), Some(workload("cali1", &["10.0.0.1/32", "fd00::1/128"])));
        routes.set_workload("two".into(), Some(workload("cali2", &["10.0.0.2/32"])));
        assert_eq!(apply(&mut routes).await, 3);
        let show = |lab: &Lab| lab.sh("ip -d route show; ip -6 -d route show");
        let now = show(&lab);
        assert!(now.contains("10.0.0.1 dev cali1 proto boot scope link metric 1024"), "{now}");
        assert!(now.contains("fd00::1 dev cali1 proto boot scope global metric 1024"), "{now}");
        assert!(!now.contains("10.0.0.2"), "{now}");
        assert!(lab.sh("ip neigh show dev cali1").contains("10.0.0.1 lladdr 02:00:00:00:00:01 PERMANENT"));
        assert!(routes.is_up("one") && !routes.is_up("two"));
        for (setting, value) in [("proxy_arp", "1"), ("forwarding", "1"), ("route_localnet", "1")] {
            assert_eq!(lab.sh(&format!("cat /proc/sys/net/ipv4/conf/cali1/{setting}")).trim(), value);
        }

        // Another run finds them and writes nothing.
        let mut again = RouteTable::new(lab.commands.clone(), &IpVersion::ALL).unwrap();
        again.set_workload("one".into(), Some(workload("cali1", &["10.0.0.1/32", "fd00::1/128"])));
        assert_eq!(apply(&mut again).await, 0);

        // The second workload's interface comes, the first one's route is deleted by hand.
        lab.veth("cali2");
        lab.sh("ip route del 10.0.0.1");
        let mut follow = async |routes: &mut RouteTable, done: &dyn Fn(&str) -> bool| {
            eventually(LIMIT, async || {
                while let Ok(events) = tokio::time::timeout(Duration::from_millis(20), monitor.next()).await {
                    for event in events.unwrap() {
                        match event {
                            Event::Link(link) => routes.on_link(link),
                            Event::LinkGone { index } => routes.on_link_gone(index),
                            Event::RouteAdded(route) => routes.on_route(&route, true),
                            Event::RouteGone(route) => routes.on_route(&route, false),
                            Event::Addresses | Event::Neighbour(_) => {}
                            Event::Lost => routes.queue_resync(),
                        }
                    }
                }
                if routes.needs_apply() {
                    apply(routes).await;
                }
                let now = show(&lab);
                if done(&now) { Ok(()) } else { Err(now) }
            })
            .await;
        };
        follow(&mut routes, &|now| now.contains("10.0.0.1 dev cali1") && now.contains("10.0.0.2 dev cali2"))
            .await;
        assert!(!routes.needs_apply(), "our own writes look foreign");

        // Down and up again.
        lab.sh("ip link set cali2 down");
        follow(&mut routes, &|now| !now.contains("10.0.0.2")).await;
        lab.sh("ip link set cali2 up");
        follow(&mut routes, &|now| now.contains("10.0.0.2 dev cali2")).await;

        // The address moves without a gap, then its workload goes. Routes of others stay.
        routes.set_workload("two".into(), Some(workload("cali2", &["10.0.0.1/32"])));
        apply(&mut routes).await;
        let now = show(&lab);
        assert!(
            now.contains("10.0.0.1 dev cali2")
                && !now.contains("10.0.0.1 dev cali1")
                && !now.contains("10.0.0.2"),
            "{now}"
        );
        routes.set_workload("one".into(), None);
        routes.set_workload("two".into(), None);
        apply(&mut routes).await;
        let now = show(&lab);
        assert!(!now.contains("10.0.0.1") && !now.contains("fd00::1") && now.contains("9.9.9.0/24"), "{now}");
        assert_eq!(lab.sh("ip neigh show nud permanent dev cali2"), "");
    });
}

#[test]
fn an_unknown_route_on_a_workload_interface_has_some_grace() {
    in_namespace(&["ip", "conntrack"], |lab| async move {
        lab.veth("cali1");
        lab.running("cali1").await;
        lab.sh("ip route add 10.0.0.5 dev cali1");
        let mut routes = RouteTable::new(lab.commands.clone(), &[IpVersion::V4]).unwrap();
        assert_eq!(apply(&mut routes).await, 0);
        assert!(routes.due().is_some());
        assert!(lab.sh("ip route").contains("10.0.0.5"));
        // Its endpoint arrives: the route becomes ours.
        routes.set_workload("one".into(), Some(workload("cali1", &["10.0.0.5/32"])));
        apply(&mut routes).await;
        routes.set_workload("one".into(), None);
        apply(&mut routes).await;
        assert!(!lab.sh("ip route").contains("10.0.0.5"));
    });
}
