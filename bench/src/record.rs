//! One measured cell of one run, and its line of JSON.
//!
//! The keys are those that other measuring scripts write beside it, so that the lines of several systems can stand in
//! one table; they are listed in `docs/measuring.md`.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::load::Outcome;
use crate::processes::{Machine, Usage, resident_bytes_max};

/// A cell's figures. Percentages are of all processors; MB are 10⁶ bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which cell.
    pub name: String,
    /// Which run, from 0.
    pub run: u32,
    /// Ops that succeeded.
    pub ops: u64,
    /// Ops that failed.
    pub err: u64,
    /// First op's begin to last op's end.
    pub secs: f64,
    /// Ops per second.
    pub iops: f64,
    /// Payload per second.
    pub mbps: f64,
    /// Half of the ops took at most this long.
    pub p50_ms: f64,
    /// 99 of 100 ops took at most this long.
    pub p99_ms: f64,
    /// The longest op.
    pub max_ms: f64,
    /// CPU time of all daemons.
    pub daemon_cpu: f64,
    /// CPU time of the load's own process.
    pub client_cpu: f64,
    /// CPU time of the daemons by role.
    pub cpu_by: BTreeMap<String, f64>,
    /// CPU time of everybody else.
    pub others_pct: f64,
    /// CPU time that the hypervisor gave to others.
    pub steal_pct: f64,
    /// Written to disk by the daemons.
    pub disk_wr_mb: f64,
    /// Context switches of the daemons.
    pub ctxsw: u64,
    /// Most resident memory so far, of each daemon, in MiB.
    pub rss_mb: BTreeMap<String, u64>,
    /// Daemon CPU of one op, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_op: Option<f64>,
    /// The load's own CPU of one op, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_us_op: Option<f64>,
    /// Ops per second if daemons and load had all processors to themselves and used them fully.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceil_ops: Option<f64>,
    /// Context switches of the daemons, of one op.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cs_op: Option<f64>,
    /// Bytes that the daemons wrote to disk, of one op.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wr_b_op: Option<f64>,
}

/// A process of the measured system: its name, such as `osd.1`, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Role, a dot, and a number; the gateway is `s3`.
    pub name: String,
    /// Its process.
    pub pid: u32,
}

impl Daemon {
    fn role(&self) -> &str {
        self.name.split_once('.').map_or(self.name.as_str(), |(role, _)| role)
    }
}

/// Runs a load and takes the figures around it.
///
/// # Errors
/// When the load fails, does nothing, or a daemon ends.
pub async fn measure(
    name: &str,
    run: u32,
    op_bytes: u64,
    daemons: &[Daemon],
    load: impl Future<Output = anyhow::Result<Outcome>>,
) -> anyhow::Result<Record> {
    let me = [std::process::id()];
    let usages = || -> anyhow::Result<Vec<Usage>> {
        daemons.iter().map(|daemon| Usage::of(&[daemon.pid]).with_context(|| daemon.name.clone())).collect()
    };
    let before = (usages()?, Usage::of(&me)?, Machine::now(), Instant::now());
    let outcome = load.await.with_context(|| name.to_owned())?;
    let (machine, wall) = (Machine::now().since(before.2), before.3.elapsed().as_secs_f64());
    let own = Usage::of(&me)?.since(before.1);
    let each: Vec<Usage> = usages()?.into_iter().zip(before.0).map(|(after, before)| after.since(before)).collect();
    if outcome.ops == 0 {
        bail!("{name}: no op succeeded, {} failed: {}", outcome.errors, outcome.first_error.unwrap_or_default());
    }
    if let Some(error) = &outcome.first_error {
        eprintln!("   {name}: {} ops failed, the first one: {error}", outcome.errors);
    }
    let mut record = Record {
        name: name.to_owned(),
        run,
        rss_mb: daemons.iter().map(|one| (one.name.clone(), resident_bytes_max(one.pid) >> 20)).collect(),
        ..Record::of_outcome(&outcome, op_bytes)
    };
    for (daemon, usage) in daemons.iter().zip(&each) {
        *record.cpu_by.entry(daemon.role().to_owned()).or_default() += rounded(usage.cpu_seconds, 2);
        record.daemon_cpu += usage.cpu_seconds;
        record.ctxsw += usage.context_switches;
        record.disk_wr_mb += usage.disk_bytes_written as f64 / 1e6;
    }
    record.client_cpu = own.cpu_seconds;
    record.per_op();
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let used = record.daemon_cpu + record.client_cpu;
    record.others_pct = rounded(100.0 * (machine.busy_seconds - used).max(0.0) / wall / processors, 1);
    record.steal_pct = rounded(100.0 * machine.stolen_seconds / wall / processors, 1);
    record.ceil_ops = (used > 0.0).then(|| rounded(processors * record.ops as f64 / used, 1));
    Ok(record)
}

