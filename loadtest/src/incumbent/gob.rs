//! Go's `encoding/gob`, the reading side: bytes in, values out. Pure.
//!
//! A stream is a row of messages, each with its length in front. A message defines a type (with a negative number), or
//! is a value of a type that was defined before. A reader needs to know no type in advance: definitions are values
//! themselves, of types that every stream begins with. A value behind an interface defines its type on the spot, where
//! it is the first of it; then the writer begins a new message in the middle of the value.
//!
//! The bytes come from a server that is being tested: whatever they are, reading them ends with a value or an error, and
//! takes no more memory than they have bytes, times a constant.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};

/// Longer messages than this are refused; Go's own reader draws the line at 1 GiB.
const LONGEST: usize = 256 << 20;
/// Values within values.
const DEEPEST: usize = 64;

/// Text and bytes lie in the message that they were read from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Complex(f64, f64),
    String(&'a str),
    /// Also what a type with an encoding of its own (`time.Time`) wrote.
    Bytes(&'a [u8]),
    /// Slices and arrays.
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// By name; fields with a zero value are not sent.
    Struct(Vec<(Arc<str>, Value<'a>)>),
    /// The registered name of the type, and the value.
    Interface(&'a str, Box<Value<'a>>),
    Nil,
}

impl<'a> Value<'a> {
    /// A field of a structure; nothing when it has its zero value.
    pub fn field(&self, name: &str) -> Option<&Value<'a>> {
        let Value::Struct(fields) = self else { return None };
        fields.iter().find(|(own, _)| **own == *name).map(|(_, value)| value)
    }

    pub fn text(&self) -> Option<&'a str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    pub fn bytes(&self) -> Option<&'a [u8]> {
        if let Value::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// A whole number, signed or not.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Uint(number) => Some(*number),
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// Numbers of the types that need no definition.
mod id {
    pub const BOOL: i64 = 1;
    pub const INT: i64 = 2;
    pub const UINT: i64 = 3;
    pub const FLOAT: i64 = 4;
    pub const BYTES: i64 = 5;
    pub const STRING: i64 = 6;
    pub const COMPLEX: i64 = 7;
    pub const INTERFACE: i64 = 8;
    /// A definition, and what it consists of.
    pub const WIRE_TYPE: i64 = 16;
    pub const ARRAY: i64 = 17;
    pub const COMMON: i64 = 18;
    pub const SLICE: i64 = 19;
    pub const STRUCT: i64 = 20;
    pub const FIELD: i64 = 21;
    pub const FIELDS: i64 = 22;
    pub const MAP: i64 = 23;
    /// Go gives it no number on the wire.
    pub const OPAQUE: i64 = 24;
    /// From here on streams define their own.
    pub const FIRST_OWN: i64 = 64;
}

#[derive(Clone, Debug)]
enum Type {
    Bool,
    Int,
    Uint,
    Float,
    Bytes,
    String,
    Complex,
    Interface,
    Slice(i64),
    Array(i64, u64),
    Map(i64, i64),
    Struct(Arc<[(Arc<str>, i64)]>),
    /// Its values encode themselves.
    Opaque,
}

/// One stream, from its beginning.
pub struct Decoder {
    types: HashMap<i64, Type>,
    /// Defined by the message that is being read.
    fresh: Vec<i64>,
}

/// A value that goes on in the next message.
#[derive(Debug, thiserror::Error)]
#[error("a value ends in the middle")]
struct GoesOn;

impl Default for Decoder {
    fn default() -> Self {
        let structure = |fields: &[(&str, i64)]| {
            Type::Struct(fields.iter().map(|(name, id)| (Arc::from(*name), *id)).collect())
        };
        let common = ("CommonType", id::COMMON);
        let types = [
            (id::BOOL, Type::Bool),
            (id::INT, Type::Int),
            (id::UINT, Type::Uint),
            (id::FLOAT, Type::Float),
            (id::BYTES, Type::Bytes),
            (id::STRING, Type::String),
            (id::COMPLEX, Type::Complex),
            (id::INTERFACE, Type::Interface),
            (
                id::WIRE_TYPE,
                structure(&[
                    ("ArrayT", id::ARRAY),
                    ("SliceT", id::SLICE),
                    ("StructT", id::STRUCT),
                    ("MapT", id::MAP),
                    ("GobEncoderT", id::OPAQUE),
                    ("BinaryMarshalerT", id::OPAQUE),
                    ("TextMarshalerT", id::OPAQUE),
                ]),
            ),
            (id::ARRAY, structure(&[common, ("Elem", id::INT), ("Len", id::INT)])),
            (id::COMMON, structure(&[("Name", id::STRING), ("Id", id::INT)])),
            (id::SLICE, structure(&[common, ("Elem", id::INT)])),
            (id::STRUCT, structure(&[common, ("Field", id::FIELDS)])),
            (id::FIELD, structure(&[("Name", id::STRING), ("Id", id::INT)])),
            (id::FIELDS, Type::Slice(id::FIELD)),
            (id::MAP, structure(&[common, ("Key", id::INT), ("Elem", id::INT)])),
            (id::OPAQUE, structure(&[common])),
        ];
        Decoder { types: types.into(), fresh: Vec::new() }
    }
}

impl Decoder {
    /// Gives the next value at the front of what was received to `take`; definitions on the way are learned. Nothing:
    /// more has to be received first.
    pub fn read<T>(
        &mut self,
        received: &mut BytesMut,
        take: impl FnOnce(Value<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        loop {
            let Some((start, mut end)) = extent(received, 0)? else { return Ok(None) };
            self.fresh.clear();
            let mut reader = Reader(&received[start..end]);
            let id = reader.int()?;
            if id < 0 {
                self.define(id, &mut reader)?;
                ensure!(reader.0.is_empty(), "{} bytes behind a definition", reader.0.len());
                received.advance(end);
                continue;
            }
            loop {
                let error = match self.top(&received[start..end]) {
                    Ok(value) => {
                        let taken = take(value)?;
                        received.advance(end);
                        return Ok(Some(taken));
                    }
                    Err(error) => error,
                };
                if !error.is::<GoesOn>() {
                    return Err(error);
                }
                // Once more from the beginning, with the next message behind it: once per type and stream.
                for id in self.fresh.drain(..) {
                    self.types.remove(&id);
                }
                match extent(received, end)? {
                    Some((_, next)) => end = next,
                    None => return Ok(None),
                }
            }
        }
    }

    fn top<'a>(&mut self, message: &'a [u8]) -> Result<Value<'a>> {
        let mut reader = Reader(message);
        let id = reader.int()?;
        let value = self.whole(id, &mut reader, 0)?;
        ensure!(reader.0.is_empty(), "{} bytes behind a value", reader.0.len());
        Ok(value)
    }

    fn define(&mut self, number: i64, reader: &mut Reader<'_>) -> Result<()> {
        let number = number.checked_neg().context("a type without a number")?;
        ensure!(number >= id::FIRST_OWN, "a definition of type {number}, which is Go's own");
        let definition = self.part(id::WIRE_TYPE, reader, 0)?;
        let Value::Struct(members) = &definition else { bail!("a definition that is none") };
        let [(form, body)] = members.as_slice() else { bail!("a definition of {} types", members.len()) };
        let of = |name: &str| match body.field(name) {
            Some(Value::Int(id)) => Ok(*id),
            _ => bail!("a definition of a {form} without {name}"),
        };
        let defined = match &**form {
            "ArrayT" => Type::Array(of("Elem")?, of("Len").unwrap_or(0).try_into()?),
            "SliceT" => Type::Slice(of("Elem")?),
            "MapT" => Type::Map(of("Key")?, of("Elem")?),
            "StructT" => {
                let fields = match body.field("Field") {
                    Some(Value::List(fields)) => fields.as_slice(),
                    _ => &[],
                };
                let field = |field: &Value<'_>| {
                    let name = field.field("Name").and_then(Value::text);
                    match (name, field.field("Id")) {
                        (Some(name), Some(Value::Int(id))) => Ok((name.into(), *id)),
                        _ => bail!("a field without name or type"),
                    }
                };
                Type::Struct(fields.iter().map(field).collect::<Result<_>>()?)
            }
            _ => Type::Opaque,
        };
        ensure!(self.types.insert(number, defined).is_none(), "type {number} is defined twice");
        self.fresh.push(number);
        Ok(())
    }

    /// A value that stands for itself: in a message, or behind an interface.
    fn whole<'a>(&mut self, id: i64, reader: &mut Reader<'a>, depth: usize) -> Result<Value<'a>> {
        if !matches!(self.types.get(&id), Some(Type::Struct(_))) {
            ensure!(reader.uint()? == 0, "a single value does not begin with 0");
        }
        self.part(id, reader, depth)
    }

    fn part<'a>(&mut self, id: i64, reader: &mut Reader<'a>, depth: usize) -> Result<Value<'a>> {
        ensure!(depth < DEEPEST, "values within values, {DEEPEST} deep");
        let kind = self.types.get(&id).with_context(|| format!("a value of the unknown type {id}"))?.clone();
        let depth = depth + 1;
        Ok(match kind {
            Type::Bool => Value::Bool(reader.uint()? != 0),
            Type::Int => Value::Int(reader.int()?),
            Type::Uint => Value::Uint(reader.uint()?),
            Type::Float => Value::Float(reader.float()?),
            Type::Complex => Value::Complex(reader.float()?, reader.float()?),
            Type::Bytes | Type::Opaque => Value::Bytes(reader.counted()?),
            Type::String => Value::String(reader.text()?),
            Type::Interface => self.interface(reader, depth)?,
            Type::Slice(element) => {
                let count = reader.count()?;
                self.elements(element, count, reader, depth)?
            }
            Type::Array(element, length) => {
                let count = reader.count()?;
                ensure!(count as u64 == length, "an array of {length} with {count} elements");
                self.elements(element, count, reader, depth)?
            }
            Type::Map(key, element) => {
                let count = reader.count()?;
                let mut pairs = Vec::new();
                for _ in 0..count {
                    pairs.push((self.part(key, reader, depth)?, self.part(element, reader, depth)?));
                }
                Value::Map(pairs)
            }
            Type::Struct(fields) => {
                let mut values = Vec::new();
                // Fields are counted from the one before; 0 ends them.
                let mut next = 0_u64;
                loop {
                    let delta = reader.uint()?;
                    if delta == 0 {
                        break Value::Struct(values);
                    }
                    next = next.checked_add(delta).context("a field beyond all others")?;
                    let field = usize::try_from(next - 1).ok().and_then(|index| fields.get(index));
                    let (name, id) = field.context("a field that its structure does not have")?;
                    values.push((name.clone(), self.part(*id, reader, depth)?));
                }
            }
        })
    }

    fn elements<'a>(
        &mut self,
        id: i64,
        count: usize,
        reader: &mut Reader<'a>,
        depth: usize,
    ) -> Result<Value<'a>> {
        (0..count).map(|_| self.part(id, reader, depth)).collect::<Result<_>>().map(Value::List)
    }

    /// The registered name, the type and the length.
    fn interface<'a>(&mut self, reader: &mut Reader<'a>, depth: usize) -> Result<Value<'a>> {
        let name = reader.text()?;
        if name.is_empty() {
            return Ok(Value::Nil);
        }
        let id = loop {
            let id = reader.int()?;
            if id >= 0 {
                break id;
            }
            self.define(id, reader)?;
            // Behind a definition comes the length of what follows, be it in this message or the next one.
            if reader.0.is_empty() {
                return Err(GoesOn.into());
            }
            reader.uint()?;
        };
        // Of the value, up to the next definition in it: for those who skip it.
        reader.uint()?;
        Ok(Value::Interface(name, Box::new(self.whole(id, reader, depth)?)))
    }
}

