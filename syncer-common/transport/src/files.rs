//! The three PEM files that each end has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} {path}: {reason}", path = .path.display())]
    File { what: &'static str, path: PathBuf, reason: String },
    #[error("the key does not go with the certificate, or TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("certificates of clients cannot be verified: {0}")]
    Verifier(String),
}

/// Where this end's certificate and key are, and the CA of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub(crate) struct Read {
    pub roots: Arc<RootCertStore>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Files {
    pub(crate) fn read(&self) -> Result<Read, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("CA file", &self.ca)? {
            roots.add(root).map_err(|error| failed("CA file", &self.ca, error))?;
        }
        let chain = certificates("certificate file", &self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|error| failed("key file", &self.key, error))?;
        Ok(Read { roots: Arc::new(roots), chain, key })
    }

    /// When the files were last written; differs when one of them did.
    pub(crate) fn stamp(&self) -> [Option<SystemTime>; 3] {
        [&self.ca, &self.cert, &self.key].map(|path| std::fs::metadata(path).ok()?.modified().ok())
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(failed(what, path, "holds no certificate in PEM")),
        Ok(found) => Ok(found),
        Err(error) => Err(failed(what, path, error)),
    }
}

fn failed(what: &'static str, path: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File { what, path: path.to_owned(), reason: reason.to_string() }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
