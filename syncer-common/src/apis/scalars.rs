//! Scalars that may be written in more than one way: ports, protocols, AS numbers, durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;

/// IP protocol, by number or by name as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    Number(u8),
    Name(String),
}

impl Protocol {
    /// Names that stand for a protocol, lower case.
    pub const NAMES: [&str; 6] = ["tcp", "udp", "icmp", "icmpv6", "sctp", "udplite"];

    /// Whether it is this protocol, by name or number.
    pub fn is(&self, name: &str, number: u8) -> bool {
        match self {
            Protocol::Number(own) => *own == number,
            Protocol::Name(own) => own.eq_ignore_ascii_case(name),
        }
    }

    pub fn has_ports(&self) -> bool {
        self.is("tcp", 6) || self.is("udp", 17) || self.is("sctp", 132)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Number(number) => write!(f, "{number}"),
            Protocol::Name(name) => f.write_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = match &value {
            Value::Number(number) => number.as_u64().ok_or(()),
            Value::String(name) if name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => {
                name.parse().map_err(drop)
            }
            Value::String(name) => return Ok(Protocol::Name(name.clone())),
            _ => Err(()),
        };
        number
            .ok()
            .and_then(|number| u8::try_from(number).ok())
            .map(Protocol::Number)
            .ok_or_else(|| D::Error::custom(format!("{value} is neither a protocol's name nor 0-255")))
    }
}

/// A port, a range of ports, or the name of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    Range { first: u16, last: u16 },
    Name(String),
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u16>().map_err(|_| format!("{text:?} is not a port between 0 and 65535"))
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits(text) {
            let port = number(text)?;
            return Ok(Port::Range { first: port, last: port });
        }
        if let Some((first, last)) = text.split_once(':') {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {text} ends before it begins"));
            }
            return Ok(Port::Range { first, last });
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) {
            return Err(format!("{text:?} is neither a port, a range first:last, nor a port's name"));
        }
        Ok(Port::Name(text.to_owned()))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port::Range { first, last } if first == last => write!(f, "{first}"),
            Port::Range { first, last } => write!(f, "{first}:{last}"),
            Port::Name(name) => f.write_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match &value {
            Value::Number(number) => number.to_string().parse(),
            Value::String(text) => text.parse(),
            other => Err(format!("{other} is not a port")),
        }
        .map_err(D::Error::custom)
    }
}

/// AS number: a number, or text `n` or `high.low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsNumber(pub u32);

impl FromStr for AsNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once('.') {
            None => text.parse().ok(),
            Some((high, low)) => high
                .parse::<u16>()
                .ok()
                .zip(low.parse::<u16>().ok())
                .map(|(high, low)| u32::from(high) << 16 | u32::from(low)),
        };
        parsed.map(AsNumber).ok_or_else(|| format!("{text:?} is not an AS number"))
    }
}

impl<'de> Deserialize<'de> for AsNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match &value {
            Value::Number(number) => number.to_string().parse(),
            Value::String(text) => text.parse(),
            other => Err(format!("{other} is not an AS number")),
        }
        .map_err(D::Error::custom)
    }
}

/// A duration as Go writes it: `1m30s`, `100ms`, `1.5h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    /// Negative durations exist, and some fields give them a meaning.
    pub negative: bool,
    pub magnitude: Duration,
}

impl GoDuration {
    /// Whole seconds, for values that are sent as such; half a second rounds up, as for BIRD upstream.
    pub fn seconds(self) -> u64 {
        self.magnitude.saturating_add(Duration::from_millis(500)).as_secs()
    }

    /// In units of `unit`, with as many decimals as it takes: `1.5`.
    pub fn in_units_of(self, unit: Duration) -> String {
        let number = self.magnitude.as_nanos() as f64 / unit.as_nanos() as f64;
        format!("{}{number}", if self.negative { "-" } else { "" })
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration such as 90s or 1m30s");
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(GoDuration { negative: false, magnitude: Duration::ZERO });
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut nanos = 0_f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..length] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 6e10,
                "h" => 3.6e12,
                _ => return Err(bad()),
            };
            nanos += number * unit;
            rest = &rest[length..];
        }
        if !nanos.is_finite() || nanos > i64::MAX as f64 {
            return Err(bad());
        }
        Ok(GoDuration { negative, magnitude: Duration::from_nanos(nanos.round() as u64) })
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_three_spellings() {
        let port = |text: &str| text.parse::<Port>();
        assert_eq!(port("80"), Ok(Port::Range { first: 80, last: 80 }));
        assert_eq!(port("80:90"), Ok(Port::Range { first: 80, last: 90 }));
        assert_eq!(port("http-alt"), Ok(Port::Name("http-alt".into())));
        assert!(port("90:80").is_err());
        assert!(port("65536").is_err());
        assert!(port("a b").is_err());
        assert!(port("").is_err());
    }

    #[test]
    fn numeric_protocol_text_is_a_number() {
        let protocol = |json: &str| serde_json::from_str::<Protocol>(json);
        assert_eq!(protocol("\"17\"").unwrap(), Protocol::Number(17));
        assert_eq!(protocol("6").unwrap(), Protocol::Number(6));
        assert_eq!(protocol("\"TCP\"").unwrap(), Protocol::Name("TCP".into()));
        assert!(protocol("256").is_err());
    }

    #[test]
    fn as_numbers_may_be_dotted() {
        assert_eq!("1.10".parse(), Ok(AsNumber(65546)));
        assert_eq!("64512".parse(), Ok(AsNumber(64512)));
        assert!("4294967296".parse::<AsNumber>().is_err());
    }

    #[test]
    fn durations_read_as_go_writes_them() {
        let units = |text: &str, unit| text.parse::<GoDuration>().unwrap().in_units_of(unit);
        assert_eq!(units("1500ms", Duration::from_secs(1)), "1.5");
        assert_eq!(units("1m30s", Duration::from_secs(1)), "90");
        assert_eq!(units("50.5ms", Duration::from_millis(1)), "50.5");
        assert_eq!(units("12.345s", Duration::from_secs(1)), "12.345");
        assert!("90".parse::<GoDuration>().is_err());
        assert!("s".parse::<GoDuration>().is_err());
    }
}
