//! `certs`: a CA and certificates for a lab.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use transport::certs::Authority;

const SERVER: &str = "typha-server";
const CLIENT: &str = "typha-client";

#[derive(Args)]
pub struct Wanted {
    /// Folder to write to; one that has a CA already is left alone.
    #[arg(long)]
    pub out: PathBuf,
    /// How many nodes.
    #[arg(long, default_value_t = 1)]
    pub nodes: u32,
    /// Nodes are called this and a number from 1; with --node, names are given instead.
    #[arg(long, default_value = "node-")]
    pub node_prefix: String,
    /// A node's name; may be given several times.
    #[arg(long, conflicts_with_all = ["nodes", "node_prefix"])]
    pub node: Vec<String>,
    /// For how long they are valid.
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    pub valid: Duration,
    /// Trust domain in the URIs.
    #[arg(long, default_value = "bulrush.lab")]
    pub domain: String,
}

pub fn run(wanted: &Wanted) -> Result<String> {
    let Wanted { out, domain, .. } = wanted;
    if out.join("ca.key").exists() {
        bail!("{} has a CA already: choose another folder, or remove it", out.display());
    }
    let nodes = match wanted.node.as_slice() {
        [] => (1..=wanted.nodes).map(|n| format!("{}{n}", wanted.node_prefix)).collect(),
        given => given.to_vec(),
    };
    // They become names of folders, and parts of URIs.
    let bad = |node: &&String| matches!(node.as_str(), "" | "." | "..") || node.contains('/');
    if let Some(bad) = nodes.iter().find(bad) {
        bail!("{bad:?} is no name of a node");
    }
    let authority = Authority::new("bulrush lab CA", wanted.valid)?;
    authority.save(out)?;
    let server = authority.issue(out, "typha", SERVER, &format!("spiffe://{domain}/typha"))?;
    authority.issue(out, "operator", CLIENT, &format!("spiffe://{domain}/operator"))?;
    for node in &nodes {
        for agent in ["felix", "confd"] {
            let uri = format!("spiffe://{domain}/node/{node}/agent/{agent}");
            let file = format!("{node}/{agent}");
            authority.issue(out, &file, CLIENT, &uri).with_context(|| format!("node {node}"))?;
        }
    }
    let (ca, cert, key) = (server.ca.display(), server.cert.display(), server.key.display());
    let folder = out.display();
    Ok(format!(
        "Made a CA and certificates of typha, an operator and {} node(s) in {folder}

typha:       TYPHA_CAFILE={ca} TYPHA_SERVERCERTFILE={cert} TYPHA_SERVERKEYFILE={key}
             TYPHA_CLIENTCN={CLIENT} TYPHA_CLIENTNODEBINDING=require
felix:       FELIX_TYPHACAFILE={ca} FELIX_TYPHACERTFILE={folder}/NODE/felix.crt
             FELIX_TYPHAKEYFILE={folder}/NODE/felix.key FELIX_TYPHACN={SERVER}
confd:       CONFD_TYPHACAFILE={ca} CONFD_TYPHACERTFILE={folder}/NODE/confd.crt
             CONFD_TYPHAKEYFILE={folder}/NODE/confd.key CONFD_TYPHACN={SERVER}
bulrushctl:  BULRUSH_TYPHA_CA_FILE={ca} BULRUSH_TYPHA_CERT_FILE={folder}/operator.crt
             BULRUSH_TYPHA_KEY_FILE={folder}/operator.key BULRUSH_TYPHA_CN={SERVER}
",
        nodes.len()
    ))
}
