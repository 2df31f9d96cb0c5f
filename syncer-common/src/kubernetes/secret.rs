//! The texts in a Secret. No error shows a value.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::Value as Json;

/// What a Secret holds, as far as it is text; and the keys of what is none.
#[derive(Default, PartialEq, Eq)]
pub struct SecretTexts {
    pub texts: BTreeMap<String, String>,
    pub unusable: Vec<String>,
}

/// Reads `data` and `stringData` of a Secret's JSON.
pub fn secret_texts(object: &Json) -> SecretTexts {
    let mut read = SecretTexts::default();
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let encoded = value.as_str().unwrap_or_default();
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok();
        match decoded.and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) => drop(read.texts.insert(key.clone(), text)),
            None => read.unusable.push(key.clone()),
        }
    }
    for (key, value) in object["stringData"].as_object().into_iter().flatten() {
        read.texts.insert(key.clone(), value.as_str().unwrap_or_default().to_owned());
    }
    read
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_decoded_and_what_is_none_is_named() {
        let secret =
            json!({"data": {"a": "aHVudGVyMg==", "b": "//8=", "c": "?"}, "stringData": {"d": "plain"}});
        let read = secret_texts(&secret);
        assert_eq!(
            read.texts,
            BTreeMap::from([("a".into(), "hunter2".into()), ("d".into(), "plain".into())])
        );
        assert_eq!(read.unusable, ["b", "c"]);
    }
}
