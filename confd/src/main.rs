//! The `confd` program: the daemon, and `confd render` for looking at what it would write.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use confd::bgp::IncompletePeers;
use confd::config::{self, Config};
use confd::offline;
use confd::render::Syntax;

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("render", matches)) => render(matches),
        Some(("bird", matches)) => bird(matches),
        Some(("template", matches)) => template(matches),
        _ => run(&matches),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("confd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let path = |name: &'static str| {
        Arg::new(name).long(name).value_name("PATH").value_parser(value_parser!(PathBuf))
    };
    Command::new("confd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps a node's BIRD configured for BGP, from the objects that typha sends")
        .after_help(
            "BIRD is not started by confd: run `bird -c CONFIG -s SOCKET` beside it, with the same two paths.\n\
             Stopping confd leaves BIRD, its sessions and its routes as they are.",
        )
        .arg(path("config-file").help("Settings, as name = value lines [default: /etc/calico/confd.cfg if there]"))
        .args(config::settings().args())
        .subcommand(template_command())
        .subcommand(
            Command::new("bird")
                .about("Starts BIRD, with graceful restart (-R) only where the kernel holds its routes")
                .after_help("Example:\n  confd bird -f -c /etc/calico/confd/config/bird.cfg -s /var/run/calico/bird.ctl")
                .arg(
                    Arg::new("arguments")
                        .num_args(0..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true)
                        .value_parser(value_parser!(OsString))
                        .help("Arguments of BIRD"),
                ),
        )
        .subcommand(
            Command::new("render")
                .about("Writes the configuration of a node that manifests give, and touches nothing else")
                .arg(Arg::new("node").long("node").required(true).help("The node's name"))
                .arg(path("manifests").required(true).help("A file of objects, or a folder of such files"))
                .arg(
                    Arg::new("syntax")
                        .long("syntax")
                        .default_value("bird2")
                        .value_parser(|text: &str| text.parse::<Syntax>())
                        .help("bird2: stock BIRD 2, one file; classic: Calico's BIRD, three files for each family"),
                )
                .arg(
                    Arg::new("incomplete-peers")
                        .long("incomplete-peers")
                        .value_name("withhold|open")
                        .value_parser(|text: &str| text.parse::<IncompletePeers>())
                        .help(
                            "Peerings whose password or filter is missing [default: withhold; open with \
                             --syntax classic, to compare with what Calico's confd writes]",
                        ),
                )
                .arg(path("out").required(true).help("The folder to write to")),
        )
}

fn template_command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("template")
        .about("Makes files from templates and what typha sends")
        .after_help(
            "Resources: CONFDIR/conf.d/*.toml; templates (Jinja): CONFDIR/templates. See docs/confd.md.",
        )
        .arg(
            Arg::new("confdir")
                .long("confdir")
                .value_name("PATH")
                .default_value("/etc/confd")
                .value_parser(value_parser!(PathBuf))
                .help("Holds conf.d and templates"),
        )
        .arg(
            Arg::new("prefix")
                .long("prefix")
                .default_value("")
                .help("In front of the prefix of every resource"),
        )
        .arg(flag("onetime").help("Make every file once and end; exit status 1 if one could not be made"))
        .arg(flag("noop").help("Say what would be written, and write nothing"))
        .arg(flag("sync-only").help("Neither check nor reload"))
        .arg(flag("watch").help("Make files at every change, not only at every interval"))
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .default_value("600")
                .value_parser(value_parser!(u64).range(1..))
                .help("How often to look, and to try again what failed"),
        )
        .args(config::settings().args())
}

fn template(matches: &ArgMatches) -> anyhow::Result<()> {
    let settings = config::load(matches, &environment(), None)?;
    let config = Config::from_settings(&settings)?;
    daemon::logging::init(&config.log_level, daemon::logging::format(&config.log_format)?)?;
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let options = confd::template::Options {
        confdir: matches.get_one::<PathBuf>("confdir").cloned().context("--confdir is missing")?,
        node: config.local.node.clone(),
        prefix: text("prefix"),
        onetime: matches.get_flag("onetime"),
        noop: matches.get_flag("noop"),
        sync_only: matches.get_flag("sync-only"),
        watch: matches.get_flag("watch"),
        interval: Duration::from_secs(*matches.get_one::<u64>("interval").context("--interval is missing")?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(confd::daemon::run_templates(config, options))
}

fn bird(matches: &ArgMatches) -> anyhow::Result<()> {
    let no_flags = Command::new("confd").args(config::settings().args()).get_matches_from(["confd"]);
    let settings = config::load(&no_flags, &environment(), None)?;
    let config = Config::from_settings(&settings)?;
    let arguments: Vec<OsString> = matches.get_many("arguments").into_iter().flatten().cloned().collect();
    let binary = config.birds.first().context("no BIRD is configured")?.binary.clone();
    confd::launch::exec(&binary, &arguments)
}

fn environment() -> Vec<(String, String)> {
    // Variables that are not Unicode cannot be ours.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let file = matches.get_one::<PathBuf>("config-file").map(PathBuf::as_path);
    let settings = config::load(matches, &environment(), file)?;
    let config = Config::from_settings(&settings)?;
    daemon::logging::init(&config.log_level, daemon::logging::format(&config.log_format)?)?;
    for name in settings.unknown() {
        tracing::warn!(name, "setting in the file is not known");
    }
    for (name, value, origin) in settings.given() {
        tracing::info!(name, value, origin, "setting");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(confd::daemon::run(config))
}

fn render(matches: &ArgMatches) -> anyhow::Result<()> {
    let node = matches.get_one::<String>("node").context("--node is missing")?;
    let path = |name: &str| matches.get_one::<PathBuf>(name).with_context(|| format!("--{name} is missing"));
    let (manifests, out) = (path("manifests")?, path("out")?);
    let syntax = *matches.get_one::<Syntax>("syntax").context("--syntax is missing")?;
    anyhow::ensure!(manifests.exists(), "--manifests {}: no such file or folder", manifests.display());

    let no_flags = Command::new("confd").args(config::settings().args()).get_matches_from(["confd"]);
    let settings = config::load(&no_flags, &environment(), None)?;
    let mut local = config::local_settings(&settings)?;
    local.node = node.clone();
    let state = config::local_files(&settings)?.read();
    local.incomplete_peers = match matches.get_one::<IncompletePeers>("incomplete-peers") {
        Some(given) => *given,
        None if syntax == Syntax::Classic && settings.raw("IncompletePeers").is_none() => {
            IncompletePeers::Open
        }
        None => local.incomplete_peers,
    };
    let read = offline::read_manifests(manifests, &settings.get::<String>("SecretNamespace")?);
    let written = offline::render_manifests(&local, read, state, syntax, out, &mut |problem| {
        eprintln!("confd: {problem}");
    })?;
    for path in written {
        println!("{}", path.display());
    }
    Ok(())
}
