//! What every datastore promises, checked on each kind: a real etcd, and a folder of manifests. What only
//! etcd can do is in `backend/etcd*.rs`, what only a folder can do in `backend/directory.rs`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

#[path = "backend/directory.rs"]
mod directory;
#[path = "backend/etcd.rs"]
mod etcd;
#[path = "backend/etcd_auth.rs"]
mod etcd_auth;
#[path = "backend/etcd_cluster.rs"]
mod etcd_cluster;
#[path = "backend/fake_apiserver.rs"]
mod fake_apiserver;
#[path = "backend/kubernetes.rs"]
mod kubernetes;
#[path = "backend/kubernetes_faults.rs"]
mod kubernetes_faults;

use bytes::Bytes;
use support::{OneSource, State, key, net, next, subjects, value};
use syncer_common::backend::{Error, WatchItem};

#[tokio::test(flavor = "multi_thread")]
async fn create_replace_delete_follow_compare_and_swap() {
    for subject in subjects().await {
        let (store, other, name) = (&subject.store, &subject.second, subject.name);
        let created = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
        let again = other.create(&key("a"), value("a", "10.9.0.0/24")).await;
        assert!(matches!(again, Err(Error::Conflict { .. })), "{name}: {again:?}");

        let found = other.get(&key("a")).await.unwrap().unwrap();
        assert_eq!(
            (found.create_revision, found.mod_revision),
            (subject.created(created), created),
            "{name}"
        );
        assert_eq!(net(&found), "10.0.0.0/24", "{name}");

        let replaced = other.replace(&key("a"), value("a", "10.1.0.0/24"), created).await.unwrap();
        assert!(replaced > created, "{name}");
        let stale = store.replace(&key("a"), value("a", "10.2.0.0/24"), created).await;
        assert!(matches!(stale, Err(Error::Conflict { .. })), "{name}: {stale:?}");
        let found = store.get(&key("a")).await.unwrap().unwrap();
        assert_eq!(
            (found.create_revision, found.mod_revision),
            (subject.created(created), replaced),
            "{name}"
        );
        assert_eq!(net(&found), "10.1.0.0/24", "{name}");

        let stale = store.delete(&key("a"), Some(created)).await;
        assert!(matches!(stale, Err(Error::Conflict { .. })), "{name}: {stale:?}");
        let deleted = store.delete(&key("a"), Some(replaced)).await.unwrap();
        assert!(deleted > replaced, "{name}");
        assert_eq!(other.get(&key("a")).await.unwrap(), None, "{name}");
        for gone in [
            store.delete(&key("a"), None).await,
            store.delete(&key("a"), Some(replaced)).await,
            store.replace(&key("a"), value("a", "10.2.0.0/24"), replaced).await,
        ] {
            assert!(matches!(gone, Err(Error::NotFound { .. })), "{name}: {gone:?}");
        }
        let again = store.create(&key("a"), value("a", "10.3.0.0/24")).await.unwrap();
        let found = store.get(&key("a")).await.unwrap().unwrap();
        assert_eq!(found.create_revision, subject.created(again), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_write_leaves_no_trace() {
    for subject in subjects().await {
        let created = subject.store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
        let before = State::from(subject.store.list(None).await.unwrap());
        subject.store.create(&key("a"), value("a", "10.1.0.0/24")).await.unwrap_err();
        subject.store.replace(&key("a"), value("a", "10.1.0.0/24"), created + 7).await.unwrap_err();
        subject.store.delete(&key("missing"), None).await.unwrap_err();
        let after = State::from(subject.second.list(None).await.unwrap());
        subject.assert_same(&after, &before, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_and_watch_agree_at_every_revision() {
    for subject in subjects().await {
        let (store, name) = (&subject.store, subject.name);
        let start = store.create(&key("start"), value("start", "10.0.0.0/24")).await.unwrap();
        let mut followed = State::from(store.list(None).await.unwrap());
        let mut watch = subject.second.watch(start).await.unwrap();
        let mut revisions = vec![start];
        for round in 0..12u32 {
            let object = format!("o{}", round % 4);
            let content = value(&object, &format!("10.{round}.0.0/24"));
            let revision = match store.get(&key(&object)).await.unwrap() {
                None => store.create(&key(&object), content).await,
                Some(item) if round % 3 == 0 => store.delete(&key(&object), Some(item.mod_revision)).await,
                Some(item) => store.replace(&key(&object), content, item.mod_revision).await,
            };
            revisions.push(revision.unwrap());
        }
        for revision in revisions {
            followed.follow(&mut watch, revision).await;
            if followed.revision == revision {
                let listed = State::from(subject.second.list(Some(revision)).await.unwrap());
                assert_eq!(listed, followed, "{name} at {revision}");
                let fresh = State::from(subject.fresh().await.list(Some(revision)).await.unwrap());
                assert_eq!(fresh, followed, "{name}, a new process, at {revision}");
            }
        }
        let listed = State::from(store.list(None).await.unwrap());
        subject.assert_same(&listed, &followed, " at the end");
        let head = store.head().await.unwrap().revision;
        assert!(head == followed.revision || subject.is_shared && head > followed.revision, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_from_the_past_replays_it() {
    for subject in subjects().await {
        let store = &subject.store;
        let first = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
        let mut past = State::from(store.list(Some(first)).await.unwrap());
        let second = store.replace(&key("a"), value("a", "10.1.0.0/24"), first).await.unwrap();
        let third = store.create(&key("b"), value("b", "10.2.0.0/24")).await.unwrap();
        let last = store.delete(&key("a"), Some(second)).await.unwrap();
        assert!(third < last);
        let mut watch = subject.second.watch(first).await.unwrap();
        past.follow(&mut watch, last).await;
        subject.assert_same(&State::from(store.list(None).await.unwrap()), &past, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_deletion_reaches_the_watch() {
    for subject in subjects().await {
        let store = &subject.store;
        let created = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
        let mut watch = store.watch(created).await.unwrap();
        let deleted = subject.second.delete(&key("a"), None).await.unwrap();
        let (revision, events) = loop {
            match next(&mut watch).await.unwrap() {
                WatchItem::Events { revision, events } => break (revision, events),
                // Others write, and Kubernetes says now and then how far it is.
                WatchItem::Progress { .. } => assert!(subject.is_shared, "{}: no events", subject.name),
            }
        };
        assert_eq!(revision, deleted);
        let expected = syncer_common::backend::Event::Delete { key: key("a"), mod_revision: deleted };
        assert_eq!(events, [expected], "{}", subject.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_selects_whole_subtrees() {
    for subject in subjects().await {
        for name in ["a", "ab", "b"] {
            subject.store.create(&key(name), value(name, "10.0.0.0/24")).await.unwrap();
        }
        let names = async |prefix: String| -> Vec<String> {
            let items = subject.second.get_prefix(&prefix).await.unwrap();
            items.into_iter().map(|item| item.key).collect()
        };
        assert_eq!(names(key("a")).await, [key("a"), key("ab")], "{}", subject.name);
        assert_eq!(names(key("")).await.len(), 3, "{}", subject.name);
        assert!(names("/calico/resources/v3/projectcalico.org/ippools/".into()).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_one_for_all_clients_and_for_ever() {
    for subject in subjects().await {
        let history = subject.store.history().await.unwrap();
        assert!(!history.is_empty());
        subject.store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
        assert_eq!(subject.second.history().await.unwrap(), history, "{}", subject.name);
        assert_eq!(subject.fresh().await.history().await.unwrap(), history, "{}", subject.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_never_goes_back_and_covers_finished_writes() {
    for subject in subjects().await {
        let mut last = 0;
        for round in 0..5 {
            let name = format!("o{round}");
            let written = subject.store.create(&key(&name), value(&name, "10.0.0.0/24")).await.unwrap();
            let head = subject.second.head().await.unwrap();
            assert!(head.revision >= written && head.revision >= last, "{}", subject.name);
            last = head.revision;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_lose_no_update() {
    for subject in subjects().await {
        subject.store.create(&key("counter"), value("counter", "10.0.0.0/32")).await.unwrap();
        let add = async |client: &std::sync::Arc<dyn syncer_common::backend::Datastore>| {
            let mut done = 0;
            while done < 10 {
                let item = client.get(&key("counter")).await.unwrap().unwrap();
                let count: u32 = net(&item).split(['.', '/']).nth(3).unwrap().parse().unwrap();
                let content = value("counter", &format!("10.0.0.{}/32", count + 1));
                match client.replace(&key("counter"), content, item.mod_revision).await {
                    Ok(_) => done += 1,
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::join!(add(&subject.store), add(&subject.second));
        let item = subject.fresh().await.get(&key("counter")).await.unwrap().unwrap();
        assert_eq!(net(&item), "10.0.0.20/32", "{}", subject.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_no_resources_are_kept_too() {
    let status = "/calico/felix/v2/no-region/host/n1/workload/k8s/ns%2fpod/endpoint/eth0";
    for subject in subjects().await {
        if subject.name == "kubernetes" {
            // Only objects of its kinds; it says so.
            let refused = subject.store.create(status, Bytes::from_static(b"{}")).await;
            assert!(matches!(&refused, Err(Error::Invalid { what, .. }) if what == status), "{refused:?}");
            continue;
        }
        let created = subject.store.create(status, Bytes::from_static(b"{\"status\":\"up\"}")).await.unwrap();
        let found = subject.fresh().await.get(status).await.unwrap().unwrap();
        assert_eq!(found.value, Bytes::from_static(b"{\"status\":\"up\"}"), "{}", subject.name);
        subject.second.delete(status, Some(created)).await.unwrap();
        assert_eq!(subject.store.get(status).await.unwrap(), None, "{}", subject.name);
    }
}
