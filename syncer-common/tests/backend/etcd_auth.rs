//! Users, passwords, and tokens that end while they are in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::{Client, ConnectOptions, Permission};
use syncer_common::backend::config::{EtcdConfig, Secret, StoreConfig, open};
use syncer_common::backend::{Datastore, Error};
use syncer_common::testing::etcd::EtcdServer;
use syncer_common::testing::require;

use crate::etcd::{Followed, raw};
use crate::support::{DEADLINE, OneSource, State, eventually, key, next, value};

const PASSWORD: &str = "hunter2";

/// Makes a user `typha` that may do anything below `/calico/`, and switches authentication on. Yields a client
/// that may do everything.
async fn with_users(server: &EtcdServer) -> Client {
    let mut client = raw(server).await;
    client.user_add("root", "rootpw", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("calico").await.unwrap();
    let permission = Permission::read_write("/calico/").with_prefix();
    client.role_grant_permission("calico", permission).await.unwrap();
    client.user_add("typha", PASSWORD, None).await.unwrap();
    client.user_grant_role("typha", "calico").await.unwrap();
    client.auth_enable().await.unwrap();
    logged_in(server, "root", "rootpw", true).await
}

async fn logged_in(server: &EtcdServer, user: &str, password: &str, refresh: bool) -> Client {
    let options = ConnectOptions::new().with_user(user, password).with_auto_token_refresh(refresh);
    Client::connect([server.endpoint()], Some(options)).await.unwrap()
}

async fn store(server: &EtcdServer, password: &str) -> Arc<dyn Datastore> {
    let config = EtcdConfig {
        endpoints: vec![server.endpoint()],
        username: Some("typha".into()),
        password: Some(Secret::new(password)),
        ..EtcdConfig::default()
    };
    open(&StoreConfig::Etcd(config)).await.unwrap()
}

/// Waits until a token that is issued now is refused.
async fn a_token_expires(server: &EtcdServer, poll: Duration) {
    let mut client = logged_in(server, "typha", PASSWORD, false).await;
    let deadline = Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(poll);
    ticks.tick().await;
    while client.get("/calico/", None).await.is_ok() {
        assert!(Instant::now() < deadline, "the token does not expire");
        ticks.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_are_used() {
    let Some(server) = EtcdServer::start().await else { return };
    with_users(&server).await;
    let store_ = store(&server, PASSWORD).await;
    let revision = store_.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    assert_eq!(store_.list(None).await.unwrap().items.len(), 1);
    let mut watch = store_.watch(revision).await.unwrap();
    store_.delete(&key("a"), None).await.unwrap();
    assert!(next(&mut watch).await.is_ok());
    let refused = store_.create("/elsewhere", Bytes::from_static(b"{}")).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let anonymous = open(&server.config()).await.unwrap();
    for refused in [anonymous.head().await.map(|_| ()), anonymous.watch(1).await.map(|_| ())] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("check the etcd user"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_token_is_renewed_for_every_request() {
    let Some(server) = EtcdServer::start_with(&["--auth-token-ttl=1"]).await else { return };
    let mut root = with_users(&server).await;
    let store = store(&server, PASSWORD).await;
    let first = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut old = store.watch(first).await.unwrap();
    // Use prolongs a simple token: asked more often than it lives, it would never end.
    a_token_expires(&server, Duration::from_millis(2_100)).await;
    let mut new = store.watch(first).await.unwrap();

    // A new password ends all tokens of a user at once, also when it is the old one.
    let mut end_tokens = async || {
        root.user_change_password("typha", PASSWORD).await.unwrap();
    };
    end_tokens().await;
    let head = store.head().await.unwrap();
    assert_eq!(head.revision, first);
    end_tokens().await;
    assert_eq!(store.list(None).await.unwrap().items.len(), 1);
    end_tokens().await;
    assert!(store.get(&key("a")).await.unwrap().is_some());
    // The write trusts the connection, which has just answered.
    end_tokens().await;
    let last = store.create(&key("b"), value("b", "10.1.0.0/24")).await.unwrap();
    end_tokens().await;
    for watch in [&mut old, &mut new] {
        let mut state = State::from(store.list(Some(first)).await.unwrap());
        state.follow(watch, last).await;
        assert_eq!(state.items.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_tokens_that_expire_or_are_outdated_cause_no_outage() {
    let dir = tempfile::tempdir().unwrap();
    let Some(openssl) = require::program("openssl") else { return };
    let run = |arguments: &str| {
        let mut command = std::process::Command::new(&openssl);
        let output = command.current_dir(dir.path()).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("genrsa -out jwt.key 2048");
    run("rsa -in jwt.key -pubout -out jwt.pem");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (public, private) = (file("jwt.pem"), file("jwt.key"));
    let tokens = format!("--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=1s");
    let Some(server) = EtcdServer::start_with(&[&tokens]).await else { return };
    let mut root = with_users(&server).await;
    let store = store(&server, PASSWORD).await;
    let mut last = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.revision >= last).await;
    // A signed token is not prolonged by use.
    for round in 1..3 {
        a_token_expires(&server, Duration::from_millis(100)).await;
        last = store.replace(&key("a"), value("a", &format!("10.{round}.0.0/24")), last).await.unwrap();
        followed.until("what was written with a new token", |f| f.state.revision >= last).await;
        // Any change of users or roles outdates every token that was issued before it.
        root.user_add(format!("other{round}"), "password", None).await.unwrap();
        let seen = State::from(store.list(None).await.unwrap());
        assert_eq!(followed.state.items, seen.items);
        assert!(store.watch(last).await.is_ok());
    }
    assert_eq!((followed.snapshots, followed.outages), (1, 0));
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_password_is_named_and_nothing_is_withdrawn() {
    let Some(server) = EtcdServer::start().await else { return };
    let mut root = with_users(&server).await;
    let store = store(&server, PASSWORD).await;
    let first = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.revision >= first).await;

    root.user_change_password("typha", "another").await.unwrap();
    let error = store.head().await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let text = error.to_string();
    for part in ["login of user \"typha\"", &server.endpoint(), "invalid user ID or password", "restart"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains(PASSWORD), "{text}");
    followed.until("the outage", |f| f.outages == 1).await;

    root.user_change_password("typha", PASSWORD).await.unwrap();
    let last =
        eventually("a write", || async { store.create(&key("b"), value("b", "10.0.0.0/24")).await.ok() })
            .await;
    followed.until("what was written after the outage", |f| f.state.revision >= last).await;
    assert_eq!((followed.snapshots, followed.outages), (1, 1));
    assert!(followed.withdrawn.is_empty(), "{:?}", followed.withdrawn);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_may_be_switched_on_and_off() {
    let Some(server) = EtcdServer::start().await else { return };
    let store = store(&server, PASSWORD).await;
    let first = store.create(&key("a"), value("a", "10.0.0.0/24")).await.unwrap();
    let mut followed = Followed::start(store.clone());
    followed.until("first object", |f| f.state.revision >= first).await;
    let mut root = with_users(&server).await;
    let second = store.create(&key("b"), value("b", "10.0.0.0/24")).await.unwrap();
    followed.until("what was written with authentication", |f| f.state.revision >= second).await;
    root.auth_disable().await.unwrap();
    let third = store.create(&key("c"), value("c", "10.0.0.0/24")).await.unwrap();
    followed.until("what was written without it", |f| f.state.revision >= third).await;
    assert!(store.watch(third).await.is_ok());
    assert_eq!((followed.snapshots, followed.outages), (1, 0));
    followed.stop().await;
}
