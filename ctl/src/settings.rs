//! Which datastore: from the command line, the environment and `calicoctl.cfg`, in this order.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use syncer_common::backend::config::{EtcdConfig, KubernetesConfig, Secret, StoreConfig};
use syncer_common::kubernetes::ApiGroup;

pub const DEFAULT_FILE: &str = "/etc/calico/calicoctl.cfg";
const DEFAULT_ETCD: &str = "http://127.0.0.1:2379";

pub const HELP: &str = "\
Settings, from the environment or the settings file (spec):
  DATASTORE_TYPE      datastoreType      etcdv3, kubernetes or directory; without it: etcdv3 if etcd endpoints are
                                         given, kubernetes if there is a kubeconfig or a service account,
                                         else etcdv3 on this machine
  ETCD_ENDPOINTS      etcdEndpoints      comma-separated URLs (default http://127.0.0.1:2379)
  ETCD_CA_CERT_FILE   etcdCACertFile     CA of the etcd servers
  ETCD_CERT_FILE      etcdCertFile       client certificate, with ETCD_KEY_FILE / etcdKeyFile
  ETCD_USERNAME       etcdUsername       with ETCD_PASSWORD / etcdPassword
  KUBECONFIG          kubeconfig         (or --kubeconfig) file with server, CA and credentials of the API server;
                                         without it ~/.kube/config, or the service account of this pod
  K8S_CURRENT_CONTEXT k8sCurrentContext  (or --context) context of the kubeconfig
  CALICO_API_GROUP    calicoAPIGroup     crd.projectcalico.org/v1 or projectcalico.org/v3; without it, what is served
  USE_POD_CIDR        usePodCIDR         true: blocks are the pod CIDRs of the nodes
  BULRUSH_DIRECTORY   directory          folder of manifests

Exit status:
  0  all was done
  1  something was not done, or something is wrong; what, and on which object, is on standard error
  2  wrong usage
  3  a typha could not be asked (status, wait)

Examples:
  bulrushctl apply -f policies/
  bulrushctl get ippool -o wide
  bulrushctl get networkpolicy -A
  bulrushctl --kubeconfig ~/.kube/config --context prod get node
  DATASTORE_TYPE=directory BULRUSH_DIRECTORY=./store bulrushctl get node -o yaml";

/// What the command line says about the datastore.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

/// Members of the file whose content is not read from there, and where it goes instead.
const ELSEWHERE: [(&str, &str); 11] = [
    ("etcdKey", "write it to a file and name that as etcdKeyFile"),
    ("etcdCert", "write it to a file and name that as etcdCertFile"),
    ("etcdCACert", "write it to a file and name that as etcdCACertFile"),
    ("etcdDiscoverySrv", "give the members as etcdEndpoints"),
    ("kubeconfigInline", "write it to a file and name that as kubeconfig"),
    ("k8sAPIEndpoint", "put it into a kubeconfig"),
    ("k8sKeyFile", "put it into a kubeconfig"),
    ("k8sCertFile", "put it into a kubeconfig"),
    ("k8sCAFile", "put it into a kubeconfig"),
    ("k8sAPIToken", "put it into a kubeconfig"),
    ("k8sInsecureSkipTLSVerify", "put the CA of the API server into a kubeconfig"),
];

struct Settings<'a> {
    spec: Value,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl Settings<'_> {
    fn get(&self, variable: &str, field: &str) -> Option<String> {
        (self.env)(variable)
            // calicoctl also takes the variables with this prefix.
            .or_else(|| (self.env)(&format!("CALICO_{variable}")))
            .or_else(|| match self.spec.get(field)? {
                Value::String(text) => Some(text.clone()),
                Value::Bool(truth) => Some(truth.to_string()),
                _ => None,
            })
            .filter(|value| !value.is_empty())
    }

    /// The datastore that is meant when none is named.
    fn default_type(&self, given: &Given) -> &'static str {
        let some = |variable, field| self.get(variable, field).is_some();
        let kubeconfig =
            given.kubeconfig.is_some() || given.context.is_some() || some("KUBECONFIG", "kubeconfig");
        if kubeconfig {
            "kubernetes"
        } else if some("ETCD_ENDPOINTS", "etcdEndpoints") {
            "etcdv3"
        } else if some("BULRUSH_DIRECTORY", "directory") {
            "directory"
        } else if self.home_kubeconfig().is_some() || some("KUBERNETES_SERVICE_HOST", "") {
            "kubernetes"
        } else {
            "etcdv3"
        }
    }

    fn home_kubeconfig(&self) -> Option<PathBuf> {
        let file = Path::new(&(self.env)("HOME")?).join(".kube/config");
        file.is_file().then_some(file)
    }

    fn etcd(&self) -> EtcdConfig {
        let endpoints = self.get("ETCD_ENDPOINTS", "etcdEndpoints").unwrap_or_else(|| DEFAULT_ETCD.into());
        let file = |variable, field| self.get(variable, field).map(PathBuf::from);
        EtcdConfig {
            endpoints: endpoints.split(',').map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect(),
            ca_file: file("ETCD_CA_CERT_FILE", "etcdCACertFile"),
            cert_file: file("ETCD_CERT_FILE", "etcdCertFile"),
            key_file: file("ETCD_KEY_FILE", "etcdKeyFile"),
            username: self.get("ETCD_USERNAME", "etcdUsername"),
            password: self.get("ETCD_PASSWORD", "etcdPassword").map(Secret::new),
        }
    }

    fn kubernetes(&self, given: &Given) -> Result<KubernetesConfig> {
        let kubeconfig = match (&given.kubeconfig, self.get("KUBECONFIG", "kubeconfig")) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(files)) if files.contains(':') => {
                bail!("KUBECONFIG names several files ({files}), but one is read: name it with --kubeconfig")
            }
            (None, Some(file)) => Some(file.into()),
            (None, None) => self.home_kubeconfig(),
        };
        let group = match self.get("CALICO_API_GROUP", "calicoAPIGroup").as_deref() {
            None => None,
            Some("crd.projectcalico.org/v1") => Some(ApiGroup::V1),
            Some("projectcalico.org/v3") => Some(ApiGroup::V3),
            Some(other) => bail!(
                "CALICO_API_GROUP {other:?} is not known: use crd.projectcalico.org/v1 or projectcalico.org/v3"
            ),
        };
        let use_pod_cidr = match self.get("USE_POD_CIDR", "usePodCIDR").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => bail!("USE_POD_CIDR {other:?} is not known: use true or false"),
        };
        let context = given.context.clone().or_else(|| self.get("K8S_CURRENT_CONTEXT", "k8sCurrentContext"));
        let interface_prefix = self.get("FELIX_INTERFACEPREFIX", "interfacePrefix");
        Ok(KubernetesConfig { kubeconfig, context, group, use_pod_cidr, interface_prefix })
    }
}

