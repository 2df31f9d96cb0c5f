//! The metrics recorder and its upkeep.
//!
//! Histograms hold raw samples until upkeep folds them, so a recorder without upkeep grows for ever; here the
//! HTTP task that serves `/metrics` does the upkeep as well. They are exported as summaries with the
//! quantiles that Calico's dashboards read (0.5, 0.9, 0.99).

use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Makes this the process's recorder. Once a process, before any metric handle is taken.
    pub fn install() -> anyhow::Result<Self> {
        let handle = builder()?.install_recorder().context("installing the metrics recorder")?;
        Ok(Metrics { handle })
    }

    /// A recorder that nothing reports to: for tests, and for tools without metrics.
    pub fn detached() -> anyhow::Result<Self> {
        Ok(Metrics { handle: builder()?.build_recorder().handle() })
    }

    /// The text that a scrape returns.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn builder() -> anyhow::Result<PrometheusBuilder> {
    PrometheusBuilder::new().set_quantiles(&[0.5, 0.9, 0.99]).context("setting quantiles")
}
