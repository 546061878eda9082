//! Many seeds in a row, and what they add up to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::config::Config;
use crate::faults::{FaultCounts, FaultKind};
use crate::mask::Mask;
use crate::strikes::attempt;
use crate::world::{Report, Violation};

/// So many runs of a world may end with something that was struck more than copies survive, however few runs there are.
const OVERWHELMED_ALLOWED: usize = 1;
/// Of many runs so many in a hundred may: with more, the world is not as it was meant, or what strikes is the protocol.
const OVERWHELMED_PERCENT_MAX: u64 = 2;
/// From so many seeds on, a planned fault that never struck is a failure of the campaign: it proves nothing about that fault.
pub const SEEDS_ENOUGH: u64 = 20;
/// To meet every planned fault, a campaign goes on up to so many seeds; one that has run as many knows.
const SEEDS_TO_MEET_ALL: u64 = 200;

/// The sum of many runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
    /// Client operations answered.
    pub operations: u64,
    /// Read leases granted.
    pub leases_granted: u64,
    /// Segments that the stores cleaned.
    pub cleaned: u64,
    /// Copies that scrubs found bad and had repaired.
    pub copies_scrubbed: u64,
    /// Most maps within ten seconds.
    pub maps_most: u64,
    /// What had to strike.
    pub planned: Vec<FaultKind>,
    /// What struck.
    pub faults: FaultCounts,
    /// In how many of the seeds each kind struck that ended without a violation.
    pub struck: BTreeMap<FaultKind, u64>,
    /// Seeds in which something was struck more than copies survive (docs/simulator.md).
    pub overwhelmed: Vec<u64>,
    /// What went wrong.
    pub violations: Vec<Violation>,
}

impl Summary {
    /// Kinds of fault that were planned and never struck: such a campaign proves nothing about them.
    #[must_use]
    pub fn unseen(&self) -> Vec<FaultKind> {
        self.planned.iter().copied().filter(|kind| self.faults.of(*kind) == 0).collect()
    }

    /// Whether more runs of one world than may be ended with something that was struck more than copies survive.
    #[must_use]
    pub fn is_overwhelmed_too_often(&self) -> bool {
        let runs = self.overwhelmed.len();
        runs > OVERWHELMED_ALLOWED && runs as u64 * 100 > self.seeds * OVERWHELMED_PERCENT_MAX
    }

    /// Adds the sum of other runs.
    pub fn merge(&mut self, other: Summary) {
        self.seeds += other.seeds;
        self.simulated_ms += other.simulated_ms;
        self.operations += other.operations;
        self.leases_granted += other.leases_granted;
        self.cleaned += other.cleaned;
        self.copies_scrubbed += other.copies_scrubbed;
        self.maps_most = self.maps_most.max(other.maps_most);
        self.faults.add_all(&other.faults);
        for (kind, seeds) in other.struck {
            *self.struck.entry(kind).or_default() += seeds;
        }
        self.planned.extend(other.planned);
        self.planned.sort_unstable();
        self.planned.dedup();
        self.overwhelmed.extend(other.overwhelmed);
        self.violations.extend(other.violations);
    }

    fn add(&mut self, seed: u64, report: &Report) {
        self.overwhelmed.extend(report.overwhelmed.then_some(seed));
        self.cleaned += report.cleaned;
        self.copies_scrubbed += report.copies_scrubbed;
        self.maps_most = self.maps_most.max(report.maps_most);
        self.simulated_ms += report.simulated_ms;
        self.operations += report.operations;
        self.leases_granted += report.leases_granted;
        self.faults.add_all(&report.faults);
        for kind in report.faults.kinds() {
            *self.struck.entry(kind).or_default() += 1;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {:.2} simulated hours, {} operations, {} leases granted, {} segments cleaned, \
             {} copies repaired by scrubs, at most {} maps within 10 s; {}; \
             {} runs with more struck than copies survive, {} violations",
            self.seeds,
            self.simulated_ms as f64 / 3_600_000.0,
            self.operations,
            self.leases_granted,
            self.cleaned,
            self.copies_scrubbed,
            self.maps_most,
            self.faults,
            self.overwhelmed.len(),
            self.violations.len(),
        )
    }
}

