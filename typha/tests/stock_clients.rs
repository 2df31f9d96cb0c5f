//! Clients that are not ours: generated from our .proto by the tools of another language, and tonic's own.

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::process::Running;
use harness::*;
use proto::sync::sync_client::SyncClient;
use proto::sync::{ClientMessage, client_message, server_message::Message as Down};
use syncer_common::model::Update;
use tonic::Code;
use tonic::codec::CompressionEncoding;

/// Debian's own: a Python that comes first in the path need not have Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

fn some(count: u32) -> Vec<Update> {
    (0..count).map(|n| set(n, "first")).collect()
}

#[tokio::test]
async fn client_generated_for_python_follows_the_stream() {
    let has = Command::new(PYTHON).args(["-c", "import grpc, google.protobuf"]).output();
    if !has.is_ok_and(|run| run.status.success()) {
        let reason = "python3-grpcio and python3-protobuf are not installed (scripts/deps)";
        assert!(std::env::var_os("BULRUSH_REQUIRE").is_none_or(|require| require != "1"), "{reason}");
        println!("SKIPPED: {reason}");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let generated = tempfile::tempdir().unwrap();
    let made = Command::new("protoc")
        .current_dir(root.join("../proto/proto"))
        .args(["-I.", "model.proto", "sync.proto"])
        .arg(format!("--python_out={}", generated.path().display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    // More than one message, and more than what is worth compressing.
    let replica = Replica::listed(options(), 10, some(3_000));
    let mut process = Command::new(PYTHON)
        .arg(root.join("tests/python/follow.py"))
        .arg(generated.path())
        .arg(replica.name())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let output = process.0.stdout.take().unwrap();
    let (sender, mut cuts) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let cut: serde_json::Value = serde_json::from_str(&line).unwrap();
            if sender.blocking_send(cut).is_err() {
                return;
            }
        }
    });
    let first = patiently(cuts.recv()).await.expect("a cut");
    assert_eq!(first["held"].as_object().unwrap().len(), 3_000);
    replica.apply(11, vec![set(7, "second"), unset(8)]);
    let second = patiently(cuts.recv()).await.expect("another cut");
    assert_eq!(second["held"]["/calico/v1/config/Key00007"], "second");
    assert_eq!(second["held"].as_object().unwrap().len(), 2_999);
    assert_eq!(second["seq"], replica.cache.read().head());
}

#[tokio::test]
async fn compressed_requests_are_refused_with_the_reason() {
    let replica = Replica::listed(options(), 10, some(3));
    let hello = ClientMessage { message: Some(client_message::Message::Hello(hello())) };
    let mut client = SyncClient::new(replica.channel().await).send_compressed(CompressionEncoding::Zstd);
    let status = client.stream(tokio_stream::iter([hello])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("zstd"), "{status}");
}

#[tokio::test]
async fn tonics_own_client_reads_the_stream_plain_and_compressed() {
    let replica = Replica::listed(options(), 10, some(3_000));
    for zstd in [false, true] {
        let hello = ClientMessage { message: Some(client_message::Message::Hello(hello())) };
        let up = futures::StreamExt::chain(tokio_stream::iter([hello]), futures::stream::pending());
        let mut client = SyncClient::new(replica.channel().await);
        if zstd {
            client = client.accept_compressed(CompressionEncoding::Zstd);
        }
        let response = client.stream(up).await.unwrap();
        let encoding =
            response.metadata().get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(encoding.as_deref(), zstd.then_some("zstd"));
        let mut down = response.into_inner();
        let mut held = 0;
        loop {
            match patiently(down.message()).await.unwrap().unwrap().message.unwrap() {
                Down::Batch(batch) => held += batch.entries.len(),
                Down::Cut(_) => break,
                _ => {}
            }
        }
        assert_eq!(held, 3_000);
    }
}

/// A reader that takes nothing while forty megabytes pass by.
#[tokio::test]
async fn stalled_reader_is_given_the_latest_values_once() {
    let replica = Replica::listed(options(), 10, some(50));
    let mut raw = Raw::greet(&replica, None).await;
    let mut held = BTreeMap::new();
    let mut bytes = 0;
    let large = "x".repeat(20_000);
    for stalled in [false, true] {
        if stalled {
            for revision in 11..2_011 {
                let n = revision as u32 % 50;
                replica.apply(revision, vec![set(n, &format!("{revision} {large}"))]);
                if revision % 20 == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
            replica.apply(2_011, vec![unset(49)]);
            bytes = 0;
        }
        loop {
            match raw.next().await.unwrap().unwrap() {
                Down::Batch(batch) => {
                    for entry in batch.entries {
                        bytes += prost::Message::encoded_len(&entry);
                        match entry.value {
                            Some(value) => drop(held.insert(entry.key, value)),
                            None => drop(held.remove(&entry.key)),
                        }
                    }
                }
                Down::Cut(cut) => {
                    let seq = cut.token.map_or(cut.seq, |token| token.seq);
                    if seq == replica.cache.read().head() {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    let state = replica.cache.read();
    let encoded = |value: &proto::model::Value| prost::Message::encode_to_vec(value);
    assert!(
        state.iter_live().eq(held
            .iter()
            .map(|(key, value)| (key.as_str(), encoded(value)))
            .collect::<Vec<_>>()
            .iter()
            .map(|(key, value)| (*key, value.as_slice())))
    );
    // What was on its way when it stopped, and each key once.
    assert!(bytes < 8 << 20, "{bytes} B");
}
