//! What is held, by path. One entry for every object of the cluster, on every node: paths are kept in two parts, of which
//! hardly any other entry has the one, and many share the other.

use std::collections::HashMap;
use std::sync::Arc;

use syncer_common::model::Kind;

/// Where the own part of a path stood.
const OWN: char = '\0';

#[derive(Debug)]
pub(crate) struct Delivered {
    pub hash: u64,
    pub kind: Kind,
    pub generation: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// Paths stay whole: their texts are shared with others, beyond this.
    whole: bool,
    /// By the common part of paths, by the own part. None of the inner ones is empty.
    entries: HashMap<Box<str>, HashMap<Arc<str>, Delivered>>,
    len: usize,
}

impl Keys {
    pub fn new(whole: bool) -> Keys {
        Keys { whole, ..Keys::default() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get_mut(&mut self, path: &str) -> Option<&mut Delivered> {
        let (common, own) = self.split(path);
        self.entries.get_mut(&*common)?.get_mut(own)
    }

    pub fn insert(&mut self, path: &Arc<str>, delivered: Delivered) {
        let (common, own) = self.split(path);
        let own = if own.len() == path.len() { path.clone() } else { own.into() };
        let of_common = match self.entries.get_mut(&*common) {
            Some(entries) => entries,
            None => self.entries.entry(common.into()).or_default(),
        };
        self.len += usize::from(of_common.insert(own, delivered).is_none());
    }

    /// Returns the path if it was there.
    pub fn remove(&mut self, path: &str) -> Option<Arc<str>> {
        let (common, own) = self.split(path);
        let entries = self.entries.get_mut(&*common)?;
        let (held, _) = entries.remove_entry(own)?;
        self.len -= 1;
        if entries.is_empty() {
            self.entries.remove(&*common);
        }
        Some(if held.len() == path.len() { held } else { path.into() })
    }

    /// Takes out what `is_gone`.
    pub fn extract(&mut self, is_gone: impl Fn(&Delivered) -> bool) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        self.entries.retain(|common, entries| {
            let of_common = entries.extract_if(|_, delivered| is_gone(delivered));
            gone.extend(of_common.map(|(own, _)| join(common, own)));
            !entries.is_empty()
        });
        self.len -= gone.len();
        gone
    }

    pub fn iter(&self) -> impl Iterator<Item = (Arc<str>, &Delivered)> {
        self.entries.iter().flat_map(|(common, entries)| {
            entries.iter().map(move |(own, delivered)| (join(common, own.clone()), delivered))
        })
    }

    /// Of a workload endpoint its workload is its own, of others what follows the last slash. Any part would do.
    fn split<'a>(&self, path: &'a str) -> (String, &'a str) {
        if self.whole || path.contains(OWN) {
            return (String::new(), path);
        }
        let workload = path.split_once("/workload/").and_then(|(_, rest)| {
            let (_, rest) = rest.split_once('/')?;
            rest.split_once('/').map(|(workload, _)| (path.len() - rest.len(), workload))
        });
        let (at, own) = workload.unwrap_or_else(|| {
            let at = path.rfind('/').map_or(0, |slash| slash + 1);
            (at, &path[at..])
        });
        if own.len() == path.len() {
            return (String::new(), path);
        }
        let mut common = String::with_capacity(path.len() - own.len() + 1);
        common.push_str(&path[..at]);
        common.push(OWN);
        common.push_str(&path[at + own.len()..]);
        (common, own)
    }
}

fn join(common: &str, own: Arc<str>) -> Arc<str> {
    match common.split_once(OWN) {
        Some((before, after)) => [before, &own, after].concat().into(),
        None => own,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn delivered(hash: u64) -> Delivered {
        Delivered { hash, kind: Kind::Policy, generation: 0 }
    }

    fn path() -> impl Strategy<Value = String> {
        let word = || prop::sample::select(vec!["", "a", "b", "workload", "endpoint", "\0"]);
        prop::collection::vec(word(), 0..8).prop_map(|words| words.join("/"))
    }

    proptest! {
        #[test]
        fn holds_what_a_plain_map_holds(
            whole: bool,
            steps in prop::collection::vec((path(), prop::option::of(0u64..4)), 0..200),
            gone in 0u64..4,
        ) {
            let (mut keys, mut plain) = (Keys::new(whole), BTreeMap::new());
            for (path, hash) in steps {
                let path: Arc<str> = path.into();
                match hash {
                    Some(hash) => {
                        keys.insert(&path, delivered(hash));
                        plain.insert(path.clone(), hash);
                    }
                    None => prop_assert_eq!(keys.remove(&path), plain.remove(&path).map(|_| path.clone())),
                }
                prop_assert_eq!(keys.get_mut(&path).map(|held| held.hash), plain.get(&path).copied());
                prop_assert_eq!(keys.len(), plain.len());
            }
            let all = |keys: &Keys| keys.iter().map(|(path, held)| (path, held.hash)).collect::<BTreeMap<_, _>>();
            prop_assert_eq!(&all(&keys), &plain);
            let mut extracted = keys.extract(|held| held.hash == gone);
            extracted.sort();
            let (expected, plain): (BTreeMap<_, _>, BTreeMap<_, _>) =
                plain.into_iter().partition(|(_, hash)| *hash == gone);
            prop_assert!(extracted.iter().eq(expected.keys()));
            prop_assert_eq!(keys.len(), plain.len());
            prop_assert_eq!(&all(&keys), &plain);
            let rest: Vec<_> = plain.into_keys().collect();
            for path in rest {
                prop_assert_eq!(keys.remove(&path), Some(path));
            }
            prop_assert!(keys.entries.is_empty(), "nothing is left behind");
        }
    }

    #[test]
    fn endpoints_of_a_node_share_all_but_the_workload() {
        let keys = Keys::default();
        let split = |path: &'static str| keys.split(path);
        let node = "/calico/v1/host/n1/workload/k8s/\0/endpoint/eth0".to_owned();
        assert_eq!(split("/calico/v1/host/n1/workload/k8s/a%2fb/endpoint/eth0"), (node, "a%2fb"));
        assert_eq!(split("/calico/v1/config/Name"), ("/calico/v1/config/\0".to_owned(), "Name"));
    }
}
