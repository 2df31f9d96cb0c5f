//! One picture from several replicas' answers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proto::admin::Client;

use super::replicas::Answer;

/// The stream of an agent that counts, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub replica: &'a str,
    pub client: &'a Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Live,
    /// It was there, and has not been heard of lately.
    Dead,
}

/// By node and agent.
#[derive(Debug, Default)]
pub struct Fleet<'a> {
    pub agents: BTreeMap<(&'a str, &'a str), Seen<'a>>,
    /// Replicas that did not answer: address and why.
    pub silent: Vec<(&'a str, &'a str)>,
    dead_after: u64,
}

impl<'a> Fleet<'a> {
    /// `dead_after`: milliseconds without a word.
    pub fn merge(answers: &'a [Answer], dead_after: u64) -> Fleet<'a> {
        let mut fleet = Fleet { dead_after, ..Fleet::default() };
        for answer in answers {
            let reply = match &answer.reply {
                Ok(reply) => reply,
                Err(reason) => {
                    fleet.silent.push((&answer.address, reason));
                    continue;
                }
            };
            for client in &reply.clients {
                let seen = Seen { replica: &reply.replica, client };
                let place = (client.node.as_str(), client.agent.as_str());
                let kept = fleet.agents.entry(place).or_insert(seen);
                if newer(client, kept.client) {
                    *kept = seen;
                }
            }
        }
        fleet
    }

    pub fn life(&self, client: &Client) -> Life {
        if client.connected && client.heard_millis_ago <= self.dead_after { Life::Live } else { Life::Dead }
    }

    pub fn live(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.agents.values().filter(|seen| self.life(seen.client) == Life::Live)
    }

    /// Nodes with a live agent of those names, or of any.
    pub fn live_nodes(&self) -> BTreeSet<&'a str> {
        self.live().map(|seen| seen.client.node.as_str()).collect()
    }

    pub fn agent_names(&self) -> BTreeSet<&'a str> {
        self.agents.keys().map(|(_, agent)| *agent).collect()
    }
}

/// Of one boot id the higher counter, else who was heard of last: no clocks are compared.
fn newer(one: &Client, other: &Client) -> bool {
    match (&one.session, &other.session) {
        (Some(one), Some(other)) if one.boot_id == other.boot_id => one.counter > other.counter,
        _ => {
            (one.connected, std::cmp::Reverse(one.heard_millis_ago))
                > (other.connected, std::cmp::Reverse(other.heard_millis_ago))
        }
    }
}

/// The revision of a source up to which a client has acknowledged; 0: nothing yet.
pub fn acked(client: &Client, source: &str) -> u64 {
    client.acked.iter().find(|position| position.source == source).map_or(0, |position| position.low)
}

#[cfg(test)]
mod tests {
    use proto::admin::StatusReply;
    use proto::sync::Session;

    use super::*;

    fn client(boot: &str, counter: u64, heard: u64, connected: bool) -> Client {
        Client {
            node: "n1".into(),
            agent: "felix".into(),
            session: Some(Session { boot_id: boot.into(), counter }),
            heard_millis_ago: heard,
            connected,
            ..Client::default()
        }
    }

    fn answers(clients: Vec<Client>) -> Vec<Answer> {
        let answer = |(n, client)| Answer {
            address: format!("a{n}"),
            reply: Ok(StatusReply { replica: format!("t{n}"), clients: vec![client], ..Default::default() }),
        };
        clients.into_iter().enumerate().map(answer).collect()
    }

    fn counted(clients: Vec<Client>) -> String {
        Fleet::merge(&answers(clients), 30_000).agents[&("n1", "felix")].replica.to_owned()
    }

    #[test]
    fn highest_counter_of_a_boot_counts_and_a_new_boot_is_heard_of_last() {
        assert_eq!(counted(vec![client("b", 2, 9_000, true), client("b", 1, 10, true)]), "t0");
        assert_eq!(counted(vec![client("b", 1, 10, true), client("b", 2, 9_000, true)]), "t1");
        assert_eq!(counted(vec![client("b", 7, 9_000, true), client("c", 1, 10, true)]), "t1");
        assert_eq!(counted(vec![client("b", 7, 5, false), client("c", 1, 900, true)]), "t1");
    }

    #[test]
    fn who_left_or_is_silent_is_dead() {
        let answers = answers(vec![client("b", 1, 31_000, true)]);
        assert!(Fleet::merge(&answers, 30_000).live_nodes().is_empty());
        assert_eq!(Fleet::merge(&answers, 40_000).live_nodes().len(), 1);
        let left = self::answers(vec![client("b", 1, 10, false)]);
        assert!(Fleet::merge(&left, 40_000).live_nodes().is_empty());
    }
}
