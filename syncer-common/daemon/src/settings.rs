//! Settings: flag, then environment (`PREFIX_NAME`), then file, then default.
//!
//! A daemon describes each setting once, in a table of [`Spec`]s; the table gives the flags and their
//! `--help`, the names to look for and the defaults. Names are Calico's (`ServerPort` is `--server-port`,
//! `TYPHA_SERVERPORT` in any case, and `ServerPort = 5473` in the file).
//!
//! Empty means not set; `none` means the type's zero value, also where the default is another. A value that
//! cannot be read is an error that names where it came from: a daemon that runs with a setting other than the
//! one written down is worse than one that says so. The environment is an argument, so tests never set it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One setting: its name, its default (as text), and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub default: &'static str,
    pub help: &'static str,
}

pub const fn spec(name: &'static str, default: &'static str, help: &'static str) -> Spec {
    Spec { name, default, help }
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{origin}: {value:?} is not {expected}")]
    Bad { origin: String, value: String, expected: &'static str },
    #[error("{origin}: {reason}")]
    Refused { origin: String, reason: String },
    #[error("reading {path}: {source}: does the file exist, and may this user read it?")]
    Unreadable { path: String, source: std::io::Error },
    #[error("{path} line {line}: {text:?} is neither \"name = value\", a [section] nor a # comment")]
    Syntax { path: String, line: usize, text: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Flag,
    Environment,
    File,
    Datastore,
}

/// Values by lower-case name, per source.
#[derive(Clone, Debug)]
pub struct Settings {
    prefix: &'static str,
    specs: &'static [Spec],
    values: BTreeMap<(Source, String), String>,
    file: String,
}

impl Settings {
    /// `prefix` is that of the environment variables, without the underscore: `TYPHA`.
    pub fn new(prefix: &'static str, specs: &'static [Spec]) -> Self {
        Settings { prefix, specs, values: BTreeMap::new(), file: String::new() }
    }

    /// The flags of the table, for a daemon's command line.
    pub fn args(&self) -> Vec<clap::Arg> {
        let arg = |spec: &Spec| {
            let variable = format!("{}_{}", self.prefix, spec.name.to_ascii_uppercase());
            let default = if spec.default.is_empty() { "" } else { spec.default };
            let help = match default {
                "" => format!("{} [env: {variable}]", spec.help),
                default => format!("{} [env: {variable}] [default: {default}]", spec.help),
            };
            clap::Arg::new(spec.name).long(flag(spec.name)).value_name("VALUE").help(help)
        };
        self.specs.iter().map(arg).collect()
    }

    /// Takes the flags that were given.
    pub fn with_flags(mut self, matches: &clap::ArgMatches) -> Self {
        for spec in self.specs {
            if let Ok(Some(value)) = matches.try_get_one::<String>(spec.name) {
                self.insert(Source::Flag, spec.name, value);
            }
        }
        self
    }

    /// Takes the variables with our prefix; their case does not matter.
    pub fn with_environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let prefix = format!("{}_", self.prefix.to_ascii_lowercase());
        for (name, value) in variables {
            if let Some(name) = name.to_ascii_lowercase().strip_prefix(&prefix) {
                self.insert(Source::Environment, name, &value);
            }
        }
        self
    }

    /// Takes the process's environment.
    pub fn with_process_environment(self) -> Self {
        // Variables that are not Unicode cannot be ours.
        let unicode = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        self.with_environment(unicode.collect::<Vec<_>>())
    }

    /// Takes a file of `name = value` lines. One that does not exist is an error only if `required`.
    pub fn with_file(mut self, path: &Path, required: bool) -> Result<Self, SettingsError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(self),
            Err(source) => {
                return Err(SettingsError::Unreadable { path: path.display().to_string(), source });
            }
            Ok(text) => text,
        };
        self.file = path.display().to_string();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty()
                || line.starts_with(['#', ';'])
                || (line.starts_with('[') && line.ends_with(']'))
            {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(SettingsError::Syntax {
                    path: self.file,
                    line: index + 1,
                    text: line.to_owned(),
                });
            };
            self.insert(Source::File, name.trim(), unquote(value.trim()));
        }
        Ok(self)
    }

    /// Takes what the datastore says, where nothing is said on this node.
    pub fn with_datastore(mut self, parameters: &BTreeMap<String, String>) -> Self {
        for (name, value) in parameters {
            self.insert(Source::Datastore, name, value);
        }
        self
    }

    fn insert(&mut self, source: Source, name: &str, value: &str) {
        if !value.trim().is_empty() {
            self.values.insert((source, name.to_ascii_lowercase()), value.trim().to_owned());
        }
    }

    /// Names in the file that no setting has: worth a warning. (Variables are not looked at: Kubernetes sets
    /// `TYPHA_SERVICE_HOST` and the like by itself.)
    pub fn unknown(&self) -> Vec<String> {
        let known = |name: &str| self.specs.iter().any(|spec| spec.name.eq_ignore_ascii_case(name));
        let in_file = self.values.keys().filter(|(source, name)| *source == Source::File && !known(name));
        in_file.map(|(_, name)| name.clone()).collect()
    }

    /// Every setting that is not left at its default, with where it came from. The caller skips secrets.
    pub fn given(&self) -> Vec<(&'static str, String, String)> {
        let given = |spec: &Spec| {
            let (source, value) = self.find(spec.name)?;
            Some((spec.name, value.to_owned(), self.origin(source, spec.name)))
        };
        self.specs.iter().filter_map(given).collect()
    }

    /// The text given for a setting, wherever it was given.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.find(name).map(|(_, value)| value)
    }

    /// The value of a setting of the table.
    pub fn get<T: Setting>(&self, name: &str) -> Result<T, SettingsError> {
        let default = self
            .specs
            .iter()
            .find(|spec| spec.name.eq_ignore_ascii_case(name))
            .map_or("", |spec| spec.default);
        match self.find(name) {
            Some((source, value)) => self.parse(self.origin(source, name), value),
            None if default.is_empty() => Ok(T::zero()),
            None => self.parse(format!("default of {name}"), default),
        }
    }

    /// The value of a setting, or a default that depends on others.
    pub fn get_or<T: Setting>(&self, name: &str, default: T) -> Result<T, SettingsError> {
        match self.find(name) {
            Some((source, value)) => self.parse(self.origin(source, name), value),
            None => Ok(default),
        }
    }

    /// An error about a setting's value that the type alone does not show.
    pub fn refuse(&self, name: &str, reason: impl fmt::Display) -> SettingsError {
        let origin = self
            .find(name)
            .map_or_else(|| format!("{name} (not set)"), |(source, _)| self.origin(source, name));
        SettingsError::Refused { origin, reason: reason.to_string() }
    }

    fn parse<T: Setting>(&self, origin: String, value: &str) -> Result<T, SettingsError> {
        if value.eq_ignore_ascii_case("none") {
            return Ok(T::zero());
        }
        T::parse(value).ok_or_else(|| SettingsError::Bad {
            origin,
            value: value.to_owned(),
            expected: T::EXPECTED,
        })
    }

    fn find(&self, name: &str) -> Option<(Source, &str)> {
        let name = name.to_ascii_lowercase();
        [Source::Flag, Source::Environment, Source::File, Source::Datastore]
            .into_iter()
            .find_map(|source| Some((source, self.values.get(&(source, name.clone()))?.as_str())))
    }

    fn origin(&self, source: Source, name: &str) -> String {
        match source {
            Source::Flag => format!("--{}", flag(name)),
            Source::Environment => format!("{}_{}", self.prefix, name.to_ascii_uppercase()),
            Source::File => format!("{} in {}", name, self.file),
            Source::Datastore => format!("parameter {name} of the datastore"),
        }
    }
}

