//! The short run: fixed seeds, a fixed number of executions. `make fuzz` is the long one.

use fuzz::driver::{self, Limit};
use fuzz::{TARGETS, Target};

fn holds(name: &str) {
    let target = Target::by_name(name).expect("tests are named after targets");
    let report = driver::run(&target, 1, Limit::Executions(target.short));
    if let Some(found) = report.found {
        let input = String::from_utf8_lossy(&found.input).into_owned();
        panic!("{name}, execution {}: {}\n{input}\n{input:?}", found.execution, found.broken);
    }
    assert!(report.outcomes > 10, "the inputs reach little: {} outcomes", report.outcomes);
}

#[test]
fn seeds_are_good_inputs() {
    let mut bad = Vec::new();
    for target in TARGETS {
        for seed in (target.seeds)() {
            let text = String::from_utf8_lossy(&seed);
            match driver::execute(&target, &seed) {
                Ok(outcome) if !outcome.contains('!') => {}
                outcome => bad.push(format!("{}: {outcome:?}\n{text}", target.name)),
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn keys_hold() {
    holds("keys");
}

#[test]
fn selectors_hold() {
    holds("selectors");
}

#[test]
fn values_hold() {
    holds("values");
}

#[test]
fn stored_forms_hold() {
    holds("stored");
}

#[test]
fn manifests_hold() {
    holds("manifests");
}

#[test]
fn old_forms_hold() {
    holds("old");
}

#[test]
fn kubernetes_holds() {
    holds("kubernetes");
}

#[test]
fn messages_hold() {
    holds("wire");
}
