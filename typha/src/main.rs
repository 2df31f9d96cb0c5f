//! `typha`: reads its settings and runs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgAction, Command, value_parser};
use daemon::{Reload, Settings};
use typha::config::{Config, DEFAULT_FILE, PREFIX, SPECS};

/// Never printed.
const SECRET: [&str; 1] = ["EtcdPassword"];

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
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Check the settings and the files that they name, print what is given, and end"),
        )
        .args(settings.args());
    let matches = command.get_matches();
    let given = matches.get_one::<PathBuf>("config-file").cloned();
    let check = matches.get_flag("check-config");
    let file = given.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let read = {
        let (file, required) = (file.clone(), given.is_some());
        move || settings.clone().with_flags(&matches).with_process_environment().with_file(&file, required)
    };
    let settings = read()?;
    let config = Config::read(&settings)?;
    for name in settings.unknown() {
        eprintln!("typha: setting {name} in the file is not known, and ignored");
    }
    if check {
        println!("The settings are valid.");
        for (name, value, origin) in settings.given() {
            let value = if SECRET.contains(&name) { "(not shown)" } else { value.as_str() };
            println!("{name} = {value}    ({origin})");
        }
        return Ok(());
    }
    let reload = Reload { read: Box::new(read), file, live: &["LogSeverityScreen"] };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(typha::daemon::run(config, reload))
}