/// A type that a setting can have.
pub trait Setting: Sized {
    /// Completes "… is not …".
    const EXPECTED: &'static str;
    /// What `none`, and a setting without default, stand for.
    fn zero() -> Self;
    fn parse(text: &str) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty: $expected:literal),*) => {$(
        impl Setting for $type {
            const EXPECTED: &'static str = $expected;
            fn zero() -> Self {
                Default::default()
            }
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}
number!(
    u8: "a number from 0 to 255", u16: "a number from 0 to 65535", u32: "a whole number of at least 0",
    u64: "a whole number of at least 0", usize: "a whole number of at least 0", i32: "a whole number",
    i64: "a whole number", f64: "a number"
);

impl Setting for String {
    const EXPECTED: &'static str = "text";
    fn zero() -> Self {
        String::new()
    }
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn zero() -> Self {
        PathBuf::new()
    }
    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";
    fn zero() -> Self {
        false
    }
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "y" | "t" | "on" => Some(true),
            "false" | "0" | "no" | "n" | "f" | "off" => Some(false),
            _ => None,
        }
    }
}

/// Seconds, with a fraction if need be.
impl Setting for Duration {
    const EXPECTED: &'static str = "a number of seconds";
    fn zero() -> Self {
        Duration::ZERO
    }
    fn parse(text: &str) -> Option<Self> {
        Duration::try_from_secs_f64(text.strip_suffix('s').unwrap_or(text).parse().ok()?).ok()
    }
}

/// Items between commas.
impl Setting for Vec<String> {
    const EXPECTED: &'static str = "a list with commas";
    fn zero() -> Self {
        Vec::new()
    }
    fn parse(text: &str) -> Option<Self> {
        Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
    }
}

impl Setting for IpAddr {
    const EXPECTED: &'static str = "an IP address";
    fn zero() -> Self {
        IpAddr::from([0, 0, 0, 0])
    }
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl<T: Setting> Setting for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn zero() -> Self {
        None
    }
    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(Some)
    }
}

