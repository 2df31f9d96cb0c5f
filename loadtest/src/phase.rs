//! What happens to a fleet, one thing after the other: `churn:seconds=30,rate=50`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A part of a run. After each one all nodes have to hold what the datastore holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    /// Nothing changes.
    Idle { seconds: u64 },
    /// Pods start, end and change labels, `rate` per second.
    Churn { seconds: u64, rate: f64 },
    /// `count` versions of policies that concern every node.
    Rollout { count: usize },
    /// `count` namespaces go, with everything in them.
    Namespaces { count: usize },
    /// All nodes die and join again at once.
    Storm,
    /// The network cuts all streams at once, for a while; the nodes come back with what they hold.
    Cut { seconds: u64 },
    /// All streams end, and nothing has changed when the nodes are back: what that costs, in bytes and time.
    Reconnect,
    /// The network cuts each replica off for a while, one after the other: its nodes go on with what they hold elsewhere.
    Failover { seconds: u64 },
    /// The network drops what passes to and from each replica for a while, one after the other, and tells nobody.
    Partition { seconds: u64 },
    /// `count` nodes leave, with their pods, and come back empty.
    Nodes { count: usize },
    /// The typhas stand still while pods change and the datastore forgets its history (`--local` only): they have to
    /// list anew.
    Compact { seconds: u64, rate: f64 },
    /// An idle day: 24 times a single change and a compaction, `seconds` in all (`--local` only).
    Day { seconds: u64 },
    /// `percent` of the nodes stop reading for a while, under churn.
    Stall { percent: f64, seconds: u64, rate: f64 },
    /// `percent` of the nodes read one event every `pause` milliseconds for a while, under churn.
    Slow { percent: f64, seconds: u64, rate: f64, pause: u64 },
    /// The typhas are restarted one by one, under churn (`--local` only).
    Rolling { rate: f64 },
    /// The datastore stops answering for a while (`--local` only): nothing may be withdrawn.
    Freeze { seconds: u64 },
}

pub const NAMES: &str = "idle, day, churn, rollout, namespaces, nodes, storm, reconnect, cut, failover, partition, stall, slow, rolling, freeze, compact";

impl Phase {
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Idle { .. } => "idle",
            Phase::Churn { .. } => "churn",
            Phase::Rollout { .. } => "rollout",
            Phase::Namespaces { .. } => "namespaces",
            Phase::Storm => "storm",
            Phase::Cut { .. } => "cut",
            Phase::Reconnect => "reconnect",
            Phase::Failover { .. } => "failover",
            Phase::Partition { .. } => "partition",
            Phase::Nodes { .. } => "nodes",
            Phase::Compact { .. } => "compact",
            Phase::Day { .. } => "day",
            Phase::Stall { .. } => "stall",
            Phase::Slow { .. } => "slow",
            Phase::Rolling { .. } => "rolling",
            Phase::Freeze { .. } => "freeze",
        }
    }

    /// Whether it changes the datastore.
    pub fn writes(&self) -> bool {
        !matches!(
            self,
            Phase::Idle { .. }
                | Phase::Storm
                | Phase::Reconnect
                | Phase::Cut { .. }
                | Phase::Failover { .. }
                | Phase::Partition { .. }
                | Phase::Freeze { .. }
        )
    }

    /// Whether it acts on servers that the run has to have started itself.
    pub fn needs_local(&self) -> bool {
        matches!(
            self,
            Phase::Rolling { .. } | Phase::Freeze { .. } | Phase::Compact { .. } | Phase::Day { .. }
        )
    }

    /// Whether streams have to go through relays.
    pub fn cuts(&self) -> bool {
        matches!(
            self,
            Phase::Reconnect | Phase::Cut { .. } | Phase::Failover { .. } | Phase::Partition { .. }
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Phase::Idle { seconds }
            | Phase::Cut { seconds }
            | Phase::Freeze { seconds }
            | Phase::Failover { seconds }
            | Phase::Partition { seconds }
            | Phase::Day { seconds } => write!(f, "{name}:seconds={seconds}"),
            Phase::Churn { seconds, rate } | Phase::Compact { seconds, rate } => {
                write!(f, "{name}:seconds={seconds},rate={rate}")
            }
            Phase::Rollout { count } | Phase::Namespaces { count } | Phase::Nodes { count } => {
                write!(f, "{name}:count={count}")
            }
            Phase::Storm | Phase::Reconnect => f.write_str(name),
            Phase::Stall { percent, seconds, rate } => {
                write!(f, "{name}:percent={percent},seconds={seconds},rate={rate}")
            }
            Phase::Slow { percent, seconds, rate, pause } => {
                write!(f, "{name}:percent={percent},seconds={seconds},rate={rate},pause={pause}")
            }
            Phase::Rolling { rate } => write!(f, "{name}:rate={rate}"),
        }
    }
}

