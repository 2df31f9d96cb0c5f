//! Which datastore to open, and with which credentials.
//!
//! `open` fails only for settings that can never work (`Error::Invalid`). A datastore that does not answer
//! yet is not an error here: the syncer goes on trying, so that a daemon can start before its datastore.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::DirectoryStore;
use super::etcd::EtcdStore;
use super::kubernetes::KubernetesStore;
use super::{Datastore, Error, Result};
use crate::kubernetes::ApiGroup;

/// A password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A datastore, as settings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    Etcd(EtcdConfig),
    Directory { path: PathBuf },
    Kubernetes(KubernetesConfig),
}

/// How to reach the API server, and how to read what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Kubeconfig file. Without one: the service account of this pod.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; without one, its current context.
    pub context: Option<String>,
    /// Group of Calico's custom resources; without one, it is discovered.
    pub group: Option<ApiGroup>,
    /// Blocks come from the nodes' pod CIDRs instead of Calico's IPAM.
    pub use_pod_cidr: bool,
    /// What the names of pods' interfaces start with; without one, `cali`.
    pub interface_prefix: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `http://host:2379` or `https://…`; without a scheme, `https` when a CA is given.
    pub endpoints: Vec<String>,
    pub ca_file: Option<PathBuf>,
    /// Client certificate and key: both or neither.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// User and password: both or neither.
    pub username: Option<String>,
    pub password: Option<Secret>,
}

impl StoreConfig {
    /// etcd without TLS or authentication.
    pub fn etcd<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Self {
        Self::Etcd(EtcdConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ..EtcdConfig::default()
        })
    }

    /// `etcd`, `directory` or `kubernetes`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Directory { .. } => "directory",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory { path: path.into() }
    }
}

impl EtcdConfig {
    /// Endpoints with scheme, checked together with the credentials.
    pub fn checked_endpoints(&self) -> Result<Vec<String>> {
        let invalid = |what: &str, reason: &str| Error::Invalid { what: what.into(), reason: reason.into() };
        if self.endpoints.is_empty() {
            return Err(invalid("etcd endpoints", "none given"));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(invalid(
                "etcd client certificate",
                "certificate and key go together; one is missing",
            ));
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(invalid("etcd user", "user and password go together; one is missing"));
        }
        let tls = self.ca_file.is_some();
        let mut checked = Vec::new();
        for endpoint in &self.endpoints {
            let endpoint = endpoint.trim().trim_end_matches('/');
            let full = match endpoint.split_once("://") {
                Some(("http" | "https", host)) if !host.is_empty() => endpoint.to_owned(),
                None if !endpoint.is_empty() && tls => format!("https://{endpoint}"),
                None if !endpoint.is_empty() => format!("http://{endpoint}"),
                _ => {
                    return Err(invalid(
                        endpoint,
                        "not an etcd endpoint: http://host:port or https://host:port",
                    ));
                }
            };
            if full.starts_with("https://") && !tls {
                return Err(invalid(endpoint, "https needs the CA file of the etcd servers"));
            }
            if full.starts_with("http://") && (tls || self.cert_file.is_some()) {
                return Err(invalid(endpoint, "TLS files are given, but the endpoint says http"));
            }
            checked.push(full);
        }
        Ok(checked)
    }
}

/// Opens the datastore that the settings name.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn Datastore>> {
    match config {
        StoreConfig::Etcd(etcd) => Ok(Arc::new(EtcdStore::new(etcd.clone())?)),
        StoreConfig::Directory { path } => Ok(Arc::new(DirectoryStore::open(path.clone()).await?)),
        StoreConfig::Kubernetes(kubernetes) => Ok(Arc::new(KubernetesStore::open(kubernetes.clone()).await?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(endpoint: &str) -> EtcdConfig {
        EtcdConfig { endpoints: vec![endpoint.into()], ..EtcdConfig::default() }
    }

    #[test]
    fn debug_never_prints_the_password() {
        let config = EtcdConfig {
            username: Some("typha".into()),
            password: Some(Secret::new("hunter2")),
            ..etcd("http://127.0.0.1:2379")
        };
        assert!(!format!("{:?}", StoreConfig::Etcd(config)).contains("hunter2"));
    }

    #[test]
    fn half_given_credentials_are_refused() {
        let cert = EtcdConfig { cert_file: Some("c.pem".into()), ..etcd("http://h:1") };
        assert!(matches!(cert.checked_endpoints(), Err(Error::Invalid { .. })));
        let user = EtcdConfig { username: Some("u".into()), ..etcd("http://h:1") };
        assert!(matches!(user.checked_endpoints(), Err(Error::Invalid { .. })));
        assert!(matches!(etcd("https://h:1").checked_endpoints(), Err(Error::Invalid { .. })));
        assert!(matches!(etcd("ftp://h:1").checked_endpoints(), Err(Error::Invalid { .. })));
    }

    #[test]
    fn endpoint_without_scheme_follows_the_ca() {
        assert_eq!(etcd("h:1").checked_endpoints().unwrap(), ["http://h:1"]);
        let tls = EtcdConfig { ca_file: Some("ca.pem".into()), ..etcd("h:1/") };
        assert_eq!(tls.checked_endpoints().unwrap(), ["https://h:1"]);
    }
}
