//! Reading a client's hello, and answering it.

use proto::sync::{self, ClientHello, ClientMessage, ResumeVerdict, client_message, server_message};
use syncer_common::model::Kind;
use tonic::Status;

use super::Context;
use super::accept::Peer;
use crate::snapcache::{KindSet, message};

/// Feature: content digests.
const DIGEST: &str = "digest";
/// Feature: the passwords of the node's BGP sessions.
const SECRETS: &str = "secrets";
/// Versions N-2 to N+2 talk to each other.
const VERSIONS: u32 = 2;

/// The hello, or why the stream is refused.
pub(super) fn read(first: Option<ClientMessage>, software: &str) -> Result<ClientHello, Status> {
    let Some(client_message::Message::Hello(hello)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message of a stream has to be a hello"));
    };
    let oldest = proto::VERSION.saturating_sub(VERSIONS).max(1);
    let newest = proto::VERSION + VERSIONS;
    if !(oldest..=newest).contains(&hello.version) {
        return Err(Status::failed_precondition(format!(
            "protocol version {} of {:?} cannot be served: {software} speaks {} and talks to {oldest} to {newest}; \
             upgrade the older of the two",
            hello.version,
            hello.software,
            proto::VERSION,
        )));
    }
    if hello.node.is_empty() || hello.agent.is_empty() {
        return Err(Status::invalid_argument("a hello has to name the node and the agent"));
    }
    Ok(hello)
}

/// Whether the client is who it says, as far as its certificate has to tell.
pub(super) fn check(hello: &ClientHello, peer: &Peer, bound: bool) -> Result<(), Status> {
    let identity = peer.identity.as_deref();
    if !bound || identity.is_some_and(|identity| identity.is_bound_to(&hello.node, &hello.agent)) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the certificate is not that of {} on node {}: it needs a URI SAN spiffe://DOMAIN/node/{}/agent/{}, \
         and has {:?}",
        hello.agent,
        hello.node,
        hello.node,
        hello.agent,
        identity.map(|identity| identity.uris.as_slice()).unwrap_or_default()
    )))
}

/// The kinds to send: those asked for as far as they are known here, else what the agent's name stands for.
pub(super) fn kinds(hello: &ClientHello) -> KindSet {
    if hello.kinds.is_empty() {
        return Kind::for_agent(&hello.agent).iter().copied().collect();
    }
    hello.kinds.iter().filter_map(|name| Kind::from_name(name)).collect()
}

/// The client can compare digests.
pub(super) fn digests(hello: &ClientHello) -> bool {
    hello.features.iter().any(|feature| feature == DIGEST)
}

/// The client is to get passwords: it asks for them, and its certificate is that of its node. Whoever could say any
/// node's name could ask for any password.
pub(super) fn gets_secrets(hello: &ClientHello, peer: &Peer) -> bool {
    let bound =
        peer.identity.as_deref().is_some_and(|identity| identity.is_bound_to(&hello.node, &hello.agent));
    bound && hello.features.iter().any(|feature| feature == SECRETS)
}

pub(super) fn answer(
    context: &Context,
    hello: &ClientHello,
    kinds: KindSet,
    verdict: ResumeVerdict,
    secrets: bool,
) -> bytes::Bytes {
    let features = [(DIGEST, digests(hello)), (SECRETS, secrets)];
    let (history, epoch) = {
        let cache = context.cache.read();
        (cache.history().to_owned(), cache.epoch().to_owned())
    };
    message(server_message::Message::Hello(sync::ServerHello {
        version: proto::VERSION,
        software: context.options.software.clone(),
        replica: context.options.replica.clone(),
        // The token's, or it would not be resumed.
        history: if verdict == ResumeVerdict::ResumeDelta { String::new() } else { history },
        epoch,
        // What a client offers beyond them is not in force.
        features: features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect(),
        // Scope NODE is not served yet: the client is told so, and gets everything.
        scope: sync::Scope::All as i32,
        verdict: verdict as i32,
        // Under DELTA they are those of the token, or the view would not be the same.
        kinds: if verdict == ResumeVerdict::ResumeDelta { Vec::new() } else { kinds.names() },
        peers: context.peers.for_node(&hello.node),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version: u32) -> Option<ClientMessage> {
        let hello = ClientHello { version, node: "n1".into(), agent: "felix".into(), ..Default::default() };
        Some(ClientMessage { message: Some(client_message::Message::Hello(hello)) })
    }

    #[test]
    fn neighbouring_versions_are_served_and_others_told_why_not() {
        for version in proto::VERSION..=proto::VERSION + 2 {
            assert!(read(hello(version), "bulrush-typha 0").is_ok());
        }
        for version in [0, proto::VERSION + 3] {
            let status = read(hello(version), "bulrush-typha 0").unwrap_err();
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(status.message().contains(&format!("version {version} ")), "{status}");
        }
    }

    #[test]
    fn unknown_agent_gets_every_kind_and_unknown_kinds_are_left_out() {
        let hello = |agent: &str, kinds: &[&str]| ClientHello {
            agent: agent.into(),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            ..Default::default()
        };
        assert_eq!(kinds(&hello("flowviewer", &[])), KindSet::all());
        assert_eq!(kinds(&hello("confd", &[])), Kind::CONFD.into_iter().collect());
        assert_eq!(kinds(&hello("x", &["Node", "Hologram"])).names(), ["Node"]);
    }
}
