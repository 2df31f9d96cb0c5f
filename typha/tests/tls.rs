//! TLS between agents and typha as an operator runs it: who is let in, who is not, renewal without an interruption.

// All of it is test code, though not inside `#[test]`.
#![allow(clippy::unwrap_used)]

mod harness;

use std::path::Path;
use std::time::{Duration, SystemTime};

use harness::process::Typha;
use harness::*;
use tokio::io::AsyncReadExt;
use transport::certs::Authority;
use transport::{ClientTls, Expected, Files};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const SERVER: &str = "typha-server";
const CLIENT: &str = "typha-client";

fn uri(node: &str, agent: &str) -> String {
    format!("spiffe://lab/node/{node}/agent/{agent}")
}

struct Lab {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test CA", YEAR).unwrap();
        authority.save(folder.path()).unwrap();
        authority.issue(folder.path(), "typha", SERVER, "spiffe://lab/typha").unwrap();
        Lab { folder, authority }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn issue(&self, file: &str, name: &str, uri: &str) -> ClientTls {
        let files = self.authority.issue(self.folder.path(), file, name, uri).unwrap();
        ClientTls { files, server: Expected { common_name: SERVER.into(), uri_san: String::new() } }
    }

    /// A typha on a folder of manifests, with these settings beside those of TLS.
    async fn typha(&self, store: &Path, more: &[(&str, &str)]) -> Typha {
        let (ca, cert, key) = (self.path("ca.crt"), self.path("typha.crt"), self.path("typha.key"));
        let store = store.display().to_string();
        let mut settings = vec![
            ("TYPHA_DATASTORETYPE", "directory"),
            ("TYPHA_DIRECTORY", store.as_str()),
            ("TYPHA_CAFILE", ca.as_str()),
            ("TYPHA_SERVERCERTFILE", cert.as_str()),
            ("TYPHA_SERVERKEYFILE", key.as_str()),
        ];
        settings.extend(more);
        let typha = Typha::start(&settings);
        typha.ready().await;
        typha
    }
}

fn refused(typha: &Typha) -> u64 {
    let text = typha.get("/metrics").unwrap();
    let counts = text.lines().filter_map(|line| {
        let rest = line
            .strip_prefix("typha_connections_refused_total ")
            .or_else(|| line.strip_prefix("typha_hellos_refused_total "));
        rest?.parse::<f64>().ok()
    });
    counts.sum::<f64>() as u64
}

/// Whether an agent with this certificate gets in.
async fn gets_in(typha: &Typha, tls: Option<ClientTls>, node: &str) -> bool {
    let before = refused(typha);
    let agent = Agent::start_tls(node, &[typha.server.to_string()], "felix", tls);
    let mut inside = false;
    eventually("a verdict", || {
        inside = agent.look().in_sync == 1;
        inside || refused(typha) > before
    })
    .await;
    inside
}

