//! When to leave a server whose data is old, and for which other [E4].
//!
//! A server that lost its datastore goes on serving what it has, and says how old it can be. An agent leaves it for
//! one that has proven to be fresher and to have seen all that the agent has; while there is none it stays, and
//! nothing is withdrawn either way. An agent that is late itself sees old data, too: so its own server is asked beside
//! the others.

use std::time::Duration;

use daemon::Backoff;
use proto::sync::{FreshnessReply, FreshnessRequest, Token, sync_client::SyncClient};
use rand::Rng;
use syncer_common::digest::source_id;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;
use transport::ClientTls;

/// Older data is stale; agents differ, so that a fleet does not move at one moment.
const LIMIT: Duration = Duration::from_secs(5);
const JITTER: Duration = Duration::from_secs(2);
/// Another server has to be fresher by this much.
const FRESHER: Duration = Duration::from_secs(3);
/// Between questions that found no better server.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
const ANSWER: Duration = Duration::from_secs(2);
const ASKED: usize = 8;

pub(crate) struct Stale {
    limit: Duration,
    began: Instant,
    /// Least difference seen between our clock and the server's: what exceeds it is time under way.
    offset: Option<i64>,
    age: Duration,
    ask_at: Option<Instant>,
    backoff: Backoff,
}

impl Stale {
    pub fn new(now: Instant) -> Stale {
        Stale {
            limit: LIMIT + JITTER.mul_f64(rand::rng().random_range(0.0..1.0)),
            began: now,
            offset: None,
            age: Duration::ZERO,
            ask_at: None,
            backoff: Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1),
        }
    }

    /// Takes a heartbeat in; true when it is time to ask the other servers.
    pub fn on_heartbeat(&mut self, age: Option<u64>, uptime: u64, now: Instant) -> bool {
        let millis = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let passed = millis(u64::try_from((now - self.began).as_millis()).unwrap_or(u64::MAX));
        let offset = passed.saturating_sub(millis(uptime));
        let least = *self.offset.get_or_insert(offset);
        self.offset = Some(least.min(offset));
        let under_way = u64::try_from(offset.saturating_sub(least)).unwrap_or_default();
        // A server that has proven nothing yet is not in sync, which is another reason to leave.
        let Some(age) = age else { return false };
        self.age = Duration::from_millis(age.saturating_add(under_way));
        if !self.is_stale() {
            self.ask_at = None;
            self.backoff.reset();
            return false;
        }
        if self.ask_at.is_some_and(|at| now < at) {
            return false;
        }
        self.ask_at = Some(now + self.backoff.next_wait());
        true
    }

    pub fn is_stale(&self) -> bool {
        self.age > self.limit
    }

    pub fn age(&self) -> Duration {
        self.age
    }
}

/// Of these servers the first that is fresher than ours and has seen all that the token's holder has. `age`: of what
/// the stream brings.
pub(crate) async fn fresher(
    ours: String,
    others: Vec<String>,
    tls: Option<ClientTls>,
    token: Option<Token>,
    age: Duration,
) -> Option<(String, Duration)> {
    let mut asked = JoinSet::new();
    for (order, server) in others.into_iter().take(ASKED).enumerate() {
        let tls = tls.clone();
        asked.spawn(async move {
            let reply = ask(&server, tls.as_ref()).await?;
            Some((order, server, reply))
        });
    }
    let (ours, answers) = tokio::join!(ask(&ours, tls.as_ref()), asked.join_all());
    let mut answers: Vec<_> = answers.into_iter().flatten().collect();
    answers.sort_by_key(|(order, ..)| *order);
    let age = own_age(ours.as_ref(), age);
    answers.into_iter().find_map(|(_, server, reply)| {
        let theirs = Duration::from_millis(reply.age_millis?);
        is_better(&reply, theirs, token.as_ref(), age).then_some((server, theirs))
    })
}

/// A server that answers with younger data than its stream brings is not the one that is late: this agent is, or a
/// path that is full. It would only be later elsewhere, after a move of thousands that are as busy.
fn own_age(answer: Option<&FreshnessReply>, age: Duration) -> Duration {
    let answered = answer.filter(|reply| reply.in_sync).and_then(|reply| reply.age_millis);
    answered.map_or(age, |answered| age.min(Duration::from_millis(answered)))
}

