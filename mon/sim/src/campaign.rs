//! Many seeds, on several threads; what they add up to does not depend on how many.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::checker::Violation;
use crate::faults::COUNTED;
use crate::run::{Config, Report, run};
use crate::runtime::keep_panics_quiet;

/// What a campaign came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// All of their simulated time.
    pub simulated: Duration,
    /// Processor time, over all threads.
    pub spent: Duration,
    /// What happened, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Seeds and what was wrong in them; the lowest seeds first.
    pub failed: Vec<(u64, Vec<Violation>)>,
    /// Over the hashes of all seeds.
    pub hash: u64,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.hash ^= report.hash.rotate_left(u32::try_from(report.seed % 64).unwrap_or(0));
        for (kind, count) in &report.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        if !report.violations.is_empty() {
            self.failed.push((report.seed, report.violations.clone()));
        }
    }

    /// Kinds of faults that never happened: the campaign proves nothing about them.
    #[must_use]
    pub fn never(&self) -> Vec<&'static str> {
        COUNTED.into_iter().filter(|kind| self.counts.get(kind).is_none_or(|count| *count == 0)).collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |kind: &str| self.counts.get(kind).copied().unwrap_or(0);
        let faults: Vec<String> = COUNTED.into_iter().map(|kind| format!("{kind} {}", of(kind))).collect();
        let hours = self.simulated.as_secs_f64() / 3_600.0;
        let speed = self.simulated.as_secs_f64() / self.spent.as_secs_f64().max(1e-9);
        write!(
            f,
            "world monitors: {} seeds, {hours:.2} simulated hours ({speed:.0} times real time a core), {} requests, {} \
             operations checked, {} commands applied, {} times somebody came to lead; faults: {}; hash {:016x}; {} violations",
            self.seeds,
            of("requests"),
            of("operations"),
            of("commands-applied"),
            of("leaders"),
            faults.join(", "),
            self.hash,
            self.failed.len()
        )
    }
}

/// Processor time of this thread so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
    Duration::new(seconds, nanos)
}

/// Runs `seeds` seeds from `from` on; ends early once `enough` have failed.
#[must_use]
pub fn campaign(
    from: u64,
    seeds: u64,
    config: &Config,
    threads: usize,
    enough: usize,
    tell: impl Fn(&Report) + Sync,
) -> Summary {
    keep_panics_quiet();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= seeds || summary.lock().failed.len() >= enough {
                        return;
                    }
                    let began = processor_time();
                    let report = run(from + offset, config);
                    let spent = processor_time().saturating_sub(began);
                    tell(&report);
                    let mut summary = summary.lock();
                    summary.spent += spent;
                    summary.add(&report);
                }
            });
        }
    });
    let mut summary = summary.into_inner();
    summary.failed.sort();
    summary
}
