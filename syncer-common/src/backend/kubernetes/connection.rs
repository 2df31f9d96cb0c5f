//! How the API server is reached: credentials, and the HTTP stack under kube's client.
//!
//! The stack is our own because kube's speaks HTTP/1.1, where every watch costs a connection and a peer that
//! has gone silent is not noticed. Here all watches and reads share one HTTP/2 connection over TLS, and its
//! pings end it within ten seconds of silence. Settings, credentials (service-account tokens are read again
//! every minute, a CA file too) and certificates stay kube's business.

use std::path::Path;
use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::ConfigExt;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::{BoxError, ServiceBuilder};

use crate::backend::config::KubernetesConfig;
use crate::backend::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A ping, and how long its answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// Without HTTP/2 (plain text): probes of the kernel.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
/// What the server may send ahead on one stream, and on all together. A watch that is not read must never
/// hold up the others: the second is larger than the first times the number of kinds.
const WINDOW: (u32, u32) = (1 << 20, 64 << 20);

/// Reads the settings; fails for those that can never work.
pub(super) async fn load(config: &KubernetesConfig) -> Result<Config> {
    let loaded = match &config.kubeconfig {
        Some(path) => from_file(path, config.context.as_deref()).await?,
        None if config.context.is_some() => {
            return Err(Error::Invalid {
                what: "kubernetes context".into(),
                reason: "needs a kubeconfig file, which has the contexts".into(),
            });
        }
        None => Config::incluster().map_err(|error| Error::Invalid {
            what: "kubernetes service account".into(),
            reason: format!("{}; outside a pod, name a kubeconfig file", causes(&error)),
        })?,
    };
    if loaded.proxy_url.is_some() {
        return Err(Error::Invalid {
            what: "kubeconfig proxy-url".into(),
            reason: "proxies are not supported: remove it".into(),
        });
    }
    Ok(loaded)
}

async fn from_file(path: &Path, context: Option<&str>) -> Result<Config> {
    let invalid = |reason: String| Error::Invalid { what: format!("kubeconfig {}", path.display()), reason };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| {
        invalid(match error {
            KubeconfigError::ReadConfig(error, _) => error.to_string(),
            // The parser's own words quote the file, which holds credentials.
            KubeconfigError::Parse(_) => {
                "is not a kubeconfig in YAML: `kubectl config view` says where".into()
            }
            other => causes(&other),
        })
    })?;
    let wanted = context.or(kubeconfig.current_context.as_deref()).unwrap_or_default();
    if !kubeconfig.contexts.iter().any(|known| known.name == wanted) {
        let known: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(invalid(match wanted {
            "" => format!("has no current context: name one (it has: {known})"),
            wanted => format!("has no context {wanted:?} (it has: {known})"),
        }));
    }
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| invalid(causes(&error)))
}

/// A client; it connects when it is used. Reads certificates and tokens, and runs credential plugins, which
/// block: therefore on a thread of its own.
pub(super) async fn connect(config: &KubernetesConfig) -> Result<Client> {
    let loaded = load(config).await?;
    let built = tokio::task::spawn_blocking(move || build(&loaded)).await;
    let what = || "kubernetes client".to_owned();
    match built {
        Ok(Ok(client)) => Ok(client),
        // A plugin or a token file may work later.
        Ok(Err(error @ kube::Error::Auth(_))) => {
            Err(Error::Unavailable { what: what(), reason: causes(&error) })
        }
        Ok(Err(error)) => Err(Error::Invalid { what: what(), reason: causes(&error) }),
        Err(error) => Err(Error::Unavailable { what: what(), reason: error.to_string() }),
    }
}

fn build(config: &Config) -> kube::Result<Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE.0));
    http.set_keepalive_interval(Some(KEEPALIVE.1));
    http.set_keepalive_retries(Some(KEEPALIVE.2));

    let https = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    let https = match config.tls_server_name.clone().map(TryInto::try_into) {
        Some(Ok(name)) => https.with_server_name_resolver(FixedServerNameResolver::new(name)),
        Some(Err(error)) => return Err(kube::Error::Service(Box::new(error))),
        None => https,
    };
    let https = https.enable_all_versions().wrap_connector(http);
    let client = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(WINDOW.0)
        .http2_initial_connection_window_size(WINDOW.1)
        .build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// An error with its causes: the refused connection is named only by the last one.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
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
