//! Who is alive and who is ready: a registry of named reporters, read by `/liveness` and `/readiness`.
//!
//! The daemon is live (ready) when every reporter is. A reporter starts live and not ready. One registered
//! with a timeout has to be heard from within it, or it counts as neither: a task that hangs is found out.
//! With no reporter at all the daemon is live but not ready.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Clone, Default)]
pub struct Health {
    reporters: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

struct State {
    live: bool,
    ready: bool,
    detail: String,
    timeout: Option<Duration>,
    heard: Instant,
}

impl State {
    fn overdue(&self, now: Instant) -> bool {
        self.timeout.is_some_and(|timeout| now.saturating_duration_since(self.heard) > timeout)
    }
}

/// One answer: the verdict, and a table for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub good: bool,
    pub text: String,
}

impl Health {
    pub fn new() -> Self {
        Health::default()
    }

    /// Adds a reporter; the same name again starts it anew.
    pub fn register(&self, name: &'static str, timeout: Option<Duration>) -> Reporter {
        let state = State {
            live: true,
            ready: false,
            detail: "has not reported yet".into(),
            timeout,
            heard: Instant::now(),
        };
        self.lock().insert(name, state);
        Reporter { health: self.clone(), name }
    }

    pub fn liveness(&self) -> Answer {
        self.answer(Instant::now(), |state| state.live, true)
    }

    pub fn readiness(&self) -> Answer {
        self.answer(Instant::now(), |state| state.live && state.ready, false)
    }

    fn answer(&self, now: Instant, good: impl Fn(&State) -> bool, empty: bool) -> Answer {
        let reporters = self.lock();
        let mut all = !reporters.is_empty() || empty;
        let mut text = String::new();
        for (name, state) in reporters.iter() {
            let overdue = state.overdue(now);
            let fine = !overdue && good(state);
            all &= fine;
            let verdict = if fine { "ok" } else { "NOT OK" };
            let detail = if overdue { "has not been heard from in time" } else { state.detail.as_str() };
            // Writing into a String cannot fail.
            _ = writeln!(text, "{name:<24} {verdict:<7} {detail}");
        }
        Answer { good: all, text }
    }

    // A poisoned lock only means that a reporter panicked between two plain assignments.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.reporters.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Speaks for one part of the daemon.
pub struct Reporter {
    health: Health,
    name: &'static str,
}

impl Reporter {
    /// Live and ready.
    pub fn ready(&self) {
        self.report(true, true, "");
    }

    /// Live, but not (or no longer) ready; `why` is for people.
    pub fn not_ready(&self, why: &str) {
        self.report(true, false, why);
    }

    /// Beyond recovery: the process should be restarted.
    pub fn dead(&self, why: &str) {
        self.report(false, false, why);
    }

    /// Still there; changes nothing else.
    pub fn beat(&self) {
        if let Some(state) = self.health.lock().get_mut(self.name) {
            state.heard = Instant::now();
        }
    }

    fn report(&self, live: bool, ready: bool, detail: &str) {
        if let Some(state) = self.health.lock().get_mut(self.name) {
            (state.live, state.ready, state.heard) = (live, ready, Instant::now());
            if state.detail != detail {
                state.detail = detail.to_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_reporter_is() {
        let health = Health::new();
        assert!(!health.readiness().good && health.liveness().good);
        let (a, b) = (health.register("a", None), health.register("b", None));
        a.ready();
        assert!(!health.readiness().good);
        b.ready();
        assert!(health.readiness().good);
        b.not_ready("datastore unreachable");
        let answer = health.readiness();
        assert!(!answer.good && answer.text.contains("datastore unreachable"), "{answer:?}");
        assert!(health.liveness().good);
        b.dead("poisoned");
        assert!(!health.liveness().good);
    }

    #[test]
    fn silent_reporter_counts_as_dead_until_it_is_heard_again() {
        let health = Health::new();
        let reporter = health.register("loop", Some(Duration::from_secs(20)));
        reporter.ready();
        let later = Instant::now() + Duration::from_secs(21);
        let late = health.answer(later, |state| state.live, true);
        assert!(!late.good && late.text.contains("not been heard"), "{late:?}");
        reporter.beat();
        assert!(health.readiness().good);
    }
}
