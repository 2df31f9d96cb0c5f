//! The replicas: found by a list of names, by DNS or by the EndpointSlices of their service, and all asked, ready
//! or not. A name with several addresses (a headless service) stands for all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use proto::admin::admin_client::AdminClient;
use proto::admin::{StatusReply, StatusRequest};
use syncer_common::backend::config::StoreConfig;
use syncer_common::backend::kubernetes::discovery;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use transport::ClientTls;

const DEFAULT: &str = "127.0.0.1:5473";
const ANSWER: Duration = Duration::from_secs(5);
/// Thousands of nodes with a few hundred bytes each.
const MESSAGE_BYTES: usize = 256 << 20;

/// How to reach the replicas.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// host:port of the typhas, with commas; a name stands for all its addresses. Without it: on Kubernetes the
    /// endpoints of their service, else 127.0.0.1:5473.
    #[arg(long, env = "BULRUSH_TYPHA", value_delimiter = ',')]
    pub typha: Vec<String>,
    /// The typhas' service, as namespace/name, on Kubernetes.
    #[arg(long, env = "BULRUSH_TYPHA_SERVICE", default_value = "kube-system/calico-typha")]
    pub typha_service: String,
    /// TLS: CA certificate of the typhas (PEM).
    #[arg(long, env = "BULRUSH_TYPHA_CA_FILE", default_value = "")]
    pub typha_ca: String,
    /// TLS: certificate of the operator (PEM).
    #[arg(long, env = "BULRUSH_TYPHA_CERT_FILE", default_value = "")]
    pub typha_cert: String,
    /// TLS: key of the certificate (PEM).
    #[arg(long, env = "BULRUSH_TYPHA_KEY_FILE", default_value = "")]
    pub typha_key: String,
    /// TLS: common name that the typhas' certificates have to have.
    #[arg(long, env = "BULRUSH_TYPHA_CN", default_value = "")]
    pub typha_cn: String,
    /// TLS: URI SAN that the typhas' certificates have to have; either suffices.
    #[arg(long, env = "BULRUSH_TYPHA_URI_SAN", default_value = "")]
    pub typha_uri_san: String,
}

/// What a replica said, or why it said nothing.
#[derive(Debug)]
pub struct Answer {
    pub address: String,
    pub reply: std::result::Result<StatusReply, String>,
}

impl Access {
    /// The addresses of all replicas.
    pub async fn find(&self, config: &StoreConfig) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        match config {
            StoreConfig::Kubernetes(kubernetes) if self.typha.is_empty() => {
                let Some((namespace, name)) = self.typha_service.split_once('/') else {
                    bail!("--typha-service {:?} is not of the form namespace/name", self.typha_service);
                };
                let endpoints =
                    discovery::endpoints(kubernetes, namespace, name, discovery::PORT_NAME).await?;
                found.extend(endpoints.into_iter().map(|endpoint| endpoint.address));
                if found.is_empty() {
                    bail!("service {} has no endpoints; name the typhas with --typha", self.typha_service);
                }
            }
            _ => {
                let default = [DEFAULT.to_owned()];
                let names = if self.typha.is_empty() { &default[..] } else { &self.typha };
                for name in names {
                    let addresses = tokio::net::lookup_host(name)
                        .await
                        .with_context(|| format!("looking up typha {name:?} (host:port)"))?;
                    found.extend(addresses.map(|address| address.to_string()));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    fn tls(&self) -> Result<Option<ClientTls>> {
        let names = ["--typha-ca", "--typha-cert", "--typha-key", "--typha-cn", "--typha-uri-san"];
        let values = [&self.typha_ca, &self.typha_cert, &self.typha_key, &self.typha_cn, &self.typha_uri_san];
        ClientTls::from_settings(names, values.map(Clone::clone)).map_err(|error| anyhow!(error))
    }

    /// Asks all of them at the same time.
    pub async fn ask(&self, addresses: &[String]) -> Result<Vec<Answer>> {
        let tls = self.tls()?;
        let mut tasks = JoinSet::new();
        for address in addresses {
            let (address, tls) = (address.clone(), tls.clone());
            tasks.spawn(async move {
                let reply = tokio::time::timeout(ANSWER, status(&address, tls.as_ref())).await;
                let reply = reply.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())));
                Answer { address, reply }
            });
        }
        let mut answers = tasks.join_all().await;
        answers.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(answers)
    }
}

async fn status(address: &str, tls: Option<&ClientTls>) -> std::result::Result<StatusReply, String> {
    let settings = |endpoint: Endpoint| endpoint.connect_timeout(ANSWER);
    let channel = transport::channel(address, tls, settings).await.map_err(|error| causes(&*error))?;
    let mut client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let reply = client.status(StatusRequest { clients: true }).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

/// An error with its causes: the outermost alone says "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
