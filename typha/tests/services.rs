//! What the sync port answers beside streams, and which streams it refuses.

mod harness;

use std::time::Duration;

use harness::proxy::Proxy;
use harness::*;
use proto::admin::admin_client::AdminClient;
use proto::admin::{LoadRequest, StatusRequest, WaitRequest};
use proto::sync::sync_client::SyncClient;
use proto::sync::{Ack, ClientHello, FreshnessRequest, Stamp, client_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use typha::syncserver::Options;

#[tokio::test]
async fn client_that_says_nothing_is_refused_in_time() {
    let quick = Options { handshake_timeout: Duration::from_millis(50), ..options() };
    let replica = Replica::listed(quick, 10, vec![]);
    let mut raw = Raw::open(&replica).await;
    let status = raw.next().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("no hello"), "{status}");
}

#[tokio::test]
async fn client_that_begins_with_something_else_is_refused() {
    let replica = Replica::listed(options(), 10, vec![]);
    let mut raw = Raw::open(&replica).await;
    raw.say(client_message::Message::Ack(Ack::default())).await;
    assert_eq!(raw.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn version_out_of_the_window_is_refused_with_both_versions_named() {
    let replica = Replica::listed(options(), 10, vec![]);
    let mut raw = Raw::open(&replica).await;
    raw.say(client_message::Message::Hello(ClientHello { version: 99, ..hello() })).await;
    let status = raw.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("version 99") && status.message().contains("upgrade"), "{status}");
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_nothing_else() {
    let replica = Replica::listed(options(), 10, vec![set(1, "first")]);
    let agent = Agent::start(&[replica.name()], "felix");
    agent.settle(&replica).await;
    // No HTTP/2; HTTP/2, and then noise; a frame longer than was agreed.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for garbage in [
        noise(1, 100_000).into_bytes(),
        [PREFACE, noise(2, 100_000).as_bytes()].concat(),
        [PREFACE, &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]].concat(),
    ] {
        let mut stream = tokio::net::TcpStream::connect(replica.address).await.unwrap();
        // It may be closed while this is still being written.
        _ = stream.write_all(&garbage).await;
        let mut answer = Vec::new();
        _ = patiently(stream.read_to_end(&mut answer)).await;
        assert!(answer.len() < 1_000, "{} bytes in answer to garbage", answer.len());
    }
    replica.apply(11, vec![set(1, "second")]);
    agent.settle(&replica).await;
    assert!(agent.look().disconnected.is_empty());
}

#[tokio::test]
async fn message_that_is_too_large_or_no_message_ends_the_stream_with_the_reason() {
    let replica = Replica::listed(options(), 10, vec![]);
    let agent = Agent::start(&[replica.name()], "felix");
    agent.settle(&replica).await;
    let mut raw = Raw::open(&replica).await;
    raw.say(client_message::Message::Hello(ClientHello { software: "x".repeat(300_000), ..hello() })).await;
    let status = raw.next().await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("262144"), "{status}");

    // A field of a type that cannot be, in a frame that is right.
    let mut grpc = tonic::client::Grpc::new(replica.channel().await);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/bulrush.sync.v1.Sync/Stream");
    let wrong = proto::sync::Peer { address: "\u{7f}".repeat(20), ..Default::default() };
    let codec = tonic_prost::ProstCodec::<_, proto::sync::ServerMessage>::default();
    let mut down = grpc
        .streaming(tonic::Request::new(tokio_stream::once(wrong)), path, codec)
        .await
        .unwrap()
        .into_inner();
    let status = patiently(down.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(agent.look().disconnected.is_empty());
}

#[tokio::test]
async fn wire_that_is_dead_is_noticed_at_both_ends() {
    let quick = (Duration::from_millis(200), Duration::from_millis(800));
    let replica = Replica::listed(Options { keepalive: quick, ..options() }, 10, vec![set(1, "first")]);
    let other = Replica::listed(options(), 10, vec![set(1, "first")]);
    let proxy = Proxy::start(replica.address).await;
    let quiet = Agent::start_on("quiet", &[replica.name()], "felix");
    let cut_off = Agent::start_on("cut-off", &[proxy.name()], "felix");
    for agent in [&quiet, &cut_off] {
        agent.settle(&replica).await;
    }
    let mut admin = AdminClient::new(replica.channel().await);
    let mut clients = async || admin.load(LoadRequest {}).await.unwrap().into_inner().clients;
    assert_eq!(clients().await, 2);
    // Nothing is lost on the wire but time: neither end is told of it.
    proxy.stop(true);
    eventually_async("the server to give the client up", async || clients().await == 1).await;
    eventually("the client to give the server up", || {
        cut_off.look().disconnected.iter().any(|reason| reason.contains("silent"))
    })
    .await;
    assert!(quiet.look().disconnected.is_empty(), "it answers pings, and that is enough");
    proxy.stop(false);
    proxy.lead_to(other.address);
    cut_off.settle(&other).await;
    assert!(cut_off.look().spurious.is_empty());
}

