//! What is printed of a run that failed: seed, what is wrong, how to run it again, and the shortest schedule that was found to
//! fail in the same way, with what happened in it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use holdfast_sim::{Attempt, Chance, Config, Failure, Mask, Shrunk, Summary, Trial, attempt, shrink};

/// Characters of a violation that are printed.
const SHOWN_MAX: usize = 3_000;
/// Lines of an event log that are printed: its last ones.
const LINES_MAX: usize = 80;
/// Runs that shortening one schedule takes at most, and after how long none is begun any more.
const RUNS_MAX: u32 = 200;
const TIME_MAX: Duration = Duration::from_secs(60);

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

fn print_replay(world: &str, seed: u64, mask: &Mask) {
    let mask = mask.arguments();
    println!("  replay: cargo xtask sim --world {world} --from {seed} --seeds 1{mask} --trace");
}

/// Prints what went wrong in a world; of the first violation its schedule, too, as short as it gets, if that is wanted.
pub fn print_all(world: &str, config: &Config, summary: &Summary, shortens: bool) {
    if !summary.overwhelmed.is_empty() {
        println!("{world}: more struck than copies survive in {:?}", summary.overwhelmed);
    }
    for (number, violation) in summary.violations.iter().enumerate() {
        println!("{world}: {}", shown(&violation.to_string()));
        print_replay(world, violation.seed, &Mask::default());
        if number == 0 && shortens {
            shorten(world, violation.seed, config);
        }
    }
}

/// Finds a short schedule and prints it.
fn shorten(world: &str, seed: u64, config: &Config) {
    // Broken assertions would each print a backtrace.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let run = |mask: &Mask| attempt(seed, config, mask).failure();
    let found = run(&Mask::default()).map(|first| {
        let strikes = first.strikes.len();
        let shrunk = shrink(first, &Chance::of(config), RUNS_MAX, |mask| {
            if start.elapsed() > TIME_MAX {
                return Trial::OutOfTime;
            }
            run(mask).map_or(Trial::Passed, Trial::Failed)
        });
        (strikes, shrunk)
    });
    std::panic::set_hook(hook);
    let Some((strikes, Shrunk { mask, failure, runs })) = found else {
        println!("  the same seed does not fail when it is run again: the simulator is broken");
        return;
    };
    let off: Vec<String> = mask.off().map(|chance| chance.to_string()).collect();
    let off = if off.is_empty() { String::new() } else { format!(", without {}", off.join(", ")) };
    let (left, seconds) = (failure.strikes.len(), start.elapsed().as_secs());
    println!("  shortened schedule: {left} of {strikes} strikes{off} (found in {runs} runs, {seconds} s):");
    print_failure(&failure);
    print_replay(world, seed, &mask);
}

fn print_failure(failure: &Failure) {
    for strike in &failure.strikes {
        println!("  {strike}");
    }
    println!("  it ends with {}", shown(&failure.violation.violation));
    println!("  event log:");
    for line in failure.journal.iter().skip(failure.journal.len().saturating_sub(LINES_MAX)) {
        println!("  {line}");
    }
}

/// Runs one seed without what the mask leaves out, and prints its schedule and what came of it.
pub fn replay(world: &str, seed: u64, config: &Config, mask: &Mask) -> ExitCode {
    let ran: Attempt = attempt(seed, config, mask);
    match ran.failure() {
        Some(failure) => {
            println!("{world}: seed {seed}, what struck:");
            print_failure(&failure);
            ExitCode::FAILURE
        }
        None => {
            println!("{world}: seed {seed} does not fail like this");
            ExitCode::SUCCESS
        }
    }
}
