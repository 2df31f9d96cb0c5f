//! A policy's or profile's rules as iptables rules.
//!
//! A rule that cannot match in a family renders to nothing there; it never renders to something wider.

use felix_calc::output::{ActivePolicy, ActiveProfile, Rule as PolicyRule};
use syncer_common::model::PolicyKey;

use super::Renderer;
use super::fragments::{DenyAction, Match, always, clear_mark, ret, set_mark};
use super::matching::{self, Compiled};
use super::names::{self, Direction, nflog};
use crate::iptables::{Chain, IpVersion, Rule, TableName};

/// Whose rules are rendered.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    Policy { key: &'a PolicyKey, tier: &'a str },
    Profile(&'a str),
}

impl Owner<'_> {
    fn letter(&self) -> char {
        match self {
            Owner::Policy { .. } => 'P',
            Owner::Profile(_) => 'R',
        }
    }

    /// As it stands in NFLOG prefixes.
    fn log_id(&self) -> String {
        match self {
            Owner::Policy { key, .. } => names::policy_id(key),
            Owner::Profile(name) => (*name).to_owned(),
        }
    }

    fn chain_comment(&self, direction: Direction) -> String {
        let direction = direction.word();
        match self {
            Owner::Policy { key, .. } => {
                format!("{} {} {direction}", key.kind, names::qualified_name(key))
            }
            Owner::Profile(name) => format!("Profile {name} {direction}"),
        }
    }
}

/// What the rendering of a rule depends on besides the rule.
#[derive(Clone, Copy, Debug)]
pub struct RuleContext<'a> {
    pub version: IpVersion,
    pub owner: Owner<'a>,
    pub direction: Direction,
    /// Untracked policy is not logged.
    pub untracked: bool,
    pub deny: DenyAction,
}

impl Renderer {
    /// Ingress and egress chain of a policy, as the filter table takes them. A staged policy has none.
    pub fn policy_chains(&self, key: &PolicyKey, policy: &ActivePolicy, version: IpVersion) -> Vec<Chain> {
        self.policy_chains_in(TableName::Filter, key, policy, version)
    }

    /// The same for a table: outside filter there is no REJECT.
    pub fn policy_chains_in(
        &self,
        table: TableName,
        key: &PolicyKey,
        policy: &ActivePolicy,
        version: IpVersion,
    ) -> Vec<Chain> {
        if names::is_staged(&key.kind) {
            return Vec::new();
        }
        let owner = Owner::Policy { key, tier: &policy.tier };
        let directions = [(Direction::Ingress, &policy.inbound), (Direction::Egress, &policy.outbound)];
        let chains = directions.map(|(direction, rules)| {
            let untracked = policy.untracked;
            let context = RuleContext { version, owner, direction, untracked, deny: self.deny_in(table) };
            Chain { name: names::policy_chain(key, direction), rules: self.commented(&context, rules) }
        });
        chains.into()
    }

    /// Ingress and egress chain of a profile, as the filter table takes them.
    pub fn profile_chains(&self, name: &str, profile: &ActiveProfile, version: IpVersion) -> [Chain; 2] {
        self.profile_chains_in(TableName::Filter, name, profile, version)
    }

    pub fn profile_chains_in(
        &self,
        table: TableName,
        name: &str,
        profile: &ActiveProfile,
        version: IpVersion,
    ) -> [Chain; 2] {
        [(Direction::Ingress, &profile.inbound), (Direction::Egress, &profile.outbound)].map(
            |(direction, rules)| {
                let context = RuleContext {
                    version,
                    owner: Owner::Profile(name),
                    direction,
                    untracked: false,
                    deny: self.deny_in(table),
                };
                // Beside upstream: a pass of the last tier would look like one of the profile, and end it early.
                let passes = rules.iter().any(|rule| ["pass", "next-tier"].contains(&rule.action.as_str()));
                let clear = passes.then(|| always(clear_mark(self.config().marks.pass)));
                let rules = clear.into_iter().chain(self.commented(&context, rules)).collect();
                Chain { name: names::profile_chain(name, direction), rules }
            },
        )
    }

    /// A chain's rules, with the comment that says whose they are.
    fn commented(&self, context: &RuleContext<'_>, rules: &[PolicyRule]) -> Vec<Rule> {
        let mut rendered = self.policy_rules(context, rules);
        // At the end of a chain a packet returns anyway.
        while rendered.last().is_some_and(|rule| rule.action == ret()) {
            rendered.pop();
        }
        if rendered.is_empty() {
            rendered.push(Rule::default());
        }
        rendered[0].comments.insert(0, context.owner.chain_comment(context.direction).into());
        rendered
    }

    /// Rules in order, without comment and with every RETURN.
    pub fn policy_rules(&self, context: &RuleContext<'_>, rules: &[PolicyRule]) -> Vec<Rule> {
        rules.iter().enumerate().flat_map(|(index, rule)| self.policy_rule(context, index, rule)).collect()
    }

    /// One rule; `index` is its place in the policy, for the logs.
    pub fn policy_rule(&self, context: &RuleContext<'_>, index: usize, rule: &PolicyRule) -> Vec<Rule> {
        let (mut rendered, matches) = match matching::compile(&self.config().marks, context.version, rule) {
            Some(Compiled { blocks, matches }) => (blocks, matches),
            None => return Vec::new(),
        };
        rendered.extend(self.verdict(context, index, &rule.action, matches));
        for rendered in &mut rendered {
            rendered.comments =
                rule.annotations.iter().map(|(key, value)| format!("{key}={value}").into()).collect();
        }
        rendered
    }

