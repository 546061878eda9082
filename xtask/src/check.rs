//! The steps of `cargo xtask check`, cheapest first, so that a mistake shows early.

use anyhow::Context;

use crate::run::{cargo, installed, root, step};
use crate::{end_to_end, files, invariants, layers};

/// Packages whose tests drive the built binary: they run last, apart from the unit tests.
const END_TO_END: [&str; 1] = ["holdfast-tests"];

/// Seeds of each world of the simulator that every check runs: some hundred runs, some minutes.
const SIM_SEEDS: u64 = 40;

/// Seeds of the monitors' simulator that every check runs: less than a minute.
const MONITOR_SEEDS: u64 = 60;

/// All steps; `fast` leaves out what needs the release binary.
pub fn all(fast: bool) -> anyhow::Result<()> {
    println!("\n== layers");
    layers::check()?;
    files::report()?;
    invariants::check()?;
    step("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    step("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    step(
        "documentation",
        cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    unit_tests()?;
    simulation(SIM_SEEDS, 0, &[])?;
    monitors(MONITOR_SEEDS, 0, &[])?;
    if !fast {
        end_to_end::tests(false)?;
        end_to_end::clients(true, None)?;
        end_to_end::demo()?;
    }
    println!("\ncheck: all passed");
    Ok(())
}

fn unit_tests() -> anyhow::Result<()> {
    let excluded: Vec<&str> = END_TO_END.iter().flat_map(|package| ["--exclude", package]).collect();
    if installed("cargo-nextest") {
        let mut command = cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
        step("unit tests", command.args(&excluded))?;
        let mut command = cargo(&["test", "--workspace", "--locked", "--doc"]);
        return step("examples in the documentation", command.args(&excluded));
    }
    let mut command = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    step("unit tests", command.args(&excluded))
}

/// Seeds in which a checker that does not look must be missed: fewer than show a mutant, for each takes a whole campaign.
const WITHOUT_SEEDS: u64 = 20;

/// Runs both simulators with each of their seeded bugs, and writes which checker noticed it.
pub fn mutants(budget: u64, brief: bool) -> anyhow::Result<()> {
    let cluster = hunt("mutants", "holdfast-sim", "docs/mutants-table.md", budget, brief);
    // What was missed in the first takes nothing from the second.
    let monitors = hunt("mutants of the monitors", "holdfast-mon-sim", "docs/monitor-mutants-table.md", budget, brief);
    cluster.and(monitors)
}

fn hunt(title: &str, package: &str, table: &str, budget: u64, brief: bool) -> anyhow::Result<()> {
    let (budget, without) = (budget.to_string(), WITHOUT_SEEDS.min(budget).to_string());
    let mut command = cargo(&["run", "--quiet", "--release", "--locked", "--package", package]);
    command
        .args(["--features", "mutants", "--", "mutants", "--budget", &budget, "--without", &without, "--table"])
        .arg(root().join(table));
    command.args(brief.then_some("--brief"));
    step(title, &mut command)
}

/// Runs `seeds` seeds of each world of the simulator from `from` on; `rest` is passed on.
pub fn simulation(seeds: u64, from: u64, rest: &[&str]) -> anyhow::Result<()> {
    let (seeds, from) = (seeds.to_string(), from.to_string());
    let mut command = cargo(&["run", "--quiet", "--release", "--locked", "--package", "holdfast-sim", "--"]);
    command.args(["--seeds", &seeds, "--from", &from]).args(rest);
    step("simulation", &mut command).context("a line above names the seed that failed, and how to replay it")
}

/// Runs `seeds` seeds of the monitors' simulator from `from` on, optimised: most of the time is the Raft library's.
pub fn monitors(seeds: u64, from: u64, rest: &[String]) -> anyhow::Result<()> {
    let (seeds, from) = (seeds.to_string(), from.to_string());
    let mut command = cargo(&["run", "--quiet", "--release", "--locked", "--package", "holdfast-mon-sim", "--"]);
    step("simulation of the monitors", command.args(["--seeds", &seeds, "--from", &from]).args(rest))
        .context("the lines above name the seeds that failed")
}
