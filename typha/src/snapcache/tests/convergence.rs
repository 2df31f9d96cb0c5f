//! Any client, at any time, from any replica: what it holds after a completed resume is what the replica holds.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use proto::Position;

use super::*;
use crate::syncserver::compare::Compare;

/// Few, so that the same one is written again and again.
const KEYS: u8 = 4;

/// A client as the protocol has it.
#[derive(Clone, Default)]
struct Client {
    held: BTreeMap<String, Vec<u8>>,
    token: Option<sync::Token>,
    /// Of the token, and what came since.
    positions: Vec<Position>,
    removed: Vec<String>,
}

impl Client {
    fn take(&mut self, entry: sync::Entry) {
        let value = entry.value.map(|value| value.encode_to_vec());
        if self.held.get(&entry.key) == value.as_ref() {
            return;
        }
        for cause in &entry.cause {
            let held = self.positions.iter_mut().filter(|held| held.source == cause.source);
            held.for_each(|held| held.include(cause.revision));
        }
        match value {
            Some(value) => drop(self.held.insert(entry.key, value)),
            None => {
                self.held.remove(&entry.key);
                self.removed.push(entry.key);
            }
        }
    }

    /// A heartbeat, which every stream gets at any time.
    fn hear(&mut self, shared: &Shared) {
        let cache = shared.read();
        let at_cut = |token: &sync::Token| (token.epoch.as_str(), token.seq) == (cache.epoch(), cache.head());
        if self.token.as_ref().is_some_and(at_cut) {
            let positions = self.positions.iter_mut().zip(cache.token(KindSet::all()).positions());
            positions.for_each(|(held, proven)| held.prove(&proven));
        }
    }

    fn hashes(&self, kind: &str, among: impl Fn(u16) -> bool) -> Vec<u64> {
        let of_kind = |path: &str| Kind::of(&Key::parse(path).unwrap()).unwrap().name() == kind;
        let held = self.held.iter().filter(|(path, _)| of_kind(path) && among(digest::leaf(path)));
        held.map(|(path, value)| digest::hash(path, value)).collect()
    }

    fn sum(&self, kind: &str, among: impl Fn(u16) -> bool) -> u64 {
        self.hashes(kind, among).into_iter().fold(0, u64::wrapping_add)
    }

