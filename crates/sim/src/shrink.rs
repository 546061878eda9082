//! Shortens the schedule of a run that failed: leaves strikes out as long as it still fails in the same way.
//!
//! All of a run draws from one stream of random numbers, so when a strike is left out, what follows is another run. That does
//! no harm: what is kept is a schedule that was run, and failed. But it is why the end of a schedule is cut off first (what was
//! before stays as it was), and why chunks are tried from the last one to the first.

use crate::checker;
use crate::mask::{Chance, Mask};
use crate::strikes::Strike;
use crate::world::Violation;

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How.
    pub violation: Violation,
    /// What struck until then.
    pub strikes: Vec<Strike>,
    /// What happened to the cluster as a whole, one line each: its last part if it is long.
    pub journal: Vec<String>,
}

impl Failure {
    /// The id that the violation begins with: a shortened schedule fails by the same one.
    fn id(&self) -> &str {
        checker::id_of(&self.violation.violation)
    }

    fn ordinals(&self) -> Vec<u32> {
        self.strikes.iter().map(|strike| strike.ordinal).collect()
    }
}

/// What came of a run with a mask.
#[derive(Debug)]
pub enum Trial {
    /// It failed somehow.
    Failed(Failure),
    /// It did not.
    Passed,
    /// It was not run, and nothing more is to be tried.
    OutOfTime,
}

/// A failure with the fewest strikes that were found to be enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shrunk {
    /// What is left out.
    pub mask: Mask,
    /// What still happens then.
    pub failure: Failure,
    /// Runs that it took.
    pub runs: u32,
}

struct Shrinker<Try> {
    best: Shrunk,
    runs_max: u32,
    over: bool,
    attempt: Try,
}

/// Leaves out as much as `runs_max` runs show to be needless of `first`, which failed with nothing left out; `chances` are those
/// of its world. `attempt` runs with a mask.
#[must_use]
pub fn shrink(first: Failure, chances: &[Chance], runs_max: u32, attempt: impl FnMut(&Mask) -> Trial) -> Shrunk {
    let best = Shrunk { mask: Mask::default(), failure: first, runs: 0 };
    let mut shrinker = Shrinker { best, runs_max, over: false, attempt };
    shrinker.cut_the_end();
    shrinker.calm(chances);
    shrinker.thin_out();
    // With less that strikes, less of what happens by chance may be needed.
    shrinker.calm(chances);
    shrinker.best
}

impl<Try: FnMut(&Mask) -> Trial> Shrinker<Try> {
    /// Runs with a mask, and keeps it when that still fails in the same way with at most so many strikes.
    fn keeps(&mut self, mask: Mask, strikes_max: usize) -> bool {
        self.over |= self.best.runs >= self.runs_max;
        if self.over {
            return false;
        }
        match (self.attempt)(&mask) {
            Trial::OutOfTime => self.over = true,
            Trial::Passed => self.best.runs += 1,
            Trial::Failed(failure) => {
                self.best.runs += 1;
                if failure.id() == self.best.failure.id() && failure.strikes.len() <= strikes_max {
                    (self.best.mask, self.best.failure) = (mask, failure);
                    return true;
                }
            }
        }
        false
    }

    /// The same with fewer strikes than before.
    fn keeps_fewer(&mut self, mask: Mask) -> bool {
        let strikes = self.best.failure.strikes.len();
        strikes > 0 && self.keeps(mask, strikes - 1)
    }

    /// Leaves out all from some strike on: by halves, as if whatever fails without the later ones did so without all of them.
    fn cut_the_end(&mut self) {
        let ordinals = self.best.failure.ordinals();
        let (mut low, mut high) = (0, ordinals.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.keeps_fewer(self.best.mask.and_from(ordinals[middle])) { high = middle } else { low = middle + 1 }
        }
        // Nothing struck after the last one, so this is the same run; but when others are left out, more must not follow.
        let end = self.best.failure.strikes.last().map_or(1, |last| last.ordinal.saturating_add(1));
        self.best.mask = self.best.mask.and_from(end);
    }

    /// Leaves out whatever happens by chance, all together or one by one.
    fn calm(&mut self, chances: &[Chance]) {
        let off: Vec<Chance> = self.best.mask.off().collect();
        let left: Vec<Chance> = chances.iter().copied().filter(|chance| !off.contains(chance)).collect();
        let strikes = self.best.failure.strikes.len();
        let all = left.iter().fold(self.best.mask.clone(), |mask, chance| mask.and_no(*chance));
        if left.is_empty() || self.keeps(all, strikes) {
            return;
        }
        // A single one has been tried with that.
        for chance in left.iter().filter(|_| left.len() > 1) {
            self.keeps(self.best.mask.and_no(*chance), strikes);
        }
    }

