//! confd as a template tool: from typha's events to files, checks and reloads.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use confd::template::{Options, Templates};
use daemon::CancellationToken;
use syncer_common::model::Update;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use typha_client::{ClientEvent, CutId};

use support::lab::eventually;
use support::{node, pool};

const TEMPLATE: &str = "{% for node in gets('/nodes') %}{{ base(node.key) }} {{ node.value.bgp.ipv4Address }}\n{% endfor %}\
    me {{ getv('/nodes/n1').bgp.ipv4Address }} {{ getv('/nodes/nobody', 'none') }} {{ exists('/nodes/n9') }} {{ ls('/')|join(',') }}\n";

struct Folder(TempDir);

impl Folder {
    /// With one resource; `more` goes into its section.
    fn new(template: &str, more: &str) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for name in ["conf.d", "templates", "out"] {
            std::fs::create_dir(folder.path(name)).unwrap();
        }
        std::fs::write(folder.path("templates/nodes.tmpl"), template).unwrap();
        let text = format!(
            "[template]\nsrc = \"nodes.tmpl\"\ndest = \"{}\"\nprefix = \"/calico/resources/v3/projectcalico.org\"\n\
             keys = [\"/nodes\"]\n{}\n",
            folder.dest().display(),
            more.replace("OUT", &folder.path("out").display().to_string())
        );
        std::fs::write(folder.path("conf.d/nodes.toml"), text).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dest(&self) -> PathBuf {
        self.path("out/nodes")
    }

    fn options(&self) -> Options {
        Options {
            confdir: self.0.path().to_owned(),
            node: "n1".into(),
            prefix: String::new(),
            onetime: false,
            noop: false,
            sync_only: false,
            watch: true,
            interval: Duration::from_secs(600),
        }
    }

    async fn once(&self, change: impl FnOnce(&mut Options)) -> anyhow::Result<()> {
        let mut options = Options { onetime: true, ..self.options() };
        change(&mut options);
        let (events, inbox) = mpsc::channel(8);
        send(&events, vec![node("n1", "10.0.0.1/24", ""), node("n2", "10.0.0.2/24", "")], 1).await;
        Templates::new(options)?.run(inbox, watch::channel(None).0, CancellationToken::new()).await
    }
}

fn cut(seq: u64) -> CutId {
    CutId { epoch: "e".into(), seq }
}

async fn send(events: &mpsc::Sender<ClientEvent>, updates: Vec<Update>, seq: u64) {
    for event in [ClientEvent::Updates(updates), ClientEvent::InSync, ClientEvent::Cut(cut(seq))] {
        events.send(event).await.unwrap();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn a_file_is_made_once_from_what_is_there() {
    let folder = Folder::new(TEMPLATE, "mode = \"0600\"\nreload_cmd = \"echo reload >> OUT/log\"");
    folder.once(|_| {}).await.unwrap();
    let want = "n1 10.0.0.1/24\nn2 10.0.0.2/24\nme 10.0.0.1/24 none False nodes\n";
    assert_eq!(read(&folder.dest()), want);
    assert_eq!(std::fs::metadata(folder.dest()).unwrap().permissions().mode() & 0o777, 0o600);
    // Again: nothing to do, and nobody is told.
    folder.once(|_| {}).await.unwrap();
    assert_eq!(read(&folder.path("out/log")), "reload\n");
}

#[tokio::test]
async fn what_the_check_refuses_is_not_put_in_place_and_ends_with_an_error() {
    let folder = Folder::new(TEMPLATE, "check_cmd = \"! grep -q n2 {{.src}}\"");
    std::fs::write(folder.dest(), "old\n").unwrap();
    let error = folder.once(|_| {}).await.unwrap_err().to_string();
    assert!(error.contains("check_cmd refuses it"), "{error}");
    assert_eq!(read(&folder.dest()), "old\n");
    assert_eq!(std::fs::read_dir(folder.path("out")).unwrap().count(), 1, "nothing staged is left");
    folder.once(|options| options.sync_only = true).await.unwrap();
    assert!(read(&folder.dest()).contains("n2"), "no check with sync-only");
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_mistakes_are_named() {
    let folder = Folder::new(TEMPLATE, "");
    folder.once(|options| options.noop = true).await.unwrap();
    assert!(!folder.dest().exists());
    let folder = Folder::new("{{ getv('/nodes/nobody') }}", "");
    let error = folder.once(|_| {}).await.unwrap_err().to_string();
    assert!(error.contains("/nodes/nobody is not there") && !folder.dest().exists(), "{error}");
    let folder = Folder::new(TEMPLATE, "reload_comand = \"true\"");
    let error = format!("{:#}", folder.once(|_| {}).await.unwrap_err());
    assert!(error.contains("nodes.toml") && error.contains("reload_comand"), "{error}");
}

#[tokio::test]
async fn changes_are_followed_and_a_reload_that_failed_is_tried_again() {
    let folder = Folder::new(TEMPLATE, "reload_cmd = \"echo reload >> OUT/log; test -e OUT/works\"");
    let (events, inbox) = mpsc::channel(8);
    let (acks_out, mut acks) = watch::channel(None);
    let cancel = CancellationToken::new();
    let options = Options { interval: Duration::from_millis(100), ..folder.options() };
    let task = tokio::spawn(Templates::new(options).unwrap().run(inbox, acks_out, cancel.clone()));
    send(&events, vec![node("n1", "10.0.0.1/24", "")], 1).await;
    eventually("two attempts to reload", Duration::from_secs(30), async || {
        let log = read(&folder.path("out/log"));
        if log.lines().count() >= 2 { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(*acks.borrow(), None, "who reads the file has not been told");
    std::fs::write(folder.path("out/works"), "").unwrap();
    tokio::time::timeout(Duration::from_secs(30), acks.wait_for(|ack| *ack == Some(cut(1))))
        .await
        .unwrap()
        .unwrap();

    let told = read(&folder.path("out/log"));
    // What the keys do not name is no reason to do anything.
    events.send(ClientEvent::Updates(vec![pool("10.9.0.0/16")])).await.unwrap();
    events.send(ClientEvent::Cut(cut(2))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), acks.wait_for(|ack| *ack == Some(cut(2))))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read(&folder.path("out/log")), told);
    events.send(ClientEvent::Updates(vec![node("n3", "10.0.0.3/24", "")])).await.unwrap();
    events.send(ClientEvent::Cut(cut(3))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), acks.wait_for(|ack| *ack == Some(cut(3))))
        .await
        .unwrap()
        .unwrap();
    assert!(read(&folder.dest()).contains("n3 10.0.0.3/24"));
    cancel.cancel();
    task.await.unwrap().unwrap();
}
