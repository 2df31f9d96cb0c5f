//! Runs a target on mutated inputs: the same seed, the same inputs.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::{Outcome, Target};

/// One input may not take longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Inputs kept for further mutation.
const CORPUS: usize = 4_000;
const MAX_INPUT: usize = 16 << 10;
const MINIMISING: usize = 3_000;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Executions(u64),
    Time(Duration),
}

#[derive(Debug)]
pub struct Report {
    pub executions: u64,
    pub took: Duration,
    pub slowest: Duration,
    /// Different outcomes.
    pub outcomes: usize,
    pub found: Option<Found>,
}

/// An input that breaks a property.
#[derive(Debug)]
pub struct Found {
    pub execution: u64,
    pub broken: String,
    /// As small as it was made.
    pub input: Vec<u8>,
}

pub fn run(target: &Target, seed: u64, limit: Limit) -> Report {
    let started = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let seeds = (target.seeds)();
    let mut corpus = seeds.clone();
    let mut outcomes = HashSet::new();
    let mut report =
        Report { executions: 0, took: Duration::ZERO, slowest: Duration::ZERO, outcomes: 0, found: None };
    let goes_on = |executions: u64| match limit {
        Limit::Executions(most) => executions < most,
        Limit::Time(time) => started.elapsed() < time,
    };
    while report.found.is_none() && goes_on(report.executions) {
        let index = usize::try_from(report.executions).unwrap_or(usize::MAX);
        let input = match seeds.get(index) {
            Some(seed) => seed.clone(),
            None => mutated(target, &corpus, &mut random),
        };
        let began = Instant::now();
        let outcome = execute(target, &input);
        let mut took = began.elapsed();
        if took > PATIENCE {
            // Or was it the machine that stood still?
            let began = Instant::now();
            took = execute(target, &input).map_or(took, |_| began.elapsed());
        }
        report.executions += 1;
        report.slowest = report.slowest.max(took);
        let broken = match outcome {
            Ok(_) if took > PATIENCE => format!("takes {} s", took.as_secs()),
            Ok(outcome) => {
                let news = outcome.lines().filter(|line| outcomes.insert((*line).to_owned())).count();
                if news > 0 && corpus.len() < CORPUS {
                    corpus.push(input);
                }
                continue;
            }
            Err(broken) => broken,
        };
        let input = if took > PATIENCE { input } else { minimised(target, input) };
        let broken = execute(target, &input).err().unwrap_or(broken);
        report.found = Some(Found { execution: report.executions, broken, input });
    }
    report.took = started.elapsed();
    report.outcomes = outcomes.len();
    report
}

fn mutated(target: &Target, corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let choose = |random: &mut StdRng| corpus.choose(random).expect("every target has seeds").clone();
    let (mut input, other) = (choose(random), choose(random));
    for _ in 0..1 << random.random_range(0..4) {
        input = target.form.mutate(input, &other, random);
    }
    input.truncate(MAX_INPUT);
    input
}

/// A panic is caught and becomes what was broken.
pub fn execute(target: &Target, input: &[u8]) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| (target.check)(input))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        Err(format!("panic: {text}"))
    })
}

/// Leaves out what the input does not need to break the same property: smaller and smaller parts.
fn minimised(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let property = |broken: &str| broken.split(':').next().map(str::to_owned);
    let Some(wanted) = execute(target, &input).err().as_deref().and_then(property) else { return input };
    let mut executions = 0;
    let mut fails = |candidate: &[u8]| {
        executions += 1;
        let same = |broken: String| property(&broken).as_ref() == Some(&wanted);
        (executions <= MINIMISING).then(|| execute(target, candidate).is_err_and(same))
    };
    loop {
        let before = input.len();
        for candidate in target.form.smaller(&input) {
            if candidate.len() >= input.len() {
                continue;
            }
            match fails(&candidate) {
                Some(true) => {
                    input = candidate;
                    break;
                }
                Some(false) => {}
                None => return input,
            }
        }
        if input.len() == before {
            return input;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Form;

    fn breaks(input: &[u8]) -> Outcome {
        let text = String::from_utf8_lossy(input);
        if text.contains("calico") && text.contains("//") {
            return Err(format!("finds it: in {text}"));
        }
        Ok(String::new())
    }

    fn panics(input: &[u8]) -> Outcome {
        assert!(!input.ends_with(b"0"), "ends in 0");
        Ok(String::new())
    }

    fn target(check: fn(&[u8]) -> Outcome) -> Target {
        let seeds = || vec![b"/calico/resources/v3/x".to_vec(), b"/calico/v1/y".to_vec()];
        Target { name: "test", form: Form::Text, seeds, check, short: 0 }
    }

    #[test]
    fn what_breaks_a_property_is_found_made_small_and_found_again() {
        let run = |check, seed| {
            let found = run(&target(check), seed, Limit::Executions(200_000)).found;
            let found = found.expect("it is there to be found");
            (found.execution, found.broken, String::from_utf8_lossy(&found.input).into_owned())
        };
        let (execution, broken, input) = run(breaks, 1);
        assert!(broken.starts_with("finds it"), "{broken}");
        assert_eq!(input.len(), "calico//".len(), "{input:?}");
        assert_eq!(run(breaks, 1), (execution, broken, input));
        let (_, broken, input) = run(panics, 1);
        assert_eq!((broken.as_str(), input.as_str()), ("panic: ends in 0", "0"));
    }
}
