//! Kubernetes' own objects (pods, nodes, namespaces, service accounts), written as they are: for a program that plays
//! Kubernetes. The datastore itself writes none of them.

use http::Method;
use serde_json::Value;

use super::api::Call;
use super::failure::{Failure, full_name};
use super::{KubernetesStore, collection, kind::escaped};
use crate::backend::{Error, Result};
use crate::kubernetes::Located;

impl KubernetesStore {
    /// One request about an object, or about a subresource of it (`status`; empty: itself), and the answer.
    /// `POST` creates, `PATCH` is a merge patch. An object that is not there is `NotFound`, one that is there already
    /// `Conflict`.
    pub async fn request(
        &self,
        method: Method,
        object: &Located,
        subresource: &str,
        body: &Value,
    ) -> Result<Value> {
        let Located { resource, namespace, name } = object;
        let all = collection(resource, namespace.as_deref().unwrap_or_default());
        let (verb, mut path) = match method {
            Method::POST => ("create", all),
            _ => {
                let verb = match method {
                    Method::GET => "get",
                    Method::PATCH => "patch",
                    Method::DELETE => "delete",
                    _ => "update",
                };
                (verb, format!("{all}/{}", escaped(name)))
            }
        };
        if !subresource.is_empty() {
            path = format!("{path}/{subresource}");
        }
        let key = match namespace {
            Some(namespace) => format!("{} {namespace}/{name}", full_name(resource)),
            None => format!("{} {name}", full_name(resource)),
        };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into() };
        let call = Call { method, path, body, timeout: self.api.timing.request };
        let fail = |failure: Failure| failure.into_write_error(verb, &key, resource);
        let answer = self.api.fetch(&call).await.map_err(fail)?;
        serde_json::from_slice(&answer).map_err(|error| Error::Unavailable {
            what: key.clone(),
            reason: format!("the answer to {verb} can not be read: {error}"),
        })
    }
}
