//! Which datastore: from `calicoctl.cfg` and the environment, which wins.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use syncer_common::backend::config::{EtcdConfig, Secret, StoreConfig};

pub const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";

pub const HELP: &str = "\
Settings, from the environment or the settings file (spec):
  DATASTORE_TYPE     datastoreType     etcdv3 (default) or directory
  ETCD_ENDPOINTS     etcdEndpoints     comma-separated URLs (default http://127.0.0.1:2379)
  ETCD_CA_CERT_FILE  etcdCACertFile    CA of the etcd servers
  ETCD_CERT_FILE     etcdCertFile      client certificate, with ETCD_KEY_FILE / etcdKeyFile
  ETCD_USERNAME      etcdUsername      with ETCD_PASSWORD / etcdPassword
  BULRUSH_DIRECTORY  directory         folder of manifests

Examples:
  bulrushctl apply -f policies/
  bulrushctl get ippool -o wide
  bulrushctl get networkpolicy -A
  DATASTORE_TYPE=directory BULRUSH_DIRECTORY=./store bulrushctl get node -o yaml";

/// Reads the settings. The environment comes as a function, so that tests never change it.
pub fn read(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<StoreConfig> {
    let spec = match std::fs::read_to_string(file) {
        Ok(text) => spec_of(&text).with_context(|| format!("settings file {}", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file == Path::new(DEFAULT_FILE) => {
            Value::Null
        }
        Err(error) => return Err(error).with_context(|| format!("settings file {}", file.display())),
    };
    let setting = |variable: &str, field: &str| -> Option<String> {
        env(variable)
            // calicoctl also takes the variables with this prefix.
            .or_else(|| env(&format!("CALICO_{variable}")))
            .or_else(|| spec.get(field).and_then(Value::as_str).map(Into::into))
            .filter(|value| !value.is_empty())
    };
    let kind = setting("DATASTORE_TYPE", "datastoreType").unwrap_or_else(|| "etcdv3".into());
    match kind.as_str() {
        "etcdv3" | "etcd" => {
            let endpoints =
                setting("ETCD_ENDPOINTS", "etcdEndpoints").unwrap_or_else(|| "http://127.0.0.1:2379".into());
            Ok(StoreConfig::Etcd(EtcdConfig {
                endpoints: endpoints
                    .split(',')
                    .map(|e| e.trim().to_owned())
                    .filter(|e| !e.is_empty())
                    .collect(),
                ca_file: setting("ETCD_CA_CERT_FILE", "etcdCACertFile").map(Into::into),
                cert_file: setting("ETCD_CERT_FILE", "etcdCertFile").map(Into::into),
                key_file: setting("ETCD_KEY_FILE", "etcdKeyFile").map(Into::into),
                username: setting("ETCD_USERNAME", "etcdUsername"),
                password: setting("ETCD_PASSWORD", "etcdPassword").map(Secret::new),
            }))
        }
        "directory" => match setting("BULRUSH_DIRECTORY", "directory") {
            Some(path) => Ok(StoreConfig::directory(path)),
            None => bail!(
                "DATASTORE_TYPE is directory, but BULRUSH_DIRECTORY (or `directory` in the file) is not set"
            ),
        },
        "kubernetes" => bail!("DATASTORE_TYPE kubernetes is not available yet: use etcdv3 or directory"),
        other => bail!("DATASTORE_TYPE {other:?} is not known: use etcdv3 or directory"),
    }
}

fn spec_of(text: &str) -> Result<Value> {
    let document: Value = serde_yaml_ng::from_str(text).context("not YAML")?;
    match document.get("kind").and_then(Value::as_str) {
        Some("CalicoAPIConfig" | "calicoApiConfig") => {
            Ok(document.get("spec").cloned().unwrap_or(Value::Null))
        }
        Some(other) => bail!("kind is {other}, expected CalicoAPIConfig"),
        None => bail!("kind is missing, expected CalicoAPIConfig"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    const NEW: &str = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: etcdv3\n  etcdEndpoints: http://a:2379, http://b:2379\n";

    #[test]
    fn the_settings_file_names_the_datastore() {
        let config = read(file(NEW).path(), &|_| None).unwrap();
        assert_eq!(config, StoreConfig::etcd(["http://a:2379", "http://b:2379"]));
        let old = NEW.replace("projectcalico.org/v3", "v1").replace("CalicoAPIConfig", "calicoApiConfig");
        assert_eq!(read(file(&old).path(), &|_| None).unwrap(), config);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let env = |name: &str| (name == "ETCD_ENDPOINTS").then(|| "http://c:1".to_owned());
        assert_eq!(read(file(NEW).path(), &env).unwrap(), StoreConfig::etcd(["http://c:1"]));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
        let error = read(Path::new("/nonexistent/file.cfg"), &|_| None).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/file.cfg"));
    }

    #[test]
    fn what_is_not_usable_says_what_to_set() {
        let kubernetes = |name: &str| (name == "DATASTORE_TYPE").then(|| "kubernetes".to_owned());
        assert!(read(file(NEW).path(), &kubernetes).unwrap_err().to_string().contains("not available yet"));
        let directory = |name: &str| (name == "DATASTORE_TYPE").then(|| "directory".to_owned());
        assert!(read(file(NEW).path(), &directory).unwrap_err().to_string().contains("BULRUSH_DIRECTORY"));
        let wrong = file("kind: Pod\n");
        assert!(format!("{:#}", read(wrong.path(), &|_| None).unwrap_err()).contains("CalicoAPIConfig"));
    }
}
