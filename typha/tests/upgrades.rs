//! What other versions say. `recorded/vN` holds what client and server of protocol version N said, byte by byte as it
//! went over the wire (gRPC frames in a row). Every recording is replayed: old clients to this server, old servers
//! to this client; once as it is, once with fields, kinds and messages strewn in that nobody knows.
//!
//! `BULRUSH_RECORD=1` makes the recording of the present version: once, when the version is raised.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use harness::raw::AsTheyAre;
use harness::*;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use proto::sync::{
    ClientHello, ClientMessage, DeletionReason, GoAway, ResumeVerdict, ServerMessage, SyncState, Token,
    client_message::Message as Up, server_message::Message as Down,
};
use syncer_common::manifests::parse_manifest;
use syncer_common::model::{Kind, Update, Value};
use syncer_common::processors::Processors;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

const CALICO: &str = include_str!("manifests/calico.yaml");
/// Where the recorded state was listed.
const LISTED: u64 = 10;
const PREFIX: usize = 5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

/// The recordings: version, and what was said by that name.
fn recordings() -> Vec<(u32, PathBuf)> {
    let versions = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<(u32, PathBuf)> = versions
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().trim_start_matches('v').parse().unwrap(), path)
        })
        .collect();
    found.sort();
    found
}

fn frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// Of the message in the first frame.
fn length(frames: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(frames.get(1..PREFIX)?.try_into().unwrap()) as usize)
}

/// The messages of a recording, without their frames.
fn read(folder: &Path, name: &str) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    while let Some(length) = length(rest) {
        let (message, after) = rest[PREFIX..].split_at(length);
        messages.push(message.to_vec());
        rest = after;
    }
    messages
}

