//! Specs of what runs beside the datapath: status reports and the controllers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalars::GoDuration;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusSpec {
    pub node: String,
    pub classes: Vec<String>,
    pub update_period_seconds: Option<u32>,
}

/// As far as its fields have a shape worth checking; nothing of it travels.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeControllersConfigurationSpec {
    pub log_severity_screen: String,
    pub health_checks: String,
    pub etcd_v3_compaction_period: Option<GoDuration>,
    pub prometheus_metrics_port: Option<u16>,
    pub controllers: BTreeMap<String, Controller>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Controller {
    pub reconciler_period: Option<GoDuration>,
    pub leak_grace_period: Option<GoDuration>,
}
