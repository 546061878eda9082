//! `holdfast-mon-sim`: seeds of the monitors' simulation. A failed seed is printed with the command that replays it.
//! `cargo xtask sim-monitors` calls it. With the feature `mutants`, `--broken NAME` breaks a rule first, to look at what a mutant
//! does, and `holdfast-mon-sim mutants` hunts all of them; `cargo xtask mutants` calls that.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
#[cfg(feature = "mutants")]
use holdfast_mon_sim::{Budget, Catch, Row, Without};
use holdfast_mon_sim::{Config, Summary, campaign};

#[derive(Parser)]
#[command(about = "The production monitors under deterministic simulation")]
#[cfg_attr(feature = "mutants", command(args_conflicts_with_subcommands = true))]
struct Cli {
    #[cfg(feature = "mutants")]
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Three or five monitors; without, the seed decides.
    #[arg(long)]
    monitors: Option<usize>,
    /// Simulated seconds in which things go wrong.
    #[arg(long, default_value_t = 60)]
    storm: u64,
    /// No faults at all.
    #[arg(long)]
    calm: bool,
    /// Threads; without, one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Says on standard error what happens; for one seed.
    #[arg(long)]
    trace: bool,
    /// One line for each seed.
    #[arg(long)]
    each: bool,
    /// Breaks the rule of this name first.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    broken: Option<String>,
}

#[cfg(feature = "mutants")]
#[derive(clap::Subcommand)]
enum Command {
    /// Runs seeds with each seeded bug; fails for one that no checker notices, and for a checker that none of them needs.
    Mutants(Hunting),
}

#[cfg(feature = "mutants")]
#[derive(clap::Args)]
struct Hunting {
    /// Seeds that one bug may take.
    #[arg(long, default_value_t = 40)]
    budget: u64,
    /// The same without the checker that complained first; as many, if this is not given.
    #[arg(long)]
    without: Option<u64>,
    /// Threads; without, one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Only these bugs, with commas between them.
    #[arg(long)]
    only: Option<String>,
    /// Proves of each checker but once that it is needed.
    #[arg(long)]
    brief: bool,
    /// Writes the tables to this file.
    #[arg(long)]
    table: Option<std::path::PathBuf>,
}

/// A campaign of fewer seeds is not expected to have had every kind of fault.
const SEEDS_FOR_EVERY_FAULT: u64 = 50;

fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "mutants")]
    if let Some(Command::Mutants(asked)) = &cli.command {
        return hunt(asked);
    }
    #[cfg(feature = "mutants")]
    if let Some(name) = &cli.broken
        && !holdfast_mon_sim::break_rule(name)
    {
        eprintln!("--broken: there is no rule {name}");
        return ExitCode::from(2);
    }
    let (monitors, storm) = (cli.monitors, Duration::from_secs(cli.storm));
    let config = Config { monitors, storm, calm: cli.calm, traced: cli.trace, off: None };
    let summary = campaign(cli.from, cli.seeds, &config, threads(cli.threads), 10, |report| {
        if cli.each {
            let (seed, hash, polls) = (report.seed, report.hash, report.polls);
            println!("seed {seed}: hash {hash:016x}, {polls} polls, {:?}", report.counts);
        }
    });
    finish(&cli, &summary)
}

fn finish(cli: &Cli, summary: &Summary) -> ExitCode {
    for (seed, violations) in &summary.failed {
        for violation in violations.iter().take(5) {
            println!("seed {seed}: {violation}");
        }
        let monitors = cli.monitors.map_or_else(String::new, |monitors| format!(" --monitors {monitors}"));
        println!("replay: cargo xtask sim-monitors --from {seed} --seeds 1 -- --storm {}{monitors}", cli.storm);
    }
    let never = summary.never();
    let incomplete = !cli.calm && cli.seeds >= SEEDS_FOR_EVERY_FAULT && !never.is_empty();
    if incomplete {
        println!("these faults never happened, so nothing is proven about them: {}", never.join(", "));
    }
    println!("{summary}");
    if summary.failed.is_empty() && !incomplete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What has been found of one bug, in one line.
#[cfg(feature = "mutants")]
fn told(row: &Row) -> String {
    let said = |catch: &Catch| {
        let text = catch.text.lines().next().unwrap_or_default();
        format!("{:?} in {} seeds: {text:.160}", catch.noticed, catch.seeds())
    };
    let mutant = row.mutant;
    match (&row.catch, &row.without) {
        (None, _) => format!("{mutant:?}: NOT CAUGHT"),
        (Some(first), Without::Untried) => format!("{mutant:?}: {}", said(first)),
        (Some(first), Without::Missed) => {
            format!("{mutant:?}: {}; without {}: NOT CAUGHT", said(first), first.first)
        }
        (Some(first), Without::Caught(then)) => {
            format!("{mutant:?}: {}; without {}: {}", said(first), first.first, said(then))
        }
    }
}

#[cfg(feature = "mutants")]
fn hunt(asked: &Hunting) -> ExitCode {
    let budget = Budget { first: asked.budget, without: asked.without.unwrap_or(asked.budget) };
    let mut written = Ok(());
    let hunt =
        holdfast_mon_sim::hunt(budget, threads(asked.threads), asked.only.as_deref(), asked.brief, |hunt, row| {
            println!("{}", told(row));
            // What is ended early has told what it found until then.
            if let Some(path) = &asked.table {
                written = std::fs::write(path, hunt.to_string())
                    .map_err(|error| format!("cannot write {}: {error}", path.display()));
            }
        });
    if let Err(error) = written {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let (escaped, needless) = (hunt.escaped(), hunt.needless());
    println!("{} mutants; not caught: {escaped:?}; checkers that none needs: {needless:?}", hunt.rows.len());
    let is_proved = escaped.is_empty() && (needless.is_empty() || asked.only.is_some());
    // A hunt for nothing, by a name that is none, proves nothing.
    if is_proved && !hunt.rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
