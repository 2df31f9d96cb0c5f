//! One watched kind: a source.
//!
//! Positions are revisions of the API server. We list and watch with plain requests because what kube's own
//! watcher hides is what a position needs: the revision of a list, and bookmarks.
//!
//! **Lists** are consistent (no `resourceVersion`), paged, and begin again when the server has forgotten the
//! revision of the first page. **A kind that the server does not know** (no CRD) is in sync and empty, at the
//! last revision known of it or, if none is, at 1: revisions of other kinds are no measure for it, since
//! they may be kept in another etcd, and 1 is before any that a later installation can give. Its watch looks
//! every ten seconds and ends with `Compacted` when the kind appears, so that it is listed. When a kind
//! vanishes that had objects, that proves nothing [B6]: the watch waits in the same way, and a list is an
//! error, not empty.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use serde_json::value::RawValue;

use super::api::{Api, Call};
use super::failure::{Failure, Reply, full_name};
use super::known::Known;
use super::object::{self, Page};
use super::{Counters, collection, is_calico, watch};
use crate::backend::{Error, Head, Listing, Result, Revision, Source, Watch};
use crate::kubernetes::{ApiGroup, ApiResource, Options};

const PAGE: usize = 500;
/// A list that was overtaken by compaction is begun again so often, each time with larger pages.
const RESTARTS: u32 = 3;

/// The source of a kind.
pub(super) struct KindSource(pub(super) Arc<Kind>);

pub(super) struct Kind {
    pub(super) api: Arc<Api>,
    pub(super) counters: Arc<Counters>,
    pub(super) name: String,
    /// In the old group and in the new one; Kubernetes' own kinds are the same in both.
    resources: [ApiResource; 2],
    /// What the last watch knew, or the last list.
    known: Mutex<Option<Known>>,
    /// The newest revision that was listed or watched.
    revision: AtomicU64,
}

/// A kind as it is served now.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) resource: ApiResource,
    pub(super) options: Options,
}

impl Kind {
    pub(super) fn new(
        api: Arc<Api>,
        counters: Arc<Counters>,
        name: String,
        resources: [ApiResource; 2],
    ) -> Self {
        Kind { api, counters, name, resources, known: Mutex::default(), revision: AtomicU64::new(0) }
    }

    pub(super) async fn served(&self) -> Reply<Served> {
        let [old, new] = &self.resources;
        let group = if is_calico(old) { self.api.group().await? } else { ApiGroup::V1 };
        let resource = if group == ApiGroup::V3 { new } else { old };
        Ok(Served { resource: resource.clone(), options: self.api.options(group) })
    }

