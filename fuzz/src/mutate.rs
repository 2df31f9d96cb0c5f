//! Mutations. Structured inputs keep their structure most of the time: what is cut off at the first byte tells
//! nothing about what comes after.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

/// How the inputs of a target are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Bytes,
    Text,
    /// One JSON document.
    Json,
    /// Lines of path, blank, JSON; without JSON, the object is deleted.
    Objects,
}

/// Pieces of text that mean something somewhere.
const WORDS: [&str; 92] = [
    "/",
    "//",
    "%",
    "%2f",
    "%25",
    "%zz",
    "/calico/",
    "/calico/v1/",
    "default",
    "node.",
    "kns.",
    "ksa.",
    "projectcalico.org/v3",
    "all()",
    "global()",
    "has(a)",
    "!",
    "!!",
    "(",
    ")",
    "&&",
    "||",
    "==",
    "!=",
    "=",
    " in ",
    " not in ",
    "{",
    "}",
    "{'a'}",
    "contains",
    "starts with",
    "ends with",
    "'",
    "\"",
    "\\",
    "\n",
    "\n---\n",
    "---",
    "- ",
    ": ",
    "&a ",
    "*a",
    "!!str ",
    "? ",
    "|\n",
    "# ",
    "\t",
    "\u{feff}",
    "\0",
    "é",
    "𝕏",
    "\u{202e}",
    "null",
    "true",
    "~",
    "0",
    "-0",
    "1e308",
    "-1",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "0x10",
    "1.5",
    "1e-7",
    "NaN",
    "10.0.0.0/8",
    "10.0.0.1/33",
    "10.0.0.1",
    "10.0.0.0-26",
    "0.0.0.0/0",
    "::/0",
    "fd00::/64",
    "fd00--",
    "::ffff:10.0.0.1",
    "256.0.0.1",
    "00:00:5e:00:53:01",
    "TCP",
    "tcp",
    "UDPLite",
    "Allow",
    "allow",
    "Deny",
    "Pass",
    "Log",
    "1:65535",
    "80:79",
    "http",
    "1h30m",
];

/// Members that objects have.
const MEMBERS: [&str; 24] = [
    "metadata",
    "spec",
    "name",
    "namespace",
    "annotations",
    "labels",
    "selector",
    "ingress",
    "egress",
    "source",
    "destination",
    "nets",
    "notNets",
    "ports",
    "protocol",
    "icmp",
    "type",
    "code",
    "action",
    "order",
    "tier",
    "cidr",
    "node",
    "profiles",
];

impl Form {
    pub(crate) fn mutate(self, input: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
        // Now and then without regard to the structure.
        if self == Form::Bytes || random.random_ratio(1, 20) {
            return bytes(input, other, random);
        }
        match self {
            Form::Bytes | Form::Text => text(input, other, random),
            Form::Json => json_document(input, other, random),
            Form::Objects => objects(input, other, random),
        }
    }

    /// Inputs with a part left out, the large parts first.
    pub(crate) fn smaller(self, input: &[u8]) -> Vec<Vec<u8>> {
        let mut candidates = Vec::new();
        if self == Form::Objects || self == Form::Text {
            let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
            candidates.extend((0..lines.len()).map(|left_out| {
                let rest = lines.iter().enumerate().filter(|(index, _)| *index != left_out);
                rest.map(|(_, line)| *line).collect::<Vec<_>>().join(&b'\n')
            }));
        }
        if self == Form::Json {
            candidates.extend(without_parts(input));
        }
        if self == Form::Objects {
            let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
            for (index, line) in lines.iter().enumerate() {
                let Some(blank) = line.iter().position(|byte| *byte == b' ') else { continue };
                let (path, value) = line.split_at(blank + 1);
                for smaller in without_parts(value) {
                    let line = [path, &smaller].concat();
                    let mut lines = lines.clone();
                    lines[index] = &line;
                    candidates.push(lines.join(&b'\n'));
                }
            }
        }
        let mut size = input.len() / 2;
        while size > 0 {
            candidates.extend((0..input.len()).step_by(size).map(|from| {
                let to = (from + size).min(input.len());
                [&input[..from], &input[to..]].concat()
            }));
            size /= 2;
        }
        candidates
    }
}

/// The JSON documents with one node less.
fn without_parts(input: &[u8]) -> Vec<Vec<u8>> {
    let Ok(document) = serde_json::from_slice::<Value>(input) else { return Vec::new() };
    (1..count(&document))
        .map(|index| {
            let mut document = document.clone();
            remove(&mut document, &mut index.clone());
            document.to_string().into_bytes()
        })
        .collect()
}

