//! What drives the built release binary from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::run::{cargo, root, step, step_with_lines, target_dir};

/// The release binary: the one that `HOLDFAST_BIN` names, or else built now.
fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return Ok(std::path::absolute(path)?);
    }
    step("release binary", &mut cargo(&["build", "--release", "--locked", "--bin", "holdfast"]))?;
    Ok(target_dir()?.join("release/holdfast"))
}

/// The interpreter of the environment that has the Python clients.
fn python() -> anyhow::Result<PathBuf> {
    let python = root().join("build/clients/bin/python");
    if !python.exists() {
        bail!("the S3 clients are not installed: run `make client-tools` first");
    }
    Ok(python)
}

fn script(name: &str, binary: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(python()?);
    command.arg(root().join("tests").join(name)).env("HOLDFAST_BIN", binary).current_dir(root());
    Ok(command)
}

/// The Rust end-to-end tests; `full` for their long forms.
pub fn tests(full: bool) -> anyhow::Result<()> {
    let binary = binary()?;
    // One at a time: each runs a cluster of its own and some of them measure.
    let mut command = cargo(&["test", "--locked", "--package", "holdfast-tests", "--"]);
    command.args(["--test-threads", "1", "--nocapture"]).env("HOLDFAST_BIN", &binary);
    if full {
        command.env("HOLDFAST_DOSE", "full");
    }
    step("end-to-end tests", &mut command)
}

/// The chaos test alone, for `minutes`; with `power` on file systems that lose what was not synced.
pub fn chaos(minutes: f64, seed: Option<u64>, power: bool) -> anyhow::Result<()> {
    let binary = binary()?;
    let mut command = cargo(&["test", "--locked", "--package", "holdfast-tests", "--test", "chaos", "--"]);
    command
        .args(["--test-threads", "1", "--nocapture"])
        .env("HOLDFAST_BIN", &binary)
        .env("HOLDFAST_CHAOS_SECONDS", (minutes * 60.0).round().to_string());
    if let Some(seed) = seed {
        command.env("HOLDFAST_SEED", seed.to_string());
    }
    if power {
        command.env("HOLDFAST_CHAOS_POWER", "1");
    }
    let outcome = step("chaos", &mut command);
    sweep();
    outcome
}

/// Both headline tests, in the simulator and with real processes; one line at the end sums up.
pub fn headline(seeds: u64, from: u64, rounds: u64, seed: Option<u64>) -> anyhow::Result<()> {
    const MARK: &str = "headline ";
    let (seeds, from) = (seeds.to_string(), from.to_string());
    let mut simulator = cargo(&["run", "--quiet", "--release", "--locked", "--package", "holdfast-sim", "--"]);
    simulator.args(["headline", "--seeds", &seeds, "--from", &from]);
    let mut lines = step_with_lines("headline tests in the simulator", &mut simulator, MARK)?;

    let binary = binary()?;
    let mut processes = cargo(&["test", "--locked", "--package", "holdfast-tests", "--test", "headline", "--"]);
    processes
        .args(["--test-threads", "1", "--nocapture", "--include-ignored"])
        .env("HOLDFAST_BIN", &binary)
        .env("HOLDFAST_HEADLINE_ROUNDS", rounds.to_string());
    if let Some(seed) = seed {
        processes.env("HOLDFAST_SEED", seed.to_string());
    }
    let outcome = step_with_lines("headline tests with real processes", &mut processes, MARK);
    sweep();
    lines.extend(outcome?);
    println!("\nheadline: {}", lines.join(" | "));
    Ok(())
}

/// The process that a chaos test ran in, of the name of something it made; `None` when that is still there.
fn dead_owner(name: &str, prefix: &str) -> Option<u32> {
    let owner = name.strip_prefix(prefix)?.split('-').next()?.parse::<u32>().ok()?;
    (!Path::new(&format!("/proc/{owner}")).exists()).then_some(owner)
}

/// Removes the network namespaces and mounts of chaos tests whose process has gone without removing them. Their names have
/// its number (`tests/src/{fabric,field}.rs`); those of a test that still runs are left alone.
fn sweep() {
    let run = |arguments: &[&str]| Command::new("ip").args(arguments).output();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let of_chaos = |part: std::path::Component<'_>| {
            dead_owner(&part.as_os_str().to_string_lossy(), "holdfast-chaos-").is_some()
        };
        if Path::new(at).components().any(of_chaos) {
            let _ = Command::new("umount").args(["-l", at]).status();
        }
    }
    let Ok(list) = run(&["netns", "list"]) else { return };
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let Some(name) = line.split_ascii_whitespace().next() else { continue };
        if dead_owner(name, "hfchaos-").is_none() {
            continue;
        }
        if let Ok(pids) = run(&["netns", "pids", name]) {
            for pid in String::from_utf8_lossy(&pids.stdout).split_ascii_whitespace() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
        }
        let _ = run(&["netns", "del", name]);
    }
}

/// The real clients.
pub fn clients(quick: bool, only: Option<&str>) -> anyhow::Result<()> {
    let binary = binary()?;
    let mut command = script("clients/run.py", &binary)?;
    if quick {
        command.arg("--quick");
    }
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    step("real clients", &mut command)
}

/// The demonstration.
pub fn demo() -> anyhow::Result<()> {
    let binary = binary()?;
    step("demo", &mut script("demo.py", &binary)?)
}

/// The measurements.
pub fn bench(rest: &[String]) -> anyhow::Result<()> {
    let binary = binary()?;
    step(
        "bench",
        cargo(&["run", "--release", "--locked", "--package", "holdfast-bench", "--"])
            .args(rest)
            .env("HOLDFAST_BIN", &binary)
            .stdin(std::process::Stdio::null()),
    )
}
