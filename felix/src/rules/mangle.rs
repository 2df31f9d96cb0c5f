//! The mangle table's frame: pre-DNAT policy, policy of what was redirected, DSCP.

use super::Renderer;
use super::fragments::{Match, always, clear_mark, jump, ret};
use super::names;
use super::static_chains::{ACCEPTED_BY_HOST_POLICY, DscpRule, chain};
use crate::ipsets::names::{DSCP_SOURCES, NETWORK_IP_POOLS, THIS_HOST};
use crate::iptables::{Chain, IpVersion, TableName};

impl Renderer {
    pub fn static_mangle_chains(&self, version: IpVersion) -> Vec<Chain> {
        vec![
            self.failsafe_in(TableName::Mangle, version),
            self.failsafe_out(TableName::Mangle, version),
            self.mangle_prerouting(),
            self.mangle_postrouting(version),
        ]
    }

    fn mangle_prerouting(&self) -> Chain {
        let config = self.config();
        let allow = || config.mangle_allow_action.action();
        let accepted = || Match::new().mark_set(config.marks.accept);
        chain(
            names::PREROUTING,
            vec![
                Match::new().conntrack("RELATED,ESTABLISHED").then(allow()),
                accepted().then(allow()),
                always(jump(names::FROM_HOST_ENDPOINT)),
                accepted().then(allow()).comment(ACCEPTED_BY_HOST_POLICY),
            ],
        )
    }

    pub fn mangle_postrouting(&self, version: IpVersion) -> Chain {
        let config = self.config();
        let marks = &config.marks;
        let mut rules = vec![
            Match::new()
                .set(version, DSCP_SOURCES, "src")
                .not_set(version, NETWORK_IP_POOLS, "dst")
                .not_set(version, THIS_HOST, "dst")
                .then(jump(names::EGRESS_DSCP))
                .comment("set dscp for traffic leaving cluster."),
            Match::new().mark_set(marks.accept).then(ret()),
        ];
        if config.kube_ipvs {
            rules.push(Match::new().mark_not_clear(marks.endpoint).then(ret()));
        }
        rules.push(always(clear_mark(marks.all())));
        rules.push(Match::new().conntrack("DNAT").then(jump(names::TO_HOST_ENDPOINT)));
        rules.push(Match::new().mark_set(marks.accept).then(ret()).comment(ACCEPTED_BY_HOST_POLICY));
        chain(names::POSTROUTING, rules)
    }

    pub fn egress_dscp(&self, dscp: &[DscpRule]) -> Chain {
        let rules = dscp
            .iter()
            .map(|rule| {
                Match::new().source(&rule.sources).then(format!("--jump DSCP --set-dscp {}", rule.value))
            })
            .collect();
        chain(names::EGRESS_DSCP, rules)
    }
}