/// `ServerPort` -> `server-port`, `EtcdCaFile` -> `etcd-ca-file`, `BPFEnabled` -> `bpf-enabled`.
fn flag(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut flag = String::new();
    for (i, letter) in letters.iter().enumerate() {
        let after_lower = i > 0 && !letters[i - 1].is_ascii_uppercase() && letters[i - 1] != '-';
        let starts_word =
            i > 0 && letters.get(i + 1).is_some_and(char::is_ascii_lowercase) && i + 2 < letters.len();
        if letter.is_ascii_uppercase() && (after_lower || starts_word) && !flag.ends_with('-') {
            flag.push('-');
        }
        flag.push(letter.to_ascii_lowercase());
    }
    flag
}

fn unquote(value: &str) -> &str {
    let inner = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[Spec] = &[
        spec("ServerPort", "5473", "port"),
        spec("ServerHost", "", "host"),
        spec("HealthEnabled", "true", "health"),
        spec("GraceSecs", "5", "grace"),
        spec("Peers", "", "peers"),
    ];

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn settings(flags: &[&str], env: &[(&str, &str)], file: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("typha.cfg");
        std::fs::write(&path, file).unwrap();
        let settings = Settings::new("TYPHA", SPECS);
        let command = clap::Command::new("typha").args(settings.args());
        let matches = command.try_get_matches_from(["typha"].iter().chain(flags)).unwrap();
        settings.with_flags(&matches).with_environment(variables(env)).with_file(&path, true).unwrap()
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let port = |settings: Settings| settings.get::<u16>("ServerPort").unwrap();
        assert_eq!(port(settings(&[], &[], "")), 5473);
        assert_eq!(port(settings(&[], &[], "[global]\n# x\nserverport = 1\n")), 1);
        assert_eq!(port(settings(&[], &[("typha_ServerPort", "2")], "ServerPort=1")), 2);
        assert_eq!(port(settings(&["--server-port", "3"], &[("TYPHA_SERVERPORT", "2")], "ServerPort=1")), 3);
    }

    #[test]
    fn empty_is_not_set_and_none_is_zero() {
        let given =
            settings(&[], &[("TYPHA_SERVERPORT", ""), ("TYPHA_HEALTHENABLED", "None")], "GraceSecs = none");
        assert_eq!(given.get::<u16>("ServerPort").unwrap(), 5473);
        assert!(!given.get::<bool>("HealthEnabled").unwrap());
        assert_eq!(given.get::<Duration>("GraceSecs").unwrap(), Duration::ZERO);
        assert_eq!(given.get::<Option<String>>("ServerHost").unwrap(), None);
    }

    #[test]
    fn bad_value_names_where_it_came_from() {
        let text = |settings: Settings, name: &str| settings.get::<u16>(name).unwrap_err().to_string();
        let from_env = text(settings(&[], &[("TYPHA_SERVERPORT", "many")], ""), "ServerPort");
        assert_eq!(from_env, "TYPHA_SERVERPORT: \"many\" is not a number from 0 to 65535");
        let from_flag = text(settings(&["--server-port=-1"], &[], ""), "ServerPort");
        assert!(from_flag.starts_with("--server-port: "), "{from_flag}");
        let from_file = text(settings(&[], &[], "ServerPort=x"), "ServerPort");
        assert!(from_file.starts_with("ServerPort in ") && from_file.contains("typha.cfg"), "{from_file}");
    }

    #[test]
    fn unreadable_line_and_unknown_name_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.cfg");
        std::fs::write(&path, "ServerPort = 1\nwhat is this\n").unwrap();
        let error = Settings::new("TYPHA", SPECS).with_file(&path, true).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(Settings::new("TYPHA", SPECS).with_file(&dir.path().join("absent"), true).is_err());
        assert!(Settings::new("TYPHA", SPECS).with_file(&dir.path().join("absent"), false).is_ok());
        assert_eq!(settings(&[], &[], "Sevrport = 1").unknown(), ["sevrport"]);
    }

    #[test]
    fn lists_and_seconds_are_read() {
        let given =
            settings(&[], &[("TYPHA_PEERS", "a:1, b:2,"), ("TYPHA_GRACESECS", "0.25")], "ServerHost=\"::1\"");
        assert_eq!(given.get::<Vec<String>>("Peers").unwrap(), ["a:1", "b:2"]);
        assert_eq!(given.get::<Duration>("GraceSecs").unwrap(), Duration::from_millis(250));
        assert_eq!(given.get::<String>("ServerHost").unwrap(), "::1");
        assert!(given.given().iter().any(|(name, value, origin)| {
            *name == "Peers" && value == "a:1, b:2," && origin == "TYPHA_PEERS"
        }));
    }

    #[test]
    fn flags_are_the_names_in_words() {
        for (name, expected) in [
            ("ServerPort", "server-port"),
            ("EtcdCaFile", "etcd-ca-file"),
            ("BPFEnabled", "bpf-enabled"),
            ("PrometheusMetricsCAFile", "prometheus-metrics-ca-file"),
            ("K8sNamespace", "k8s-namespace"),
        ] {
            assert_eq!(flag(name), expected);
        }
    }
}