    /// The newest revision, from a consistent list of one object. `None`: the server does not know the kind.
    pub(super) async fn newest(&self) -> Reply<Option<Revision>> {
        let Served { resource, options } = self.served().await?;
        let path = format!("{}?limit=1", collection(&resource, ""));
        match self.api.fetch(&Call::get(path, self.api.timing.request)).await {
            Ok(body) => {
                self.api.settle(options.group).await;
                revision(&resource, &parse(&body)?).map(Some)
            }
            Err(failure) if failure.missing() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// What is known at `after`, for a watch from there; it gives it back when it ends.
    pub(super) fn lend(&self, after: Revision) -> Known {
        self.known().take_if(|known| known.revision == after).unwrap_or_else(|| Known::nothing(after))
    }

    pub(super) fn give_back(&self, known: Known) {
        let mut slot = self.known();
        if slot.as_ref().is_none_or(|held| held.revision < known.revision) {
            *slot = Some(known);
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reached(&self, revision: Revision) {
        self.revision.store(revision, Ordering::Relaxed);
    }

    /// Where a kind that the server does not know stands.
    fn standing(&self) -> Revision {
        self.revision.load(Ordering::Relaxed).max(1)
    }

    pub(super) fn error(&self, verb: &str, failure: Failure, at: Revision) -> Error {
        failure.into_error(verb, &self.resources[0], at)
    }

    /// Lists the kind, and notes what is known from now on.
    async fn list(&self, served: &Served, at: Option<Revision>) -> Reply<Listing> {
        let mut restarts = 0;
        loop {
            let (mut listing, mut known) = (Listing::default(), Known::listing());
            let each = |raw: &RawValue, revision| {
                let object = object::convert(&served.resource, &served.options, raw, revision);
                known.list(&object);
                object.list_into(&mut listing);
            };
            let limit = PAGE << (2 * restarts);
            match read_all(&self.api, &served.resource, at, limit, each).await {
                Ok(revision) => {
                    listing.revision = revision;
                    known.revision = revision;
                    // The order of their paths is not that of their names.
                    listing.items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                    listing.items.dedup_by(|a, b| a.key == b.key);
                    self.counters.findings.fetch_add(listing.findings.len() as u64, Ordering::Relaxed);
                    *self.known() = Some(known);
                    self.reached(revision);
                    return Ok(listing);
                }
                Err(failure)
                    if at.is_none()
                        && restarts < RESTARTS
                        && failure.refusal().is_some_and(|refusal| refusal.expired()) =>
                {
                    tracing::info!(source = self.name, "the list outlived its revision; listing again");
                    restarts += 1;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The listing of a kind that the server does not know.
    fn absent(&self, resource: &ApiResource) -> Result<Listing> {
        if let Some(known) = self.known().as_ref().filter(|known| !known.is_empty()) {
            return Err(Error::Unavailable {
                what: format!("kubernetes list of {}", full_name(resource)),
                reason: format!(
                    "the API server no longer knows the kind, of which it had {} objects; that is no proof \
                     that they are gone, so they stay: install the CRD again, or restart to forget them",
                    known.len()
                ),
            });
        }
        let revision = self.standing();
        tracing::info!(source = self.name, "the API server does not know the kind (no CRD): taken as empty");
        let mut known = Known::listing();
        known.revision = revision;
        *self.known() = Some(known);
        Ok(Listing { revision, ..Listing::default() })
    }
}

/// Reads a list page by page, all at one revision, which it returns. After an error what was read counts for
/// nothing.
pub(super) async fn read_all(
    api: &Api,
    resource: &ApiResource,
    at: Option<Revision>,
    limit: usize,
    mut each: impl FnMut(&RawValue, Revision),
) -> Reply<Revision> {
    let base = format!("{}?limit={limit}", collection(resource, ""));
    let mut path = match at {
        None => base.clone(),
        Some(at) => format!("{base}&resourceVersion={at}&resourceVersionMatch=Exact"),
    };
    let mut listed = None;
    loop {
        let body = api.fetch(&Call::get(path, api.timing.page)).await?;
        let page = parse(&body)?;
        let found = revision(resource, &page)?;
        let listed = *listed.get_or_insert(found);
        if found != listed {
            return Err(Failure::NoAnswer(format!("pages at revisions {listed} and {found} are no list")));
        }
        for item in page.items.iter().flatten() {
            each(item, listed);
        }
        match page.metadata.next.as_deref() {
            None | Some("") => return Ok(listed),
            Some(next) => path = format!("{base}&continue={}", escaped(next)),
        }
        // A page is work of milliseconds; others may want the thread.
        tokio::task::yield_now().await;
    }
}

pub(super) fn parse(body: &[u8]) -> Reply<Page<'_>> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::NoAnswer(format!("the list can not be read: {error}")))
}

pub(super) fn revision(resource: &ApiResource, page: &Page) -> Reply<Revision> {
    let text = page.metadata.resource_version.as_deref();
    match text {
        None | Some("" | "0") => {
            Err(Failure::NoAnswer("the list has no resourceVersion: it proves nothing".into()))
        }
        text => object::revision(text).ok_or_else(|| {
            Failure::Setup(Error::Invalid {
                what: format!("kubernetes list of {}", full_name(resource)),
                reason: format!(
                    "metadata.resourceVersion {:?} is not a number: this API server can not be followed",
                    text.unwrap_or_default()
                ),
            })
        }),
    }
}

/// A text as a value in a query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[async_trait]
impl Source for KindSource {
    fn name(&self) -> &str {
        &self.0.name
    }

    /// It can be asked for one, within the few minutes that the server keeps; a restarted replica gains
    /// nothing from so little.
    fn lists_the_past(&self) -> bool {
        false
    }

    async fn history(&self) -> Result<String> {
        self.0.api.history().await
    }

    async fn head(&self) -> Result<Head> {
        let started = Instant::now();
        let newest = self.0.newest().await.map_err(|failure| self.0.error("list", failure, 0))?;
        Ok(Head { revision: newest.unwrap_or_else(|| self.0.standing()), started })
    }

    async fn list(&self, at: Option<Revision>) -> Result<Listing> {
        let kind = &self.0;
        let served = kind.served().await.map_err(|failure| kind.error("list", failure, 0))?;
        match kind.list(&served, at).await {
            Ok(listing) => {
                kind.api.settle(served.options.group).await;
                Ok(listing)
            }
            Err(failure) if failure.missing() => kind.absent(&served.resource),
            Err(failure) => Err(failure.into_error("list", &served.resource, at.unwrap_or(0))),
        }
    }

    async fn watch(&self, after: Revision) -> Result<Watch> {
        watch::start(self.0.clone(), after).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_queries_are_escaped() {
        assert_eq!(escaped("eyJ2IjoibWV0YSJ9=="), "eyJ2IjoibWV0YSJ9%3D%3D");
        assert_eq!(escaped("a/b c&d"), "a%2Fb%20c%26d");
    }

    #[test]
    fn list_without_a_revision_is_no_list() {
        let pods = ApiResource { group: "", version: "v1", plural: "pods", kind: "Pod", namespaced: true };
        for (body, part) in [
            (r#"{"items":[]}"#, "proves nothing"),
            (r#"{"metadata":{"resourceVersion":""},"items":null}"#, "proves nothing"),
            (r#"{"metadata":{"resourceVersion":"0"},"items":[]}"#, "proves nothing"),
            (r#"{"metadata":{"resourceVersion":"a1"},"items":[]}"#, "not a number"),
        ] {
            let failure = revision(&pods, &parse(body.as_bytes()).unwrap()).unwrap_err();
            let error = failure.into_error("list", &pods, 0).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
