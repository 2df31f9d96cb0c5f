//! `fuzz`: runs the targets on mutated inputs, one thread each, and says what it found.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fuzz::driver::{self, Limit, Report};
use fuzz::{TARGETS, Target};

/// Fuzzes what Bulrush reads: keys, selectors, values, manifests, messages.
#[derive(Parser)]
struct Arguments {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Executions for each target, in place of a time: then a run is the same every time.
    #[arg(long)]
    executions: Option<u64>,
    /// Two runs with one seed try the same inputs in the same order.
    #[arg(long, default_value_t = rand::random())]
    seed: u64,
    /// Only this target; may be given several times.
    #[arg(long = "target")]
    targets: Vec<String>,
    /// Targets at a time; all processors when not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Only this input, to a single target.
    #[arg(long)]
    input: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let targets = chosen(&arguments.targets)?;
    // What panics is a finding, printed once it is small.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(file) = &arguments.input {
        let [target] = targets.as_slice() else { bail!("--input: name one target with --target") };
        let input = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(match driver::execute(target, &input) {
            Ok(outcome) => {
                println!("{}: holds: {outcome}", target.name);
                ExitCode::SUCCESS
            }
            Err(broken) => {
                println!("{}: broken: {broken}", target.name);
                ExitCode::FAILURE
            }
        });
    }
    let limit = match arguments.executions {
        Some(executions) => Limit::Executions(executions),
        None => Limit::Time(Duration::from_secs(arguments.seconds)),
    };
    let jobs = arguments.jobs.map_or_else(std::thread::available_parallelism, |jobs| {
        jobs.try_into().map_err(|_| std::io::Error::other("--jobs: at least one"))
    })?;
    println!("fuzz: {} targets, seed {}", targets.len(), arguments.seed);
    let (queue, results) = (Mutex::new(targets.iter()), Mutex::new((0u64, 0usize)));
    std::thread::scope(|scope| {
        for _ in 0..jobs.get() {
            scope.spawn(|| {
                while let Some(target) = { queue.lock().expect("no target panics").next() } {
                    let report = driver::run(target, arguments.seed, limit);
                    let mut results = results.lock().expect("no target panics");
                    results.0 += report.executions;
                    results.1 += usize::from(report.found.is_some());
                    print(target, arguments.seed, &report);
                }
            });
        }
    });
    let (executions, found) = results.into_inner().expect("no target panics");
    if found == 0 {
        println!(
            "fuzz: {} targets, {executions} executions, nothing found (seed {})",
            targets.len(),
            arguments.seed
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("fuzz: {found} of {} targets broken (seed {})", targets.len(), arguments.seed);
    Ok(ExitCode::FAILURE)
}

fn chosen(names: &[String]) -> Result<Vec<Target>> {
    if names.is_empty() {
        return Ok(TARGETS.to_vec());
    }
    names
        .iter()
        .map(|name| {
            let known = || TARGETS.map(|target| target.name).join(", ");
            Target::by_name(name)
                .with_context(|| format!("--target {name}: not known; there are {}", known()))
        })
        .collect()
}

fn print(target: &Target, seed: u64, report: &Report) {
    let rate = report.executions as f64 / report.took.as_secs_f64();
    println!(
        "{:<12} {:>9} executions, {rate:>7.0}/s, {:>5} outcomes, slowest {:.1} ms",
        target.name,
        report.executions,
        report.outcomes,
        report.slowest.as_secs_f64() * 1e3
    );
    if let Some(found) = &report.found {
        println!("{}: BROKEN at execution {} (seed {seed}): {}", target.name, found.execution, found.broken);
        println!(
            "{}: input, {} bytes: {:?}",
            target.name,
            found.input.len(),
            String::from_utf8_lossy(&found.input)
        );
    }
}
