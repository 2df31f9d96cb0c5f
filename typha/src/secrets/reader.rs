//! Reads the Secrets that objects name, one by one and now and then: that takes no more than `get` of those names, where
//! a watch would need to see the others too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use syncer_common::backend::Datastore;
use tokio::sync::watch;

use super::{Reference, Secrets};

/// A new password is in force within about this time.
const EVERY: Duration = Duration::from_secs(5);

/// For ever. What cannot be read stays as it was read last.
pub async fn read(secrets: Arc<Secrets>, store: Arc<dyn Datastore>, namespace: String) {
    let mut changed = secrets.changed.subscribe();
    let mut failures: HashMap<String, String> = HashMap::new();
    loop {
        let named = secrets.named();
        let names: BTreeSet<&String> = named.iter().map(|(name, _)| name).collect();
        failures.retain(|name, _| names.contains(name));
        for name in names {
            match store.secret(&namespace, name).await {
                Ok(texts) => {
                    if failures.remove(name).is_some() {
                        tracing::info!(namespace, name, "Secret with BGP passwords can be read again");
                    }
                    secrets.answer(name, texts.as_ref());
                }
                Err(error) => {
                    let error = error.to_string();
                    if failures.insert(name.clone(), error.clone()).as_ref() != Some(&error) {
                        tracing::warn!(namespace, name, error, "Secret with BGP passwords cannot be read");
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = others_named(&secrets, &named, &mut changed) => {}
        }
    }
}

/// Until objects name other Secrets or keys.
async fn others_named(secrets: &Secrets, named: &BTreeSet<Reference>, changed: &mut watch::Receiver<()>) {
    while secrets.named() == *named {
        // It ends with the server.
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
