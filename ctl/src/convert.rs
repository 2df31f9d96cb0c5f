//! `convert`: manifests in older forms as today's resources.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use syncer_common::apis::Resource;
use syncer_common::manifests::to_yaml;
use syncer_common::processors::Processors;

use crate::Report;
use crate::files;
use crate::old::Forms;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Yaml,
    Json,
}

pub fn run(paths: &[PathBuf], namespace: &str, output: Output, ignore_validation: bool) -> Result<Report> {
    let files::Loaded { found, mut mistakes, warnings } = files::load(paths, namespace, Forms::All)?;
    if found.is_empty() && mistakes.is_empty() {
        bail!("No resources specified");
    }
    let unreadable = !mistakes.is_empty();
    if !ignore_validation {
        let mut processors = Processors::new();
        for found in &found {
            let wrong = files::check(&found.resource, &mut processors);
            mistakes.extend(wrong.iter().map(|error| found.mistake(error)));
        }
    }
    if !mistakes.is_empty() {
        let hint = match unreadable {
            true => "Nothing was converted.",
            false => "Nothing was printed: --ignore-validation prints the result nevertheless.",
        };
        bail!("{} mistake(s):\n  {}\n{hint}", mistakes.len(), mistakes.join("\n  "));
    }
    let resources: Vec<Resource> = found.into_iter().map(|found| portable(found.resource)).collect();
    let text = match output {
        Output::Yaml => resources.iter().map(to_yaml).collect::<Vec<_>>().join("---\n"),
        Output::Json => {
            let value = match resources.as_slice() {
                [one] => serde_json::to_value(one)?,
                many => serde_json::to_value(many)?,
            };
            serde_json::to_string_pretty(&value)? + "\n"
        }
    };
    Ok(Report { text, warnings, complete: true, exit: None })
}

/// Without what ties it to the datastore that it came from.
fn portable(mut resource: Resource) -> Resource {
    resource.metadata.resource_version.clear();
    resource.metadata.uid.clear();
    resource.metadata.creation_timestamp.clear();
    for field in ["generation", "managedFields", "ownerReferences", "selfLink"] {
        resource.metadata.other.remove(field);
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(text: &str) -> Result<Report> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("old.yaml");
        std::fs::write(&file, text).unwrap();
        run(&[file], "default", Output::Yaml, false)
    }

    #[test]
    fn resources_of_calico_2_get_todays_names_and_warnings() {
        let old = "- apiVersion: v1\n  kind: ipPool\n  metadata: {cidr: 10.1.0.0/16}\n  spec: {nat-outgoing: true}\n\
                   - apiVersion: v1\n  kind: profile\n  metadata: {name: web, tags: [front], labels: {a: b}}\n  spec: {}\n";
        let report = convert(old).unwrap();
        for part in [
            "kind: IPPool",
            "cidr: 10.1.0.0/16",
            "natOutgoing: true",
            "---\n",
            "kind: Profile",
            "labelsToApply:",
        ] {
            assert!(report.text.contains(part), "{part} is missing: {}", report.text);
        }
        assert!(!report.text.contains("apiVersion: v1\n"), "{}", report.text);
        assert!(report.warnings.iter().any(|warning| warning.contains("tags")), "{:?}", report.warnings);
    }

    #[test]
    fn custom_resources_of_kubernetes_are_unwrapped() {
        let wrapped = r#"
apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkSet
metadata:
  name: nets
  resourceVersion: "77"
  uid: 2b4d2a1e-6d3c-4a6e-9a0e-1f2e3d4c5b6a
  generation: 3
  annotations:
    projectcalico.org/metadata: '{"labels":{"role":"nets"},"creationTimestamp":"2020-01-01T00:00:00Z"}'
spec: {nets: [10.0.0.0/8]}
"#;
        assert_eq!(
            convert(wrapped).unwrap().text,
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  labels:\n    role: nets\n  name: nets\n\
             spec:\n  nets:\n  - 10.0.0.0/8\n"
        );
        let plain =
            "apiVersion: crd.projectcalico.org/v1\nkind: Tier\nmetadata: {name: a}\nspec: {order: 1}\n";
        assert!(convert(plain).unwrap().text.starts_with("apiVersion: projectcalico.org/v3\nkind: Tier\n"));
    }

    #[test]
    fn policies_of_kubernetes_become_calicos() {
        let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
                      spec:\n  podSelector: {matchLabels: {app: web}}\n  ingress:\n  - from: [{podSelector: {}}]\n    ports: [{port: 80}]\n";
        let text = convert(policy).unwrap().text;
        for part in [
            "kind: NetworkPolicy",
            "name: knp.default.web",
            "namespace: shop",
            "app == 'web'",
            "protocol: TCP",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }

    #[test]
    fn a_result_that_is_not_valid_is_not_printed_unasked() {
        let old = "apiVersion: v1\nkind: ipPool\nmetadata: {cidr: 10.1.0.0/30}\nspec: {}\n";
        let error = convert(old).unwrap_err().to_string();
        assert!(error.contains("old.yaml:1: document 1") && error.contains("--ignore-validation"), "{error}");
        let unknown = convert("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n").unwrap_err().to_string();
        assert!(unknown.contains("old.yaml:1: document 1 (Pod a): kind: "), "{unknown}");
    }
}
