//! The explanation as an operator reads it.

use std::fmt;

use syncer_common::model::PolicyKey;

use super::{Action, Hook, Matched, Stage, Step, Verdict};

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.hook.name(), self.endpoint)?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        match self.verdict {
            Some(verdict) => write!(f, "  => {verdict}"),
            None => write!(f, "  => goes on"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Allow => "allowed",
            Verdict::Deny => "denied",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Policy { tier, key, matched } => {
                write!(f, "tier {tier}, {}: {}", policy(key), outcome(*matched))
            }
            Step::EndOfTier { tier } => {
                write!(f, "tier {tier}: ends, its policies apply and none decided: deny")
            }
            Step::Profile { name, matched } => write!(f, "profile {name}: {}", outcome(*matched)),
            Step::NoProfile => f.write_str("no profile allows it: deny"),
            Step::Fixed(why) => f.write_str(why),
        }
    }
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::UntrackedIngress => "untracked ingress of host endpoint",
            Hook::UntrackedEgress => "untracked egress of host endpoint",
            Hook::PreDnat => "pre-DNAT ingress of host endpoint",
            Hook::ForwardIngress => "forwarded, ingress of host endpoint",
            Hook::ForwardEgress => "forwarded, egress of host endpoint",
            Hook::HostIngress => "ingress of host endpoint",
            Hook::HostEgress => "egress of host endpoint",
            Hook::WorkloadIngress => "ingress of workload",
            Hook::WorkloadEgress => "egress of workload",
            Hook::WorkloadToHost => "to its own host, workload",
        }
    }
}

fn policy(key: &PolicyKey) -> String {
    match key.namespace.is_empty() {
        true => format!("{} {}", key.kind, key.name),
        false => format!("{} {}/{}", key.kind, key.namespace, key.name),
    }
}

fn outcome(matched: Option<Matched>) -> String {
    match matched {
        None => "no rule matches".to_owned(),
        Some(Matched { rule, action }) => {
            let action = match action {
                Action::Allow => "allow",
                Action::Deny => "deny",
                Action::Pass => "pass",
            };
            format!("rule {}: {action}", rule + 1)
        }
    }
}
