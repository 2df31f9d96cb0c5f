//! `bulrushctl`: reads and writes the resources of a cluster, in its datastore.
//!
//! Files, settings, columns and messages are those that `calicoctl` users know. Exit status: 0 all done, 1 not (or
//! not all) done, 2 wrong usage.

mod columns;
mod files;
mod get;
mod settings;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use syncer_common::backend::config::open;

/// Reads and writes the resources of a cluster, in its datastore.
#[derive(Parser)]
#[command(name = "bulrushctl", version, after_help = settings::HELP)]
struct Cli {
    /// Settings file, old (`kind: calicoApiConfig`) or new (`kind: CalicoAPIConfig`).
    #[arg(short, long, global = true, default_value = settings::DEFAULT_FILE)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create resources, or replace those that exist.
    Apply(FromFiles),
    /// Create resources that do not exist yet.
    Create {
        #[command(flatten)]
        from: FromFiles,
        /// Pass over resources that exist already.
        #[arg(long)]
        skip_exists: bool,
    },
    /// Replace resources that exist.
    Replace(FromFiles),
    /// Delete resources, by file or by kind and name.
    Delete {
        #[command(flatten)]
        what: Selection,
        /// Pass over resources that do not exist.
        #[arg(long)]
        skip_not_exists: bool,
    },
    /// Print resources.
    Get {
        #[command(flatten)]
        what: Selection,
        /// Namespaced kinds: of every namespace.
        #[arg(short = 'A', short_alias = 'a', long)]
        all_namespaces: bool,
        /// How to print them.
        #[arg(short, long, value_enum, default_value = "ps")]
        output: Output,
    },
    /// Print the version.
    Version,
}

#[derive(Args)]
struct FromFiles {
    /// File or folder of YAML or JSON documents; `-` is standard input.
    #[arg(short, long = "filename", visible_alias = "file", required = true)]
    filename: Vec<PathBuf>,
    /// Namespace of namespaced objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Folders are always read with everything below them; accepted for the sake of scripts.
    #[arg(short = 'R', long, hide = true)]
    recursive: bool,
}

#[derive(Args)]
struct Selection {
    /// Kind: `ippool`, `networkpolicy`, `node`, `wep`, …
    kind: Option<String>,
    /// Names; none means all (get).
    name: Vec<String>,
    /// Take kind and names from this file or folder instead; `-` is standard input.
    #[arg(short, long = "filename", visible_alias = "file", conflicts_with = "kind")]
    filename: Vec<PathBuf>,
    /// Namespace of namespaced kinds.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table with the main columns.
    Ps,
    /// A table with more columns.
    Wide,
    Yaml,
    Json,
    /// `kind/name`, a line each.
    Name,
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
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<String> {
    if let Command::Version = cli.command {
        return Ok(format!("Client Version:    v{}\n", env!("CARGO_PKG_VERSION")));
    }
    let config = settings::read(&cli.config, &|name| std::env::var(name).ok())?;
    let store = open(&config).await?;
    let store = store.as_ref();
    match cli.command {
        Command::Apply(from) => {
            write::from_files(store, write::Verb::Apply, &from.filename, &from.namespace).await
        }
        Command::Replace(from) => {
            write::from_files(store, write::Verb::Replace, &from.filename, &from.namespace).await
        }
        Command::Create { from, skip_exists } => {
            write::from_files(store, write::Verb::Create { skip_exists }, &from.filename, &from.namespace)
                .await
        }
        Command::Delete { what, skip_not_exists } => {
            let verb = write::Verb::Delete { skip_not_exists };
            match what.kind {
                None if what.filename.is_empty() => {
                    anyhow::bail!("say what to delete: a kind and names, or -f FILE")
                }
                None => write::from_files(store, verb, &what.filename, &what.namespace).await,
                Some(_) if what.name.is_empty() => anyhow::bail!("say which to delete: a name is missing"),
                Some(kind) => write::delete_named(store, verb, &kind, &what.name, &what.namespace).await,
            }
        }
        Command::Get { what, all_namespaces, output } => {
            let namespace = (!all_namespaces).then_some(what.namespace.as_str());
            match what.kind {
                Some(kind) => get::by_name(store, &kind, &what.name, namespace, output).await,
                None if what.filename.is_empty() => anyhow::bail!("say what to get: a kind, or -f FILE"),
                None => get::by_file(store, &what.filename, &what.namespace, output).await,
            }
        }
        Command::Version => unreachable!("answered above, without a datastore"),
    }
}