fn bytes(mut input: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let at = random.random_range(0..=input.len());
    let length = random.random_range(0..=(input.len() - at).min(32));
    match random.random_range(0..6) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = *[0, 1, 0x7f, 0x80, 0xff, b'0'].choose(random).unwrap_or(&0),
        2 => input.insert(at, random.random()),
        3 => {
            input.drain(at..at + length);
        }
        4 => {
            let copy = input[at..at + length].to_vec();
            input.splice(at..at, copy);
        }
        _ => {
            let from = random.random_range(0..=other.len());
            let to = random.random_range(from..=other.len());
            input.splice(at..at + length, other[from..to].iter().copied());
        }
    }
    input
}

fn text(input: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(&input).into_owned();
    let boundary = |text: &str, random: &mut StdRng| {
        let at = random.random_range(0..=text.len());
        (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
    };
    let (mut from, mut to) = (boundary(&text, random), boundary(&text, random));
    if from > to {
        std::mem::swap(&mut from, &mut to);
    }
    match random.random_range(0..7) {
        0 => text.replace_range(from..to, ""),
        1 => text.insert_str(from, word(random)),
        2 => {
            let end = text[from..].chars().next().map_or(from, |c| from + c.len_utf8());
            text.replace_range(from..end, word(random));
        }
        3 => {
            let piece = text[from..to].to_owned();
            text.insert_str(to, &piece);
        }
        4 => {
            let piece = text[from..to].repeat(random.random_range(2..40));
            text.replace_range(from..to, &piece);
        }
        5 => {
            // Lines move, because their order and their indentation mean something.
            let mut lines: Vec<&str> = text.split('\n').collect();
            let (a, b) = (random.random_range(0..lines.len()), random.random_range(0..lines.len()));
            lines.swap(a, b);
            text = lines.join("\n");
        }
        _ => {
            let other = String::from_utf8_lossy(other);
            let (a, b) = (boundary(&other, random), boundary(&other, random));
            text.replace_range(from..to, &other[a.min(b)..a.max(b)]);
        }
    }
    text.into_bytes()
}

fn json_document(input: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(&input) else { return text(input, other, random) };
    mutate_json(&mut document, &serde_json::from_slice(other).unwrap_or(Value::Null), random);
    document.to_string().into_bytes()
}

fn objects(input: Vec<u8>, other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> { bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect() };
    let (mut lines, others) = (lines(&input), lines(other));
    let at = random.random_range(0..lines.len());
    let split = |line: &[u8]| {
        let blank = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        (line[..blank].to_vec(), line.get(blank + 1..).unwrap_or_default().to_vec())
    };
    let (path, value) = split(&lines[at]);
    let stranger = split(others.choose(random).expect("a split has one piece at least"));
    match random.random_range(0..16) {
        0 if lines.len() > 1 => {
            lines.remove(at);
        }
        1 => lines.insert(at, [stranger.0, stranger.1].join(&b' ')),
        2 => lines.push(path),
        3 => {
            let to = random.random_range(0..lines.len());
            lines.swap(at, to);
        }
        // The same content elsewhere, and other content in the same place.
        4 => lines.push([stranger.0, value].join(&b' ')),
        5 => lines.push([path, stranger.1].join(&b' ')),
        6 => lines[at] = [text(path, &stranger.0, random), value].join(&b' '),
        7 => lines[at] = [path, bytes(value, &stranger.1, random)].join(&b' '),
        8 => {
            // A twin under another name.
            let mut twin = path;
            twin.push(b"abz0"[random.random_range(0..4)]);
            lines.push([twin, value].join(&b' '));
        }
        _ => lines[at] = [path, json_document(value, &stranger.1, random)].join(&b' '),
    }
    lines.truncate(12);
    lines.join(&b'\n')
}

fn word(random: &mut StdRng) -> &'static str {
    WORDS.choose(random).copied().unwrap_or_default()
}

