//! What drives the built release binary from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::run::{cargo, root, step, target_dir};

/// Builds the release binary once and names it.
fn binary() -> anyhow::Result<PathBuf> {
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

/// The chaos test alone, for `minutes`.
pub fn chaos(minutes: f64) -> anyhow::Result<()> {
    let binary = binary()?;
    step(
        "chaos",
        cargo(&[
            "test",
            "--locked",
            "--package",
            "holdfast-tests",
            "--test",
            "end_to_end",
            "chaos::",
            "--",
            "--test-threads",
            "1",
            "--nocapture",
        ])
        .env("HOLDFAST_BIN", &binary)
        .env("HOLDFAST_CHAOS_SECONDS", (minutes * 60.0).round().to_string()),
    )
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
