//! From a cluster's objects to BIRD's configuration, and how long BIRD takes to read it:
//! `cargo bench --workspace --bench render`.
// Helpers of benches are as free as those of tests.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use confd::bgp::{LocalSettings, Model};
use confd::render::{Syntax, render};
use divan::Bencher;
use syncer_common::model::{BlockAffinityKey, Key, ResourceKey, Update, Value, values};

fn main() {
    divan::main();
}

/// A mesh of so many nodes with a block each, and a pool.
fn model(nodes: usize) -> Model {
    let mut model = Model::default();
    for n in 0..nodes {
        let (high, low) = (n / 250, n % 250 + 1);
        let bgp = values::NodeBgp { ipv4_address: format!("10.1.{high}.{low}/16"), ..Default::default() };
        let node = values::Node { bgp: Some(bgp), ..Default::default() };
        let name = format!("node-{n}");
        let key = ResourceKey { kind: "Node".into(), namespace: String::new(), name: name.clone() };
        model.on_update(Update::set(Key::Resource(key), Value::Node(node)));
        let cidr = format!("10.{}.{}.0/26", 64 + n / 250, n % 250).parse().unwrap();
        let key = BlockAffinityKey { host: name, cidr, affinity_type: "host".into() };
        let value = values::BlockAffinity { state: "confirmed".into(), deleted: false };
        model.on_update(Update::set(Key::BlockAffinity(key), Value::BlockAffinity(value)));
    }
    let cidr = "10.64.0.0/10";
    let pool = values::IpPool { cidr: cidr.into(), ..Default::default() };
    model.on_update(Update::set(Key::IpPool { cidr: cidr.parse().unwrap() }, Value::IpPool(pool)));
    model
}

fn local() -> LocalSettings {
    LocalSettings { node: "node-0".into(), ..Default::default() }
}

#[divan::bench(args = [100, 1_000, 5_000])]
fn bird2(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    bencher.bench_local(|| render(&model.compute(&local()), Syntax::Bird2));
}

#[divan::bench(args = [100, 1_000, 5_000])]
fn classic(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    bencher.bench_local(|| render(&model.compute(&local()), Syntax::Classic));
}

/// `bird -p`: stock BIRD 2 reads what was rendered.
#[divan::bench(args = [1_000, 5_000], sample_count = 10)]
fn bird_reads(bencher: Bencher<'_, '_>, nodes: usize) {
    let bird = ["/usr/sbin/bird", "/usr/local/sbin/bird"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let bird = bird.expect("BIRD 2 is installed");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bird.cfg");
    std::fs::write(&file, render(&model(nodes).compute(&local()), Syntax::Bird2)[0].text()).unwrap();
    bencher.bench_local(|| {
        let check = Command::new(bird).arg("-p").arg("-c").arg(&file).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    });
}