/// Reads the settings. The environment comes as a function, so that tests never change it.
pub fn read(file: &Path, given: &Given, env: &dyn Fn(&str) -> Option<String>) -> Result<StoreConfig> {
    let spec = match std::fs::read_to_string(file) {
        Ok(text) => spec_of(&text).with_context(|| format!("settings file {}", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file == Path::new(DEFAULT_FILE) => {
            Value::Null
        }
        Err(error) => return Err(error).with_context(|| format!("settings file {}", file.display())),
    };
    let settings = Settings { spec, env };
    let kind = settings
        .get("DATASTORE_TYPE", "datastoreType")
        .unwrap_or_else(|| settings.default_type(given).into());
    match kind.as_str() {
        "etcdv3" | "etcd" => Ok(StoreConfig::Etcd(settings.etcd())),
        "kubernetes" => Ok(StoreConfig::Kubernetes(settings.kubernetes(given)?)),
        "directory" => match settings.get("BULRUSH_DIRECTORY", "directory") {
            Some(path) => Ok(StoreConfig::directory(path)),
            None => bail!(
                "DATASTORE_TYPE is directory, but BULRUSH_DIRECTORY (or `directory` in the file) is not set"
            ),
        },
        "etcdv2" => bail!(
            "DATASTORE_TYPE etcdv2 is not read: copy the data to etcd v3 with the upgrade tool of Calico 3 first"
        ),
        other => bail!("DATASTORE_TYPE {other:?} is not known: use etcdv3, kubernetes or directory"),
    }
}

fn spec_of(text: &str) -> Result<Value> {
    let document: Value = serde_yaml_ng::from_str(text).context("not YAML")?;
    let spec = match document.get("kind").and_then(Value::as_str) {
        Some("CalicoAPIConfig" | "calicoApiConfig") => document.get("spec").cloned().unwrap_or(Value::Null),
        Some(other) => bail!("kind is {other}, expected CalicoAPIConfig"),
        None => bail!("kind is missing, expected CalicoAPIConfig"),
    };
    for (field, remedy) in ELSEWHERE {
        let given = spec.get(field).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
        if given && spec[field] != "" {
            bail!("spec.{field}: is not read from here: {remedy}");
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn read(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<StoreConfig> {
        super::read(file, &Given::default(), env)
    }

    /// An environment of these variables only.
    fn env(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let variables: Vec<_> = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        move |name| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    const NEW: &str = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: etcdv3\n  etcdEndpoints: http://a:2379, http://b:2379\n";
    const KUBERNETES: &str = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  datastoreType: kubernetes\n  kubeconfig: /root/kube.conf\n  usePodCIDR: true\n";

    #[test]
    fn the_settings_file_names_the_datastore() {
        let config = read(file(NEW).path(), &|_| None).unwrap();
        assert_eq!(config, StoreConfig::etcd(["http://a:2379", "http://b:2379"]));
        let old = NEW.replace("projectcalico.org/v3", "v1").replace("CalicoAPIConfig", "calicoApiConfig");
        assert_eq!(read(file(&old).path(), &|_| None).unwrap(), config);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = read(file(NEW).path(), &env(&[("ETCD_ENDPOINTS", "http://c:1")])).unwrap();
        assert_eq!(config, StoreConfig::etcd(["http://c:1"]));
    }

    #[test]
    fn kubernetes_is_reached_by_what_the_command_line_says_first() {
        let from_file = KubernetesConfig {
            kubeconfig: Some("/root/kube.conf".into()),
            use_pod_cidr: true,
            ..KubernetesConfig::default()
        };
        let new = file(KUBERNETES);
        assert_eq!(read(new.path(), &|_| None).unwrap(), StoreConfig::Kubernetes(from_file.clone()));
        let old = file(&KUBERNETES.replace("projectcalico.org/v3", "v1").replace("CalicoAPI", "calicoApi"));
        assert_eq!(read(old.path(), &|_| None).unwrap(), StoreConfig::Kubernetes(from_file.clone()));
        let given = Given { kubeconfig: Some("mine".into()), context: Some("prod".into()) };
        let variables = env(&[
            ("KUBECONFIG", "theirs"),
            ("K8S_CURRENT_CONTEXT", "test"),
            ("CALICO_API_GROUP", "projectcalico.org/v3"),
        ]);
        let expected = KubernetesConfig {
            kubeconfig: given.kubeconfig.clone(),
            context: given.context.clone(),
            group: Some(ApiGroup::V3),
            ..from_file
        };
        assert_eq!(super::read(new.path(), &given, &variables).unwrap(), StoreConfig::Kubernetes(expected));
    }

    #[test]
    fn without_a_type_the_datastore_is_the_one_that_is_described() {
        let kind = |variables: &[(&str, &str)], given: Given| {
            let empty = file("kind: CalicoAPIConfig\nspec: {}\n");
            match super::read(empty.path(), &given, &env(variables)).unwrap() {
                StoreConfig::Etcd(etcd) => etcd.endpoints.join(","),
                StoreConfig::Directory { .. } => "directory".into(),
                StoreConfig::Kubernetes(_) => "kubernetes".into(),
            }
        };
        let home = tempfile::tempdir().unwrap();
        let home_path = home.path().to_str().unwrap();
        assert_eq!(kind(&[("HOME", home_path)], Given::default()), DEFAULT_ETCD);
        assert_eq!(kind(&[("ETCD_ENDPOINTS", "http://e:1")], Given::default()), "http://e:1");
        assert_eq!(kind(&[("BULRUSH_DIRECTORY", "d")], Given::default()), "directory");
        assert_eq!(kind(&[("KUBECONFIG", "k")], Given::default()), "kubernetes");
        assert_eq!(kind(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")], Given::default()), "kubernetes");
        let context = Given { context: Some("prod".into()), ..Given::default() };
        assert_eq!(kind(&[("ETCD_ENDPOINTS", "http://e:1")], context), "kubernetes");
        std::fs::create_dir(home.path().join(".kube")).unwrap();
        std::fs::write(home.path().join(".kube/config"), "").unwrap();
        assert_eq!(kind(&[("HOME", home_path)], Given::default()), "kubernetes");
        assert_eq!(
            kind(&[("HOME", home_path), ("ETCD_ENDPOINTS", "http://e:1")], Given::default()),
            "http://e:1"
        );
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
        let error = read(Path::new("/nonexistent/file.cfg"), &|_| None).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/file.cfg"));
    }

    #[test]
    fn what_is_not_usable_says_what_to_set() {
        let error = |text: &str, variables: &[(&str, &str)]| {
            format!("{:#}", read(file(text).path(), &env(variables)).unwrap_err())
        };
        for (text, variables, part) in [
            (NEW, [("DATASTORE_TYPE", "directory")].as_slice(), "BULRUSH_DIRECTORY"),
            (NEW, &[("DATASTORE_TYPE", "consul")], "use etcdv3, kubernetes or directory"),
            (NEW, &[("DATASTORE_TYPE", "etcdv2")], "etcd v3"),
            (KUBERNETES, &[("KUBECONFIG", "a:b")], "--kubeconfig"),
            (KUBERNETES, &[("CALICO_API_GROUP", "v4")], "projectcalico.org/v3"),
            (KUBERNETES, &[("USE_POD_CIDR", "perhaps")], "true or false"),
            ("kind: Pod\n", &[], "CalicoAPIConfig"),
            (
                "kind: CalicoAPIConfig\nspec: {k8sAPIToken: hunter2}\n",
                &[],
                "spec.k8sAPIToken: is not read from here",
            ),
        ] {
            let error = error(text, variables);
            assert!(error.contains(part), "{part} is missing: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
