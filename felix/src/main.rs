//! The `felix` program: the daemon, and `felix render` for looking at what it would program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use felix::config::{self, Config};
use felix::iptables::IpVersion;

/// A node's whole view of the cluster is built once and kept: glibc's heap rests with the holes of that.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("render", matches)) => render(matches),
        Some(("status", matches)) => ask(matches, &["status"]),
        Some(("explain", asked)) => {
            let word = |name: &str| asked.get_one::<String>(name).map_or("", String::as_str);
            ask(asked, &["explain", word("from"), word("to"), word("port"), word("interface")])
        }
        _ => run(&matches),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("felix: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).long(name).value_parser(value_parser!(PathBuf));
    let word = |name: &'static str| Arg::new(name).long(name).value_name(name.to_uppercase());
    let socket =
        || path("socket").help("The agent's socket [default: felix.sock below EndpointStatusPathPrefix]");
    let node = || Arg::new("node").long("node").value_name("NAME").help("This node's name in the datastore");
    Command::new("felix")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Enforces policy and keeps workload routes on a node, from the objects that typha sends")
        .after_help(
            "Parameters of FelixConfiguration may be given as FELIX_<NAME> or in the file, too; they override the \
             datastore.\nStopping felix leaves rules, IP sets and routes as they are.",
        )
        .arg(path("config-file").help("Settings, as name = value lines [default: /etc/calico/felix.cfg if there]"))
        .arg(node())
        .args(config::settings().args())
        .subcommand(
            Command::new("status")
                .about("Asks the felix of this node what is programmed, what is pending, and for its last error")
                .arg(socket()),
        )
        .subcommand(
            Command::new("explain")
                .about("Asks the felix of this node which tier, policy and rule decides about a packet here")
                .after_help("Examples:\n  felix explain --from shop/web-1 --to 10.65.2.1 --port tcp/5432\n  felix explain --from 192.0.2.7 --to 172.30.0.1 --port tcp/22 --interface eth0")
                .arg(word("from").required(true).help("Who sends: a workload of this node, or an address"))
                .arg(word("to").required(true).help("To whom: a workload of this node, or an address"))
                .arg(word("port").required(true).help("tcp/443, udp/1024:53, icmp, icmp/8/0, icmpv6/128, a protocol's number"))
                .arg(word("interface").help("Interface by which the outside is reached, where several have host endpoints"))
                .arg(socket()),
        )
        .subcommand(
            Command::new("render")
                .about("Prints chains, IP sets and routes of a node that manifests give, and touches nothing")
                .arg(node().required(true))
                .arg(path("manifests").required(true).help("A file of objects, or a folder of such files"))
                .arg(
                    Arg::new("ip-version")
                        .long("ip-version")
                        .value_parser(["4", "6"])
                        .help("Only this family; both if not given"),
                ),
        )
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
    for name in config::unknown(&settings) {
        tracing::warn!(name, "setting in the file is not known");
    }
    for (name, value, origin) in settings.given() {
        tracing::info!(name, value, origin, "setting");
    }
    for (name, value) in &config.parameters {
        tracing::info!(name, value, "parameter given on this node");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(felix::daemon::run(config))
}

fn ask(matches: &ArgMatches, words: &[&str]) -> anyhow::Result<()> {
    let path = match matches.get_one::<PathBuf>("socket") {
        Some(path) => path.clone(),
        None => {
            let no_flags = Command::new("felix").args(config::settings().args()).get_matches_from(["felix"]);
            let config = Config::from_settings(&config::load(&no_flags, &environment(), None)?)?;
            felix::control::socket(&config.status_prefix)
                .context("EndpointStatusPathPrefix is empty, so felix has no socket")?
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    print!("{}", runtime.block_on(felix::control::ask(&path, words))?);
    Ok(())
}

fn render(matches: &ArgMatches) -> anyhow::Result<()> {
    let node = matches.get_one::<String>("node").context("--node is missing")?;
    let manifests = matches.get_one::<PathBuf>("manifests").context("--manifests is missing")?;
    anyhow::ensure!(manifests.exists(), "--manifests {}: no such file or folder", manifests.display());
    let versions: &[IpVersion] = match matches.get_one::<String>("ip-version").map(String::as_str) {
        Some("4") => &[IpVersion::V4],
        Some("6") => &[IpVersion::V6],
        _ => &IpVersion::ALL,
    };
    let no_flags = Command::new("felix").args(config::settings().args()).get_matches_from(["felix"]);
    let settings = config::load(&no_flags, &environment(), None)?;
    let parameters = Config::from_settings(&settings)?.parameters;
    let text =
        felix::offline::render_manifests(node, Path::new(manifests), versions, parameters, &mut |problem| {
            eprintln!("felix: {problem}");
        });
    print!("{text}");
    Ok(())
}