/// Where a message begins behind its length, and where it ends, as soon as it is there as a whole.
fn extent(received: &[u8], from: usize) -> Result<Option<(usize, usize)>> {
    let mut reader = Reader(&received[from..]);
    let length = match reader.uint() {
        Ok(length) => length,
        Err(Short::More) => return Ok(None),
        Err(Short::Bad) => bail!("a length of more than eight bytes"),
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST);
    let length = length.with_context(|| format!("a message of more than {LONGEST} bytes"))?;
    let start = received.len() - reader.0.len();
    Ok((reader.0.len() >= length).then_some((start, start + length)))
}

struct Reader<'a>(&'a [u8]);

/// Why a number could not be read.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Short {
    #[error("a message ends in the middle of a value")]
    More,
    #[error("a number of more than eight bytes")]
    Bad,
}

impl<'a> Reader<'a> {
    /// Below 128 one byte; else the number of bytes, as a negative, and so many bytes.
    fn uint(&mut self) -> Result<u64, Short> {
        let (first, rest) = self.0.split_first().ok_or(Short::More)?;
        if *first < 128 {
            self.0 = rest;
            return Ok(u64::from(*first));
        }
        let count = usize::from(first.wrapping_neg());
        if count > 8 {
            return Err(Short::Bad);
        }
        let (digits, rest) = rest.split_at_checked(count).ok_or(Short::More)?;
        self.0 = rest;
        Ok(digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)))
    }

    /// The lowest bit says whether the others are to be inverted.
    fn int(&mut self) -> Result<i64, Short> {
        let number = self.uint()?;
        let half = (number >> 1) as i64;
        Ok(if number & 1 == 0 { half } else { !half })
    }

    /// Its bytes in reverse, as the high ones of most numbers are zero.
    fn float(&mut self) -> Result<f64, Short> {
        Ok(f64::from_bits(self.uint()?.swap_bytes()))
    }

    /// Of elements: each has one byte at least.
    fn count(&mut self) -> Result<usize> {
        let count = self.uint()?;
        let left = self.0.len();
        usize::try_from(count).ok().filter(|count| *count <= left).context("more elements than bytes")
    }

    fn bytes(&mut self, count: u64) -> Result<&'a [u8], Short> {
        let count = usize::try_from(count).map_err(|_| Short::More)?;
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Short::More)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn counted(&mut self) -> Result<&'a [u8], Short> {
        let count = self.uint()?;
        self.bytes(count)
    }

    fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.counted()?).context("text that is no UTF-8")
    }
}

#[cfg(test)]
mod tests;
