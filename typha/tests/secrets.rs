//! Passwords of BGP sessions: the nodes that use them get them, and nobody else does.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::process::Typha;
use harness::*;
use syncer_common::backend::directory::DirectoryStore;
use transport::certs::Authority;
use transport::{ClientTls, Expected};
use typha_client::{ClientConfig, Secret};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const NODES: &str = "
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1, labels: {rack: r1}}
spec: {bgp: {ipv4Address: 10.0.0.1/16}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2, labels: {rack: r2}}
spec: {bgp: {ipv4Address: 10.0.0.2/16}}
";
const PEER: &str = "
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: rack}
spec:
  nodeSelector: rack == 'r1'
  peerIP: 10.9.0.1
  asNumber: 65001
  password: {secretKeyRef: {name: bgp, key: rack}}
";

fn secret(value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp, namespace: kube-system}}\n\
         stringData: {{rack: {value}, other: hunter9}}\n"
    )
}

struct Lab {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Lab {
    fn agent(&self, typha: &Typha, node: &str, uri: &str) -> Agent {
        let name = uri.replace(['/', ':'], "-");
        let files = self.authority.issue(self.folder.path(), &name, "client", uri).unwrap();
        let server = Expected { common_name: "server".into(), uri_san: String::new() };
        let mut config = ClientConfig::new(vec![typha.server.to_string()], node, "confd", "test 0");
        config.tls = Some(ClientTls { files, server });
        config.secrets = true;
        config.read_timeout = Duration::from_secs(3);
        Agent::start_with(config)
    }

    async fn typha(&self, store: &Path) -> Typha {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (ca, cert, key) = (path("ca.crt"), path("typha.crt"), path("typha.key"));
        let typha = Typha::start(&[
            ("TYPHA_DATASTORETYPE", "directory"),
            ("TYPHA_DIRECTORY", &store.display().to_string()),
            ("TYPHA_CAFILE", &ca),
            ("TYPHA_SERVERCERTFILE", &cert),
            ("TYPHA_SERVERKEYFILE", &key),
            ("TYPHA_CLIENTCN", "client"),
            ("TYPHA_LOGSEVERITYSCREEN", "debug"),
        ]);
        typha.ready().await;
        typha
    }
}

/// What an agent was told last: keys and values.
fn held(agent: &Agent) -> Option<Vec<(String, String)>> {
    let last = agent.look().secrets.last().cloned()?;
    Some(last.into_iter().map(|Secret { key, value, .. }| (key, value)).collect())
}

fn pairs(all: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    Some(all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_nodes_whose_peerings_use_a_password_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("test CA", YEAR).unwrap();
    authority.save(folder.path()).unwrap();
    authority.issue(folder.path(), "typha", "server", "spiffe://lab/typha").unwrap();
    let (lab, store) = (Lab { folder, authority }, tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| std::fs::write(store.path().join(name), text).unwrap();
    write("nodes.yaml", NODES);
    write("peer.yaml", PEER);
    write("secret.yaml", &secret("hunter2"));
    let typha = lab.typha(store.path()).await;

    let user = lab.agent(&typha, "n1", "spiffe://lab/node/n1/agent/confd");
    let other = lab.agent(&typha, "n2", "spiffe://lab/node/n2/agent/confd");
    // These say that they are the node, and have no certificate that says so.
    let unbound = lab.agent(&typha, "n1", "spiffe://lab/fleet");
    let liar = lab.agent(&typha, "n1", "spiffe://lab/node/n2/agent/confd");
    let is = async |agent: &Agent, wanted: Option<Vec<(String, String)>>| {
        eventually(&format!("{wanted:?}"), || held(agent) == wanted).await;
    };
    is(&user, pairs(&[("rack", "hunter2")])).await;
    is(&other, pairs(&[])).await;

    // A new password; then one for everybody.
    write("secret.yaml", &secret("hunter3"));
    is(&user, pairs(&[("rack", "hunter3")])).await;
    write("nodes.yaml", &NODES.replace("rack: r2", "rack: r1"));
    is(&other, pairs(&[("rack", "hunter3")])).await;
    write("nodes.yaml", NODES);
    is(&other, pairs(&[])).await;

    // What is deleted is gone, and what nobody names is not sent.
    std::fs::remove_file(store.path().join("secret.yaml")).unwrap();
    is(&user, pairs(&[])).await;
    write("secret.yaml", &secret("hunter4"));
    is(&user, pairs(&[("rack", "hunter4")])).await;
    std::fs::remove_file(store.path().join("peer.yaml")).unwrap();
    is(&user, pairs(&[])).await;

    for agent in [&unbound, &liar] {
        let account = agent.look();
        assert!(account.in_sync == 1 && account.secrets.is_empty(), "{:?}", account.secrets);
    }
    let told = other.look().secrets.concat();
    assert!(told.iter().all(|secret| secret.value == "hunter3"), "n2 got what only n1 uses");
    assert!(!typha.logged("hunter"), "a password is in the log");
    let problems = DirectoryStore::open(store.path().to_owned()).await.unwrap().problems().await.unwrap();
    assert!(problems.is_empty(), "{problems:?}");
}
