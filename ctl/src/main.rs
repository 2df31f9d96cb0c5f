//! `bulrushctl`: reads and writes the resources of a cluster, in its datastore.
//!
//! Files, settings, columns and messages are those that `calicoctl` users know. Exit status: 0 all done, 1 not (or
//! not all) done, 2 wrong usage, 3 a typha could not be asked.

mod bgp;
mod certs;
mod check;
mod checksystem;
mod cli;
mod columns;
mod convert;
mod diags;
mod explain;
mod files;
mod fleet;
mod get;
mod grid;
mod info;
mod init;
mod ipam;
mod label;
mod node;
mod node_status;
mod old;
mod output;
mod patch;
mod settings;
#[cfg(test)]
mod tests;
mod write;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser as _;
use cli::{Bgp, Cli, Command, DatastoreCommand, Ipam, IpamShow, NodeCommand};
use syncer_common::backend::config::{StoreConfig, open};
use syncer_common::backend::{self, Datastore};

/// What a command has to say.
#[derive(Debug)]
pub struct Report {
    /// For standard output.
    pub text: String,
    /// For standard error, a line each.
    pub warnings: Vec<String>,
    /// Whether all was done and is well.
    pub complete: bool,
    /// Another exit status than that says.
    pub exit: Option<u8>,
}

