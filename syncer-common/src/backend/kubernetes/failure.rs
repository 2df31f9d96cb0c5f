//! What went wrong with a request, and what the caller is to do about it.

use std::time::Duration;

use serde::Deserialize;

use crate::backend::{Error, Revision};
use crate::kubernetes::ApiResource;

pub(super) type Reply<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub(super) enum Failure {
    /// The settings or the credentials can not be read.
    Setup(Error),
    /// Nothing came back, or not all of it.
    NoAnswer(String),
    /// The server is busy and says so; it was asked as often as was allowed.
    Throttled(Duration),
    Refused(Refusal),
}

/// An answer that is an error: `metav1.Status`, or what a proxy made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    /// The revision asked for is newer than any that the server has.
    pub(super) too_large: bool,
    /// The kind of object that the refusal is about, as a plural.
    pub(super) about: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    kind: String,
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

impl Refusal {
    /// `code` is the response's; 0 where there is none, as within a watch.
    pub(super) fn read(code: u16, body: &[u8]) -> Self {
        let Ok(status) = serde_json::from_slice::<Status>(body) else {
            let text = String::from_utf8_lossy(body);
            let message = text.trim().chars().take(200).collect();
            return Refusal { code, message, ..Refusal::default() };
        };
        let too_large = status.message.contains("Too large resource version")
            || (status.details.causes.iter())
                .any(|cause| cause.reason == "ResourceVersionTooLarge" || cause.message == TOO_LARGE);
        Refusal {
            code: if code == 0 { status.code } else { code },
            reason: status.reason,
            message: status.message,
            too_large,
            about: status.details.kind,
        }
    }

    /// The revision asked for is older than what the server holds; so is that of a continue token.
    pub(super) fn expired(&self) -> bool {
        self.code == 410 || self.reason == "Expired" || self.reason == "Gone"
    }

    fn text(&self) -> String {
        match (self.message.as_str(), self.reason.as_str()) {
            ("", "") => format!("HTTP {}", self.code),
            ("", reason) => format!("HTTP {} {reason}", self.code),
            (message, _) => format!("HTTP {}: {message}", self.code),
        }
    }
}

const TOO_LARGE: &str = "Too large resource version";

impl Failure {
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Failure::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// There is no such object, or no such kind.
    pub(super) fn missing(&self) -> bool {
        self.refusal().is_some_and(|refusal| refusal.code == 404)
    }

    /// About a read of a whole kind; `at` is the revision that was asked for.
    pub(super) fn into_error(self, verb: &str, resource: &ApiResource, at: Revision) -> Error {
        let what = format!("kubernetes {verb} of {}", full_name(resource));
        match self {
            Failure::Setup(error) => error,
            Failure::NoAnswer(reason) => Error::Unavailable { what, reason },
            Failure::Throttled(wait) => Error::Unavailable {
                what,
                reason: format!("the API server is busy and asks to wait {} s", wait.as_secs().max(1)),
            },
            Failure::Refused(refusal) if refusal.expired() => Error::Compacted { compacted: at },
            Failure::Refused(refusal) => match refusal.code {
                401 => Error::Invalid {
                    what,
                    reason: format!("{}; the token or client certificate is not accepted", refusal.text()),
                },
                403 => Error::Invalid {
                    what,
                    reason: format!(
                        "{}; allow {verb} of {} in the ClusterRole of this account",
                        refusal.text(),
                        full_name(resource)
                    ),
                },
                400 | 405 | 406 | 413 | 415 | 422 => Error::Invalid { what, reason: refusal.text() },
                _ => Error::Unavailable { what, reason: refusal.text() },
            },
        }
    }

    /// About a write of one object.
    pub(super) fn into_write_error(self, verb: &str, key: &str, resource: &ApiResource) -> Error {
        let Some(refusal) = self.refusal() else { return self.into_error(verb, resource, 0) };
        match refusal.code {
            409 if refusal.reason == "AlreadyExists" => {
                Error::Conflict { key: key.into(), reason: "exists already".into() }
            }
            409 => Error::Conflict { key: key.into(), reason: refusal.message.clone() },
            404 if verb == "create" => Error::Invalid {
                what: key.into(),
                reason: match refusal.about.as_str() {
                    "namespaces" => format!("{}: create the namespace first", refusal.message),
                    _ => format!("the API server has no {}: install the CRDs", full_name(resource)),
                },
            },
            404 => Error::NotFound { key: key.into() },
            400 | 422 => Error::Invalid { what: key.into(), reason: refusal.message.clone() },
            _ => self.into_error(verb, resource, 0),
        }
    }
}

/// `pods`, `ippools.crd.projectcalico.org`.
pub(super) fn full_name(resource: &ApiResource) -> String {
    match resource.group {
        "" => resource.plural.to_owned(),
        group => format!("{}.{group}", resource.plural),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: ApiResource =
        ApiResource { group: "", version: "v1", plural: "pods", kind: "Pod", namespaced: true };

    fn refused(code: u16, body: &str) -> Failure {
        Failure::Refused(Refusal::read(code, body.as_bytes()))
    }

    #[test]
    fn forbidden_kind_is_named_with_the_remedy() {
        let body =
            r#"{"kind":"Status","reason":"Forbidden","code":403,"message":"pods is forbidden: User \"u\""}"#;
        let error = refused(403, body).into_error("list", &PODS, 0);
        assert_eq!(
            error.to_string(),
            "kubernetes list of pods: HTTP 403: pods is forbidden: User \"u\"; allow list of pods in the ClusterRole of this account"
        );
        assert!(matches!(error, Error::Invalid { .. }));
    }

    #[test]
    fn expiry_is_known_by_code_and_by_reason() {
        for failure in [
            refused(410, "too old"),
            refused(0, r#"{"reason":"Expired","code":410}"#),
            refused(0, r#"{"reason":"Gone","message":"x"}"#),
        ] {
            let error = failure.into_error("watch", &PODS, 7);
            assert!(matches!(error, Error::Compacted { compacted: 7 }), "{error}");
        }
    }

    #[test]
    fn newer_revision_than_the_server_has_is_known_by_its_cause() {
        let body = r#"{"reason":"Timeout","code":504,"message":"Timeout: Too large resource version: 9, current: 7",
            "details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}]}}"#;
        assert!(refused(504, body).refusal().unwrap().too_large);
        assert!(!refused(504, r#"{"reason":"Timeout","code":504}"#).refusal().unwrap().too_large);
    }

    #[test]
    fn answer_of_a_proxy_is_shown_in_part() {
        let error = refused(502, &"<html>".repeat(100)).into_error("list", &PODS, 0);
        assert!(error.to_string().len() < 300, "{error}");
        assert!(matches!(error, Error::Unavailable { .. }));
    }
}
