//! Logging to standard error: text for people, or one JSON object a line.
//!
//! The level is a tracing filter directive (`info`, `debug`, `warn,typha=debug`); Calico's words for levels
//! (`Warning`, `Fatal`, `none`) are understood, so that its settings can be used as they are.

use std::io::IsTerminal;
use std::sync::OnceLock;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Changes the filter of the running process; set by `init`.
type Change = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Starts logging; once a process. `level` is a filter directive or one of Calico's level names.
pub fn init(level: &str, format: Format) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)?).with_writer(std::io::stderr);
    macro_rules! start {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let started = builder.try_init();
            let change: Change =
                Box::new(move |filter| handle.reload(filter).context("changing the log level"));
            // Set twice only if logging starts twice, which fails below.
            CHANGE.set(change).ok();
            started
        }};
    }
    let started = match format {
        Format::Text => start!(builder.with_ansi(std::io::stderr().is_terminal())),
        Format::Json => start!(builder.json().flatten_event(true)),
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot be started twice: {error}"))
}

/// Another level from now on.
pub fn set(level: &str) -> anyhow::Result<()> {
    let filter = filter(level)?;
    CHANGE.get().context("logging has not been started")?(filter)
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(directive(level)).with_context(|| {
        format!("log level {level:?} is neither a level (error, warn, info, debug, trace) nor a filter such as \"info,typha=debug\"")
    })
}

/// `text` or `json`.
pub fn format(text: &str) -> anyhow::Result<Format> {
    match text.to_ascii_lowercase().as_str() {
        "" | "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => anyhow::bail!("log format {text:?}: expected text or json"),
    }
}

fn directive(level: &str) -> String {
    match level.trim().to_ascii_lowercase().as_str() {
        "" => "info".into(),
        "none" => "off".into(),
        "warning" => "warn".into(),
        "fatal" | "panic" => "error".into(),
        // A bare level is case-insensitive; in a longer filter, target names are not.
        bare @ ("error" | "warn" | "info" | "debug" | "trace") => bare.to_owned(),
        _ => level.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_of_calico_are_understood() {
        for (level, expected) in
            [("INFO", "info"), ("Warning", "warn"), ("Fatal", "error"), ("none", "off"), ("", "info")]
        {
            assert_eq!(directive(level), expected);
        }
        assert_eq!(directive("info,Typha=debug"), "info,Typha=debug");
    }
}
