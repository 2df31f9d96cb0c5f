//! A folder of manifests.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Datastore, Error, Head, KeyValue, Listing, Result, Revision, Watch};

pub struct DirectoryStore {
    path: PathBuf,
}

impl DirectoryStore {
    pub async fn open(path: PathBuf) -> Result<Self> {
        Ok(Self { path })
    }

    fn unavailable<T>(&self) -> Result<T> {
        let what = format!("folder {}", self.path.display());
        Err(Error::Unavailable { what, reason: "not readable".into() })
    }
}

#[async_trait]
impl Datastore for DirectoryStore {
    fn source(&self) -> &'static str {
        "directory"
    }
    async fn history(&self) -> Result<String> {
        self.unavailable()
    }
    async fn head(&self) -> Result<Head> {
        self.unavailable()
    }
    async fn list(&self, _at: Option<Revision>) -> Result<Listing> {
        self.unavailable()
    }
    async fn watch(&self, _after: Revision) -> Result<Watch> {
        self.unavailable()
    }
    async fn get(&self, _key: &str) -> Result<Option<KeyValue>> {
        self.unavailable()
    }
    async fn get_prefix(&self, _prefix: &str) -> Result<Vec<KeyValue>> {
        self.unavailable()
    }
    async fn create(&self, _key: &str, _value: Bytes) -> Result<Revision> {
        self.unavailable()
    }
    async fn replace(&self, _key: &str, _value: Bytes, _expected: Revision) -> Result<Revision> {
        self.unavailable()
    }
    async fn delete(&self, _key: &str, _expected: Option<Revision>) -> Result<Revision> {
        self.unavailable()
    }
}
