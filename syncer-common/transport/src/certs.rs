//! A CA and certificates for a lab.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::Files;

#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{path}: {source}")]
    Write { path: String, source: io::Error },
}

/// Signs certificates; its key is in memory, and in its folder if it was saved.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
    valid: Duration,
}

/// A certificate may begin before it was made: clocks differ.
const SKEW: Duration = Duration::from_secs(300);

impl Authority {
    /// `valid`: for how long it and what it signs are.
    pub fn new(name: &str, valid: Duration) -> Result<Authority, CertsError> {
        let mut params = params(name, &[], SystemTime::now() + valid)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pair = KeyPair::generate()?;
        let certificate = params.self_signed(&pair)?.pem();
        let key = pair.serialize_pem();
        Ok(Authority { issuer: Issuer::new(params, pair), certificate, key, valid })
    }

    /// Writes `ca.crt` and `ca.key`.
    pub fn save(&self, folder: &Path) -> Result<(), CertsError> {
        write(&folder.join("ca.crt"), &self.certificate, 0o644)?;
        write(&folder.join("ca.key"), &self.key, 0o600)
    }

    /// Signs a certificate with this common name and URI SAN, for both ends of a connection, and writes it as
    /// `<file>.crt` and `<file>.key` beside the CA's.
    pub fn issue(&self, folder: &Path, file: &str, name: &str, uri: &str) -> Result<Files, CertsError> {
        self.issue_until(folder, file, name, uri, SystemTime::now() + self.valid)
    }

    pub fn issue_until(
        &self,
        folder: &Path,
        file: &str,
        name: &str,
        uri: &str,
        until: SystemTime,
    ) -> Result<Files, CertsError> {
        let mut params = params(name, &[uri], until)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let [cert, key] = ["crt", "key"].map(|suffix| folder.join(format!("{file}.{suffix}")));
        write(&cert, &certificate.pem(), 0o644)?;
        write(&key, &pair.serialize_pem(), 0o600)?;
        Ok(Files { ca: folder.join("ca.crt"), cert, key })
    }
}

fn params(name: &str, uris: &[&str], until: SystemTime) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    params.not_before = (SystemTime::now() - SKEW).into();
    params.not_after = until.into();
    Ok(params)
}

/// Never half-written: a server may be reading it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let failed = |source| CertsError::Write { path: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    })();
    written.map_err(failed)
}
