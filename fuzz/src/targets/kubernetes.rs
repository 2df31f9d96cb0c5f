//! Objects of the Kubernetes API: each is converted to what Calico's etcd would hold, or refused by field; its
//! path does not depend on what is wrong with the rest of it; what is written to the API reads back.
//!
//! An input is lines of plural, blank, object, as the API server sends it. Plurals of Calico's group come after
//! `calico/`.

use syncer_common::kubernetes::{self, ApiGroup, ApiResource, Options, Read};

use super::{ensure, parse_key, told, values};
use crate::Outcome;

pub fn check(input: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    for group in [ApiGroup::V1, ApiGroup::V3] {
        let options = Options { group, ..Options::default() };
        let watched = kubernetes::watched(&options);
        let mut stored: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        for line in input.split(|byte| *byte == b'\n').take(12) {
            let Some(blank) = line.iter().position(|byte| *byte == b' ') else { continue };
            let (plural, object) = (&line[..blank], &line[blank + 1..]);
            for resource in watched.iter().filter(|resource| named(resource).as_bytes() == plural) {
                outcomes.push(one(resource, &options, object, &mut stored)?);
            }
        }
        // Kubernetes' keys belong to one object each.
        let objects: Vec<_> = stored.iter().map(|(path, value)| (path.as_str(), value.as_deref())).collect();
        outcomes.push(values::holds(&objects)?);
    }
    Ok(outcomes.join("\n"))
}

fn named(resource: &ApiResource) -> String {
    let calico = if resource.group.ends_with("projectcalico.org") { "calico/" } else { "" };
    format!("{calico}{}", resource.plural)
}

fn one(
    resource: &ApiResource,
    options: &Options,
    object: &[u8],
    stored: &mut Vec<(String, Option<Vec<u8>>)>,
) -> Outcome {
    let plural = resource.plural;
    let read = kubernetes::read(resource, options, object);
    ensure!(read == kubernetes::read(resource, options, object), "the same object reads the same: {read:?}");
    let path = kubernetes::path(resource, options, object);
    let Read { path: own, value, findings, .. } = match read {
        Ok(read) => read,
        Err(error) => return Ok(format!("{plural} {}", told(&error)?)),
    };
    ensure!(path.as_ref() == Some(&own), "an object that reads has its path: {path:?}, {own:?}");
    ensure!(parse_key(&own).is_some(), "a path is a key's: {own:?}");
    let mut outcome = plural.to_owned();
    for finding in &findings {
        outcome += &told(finding)?;
    }
    if let Some(value) = &value {
        let json = serde_json::from_slice::<serde_json::Value>(value);
        ensure!(json.is_ok(), "a value is JSON: {own:?}, {json:?}");
        // What can be written is what Calico keeps there; the rest has an object of its own. Names of Kubernetes hold
        // no percent sign, which a path would not bring back.
        if let Ok(written) = kubernetes::write(&own, value, options)
            && !own.contains('%')
        {
            let again = kubernetes::read(&written.resource, options, written.object.to_string().as_bytes())
                .map_err(|error| {
                format!("what is written can be read: {own:?}, {error}, {}", written.object)
            })?;
            ensure!(
                again.path == own,
                "what is written has the path it was written for: {own:?}, {:?}",
                again.path
            );
            let twice = again.value.and_then(|value| kubernetes::write(&own, &value, options).ok());
            ensure!(
                twice.as_ref() == Some(&written),
                "what is written is written again as it was: {written:?}, {twice:?}"
            );
            outcome.push('=');
        }
        outcome.push('+');
    }
    stored.push((own, value));
    Ok(outcome)
}
