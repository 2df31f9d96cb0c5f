//! `iptables_rules.json`: rules, policies and profiles, fragment for fragment and hash for hash.

// Vectors that do not have the expected form fail the test, wherever that shows.
#![allow(clippy::unwrap_used)]

#[path = "conformance/vectors.rs"]
#[allow(dead_code)]
mod vectors;

use felix::iptables::render::{append_line, chain_lines};
use felix::iptables::{Chain, Rule};
use felix::rules::policy::{Owner, RuleContext};
use felix::rules::{Direction, Renderer};
use felix_calc::output::{ActivePolicy, ActiveProfile};
use serde_json::Value;
use syncer_common::model::PolicyKey;
use vectors::*;

const FILE: &str = "iptables_rules.json";

struct OwnerOf {
    key: PolicyKey,
    profile: Option<String>,
    tier: String,
}

impl OwnerOf {
    fn read(case: &Value) -> Self {
        OwnerOf {
            key: case.get("policy_id").map(policy_key).unwrap_or_else(|| policy_key(&Value::Null)),
            profile: case.get("profile_id").map(|id| text(id, "name").to_owned()),
            tier: text(case, "tier").to_owned(),
        }
    }

    fn context<'a>(&'a self, case: &Value, renderer: &Renderer) -> RuleContext<'a> {
        RuleContext {
            version: version(case),
            owner: match &self.profile {
                Some(name) => Owner::Profile(name),
                None => Owner::Policy { key: &self.key, tier: &self.tier },
            },
            direction: match text(case, "direction") {
                "egress" => Direction::Egress,
                _ => Direction::Ingress,
            },
            untracked: flag(case, "untracked"),
            // The vectors render every rule as filter takes it.
            deny: renderer.config().filter_deny_action,
        }
    }
}

fn renderer(file: &Value, case: &Value, modern: bool) -> Renderer {
    Renderer::new(config(&file["configs"][text(case, "config")], modern))
}

/// Upstream takes annotations in random order; ours are sorted.
fn sorted_comments(mut rules: Vec<Rule>) -> Vec<Rule> {
    for rule in &mut rules {
        rule.comments.sort();
    }
    rules
}

/// The documented correction: bit 1 is cleared before the third and every later positive block. A block
/// after the first ends where bit 1 is asked for, and another follows if the bit is set again.
fn corrected(case: &Value, renderer: &Renderer, recorded: Vec<Rule>) -> Vec<Rule> {
    match text(case, "upstream_defect") {
        "" => return recorded,
        "scratch1-not-cleared" => {}
        other => panic!("unknown defect {other}"),
    }
    let bit = renderer.config().marks.scratch1;
    let set = format!("--jump MARK --set-mark {bit:#x}/{bit:#x}");
    let ends = format!("-m mark --mark 0/{bit:#x}");
    let clear = Rule { action: format!("--jump MARK --set-mark 0/{bit:#x}"), ..Rule::default() };
    let before = recorded.len();
    let mut out: Vec<Rule> = Vec::new();
    for rule in recorded {
        if rule.action == set && out.last().is_some_and(|last| last.matches == ends) {
            out.push(Rule { comments: rule.comments.clone(), ..clear.clone() });
        }
        out.push(rule);
    }
    assert!(out.len() > before, "{}: nothing to correct", text(case, "id"));
    out
}

#[test]
fn every_rule_renders_to_the_recorded_fragments() {
    let Some(file) = load(FILE) else { return };
    let mut report = Report::default();
    for case in list(&file, "cases") {
        let renderer = renderer(&file, case, false);
        let owner = OwnerOf::read(case);
        let context = owner.context(case, &renderer);
        let index = usize::try_from(number(case, "index")).unwrap();
        let rendered = renderer.policy_rule(&context, index, &rule(&case["rule"]));
        let recorded: Vec<Rule> = list(&case["expected"], "rules").iter().map(fragments).collect();
        let expected = corrected(case, &renderer, recorded);
        report.check(text(case, "id"), &sorted_comments(rendered.clone()), &sorted_comments(expected));

        // Where an order of annotations cannot differ, lines have to be the same too.
        let recorded = texts(&case["expected"], "lines");
        if rendered.iter().all(|rule| rule.comments.len() < 2) && text(case, "upstream_defect").is_empty() {
            let lines: Vec<String> = rendered.iter().map(|rule| append_line("test", None, rule)).collect();
            if !recorded.is_empty() {
                report.check(text(case, "id"), &lines, &recorded);
            }
        }
    }
    report.finish("rules");
}

fn check_chains(report: &mut Report, id: &str, chains: &[Chain], expected: &[Value], modern: bool) {
    let names: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
    let expected_names: Vec<&str> = expected.iter().map(|chain| text(chain, "name")).collect();
    report.check(id, &names, &expected_names);
    for (chain, expected) in chains.iter().zip(expected) {
        let key = if modern && expected.get("lines_modern").is_some() { "lines_modern" } else { "lines" };
        report.check(&format!("{id} {key}"), &chain_lines(chain), &texts(expected, key));
    }
}

#[test]
fn every_policy_and_profile_renders_to_the_recorded_lines() {
    let Some(file) = load(FILE) else { return };
    let mut report = Report::default();
    for case in list(&file, "policy_cases") {
        let id = text(case, "id");
        assert_eq!(text(case, "upstream_defect"), "", "{id}: no correction is known for chains");
        for modern in [false, true] {
            let renderer = renderer(&file, case, modern);
            let expected = case["expected"].as_array().map_or(&[][..], Vec::as_slice);
            match text(case, "func") {
                "policy" => {
                    let vector = &case["policy"];
                    let policy = ActivePolicy {
                        tier: text(vector, "tier").to_owned(),
                        namespace: text(vector, "namespace").to_owned(),
                        inbound: rules(vector, "inbound_rules").into(),
                        outbound: rules(vector, "outbound_rules").into(),
                        untracked: flag(vector, "untracked"),
                        pre_dnat: flag(vector, "pre_dnat"),
                        ..ActivePolicy::default()
                    };
                    let chains =
                        renderer.policy_chains(&policy_key(&case["policy_id"]), &policy, version(case));
                    check_chains(&mut report, id, &chains, expected, modern);
                }
                "profile" => {
                    let vector = &case["profile"];
                    let profile = ActiveProfile {
                        inbound: rules(vector, "inbound_rules").into(),
                        outbound: rules(vector, "outbound_rules").into(),
                    };
                    let name = text(&case["profile_id"], "name");
                    let chains = renderer.profile_chains(name, &profile, version(case));
                    check_chains(&mut report, id, &chains, expected, modern);
                }
                "rules_with_chain_comment" => {
                    assert!(list(case, "chain_comments").is_empty(), "{id}: chain comments are not covered");
                    let owner = OwnerOf::read(case);
                    let context = owner.context(case, &renderer);
                    let rendered = renderer.policy_rules(&context, &rules(case, "rules"));
                    let recorded: Vec<Rule> =
                        list(&case["expected"], "rules").iter().map(fragments).collect();
                    report.check(id, &rendered, &recorded);
                }
                other => panic!("{id}: no rendering is known for {other}"),
            }
        }
    }
    report.finish("policies and profiles");
}
