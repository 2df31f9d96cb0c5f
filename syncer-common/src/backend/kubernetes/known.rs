//! What was last said of each object, as hashes: so that an update that changes nothing of ours says nothing,
//! and the deletion of an object that was none of ours neither.
//!
//! 16 bytes and a bit per object. The hash of a path is keyed at random; that two of a million objects share
//! one has a chance of one in thirty million.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::object::{Content, Object};
use crate::backend::{Event, Revision};

/// Stands for an object that exists but could not be used: whatever usable comes next is news.
const UNUSABLE: u64 = 0;

pub(super) struct Known {
    /// Everything up to here is in it.
    pub(super) revision: Revision,
    /// It began with a listing: what is not in it does not exist.
    complete: bool,
    hasher: RandomState,
    objects: HashMap<u64, u64>,
}

impl Known {
    /// Begins with a listing; its objects and its revision are yet to come.
    pub(super) fn listing() -> Self {
        Known { complete: true, ..Known::nothing(0) }
    }

    /// Begins in the middle.
    pub(super) fn nothing(revision: Revision) -> Self {
        Known { revision, complete: false, hasher: RandomState::new(), objects: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Notes what an object is now; true if that is news.
    fn note(&mut self, key: &str, content: &Content) -> bool {
        let path = self.hasher.hash_one(key);
        let hash = match content {
            Content::Nothing => return self.objects.remove(&path).is_some() || !self.complete,
            Content::Unusable(_) => UNUSABLE,
            Content::Value(value, findings) => {
                let findings: Vec<_> = findings.iter().map(|found| (&found.field, &found.reason)).collect();
                self.hasher.hash_one((value, findings)).max(UNUSABLE + 1)
            }
        };
        // What can not be used is said each time: it may be something else that is wrong.
        self.objects.insert(path, hash) != Some(hash) || hash == UNUSABLE
    }

    /// An object of the listing.
    pub(super) fn list(&mut self, object: &Object) {
        self.note(&object.key, &object.content);
    }

    /// The events that an update makes: none if it changes nothing.
    pub(super) fn update(&mut self, object: Object) -> Vec<Event> {
        self.revision = object.revision;
        if self.note(&object.key, &object.content) { object.into_events() } else { Vec::new() }
    }

    /// The event that a deletion makes, if there was anything.
    pub(super) fn delete(&mut self, key: String, revision: Revision) -> Vec<Event> {
        self.update(Object { key, revision, content: Content::Nothing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Finding;

    fn object(key: &str, revision: Revision, value: &'static str) -> Object {
        let content = Content::Value(value.as_bytes().into(), Vec::new());
        Object { key: key.into(), revision, content }
    }

    fn unusable(key: &str, revision: Revision) -> Object {
        let (field, reason) = ("spec".into(), "bad".into());
        let finding = Finding { key: key.into(), mod_revision: revision, field, reason };
        Object { key: key.into(), revision, content: Content::Unusable(finding) }
    }

    #[test]
    fn equal_value_is_no_news_and_another_is() {
        let mut known = Known::listing();
        assert_eq!(known.update(object("/a", 2, "x")).len(), 1);
        assert!(known.update(object("/a", 3, "x")).is_empty());
        assert_eq!(known.update(object("/a", 4, "y")).len(), 1);
        assert_eq!(known.revision, 4);
    }

    #[test]
    fn good_value_after_a_bad_one_is_news_even_if_it_is_the_old_one() {
        let mut known = Known::listing();
        known.update(object("/a", 2, "x"));
        assert!(matches!(known.update(unusable("/a", 3))[..], [Event::Finding(_)]));
        assert!(matches!(known.update(object("/a", 4, "x"))[..], [Event::Put(_)]));
    }

    #[test]
    fn deletion_of_what_never_was_ours_says_nothing() {
        let mut known = Known::listing();
        assert!(known.delete("/a".into(), 2).is_empty());
        known.update(object("/a", 3, "x"));
        assert!(matches!(known.delete("/a".into(), 4)[..], [Event::Delete { mod_revision: 4, .. }]));
        assert!(known.is_empty());
    }

    #[test]
    fn without_a_listing_every_deletion_is_told() {
        let mut known = Known::nothing(1);
        assert_eq!(known.delete("/a".into(), 2).len(), 1);
    }
}
