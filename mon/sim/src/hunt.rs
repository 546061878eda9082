//! The proof that the checkers bite: each seeded bug of the monitor must be caught within a budget of seeds; and that each
//! checker is needed: without it, at least one of them gets through.

use std::fmt;
use std::fmt::Write as _;

use holdfast_mon::mutants::{Mutant, choose};

use crate::campaign::campaign;
use crate::checker::Checker;
use crate::run::Config;

/// How one bug was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// The checker that complained first.
    pub first: Checker,
    /// All that complained in the same run, in that order.
    pub noticed: Vec<Checker>,
    /// The first seed that shows it; seeds count from 0.
    pub seed: u64,
    /// What was said first.
    pub text: String,
}

impl Catch {
    /// Seeds needed.
    #[must_use]
    pub fn seeds(&self) -> u64 {
        self.seed.saturating_add(1)
    }
}

/// What came of one bug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The rule that was broken.
    pub mutant: Mutant,
    /// `None` if it got away.
    pub catch: Option<Catch>,
    /// What happens when the checker that was first does not look.
    pub without: Without,
}

/// What happens when the checker that was first does not look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// Another one notices it.
    Caught(Catch),
    /// The bug gets through.
    Missed,
    /// Nobody has tried: another bug had already shown that the checker is needed, or none was first.
    Untried,
}

/// Seeds that one bug may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// With all checkers.
    pub first: u64,
    /// Without the one that complained first; the seed that showed it is always among them.
    pub without: u64,
}

/// What came of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hunt {
    /// What each bug may take.
    pub budget: Budget,
    /// By bug.
    pub rows: Vec<Row>,
}

impl Hunt {
    /// Those that no checker noticed.
    #[must_use]
    pub fn escaped(&self) -> Vec<Mutant> {
        self.rows.iter().filter(|row| row.catch.is_none()).map(|row| row.mutant).collect()
    }

    /// Those that get through when this checker does not look, and are caught otherwise.
    #[must_use]
    pub fn only_seen_by(&self, checker: Checker) -> Vec<Mutant> {
        let first = |row: &Row| row.catch.as_ref().is_some_and(|catch| catch.first == checker);
        let only = |row: &&Row| row.without == Without::Missed && first(row);
        self.rows.iter().filter(only).map(|row| row.mutant).collect()
    }

    /// Checkers without which no bug gets through.
    #[must_use]
    pub fn needless(&self) -> Vec<Checker> {
        Checker::ALL.into_iter().filter(|checker| self.only_seen_by(*checker).is_empty()).collect()
    }
}

/// Runs seeds with a bug until a checker complains; `off` does not look.
fn chase(mutant: Mutant, budget: u64, threads: usize, off: Option<Checker>) -> Option<Catch> {
    choose(Some(mutant));
    let summary = campaign(0, budget, &Config { off, ..Config::default() }, threads, 1, |_| ());
    choose(None);
    let (seed, violations) = summary.failed.first()?;
    let violation = violations.first()?;
    let mut noticed = Vec::new();
    for checker in violations.iter().map(|violation| violation.checker) {
        if !noticed.contains(&checker) {
            noticed.push(checker);
        }
    }
    Some(Catch { first: violation.checker, noticed, seed: *seed, text: violation.text.clone() })
}

/// Runs the simulator with each bug in turn until a checker complains; then once more without that one. All other checkers
/// need not be turned off: the first run has shown that the bug is caught without them. `only` names the bugs that are
/// tried, with commas between them. `brief` leaves out the second run where another bug has shown that the checker is
/// needed. `tell` hears of each bug when it is done.
#[must_use]
pub fn hunt(
    budget: Budget,
    threads: usize,
    only: Option<&str>,
    brief: bool,
    mut tell: impl FnMut(&Hunt, &Row),
) -> Hunt {
    let mut hunt = Hunt { budget, rows: Vec::new() };
    let wanted = |mutant: &Mutant| only.is_none_or(|only| only.split(',').any(|name| format!("{mutant:?}") == name));
    for mutant in Mutant::ALL.into_iter().filter(wanted) {
        let catch = chase(mutant, budget.first, threads, None);
        let without = match &catch {
            Some(catch) if !brief || hunt.only_seen_by(catch.first).is_empty() => {
                let then = chase(mutant, budget.without.max(catch.seeds()), threads, Some(catch.first));
                then.map_or(Without::Missed, Without::Caught)
            }
            Some(_) | None => Without::Untried,
        };
        let row = Row { mutant, catch, without };
        hunt.rows.push(row.clone());
        tell(&hunt, &row);
    }
    hunt
}

