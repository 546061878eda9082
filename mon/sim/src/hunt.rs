//! The proof that the checkers bite: each seeded bug of the monitor must be caught within a budget of seeds.

use holdfast_mon::mutants::{Mutant, choose};

use crate::campaign::campaign;
use crate::run::Config;

/// How one bug was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// The first seed that shows it.
    pub seed: u64,
    /// Which promises were broken in that seed, in the order in which that was noticed.
    pub broken: Vec<String>,
    /// What was said.
    pub violation: String,
}

/// The ids with which violations begin, each once.
fn promises(violations: &[String]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for id in violations.iter().filter_map(|text| text.split(':').next()) {
        if !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    ids
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
            broken: promises(violations),
            // A panic is told last, and says more than what followed from it.
            violation: violations
                .iter()
                .rfind(|text| text.starts_with("panic"))
                .or(violations.first())
                .cloned()
                .unwrap_or_default(),
        });
        tell(mutant, catch.as_ref());
        rows.push((mutant, catch));
    }
    rows
}
