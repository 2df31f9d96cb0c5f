//! When a node is ready for traffic, as far as BGP has to tell. Pure.

use std::time::Duration;

use crate::bird::sessions::State;
use crate::bird::watch::Trouble;

/// As long as this after the start every peer has to be up before the node counts as ready; afterwards one is
/// enough, so that a neighbour's failure does not take nodes out of service.
const ALL_PEERS_FOR: Duration = Duration::from_secs(30);

/// Why the node should get no traffic yet, as Calico's readiness check has it: first every peer has to be up and
/// BIRD done with a restart, later one peer is enough. No peers are no reason.
pub(super) fn unready(
    running: Duration,
    peers: usize,
    recovering: bool,
    troubles: &[Trouble],
) -> Option<String> {
    let down: Vec<&Trouble> =
        troubles.iter().filter(|trouble| trouble.state != State::Established.name()).collect();
    let listed = || down.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if running < ALL_PEERS_FOR {
        if recovering {
            return Some("BIRD waits for its neighbours after a restart".to_owned());
        }
        (!down.is_empty()).then(|| format!("{} of {peers} peers are not up: {}", down.len(), listed()))
    } else {
        (peers > 0 && down.len() == peers).then(|| format!("none of {peers} peers is up: {}", listed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_first_every_peer_counts_and_later_one_is_enough() {
        let trouble =
            |state| Trouble { name: "a".into(), state, reason: None, age: Duration::ZERO, flaps: 0 };
        let (early, late) = (Duration::from_secs(3), Duration::from_secs(300));
        assert_eq!(unready(early, 0, false, &[]), None);
        assert_eq!(unready(early, 2, false, &[]), None);
        assert!(unready(early, 2, true, &[]).is_some());
        let one = [trouble("Active")];
        assert!(unready(early, 2, false, &one).unwrap().starts_with("1 of 2 peers are not up: a (Active"));
        assert_eq!(unready(late, 2, true, &one), None);
        assert!(unready(late, 1, false, &one).unwrap().starts_with("none of 1 peers is up"));
        assert_eq!(unready(late, 1, false, &[trouble("Established")]), None, "flapping, but up");
    }
}
