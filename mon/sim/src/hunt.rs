//! The proof that the checkers bite: each seeded bug of the monitor must be caught within a budget of seeds.

use holdfast_mon::mutants::{Mutant, choose};

use crate::campaign::campaign;
use crate::checker::{Checker, Violation};
use crate::run::Config;

/// How one bug was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// The first seed that shows it.
    pub seed: u64,
    /// Who complained in that seed, in that order.
    pub noticed: Vec<Checker>,
    /// What was said.
    pub violation: String,
}

/// Who complained, each once.
fn checkers(violations: &[Violation]) -> Vec<Checker> {
    let mut found = Vec::new();
    for checker in violations.iter().map(|violation| violation.checker) {
        if !found.contains(&checker) {
            found.push(checker);
        }
    }
    found
}

/// Runs seeds from `from` with each bug until one is noticed, `budget` at most.
#[must_use]
pub fn hunt(
    from: u64,
    budget: u64,
    config: &Config,
    threads: usize,
    only: Option<&str>,
    mut tell: impl FnMut(Mutant, Option<&Catch>),
) -> Vec<(Mutant, Option<Catch>)> {
    let wanted = |mutant: &Mutant| only.is_none_or(|only| format!("{mutant:?}") == only);
    let mut rows = Vec::new();
    for mutant in Mutant::ALL.into_iter().filter(wanted) {
        choose(Some(mutant));
        let summary = campaign(from, budget, config, threads, 1, |_| ());
        choose(None);
        let first = summary.failed.first();
        let catch = first.map(|(seed, violations)| Catch {
            seed: *seed,
            noticed: checkers(violations),
            violation: violations.first().map(Violation::to_string).unwrap_or_default(),
        });
        tell(mutant, catch.as_ref());
        rows.push((mutant, catch));
    }
    rows
}