fn write(name: &str, messages: &[Vec<u8>]) {
    let folder = folder().join(format!("v{}", proto::VERSION));
    std::fs::create_dir_all(&folder).unwrap();
    let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// What a datastore with the manifests makes.
fn state() -> Vec<Update> {
    let mut processors = Processors::new();
    let mut updates = processors.initial();
    for resource in parse_manifest(CALICO) {
        let resource = resource.unwrap();
        updates.extend(processors.put(&resource.key_path().unwrap(), &resource.to_stored()).updates);
    }
    updates
}

// === A server that says what was recorded ===

/// One script for each stream, in order; the last one is said to all that follow.
#[derive(Clone)]
struct Script {
    streams: Arc<Vec<Vec<Vec<u8>>>>,
    opened: Arc<Mutex<usize>>,
    /// What the client said, by stream.
    heard: Arc<Mutex<Vec<Vec<Vec<u8>>>>>,
}

impl NamedService for Script {
    const NAME: &'static str = "bulrush.sync.v1.Sync";
}

impl Service<http::Request<Body>> for Script {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let number = {
            let mut opened = self.opened.lock().unwrap();
            *opened += 1;
            *opened - 1
        };
        self.heard.lock().unwrap().push(Vec::new());
        let heard = self.heard.clone();
        let script = self.streams[number.min(self.streams.len() - 1)].clone();
        // What the client says is kept for as long as it listens.
        let listening = stream::unfold((request.into_body(), Vec::new()), move |(mut body, mut rest)| {
            let heard = heard.clone();
            async move {
                let data = body.frame().await?.ok()?.into_data().ok()?;
                rest.extend_from_slice(&data);
                while let Some(length) = length(&rest).filter(|length| rest.len() >= PREFIX + length) {
                    let message = rest.drain(..PREFIX + length).skip(PREFIX).collect();
                    heard.lock().unwrap()[number].push(message);
                }
                Some((None, (body, rest)))
            }
        });
        let said = stream::iter(script.into_iter().map(|message| Some(Bytes::from(frame(&message)))));
        let frames = stream::select(said, listening)
            .filter_map(async |bytes| bytes.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
        let mut response = http::Response::new(Body::new(StreamBody::new(Box::pin(frames))));
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        Box::pin(std::future::ready(Ok(response)))
    }
}

impl Script {
    /// Returns the script, and the address that says it.
    async fn serve(streams: Vec<Vec<Vec<u8>>>) -> (Script, String) {
        let script = Script { streams: Arc::new(streams), opened: Arc::default(), heard: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_service(script.clone());
        tokio::spawn(serving.serve_with_incoming(incoming));
        (script, address)
    }

    fn heard(&self, stream: usize) -> Vec<Up> {
        let heard = self.heard.lock().unwrap();
        let messages = heard.get(stream).into_iter().flatten();
        messages.map(|bytes| ClientMessage::decode(&bytes[..]).unwrap().message.unwrap()).collect()
    }
}

// === What nobody knows ===

/// Field 2000, of bytes: to be appended to any message.
const STRANGE_FIELD: &[u8] = &[0x82, 0x7d, 3, b'n', b'e', b'w'];

fn varint(mut number: usize, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Appends the strange field to the message and to every message in it. `paths`: the fields that are messages, each with
/// those in it.
fn strew(message: &[u8], messages: &[Nested]) -> Vec<u8> {
    let mut strewn = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let before = rest;
        let (tag, wire) = prost::encoding::decode_key(&mut rest).unwrap();
        let nested = messages.iter().find(|nested| nested.0 == tag);
        match (wire, nested) {
            (prost::encoding::WireType::LengthDelimited, Some(Nested(_, within))) => {
                strewn.extend_from_slice(&before[..before.len() - rest.len()]);
                let length = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
                let inner = strew(&rest[..length], within);
                varint(inner.len(), &mut strewn);
                strewn.extend(inner);
                rest = &rest[length..];
            }
            _ => {
                let context = prost::encoding::DecodeContext::default();
                prost::encoding::skip_field(wire, tag, &mut rest, context).unwrap();
                strewn.extend_from_slice(&before[..before.len() - rest.len()]);
            }
        }
    }
    strewn.extend_from_slice(STRANGE_FIELD);
    strewn
}

struct Nested(u32, &'static [Nested]);

/// Token: positions.
const TOKEN: &[Nested] = &[Nested(4, &[])];
/// Entry: cause. A value's bytes are hashed as they are: servers of one view agree on them.
const ENTRY: &[Nested] = &[Nested(5, &[])];
const DOWN: &[Nested] = &[
    Nested(1, &[Nested(10, &[])]),
    Nested(2, &[Nested(1, ENTRY)]),
    Nested(3, &[Nested(1, TOKEN), Nested(4, &[])]),
    Nested(4, &[Nested(3, &[])]),
    Nested(5, &[]),
    Nested(6, &[]),
    Nested(7, &[]),
];
const UP: &[Nested] = &[Nested(1, &[Nested(7, TOKEN), Nested(8, &[])]), Nested(2, &[]), Nested(4, &[])];

/// A batch of what may come one day: a key of a kind that is not known, a known key with a value of a kind that is not.
fn strange_batch() -> Vec<u8> {
    let entry = |key: &str, value: &[u8]| {
        let entry = proto::sync::Entry { key: key.into(), seq: 1, ..Default::default() };
        let mut bytes = entry.encode_to_vec();
        bytes.push(6 << 3 | 2);
        varint(value.len(), &mut bytes);
        bytes.extend_from_slice(value);
        bytes
    };
    let mut batch = Vec::new();
    for entry in
        [entry("/calico/v1/hologram/h1", STRANGE_FIELD), entry("/calico/v1/config/Known", STRANGE_FIELD)]
    {
        batch.push(1 << 3 | 2);
        varint(entry.len(), &mut batch);
        batch.extend(entry);
    }
    let mut message = vec![2 << 3 | 2];
    varint(batch.len(), &mut message);
    message.extend(batch);
    message
}

fn strange(said: &[Vec<u8>], messages: &[Nested]) -> Vec<Vec<u8>> {
    // Before each message one of a kind that nobody knows; the first one has to stay the first.
    let mut all = Vec::new();
    for (n, message) in said.iter().enumerate() {
        if n > 0 {
            all.push(STRANGE_FIELD.to_vec());
        }
        all.push(strew(message, messages));
    }
    all
}

// === Recording ===

#[tokio::test]
async fn present_version_is_recorded() {
    if std::env::var("BULRUSH_RECORD").is_ok_and(|value| value == "1") {
        record().await;
    }
    let versions: Vec<u32> = recordings().into_iter().map(|(version, _)| version).collect();
    assert!(versions.contains(&proto::VERSION), "of {versions:?}: run this test with BULRUSH_RECORD=1");
}

async fn record() {
    let replica = Replica::listed(options(), LISTED, state());
    let mut raw = Raw::greet(&replica, None).await;
    let mut down = Vec::new();
    let mut until = async |raw: &mut Raw, ends: fn(&Down) -> bool| {
        loop {
            let message = patiently(raw.down.message()).await.unwrap().unwrap();
            let last = ends(message.message.as_ref().unwrap());
            down.push(message.encode_to_vec());
            if last {
                return;
            }
        }
    };
    until(&mut raw, |message| matches!(message, Down::Cut(_))).await;
    // A change, a deletion, a heartbeat at the cut.
    replica.apply(LISTED + 1, vec![set(1, "new"), Update::set(key(2), Value::Config("short-lived".into()))]);
    until(&mut raw, |message| matches!(message, Down::Cut(_))).await;
    replica.apply(LISTED + 2, vec![unset(2)]);
    until(&mut raw, |message| matches!(message, Down::Cut(_))).await;
    until(&mut raw, |message| matches!(message, Down::Heartbeat(_))).await;
    let away = GoAway { reason: "draining".into(), ..Default::default() };
    down.push(ServerMessage { message: Some(Down::GoAway(away)) }.encode_to_vec());
    write("server", &down);

    // What our client says to it; and, with a token, to a server that asks for digests.
    let hello = ServerMessage::decode(&down[0][..]).unwrap();
    let Some(Down::Hello(mut hello)) = hello.message else { panic!("{hello:?}") };
    hello.verdict = ResumeVerdict::ResumeDigest as i32;
    let digest = vec![ServerMessage { message: Some(Down::Hello(hello)) }.encode_to_vec()];
    let stay: Vec<Vec<u8>> = down[..down.len() - 1].to_vec();
    let (script, address) = Script::serve(vec![stay]).await;
    let agent = Agent::start(&[address], "felix");
    eventually("the state", || agent.look().cuts.len() == 3).await;
    agent.acks.send_replace(agent.look().cuts.last().cloned());
    eventually("the ack", || script.heard(0).iter().any(|said| matches!(said, Up::Ack(_)))).await;
    write("client", &script.heard.lock().unwrap()[0]);
    let (script, address) = Script::serve(vec![down, digest]).await;
    let _agent = Agent::start(&[address], "felix");
    eventually("the roots", || script.heard(1).iter().any(|said| matches!(said, Up::Digest(_)))).await;
    write("client-again", &script.heard.lock().unwrap()[1]);
}

// === Replaying ===

/// What the recorded server had told by its last cut.
fn told(server: &[Vec<u8>]) -> State {
    let mut state = State::new();
    for bytes in server {
        let Some(Down::Batch(batch)) = ServerMessage::decode(&bytes[..]).unwrap().message else { continue };
        for entry in batch.entries {
            let key = syncer_common::model::Key::parse(&entry.key).unwrap();
            match entry.value.and_then(|value| value.kind) {
                Some(value) => _ = state.insert(key, value),
                None => {
                    assert_eq!(entry.reason, DeletionReason::DeletionDeleted as i32);
                    state.remove(&key);
                }
            }
        }
    }
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn this_client_follows_recorded_servers() {
    for (version, folder) in recordings() {
        let server = read(&folder, "server");
        let state = told(&server);
        let kinds: std::collections::BTreeSet<_> = state.keys().filter_map(Kind::of).collect();
        assert!(kinds.len() >= 10, "{kinds:?} of version {version}");
        // It is to stay.
        let stay = server[..server.len() - 1].to_vec();
        let mut odd = strange(&stay, DOWN);
        odd.insert(1, strange_batch());
        for said in [stay, odd] {
            let (script, address) = Script::serve(vec![said]).await;
            let agent = Agent::start(&[address], "felix");
            eventually("three cuts", || agent.look().cuts.len() == 3).await;
            let account = agent.look();
            assert_eq!((account.in_sync, account.spurious.len(), account.disconnected.len()), (1, 0, 0));
            assert_eq!(account.state, state, "version {version}");
            let last = account.cuts.last().unwrap().clone();
            agent.acks.send_replace(Some(last.clone()));
            eventually("the ack of the last cut", || {
                script.heard(0).iter().any(|said| matches!(said, Up::Ack(ack) if ack.seq == last.seq))
            })
            .await;
        }
        // It asks its clients to leave: they come again with its token.
        let (script, address) = Script::serve(vec![server]).await;
        let _agent = Agent::start(&[address], "felix");
        eventually(
            "a second hello",
            || matches!(script.heard(1).first(), Some(Up::Hello(hello)) if hello.resume.is_some()),
        )
        .await;
    }
}

/// Says what was recorded to this server; returns what it answers up to the first cut.
async fn say_to(replica: &Replica, said: Vec<Vec<u8>>) -> Vec<Down> {
    let mut grpc = tonic::client::Grpc::new(replica.channel().await);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/bulrush.sync.v1.Sync/Stream");
    let messages = stream::iter(said).map(Bytes::from).chain(stream::pending());
    let mut down = grpc.streaming(tonic::Request::new(messages), path, AsTheyAre).await.unwrap().into_inner();
    let mut answers = Vec::new();
    loop {
        let bytes = patiently(down.message()).await.unwrap().expect("the stream goes on");
        let answer = ServerMessage::decode(bytes).unwrap().message.unwrap();
        let last = matches!(answer, Down::Cut(_));
        answers.push(answer);
        if last {
            return answers;
        }
    }
}

/// The same hello, with a token of this view.
fn with_view(hello: &[u8], view: u64) -> Vec<u8> {
    let mut message = ClientMessage::decode(hello).unwrap();
    let Some(Up::Hello(ClientHello { resume: Some(token), .. })) = &mut message.message else {
        panic!("{message:?}")
    };
    token.view = view;
    message.encode_to_vec()
}

fn verdict(answers: &[Down]) -> ResumeVerdict {
    match &answers[0] {
        Down::Hello(hello) => hello.verdict(),
        other => panic!("{other:?}"),
    }
}

fn entries(answers: &[Down]) -> usize {
    let batches = answers.iter().filter_map(|answer| match answer {
        Down::Batch(batch) => Some(batch.entries.len()),
        _ => None,
    });
    batches.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn this_server_serves_recorded_clients() {
    for (_, folder) in recordings() {
        let held = told(&read(&folder, "server"));
        let updates: Vec<Update> =
            held.iter().map(|(key, value)| Update::set(key.clone(), value.clone())).collect();
        let (first, again) = (read(&folder, "client"), read(&folder, "client-again"));
        // The token of a client that comes again speaks of this history, up to this revision.
        let Some(Up::Hello(hello)) = ClientMessage::decode(&again[0][..]).unwrap().message else { panic!() };
        let token: Token = hello.resume.unwrap();
        assert_eq!((token.history.as_str(), token.positions()[0].low), ("history", LISTED + 2));
        for odd in [false, true] {
            let (first, again) = match odd {
                false => (first.clone(), again.clone()),
                true => (strange(&first, UP), strange(&again, UP)),
            };
            let replica = Replica::listed(options(), LISTED + 2, updates.clone());
            let answers = say_to(&replica, first).await;
            assert_eq!((verdict(&answers), entries(&answers)), (ResumeVerdict::ResumeSnapshot, held.len()));
            assert!(
                answers
                    .iter()
                    .any(|answer| matches!(answer, Down::SnapshotEnd(end) if !end.kinds.is_empty()))
            );
            let in_sync = |answer: &Down| matches!(answer, Down::Status(status) if status.state() == SyncState::SyncInSync);
            assert!(answers.iter().any(in_sync));

            // Where kinds are reduced to something else since: what differs.
            let view = replica.cache.read().view(Kind::FELIX.into_iter().collect());
            let mut elsewise = again.clone();
            elsewise[0] = with_view(&again[0], view + 1);
            let answers = say_to(&replica, elsewise).await;
            assert_eq!((verdict(&answers), entries(&answers)), (ResumeVerdict::ResumeDigest, 0));
            // Where they are not, and history reaches back: what happened since.
            replica.apply(LISTED + 3, vec![set(7, "since")]);
            let answers = say_to(&replica, vec![with_view(&again[0], view)]).await;
            assert_eq!((verdict(&answers), entries(&answers)), (ResumeVerdict::ResumeDelta, 1));
            // Where it does not: the roots that were recorded are those of this server.
            let replica = Replica::listed(options(), LISTED + 20, updates.clone());
            let answers = say_to(&replica, again).await;
            assert_eq!((verdict(&answers), entries(&answers)), (ResumeVerdict::ResumeDigest, 0));
        }
    }
}