fn mutate_json(document: &mut Value, other: &Value, random: &mut StdRng) {
    let mut index = random.random_range(0..count(document));
    let stranger = {
        let mut index = random.random_range(0..count(other));
        node(other, &mut index).cloned().unwrap_or_default()
    };
    if random.random_ratio(1, 8) && index > 0 {
        remove(document, &mut index);
        return;
    }
    let Some(node) = node_mut(document, &mut index) else { return };
    match random.random_range(0..10) {
        0 => *node = interesting(random),
        1 => *node = stranger,
        2 => *node = json!([node.clone()]),
        3 => *node = json!(node.to_string()),
        4 => {
            // Text as a number or a truth value, as hand-written YAML has it.
            if let Some(value) = node.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                *node = value;
            }
        }
        _ => match node {
            Value::String(content) => {
                let mutated = text(std::mem::take(content).into_bytes(), word(random).as_bytes(), random);
                *content = String::from_utf8_lossy(&mutated).into_owned();
            }
            Value::Array(items) => match items.choose(random).cloned() {
                Some(item) if random.random() => items.push(item),
                Some(_) if random.random() => items.reverse(),
                _ => items.push(stranger),
            },
            Value::Object(members) => {
                let names: Vec<String> = members.keys().cloned().collect();
                let name = match names.choose(random) {
                    Some(name) if random.random() => {
                        let value = members.remove(name).unwrap_or_default();
                        let renamed = String::from_utf8_lossy(&text(name.clone().into_bytes(), b"", random))
                            .into_owned();
                        members.insert(renamed, value);
                        return;
                    }
                    _ => MEMBERS.choose(random).copied().unwrap_or_default(),
                };
                members.insert(name.to_owned(), stranger);
            }
            other => *other = interesting(random),
        },
    }
}

fn interesting(random: &mut StdRng) -> Value {
    match random.random_range(0..9) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!([0, 1, -1, 7, 128, 255, 256, 65_535, 65_536].choose(random)),
        3 => json!([u64::MAX, 1 << 53, 1 << 32, (1 << 32) - 1, 1 << 63].choose(random)),
        4 => json!([0.5, -0.0, 1e308, 1e-308, 1e19].choose(random)),
        5 => json!([]),
        6 => json!({}),
        7 => json!("x".repeat(random.random_range(0..300))),
        _ => json!(word(random)),
    }
}

/// Nodes of a document, itself included, in order.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// The node that many places on.
fn node<'a>(value: &'a Value, index: &mut usize) -> Option<&'a Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter().find_map(|item| step(item, index)),
        Value::Object(members) => members.values().find_map(|member| step(member, index)),
        _ => None,
    }
}

fn step<'a>(child: &'a Value, index: &mut usize) -> Option<&'a Value> {
    let size = count(child);
    if *index < size {
        return node(child, index);
    }
    *index -= size;
    None
}

fn node_mut<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    let children: Box<dyn Iterator<Item = &'a mut Value>> = match value {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(members) => Box::new(members.values_mut()),
        _ => return None,
    };
    for child in children {
        let size = count(child);
        if *index < size {
            return node_mut(child, index);
        }
        *index -= size;
    }
    None
}

/// Removes the node that many places on; the document itself stays.
fn remove(value: &mut Value, index: &mut usize) {
    *index = index.saturating_sub(1);
    match value {
        Value::Array(items) => {
            for at in 0..items.len() {
                let size = count(&items[at]);
                match *index {
                    0 => {
                        items.remove(at);
                        return;
                    }
                    inside if inside < size => return remove(&mut items[at], index),
                    _ => *index -= size,
                }
            }
        }
        Value::Object(members) => {
            let names: Vec<String> = members.keys().cloned().collect();
            for name in names {
                let Some(member) = members.get_mut(&name) else { continue };
                let size = count(member);
                match *index {
                    0 => {
                        members.remove(&name);
                        return;
                    }
                    inside if inside < size => return remove(member, index),
                    _ => *index -= size,
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_is_reached_and_can_be_left_out() {
        let document = json!({ "a": [1, { "b": 2 }], "c": "x" });
        assert_eq!(count(&document), 6);
        let nodes: Vec<String> =
            (0..6).map(|mut index| node(&document, &mut index).unwrap().to_string()).collect();
        assert_eq!(nodes[1..], [r#"[1,{"b":2}]"#, "1", r#"{"b":2}"#, "2", r#""x""#]);
        let left: Vec<String> = without_parts(document.to_string().as_bytes())
            .into_iter()
            .map(|part| String::from_utf8(part).unwrap())
            .collect();
        let expected = [
            r#"{"c":"x"}"#,
            r#"{"a":[{"b":2}],"c":"x"}"#,
            r#"{"a":[1],"c":"x"}"#,
            r#"{"a":[1,{}],"c":"x"}"#,
            r#"{"a":[1,{"b":2}]}"#,
        ];
        assert_eq!(left, expected);
    }
}
