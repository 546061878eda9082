//! `holdfast-sim [--seeds N] [--from SEED] [--world W] [--threads N] [--trace] [--no-shrink]`: runs seeds of all worlds but
//! `calm`, or of one, and prints what they add up to. It fails when a promise was broken, and when a planned kind of fault never
//! struck. With `--without 3,5,9-40` or `--no loss,doubling` one seed is run without these strikes, or without what happens so by
//! chance: a schedule that was shortened is replayed.
//! `cargo xtask sim` calls it. With the feature `mutants`, `--broken NAME` breaks a rule first, to look at what a mutant does.
//! `holdfast-sim headline [--seeds N] [--from SEED] [--threads N]` runs the worlds of the two headline tests until each has
//! struck in so many seeds; `cargo xtask headline` calls it.

mod failure;

use std::process::ExitCode;
use std::time::Instant;

#[cfg(feature = "mutants")]
use holdfast_sim::{Budget, Catch, Without};
use holdfast_sim::{Config, FaultKind, Mask, SEEDS_ENOUGH, Summary, campaign, campaign_of_all_faults};

/// Runs allocate all the time, and give most of it back at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A campaign ends after so many violations of one world: they are mostly the same one.
const VIOLATIONS_MAX: usize = 10;

/// The worlds of the headline tests, and what must have come about in a seed for it to count: a flipped bit that was met in a
/// copy (half of them hit nothing that is in use), and sectors that were lost. In `power` nothing but a power loss of all OSDs
/// drops any.
const HEADLINES: [(&str, FaultKind); 2] = [("rot", FaultKind::CopyDamaged), ("power", FaultKind::SectorLost)];
/// A headline test gives up when fewer than one of so many seeds struck.
const SEEDS_TO_STRIKE: u64 = 8;

struct Arguments {
    seeds: u64,
    from: u64,
    threads: usize,
    worlds: Vec<(&'static str, Config)>,
    /// What one seed of one world is run without.
    mask: Mask,
    /// Whether the schedule of a failure is shortened.
    shortens: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut seeds, mut from, mut threads, mut trace, mut only) = (100, 0, 2, false, None);
    let (mut without, mut off, mut shortens) = (String::new(), String::new(), true);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => seeds = value()?.parse().map_err(|error| format!("--seeds: {error}"))?,
            "--from" => from = value()?.parse().map_err(|error| format!("--from: {error}"))?,
            "--threads" => threads = value()?.parse().map_err(|error| format!("--threads: {error}"))?,
            "--world" => only = Some(value()?),
            "--trace" => trace = true,
            "--without" => without = value()?,
            "--no" => off = value()?,
            "--no-shrink" => shortens = false,
            #[cfg(feature = "mutants")]
            "--broken" => {
                let name = value()?;
                if !holdfast_sim::break_rule(&name) {
                    return Err(format!("--broken: there is no rule {name}"));
                }
            }
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    let wanted = |name: &str| only.as_ref().map_or(!ONLY_WHEN_NAMED.contains(&name), |only| only == name);
    let worlds = Config::worlds().into_iter().filter(|(name, _)| wanted(name));
    let worlds: Vec<_> = worlds.map(|(name, config)| (name, Config { trace, ..config })).collect();
    if worlds.is_empty() {
        let names: Vec<&str> = Config::worlds().iter().map(|(name, _)| *name).collect();
        return Err(format!("a world is one of {}", names.join(", ")));
    }
    let mask = Mask::parse(&without, &off).map_err(|error| error.to_string())?;
    if !mask.is_empty() && (seeds, worlds.len()) != (1, 1) {
        return Err("--without and --no are for one seed (--seeds 1) of one world (--world)".to_owned());
    }
    // Who looks at one run does not look for another one.
    Ok(Arguments { seeds, from, threads, worlds, mask, shortens: shortens && !trace })
}

/// Nothing strikes in `calm`.
const ONLY_WHEN_NAMED: [&str; 1] = ["calm"];

