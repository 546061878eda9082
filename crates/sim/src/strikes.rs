//! The schedule of a run: what was dealt, when and to whom, and what of it a replay leaves out.
//!
//! Each strike that is not a matter of chance alone (`Chance`) is numbered where it happens. One that is left out has been
//! drawn, and then does nothing.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::checker::Checker;
use crate::config::Config;
use crate::journal::Journal;
use crate::mask::Mask;
use crate::shrink::Failure;
use crate::world::{Report, Violation, World};

/// Something that was done to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// Its number in its run, from 1 on.
    pub ordinal: u32,
    /// Simulated time in milliseconds.
    pub at_ms: u64,
    /// What was done to whom.
    pub what: String,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}.{:03} s  strike {}: {}", self.at_ms / 1_000, self.at_ms % 1_000, self.ordinal, self.what)
    }
}

/// What was dealt in a run.
#[derive(Debug, Default)]
pub(crate) struct Dealt {
    mask: Mask,
    last: u32,
    strikes: Vec<Strike>,
    pub journal: Journal,
}

impl World {
    /// Numbers a strike. Gives whether it is to happen: asked just before it does, when all that it needs is there.
    pub(crate) fn deals(&mut self, what: String) -> bool {
        self.dealt.last += 1;
        let ordinal = self.dealt.last;
        let strike = Strike { ordinal, at_ms: self.now.as_nanos() / 1_000_000, what };
        let happens = !self.dealt.mask.leaves_out(ordinal);
        if self.config.trace {
            self.trace(&format!("strike {ordinal}{}: {}", if happens { "" } else { " (left out)" }, strike.what));
        }
        if happens {
            self.note(format!("strike {ordinal}: {}", strike.what));
            self.dealt.strikes.push(strike);
        }
        happens
    }

    /// The strike just dealt found nothing to strike.
    pub(crate) fn struck_nothing(&mut self) {
        let strike = self.dealt.strikes.pop();
        if let Some(strike) = strike {
            self.dealt.journal.take_back(&format!("strike {}: {}", strike.ordinal, strike.what));
        }
    }
}

/// A run with a mask.
#[derive(Debug)]
pub struct Attempt {
    /// What came of it; a broken assertion of the production code is a violation, too.
    pub outcome: Result<Report, Violation>,
    /// What struck, in its order.
    pub strikes: Vec<Strike>,
    /// What happened to the cluster as a whole, one line each: its last part if it is long.
    pub journal: Vec<String>,
}

impl Attempt {
    /// The failure, if it is one.
    #[must_use]
    pub fn failure(self) -> Option<Failure> {
        let violation = self.outcome.err()?;
        Some(Failure { violation, strikes: self.strikes, journal: self.journal })
    }
}

/// Runs one seed without what the mask leaves out. Other than [`run`](crate::run) it catches what panics.
#[must_use]
pub fn attempt(seed: u64, config: &Config, mask: &Mask) -> Attempt {
    let mut world = match World::new(seed, mask.applied_to(config)) {
        Ok(world) => world,
        Err(error) => {
            let outcome = Err(Violation::new(seed, vec![error]));
            return Attempt { outcome, strikes: Vec::new(), journal: Vec::new() };
        }
    };
    world.dealt.mask = mask.clone();
    // Of the world of a broken assertion only what was dealt is looked at.
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let outcome = match ran {
        Ok(ran) => ran.map_err(|violations| Violation::new(seed, violations)),
        // A run cannot go on after that; whoever looks for this does not.
        Err(_) if config.off == Some(Checker::Assertions) => Ok(Report::default()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text");
            Err(Violation::new(seed, vec![format!("panic: {text}")]))
        }
    };
    let dealt = std::mem::take(&mut world.dealt);
    Attempt { outcome, strikes: dealt.strikes, journal: dealt.journal.into_lines() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{FaultKind, FaultKind as F};
    use crate::mask::Chance;

    /// What is counted and no strike: what becomes of one, and what a world is about.
    const NO_STRIKES: [FaultKind; 24] = [
        F::RequestForgotten,
        F::HeldOff,
        F::HoldOffOver,
        F::HoldOffCutShort,
        F::Balanced,
        F::Grown,
        F::GrownSpread,
        F::TransactionLost,
        F::SectorLost,
        F::SectorTorn,
        F::StoreRefused,
        F::CopySplit,
        F::MapSkipped,
        F::AnswerTooLate,
        F::LeaseWaitedOut,
        F::ClusterFull,
        F::WentOut,
        F::AnswerNeverCame,
        F::GroupSplit,
        F::TableDropped,
        F::ClientLeft,
        F::WriteUnknown,
        F::UploadCompleted,
        F::BlobCollected,
    ];

    /// A seed of the storm, without what is told to be left out.
    fn storm(seed: u64, mask: &Mask) -> (Report, Vec<Strike>) {
        let attempt = attempt(seed, &Config::storm(), mask);
        (attempt.outcome.unwrap_or_else(|violation| panic!("{violation}")), attempt.strikes)
    }

    #[test]
    fn a_strike_left_out_does_not_happen_and_those_before_it_do() {
        let often = |seed: &u64| storm(*seed, &Mask::default()).1.len() > 12;
        let seed = (3..30).find(often).expect("one of the seeds in which it strikes often");
        let (report, all) = storm(seed, &Mask::default());
        let (without, struck) = storm(seed, &Mask::default().and_from(all[5].ordinal));
        assert_eq!(struck, all[..5]);
        assert_ne!(without.hash, report.hash);
        let (_, struck) = storm(seed, &Mask::default().and(&[all[5].ordinal]));
        assert_eq!(struck[..5], all[..5]);
        assert!(struck.iter().all(|strike| strike.ordinal != all[5].ordinal) && struck.len() > 6);
    }

    #[test]
    fn nothing_strikes_when_all_is_left_out_in_any_world() {
        for (name, config) in Config::worlds() {
            let calmer = Chance::ALL.into_iter().fold(Mask::default().and_from(1), |mask, chance| mask.and_no(chance));
            let attempt = attempt(5, &config, &calmer);
            assert_eq!(attempt.strikes, [], "{name}");
            let report = attempt.outcome.unwrap_or_else(|violation| panic!("{name}: {violation}"));
            // Those that leave for good lose power: that is how such a run ends, not a strike.
            let is_meant = |kind: &F| NO_STRIKES.contains(kind) || *kind == F::PowerCut && config.leave > 0;
            let dealt: Vec<FaultKind> = report.faults.kinds().filter(|kind| !is_meant(kind)).collect();
            assert_eq!(dealt, [], "{name}");
        }
    }

    #[test]
    fn a_mask_that_leaves_nothing_out_changes_nothing() {
        for (name, config) in Config::worlds() {
            let bare = crate::world::run(7, &config).unwrap_or_else(|violation| panic!("{name}: {violation}"));
            // What was never dealt can be left out.
            let masked = attempt(7, &config, &Mask::default().and_from(1_000_000)).outcome;
            assert_eq!(masked.unwrap_or_else(|violation| panic!("{name}: {violation}")), bare, "{name}");
        }
    }

    #[test]
    fn the_same_mask_gives_the_same_run() {
        let mask = Mask::default().and(&[2, 3, 7]).and_from(20).and_no(Chance::Loss);
        assert_eq!(storm(3, &mask), storm(3, &mask));
    }
}
