//! `make bench`: measures a cluster of real processes, beside the device and the loopback beneath it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use holdfast_bench::record::Record;
use holdfast_bench::run::{self, Plan};
use holdfast_bench::{device, report};

#[derive(Parser)]
#[command(
    name = "holdfast-bench",
    about = "Measures a cluster of one monitor, three OSDs and a gateway on this machine"
)]
struct Options {
    /// The release binary to measure.
    #[arg(long, env = "HOLDFAST_BIN", default_value = "target/release/holdfast")]
    binary: PathBuf,
    /// Where the data is written; beside the binary without it.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How long each cell lasts.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How often everything is measured, each time on a fresh cluster; the table has medians.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// One run of one second a cell: shows that it works, not how fast it is.
    #[arg(long, conflicts_with_all = ["seconds", "runs"])]
    quick: bool,
    /// Only cells whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Appends one line of JSON for each cell and run to this file.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        tokio::select! {
            outcome = bench(options) => outcome,
            // Leaving this way ends the daemons and removes their files, as dropping them does.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })
}

async fn bench(options: Options) -> anyhow::Result<()> {
    let binary = std::path::absolute(&options.binary)?;
    ensure!(binary.is_file(), "there is no {}: build it with `make build` or name it with --binary", binary.display());
    let (seconds, runs) = if options.quick { (1.0, 1) } else { (options.seconds, options.runs) };
    ensure!((0.1..=600.0).contains(&seconds), "--seconds must be 0.1 to 600");
    ensure!((1..=100).contains(&runs), "--runs must be 1 to 100");
    let dir = match options.dir {
        Some(dir) => dir,
        None => binary.parent().unwrap_or(Path::new(".")).to_path_buf(),
    };
    let plan = Plan { binary, dir, time: Duration::from_secs_f64(seconds), only: options.only };
    let mut output = match &options.output {
        Some(path) => {
            Some(File::options().create(true).append(true).open(path).with_context(|| path.display().to_string())?)
        }
        None => None,
    };
    print_setting(&plan, runs)?;
    if !device::available() {
        eprintln!("   fio is not installed: the device is not measured (`make client-tools` installs it)");
    }
    let mut records: Vec<Record> = Vec::new();
    let mut unwritten = Ok(());
    for run in 0..runs {
        let mut each = |record: Record| {
            eprintln!(
                "   run {}: {}: {} ops/s, {} MB/s, p50 {} ms, p99 {} ms",
                run + 1,
                record.name,
                record.iops,
                record.mbps,
                record.p50_ms,
                record.p99_ms
            );
            if let Some(file) = &mut output {
                let line = serde_json::to_string(&record).map_err(anyhow::Error::from);
                let written = line.and_then(|line| Ok(writeln!(file, "{line}")?));
                unwritten = std::mem::replace(&mut unwritten, Ok(())).and(written);
            }
            records.push(record);
        };
        run::beneath(&plan, run, &mut each).await?;
        run::cluster(&plan, run, &mut each).await?;
    }
    ensure!(!records.is_empty(), "no cell has that name");
    println!("\n{}", report::table(&records));
    unwritten.context("the lines of JSON could not be written")?;
    let failed: u64 = records.iter().map(|record| record.err).sum();
    ensure!(failed == 0, "{failed} ops failed: the figures are not to be used");
    Ok(())
}

/// What a figure depends on, printed before it.
fn print_setting(plan: &Plan, runs: u32) -> anyhow::Result<()> {
    const TMPFS_MAGIC: i64 = 0x0102_1994; // statfs(2)
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{}\n{processors} processors, Linux {}, data in {}; {runs} runs of {:.1} s a cell, medians",
        plan.binary.display(),
        kernel.trim(),
        plan.dir.display(),
        plan.time.as_secs_f64()
    );
    let file_system = rustix::fs::statfs(&plan.dir).with_context(|| plan.dir.display().to_string())?;
    if file_system.f_type == TMPFS_MAGIC {
        println!("**The data is in memory (tmpfs): what is measured here is no disk.**");
    }
    Ok(())
}