fn is_better(reply: &FreshnessReply, theirs: Duration, token: Option<&Token>, age: Duration) -> bool {
    let seen = |token: &Token| {
        token.history == reply.history
            && token.positions().iter().all(|held| {
                let at = reply.sources.iter().find(|position| source_id(&position.source) == held.source);
                at.is_some_and(|position| position.low >= held.needs())
            })
    };
    reply.in_sync && theirs + FRESHER <= age && token.is_none_or(seen)
}

async fn ask(server: &str, tls: Option<&ClientTls>) -> Option<FreshnessReply> {
    let asking = async {
        let settings = |endpoint: Endpoint| endpoint.connect_timeout(ANSWER);
        let channel = transport::channel(server, tls, settings).await.ok()?;
        Some(SyncClient::new(channel).freshness(FreshnessRequest {}).await.ok()?.into_inner())
    };
    timeout(ANSWER, asking).await.ok()?
}

#[cfg(test)]
mod tests {
    use proto::Position;
    use proto::sync::SourcePosition;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn reply(revision: u64, history: &str) -> FreshnessReply {
        let sources =
            vec![SourcePosition { source: "etcd".into(), low: revision, high: revision, witness: None }];
        FreshnessReply { in_sync: true, history: history.into(), sources, ..Default::default() }
    }

    #[test]
    fn others_are_asked_when_data_is_old_and_less_and_less_often() {
        let start = Instant::now();
        let mut stale = Stale::new(start);
        let mut asked = Vec::new();
        for second in 0..120u64 {
            let age = second.saturating_sub(10) * 1000;
            if stale.on_heartbeat(Some(age), second * 1000, start + SECOND * u32::try_from(second).unwrap()) {
                asked.push(second);
            }
        }
        assert!((15..=18).contains(&asked[0]), "{asked:?}");
        assert!((3..=8).contains(&asked.len()), "{asked:?}");
        assert!(!stale.on_heartbeat(Some(100), 120_000, start + SECOND * 120) && !stale.is_stale());
    }

    #[test]
    fn time_under_way_counts() {
        let start = Instant::now();
        let mut stale = Stale::new(start);
        assert!(!stale.on_heartbeat(Some(500), 90_000, start));
        assert!(!stale.on_heartbeat(Some(500), 92_000, start + SECOND * 2));
        assert!(stale.on_heartbeat(Some(500), 94_000, start + SECOND * 12));
        assert_eq!(stale.age().as_millis(), 8_500);
    }

    #[test]
    fn a_late_agent_does_not_blame_its_server() {
        let answer = |age_millis, in_sync| FreshnessReply { age_millis, in_sync, ..Default::default() };
        let ages = [
            (Some(answer(Some(400), true)), 400),
            (Some(answer(Some(20_000), true)), 9_000),
            (Some(answer(Some(400), false)), 9_000),
            (Some(answer(None, true)), 9_000),
            // It does not answer in time.
            (None, 9_000),
        ];
        for (answer, expected) in ages {
            assert_eq!(own_age(answer.as_ref(), SECOND * 9).as_millis(), expected, "{answer:?}");
        }
    }

    #[test]
    fn better_is_fresher_of_the_same_history_and_has_seen_as_much() {
        let held = Position { source: source_id("etcd"), low: 20, high: 20, steady: 20, witness: None };
        let positions = Some([held].into_iter().collect());
        let token = Token { history: "h".into(), positions, ..Default::default() };
        let better =
            |reply: &FreshnessReply, theirs: u32| is_better(reply, SECOND * theirs, Some(&token), SECOND * 8);
        assert!(better(&reply(20, "h"), 1));
        assert!(!better(&reply(20, "h"), 6), "hardly fresher");
        assert!(!better(&reply(19, "h"), 1), "it has seen less");
        assert!(!better(&reply(20, "other"), 1));
        assert!(!better(&FreshnessReply { in_sync: false, ..reply(20, "h") }, 1));
    }
}
