//! Which server next: pure.
//!
//! Every node goes through the list in an order of its own, derived from its name, so that a fleet spreads
//! out and a node returns to the same servers. Servers that a go-away names come before the list.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Servers {
    list: Vec<String>,
    next: usize,
    hints: VecDeque<String>,
    current: Option<String>,
}

impl Servers {
    pub fn new(list: &[String], node: &str) -> Self {
        let mut list: Vec<String> = list.to_vec();
        list.sort_by_cached_key(|server| *blake3::hash(format!("{node}\0{server}").as_bytes()).as_bytes());
        list.dedup();
        Servers { list, next: 0, hints: VecDeque::new(), current: None }
    }

    /// The server to try now; nothing if none is configured.
    pub fn pick(&mut self) -> Option<String> {
        let server = self.hints.pop_front().or_else(|| {
            let server = self.list.get(self.next)?.clone();
            self.next = (self.next + 1) % self.list.len();
            // Not the one just left, if there is another.
            if Some(&server) == self.current.as_ref() && self.list.len() > 1 {
                let other = self.list[self.next].clone();
                self.next = (self.next + 1) % self.list.len();
                return Some(other);
            }
            Some(server)
        })?;
        self.current = Some(server.clone());
        Some(server)
    }

    /// The server wishes its clients to go to these.
    pub fn hint(&mut self, servers: &[String]) {
        let others = servers.iter().filter(|server| Some(*server) != self.current.as_ref());
        self.hints = others.take(8).cloned().collect();
        // In an order of the node's own, as the list: all clients get the same hint.
        let position =
            |server: &String| self.list.iter().position(|known| known == server).unwrap_or(usize::MAX);
        self.hints.make_contiguous().sort_by_key(position);
    }

    /// Whether there is anywhere else to go.
    pub fn several(&self) -> bool {
        self.list.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<String> {
        ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec()
    }

    #[test]
    fn each_server_is_tried_before_any_is_tried_again() {
        let mut order = Servers::new(&servers(), "n1");
        let mut round: Vec<String> = (0..3).map(|_| order.pick().unwrap()).collect();
        let again = order.pick().unwrap();
        assert_eq!(again, round[0]);
        round.sort();
        assert_eq!(round, servers());
    }

    #[test]
    fn nodes_spread_over_the_servers() {
        let firsts: std::collections::BTreeSet<String> =
            (0..50).map(|n| Servers::new(&servers(), &format!("node-{n}")).pick().unwrap()).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn hinted_server_comes_first_and_the_one_that_sent_us_away_does_not() {
        let mut order = Servers::new(&servers(), "n1");
        let left = order.pick().unwrap();
        let hint = servers().into_iter().find(|server| *server != left).unwrap();
        order.hint(&[left.clone(), hint.clone()]);
        assert_eq!(order.pick(), Some(hint));
        assert_eq!(Servers::new(&[], "n1").pick(), None);
    }
}