    /// Digests as the protocol has them, written down a second time: nothing is kept, everything is counted anew.
    fn compare(
        &mut self,
        shared: &Shared,
        few: u64,
        meanwhile: &mut impl FnMut(&Shared),
        seen: &mut Vec<String>,
        gone_at_cut: &mut Vec<String>,
    ) -> KindSet {
        let mut compare = Compare::with_few(KindSet::all(), few);
        let before = self.clone();
        let roots = KindSet::all().iter().flat_map(|kind| {
            let leaves: BTreeSet<u16> = before.held.keys().map(|path| digest::leaf(path)).collect();
            let sums = leaves.into_iter().map(|n| (n, before.sum(kind.name(), |leaf| leaf == n)));
            digest::root(sums.filter(|(_, sum)| *sum != 0).collect::<Vec<_>>().into_iter())
        });
        let mut answers =
            VecDeque::from([sync::DigestAnswer { sums: roots.collect(), ..Default::default() }]);
        while let Some(answer) = answers.pop_front() {
            meanwhile(shared);
            self.hear(shared);
            let messages = compare.on_answer(answer, &shared.read()).unwrap();
            for message in messages {
                match message_of(&message).message.unwrap() {
                    server_message::Message::Batch(batch) => {
                        for entry in batch.entries {
                            seen.push(entry.key.clone());
                            self.take(entry);
                        }
                    }
                    server_message::Message::Gone(gone) => {
                        let gone =
                            |path: &String, value: &Vec<u8>| gone.hashes.contains(&digest::hash(path, value));
                        let keys: Vec<String> = (self.held.iter())
                            .filter(|(path, value)| gone(path, value))
                            .map(|(path, _)| path.clone())
                            .collect();
                        gone_at_cut.extend(keys);
                    }
                    server_message::Message::Digest(request) => {
                        let (kind, asked) = (request.kind, request.buckets);
                        let sum = |n: u16, of: u16| before.sum(&kind, |leaf| leaf / of == n);
                        let (mut sums, mut hashes) = (Vec::new(), Vec::new());
                        match request.depth {
                            1 => sums.extend((0..64).map(|branch| sum(branch, 64))),
                            2 => sums.extend(
                                asked.iter().flat_map(|n| n * 64..n * 64 + 64).map(|n| sum(n as u16, 1)),
                            ),
                            _ => {
                                hashes = before.hashes(&kind, |leaf| {
                                    asked.is_empty() || asked.contains(&u32::from(leaf))
                                })
                            }
                        }
                        let depth = request.depth;
                        answers.push_back(sync::DigestAnswer { kind, depth, sums, hashes, last: true });
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(compare.done());
        compare.whole
    }

    /// One whole stream, while the cache goes on. Returns whether it was served.
    fn follow(
        &mut self,
        shared: &Shared,
        now: Instant,
        most_pages: usize,
        few: u64,
        mut meanwhile: impl FnMut(&Shared),
    ) -> bool {
        let kinds = KindSet::all();
        let positions = Some(self.positions.iter().copied().collect());
        let offered = self.token.clone().map(|token| sync::Token { positions, ..token });
        let verdict = shared.read().resume(offered.as_ref(), kinds, now);
        self.hear(shared);
        let (mut seen, mut gone_at_cut) = (Vec::new(), Vec::new());
        let trimmed = shared.read().trimmed_seq();
        let head = shared.read().head();
        let nothing = KindSet::default();
        let (mut cursor, sweep, whole, mut settled) = match verdict {
            Resume::Behind => return false,
            Resume::Delta { after } => (after, None, nothing, after.max(trimmed)),
            Resume::Snapshot { sweep } => {
                let base = shared.base();
                (base, Some(sweep), kinds, base)
            }
            Resume::Digest => {
                let whole = self.compare(shared, few, &mut meanwhile, &mut seen, &mut gone_at_cut);
                (head, Some(true), whole, head)
            }
        };
        for kind in whole.iter() {
            let mut leaf = Some(0);
            while let Some(place) = leaf.map(|leaf| Place { kind, leaf }) {
                if (most_pages == 0 && kind > Kind::Policy) || shared.read().trimmed_seq() > settled {
                    return false;
                }
                let (messages, next) = shared.segment(place, cursor, true);
                for entry in messages.iter().flat_map(entries_of) {
                    seen.push(entry.key.clone());
                    self.take(entry);
                }
                leaf = next;
                meanwhile(shared);
                self.hear(shared);
            }
        }
        for page in 0..most_pages {
            if page > 0 {
                meanwhile(shared);
                self.hear(shared);
            }
            let cache = shared.read();
            if cache.trimmed_seq() > settled {
                return false;
            }
            let page = cache.entries_after(cursor, kinds, 0);
            for entry in page.message.iter().flat_map(entries) {
                seen.push(entry.key.clone());
                self.take(entry);
            }
            cursor = page.seq;
            if sweep.is_none() {
                settled = settled.max(cursor);
            }
            if !page.complete() {
                continue;
            }
            if sweep == Some(true) {
                let swept = |key: &&String| whole.contains(Kind::of(&Key::parse(key).unwrap()).unwrap());
                let swept = self.held.keys().filter(swept).cloned();
                gone_at_cut.extend(swept.collect::<Vec<_>>());
                for key in gone_at_cut.drain(..).filter(|key| !seen.contains(key)) {
                    if self.held.remove(&key).is_some() {
                        self.removed.push(key);
                    }
                }
            }
            if sweep != Some(false) {
                self.adopt(&cache, offered.as_ref());
            }
            return true;
        }
        false
    }
}

impl Client {
    /// The cut: whole, or what it changes in the token that was offered. Both have to come to the same.
    fn adopt(&mut self, cache: &Cache, offered: Option<&sync::Token>) {
        let whole = cache.token(KindSet::all());
        let (cut, whole_positions) = (
            offered.map(|offered| cache.stand().cut_after(offered, cache.view(KindSet::all()))),
            whole.positions(),
        );
        match (self.token.as_mut(), cut) {
            (Some(token), Some(cut)) if cut.token.is_none() => {
                token.seq = cut.seq;
                if !cut.epoch.is_empty() {
                    token.epoch = cut.epoch;
                }
                for position in cut.positions.unwrap().list() {
                    let held = self.positions.iter_mut().find(|held| held.source == position.source);
                    *held.unwrap() = position;
                }
                assert_eq!(*token, sync::Token { positions: None, ..whole });
                assert_eq!(self.positions, whole_positions);
            }
            _ => {
                self.positions = whole_positions;
                self.token = Some(sync::Token { positions: None, ..whole });
            }
        }
    }
}

/// One thing that happens to the world.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction in the datastore; in a source, the keys of its parity.
    Write(Transaction),
    /// Revisions of a source that are somebody else's.
    Foreign(usize, usize),
    /// A replica takes in so many revisions of a source.
    Advance(usize, usize, usize),
    /// A replica is told how far a source is.
    Bookmark(usize, usize),
    /// A replica lists a source again instead of watching.
    Relist(usize, usize),
    /// A replica restarts, listing at so many revisions in the past.
    Restart(usize, u64),
    /// A replica's tombstones grow old.
    Age(usize),
    /// A client follows a replica, for so many pages, with or without a fresh read of the datastore, while the
    /// replica takes in so many revisions between any two messages, and its tombstones may grow old.
    Follow { client: usize, replica: usize, pages: usize, read: bool, meanwhile: usize, ages: bool, few: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..KEYS, prop::option::of(0u8..2));
    let two = || 0usize..2;
    prop_oneof![
        6 => prop::collection::vec(change, 1..3).prop_map(Step::Write),
        1 => (two(), 1usize..4).prop_map(|(source, n)| Step::Foreign(source, n)),
        5 => (two(), two(), 1usize..4).prop_map(|(replica, source, n)| Step::Advance(replica, source, n)),
        1 => (two(), two()).prop_map(|(replica, source)| Step::Bookmark(replica, source)),
        3 => (two(), two()).prop_map(|(replica, source)| Step::Relist(replica, source)),
        1 => (two(), 0u64..6).prop_map(|(replica, back)| Step::Restart(replica, back)),
        1 => two().prop_map(Step::Age),
        6 => (two(), two(), 0usize..4, any::<bool>(), 0usize..3, prop::bool::weighted(0.1), prop::bool::ANY).prop_map(
            |(client, replica, pages, read, meanwhile, ages, few)| {
                Step::Follow { client, replica, pages, read, meanwhile, ages, few: if few { 512 } else { 0 } }
            }
        ),
    ]
}

/// Keys and their new values; none: deleted.
type Transaction = Vec<(u8, Option<u8>)>;

/// The datastore: every transaction of each source since revision 1.
#[derive(Default)]
struct World {
    logs: [Vec<Transaction>; 2],
}

impl World {
    fn write(&mut self, changes: &Transaction) {
        for (source, log) in self.logs.iter_mut().enumerate() {
            let own: Vec<_> =
                changes.iter().copied().filter(|(key, _)| usize::from(key % 2) == source).collect();
            if !own.is_empty() {
                log.push(own);
            }
        }
    }

    fn newest(&self, source: usize) -> u64 {
        self.logs[source].len() as u64 + 1
    }

    fn state(&self, source: usize, revision: u64) -> BTreeMap<u8, u8> {
        let mut state = BTreeMap::new();
        for (key, value) in self.logs[source][..revision as usize - 1].iter().flatten() {
            match value {
                Some(value) => state.insert(*key, *value),
                None => state.remove(key),
            };
        }
        state
    }

    /// Whether the key was absent at any time since the token.
    fn was_absent(&self, path: &str, token: &sync::Token) -> bool {
        let n = (0..KEYS).find(|n| key(*n).path().unwrap() == path).unwrap();
        let source = usize::from(n % 2);
        (token.positions()[source].low..=self.newest(source))
            .any(|revision| !self.state(source, revision).contains_key(&n))
    }

    fn list(&self, cache: &mut Cache, source: usize, revision: u64, now: Instant) {
        let state = self.state(source, revision);
        let keys = (0..KEYS).filter(|key| usize::from(key % 2) == source);
        let updates = keys.map(|key| state.get(&key).map_or_else(|| unset(key), |value| set(key, *value)));
        cache.listing(source, "h", revision);
        cache.apply_listing(source, revision, updates.collect::<Vec<_>>(), now);
    }

    /// Takes in the next events, so many; what lies between them is skipped as a watch skips it.
    fn advance(&self, cache: &mut Cache, source: usize, events: usize, now: Instant) {
        let from = cache.revision(source);
        let later = self.logs[source].iter().enumerate().skip(from as usize - 1);
        for (index, changes) in later.filter(|(_, changes)| !changes.is_empty()).take(events) {
            let revision = index as u64 + 2;
            let updates: Vec<_> =
                changes.iter().map(|(k, v)| v.map_or_else(|| unset(*k), |v| set(*k, v))).collect();
            cache.apply_revision(source, revision, updates, revision as u32 * 7, now);
        }
    }

    /// A bookmark comes behind all events before it.
    fn bookmark(&self, cache: &mut Cache, source: usize, now: Instant) {
        self.advance(cache, source, usize::MAX, now);
        cache.progressed(source, self.newest(source), now);
    }
}

fn converges(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut now = Instant::now();
    let mut world = World::default();
    let mut epochs = 0;
    let mut replica = |world: &World, back: u64, now: Instant| {
        epochs += 1;
        let mut cache = Cache::new(format!("e{epochs}"), "");
        cache.follow(["even", "odd"]);
        for source in 0..2 {
            world.list(&mut cache, source, world.newest(source).saturating_sub(back).max(1), now);
            world.advance(&mut cache, source, back as usize, now);
        }
        Shared::new(cache)
    };
    let mut caches = [replica(&world, 0, now), replica(&world, 0, now)];
    let mut clients = [Client::default(), Client::default()];
    for step in steps {
        now += Duration::from_millis(1);
        match step {
            Step::Write(changes) => world.write(&changes),
            Step::Foreign(source, n) => world.logs[source].extend(vec![Vec::new(); n]),
            Step::Advance(n, source, revisions) => {
                caches[n].update(|cache| world.advance(cache, source, revisions, now));
            }
            Step::Bookmark(n, source) => {
                caches[n].update(|cache| world.bookmark(cache, source, now));
            }
            Step::Relist(n, source) => {
                caches[n].update(|cache| world.list(cache, source, world.newest(source), now));
            }
            Step::Restart(n, back) => caches[n] = replica(&world, back, now),
            Step::Age(n) => {
                now += Duration::from_secs(31 * 60);
                caches[n].update(|cache| cache.trim(now));
            }
            Step::Follow { client, replica, pages, read, meanwhile, ages, few } => {
                let (client, cache) = (&mut clients[client], &caches[replica]);
                for source in (0..2).filter(|_| read) {
                    cache.update(|cache| cache.proof(source, world.newest(source), now));
                }
                client.removed.clear();
                let positions = Some(client.positions.iter().copied().collect());
                let before = client.token.clone().map(|token| sync::Token { positions, ..token });
                let mut later = now;
                let go_on = |shared: &Shared| {
                    shared.update(|cache| {
                        for source in (0..2).filter(|_| meanwhile > 0) {
                            world.advance(cache, source, meanwhile, later);
                        }
                        if ages {
                            later += Duration::from_secs(31 * 60);
                            cache.trim(later);
                        }
                    })
                };
                if client.follow(cache, now, pages, few, go_on) {
                    prop_assert_eq!(&client.held, &live(&cache.read()));
                }
                for key in &client.removed {
                    // Who held nothing has received it in this stream, at a position of this replica's.
                    let absent = match &before {
                        Some(since) => world.was_absent(key, since),
                        None => !live(&cache.read()).contains_key(key),
                    };
                    prop_assert!(absent, "false deletion of {}", key);
                }
            }
        }
    }
    for (client, cache) in clients.iter_mut().zip(&caches) {
        for source in 0..2 {
            cache.update(|cache| world.bookmark(cache, source, now));
        }
        let served = client.follow(cache, now, 9, 512, |_| {});
        prop_assert!(served);
        prop_assert_eq!(&client.held, &live(&cache.read()));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_048))]

    #[test]
    fn client_that_joins_lags_and_hops_converges(steps in prop::collection::vec(step(), 1..60)) {
        converges(steps)?;
    }
}

/// Cases that were found.
#[test]
fn client_converges_where_a_listing_jumped_over_what_came_and_went() {
    use Step::{Advance, Foreign, Relist, Restart, Write};
    let put = |key| Write(vec![(key, Some(0))]);
    let remove = |key| Write(vec![(key, None)]);
    let follow = |replica, pages| Step::Follow {
        client: 0,
        replica,
        pages,
        read: true,
        meanwhile: 0,
        ages: false,
        few: 0,
    };
    // At a replica that is still where the key exists, and back before there was a cut.
    let behind = [put(1), Restart(0, 0), remove(1), Relist(1, 1), follow(1, 1), follow(0, 0), follow(1, 1)];
    converges(behind.into()).unwrap();
    // The key has its old value, and its old cause, though it was gone for a while: the other replica knows.
    let anew = [
        put(0),
        Advance(0, 0, 1),
        remove(0),
        Advance(1, 0, 2),
        put(0),
        Relist(0, 0),
        follow(1, 1),
        follow(0, 0),
    ];
    converges(anew.into_iter().chain([follow(1, 1)]).collect()).unwrap();
    // The same, at a replica that is still where the key is gone.
    let gone = [
        put(1),
        Advance(1, 1, 1),
        remove(1),
        Restart(0, 0),
        put(1),
        Relist(1, 1),
        follow(1, 1),
        follow(0, 1),
    ];
    converges(gone.into()).unwrap();
    // The replica of the last cut has heard of nothing since, and says so while it compares.
    let heard = [
        follow(1, 1),
        Foreign(1, 2),
        put(1),
        Restart(0, 0),
        follow(0, 0),
        remove(1),
        Relist(1, 1),
        follow(1, 0),
        follow(1, 1),
    ];
    converges(heard.into()).unwrap();
}