/// As [`campaign`]; but from [`SEEDS_ENOUGH`] seeds on a small one goes on, by as many seeds again and again, until every
/// planned fault has struck. Some strike once in a dozen runs, so that few seeds meet all of them only by chance.
#[must_use]
pub fn campaign_of_all_faults(
    from: u64,
    seeds: u64,
    config: &Config,
    threads: usize,
    violations_max: usize,
) -> Summary {
    until_all_struck(from, seeds, |from| campaign(from, seeds, config, threads, violations_max))
}

/// What `run`, which runs `seeds` seeds from where it is told, adds up to when no planned fault is left out.
fn until_all_struck(from: u64, seeds: u64, run: impl Fn(u64) -> Summary) -> Summary {
    let (mut total, mut next) = (run(from), from.saturating_add(seeds));
    while (SEEDS_ENOUGH..SEEDS_TO_MEET_ALL).contains(&total.seeds)
        && total.violations.is_empty()
        && !total.unseen().is_empty()
    {
        total.merge(run(next));
        next = next.saturating_add(seeds);
    }
    total
}

/// Runs `seeds` seeds from `from` on, on so many threads. Each seed runs on one of them alone, so the sum does not depend on
/// their number. Ends early after `violations_max` violations.
#[must_use]
pub fn campaign(from: u64, seeds: u64, config: &Config, threads: usize, violations_max: usize) -> Summary {
    let (next, found) = (AtomicU64::new(from), AtomicUsize::new(0));
    let end = from.saturating_add(seeds);
    let work = || {
        let mut summary = Summary::default();
        while found.load(Ordering::Relaxed) < violations_max {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            summary.seeds += 1;
            match attempt(seed, config, &Mask::default()).outcome {
                Ok(report) => summary.add(seed, &report),
                Err(violation) => {
                    found.fetch_add(1, Ordering::Relaxed);
                    summary.violations.push(violation);
                }
            }
        }
        summary
    };
    let mut total = Summary { planned: config.planned(), ..Summary::default() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(summary) => total.merge(summary),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    total.violations.sort_by_key(|violation| violation.seed);
    total.overwhelmed.sort_unstable();
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_goes_on_until_every_planned_fault_has_struck_and_no_further() {
        let (lost, torn) = (FaultKind::SectorLost, FaultKind::SectorTorn);
        // The first twenty seeds meet nothing, the next lose a sector, those from 140 on tear one, too.
        let run = |seeds: u64, first_torn: u64| {
            until_all_struck(100, seeds, |from| {
                let mut faults = FaultCounts::default();
                faults.add(lost, u64::from(from >= 100 + seeds));
                faults.add(torn, u64::from(from >= first_torn));
                Summary { seeds, planned: vec![torn, lost], faults, ..Summary::default() }
            })
        };
        let met = run(20, 140);
        assert_eq!((met.seeds, met.unseen()), (60, Vec::new()));
        let never = run(20, u64::MAX);
        assert_eq!(
            (never.seeds, never.unseen()),
            (SEEDS_TO_MEET_ALL, vec![torn]),
            "it gives up, and says what it never met"
        );
        assert_eq!(run(SEEDS_TO_MEET_ALL, u64::MAX).seeds, SEEDS_TO_MEET_ALL, "so many would have met it");
        assert_eq!(run(SEEDS_ENOUGH - 1, 140).seeds, SEEDS_ENOUGH - 1, "a few seeds are asked for to see those alone");
    }

    #[test]
    fn a_campaign_fails_when_more_is_overwhelmed_than_is_rare() {
        let summary = |runs: u64, seeds| Summary { seeds, overwhelmed: (0..runs).collect(), ..Summary::default() };
        assert!(!summary(1, 10).is_overwhelmed_too_often(), "one may be chance");
        assert!(summary(2, 99).is_overwhelmed_too_often());
        assert!(!summary(2, 100).is_overwhelmed_too_often());
        assert!(summary(3, 149).is_overwhelmed_too_often());
        assert!(!summary(3, 150).is_overwhelmed_too_often());
        assert!(summary(21, 1_000).is_overwhelmed_too_often());
    }
}
