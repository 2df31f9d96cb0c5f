//! The connecting end.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::files::provider;
use crate::{ALPN, Expected, Files, Identity, Io, TlsError};

/// What a client of typha needs for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    pub files: Files,
    /// Who the server has to be.
    pub server: Expected,
}

/// Connects to `host:port`, with the endpoint's settings. Certificates are read anew.
pub async fn channel(
    address: &str,
    tls: Option<&ClientTls>,
    settings: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = settings(Endpoint::from_shared(format!("http://{address}"))?);
    let Some(tls) = tls else { return Ok(endpoint.connect().await?) };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls.config()?));
    let address = address.to_owned();
    let connect = tower::service_fn(move |_| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            // The name is not verified; it has to be one all the same.
            let name = ServerName::try_from("typha").map_err(io::Error::other)?;
            let stream = connector.connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(Io::Tls(Box::new(stream.into()))))
        }
    });
    Ok(endpoint.connect_with_connector(connect).await?)
}

impl ClientTls {
    /// From settings, as text: CA, certificate, key, common name, URI SAN. All or nothing; the error names what is
    /// missing by its place in `names`.
    pub fn from_settings(names: [&str; 5], values: [String; 5]) -> Result<Option<ClientTls>, String> {
        let missing: Vec<&str> = (0..3).filter(|at| values[*at].is_empty()).map(|at| names[at]).collect();
        let [ca, cert, key, common_name, uri_san] = values;
        let server = Expected { common_name, uri_san };
        match (missing.as_slice(), server != Expected::default()) {
            ([_, _, _], false) => return Ok(None),
            ([], true) => {}
            ([], false) => return Err(format!("TLS needs {} or {}", names[3], names[4])),
            (missing, _) => return Err(format!("TLS needs {}, too", missing.join(" and "))),
        }
        let tls = ClientTls { files: Files { ca: ca.into(), cert: cert.into(), key: key.into() }, server };
        tls.config().map_err(|error| error.to_string())?;
        Ok(Some(tls))
    }

    /// Reads the files and checks that they can be used.
    pub fn config(&self) -> Result<ClientConfig, TlsError> {
        let read = self.files.read()?;
        let provider = provider();
        let verifier = Chain { roots: read.roots, provider: provider.clone(), expected: self.server.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(read.chain, read.key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

/// The chain, the usage and the validity are verified; of names, the common name or a URI SAN, not the host.
#[derive(Debug)]
struct Chain {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Expected,
}

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        let identity = Identity::of(end_entity).unwrap_or_default();
        if self.expected.accepts(&identity) {
            return Ok(ServerCertVerified::assertion());
        }
        let Expected { common_name, uri_san } = &self.expected;
        Err(Error::General(format!(
            "the server's certificate is of {:?} {:?}, and neither its name is {common_name:?} nor a URI {uri_san:?}",
            identity.common_name, identity.uris
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