#[tokio::test(flavor = "multi_thread")]
async fn name_or_uri_of_the_right_ca_is_let_in_and_nothing_else() {
    let (lab, store) = (Lab::new(), tempfile::tempdir().unwrap());
    let typha = lab
        .typha(store.path(), &[("TYPHA_CLIENTCN", CLIENT), ("TYPHA_CLIENTURISAN", "spiffe://lab/fleet")])
        .await;
    let both = lab.issue("both", CLIENT, "spiffe://lab/fleet");
    assert!(gets_in(&typha, Some(both.clone()), "n1").await);
    assert!(gets_in(&typha, Some(lab.issue("name", CLIENT, "spiffe://lab/other")), "n1").await);
    assert!(gets_in(&typha, Some(lab.issue("uri", "other", "spiffe://lab/fleet")), "n1").await);
    assert!(!gets_in(&typha, Some(lab.issue("none", "other", "spiffe://lab/other")), "n1").await);
    assert!(!gets_in(&typha, None, "n1").await, "plain TCP");
    let strangers = Lab::new();
    let stranger = strangers.issue("both", CLIENT, "spiffe://lab/fleet");
    let ca = both.files.ca.clone();
    let untrusted = ClientTls { files: Files { ca, ..stranger.files }, ..stranger };
    assert!(!gets_in(&typha, Some(untrusted), "n1").await, "another CA");
    let past = SystemTime::now() - Duration::from_secs(60);
    let expired = lab.authority.issue_until(lab.folder.path(), "expired", CLIENT, "spiffe://lab/fleet", past);
    let expired = expired.unwrap();
    assert!(!gets_in(&typha, Some(ClientTls { files: expired, ..both.clone() }), "n1").await, "expired");

    // The client, too, looks at the name.
    let wary =
        ClientTls { server: Expected { common_name: "another".into(), uri_san: String::new() }, ..both };
    assert!(!gets_in(&typha, Some(wary), "n1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_binds_node_and_agent_and_keeps_agents_from_what_operators_ask() {
    let (lab, store) = (Lab::new(), tempfile::tempdir().unwrap());
    let binding = [("TYPHA_CLIENTCN", CLIENT), ("TYPHA_CLIENTNODEBINDING", "require")];
    let typha = lab.typha(store.path(), &binding).await;
    let felix = lab.issue("felix", CLIENT, &uri("n1", "felix"));
    assert!(gets_in(&typha, Some(felix.clone()), "n1").await);
    assert!(!gets_in(&typha, Some(felix.clone()), "n2").await, "another node's name");
    let confd = lab.issue("confd", CLIENT, &uri("n1", "confd"));
    assert!(!gets_in(&typha, Some(confd), "n1").await, "another agent's certificate");
    let operator = lab.issue("operator", CLIENT, "spiffe://lab/operator");
    assert!(!gets_in(&typha, Some(operator.clone()), "n1").await, "no node's certificate");

    let status = async |tls: &ClientTls| {
        let address = typha.server.to_string();
        let channel = transport::channel(&address, Some(tls), |endpoint| endpoint).await.unwrap();
        proto::admin::admin_client::AdminClient::new(channel)
            .status(proto::admin::StatusRequest::default())
            .await
    };
    assert!(status(&operator).await.is_ok());
    assert_eq!(status(&felix).await.unwrap_err().code(), tonic::Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_used_and_open_streams_stay() {
    let (lab, store) = (Lab::new(), tempfile::tempdir().unwrap());
    let typha = lab.typha(store.path(), &[("TYPHA_CLIENTCN", CLIENT)]).await;
    let old = lab.issue("old", CLIENT, "spiffe://lab/fleet");
    let agent = Agent::start_tls("n1", &[typha.server.to_string()], "felix", Some(old));
    eventually("a proven state", || agent.look().in_sync == 1).await;

    // A key without its certificate, as for a moment during a renewal, changes nothing.
    std::fs::write(lab.path("typha.key"), "nonsense").unwrap();
    // Another CA for both sides.
    let renewed = Lab::new();
    let new = renewed.issue("new", CLIENT, "spiffe://lab/fleet");
    for file in ["ca.crt", "typha.crt", "typha.key"] {
        let text = std::fs::read(renewed.path(file)).unwrap();
        std::fs::write(lab.path(file), text).unwrap();
    }
    eventually_async("the new certificates to be used", async || {
        gets_in(&typha, Some(new.clone()), "n2").await
    })
    .await;
    let account = agent.look();
    assert_eq!((account.connected.len(), account.disconnected.len()), (1, 0));
}

/// A certificate's end is a whole second.
fn in_seconds(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_renewed_before_their_certificate_ends_and_not_without_a_new_one() {
    let (lab, store) = (Lab::new(), tempfile::tempdir().unwrap());
    let manifest = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.65.0.0/16}\n";
    std::fs::write(store.path().join("pool.yaml"), manifest).unwrap();
    let typha = lab.typha(store.path(), &[("TYPHA_CLIENTCN", CLIENT)]).await;
    let short = |file: &str| {
        let folder = lab.folder.path();
        lab.authority.issue_until(folder, file, CLIENT, "spiffe://lab/fleet", in_seconds(12)).unwrap()
    };
    let end = in_seconds(12);
    let start = |node: &str, files: Files| {
        let server = Expected { common_name: SERVER.into(), uri_san: String::new() };
        Agent::start_tls(node, &[typha.server.to_string()], "felix", Some(ClientTls { files, server }))
    };
    let (renewed, forgotten) = (start("n1", short("renewed")), start("n2", short("forgotten")));
    for agent in [&renewed, &forgotten] {
        eventually("a proven state", || agent.look().in_sync == 1).await;
    }
    // As a manager of certificates does it, in good time.
    lab.issue("renewed", CLIENT, "spiffe://lab/fleet");
    eventually("a new connection", || renewed.look().connected.len() == 2).await;
    assert!(SystemTime::now() < end, "it had to be before the end");
    assert!(renewed.look().disconnected[0].contains("renew"), "{:?}", renewed.look().disconnected);

    let before = refused(&typha);
    eventually("the ended certificate to be refused", || SystemTime::now() > end && refused(&typha) > before)
        .await;
    let (renewed, forgotten) = (renewed.look(), forgotten.look());
    assert_eq!((renewed.connected.len(), renewed.disconnected.len()), (2, 1));
    assert_eq!(forgotten.connected.len(), forgotten.disconnected.len());
    for account in [&renewed, &forgotten] {
        assert!(account.deletions.is_empty() && account.spurious.is_empty() && !account.state.is_empty());
        assert_eq!((account.in_sync, account.updates), (1, account.state.len()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_delay_nobody_and_end_and_one_address_has_a_limit() {
    let (lab, store) = (Lab::new(), tempfile::tempdir().unwrap());
    let settings = [
        ("TYPHA_CLIENTCN", CLIENT),
        ("TYPHA_SERVERHANDSHAKETIMEOUTSECS", "2"),
        ("TYPHA_MAXCONNECTIONSPERADDRESS", "20"),
    ];
    let typha = lab.typha(store.path(), &settings).await;
    let mut silent = Vec::new();
    for _ in 0..19 {
        silent.push(tokio::net::TcpStream::connect(typha.server).await.unwrap());
    }
    let felix = lab.issue("felix", CLIENT, "spiffe://lab/fleet");
    let agent = Agent::start_tls("n1", &[typha.server.to_string()], "felix", Some(felix));
    eventually("a proven state", || agent.look().in_sync == 1).await;
    // One more than the address may have.
    let mut surplus = tokio::net::TcpStream::connect(typha.server).await.unwrap();
    let ended = async |stream: &mut tokio::net::TcpStream| {
        patiently(stream.read(&mut [0; 1])).await.map_or(true, |read| read == 0)
    };
    assert!(ended(&mut surplus).await);
    for stream in &mut silent {
        assert!(ended(stream).await);
    }
    assert!(agent.look().disconnected.is_empty());
}