impl Record {
    /// The figures that the load itself knows.
    #[must_use]
    pub fn of_outcome(outcome: &Outcome, op_bytes: u64) -> Record {
        let seconds = outcome.seconds.max(1e-9);
        Record {
            ops: outcome.ops,
            err: outcome.errors,
            secs: rounded(outcome.seconds, 3),
            iops: rounded(outcome.ops as f64 / seconds, 1),
            mbps: rounded((outcome.ops * op_bytes) as f64 / seconds / 1e6, 2),
            p50_ms: rounded(outcome.percentile_ms(0.5), 3),
            p99_ms: rounded(outcome.percentile_ms(0.99), 3),
            max_ms: rounded(outcome.percentile_ms(1.0), 3),
            ..Record::default()
        }
    }

    fn per_op(&mut self) {
        let ops = self.ops.max(1) as f64;
        self.daemon_cpu = rounded(self.daemon_cpu, 2);
        self.disk_wr_mb = rounded(self.disk_wr_mb, 1);
        self.cpu_us_op = Some(rounded(self.daemon_cpu / ops * 1e6, 1));
        self.client_us_op = Some(rounded(self.client_cpu / ops * 1e6, 1));
        self.cs_op = Some(rounded(self.ctxsw as f64 / ops, 1));
        self.wr_b_op = Some(rounded(self.disk_wr_mb * 1e6 / ops, 0));
    }
}

/// A figure with so many digits after the point: what the measurement can carry.
#[must_use]
pub fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome() -> Outcome {
        Outcome { ops: 4, errors: 1, seconds: 2.0, latencies_ms: vec![1.0, 2.0, 3.0, 10.0], ..Outcome::default() }
    }

    #[tokio::test]
    async fn a_record_has_the_keys_that_the_table_is_made_of() {
        let me = Daemon { name: "osd.0".to_owned(), pid: std::process::id() };
        let load = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(outcome())
        };
        let record = measure("4K write t16", 2, 4096, &[me], load).await.expect("measured");
        let line = serde_json::to_value(&record).expect("plain fields");
        for key in [
            "name",
            "ops",
            "iops",
            "mbps",
            "p50_ms",
            "p99_ms",
            "cpu_us_op",
            "client_us_op",
            "ceil_ops",
            "cs_op",
            "wr_b_op",
            "others_pct",
        ] {
            assert!(!line[key].is_null() || key == "ceil_ops", "{key} is missing in {line}");
        }
        assert_eq!((record.iops, record.p50_ms, record.p99_ms), (2.0, 3.0, 10.0));
        assert!(record.rss_mb["osd.0"] > 0 && record.cpu_by.contains_key("osd"));
    }

    #[tokio::test]
    async fn a_cell_without_ops_is_a_failure_that_says_why() {
        let load = async { Ok(Outcome { errors: 3, first_error: Some("refused".to_owned()), ..Outcome::default() }) };
        let error = measure("x", 0, 1, &[], load).await.expect_err("nothing was measured");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_daemon_that_is_gone_is_a_failure() {
        let gone = Daemon { name: "osd.0".to_owned(), pid: u32::MAX };
        assert!(measure("x", 0, 1, &[gone], async { Ok(outcome()) }).await.is_err());
    }
}
