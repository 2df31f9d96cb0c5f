//! Changing one object in the text of a manifest, leaving the other documents as they are.
//!
//! A document that holds several objects (a list) is written anew; comments survive outside of the changed
//! document only.

use crate::apis::{DEFAULT_NAMESPACE, Resource};
use crate::manifests::{numbered, split_documents, to_yaml};

/// The text with the object at `key` replaced, or removed (`None`). `Err` when a part of the text is not
/// readable or does not hold the object: then nothing is to be touched.
pub(super) fn rewrite(
    text: &str,
    json: bool,
    key: &str,
    resource: Option<&Resource>,
) -> Result<Option<String>, String> {
    let mut objects = Vec::new();
    for object in numbered(text, DEFAULT_NAMESPACE) {
        objects.push(object.map_err(|error| error.to_string())?);
    }
    let holds = |found: &Resource| found.key_path().is_ok_and(|path| path == key);
    // Of two with one key the later one counts.
    let (number, _) = objects
        .iter()
        .rfind(|(_, found)| holds(found))
        .ok_or_else(|| "does not hold the object any more".to_owned())?;
    let of_document: Vec<&Resource> = objects
        .iter()
        .filter(|(found, _)| found == number)
        .filter_map(|(_, found)| if holds(found) { resource } else { Some(found) })
        .collect();
    let documents = split_documents(text);
    if json {
        return Ok((!of_document.is_empty() || documents.len() > 1).then(|| render_json(&of_document)));
    }
    let mut result = String::new();
    for document in &documents {
        if document.number != *number {
            separate(&mut result, document.text.starts_with("---"));
            result.push_str(document.text);
            continue;
        }
        for object in &of_document {
            separate(&mut result, false);
            result.push_str(&to_yaml(object));
        }
    }
    Ok((!result.is_empty()).then_some(result))
}

/// Between two documents there is a marker at the beginning of a line.
fn separate(text: &mut String, marked: bool) {
    if text.is_empty() {
        return;
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if !marked {
        text.push_str("---\n");
    }
}

fn render_json(objects: &[&Resource]) -> String {
    let rendered = match objects {
        [one] => serde_json::to_string_pretty(one),
        many => serde_json::to_string_pretty(&serde_json::json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "List",
            "items": many,
        })),
    };
    rendered.expect("a resource has string keys only") + "\n"
}

/// The name of the file of a new object: `<plural>/<ns.>name.yaml`, with what could leave the folder or
/// hide the file written as `%XX`.
pub(super) fn file_name(resource: &Resource) -> Option<String> {
    let plural = resource.api_kind().ok()?.plural;
    let mut name = String::new();
    if !resource.metadata.namespace.is_empty() {
        name = format!("{}.", resource.metadata.namespace);
    }
    name.push_str(resource.stored_name());
    let mut safe = String::new();
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && index > 0) {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("%{byte:02X}"));
        }
    }
    if safe.len() > 200 {
        let hash = blake3::hash(name.as_bytes()).to_hex();
        safe = format!("{}-{}", &safe[..150], &hash[..16]);
    }
    Some(format!("{plural}/{safe}.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::parse_manifest;

    fn set(name: &str, net: &str) -> String {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: {name}\nspec:\n  nets:\n  - {net}\n"
        )
    }

    fn resource(name: &str, net: &str) -> Resource {
        parse_manifest(&set(name, net)).remove(0).unwrap()
    }

    fn key(name: &str) -> String {
        format!("/calico/resources/v3/projectcalico.org/globalnetworksets/{name}")
    }

    fn names(text: &str) -> Vec<String> {
        parse_manifest(text).into_iter().map(|object| object.unwrap().metadata.name).collect()
    }

    #[test]
    fn other_documents_keep_their_comments() {
        let text = format!(
            "# first\n{}---\n# second\n{}---\n# third\n{}",
            set("a", "10.0.0.0/8"),
            set("b", "10.0.0.0/8"),
            set("c", "10.0.0.0/8")
        );
        let changed = rewrite(&text, false, &key("b"), Some(&resource("b", "11.0.0.0/8"))).unwrap().unwrap();
        assert_eq!(names(&changed), ["a", "b", "c"]);
        assert!(changed.contains("# first") && changed.contains("# third") && changed.contains("11.0.0.0/8"));
        let removed = rewrite(&changed, false, &key("a"), None).unwrap().unwrap();
        assert_eq!(names(&removed), ["b", "c"]);
    }

    #[test]
    fn last_object_leaves_no_text() {
        assert_eq!(rewrite(&set("a", "10.0.0.0/8"), false, &key("a"), None).unwrap(), None);
    }

    #[test]
    fn list_in_json_stays_a_list() {
        let list = render_json(&[&resource("a", "10.0.0.0/8"), &resource("b", "10.0.0.0/8")]);
        let changed = rewrite(&list, true, &key("b"), Some(&resource("b", "12.0.0.0/8"))).unwrap().unwrap();
        assert_eq!(names(&changed), ["a", "b"]);
        assert!(changed.contains("12.0.0.0/8"));
    }

    #[test]
    fn unreadable_text_is_not_touched() {
        let text = format!("{}---\nkind: [\n", set("a", "10.0.0.0/8"));
        assert!(rewrite(&text, false, &key("a"), None).is_err());
    }

    #[test]
    fn file_names_stay_inside_the_folder() {
        let mut odd = resource("a", "10.0.0.0/8");
        odd.metadata.name = "../../x".into();
        let name = file_name(&odd).unwrap();
        assert_eq!(name, "globalnetworksets/%2E.%2F..%2Fx.yaml");
    }
}
