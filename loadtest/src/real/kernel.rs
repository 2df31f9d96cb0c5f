//! What a node's kernel holds, as iptables, ipset and ip show it, beside what it has to hold. felix' own code has no part
//! in reading it: policies are found by the comments in their chains.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::netns::output;
use crate::cluster::{Enforced, Expected};

/// Of one node.
#[derive(Debug, Default)]
pub struct Kernel {
    pods: BTreeSet<String>,
    policies: BTreeMap<String, Enforced>,
    /// Addresses by the interface of the pod that they lead to.
    routes: BTreeMap<String, String>,
}

/// Reads it, in the network of the calling thread.
pub fn read(backend: &str) -> Result<Kernel> {
    let rules = output(&format!("iptables-{backend}-save"), &["-t", "filter"])?;
    let sets = output("ipset", &["save"])?;
    let routes = output("ip", &["route", "show"])?;
    Ok(Kernel::parse(&rules, &sets, &routes))
}

impl Kernel {
    fn parse(rules: &str, sets: &str, routes: &str) -> Kernel {
        let mut members: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for line in sets.lines() {
            if let ["add", set, member, ..] = line.split_whitespace().collect::<Vec<_>>()[..] {
                members.entry(set).or_default().insert(member.to_owned());
            }
        }
        let mut kernel = Kernel::default();
        // The policy whose rules follow, and whether these are of its ingress.
        let mut owners: BTreeMap<&str, (String, bool)> = BTreeMap::new();
        for line in rules.lines() {
            if let Some(interface) = line.strip_prefix(":cali-tw-").and_then(|rest| rest.split(' ').next()) {
                kernel.pods.insert(interface.to_owned());
            }
            let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            if let Some(owner) = owner(rule) {
                owners.insert(chain, owner);
            }
            let Some((name, ingress)) = owners.get(chain) else { continue };
            let enforced = kernel.policies.entry(name.clone()).or_default();
            let words: Vec<&str> = rule.split_whitespace().collect();
            let after =
                |word: &str| words.iter().position(|one| *one == word).and_then(|at| words.get(at + 1));
            if *ingress {
                if let Some(set) = after("--match-set") {
                    enforced.sources.extend(members.get(set).into_iter().flatten().cloned());
                }
            } else if let Some(port) = after("--dport").or(after("--dports")) {
                enforced.port = port.parse().ok();
            }
        }
        for line in routes.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [address, "dev", interface, ..] = words[..]
                && interface.starts_with("cali")
            {
                kernel.routes.insert(interface.to_owned(), address.to_owned());
            }
        }
        kernel
    }

    /// Nothing if the kernel holds exactly what it should. `plugged`: interfaces that pods have been given.
    pub fn differences(&self, expected: &Expected, plugged: &BTreeSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        let mut differs = |what: String, has: String, should: String| {
            if has != should {
                found.push(format!("{what}: the kernel has {has}, and should have {should}"));
            }
        };
        let pods: BTreeSet<&String> = self.pods.iter().chain(expected.pods.keys()).collect();
        for pod in pods {
            let chain = |there: bool| if there { "a chain" } else { "no chain" }.to_owned();
            differs(pod.clone(), chain(self.pods.contains(pod)), chain(expected.pods.contains_key(pod)));
        }
        for interface in plugged {
            let route = |of: Option<&String>| {
                of.map_or("no route".into(), |address| format!("a route for {address}"))
            };
            differs(
                interface.clone(),
                route(self.routes.get(interface)),
                route(expected.pods.get(interface)),
            );
        }
        let policies: BTreeSet<&String> = self.policies.keys().chain(expected.policies.keys()).collect();
        for policy in policies {
            let (has, should) = (self.policies.get(policy), expected.policies.get(policy));
            let (Some(has), Some(should)) = (has, should) else {
                let there =
                    |of: Option<&Enforced>| if of.is_some() { "its chains" } else { "none" }.to_owned();
                differs(policy.clone(), there(has), there(should));
                continue;
            };
            let port = |of: &Enforced| of.port.map_or("no port".into(), |port| format!("port {port}"));
            differs(format!("{policy}, egress"), port(has), port(should));
            let sources = |of: &Enforced, other: &Enforced| {
                let more: Vec<_> = of.sources.difference(&other.sources).take(3).cloned().collect();
                format!("{} sources ({})", of.sources.len(), more.join(", "))
            };
            differs(format!("{policy}, ingress"), sources(has, should), sources(should, has));
        }
        found
    }
}

