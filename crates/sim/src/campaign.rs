//! Many seeds in a row, and what they add up to.

use std::fmt;

use crate::config::Config;
use crate::world::{FaultCounts, Report, Violation, run};

/// The sum of many runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
    /// Client operations answered.
    pub operations: u64,
    /// Reads that showed a replaced value (see [`Report::stale_reads`]).
    pub stale_reads: u64,
    /// What struck.
    pub faults: FaultCounts,
    /// What went wrong.
    pub violations: Vec<Violation>,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.simulated_ms += report.simulated_ms;
        self.operations += report.operations;
        self.stale_reads += report.stale_reads;
        let FaultCounts {
            losses,
            duplicates,
            crashes,
            lost_transactions,
            power_losses,
            partitions,
            remaps,
            map_lags,
            skipped_maps,
            rots,
            whole_rots,
            fills,
        } = report.faults;
        self.faults.losses += losses;
        self.faults.duplicates += duplicates;
        self.faults.crashes += crashes;
        self.faults.lost_transactions += lost_transactions;
        self.faults.power_losses += power_losses;
        self.faults.partitions += partitions;
        self.faults.remaps += remaps;
        self.faults.map_lags += map_lags;
        self.faults.skipped_maps += skipped_maps;
        self.faults.rots += rots;
        self.faults.whole_rots += whole_rots;
        self.faults.fills += fills;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {:.2} simulated hours, {} operations, {} stale reads across partitions, {:?}, {} violations",
            self.seeds,
            self.simulated_ms as f64 / 3_600_000.0,
            self.operations,
            self.stale_reads,
            self.faults,
            self.violations.len(),
        )
    }
}

/// Runs `seeds` seeds from `from` on. A broken assertion of the production code is a violation, too.
#[must_use]
pub fn campaign(from: u64, seeds: u64, config: &Config) -> Summary {
    let mut summary = Summary { seeds, ..Summary::default() };
    for seed in from..from.saturating_add(seeds) {
        match std::panic::catch_unwind(|| run(seed, config)) {
            Ok(Ok(report)) => summary.add(&report),
            Ok(Err(violation)) => summary.violations.push(violation),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text");
                summary.violations.push(Violation { seed, violation: format!("panic: {text}") });
            }
        }
    }
    summary
}