/// What this process has used of all processors together.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// `holdfast-sim mutants [--budget N] [--without N] [--threads N] [--only NAME,NAME] [--world W] [--brief]
/// [--table PATH]`; `--without` is the budget of runs without a checker.
#[cfg(feature = "mutants")]
fn mutants(mut words: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let (mut budget, mut without, mut threads, mut brief) = (40, None::<u64>, 2, false);
    let (mut only, mut world, mut table) = (None, None::<String>, None::<String>);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--budget" => budget = value()?.parse().map_err(|error| format!("--budget: {error}"))?,
            "--without" => without = Some(value()?.parse().map_err(|error| format!("--without: {error}"))?),
            "--threads" => threads = value()?.parse().map_err(|error| format!("--threads: {error}"))?,
            "--only" => only = Some(value()?),
            "--world" => world = Some(value()?),
            "--brief" => brief = true,
            "--table" => table = Some(value()?),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    // Broken assertions are what is looked for; each would print a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let mut written = Ok(());
    let budget = Budget { first: budget, without: without.unwrap_or(budget) };
    let hunt = holdfast_sim::hunt(budget, threads, only.as_deref(), world.as_deref(), brief, |hunt, row| {
        let said = |catch: &Catch| {
            let text = catch.text.lines().next().unwrap_or_default();
            format!("{:?} in {} seeds ({}, {}): {text:.160}", catch.noticed, catch.seeds, catch.world, catch.seed)
        };
        match (&row.catch, &row.without) {
            (None, _) => println!("{:?}: NOT CAUGHT", row.mutant),
            (Some(first), Without::Untried) => println!("{:?}: {}", row.mutant, said(first)),
            (Some(first), Without::Missed) => {
                println!("{:?}: {}; without {}: NOT CAUGHT", row.mutant, said(first), first.first)
            }
            (Some(first), Without::Caught(then)) => {
                println!("{:?}: {}; without {}: {}", row.mutant, said(first), first.first, said(then))
            }
        }
        // What takes hours and is ended early has told what it found until then.
        if let Some(path) = &table {
            written = std::fs::write(path, hunt.to_string()).map_err(|error| format!("cannot write {path}: {error}"));
        }
    });
    written?;
    let (escaped, needless) = (hunt.escaped(), hunt.needless());
    println!("{} mutants; not caught: {escaped:?}; checkers that none needs: {needless:?}", hunt.rows.len());
    Ok(if escaped.is_empty() && (needless.is_empty() || only.is_some()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the worlds of the headline tests until each was struck in as many seeds as were asked for.
fn headline(arguments: &Arguments) -> ExitCode {
    let mut failed = false;
    for (name, kind) in HEADLINES {
        let Some((_, config)) = arguments.worlds.iter().find(|(world, _)| *world == name) else {
            failed = true;
            continue;
        };
        let (mut total, mut from) = (Summary::default(), arguments.from);
        let struck = |total: &Summary| total.struck.get(&kind).copied().unwrap_or(0);
        while struck(&total) < arguments.seeds
            && total.violations.is_empty()
            && total.seeds < arguments.seeds.saturating_mul(SEEDS_TO_STRIKE)
        {
            let seeds = arguments.seeds - struck(&total);
            total.merge(campaign(from, seeds, config, arguments.threads, VIOLATIONS_MAX));
            from = from.saturating_add(seeds);
        }
        failure::print_all(name, config, &total, arguments.shortens);
        println!("{name}: {total}");
        println!(
            "headline {name}: {} of {} seeds in which {kind}, {} violations",
            struck(&total),
            total.seeds,
            total.violations.len()
        );
        failed |= !total.violations.is_empty() || struck(&total) < arguments.seeds || total.is_overwhelmed_too_often();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn main() -> ExitCode {
    #[cfg(feature = "mutants")]
    if std::env::args().nth(1).as_deref() == Some("mutants") {
        return mutants(std::env::args().skip(2)).unwrap_or_else(|error| {
            eprintln!("{error}");
            ExitCode::from(2)
        });
    }
    let headlines = std::env::args().nth(1).as_deref() == Some("headline");
    let arguments = match parse(std::env::args().skip(1 + usize::from(headlines))) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if headlines {
        return headline(&arguments);
    }
    if let ([(name, config)], false) = (arguments.worlds.as_slice(), arguments.mask.is_empty()) {
        return failure::replay(name, arguments.from, config, &arguments.mask);
    }
    let (mut failed, mut total) = (false, Summary::default());
    let start = Instant::now();
    for (name, config) in &arguments.worlds {
        let summary =
            campaign_of_all_faults(arguments.from, arguments.seeds, config, arguments.threads, VIOLATIONS_MAX);
        failure::print_all(name, config, &summary, arguments.shortens);
        println!("{name}: {summary}");
        if summary.seeds >= SEEDS_ENOUGH && !summary.unseen().is_empty() {
            println!("{name}: planned, but never struck: {:?}", summary.unseen());
            failed = true;
        }
        if summary.is_overwhelmed_too_often() {
            println!("{name}: that is too often");
            failed = true;
        }
        failed |= !summary.violations.is_empty();
        total.merge(summary);
    }
    let simulated = total.simulated_ms as f64 / 1_000.0;
    let (elapsed, busy) = (start.elapsed().as_secs_f64(), processor_seconds());
    let rate = simulated / busy.max(0.001);
    println!("all: {total}; {rate:.0} times real time per core, {elapsed:.0} s on {} threads", arguments.threads);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
