//! Running other programs from the workspace root.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

/// The workspace root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// `cargo` with these arguments, run at the root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // Cargo sets these for the xtask itself; passed on they would make the inner cargo rebuild what depends on them.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION", "CARGO_MANIFEST_PATH"] {
        command.env_remove(name);
    }
    if !matches!(arguments.first(), Some(&("fmt" | "metadata"))) {
        use_rocksdb_archive(&mut command);
    }
    command
}

/// As `make` does: left alone, cargo would compile RocksDB anew for each profile, and all that depends on it. Where the
/// archive cannot be had, it does.
fn use_rocksdb_archive(command: &mut Command) {
    if std::env::var_os("ROCKSDB_LIB_DIR").is_some() {
        return;
    }
    let script = Command::new(root().join("scripts/rocksdb-archive")).stderr(Stdio::inherit()).output();
    let Some(printed) = script.ok().filter(|output| output.status.success()) else { return };
    let archive = PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim());
    command.env("ROCKSDB_LIB_DIR", archive.join("lib")).env("ROCKSDB_STATIC", "1");
    command.env("ROCKSDB_INCLUDE_DIR", archive.join("include"));
}

/// Runs a step, announces it and its time, and fails when it fails.
pub fn step(title: &str, command: &mut Command) -> anyhow::Result<()> {
    println!("\n== {title}\n   {}", shown(command));
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{title}: failed ({status}); run it again with: {}", shown(command));
    }
    println!("   {title}: passed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// As [`step`]; what of its output begins with `mark` is also handed back, without it.
pub fn step_with_lines(title: &str, command: &mut Command, mark: &str) -> anyhow::Result<Vec<String>> {
    println!("\n== {title}\n   {}", shown(command));
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    let mut marked = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            marked.extend(line.trim_start().strip_prefix(mark).map(str::to_owned));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{title}: failed ({status}); run it again with: {}", shown(command));
    }
    println!("   {title}: passed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(marked)
}

/// Whether `program --version` can be run.
pub fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Where cargo puts what it builds.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let output =
        cargo(&["metadata", "--no-deps", "--format-version", "1"]).output().context("cannot run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    Ok(PathBuf::from(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?))
}

fn shown(command: &Command) -> String {
    let mut text =
        Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