/// `name=value` pairs, each to be taken once.
struct Values<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Values<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not name=value"))?;
            if values.insert(name, value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Values(values))
    }

    fn take<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.0.remove(name) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| format!("{name}={value} is not a number that fits")),
        }
    }

    fn rate(&mut self) -> Result<f64, String> {
        self.within("rate", 50.0, 0.1..=100_000.0)
    }

    fn within(
        &mut self,
        name: &str,
        default: f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64, String> {
        let value = self.take(name, default)?;
        if range.contains(&value) {
            return Ok(value);
        }
        Err(format!("{name}={value} is not from {} to {}", range.start(), range.end()))
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut values = Values::read(rest).map_err(|error| format!("{name}: {error}"))?;
        let phase = (|| {
            Ok(match name {
                "idle" => Phase::Idle { seconds: values.take("seconds", 10)? },
                "churn" => Phase::Churn { seconds: values.take("seconds", 20)?, rate: values.rate()? },
                "rollout" => Phase::Rollout { count: values.take("count", 10)? },
                "namespaces" => Phase::Namespaces { count: values.take("count", 1)? },
                "storm" => Phase::Storm,
                "reconnect" => Phase::Reconnect,
                "cut" => Phase::Cut { seconds: values.take("seconds", 0)? },
                "failover" => Phase::Failover { seconds: values.take("seconds", 5)? },
                "partition" => Phase::Partition { seconds: values.take("seconds", 40)? },
                "nodes" => Phase::Nodes { count: values.take("count", 10)? },
                "compact" => Phase::Compact { seconds: values.take("seconds", 5)?, rate: values.rate()? },
                "day" => Phase::Day { seconds: values.take("seconds", 48)? },
                "stall" => Phase::Stall {
                    percent: values.within("percent", 10.0, 0.0..=100.0)?,
                    seconds: values.take("seconds", 20)?,
                    rate: values.rate()?,
                },
                "slow" => Phase::Slow {
                    percent: values.within("percent", 10.0, 0.0..=100.0)?,
                    seconds: values.take("seconds", 20)?,
                    rate: values.rate()?,
                    pause: values.take("pause", 500)?,
                },
                "rolling" => Phase::Rolling { rate: values.rate()? },
                "freeze" => Phase::Freeze { seconds: values.take("seconds", 10)? },
                _ => return Err(format!("is no phase; there are {NAMES}")),
            })
        })();
        let phase = phase.map_err(|error: String| format!("{name}: {error}"))?;
        match values.0.first_key_value() {
            None => Ok(phase),
            Some((other, _)) => Err(format!("{name}: has no {other}; as a whole it is {phase}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_as_they_are_printed() {
        for text in NAMES.split(", ") {
            let phase: Phase = text.parse().expect(text);
            assert_eq!(phase.to_string().parse(), Ok(phase));
            assert!(NAMES.contains(phase.name()));
        }
        assert_eq!("churn:rate=5,seconds=2".parse(), Ok(Phase::Churn { seconds: 2, rate: 5.0 }));
    }

    #[test]
    fn mistakes_say_what_to_do() {
        for (text, part) in [
            ("chrun", "there are idle, day, churn"),
            ("churn:rate=fast", "rate=fast is not a number"),
            ("churn:rate=0", "not from 0.1"),
            ("churn:rate=1,rate=2", "twice"),
            ("churn:rates=1", "has no rates; as a whole it is churn:seconds=20,rate=50"),
            ("stall:percent=200", "from 0 to 100"),
            ("idle:10", "name=value"),
        ] {
            let error = text.parse::<Phase>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