    fn verdict(&self, context: &RuleContext<'_>, index: usize, action: &str, matches: Match) -> Vec<Rule> {
        let marks = &self.config().marks;
        match action {
            "" | "allow" => self.marked(context, index, 'A', marks.accept, ret(), matches),
            "pass" | "next-tier" => self.marked(context, index, 'P', marks.pass, ret(), matches),
            "log" => vec![self.log(context, matches)],
            // Validation lets nothing else through but deny; whatever gets here all the same is refused.
            _ => self.marked(context, index, 'D', marks.drop, context.deny.action(), matches),
        }
    }

    /// Marks what matched, logs it when flow logs are on, and acts on the mark: the match itself is
    /// evaluated once.
    fn marked(
        &self,
        context: &RuleContext<'_>,
        index: usize,
        letter: char,
        mark: u32,
        action: String,
        matches: Match,
    ) -> Vec<Rule> {
        let mut rules = vec![matches.then(set_mark(mark))];
        if self.config().flow_logs_enabled && !context.untracked {
            let owner = &context.owner;
            let prefix = nflog::rule(letter, owner.letter(), context.direction, index, &owner.log_id());
            rules.push(Match::new().mark_set(mark).then(self.nflog(context.direction, &prefix)));
        }
        rules.push(Match::new().mark_set(mark).then(action));
        rules
    }

    pub(super) fn nflog(&self, direction: Direction, prefix: &str) -> String {
        let group = direction.nflog_group();
        let size = if self.config().features.nflog_size { "--nflog-size" } else { "--nflog-range" };
        format!("--jump NFLOG --nflog-group {group} --nflog-prefix {prefix} {size} 80")
    }

    fn log(&self, context: &RuleContext<'_>, matches: Match) -> Rule {
        let config = self.config();
        let mut limited = Match::new();
        if let Some(rate) = &config.log_action_rate_limit {
            let mut limit = format!("-m limit --limit {rate}");
            if let Some(burst) = config.log_action_rate_limit_burst {
                limit.push_str(&format!(" --limit-burst {burst}"));
            }
            limited.push(limit);
        }
        let prefix = context.owner.expand(&config.log_prefix);
        let action = format!("--jump LOG --log-prefix \"{prefix}: \" --log-level 5");
        limited.and(matches).then(action)
    }
}

impl Owner<'_> {
    /// The configured log prefix with `%t` tier, `%k` kind, `%p` policy and `%n` name filled in.
    fn expand(&self, prefix: &str) -> String {
        let (tier, kind, qualified) = match self {
            Owner::Policy { key, tier } => (*tier, names::short_kind(&key.kind), names::qualified_name(key)),
            Owner::Profile(name) => ("", "pro", (*name).to_owned()),
        };
        let name = match self {
            Owner::Policy { key, .. } => key.name.as_str(),
            Owner::Profile(name) => name,
        };
        let mut expanded = String::new();
        let mut rest = prefix;
        while let Some(at) = rest.find('%') {
            expanded.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let value = match rest.chars().next() {
                Some('t') => tier,
                Some('k') => kind,
                Some('p') => &qualified,
                Some('n') => name,
                _ => {
                    expanded.push('%');
                    continue;
                }
            };
            expanded.push_str(value);
            rest = &rest[1..];
        }
        expanded.push_str(rest);
        // It stands between double quotes.
        expanded.replace(|c: char| c.is_control() || "\"\\".contains(c), "_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_prefixes_expand_what_they_know_and_keep_the_rest() {
        let key = PolicyKey { kind: "NetworkPolicy".into(), namespace: "app".into(), name: "foo".into() };
        let owner = Owner::Policy { key: &key, tier: "admin" };
        assert_eq!(owner.expand("x %k:%p:%t:%n"), "x np:app/foo:admin:foo");
        assert_eq!(owner.expand("100% %%y %"), "100% %%y %");
    }

    #[test]
    fn an_unknown_action_denies() {
        let renderer = Renderer::new(crate::rules::RulesConfig::default());
        let rule = PolicyRule { action: "shrug".into(), ..PolicyRule::default() };
        let context = RuleContext {
            version: IpVersion::V4,
            owner: Owner::Profile("p"),
            direction: Direction::Ingress,
            untracked: false,
            deny: DenyAction::Drop,
        };
        let rendered = renderer.policy_rule(&context, 0, &rule);
        assert_eq!(rendered.last().unwrap().action, "--jump DROP");
    }

    #[test]
    fn a_profile_that_passes_forgets_the_pass_of_the_last_tier() {
        let renderer = Renderer::new(crate::rules::RulesConfig::default());
        let rule = |action: &str| PolicyRule { action: action.into(), ..PolicyRule::default() };
        let clear = clear_mark(renderer.config().marks.pass);
        let first = |inbound| {
            let profile = ActiveProfile { inbound, ..ActiveProfile::default() };
            renderer.profile_chains("p", &profile, IpVersion::V4)[0].rules[0].action.clone()
        };
        assert_eq!(first([rule("pass"), rule("allow")].into()), clear);
        // The others keep upstream's chains to the letter.
        assert_ne!(first([rule("allow")].into()), clear);
    }
}
