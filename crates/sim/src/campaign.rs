//! Many seeds in a row, and what they add up to.

use std::fmt;

use crate::config::Config;
use crate::faults::{FaultCounts, FaultKind};
use crate::world::{Report, Violation, run};

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
    /// What had to strike.
    pub planned: Vec<FaultKind>,
    /// What struck.
    pub faults: FaultCounts,
    /// What went wrong.
    pub violations: Vec<Violation>,
}

impl Summary {
    /// Kinds of fault that were planned and never struck: such a campaign proves nothing about them.
    #[must_use]
    pub fn unseen(&self) -> Vec<FaultKind> {
        self.planned.iter().copied().filter(|kind| self.faults.of(*kind) == 0).collect()
    }

    fn add(&mut self, report: &Report) {
        self.simulated_ms += report.simulated_ms;
        self.operations += report.operations;
        self.stale_reads += report.stale_reads;
        self.faults.add_all(&report.faults);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {:.2} simulated hours, {} operations, {} stale reads across partitions, {}, {} violations",
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
    let mut summary = Summary { seeds, planned: config.faults.planned(), ..Summary::default() };
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
