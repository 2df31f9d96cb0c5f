//! What went wrong in a request to etcd, and whose fault it was.
//!
//! A failure "about the endpoint" is worth trying elsewhere; a refusal is not: every member would say the same.
//! A token that is refused is worth a new one: it expires (`--auth-token-ttl`), a restart forgets it, and a change
//! of users or roles outdates it where it is a signed one (`--auth-token=jwt`).

use std::time::Duration;

use tonic::Code;

use crate::backend::{Error, Revision};

/// Not `Unauthenticated`, but cured by another token all the same: users or roles have changed; authentication
/// was switched on after the connection was made.
const OUTDATED: [&str; 2] = ["revision of auth store is old", "user name is empty"];

/// A refusal that every member would repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Compacted,
    /// The reply exceeds the limit of a message.
    TooLarge,
    /// A login where nobody needs one.
    AuthOff,
    Invalid,
}

#[derive(Debug)]
pub(super) enum Failure {
    Connect(Error),
    Timeout(Duration),
    Endpoint(String),
    /// The token is not, or no longer, good for the request.
    Token(String),
    Refused(Refusal, String),
}

impl Failure {
    pub(super) fn is_about_endpoint(&self) -> bool {
        match self {
            Failure::Timeout(_) | Failure::Endpoint(_) => true,
            Failure::Connect(error) => matches!(error, Error::Unavailable { .. }),
            Failure::Token(_) | Failure::Refused(..) => false,
        }
    }

    /// Names the endpoint that failed.
    pub(super) fn at(self, endpoint: &str) -> Self {
        match self {
            Failure::Endpoint(reason) => Failure::Endpoint(format!("{endpoint}: {reason}")),
            other => other,
        }
    }

    /// `at` is the revision that was asked for.
    pub(super) fn into_error(self, what: String, at: Revision) -> Error {
        match self {
            Failure::Connect(error) => error,
            Failure::Timeout(after) => {
                Error::Unavailable { what, reason: format!("no answer within {} s", after.as_secs()) }
            }
            Failure::Endpoint(reason) => Error::Unavailable { what, reason },
            Failure::Token(reason) => Error::Invalid {
                what,
                reason: format!("{reason}: check the etcd user, its password and its role"),
            },
            Failure::Refused(Refusal::Compacted, _) => Error::Compacted { compacted: at },
            Failure::Refused(_, reason) => Error::Invalid { what, reason },
        }
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            return match error {
                etcd_client::Error::InvalidArgs(reason) => Failure::Refused(Refusal::Invalid, reason),
                etcd_client::Error::InvalidUri(reason) => {
                    Failure::Refused(Refusal::Invalid, reason.to_string())
                }
                other => Failure::Endpoint(chain(&other)),
            };
        };
        let message = status.message();
        match status.code() {
            Code::OutOfRange if message.contains("compacted") => {
                Failure::Refused(Refusal::Compacted, message.into())
            }
            Code::OutOfRange if message.contains("message length too large") => {
                Failure::Refused(Refusal::TooLarge, message.into())
            }
            Code::Unauthenticated => Failure::Token(message.into()),
            Code::InvalidArgument if OUTDATED.iter().any(|outdated| message.contains(outdated)) => {
                Failure::Token(message.into())
            }
            Code::InvalidArgument if message.contains("authentication failed") => Failure::Refused(
                Refusal::Invalid,
                format!(
                    "{message}: check both; a password that was changed takes effect with a restart of this process"
                ),
            ),
            Code::FailedPrecondition if message.contains("authentication is not enabled") => {
                Failure::Refused(Refusal::AuthOff, message.into())
            }
            Code::OutOfRange | Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition => {
                Failure::Refused(Refusal::Invalid, message.into())
            }
            // The status itself prints everything it holds; what matters is its message and the root of it.
            _ => Failure::Endpoint(match root(status) {
                Some(cause) => format!("{message}: {cause}"),
                None => message.into(),
            }),
        }
    }
}

/// The last of an error's causes.
fn root(error: &dyn std::error::Error) -> Option<String> {
    std::iter::successors(error.source(), |cause| cause.source()).last().map(ToString::to_string)
}

/// An error with its causes: transport errors name the refused connection only in the last one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: Code, message: &str) -> Failure {
        Failure::from(etcd_client::Error::GRpcStatus(tonic::Status::new(code, message)))
    }

    #[test]
    fn compaction_is_recognised_and_not_retried_elsewhere() {
        let compacted = failure(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
        assert!(!compacted.is_about_endpoint());
        assert!(matches!(compacted.into_error("list".into(), 7), Error::Compacted { compacted: 7 }));
    }

    #[test]
    fn an_endpoint_that_fails_is_named() {
        let failure = failure(Code::Unavailable, "tcp connect error").at("http://h:1");
        assert_eq!(
            failure.into_error("etcd read".into(), 0).to_string(),
            "etcd read: http://h:1: tcp connect error"
        );
    }

    #[test]
    fn refused_token_is_told_from_a_wrong_password_and_a_missing_right() {
        for (code, message) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
        ] {
            assert!(matches!(failure(code, message), Failure::Token(_)), "{message}");
        }
        for (code, message) in [
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
        ] {
            assert!(matches!(failure(code, message), Failure::Refused(Refusal::Invalid, _)), "{message}");
        }
    }

    #[test]
    fn lost_leader_is_worth_another_endpoint() {
        assert!(failure(Code::Unavailable, "etcdserver: no leader").is_about_endpoint());
        assert!(!failure(Code::PermissionDenied, "etcdserver: permission denied").is_about_endpoint());
    }
}