#[tokio::test]
async fn second_hello_ends_the_stream() {
    let replica = Replica::listed(options(), 10, vec![]);
    let mut raw = Raw::greet(&replica, None).await;
    raw.say(client_message::Message::Hello(hello())).await;
    let status = loop {
        match raw.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_follows_being_in_sync() {
    let replica = Replica::start(options());
    let mut client = HealthClient::new(replica.channel().await);
    for (in_sync, expected) in [(false, ServingStatus::NotServing), (true, ServingStatus::Serving)] {
        if in_sync {
            replica.list(10, vec![]);
        }
        for service in ["", "bulrush.sync.v1.Sync"] {
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let request = HealthCheckRequest { service: service.into() };
                let status = client.check(request).await.map(|reply| reply.into_inner().status());
                if matches!(status, Ok(status) if status == expected) {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{service:?}: {status:?}");
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test]
async fn reflection_lists_the_services_and_knows_their_messages() {
    let replica = Replica::listed(options(), 10, vec![]);
    let mut client = ServerReflectionClient::new(replica.channel().await);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let questions = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("bulrush.sync.v1.Entry".into())),
    ]);
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        patiently(answers.message()).await.unwrap().unwrap().message_response
    else {
        panic!("no list")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["bulrush.sync.v1.Sync", "bulrush.admin.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let Some(MessageResponse::FileDescriptorResponse(file)) =
        patiently(answers.message()).await.unwrap().unwrap().message_response
    else {
        panic!("no file")
    };
    assert!(!file.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn freshness_answers_without_a_stream() {
    let replica = Replica::listed(options(), 10, vec![]);
    let mut client = SyncClient::new(replica.channel().await);
    let reply = client.freshness(FreshnessRequest {}).await.unwrap().into_inner();
    assert!(reply.in_sync && reply.age_millis.is_some());
    assert_eq!((reply.history.as_str(), reply.sources[0].high), ("history", 10));
}

#[tokio::test]
async fn status_and_wait_tell_what_agents_have_acknowledged() {
    let replica = Replica::listed(options(), 10, vec![set(1, "first")]);
    let (prompt, late) = (
        Agent::start_on("prompt", &[replica.name()], "felix"),
        Agent::start_on("late", &[replica.name()], "felix"),
    );
    prompt.settle(&replica).await;
    late.settle(&replica).await;
    replica.apply(12, vec![set(1, "second")]);
    prompt.settle(&replica).await;
    late.settle(&replica).await;
    let cuts = late.look().cuts;
    let before = cuts.iter().rev().find(|cut| cut.seq < replica.cache.read().head()).cloned();
    late.acks.send_replace(before);
    prompt.acks.send_replace(prompt.look().cuts.last().cloned());

    let mut admin = AdminClient::new(replica.channel().await);
    let wait = |revision| WaitRequest {
        key: "/calico/v1/config/Key00001".into(),
        revision: Some(Stamp { source: "etcd".into(), revision }),
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let at_ten = admin.wait(wait(10)).await.unwrap().into_inner();
        let at_twelve = admin.wait(wait(12)).await.unwrap().into_inner();
        if at_ten.lagging.is_empty() && at_twelve.reached == ["prompt"] && at_twelve.lagging == ["late"] {
            assert!(at_twelve.known);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{at_ten:?} {at_twelve:?}");
        tokio::task::yield_now().await;
    }
    assert!(!admin.wait(wait(99)).await.unwrap().into_inner().known);
    let nonsense = WaitRequest { key: "/no/such/key".into(), ..wait(1) };
    assert_eq!(admin.wait(nonsense).await.unwrap_err().code(), Code::InvalidArgument);

    let status = admin.status(StatusRequest { clients: true }).await.unwrap().into_inner();
    assert_eq!(status.entries["GlobalConfig"], 1);
    let nodes: Vec<&str> = status.clients.iter().map(|client| client.node.as_str()).collect();
    assert_eq!(nodes, ["late", "prompt"]);
    assert_eq!(status.clients[1].acked[0].high, 12);
    assert_eq!(admin.load(LoadRequest {}).await.unwrap().into_inner().clients, 2);
}

#[tokio::test]
async fn client_that_leaves_is_forgotten() {
    let replica = Replica::listed(options(), 10, vec![]);
    let agent = Agent::start(&[replica.name()], "felix");
    agent.settle(&replica).await;
    drop(agent);
    let mut admin = AdminClient::new(replica.channel().await);
    let deadline = std::time::Instant::now() + PATIENCE;
    while admin.load(LoadRequest {}).await.unwrap().into_inner().clients > 0 {
        assert!(std::time::Instant::now() < deadline, "the client is still there");
        tokio::task::yield_now().await;
    }
}