/// The policy that a chain's first rule names, and whether the chain is of its ingress.
fn owner(rule: &str) -> Option<(String, bool)> {
    rule.split('"').find_map(|words| match words.split(' ').collect::<Vec<_>>()[..] {
        [kind @ ("GlobalNetworkPolicy" | "NetworkPolicy"), name, direction] => {
            Some((format!("{kind} {name}"), direction == "ingress"))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "*filter\n:cali-tw-cali001 - [0:0]\n:cali-pi-gnp/a.b - [0:0]\n\
        -A cali-pi-gnp/a.b -m comment --comment \"cali:x\" -m comment --comment \"GlobalNetworkPolicy a.b ingress\" -m set --match-set cali40s:one src -j MARK --set-xmark 0x10\n\
        -A cali-po-gnp/a.b -m comment --comment \"cali:y\" -m comment --comment \"GlobalNetworkPolicy a.b egress\" -p tcp -m multiport --dports 10003 -j MARK\n\
        -A cali-po-gnp/a.b -m comment --comment \"cali:z\" -m mark --mark 0x10/0x10 -j DROP\nCOMMIT\n";
    const SETS: &str =
        "create cali40s:one hash:net family inet\nadd cali40s:one 198.18.0.0/24\nadd cali40s:one 10.64.0.7\n";
    const ROUTES: &str = "default via 172.16.255.254 dev eth0\n10.64.0.1 dev cali001 scope link\n";

    fn expected() -> Expected {
        let sources = ["198.18.0.0/24", "10.64.0.7"].map(str::to_owned).into();
        Expected {
            pods: [("cali001".to_owned(), "10.64.0.1".to_owned())].into(),
            policies: [("GlobalNetworkPolicy a.b".to_owned(), Enforced { sources, port: Some(10_003) })]
                .into(),
        }
    }

    #[test]
    fn kernel_that_holds_what_it_should_has_no_differences() {
        let plugged = ["cali001", "cali002"].map(str::to_owned).into();
        let kernel = Kernel::parse(RULES, SETS, ROUTES);
        assert_eq!(kernel.differences(&expected(), &plugged), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_amiss_is_named() {
        let said = |rules: &str, sets: &str, routes: &str| {
            let plugged = ["cali001".to_owned()].into();
            Kernel::parse(rules, sets, routes).differences(&expected(), &plugged).join("; ")
        };
        for (rules, sets, routes, words) in [
            (RULES.replace("10003", "10002"), SETS.into(), ROUTES, "a.b, egress: the kernel has port 10002"),
            (
                RULES.into(),
                SETS.replace("add cali40s:one 10.64.0.7\n", ""),
                ROUTES,
                "should have 2 sources (10.64.0.7)",
            ),
            (
                RULES.into(),
                SETS.to_owned() + "add cali40s:one 10.64.0.8\n",
                ROUTES,
                "the kernel has 3 sources (10.64.0.8)",
            ),
            (RULES.into(), SETS.into(), "", "cali001: the kernel has no route"),
            (
                RULES.replace("cali-tw-cali001", "cali-tw-cali003"),
                SETS.into(),
                ROUTES,
                "cali003: the kernel has a chain",
            ),
            (String::new(), SETS.into(), ROUTES, "a.b: the kernel has none, and should have its chains"),
        ] {
            let found = said(&rules, &sets, routes);
            assert!(found.contains(words), "{words:?} is not in {found:?}");
        }
    }
}
