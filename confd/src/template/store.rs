//! What typha has sent, as paths and JSON values.
//!
//! A value's JSON is that of its protobuf message, in the names of `proto/model.proto` in lower camel case.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value as Json;
use syncer_common::model::{Update, values};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("our own descriptors"));

#[derive(Debug, Default)]
pub struct Store {
    entries: BTreeMap<String, Json>,
}

impl Store {
    /// Takes one change in; its path, if anything is another now.
    pub fn apply(&mut self, update: Update) -> Option<String> {
        // What has no path is none of a template's business.
        let path = update.key.path().ok()?;
        let changed = match update.value {
            Ok(value) => {
                let json = json(&values::Value { kind: Some(value) })?;
                self.entries.insert(path.clone(), json.clone()) != Some(json)
            }
            Err(_) => self.entries.remove(&path).is_some(),
        };
        changed.then_some(path)
    }

    pub fn get(&self, path: &str) -> Option<&Json> {
        self.entries.get(path)
    }

    /// What is below a path, by path.
    pub fn below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a Json)> {
        let above = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let from = self.entries.range(above.clone()..);
        from.take_while(move |(path, _)| path.starts_with(&above)).map(|(path, json)| (path.as_str(), json))
    }
}

/// The message inside of a value; a plain one stays plain.
fn json(value: &values::Value) -> Option<Json> {
    let descriptor = POOL.get_message_by_name("bulrush.model.v1.Value")?;
    let message = DynamicMessage::decode(descriptor, value.encode_to_vec().as_slice()).ok()?;
    let options = SerializeOptions::new().skip_default_fields(false);
    let json = message.serialize_with_options(serde_json::value::Serializer, &options).ok()?;
    json.as_object()?.values().find(|member| !member.is_null()).cloned()
}
