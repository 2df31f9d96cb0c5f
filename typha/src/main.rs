//! `typha`: reads its settings and runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, Command, value_parser};
use daemon::Settings;
use typha::config::{Config, DEFAULT_FILE, PREFIX, SPECS};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("typha: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let settings = Settings::new(PREFIX, SPECS);
    let file = format!("Settings, as name = value lines [default: {DEFAULT_FILE} if it is there]");
    let command = Command::new("typha")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Watches the datastore once and serves every node's agents from it")
        .after_help(
            "Every setting may be a flag, a variable TYPHA_<NAME>, or a line `Name = value` in the file; flags win \
             over variables, variables over the file. \"none\" stands for the empty or zero value.",
        )
        .arg(
            Arg::new("config-file")
                .short('c')
                .long("config-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help(file),
        )
        .args(settings.args());
    let matches = command.get_matches();
    let settings = settings.with_flags(&matches).with_process_environment();
    let settings = match matches.get_one::<PathBuf>("config-file") {
        Some(file) => settings.with_file(file, true)?,
        None => settings.with_file(Path::new(DEFAULT_FILE), false)?,
    };
    let config = Config::read(&settings)?;
    for name in settings.unknown() {
        eprintln!("typha: setting {name} in the file is not known, and ignored");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(typha::daemon::run(config))
}
