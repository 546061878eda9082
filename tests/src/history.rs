//! What many clients did with the same keys and what they were answered, as it happened.
//!
//! Each key's history is judged by itself ([`crate::linear`]). Bytes that nobody ever wrote to a key are a finding at
//! once. A key that has met too many unknown outcomes is retired: it is read on, and another takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Instant;

use parking_lot::Mutex;

use crate::linear::{Action, Operation, Seen, Verdict, judge};

/// Writes of unknown outcome that a key may meet before it is retired: each doubles the states to be followed.
const UNKNOWN_MAX: usize = 5;

/// The histories of all keys.
#[derive(Debug)]
pub struct History {
    origin: Instant,
    keys: Mutex<BTreeMap<String, KeyHistory>>,
}

#[derive(Debug, Default)]
struct KeyHistory {
    operations: Vec<Operation>,
    written: BTreeSet<u64>,
    unknown: usize,
}

/// What was recorded, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys that were ever written.
    pub keys: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes of unknown outcome.
    pub unknown: u64,
    /// Reads, those by listings too.
    pub reads: u64,
}

/// A short name for bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Default for History {
    fn default() -> History {
        History { origin: Instant::now(), keys: Mutex::default() }
    }
}

impl History {
    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Bytes are about to be written to a key: from now on they may be read.
    pub fn will_write(&self, key: &str, written: Option<u64>) {
        self.keys.lock().entry(key.to_owned()).or_default().written.extend(written);
    }

    /// A write was called then; it has just been acknowledged, or (`known` false) its outcome is unknown.
    pub fn wrote(&self, client: u64, key: &str, called: Instant, held: Option<u64>, known: bool) {
        let answered = known.then(|| self.nanos(Instant::now()));
        let operation = Operation { client, called: self.nanos(called), answered, action: Action::Write(held) };
        let mut keys = self.keys.lock();
        let key = keys.entry(key.to_owned()).or_default();
        key.unknown += usize::from(!known);
        key.operations.push(operation);
    }

    /// A read was called then and has just been answered with this.
    ///
    /// # Errors
    /// When nobody ever wrote that to the key.
    pub fn read(&self, client: u64, key: &str, called: Instant, seen: Seen) -> Result<(), String> {
        let answered = Some(self.nanos(Instant::now()));
        let operation = Operation { client, called: self.nanos(called), answered, action: Action::Read(seen) };
        let mut keys = self.keys.lock();
        let history = keys.entry(key.to_owned()).or_default();
        if let Seen::Held(Some(held)) = seen
            && !history.written.contains(&held)
        {
            return Err(format!("{key} was read with bytes that were never written to it"));
        }
        history.operations.push(operation);
        Ok(())
    }

    /// Whether a key may be written on.
    #[must_use]
    pub fn is_retired(&self, key: &str) -> bool {
        self.keys.lock().get(key).is_some_and(|key| key.unknown >= UNKNOWN_MAX)
    }

    /// All keys that were ever written or read.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().keys().cloned().collect()
    }

    /// In numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let keys = self.keys.lock();
        let mut summary = Summary { keys: keys.len() as u64, ..Summary::default() };
        for operation in keys.values().flat_map(|key| &key.operations) {
            match (operation.action, operation.answered) {
                (Action::Read(_), _) => summary.reads += 1,
                (Action::Write(_), Some(_)) => summary.acknowledged += 1,
                (Action::Write(_), None) => summary.unknown += 1,
            }
        }
        summary
    }

    /// What is wrong with the histories: one line for each key that no order of effects explains.
    #[must_use]
    pub fn judge(&self) -> Vec<String> {
        let keys = self.keys.lock();
        let findings = keys.iter().filter_map(|(key, history)| match judge(&history.operations) {
            Verdict::Linearizable => None,
            Verdict::TooMuchOpen => Some(format!("{key}: too many operations of unknown outcome to judge")),
            Verdict::Impossible(at) => Some(format!("{key} is not linearizable:\n{}", around(history, &at))),
        });
        findings.collect()
    }
}

/// The operations of a key around the one that cannot be, one a line.
fn around(history: &KeyHistory, at: &Operation) -> String {
    const BEFORE: u64 = 20;
    let mut operations = history.operations.clone();
    operations.sort_by_key(|operation| operation.called);
    let writes =
        operations.iter().filter(|other| matches!(other.action, Action::Write(_)) && other.called <= at.called);
    let from = writes.rev().nth(3).map_or(0, |write| write.called);
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut lines = Vec::new();
    for operation in operations.iter().filter(|other| {
        let open = other.answered.is_none() || other.answered >= Some(from);
        open && Some(other.called) <= at.answered && (other.called >= from || matches!(other.action, Action::Write(_)))
    }) {
        let answered = operation.answered.map_or("unknown".to_owned(), |at| format!("{:.6}", seconds(at)));
        let mark = if operation == at { "   <-- impossible" } else { "" };
        lines.push(format!(
            "    client {} {:.6} to {answered}: {:?}{mark}",
            operation.client,
            seconds(operation.called),
            operation.action
        ));
    }
    let skipped = lines.len().saturating_sub(usize::try_from(BEFORE).unwrap_or(20) * 2);
    lines.split_off(skipped).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_nobody_wrote_and_reads_that_came_too_late_are_found() {
        let history = History::default();
        let (first, second) = (digest(b"first"), digest(b"second"));
        let now = Instant::now;
        history.will_write("k", Some(first));
        history.wrote(1, "k", now(), Some(first), true);
        history.read(2, "k", now(), Seen::Held(Some(first))).expect("it was written");
        assert!(history.read(2, "k", now(), Seen::Held(Some(second))).is_err());
        history.wrote(1, "k", now(), None, true);
        assert!(history.judge().is_empty());
        history.read(2, "k", now(), Seen::Something).expect("a listing");
        let findings = history.judge();
        assert!(matches!(findings.as_slice(), [one] if one.contains("impossible")), "{findings:?}");
        let summary = history.summary();
        assert_eq!((summary.keys, summary.acknowledged, summary.unknown, summary.reads), (1, 2, 0, 2));
    }

    #[test]
    fn a_key_with_many_unknown_outcomes_is_retired() {
        let history = History::default();
        for count in 0..UNKNOWN_MAX {
            assert!(!history.is_retired("k"), "{count}");
            history.wrote(1, "k", Instant::now(), Some(count as u64), false);
        }
        assert!(history.is_retired("k"));
    }
}
