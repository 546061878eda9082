//! What the device alone does: `fio`, appending to a file and making each write durable, one at a time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::load::Bounds;
use crate::record::{Record, rounded};

/// Whether `fio` can be run.
#[must_use]
pub fn available() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Appends writes of `bytes` with an `fdatasync` after each, in a file of `dir` that is removed afterwards.
///
/// # Errors
/// When `fio` cannot be run or says something unknown.
pub fn append(name: &str, run: u32, dir: &Path, bytes: usize, bounds: Bounds) -> anyhow::Result<Record> {
    let most = bounds.ops_max.saturating_mul(bytes as u64);
    let output = Command::new("fio")
        .args(["--name=append", "--output-format=json", "--filename=raw", "--rw=write", "--fallocate=none"])
        .args(["--ioengine=psync", "--iodepth=1", "--fdatasync=1", "--unlink=1"])
        .arg(format!("--directory={}", dir.display()))
        .arg(format!("--bs={bytes}"))
        .arg(format!("--size={most}"))
        // Without `time_based` the end of the file ends the job, too: it is never written twice.
        .arg(format!("--runtime={}", bounds.time.as_secs().max(1)))
        .output()
        .context("cannot run fio")?;
    if !output.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut record = parse(&output.stdout, bytes)?;
    record.name = name.to_owned();
    record.run = run;
    Ok(record)
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    write: Side,
    sync: Option<Sync>,
}

#[derive(Deserialize)]
struct Side {
    total_ios: u64,
    /// Milliseconds.
    runtime: f64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Sync {
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

impl Latency {
    fn percentile_ms(&self, share: f64) -> f64 {
        let wanted = format!("{:.6}", share * 100.0);
        self.percentile.get(&wanted).copied().unwrap_or(0.0) / 1e6
    }
}

/// The figures of a report. An op is a write and its sync; `fio` knows the percentiles of each only, so those of an op
/// are their sums: exact for the median of steady writes, an upper bound elsewhere.
fn parse(report: &[u8], bytes: usize) -> anyhow::Result<Record> {
    // Warnings may stand before the report.
    let start = report.iter().position(|byte| *byte == b'{').context("fio printed no report")?;
    let report: Report = serde_json::from_slice(&report[start..]).context("fio's report is not understood")?;
    let job = report.jobs.first().context("fio's report has no job")?;
    let seconds = (job.write.runtime / 1e3).max(1e-9);
    let ops = job.write.total_ios;
    let of = |figure: &dyn Fn(&Latency) -> f64| {
        figure(&job.write.clat_ns) + job.sync.as_ref().map_or(0.0, |sync| figure(&sync.lat_ns))
    };
    Ok(Record {
        ops,
        secs: rounded(seconds, 3),
        iops: rounded(ops as f64 / seconds, 1),
        mbps: rounded(ops as f64 * bytes as f64 / seconds / 1e6, 2),
        p50_ms: rounded(of(&|latency| latency.percentile_ms(0.5)), 3),
        p99_ms: rounded(of(&|latency| latency.percentile_ms(0.99)), 3),
        max_ms: rounded(of(&|latency| latency.max / 1e6), 3),
        ..Record::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_is_a_write_and_its_sync() {
        let report = br#"fio: a warning
            {"fio version": "fio-3.33", "jobs": [{"jobname": "append",
             "write": {"total_ios": 1000, "runtime": 500, "clat_ns": {"max": 90000,
                       "percentile": {"50.000000": 10000, "99.000000": 40000}}},
             "sync": {"lat_ns": {"max": 900000, "percentile": {"50.000000": 100000, "99.000000": 400000}}}}]}"#;
        let record = parse(report, 4096).expect("a report of fio");
        assert_eq!((record.ops, record.iops, record.mbps), (1000, 2000.0, 8.19));
        assert_eq!((record.p50_ms, record.p99_ms, record.max_ms), (0.11, 0.44, 0.99));
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        for text in ["", "fio: no such engine", "{}", r#"{"jobs": []}"#] {
            assert!(parse(text.as_bytes(), 1).is_err(), "{text:?}");
        }
    }
}
