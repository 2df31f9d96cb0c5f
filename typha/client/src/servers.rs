//! Which server next.
//!
//! Every node goes through the servers in an order of its own, derived from its name, so that a fleet spreads out
//! and a node returns to the same servers. Servers that a go-away names come first; then those on the node
//! itself, those in its zone, the others. A name with several addresses (a headless service) stands for all of them and is
//! looked up again at every round; servers also tell of one another in their hellos.

use std::collections::{BTreeMap, HashSet, VecDeque};

use proto::sync::Peer;

#[derive(Debug)]
pub(crate) struct Servers {
    node: String,
    zone: String,
    configured: Vec<String>,
    /// Addresses of configured names, as last looked up.
    resolved: BTreeMap<String, Vec<String>>,
    learned: Vec<Peer>,
    list: Vec<String>,
    tried: HashSet<String>,
    hints: VecDeque<String>,
    current: Option<String>,
}

impl Servers {
    pub fn new(configured: &[String], node: &str, zone: &str) -> Self {
        let mut servers = Servers {
            node: node.to_owned(),
            zone: zone.to_owned(),
            configured: configured.to_vec(),
            resolved: BTreeMap::new(),
            learned: Vec::new(),
            list: Vec::new(),
            tried: HashSet::new(),
            hints: VecDeque::new(),
            current: None,
        };
        servers.arrange();
        servers
    }

    /// Looks the names up, if every server has been tried. What cannot be looked up keeps its addresses.
    pub async fn look_up(&mut self) {
        if !self.hints.is_empty()
            || self.list.iter().any(|server| !self.tried.contains(server)) && !self.resolved.is_empty()
        {
            return;
        }
        for name in self.configured.clone() {
            let Ok(found) = tokio::net::lookup_host(&name).await else { continue };
            let mut found: Vec<String> = found.map(|address| address.to_string()).collect();
            found.sort();
            found.dedup();
            // One address: the name says more.
            let addresses = if found.len() > 1 { found } else { vec![name.clone()] };
            self.resolved.insert(name, addresses);
        }
        self.arrange();
    }

    /// What a server says of its fellows.
    pub fn learn(&mut self, peers: &[Peer]) {
        if !peers.is_empty() && self.learned != peers {
            self.learned = peers.to_vec();
            self.arrange();
        }
    }

    fn arrange(&mut self) {
        let mut all: BTreeMap<String, u8> = BTreeMap::new();
        for name in &self.configured {
            let itself = std::slice::from_ref(name);
            for address in self.resolved.get(name).map_or(itself, Vec::as_slice) {
                all.insert(address.clone(), 2);
            }
        }
        for peer in &self.learned {
            let near = match () {
                () if !peer.node.is_empty() && peer.node == self.node => 0,
                () if !peer.zone.is_empty() && peer.zone == self.zone => 1,
                () => 2,
            };
            all.insert(peer.address.clone(), near);
        }
        let mut list: Vec<(u8, String)> = all.into_iter().map(|(server, near)| (near, server)).collect();
        list.sort_by_cached_key(|(near, server)| {
            (*near, *blake3::hash(format!("{}\0{server}", self.node).as_bytes()).as_bytes())
        });
        self.list = list.into_iter().map(|(_, server)| server).collect();
    }

    /// The server to try now; nothing if none is configured.
    pub fn pick(&mut self) -> Option<String> {
        let server = match self.hints.pop_front() {
            Some(hint) => hint,
            None => {
                if self.list.iter().all(|server| self.tried.contains(server)) {
                    self.tried.clear();
                }
                // Not the one just left, if there is another.
                let others = |server: &&String| {
                    !self.tried.contains(*server)
                        && (Some(*server) != self.current.as_ref() || self.list.len() == 1)
                };
                let first = self.list.iter().find(others).or_else(|| self.list.first())?;
                first.clone()
            }
        };
        self.tried.insert(server.clone());
        self.current = Some(server.clone());
        Some(server)
    }

    /// The present server has proven good: after it, the nearest is tried first again.
    pub fn good(&mut self) {
        self.tried.clear();
        self.tried.extend(self.current.clone());
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

    /// The present server wishes its clients to come again, and names no other.
    pub fn again(&mut self) {
        self.hints = self.current.iter().cloned().collect();
    }

    /// Where else to go, best first.
    pub fn others(&self) -> Vec<String> {
        self.list.iter().filter(|server| Some(*server) != self.current.as_ref()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["a:1", "b:1", "c:1"].map(str::to_owned).to_vec()
    }

    fn servers(node: &str) -> Servers {
        Servers::new(&names(), node, "west")
    }

    fn peer(address: &str, node: &str, zone: &str) -> Peer {
        Peer { address: address.into(), node: node.into(), zone: zone.into() }
    }

    #[test]
    fn each_server_is_tried_before_any_is_tried_again() {
        let mut order = servers("n1");
        let mut round: Vec<String> = (0..3).map(|_| order.pick().unwrap()).collect();
        let again = order.pick().unwrap();
        assert_eq!(again, round[0]);
        round.sort();
        assert_eq!(round, names());
    }

    #[test]
    fn nodes_spread_over_the_servers() {
        let firsts: std::collections::BTreeSet<String> =
            (0..50).map(|n| servers(&format!("node-{n}")).pick().unwrap()).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn hinted_server_comes_first_and_the_one_that_sent_us_away_does_not() {
        let mut order = servers("n1");
        let left = order.pick().unwrap();
        let hint = names().into_iter().find(|server| *server != left).unwrap();
        order.hint(&[left.clone(), hint.clone()]);
        assert_eq!(order.pick(), Some(hint));
        let now = order.pick();
        order.again();
        assert_eq!(order.pick(), now);
        assert_eq!(Servers::new(&[], "n1", "").pick(), None);
    }

    #[test]
    fn own_node_comes_before_own_zone_before_the_others() {
        for n in 0..20 {
            let node = format!("n{n}");
            let mut order = servers(&node);
            order.learn(&[
                peer("far:1", "x", "east"),
                peer("zone:1", "y", "west"),
                peer("near:1", &node, "west"),
            ]);
            let picked: Vec<String> = (0..6).map(|_| order.pick().unwrap()).collect();
            assert_eq!(picked[..2], ["near:1", "zone:1"]);
            assert_eq!(picked.iter().collect::<HashSet<_>>().len(), 6);
            order.good();
            assert_eq!(order.pick().unwrap(), "near:1", "it was tried long ago");
        }
    }

    #[tokio::test]
    async fn name_with_one_address_stays_a_name_and_what_is_unknown_stays_too() {
        let mut order =
            Servers::new(&["127.0.0.1:5473".to_owned(), "no-such-host.invalid:1".to_owned()], "n1", "");
        order.look_up().await;
        let mut all = [order.pick().unwrap(), order.pick().unwrap()];
        all.sort();
        assert_eq!(all, ["127.0.0.1:5473", "no-such-host.invalid:1"]);
    }
}
