//! Text → JSON value, for YAML and JSON alike, within bounds.
//!
//! Aliases make a YAML text mean more than it holds, and a few lines of them more than any memory: what is
//! built is counted while it is built. A member that is given twice is refused: one of the two was meant to
//! be something else. Tags are refused by name: `nodeSelector: !has(x)` looks like a selector, but to YAML it
//! is a tag on nothing.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::apis::FieldError;

/// What any text may become, however short: room for honest use of aliases.
const FREE_WEIGHT: usize = 1 << 20;
/// What a text may become, as a multiple of its length. Without aliases it stays below 3.
const WEIGHT_PER_BYTE: usize = 4;
/// The merge key of YAML 1.1.
const MERGE: &str = "<<";

/// A mistake, and its line within the text, counted from 1, where that is known.
pub(super) type Mistake = (FieldError, Option<usize>);

/// Reads a text that holds one document.
pub(super) fn value(text: &str) -> Result<Value, Mistake> {
    if text.trim_start().starts_with(['{', '[']) {
        let reader = Reader::new(text, false);
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Place::root(&reader).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
        match (read, reader.failure.take()) {
            (Ok(value), _) => return Ok(value),
            (Err(error), Some(failure)) => {
                return Err((failure, Some(error.line()).filter(|line| *line > 0)));
            }
            // It may be YAML, whose flow style begins the same way.
            (Err(_), None) => {}
        }
    }
    let reader = Reader::new(text, true);
    Place::root(&reader).deserialize(serde_yaml_ng::Deserializer::from_str(text)).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let failure = reader.failure.take();
        (failure.unwrap_or_else(|| FieldError::new("the document", error.to_string())), line)
    })
}

/// `… at line 3 column 5` of an error, for a text that begins at line `first` of its file.
pub(super) fn absolute_lines(message: &str, first: usize) -> String {
    const WORDS: &str = " at line ";
    let mut parts = message.split(WORDS);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        result.push_str(WORDS);
        match part[..digits].parse::<usize>() {
            Ok(line) => result.push_str(&(line + first - 1).to_string()),
            Err(_) => result.push_str(&part[..digits]),
        }
        result.push_str(&part[digits..]);
    }
    result
}

/// What is known while one text is read.
struct Reader {
    /// What may still be built.
    left: Cell<usize>,
    /// The first mistake that the content has, as opposed to its syntax.
    failure: RefCell<Option<FieldError>>,
    yaml: bool,
}

impl Reader {
    fn new(text: &str, yaml: bool) -> Self {
        let limit = text.len().saturating_mul(WEIGHT_PER_BYTE).saturating_add(FREE_WEIGHT);
        Self { left: Cell::new(limit), failure: RefCell::new(None), yaml }
    }
}

/// Where in the document a value is.
#[derive(Clone, Copy)]
struct Place<'a> {
    reader: &'a Reader,
    above: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Member(&'a str),
    Item(usize),
}

impl<'a> Place<'a> {
    fn root(reader: &'a Reader) -> Self {
        Self { reader, above: None, step: Step::Root }
    }

    fn below(&'a self, step: Step<'a>) -> Self {
        Self { reader: self.reader, above: Some(self), step }
    }

    /// `spec.ingress[0].action`
    fn path(&self) -> String {
        let above = self.above.map(Place::path).unwrap_or_default();
        match self.step {
            Step::Root => above,
            Step::Member(name) if above.is_empty() => name.to_owned(),
            Step::Member(name) => format!("{above}.{name}"),
            Step::Item(index) => format!("{above}[{index}]"),
        }
    }

    fn fail<T, E: Error>(&self, reason: impl Into<String>) -> Result<T, E> {
        let (path, reason) = (self.path(), reason.into());
        let field = if path.is_empty() { "the document".to_owned() } else { path };
        let error = E::custom(&reason);
        self.reader.failure.borrow_mut().get_or_insert(FieldError { field, reason });
        Err(error)
    }

    /// Every value counts, and so does every byte of text.
    fn spend<E: Error>(&self, bytes: usize) -> Result<(), E> {
        match self.reader.left.get().checked_sub(bytes + 1) {
            Some(left) => {
                self.reader.left.set(left);
                Ok(())
            }
            None => self.fail("its aliases make it many times larger than it is: write it out"),
        }
    }

    fn text<E: Error>(&self, text: String) -> Result<Value, E> {
        self.spend(text.len())?;
        Ok(Value::String(text))
    }

    fn number<E: Error>(&self, number: impl Into<Number>) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Number(number.into()))
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Bool(truth))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        self.number(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        self.number(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        match Number::from_f64(number) {
            Some(number) => self.number(number),
            None => self.fail("not a finite number"),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.text(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.below(Step::Item(list.len())))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let (mut object, mut merged) = (Map::new(), None);
        while let Some(name) = members.next_key_seed(Name(self))? {
            let place = self.below(Step::Member(&name));
            place.spend(name.len())?;
            let value = members.next_value_seed(place)?;
            let twice = if self.reader.yaml && name == MERGE {
                merged.replace(value).is_some()
            } else {
                object.insert(name.clone(), value).is_some()
            };
            if twice {
                return place.fail("is given twice: remove one of the two");
            }
        }
        if let Some(value) = merged {
            self.below(Step::Member(MERGE)).merge(&mut object, value)?;
        }
        Ok(Value::Object(object))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
        let (tag, _) = data.variant::<String>()?;
        self.fail(format!("YAML reads !{tag} as a tag, not as a value: put it in quotes"))
    }
}

impl Place<'_> {
    /// `<<`: members of other mappings, where the mapping has none of its own; the first of several counts.
    fn merge<E: Error>(&self, object: &mut Map<String, Value>, value: Value) -> Result<(), E> {
        let sources = match value {
            Value::Array(items) => items,
            one => vec![one],
        };
        for source in sources {
            let Value::Object(members) = source else {
                return self.fail("is neither a mapping nor a list of them");
            };
            for (name, member) in members {
                object.entry(name).or_insert(member);
            }
        }
        Ok(())
    }
}

/// The name of a member of the mapping at a place.
struct Name<'a>(Place<'a>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

const NOT_TEXT: &str = "has a name that is not text";

impl<'de> Visitor<'de> for Name<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<String, E> {
        Ok(truth.to_string())
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        self.0.fail(NOT_TEXT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        self.0.fail(NOT_TEXT)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        self.0.fail(NOT_TEXT)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<String, A::Error> {
        self.0.fail(NOT_TEXT)
    }
}
