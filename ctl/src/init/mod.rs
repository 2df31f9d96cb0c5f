//! `node init`: makes this host a node of the cluster, with nothing but the datastore.
//!
//! Felix and confd hold no credentials of the datastore; what a node writes there about itself is written here, before
//! they start and, with `--watch`, as long as they run.

mod allocate;
mod detect;
mod mtu;
mod node;
mod options;
mod pools;
mod ready;
mod tunnels;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use syncer_common::apis::{ApiKind, Resource};
use syncer_common::backend::config::{StoreConfig, open};
use syncer_common::backend::{Datastore, Error};
use syncer_common::processors::Processors;

pub use options::Options;

use crate::write::{RACES, Verb, lost_race};
use crate::{files, get, info, write};

/// Between attempts to reach the datastore, and after a round of `--watch` that failed.
const AGAIN: Duration = Duration::from_secs(5);

pub async fn run(config: &StoreConfig, options: &Options) -> Result<()> {
    let name = name(options)?;
    let store = reach(config, options.wait_for_datastore).await?;
    let host = Host { store: store.as_ref(), kubernetes: matches!(config, StoreConfig::Kubernetes(_)), name };
    host.init(options).await?;
    if !options.watch.watch {
        return Ok(());
    }
    let mut ready = None;
    loop {
        let pause = match host.again(options, &mut ready).await {
            // Felix and BIRD become ready soon after the start: that is not waited for a minute.
            Ok(()) if ready == Some(true) || !host.kubernetes => options.watch.interval,
            Ok(()) => AGAIN.min(options.watch.interval),
            Err(error) => {
                eprintln!("{error:#}; again in {} s", AGAIN.as_secs());
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn reach(config: &StoreConfig, wait: bool) -> Result<std::sync::Arc<dyn Datastore>> {
    let mut told = false;
    loop {
        let reached = async {
            let store = open(config).await?;
            store.get("/calico/resources/v3/projectcalico.org/clusterinformations/default").await?;
            Ok::<_, Error>(store)
        };
        match reached.await {
            Ok(store) => return Ok(store),
            Err(error @ Error::Unavailable { .. }) if wait => {
                if !told {
                    eprintln!("waiting for the datastore: {error}");
                }
                told = true;
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => {
                let remedy = format!("{}; `bulrushctl datastore info` tells more", info::place(config));
                return Err(anyhow::Error::from(error).context(remedy));
            }
        }
    }
}

/// The node's name, by what Calico's node looks at, in its order.
fn name(options: &Options) -> Result<String> {
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let file = fs::read_to_string(options.state.join("nodename")).ok();
    let variable = std::env::var("HOSTNAME").ok();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    options
        .name
        .as_deref()
        .and_then(given)
        .or_else(|| given(&file?))
        .or_else(|| given(&variable?.to_lowercase()))
        .or_else(|| given(&host?.to_lowercase()))
        .context("this host has no name: set NODENAME")
}

fn say(what: &str) {
    println!("{what}");
}

struct Host<'a> {
    store: &'a dyn Datastore,
    kubernetes: bool,
    name: String,
}

impl Host<'_> {
    async fn init(&self, options: &Options) -> Result<()> {
        let interfaces = detect::interfaces()?;
        self.addresses(options, &interfaces).await?;
        let existing = self.list("ippool").await?;
        for pool in pools::missing(&options.pools, &existing, &interfaces)? {
            let cidr = pool.spec["cidr"].as_str().unwrap_or_default().to_owned();
            let name = pool.metadata.name.clone();
            if self.create(pool).await.context("the CALICO_IPV…POOL_… variables make this pool")? {
                say(&format!("IPPool({name}): {cidr}"));
            }
        }
        self.defaults().await?;
        self.tunnels().await?;
        self.files(options).await?;
        say(&format!("Node({}) is ready for felix and confd", self.name));
        Ok(())
    }

    /// A round of `--watch`.
    async fn again(&self, options: &Options, ready: &mut Option<bool>) -> Result<()> {
        let detects = |wanted: &Option<String>| wanted.as_deref() == Some("autodetect");
        if detects(&options.ip) || detects(&options.ip6) {
            self.addresses(options, &detect::interfaces()?).await?;
        }
        self.tunnels().await?;
        self.files(options).await?;
        if self.kubernetes {
            let now = ready::node(&options.watch).await;
            // Only once it is up for the first time: what is programmed stays when an agent restarts.
            if now.is_ok() && *ready != Some(true) {
                self.store.set_network_available(&self.name).await?;
                say(&format!("Node({}): the network is available", self.name));
                *ready = Some(true);
            }
            if let (Err(reason), None) = (now, *ready) {
                say(&format!("waiting until the network is up: {reason}"));
                *ready = Some(false);
            }
        }
        Ok(())
    }

    async fn list(&self, kind: &str) -> Result<Vec<Resource>> {
        let found = get::list_stored(self.store, get::kind(kind)?).await?;
        Ok(found.into_iter().map(|(_, resource)| resource).collect())
    }

    async fn addresses(&self, options: &Options, interfaces: &[detect::Interface]) -> Result<()> {
        let notes = self
            .change(async |node| {
                let decided = node::decide(node, options, interfaces)?;
                if !decided.changed.is_empty() && !options.disable_node_ip_check {
                    node::taken(node, &self.list("node").await?)?;
                }
                let addresses = decided
                    .changed
                    .iter()
                    .map(|(family, net)| format!("IPv{} address {net}", family.number()));
                Ok(addresses.chain(decided.notes).collect())
            })
            .await?;
        self.say_all(&notes);
        Ok(())
    }

    async fn tunnels(&self) -> Result<()> {
        let notes = self.change(async |node| tunnels::settle(self.store, node).await).await?;
        self.say_all(&notes);
        Ok(())
    }

    fn say_all(&self, notes: &[String]) {
        for note in notes {
            say(&format!("Node({}): {note}", self.name));
        }
    }

    /// Changes the Node, again if somebody else was faster; makes it if there is none.
    async fn change(
        &self,
        change: impl AsyncFn(&mut Resource) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let kind = get::kind("node")?;
        for _ in 0..RACES {
            let stored = get::find_stored(self.store, kind, &self.name, "").await?;
            if stored.is_none() && self.kubernetes {
                bail!(
                    "Node({}) does not exist: NODENAME has to be its name in `kubectl get nodes`",
                    self.name
                );
            }
            let (kv, old) = match stored {
                Some((kv, old)) => (Some(kv), old),
                None => (None, new(kind, &self.name)),
            };
            let mut node = old.clone();
            let notes = change(&mut node).await?;
            if kv.is_some() && node == old {
                return Ok(notes);
            }
            valid(&node)?;
            let value = Bytes::from(node.to_stored());
            let written = match &kv {
                Some(kv) => self.store.replace(&kv.key, value, kv.mod_revision).await,
                None => self.store.create(&node.key_path()?, value).await,
            };
            if !lost_race(&written) {
                written?;
                return Ok(notes);
            }
        }
        bail!("Node({}) changes faster than it can be written: try again", self.name)
    }

    /// Whether it was not there.
    async fn create(&self, resource: Resource) -> Result<bool> {
        valid(&resource)?;
        if self.store.get(&resource.key_path()?).await?.is_some() {
            return Ok(false);
        }
        write::handle(self.store, Verb::Create { skip_exists: true }, vec![resource]).await?;
        Ok(true)
    }

    /// What every cluster has one of.
    async fn defaults(&self) -> Result<()> {
        let guid = uuid::Uuid::new_v4().simple().to_string();
        let mut all = vec![
            (
                "ClusterInformation",
                "default".to_owned(),
                json!({"clusterGUID": guid, "datastoreReady": true}),
            ),
            (
                "FelixConfiguration",
                "default".to_owned(),
                json!({"logSeverityScreen": "Info", "reportingInterval": "0s"}),
            ),
            ("BGPConfiguration", "default".to_owned(), json!({})),
        ];
        if !self.kubernetes {
            let own = json!({"defaultEndpointToHostAction": "Return"});
            all.push(("FelixConfiguration", format!("node.{}", self.name), own));
        }
        for (kind, name, spec) in all {
            let mut resource = Resource::named(get::kind(kind)?, "", &name);
            resource.spec = spec;
            if self.create(resource).await? {
                say(&format!("{kind}({name}): made"));
            }
        }
        Ok(())
    }

    /// What CNI plugins read.
    async fn files(&self, options: &Options) -> Result<()> {
        let felix = get::find(self.store, get::kind("felixconfiguration")?, "default", "").await?;
        let configuration = felix.map_or(Value::Null, |found| found.spec);
        let mtu = mtu::of_pods(Path::new("/sys"), &self.list("ippool").await?, &configuration);
        for (file, text) in [("nodename", self.name.clone()), ("mtu", mtu.to_string())] {
            let path = options.state.join(file);
            if fs::read_to_string(&path).is_ok_and(|now| now == text) {
                continue;
            }
            let write = || {
                fs::create_dir_all(&options.state)?;
                // Renamed into place: a plugin never reads half of it.
                let half = options.state.join(format!(".{file}.new"));
                fs::write(&half, &text)?;
                fs::rename(&half, &path)
            };
            write().with_context(|| format!("{}: cannot be written", path.display()))?;
            say(&format!("{}: {text}", path.display()));
        }
        Ok(())
    }
}

fn new(kind: &ApiKind, name: &str) -> Resource {
    let mut node = Resource::named(kind, "", name);
    node.metadata.uid = uuid::Uuid::new_v4().to_string();
    node.metadata.creation_timestamp =
        humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    node.spec = json!({});
    node
}

fn valid(resource: &Resource) -> Result<()> {
    let errors = files::check(resource, &mut Processors::new());
    if let Some(error) = errors.first() {
        bail!("{}: {error}", resource.id());
    }
    Ok(())
}
