//! What the configuration says of more than rendering, put into effect while the loop runs: the log level, the folder of
//! status files, where health and metrics are served, the iptables backend.

use super::Dataplane;
use crate::commands::{CommandError, Commands};
use crate::config;
use crate::iptables::render::Features;
use crate::iptables::tables::Tables;
use crate::iptables::{Backend, IpVersion, features};

impl Dataplane {
    /// What the configuration says of more than rendering takes effect.
    pub(super) async fn configure(&mut self) {
        let params = self.model.merged_params();
        let value = |wanted: &str| {
            params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
        };
        let level = value(config::LOG_LEVEL);
        if level != self.log_level.as_deref() {
            match daemon::logging::set(level.unwrap_or_default()) {
                Ok(()) => self.log_level = level.map(str::to_owned),
                Err(error) => {
                    self.history.refuse(format!("parameter {}={level:?}: {error:#}", config::LOG_LEVEL))
                }
            }
        }
        self.status.relocate(value(config::STATUS_PREFIX));
        match config::ports(&config::settings().with_datastore(&params)) {
            Ok(ports) => {
                if let Some(serving) = &self.ports {
                    serving.send_if_modified(|now| std::mem::replace(now, ports.clone()) != ports);
                }
            }
            Err(error) => self.history.refuse(error.to_string()),
        }
        let given = value(config::BACKEND).unwrap_or_default();
        let switched = match config::parse_backend(given).map(|given| given.unwrap_or(self.first_backend)) {
            Ok(backend) if backend == self.kernel.tables.backend() => Ok(()),
            Ok(backend) => self.switch_backend(backend).await.map_err(|error| format!("{error:#}")),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = switched {
            self.history.refuse(format!("parameter {}={given:?}: {reason}", config::BACKEND));
        }
    }

    /// Everything is rendered into the other backend, then ours goes from this one: traffic is policed throughout.
    async fn switch_backend(&mut self, backend: Backend) -> anyhow::Result<()> {
        let tables = Tables::open(&self.commands, backend, &self.versions).await?;
        let features = detect_features(&*self.commands, backend).await?;
        tracing::info!(backend = backend.name(), "changing the iptables backend");
        self.kernel.tables = tables;
        self.left_behind = true;
        self.model.render_everything(features);
        Ok(())
    }
}

pub(super) async fn detect_features(
    commands: &dyn Commands,
    backend: Backend,
) -> Result<Features, CommandError> {
    let restore = features::find_program(commands, IpVersion::V4, backend, "restore").await?;
    Ok(features::detect_features(commands, &restore).await)
}