/// Breaks the rule of this name in the whole process. Gives whether there is one.
#[must_use]
pub fn break_rule(name: &str) -> bool {
    let rule = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name);
    choose(rule);
    rule.is_some()
}

fn listed<T>(items: &[T], mut show: impl FnMut(&T) -> String) -> String {
    items.iter().map(&mut show).collect::<Vec<_>>().join(", ")
}

/// The tables of `docs/monitor-mutants-table.md`.
impl fmt::Display for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut table, mut needed) = (String::new(), String::new());
        for Row { mutant, catch, without } in &self.rows {
            let breaks = mutant.breaks();
            let Some(catch) = catch else {
                writeln!(table, "| `{mutant:?}` | {breaks} | **not caught** | | | |")?;
                continue;
            };
            let (noticed, first) = (listed(&catch.noticed, Checker::to_string), catch.first);
            let without = match without {
                Without::Caught(then) => {
                    format!("{first}: {} ({} seeds)", listed(&then.noticed, Checker::to_string), then.seeds())
                }
                Without::Missed => format!("{first}: **gets through**"),
                Without::Untried => String::new(),
            };
            let (seed, seeds) = (catch.seed, catch.seeds());
            writeln!(table, "| `{mutant:?}` | {breaks} | {noticed} | seed {seed} | {seeds} | {without} |")?;
        }
        for checker in Checker::ALL {
            let only = self.only_seen_by(checker);
            let only = listed(&only, |mutant| format!("`{mutant:?}`"));
            writeln!(needed, "| {checker} | {} |", if only.is_empty() { "none" } else { &only })?;
        }
        let caught = self.rows.len() - self.escaped().len();
        write!(
            f,
            "# Mutants of the monitors: what caught them\n\n\
             Generated by `cargo xtask mutants`; do not edit. [monitor-simulator.md](monitor-simulator.md#mutants) says what the\n\
             columns mean. Run were seeds from 0 on, up to seed {}. The last column is what happens when the checker that\n\
             complained first does not look, up to seed {} or the one that showed the mutant; where it is empty, a mutant above it\n\
             has shown that this checker is needed.\n\n\
             {caught} of {} are caught.\n\n\
             | mutant | what it breaks | noticed by | first seen in | seeds needed | without |\n\
             |---|---|---|---|---|---|\n{table}\n\
             ## What each checker is needed for\n\n\
             Mutants that get through when that checker alone does not look.\n\n\
             | checker | mutants |\n|---|---|\n{needed}",
            self.budget.first.saturating_sub(1),
            self.budget.without.saturating_sub(1),
            self.rows.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catch(first: Checker) -> Catch {
        Catch { first, noticed: vec![first], seed: 3, text: "it is broken".to_owned() }
    }

    #[test]
    fn a_checker_is_needed_if_a_mutant_gets_through_when_it_does_not_look() {
        let caught = |mutant, first, without| Row { mutant, catch: Some(catch(first)), without };
        let rows = vec![
            caught(Mutant::LeaseRead, Checker::Q17, Without::Missed),
            caught(Mutant::VoteNotSynced, Checker::Q16, Without::Caught(catch(Checker::Q5))),
            caught(Mutant::ReadWithoutBarrier, Checker::Q17, Without::Untried),
            Row { mutant: Mutant::LeaderRestored, catch: None, without: Without::Untried },
        ];
        let hunt = Hunt { budget: Budget { first: 40, without: 20 }, rows };
        assert_eq!(hunt.escaped(), [Mutant::LeaderRestored]);
        assert_eq!(hunt.only_seen_by(Checker::Q17), [Mutant::LeaseRead]);
        assert_eq!(hunt.needless().len(), Checker::ALL.len() - 1);
        assert!(!hunt.needless().contains(&Checker::Q17));
        let tables = hunt.to_string();
        assert!(tables.contains("3 of 4 are caught"), "{tables}");
        assert!(tables.contains("| Q17 | seed 3 | 4 | Q17: **gets through** |\n"), "{tables}");
        assert!(tables.contains("| Q16 | seed 3 | 4 | Q16: Q5 (4 seeds) |\n"), "{tables}");
        assert!(tables.contains("| Q17 | `LeaseRead` |\n"), "{tables}");
        assert!(tables.contains("| Q16 | none |\n"), "{tables}");
    }
}
