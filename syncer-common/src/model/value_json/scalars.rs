//! Scalars of the v1 JSON forms: addresses, networks, ports, protocols and numbers, each read leniently
//! and written in its one canonical way.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// `null` where a plain value belongs means its default.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// For lists and maps that are left out when they hold nothing.
pub(super) fn is_empty<T>(list: &[T]) -> bool {
    list.is_empty()
}

/// A network with its host bits kept; a bare address is a network of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Net(IpNet);

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Net).map_err(|_| D::Error::custom(format!("{text:?} is neither a network nor an address")))
    }
}

impl Serialize for Net {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A float that is written as an integer when it is one.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
pub(super) struct Float(f64);

impl Default for Float {
    fn default() -> Self {
        Float(0.0)
    }
}

impl Serialize for Float {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// Integers of this size and below are exact in a float.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if self.0.fract() == 0.0 && self.0.abs() <= EXACT {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

/// A number, or text: protocols and ports.
#[derive(Clone, Debug, PartialEq)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for NumberOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = NumberOrText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// An IP protocol. Numeric text becomes a number; names stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Protocol {
    Number(u8),
    Name(String),
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number: u64| {
            u8::try_from(number).map(Protocol::Number).map_err(|_| D::Error::custom("protocol is above 255"))
        };
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(value) => number(value),
            NumberOrText::Text(text) => match text.parse::<u64>() {
                Ok(value) => number(value),
                Err(_) => Ok(Protocol::Name(text)),
            },
        }
    }
}

/// A port of a rule: one number, a range `first:last`, or the name of endpoints' ports.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Port {
    Range(u16, u16),
    Name(String),
}

impl Port {
    fn read(text: &str) -> Option<Port> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let port = text.parse().ok()?;
            return Some(Port::Range(port, port));
        }
        if let Some((first, last)) = text.split_once(':') {
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            return (first <= last).then_some(Port::Range(first, last));
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        (text.len() <= 128 && text.bytes().all(legal)).then(|| Port::Name(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let port = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => u16::try_from(number).ok().map(|port| Port::Range(port, port)),
            NumberOrText::Text(text) => Port::read(&text),
        };
        port.ok_or_else(|| D::Error::custom("not a port, a range first:last or a port name"))
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Port::Range(first, last) if first == last => serializer.serialize_u16(*first),
            Port::Range(first, last) => serializer.collect_str(&format_args!("{first}:{last}")),
            Port::Name(name) => serializer.serialize_str(name),
        }
    }
}

/// A hardware address: six octets, lower case, colons.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mac(String);

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let octets: Vec<&str> = text.split([':', '-']).collect();
        let octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
        if octets.len() == 6 && octets.iter().all(octet) {
            Ok(Mac(octets.join(":").to_ascii_lowercase()))
        } else {
            Err(D::Error::custom(format!("{text:?} is not a hardware address")))
        }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An AS number as text, which is how the values of BGP peers hold it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AsNumberText(u32);

impl<'de> Deserialize<'de> for AsNumberText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = match text.split_once('.') {
            Some((high, low)) => high
                .parse::<u16>()
                .ok()
                .zip(low.parse::<u16>().ok())
                .map(|(high, low)| (u32::from(high) << 16) | u32::from(low)),
            None => text.parse().ok(),
        };
        number.map(AsNumberText).ok_or_else(|| D::Error::custom(format!("{text:?} is not an AS number")))
    }
}

impl Serialize for AsNumberText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
