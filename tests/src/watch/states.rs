//! Which states that are not clean the status has shown of placement groups, and which of them were ever explained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Whether a state needs no explanation: all copies are there, though perhaps not where placement would have them.
#[must_use]
pub fn is_clean(state: &str) -> bool {
    state.split('+').any(|part| part == "clean")
}

/// A state that so many looks in a row have shown was there for long enough to be asked about. One that is gone before it
/// can be asked about is printed, and no finding: that the monitors explain every state, with whatever the map adds to it, is
/// what `no_state_that_is_not_clean_goes_without_a_cause_a_party_and_a_next_step` of the monitors' state shows.
const LASTING: u64 = 3;

/// How often a state was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Looks that showed it, of any placement group.
    pub looks: u64,
    /// The most of them in a row.
    pub in_a_row_max: u64,
    in_a_row: u64,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} looks, {} of them in a row", self.looks, self.in_a_row_max)
    }
}

/// See the module document.
#[derive(Debug, Default)]
pub struct States {
    shown: BTreeMap<String, Shown>,
    explained: BTreeSet<String>,
}

impl States {
    /// Takes note of the states that a status shows.
    pub fn look<'a>(&mut self, states: impl IntoIterator<Item = &'a String>) {
        let states: BTreeSet<&str> = states.into_iter().map(String::as_str).filter(|state| !is_clean(state)).collect();
        for (state, shown) in &mut self.shown {
            if !states.contains(state.as_str()) {
                shown.in_a_row = 0;
            }
        }
        for state in states {
            let shown = self.shown.entry(state.to_owned()).or_default();
            shown.looks += 1;
            shown.in_a_row += 1;
            shown.in_a_row_max = shown.in_a_row_max.max(shown.in_a_row);
        }
    }

    /// A placement group was explained while it was in this state.
    pub fn note_explained(&mut self, state: &str) {
        self.explained.insert(state.to_owned());
    }

    /// Whether one ever was.
    #[must_use]
    pub fn is_explained(&self, state: &str) -> bool {
        self.explained.contains(state)
    }

    /// How many states were shown.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shown.len()
    }

    /// Those that never were explained.
    pub fn never_explained(&self) -> impl Iterator<Item = (&str, Shown)> {
        let never = self.shown.iter().filter(move |(state, _)| !self.is_explained(state));
        never.map(|(state, shown)| (state.as_str(), *shown))
    }

    /// Those of them that nobody can have missed.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let lasting = self.never_explained().filter(|(_, shown)| shown.in_a_row_max >= LASTING);
        lasting.map(|(state, shown)| format!("{state} was never explained, and shown in {shown}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(states: &mut States, shown: &[&str]) {
        let shown: Vec<String> = shown.iter().map(|state| (*state).to_owned()).collect();
        states.look(&shown);
    }

    #[test]
    fn a_state_that_lasts_and_is_never_explained_is_found() {
        let mut states = States::default();
        for _ in 0..2 {
            look(&mut states, &["active+clean", "peering"]);
            look(&mut states, &["active+clean+remapped", "peering", "unknown"]);
            look(&mut states, &["active+clean"]);
        }
        assert_eq!(states.findings(), Vec::<String>::new(), "each was gone after a look or two");
        assert_eq!(states.count(), 2);
        let never: Vec<(&str, u64, u64)> =
            states.never_explained().map(|(state, shown)| (state, shown.looks, shown.in_a_row_max)).collect();
        assert_eq!(never, [("peering", 4, 2), ("unknown", 2, 1)]);
        for _ in 0..LASTING {
            look(&mut states, &["peering", "unknown"]);
        }
        assert_eq!(states.findings().len(), 2);
        states.note_explained("peering");
        assert!(states.is_explained("peering"));
        assert_eq!(states.findings(), ["unknown was never explained, and shown in 5 looks, 3 of them in a row"]);
    }
}
