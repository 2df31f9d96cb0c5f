//! The life of a daemon: settings, logging, metrics, health, shutdown, supervised tasks.
//!
//! A `main` reads, in this order:
//!
//! ```text
//! Settings (flag > environment > file > datastore)  ->  logging::init  ->  Metrics::install  ->  Health::new
//!    ->  Http::bind (/metrics, /liveness, /readiness)  ->  Signals::install  ->  Tasks: spawn…, run
//! ```
//!
//! Nothing here knows typha, felix or confd. Everything that can fail at start-up fails with a sentence that
//! names the setting and says what to check.

pub mod backoff;
pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod reload;
pub mod settings;
pub mod shutdown;
pub mod tasks;

pub use backoff::Backoff;
pub use health::{Health, Reporter};
pub use http::{Endpoint, Http, Ports};
pub use metrics::Metrics;
pub use reload::Reload;
pub use settings::{Settings, Spec, spec};
pub use shutdown::Signals;
pub use tasks::Tasks;
pub use tokio_util::sync::CancellationToken;