impl From<String> for Report {
    fn from(text: String) -> Self {
        Report { text, warnings: Vec::new(), complete: true, exit: None }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(report) => {
            for warning in &report.warnings {
                eprintln!("warning: {warning}");
            }
            let mut out = std::io::stdout();
            match out.write_all(report.text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that has seen enough (`head`) is no failure.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    eprintln!("standard output: {error}");
                    ExitCode::FAILURE
                }
                _ if report.exit.is_some() => ExitCode::from(report.exit.unwrap_or_default()),
                _ if report.complete => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<Report> {
    // What needs no datastore.
    let command = match cli.command {
        Command::Validate(from) => return check::run(&from.filename, &from.namespace),
        Command::Convert { from, output, ignore_validation } => {
            return convert::run(&from.filename, &from.namespace, output, ignore_validation);
        }
        Command::Certs(wanted) => return certs::run(&wanted).map(Report::from),
        Command::Node(NodeCommand::Status { bird_socket, bird6_socket }) => {
            return node_status::run(&node_status::Sockets { bird: bird_socket, bird6: bird6_socket });
        }
        Command::Node(NodeCommand::Checksystem) => return checksystem::run(),
        Command::Node(NodeCommand::Diags { out }) => return diags::run(out.as_deref()),
        Command::Version { client: true } => return Ok(info::client_version().into()),
        command => command,
    };
    let given = settings::Given { kubeconfig: cli.kubeconfig, context: cli.context };
    let config = settings::read(&cli.config, &given, &|name| std::env::var(name).ok())?;
    let kubernetes = matches!(config, StoreConfig::Kubernetes(_));
    if let Command::Node(NodeCommand::Init(options)) = &command {
        init::run(&config, options).await?;
        return Ok(String::new().into());
    }
    let store = open(&config).await;
    if let Command::Version { .. } = command {
        let text = info::client_version();
        let cluster = async { info::cluster_version(store?.as_ref()).await };
        return Ok(match cluster.await {
            Ok(cluster) => (text + &cluster).into(),
            Err(error) => Report { text, warnings: vec![format!("{error:#}")], complete: false, exit: None },
        });
    }
    let store = store?;
    if let Command::Datastore(DatastoreCommand::Info) = command {
        return info::datastore(&config, store).await;
    }
    let command = match command {
        Command::Status { access, dead_after, output } => {
            let expected = fleet::status::expected(store.as_ref()).await?;
            let answers = access.ask(&access.find(&config).await?).await?;
            return fleet::status::report(&answers, &expected, dead_after * 1000, &output);
        }
        Command::Wait { target, namespace, revision, timeout, agents, dead_after, access, output } => {
            let timeout = Duration::from_secs_f64(timeout);
            let dead_after = dead_after * 1000;
            let wanted =
                fleet::wait::Wanted { target, namespace, revision, timeout, agents, dead_after, output };
            return fleet::wait::run(&config, store, &access, wanted).await;
        }
        command => command,
    };
    let done = match command {
        Command::Explain { from, to, port } => explain::run(store, &from, &to, &port).await,
        command => on(store.as_ref(), kubernetes, command).await,
    };
    done.map_err(|error| {
        let unreachable = error.chain().any(|cause| {
            let cause = cause.downcast_ref::<backend::Error>();
            matches!(cause, Some(backend::Error::Unavailable { .. }))
        });
        match unreachable {
            true => anyhow!("{error:#}\n{}; `bulrushctl datastore info` tells more", info::place(&config)),
            false => error,
        }
    })
}

/// The commands that read or write objects.
async fn on(store: &dyn Datastore, kubernetes: bool, command: Command) -> Result<Report> {
    use write::{Verb, from_files};
    match command {
        Command::Apply(from) => {
            from_files(store, Verb::Apply, &from.files.filename, &from.files.namespace, from.skip_empty).await
        }
        Command::Replace(from) => {
            from_files(store, Verb::Replace, &from.files.filename, &from.files.namespace, from.skip_empty)
                .await
        }
        Command::Create { from, skip_exists } => {
            let verb = Verb::Create { skip_exists };
            from_files(store, verb, &from.files.filename, &from.files.namespace, from.skip_empty).await
        }
        Command::Delete { what, skip_not_exists } => {
            let verb = Verb::Delete { skip_not_exists, release: !kubernetes };
            match what.kind {
                None if what.filename.is_empty() => bail!("say what to delete: a kind and names, or -f FILE"),
                None => from_files(store, verb, &what.filename, &what.namespace, false).await,
                Some(_) if what.name.is_empty() => bail!("say which to delete: a name is missing"),
                Some(kind) => write::delete_named(store, verb, &kind, &what.name, &what.namespace)
                    .await
                    .map(Report::from),
            }
        }
        Command::Get { what, all_namespaces, output } => {
            let namespace = (!all_namespaces).then_some(what.namespace.as_str());
            let found = match what.kind {
                Some(kind) => get::by_name(store, &kind, &what.name, namespace, &output).await,
                None if what.filename.is_empty() => bail!("say what to get: a kind, or -f FILE"),
                None => get::by_file(store, &what.filename, &what.namespace, &output).await,
            };
            found.map(Report::from)
        }
        Command::Patch { kind, name, patch, type_, namespace } => {
            patch::run(store, &kind, &name, &namespace, &patch, type_).await.map(Report::from)
        }
        Command::Label { kind, name, labels, overwrite, remove, namespace } => {
            let mode = match (overwrite, remove) {
                (_, true) => label::Mode::Remove,
                (true, false) => label::Mode::Overwrite,
                (false, false) => label::Mode::Set,
            };
            label::run(store, &kind, &name, &namespace, &labels, mode).await.map(Report::from)
        }
        Command::Bgp(Bgp::Advise(options)) => bgp::advise(store, &options).await,
        Command::Ipam(Ipam::Show(show)) => {
            ipam_show(store, show).await.context("ipam show").map(Report::from)
        }
        Command::Validate(_)
        | Command::Convert { .. }
        | Command::Version { .. }
        | Command::Datastore(_)
        | Command::Node(_)
        | Command::Explain { .. }
        | Command::Certs(_)
        | Command::Status { .. }
        | Command::Wait { .. } => {
            unreachable!("answered before, without looking at single objects")
        }
    }
}

async fn ipam_show(store: &dyn Datastore, show: IpamShow) -> Result<String> {
    match show {
        IpamShow { ip: Some(ip), .. } => ipam::one(store, &ip).await,
        IpamShow { show_borrowed: true, .. } => ipam::borrowed(store).await,
        IpamShow { show_configuration: true, .. } => ipam::configuration(store).await,
        IpamShow { show_blocks, .. } => ipam::utilization(store, show_blocks).await,
    }
}
