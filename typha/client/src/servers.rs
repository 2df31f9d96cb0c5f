//! Which server next. Each node has an order of its own, so that a fleet spreads out; every server is tried once before
//! any is tried again.

use std::collections::VecDeque;

#[derive(Debug)]
pub struct Servers {
    queue: VecDeque<String>,
}

impl Servers {
    /// The order follows from the node's name: it is the same after a restart.
    pub fn new(servers: &[String], node: &str, agent: &str) -> Self {
        let mut ordered: Vec<_> = servers.to_vec();
        ordered.sort_by_key(|server| {
            let hash = blake3::hash(format!("{node}\0{agent}\0{server}").as_bytes());
            hash.as_bytes()[..8].to_vec()
        });
        ordered.dedup();
        Servers { queue: ordered.into() }
    }

    /// The server whose turn it is; it goes to the end.
    pub fn next(&mut self) -> Option<String> {
        let server = self.queue.pop_front()?;
        self.queue.push_back(server.clone());
        Some(server)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Puts these first, if they are known (a server that goes away may say where to go).
    pub fn prefer(&mut self, servers: &[String]) {
        for server in servers.iter().rev() {
            if let Some(at) = self.queue.iter().position(|known| known == server) {
                self.queue.remove(at);
                self.queue.push_front(server.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("typha-{i}:5473")).collect()
    }

    #[test]
    fn every_server_is_tried_before_any_again() {
        let mut servers = Servers::new(&names(3), "n1", "felix");
        let mut first: Vec<_> = (0..3).filter_map(|_| servers.next()).collect();
        first.sort();
        assert_eq!(first, names(3));
    }

    #[test]
    fn nodes_spread_over_the_servers() {
        let firsts: std::collections::HashSet<_> =
            (0..50).filter_map(|i| Servers::new(&names(3), &format!("node-{i}"), "felix").next()).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn preferred_servers_come_first_and_unknown_ones_not_at_all() {
        let mut servers = Servers::new(&names(3), "n1", "felix");
        servers.prefer(&["typha-2:5473".into(), "typha-1:5473".into(), "elsewhere:1".into()]);
        assert_eq!(servers.next().as_deref(), Some("typha-2:5473"));
        assert_eq!(servers.next().as_deref(), Some("typha-1:5473"));
        assert_eq!(servers.len(), 3);
    }
}
