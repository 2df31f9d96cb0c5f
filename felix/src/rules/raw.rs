//! The raw table's frame: spoofed sources, untracked policy, what conntrack need not see.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Renderer;
use super::fragments::{Match, accept, always, clear_mark, is_of_family, jump, notrack, ret, set_mark};
use super::names;
use super::static_chains::chain;
use crate::iptables::{Chain, IpVersion, Rule, TableName};

impl Renderer {
    pub fn static_raw_chains(&self, version: IpVersion) -> Vec<Chain> {
        vec![
            self.failsafe_in(TableName::Raw, version),
            self.failsafe_out(TableName::Raw, version),
            self.raw_prerouting(version),
            self.wireguard_incoming_mark(),
            self.raw_output(version),
        ]
    }

    pub fn raw_prerouting(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let mut rules = vec![always(clear_mark(marks.all()))];
        let wireguard = config.wireguard_enabled || config.wireguard_enabled_v6;
        if wireguard && config.wireguard_encrypt_host_traffic {
            rules.push(always(jump(names::WIREGUARD_INCOMING_MARK)));
        }
        rules.extend(self.vxlan_notrack(version));
        for prefix in self.prefixes() {
            rules.push(Match::new().in_interface(&prefix).then(set_mark(marks.scratch0)));
        }
        rules.push(Match::new().mark_set(marks.scratch0).then(jump(names::RPF_SKIP)));
        rules.extend(self.rpf_check(version));
        // Host endpoints have no untracked policy on packets of workloads.
        rules.push(Match::new().mark_clear(marks.scratch0).then(jump(names::FROM_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(accept()));
        chain(names::PREROUTING, rules)
    }

    /// Conntrack of the tunnel's own packets costs and gives nothing.
    fn vxlan_notrack(&self, version: IpVersion) -> Option<Rule> {
        let port = self.config().vxlan_port;
        self.vxlan_in(version)
            .then(|| Match::new().protocol("udp").raw(format!("--dport {port}")).then(notrack()))
    }

    /// A workload's packets are taken only from addresses that are routed to it.
    pub fn rpf_check(&self, version: IpVersion) -> Vec<Rule> {
        let config = self.config();
        let mut rules = Vec::new();
        if version == IpVersion::V4 && config.openstack.is_some() {
            // An instance that asks for its address has none yet.
            let dhcp =
                Match::new().protocol("udp").source("0.0.0.0").source_ports("68").destination_ports("67");
            rules.push(dhcp.then(accept()));
        }
        let spoofed = Match::new().mark_set(config.marks.scratch0).raw("-m rpfilter --invert --validmark");
        rules.push(spoofed.then(self.deny_in(TableName::Raw).action()));
        rules
    }

    pub fn rpf_skip(&self, version: IpVersion, spoofable: &BTreeMap<String, Vec<IpNet>>) -> Chain {
        let mut rules = Vec::new();
        for (iface, nets) in spoofable.iter().filter(|(iface, _)| names::is_interface(iface)) {
            let texts = nets.iter().map(IpNet::to_string);
            for net in texts.filter(|net| is_of_family(net, version)) {
                rules.push(Match::new().in_interface(iface).source(&net).then(accept()));
            }
        }
        chain(names::RPF_SKIP, rules)
    }

    fn wireguard_incoming_mark(&self) -> Chain {
        let config = self.config();
        let devices = ["lo", &config.wireguard_interface, &config.wireguard_interface_v6];
        let mut rules: Vec<Rule> =
            devices.into_iter().map(|device| Match::new().in_interface(device).then(ret())).collect();
        rules.extend(self.prefixes().map(|prefix| Match::new().in_interface(&prefix).then(ret())));
        rules.push(always(set_mark(config.marks.wireguard)));
        chain(names::WIREGUARD_INCOMING_MARK, rules)
    }

    fn raw_output(&self, version: IpVersion) -> Chain {
        let marks = &self.config().marks;
        let mut rules = vec![always(clear_mark(marks.all())), always(jump(names::TO_HOST_ENDPOINT))];
        rules.extend(self.vxlan_notrack(version));
        rules.push(Match::new().mark_set(marks.accept).then(accept()));
        chain(names::OUTPUT, rules)
    }
}