    /// Leaves out chunks of what still strikes, smaller and smaller ones, until no single strike can be left out.
    fn thin_out(&mut self) {
        let mut size = self.best.failure.strikes.len().div_ceil(2).max(1);
        while !self.over && !self.best.failure.strikes.is_empty() {
            let removed = self.sweep(size);
            if size == 1 && !removed {
                return;
            }
            size = size.div_ceil(2);
        }
    }

    /// Tries to leave out each chunk of so many strikes, the last one first. Gives whether it left out any.
    fn sweep(&mut self, size: usize) -> bool {
        let (mut below, mut removed) = (u32::MAX, false);
        while !self.over {
            let ordinals: Vec<u32> =
                self.best.failure.ordinals().into_iter().filter(|ordinal| *ordinal < below).collect();
            let chunk = &ordinals[ordinals.len().saturating_sub(size)..];
            let Some(first) = chunk.first() else { break };
            below = *first;
            removed |= self.keeps_fewer(self.best.mask.and(chunk));
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str, strikes: impl Iterator<Item = u32>) -> Failure {
        let strike = |ordinal| Strike { ordinal, at_ms: u64::from(ordinal) * 100, what: format!("strike {ordinal}") };
        let violation = Violation::new(1, vec![text.to_owned()]);
        Failure { violation, strikes: strikes.map(strike).collect(), journal: Vec::new() }
    }

    /// A run of a hundred strikes, if none is left out.
    fn run(mask: &Mask) -> impl Iterator<Item = u32> + '_ {
        (1..=100).filter(|ordinal| !mask.leaves_out(*ordinal))
    }

    fn shrunk(runs_max: u32, fails: impl Fn(&Mask) -> Option<&'static str>) -> (Shrunk, Vec<Mask>) {
        let mut tried = Vec::new();
        let first = failure("D1: it is gone", run(&Mask::default()));
        let shrunk = shrink(first, &[Chance::Loss, Chance::Delays], runs_max, |mask| {
            tried.push(mask.clone());
            fails(mask).map_or(Trial::Passed, |text| Trial::Failed(failure(text, run(mask))))
        });
        (shrunk, tried)
    }

    fn needs(mask: &Mask, ordinals: &[u32]) -> bool {
        ordinals.iter().all(|ordinal| !mask.leaves_out(*ordinal))
    }

    #[test]
    fn only_what_a_failure_needs_is_left() {
        for needed in [&[37, 38, 81][..], &[1, 100], &[50], &[]] {
            let fails = |mask: &Mask| needs(mask, needed) && mask.off().all(|chance| chance != Chance::Delays);
            let (shrunk, tried) = shrunk(200, |mask| fails(mask).then_some("D1: another text"));
            assert_eq!(shrunk.failure.ordinals(), needed);
            assert_eq!(shrunk.mask.off().collect::<Vec<_>>(), [Chance::Loss]);
            assert!(fails(&shrunk.mask) && tried.contains(&shrunk.mask) && tried.len() as u32 == shrunk.runs);
        }
    }

    #[test]
    fn a_shortened_schedule_fails_by_the_same_checker() {
        // Without strike 60 it fails otherwise, whatever else is left out.
        let fails = |mask: &Mask| if needs(mask, &[60]) { "D1: x" } else { "panic: y" };
        let (shrunk, _) = shrunk(200, |mask| Some(fails(mask)));
        assert_eq!(shrunk.failure.ordinals(), [60]);
        assert_eq!(shrunk.failure.id(), "D1");
    }

    #[test]
    fn shrinking_ends_within_its_bound() {
        for runs_max in [0, 1, 5, 30] {
            let (shrunk, tried) =
                shrunk(runs_max, |mask| (mask.is_empty() || needs(mask, &[3, 77, 99])).then_some("D1"));
            assert!(tried.len() as u32 <= runs_max && shrunk.runs == tried.len() as u32);
            assert!(needs(&shrunk.mask, &[3, 77, 99]), "what is kept has failed");
        }
    }

    #[test]
    fn nothing_more_is_run_when_the_time_is_over() {
        let (mut runs, first) = (0, failure("D1", run(&Mask::default())));
        let shrunk = shrink(first, &Chance::ALL, 200, |mask| {
            runs += 1;
            if runs > 3 { Trial::OutOfTime } else { Trial::Failed(failure("D1", run(mask))) }
        });
        assert_eq!((runs, shrunk.runs), (4, 3));
    }

    #[test]
    fn what_takes_the_place_of_strikes_left_out_is_left_out_too() {
        // So many strike whatever is left out, until the time is over.
        let rerun = |mask: &Mask| (1..=140).filter(|ordinal| !mask.leaves_out(*ordinal)).take(100).collect::<Vec<_>>();
        let first = failure("D1", rerun(&Mask::default()).into_iter());
        let shrunk = shrink(first, &[], 200, |mask| {
            let struck = rerun(mask);
            if struck.contains(&100) { Trial::Failed(failure("D1", struck.into_iter())) } else { Trial::Passed }
        });
        assert_eq!(shrunk.failure.ordinals(), [100]);
    }
}
