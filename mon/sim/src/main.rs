//! `holdfast-mon-sim`: seeds of the monitors' simulation. A failed seed is printed with the command that replays it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use holdfast_mon_sim::{Config, Summary, campaign};

#[derive(Parser)]
#[command(about = "The production monitors under deterministic simulation")]
struct Cli {
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
    /// Runs up to `--seeds` seeds with each seeded bug, and fails for one that nobody notices.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Only this bug.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    only: Option<String>,
}

/// A campaign of fewer seeds is not expected to have had every kind of fault.
const SEEDS_FOR_EVERY_FAULT: u64 = 50;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (monitors, storm) = (cli.monitors, Duration::from_secs(cli.storm));
    let config = Config { monitors, storm, calm: cli.calm, traced: cli.trace, off: None };
    let threads = cli.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    #[cfg(feature = "mutants")]
    if cli.mutants {
        return hunt(&cli, &config, threads);
    }
    let summary = campaign(cli.from, cli.seeds, &config, threads, 10, |report| {
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

#[cfg(feature = "mutants")]
fn hunt(cli: &Cli, config: &Config, threads: usize) -> ExitCode {
    use holdfast_mon_sim::Catch;

    println!("| mutant | what it breaks | noticed by | seed | what was said |\n|---|---|---|---|---|");
    let rows = holdfast_mon_sim::hunt(cli.from, cli.seeds, config, threads, cli.only.as_deref(), |mutant, catch| {
        let breaks = mutant.breaks();
        match catch {
            Some(Catch { seed, noticed, violation }) => {
                println!("| `{mutant:?}` | {breaks} | {noticed:?} | {seed} | {violation} |");
            }
            None => println!("| `{mutant:?}` | {breaks} | **not caught** | | |"),
        }
    });
    if rows.iter().all(|(_, catch)| catch.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
