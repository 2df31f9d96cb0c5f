//! Who a certificate names.
//!
//! A certificate is bound to a node and an agent by a URI SAN `spiffe://TRUST-DOMAIN/node/NODE/agent/AGENT`; without the
//! last two parts it stands for every agent of the node.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub common_name: String,
    pub uris: Vec<String>,
}

/// When a certificate ends; nothing if it cannot be read.
pub(crate) fn end_of(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))
}

/// Whom the other end has to be: either suffices. Both empty: anybody whom the CA has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub common_name: String,
    pub uri_san: String,
}

impl Identity {
    /// Nothing for a certificate that cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Identity> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let common_name = certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned);
        let names = certificate.subject_alternative_name().ok().flatten();
        let uris = names.map(|names| {
            let uris = names.value.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            });
            uris.collect()
        });
        Some(Identity { common_name: common_name.unwrap_or_default(), uris: uris.unwrap_or_default() })
    }

    /// Whether the certificate is bound to a node.
    pub fn is_bound(&self) -> bool {
        self.uris.iter().any(|uri| binding(uri).is_some())
    }

    /// Whether the certificate is bound to this node and agent.
    pub fn is_bound_to(&self, node: &str, agent: &str) -> bool {
        self.uris
            .iter()
            .filter_map(|uri| binding(uri))
            .any(|(of_node, of_agent)| of_node == node && of_agent.is_none_or(|of_agent| of_agent == agent))
    }
}

/// Node and agent of a URI.
fn binding(uri: &str) -> Option<(&str, Option<&str>)> {
    let (_, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    let rest = path.strip_prefix("node/")?;
    match rest.split_once("/agent/") {
        Some((node, agent)) => Some((node, Some(agent))),
        None if rest.contains('/') => None,
        None => Some((rest, None)),
    }
}

impl Expected {
    pub fn accepts(&self, identity: &Identity) -> bool {
        let any = self.common_name.is_empty() && self.uri_san.is_empty();
        let by_name = !self.common_name.is_empty() && identity.common_name == self.common_name;
        let by_uri = !self.uri_san.is_empty() && identity.uris.contains(&self.uri_san);
        any || by_name || by_uri
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, uris: &[&str]) -> Identity {
        Identity { common_name: name.into(), uris: uris.iter().map(|uri| (*uri).to_owned()).collect() }
    }

    #[test]
    fn name_or_uri_suffices() {
        let expected = |name: &str, uri: &str| Expected { common_name: name.into(), uri_san: uri.into() };
        let who = identity("typha-client", &["spiffe://x/a"]);
        for (name, uri, accepted) in [
            ("typha-client", "", true),
            ("", "spiffe://x/a", true),
            ("typha-client", "spiffe://x/b", true),
            ("other", "spiffe://x/a", true),
            ("other", "", false),
            ("", "spiffe://x/b", false),
            ("other", "spiffe://x/b", false),
            ("", "", true),
        ] {
            assert_eq!(expected(name, uri).accepts(&who), accepted, "{name} {uri}");
        }
        assert!(!expected("", "spiffe://x/b").accepts(&identity("", &[])));
    }

    #[test]
    fn binding_names_node_and_agent() {
        let bound = identity("c", &["spiffe://lab/node/n1/agent/felix", "spiffe://lab/node/n2"]);
        assert!(bound.is_bound_to("n1", "felix") && !bound.is_bound_to("n1", "confd"));
        assert!(bound.is_bound_to("n2", "felix") && bound.is_bound_to("n2", "confd"));
        assert!(!bound.is_bound_to("n3", "felix"));
        assert!(!identity("n1", &["https://x/node/n1", "spiffe://lab/node/n1/x"]).is_bound_to("n1", "felix"));
    }
}
