//! Which peers are in trouble, since when, and why: not there, not up, or up and down again and again.
//!
//! Pure: the time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use super::sessions::Session;

/// So many losses within this time are flapping.
const FLAPS: usize = 3;
const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// A peer that should be up, and is not, or not for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub name: String,
    /// In BIRD's words, or that BIRD does not know it.
    pub state: &'static str,
    pub reason: Option<String>,
    /// How long it has been like that.
    pub age: Duration,
    /// How often the session was lost lately.
    pub flaps: usize,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.name, self.state)?;
        if let Some(reason) = &self.reason {
            write!(f, ", {reason}")?;
        }
        write!(f, ", for {} s", self.age.as_secs())?;
        if self.flaps >= FLAPS {
            write!(f, ", lost {} times in {} minutes", self.flaps, FLAP_WINDOW.as_secs() / 60)?;
        }
        f.write_str(")")
    }
}

#[derive(Debug)]
struct Seen {
    up: bool,
    since: Instant,
    lost: VecDeque<Instant>,
}

/// The peers as they were seen so far.
#[derive(Debug, Default)]
pub struct Watch {
    peers: BTreeMap<String, Seen>,
}

impl Watch {
    /// Compares what BIRD says with the peers that there should be.
    pub fn look<'a>(
        &mut self,
        wanted: impl Iterator<Item = &'a str>,
        sessions: &[Session],
        now: Instant,
    ) -> Vec<Trouble> {
        let sessions: BTreeMap<&str, &Session> =
            sessions.iter().map(|session| (session.name.as_str(), session)).collect();
        let mut before = std::mem::take(&mut self.peers);
        let mut troubles = Vec::new();
        for name in wanted {
            let session = sessions.get(name);
            let up = session.is_some_and(|session| session.is_up());
            let mut seen =
                before.remove(name).unwrap_or(Seen { up: false, since: now, lost: VecDeque::new() });
            if seen.up != up {
                (seen.up, seen.since) = (up, now);
                if !up {
                    seen.lost.push_back(now);
                }
            }
            while seen.lost.front().is_some_and(|lost| now.duration_since(*lost) > FLAP_WINDOW) {
                seen.lost.pop_front();
            }
            if !up || seen.lost.len() >= FLAPS {
                troubles.push(Trouble {
                    name: name.to_owned(),
                    state: session.map_or("not known to BIRD", |session| session.state.name()),
                    reason: session.and_then(|session| session.reason.clone()),
                    age: now.duration_since(seen.since),
                    flaps: seen.lost.len(),
                });
            }
            self.peers.insert(name.to_owned(), seen);
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::super::sessions::State;
    use super::*;

    fn session(state: State) -> Vec<Session> {
        vec![Session {
            name: "a".into(),
            state,
            since: String::new(),
            reason: (state != State::Established).then(|| "Hold timer expired".into()),
            imported: None,
            exported: None,
        }]
    }

    #[test]
    fn a_peer_that_is_missing_or_down_is_named_with_reason_and_age() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let missing = watch.look(["a"].into_iter(), &[], start);
        assert_eq!((missing[0].state, missing[0].age), ("not known to BIRD", Duration::ZERO));
        assert!(watch.look(["a"].into_iter(), &session(State::Established), after(2)).is_empty());
        watch.look(["a"].into_iter(), &session(State::Active), after(10));
        let down = watch.look(["a"].into_iter(), &session(State::Active), after(40));
        assert_eq!(down[0].to_string(), "a (Active, Hold timer expired, for 30 s)");
        assert!(watch.look([].into_iter(), &session(State::Active), after(41)).is_empty(), "nobody wants it");
    }

    #[test]
    fn a_flapping_peer_is_named_while_it_is_up_and_forgotten_when_it_stays_up() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut look = |state, seconds| {
            watch.look(["a"].into_iter(), &session(state), start + Duration::from_secs(seconds))
        };
        for round in 0..3 {
            look(State::Established, round * 20);
            look(State::Idle, round * 20 + 10);
        }
        let flapping = look(State::Established, 60);
        assert!(flapping[0].to_string().contains("lost 3 times in 10 minutes"), "{}", flapping[0]);
        assert!(look(State::Established, 700).is_empty());
    }
}
