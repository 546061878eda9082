//! The checkers (docs/invariants.md): what the clients saw must have one explanation, and the disks must agree.
//!
//! Every mutation answers its version, and versions of one object are totally ordered: that order is the candidate for
//! the linearization, so checking it takes one pass instead of a search.

use std::collections::BTreeMap;

use holdfast_types::{LogVersion, ObjectName, Timestamp};
use holdfast_wire::{ClientOutcome, OpError, RefusedReason};

use crate::checker::Checker;
use crate::client::{Act, Operation, counter_value, list_values, register_value};

/// What the checkers found out.
#[derive(Debug, Default)]
struct Checked {
    /// A checker that does not look.
    off: Option<Checker>,
    /// All that is wrong, by object where it is of one.
    violations: Vec<String>,
}

impl Checked {
    fn stale(&mut self, read: &Seen<'_>) {
        self.note(format!(
            "D2: {} shows less than what was acknowledged, or shown, before it was asked",
            read.operation.id
        ));
    }

    fn note(&mut self, violation: String) {
        if self.off != Some(Checker::of(&violation)) {
            self.violations.push(violation);
        }
    }
}

/// An answered operation.
struct Seen<'a> {
    operation: &'a Operation,
    at: Timestamp,
    outcome: &'a ClientOutcome,
}

/// A mutation that took effect.
struct Mutation<'a> {
    version: LogVersion,
    operation: &'a Operation,
    completed: Timestamp,
}

/// Checks the whole history, in which everything must have been answered: all that is wrong. `excused`: whether it was right
/// to answer that no copy can be read, or not to answer. `off` names a checker that is not to look.
pub(crate) fn check(history: &[Operation], excused: impl Fn(&Operation) -> bool, off: Option<Checker>) -> Vec<String> {
    let mut checked = Checked { off, ..Checked::default() };
    let mut by_object: BTreeMap<&ObjectName, Vec<Seen<'_>>> = BTreeMap::new();
    for operation in history {
        let (id, act, object) = (operation.id, operation.act, &operation.object);
        let Some((at, outcome)) = &operation.answer else {
            if excused(operation) {
                continue;
            }
            checked.note(format!("L1: {id} ({act:?} {object}) was never answered"));
            continue;
        };
        if matches!(outcome, ClientOutcome::Failed { error: OpError::Unreadable, .. }) && excused(operation) {
            continue; // it had no effect
        }
        if let ClientOutcome::Failed { error: OpError::Unreadable | OpError::Invalid { .. }, .. } = outcome {
            checked.note(format!("D1: {id} ({act:?} {object}) failed: {outcome:?}"));
            continue;
        }
        if matches!(outcome, ClientOutcome::Refused(RefusedReason::Full)) {
            continue; // it had no effect, or the others show it
        }
        by_object.entry(object).or_default().push(Seen { operation, at: *at, outcome });
    }
    for (object, seen) in by_object {
        // What happened to it is not known to its client; this checker needs all that happened.
        if seen.iter().any(|one| matches!(one.outcome, ClientOutcome::Refused(RefusedReason::Forgotten))) {
            continue;
        }
        let before = checked.violations.len();
        check_object(&seen, &mut checked);
        if checked.violations.len() > before {
            let described = described(&seen);
            for violation in checked.violations.iter_mut().skip(before) {
                *violation = format!("{object}: {violation}\n{described}");
            }
        }
    }
    checked.violations
}

/// All that was done to an object, for whoever reads the violation.
fn described(seen: &[Seen<'_>]) -> String {
    let mut lines = String::new();
    for Seen { operation, at, outcome } in seen {
        let (id, act, from) = (operation.id, operation.act, operation.invoked);
        let text = match outcome {
            ClientOutcome::Done { version, .. } => format!("done at {version}"),
            other => format!("{other:?}"),
        };
        lines.push_str(&format!("    {from} to {at}: {id} {act:?} (value {}): {text}\n", operation.value));
    }
    lines
}

fn check_object(seen: &[Seen<'_>], checked: &mut Checked) {
    let mut mutations: Vec<Mutation<'_>> = Vec::new();
    for one in seen {
        let mutates = matches!(one.operation.act, Act::Write { .. } | Act::Remove | Act::Increment | Act::Append);
        if let (ClientOutcome::Done { version, .. }, true) = (one.outcome, mutates) {
            mutations.push(Mutation { version: *version, operation: one.operation, completed: one.at });
        }
    }
    mutations.sort_by_key(|mutation| mutation.version);
    check_order(&mutations, checked);
    let shown = Shown::of(seen);
    for one in seen {
        match one.operation.act {
            Act::Read => check_read(one, &mutations, &shown, checked),
            Act::ReadCounter => check_counter_read(one, &mutations, &shown, checked),
            Act::ReadList => check_list_read(one, &mutations, &shown, checked),
            Act::Increment => check_increment(one, &mutations, checked),
            Act::Write { if_version: Some(expected) } => {
                check_failed(one, &mutations, |found| found != expected, checked);
            }
            Act::Remove => check_failed(one, &mutations, |found| found == LogVersion::ZERO, checked),
            Act::Write { if_version: None } | Act::Append => {}
        }
    }
}

/// What failed by its condition did so in a state that there was between question and answer. `fails`: whether it does in the
/// state that this version made, zero for no object.
fn check_failed(one: &Seen<'_>, mutations: &[Mutation<'_>], fails: impl Fn(LogVersion) -> bool, checked: &mut Checked) {
    if !matches!(one.outcome, ClientOutcome::Failed { .. }) {
        return;
    }
    let justified = (0..=mutations.len()).any(|done| {
        let last = done.checked_sub(1).and_then(|last| mutations.get(last));
        let begins = last.is_none_or(|last| last.operation.invoked <= one.at);
        let lasts = mutations.get(done).is_none_or(|next| next.completed >= one.operation.invoked);
        let existing = last.filter(|last| last.operation.act != Act::Remove);
        begins && lasts && fails(existing.map_or(LogVersion::ZERO, |last| last.version))
    });
    if !justified {
        checked.note(format!("D2: {} failed by what was not so any more", one.operation.id));
    }
}

/// Versions are unique, agree with real time, and conditions held.
fn check_order(mutations: &[Mutation<'_>], checked: &mut Checked) {
    let mut earliest = Timestamp::from_nanos(u64::MAX);
    for mutation in mutations.iter().rev() {
        if earliest < mutation.operation.invoked {
            let id = mutation.operation.id;
            checked.note(format!("D2: {id} at {} was invoked after a later version was done", mutation.version));
        }
        earliest = earliest.min(mutation.completed);
    }
    let mut previous: Option<&Mutation<'_>> = None;
    for mutation in mutations {
        let id = mutation.operation.id;
        if previous.is_some_and(|previous| previous.version == mutation.version) {
            checked.note(format!("E1: {id} has the version {} of another request", mutation.version));
        }
        let existing = previous.filter(|previous| previous.operation.act != Act::Remove);
        let before = existing.map_or(LogVersion::ZERO, |previous| previous.version);
        match mutation.operation.act {
            Act::Write { if_version: Some(expected) } if expected != before => {
                checked.note(format!("D2: {id} at {} was conditional on {expected}, found {before}", mutation.version));
            }
            Act::Remove if existing.is_none() => {
                checked.note(format!("D2: {id} removed at {} what did not exist", mutation.version));
            }
            _ => {}
        }
        previous = Some(mutation);
    }
}

/// What reads of one object have shown by when: no later read may show less, whether or not anybody was told that it is
/// done.
struct Shown {
    /// When a read had been answered, and the newest version that any had shown until then.
    versions: Vec<(Timestamp, LogVersion)>,
    /// The same for how many mutations were seen.
    counts: Vec<(Timestamp, usize)>,
}

impl Shown {
    fn of(seen: &[Seen<'_>]) -> Shown {
        let (mut versions, mut counts) = (Vec::new(), Vec::new());
        for read in seen {
            let ClientOutcome::Done { version, results } = read.outcome else { continue };
            let count = match read.operation.act {
                Act::Read => {
                    versions.push((read.at, *version));
                    continue;
                }
                Act::ReadCounter => counter_value(results).ok().and_then(|value| usize::try_from(value).ok()),
                Act::ReadList => list_values(results).ok().map(|values| values.len()),
                Act::Write { .. } | Act::Remove | Act::Increment | Act::Append => None,
            };
            counts.extend(count.map(|count| (read.at, count)));
        }
        Shown { versions: most_by_then(versions), counts: most_by_then(counts) }
    }
}

/// In order of time, each with the most so far.
fn most_by_then<R: Ord + Copy>(mut shown: Vec<(Timestamp, R)>) -> Vec<(Timestamp, R)> {
    shown.sort_by_key(|(at, _)| *at);
    let mut most = None;
    for (_, rank) in &mut shown {
        *rank = most.map_or(*rank, |most| (*rank).max(most));
        most = Some(*rank);
    }
    shown
}

/// The most that was shown before `began`.
fn shown_before<R: Copy>(shown: &[(Timestamp, R)], began: Timestamp) -> Option<R> {
    let before = shown.partition_point(|(at, _)| *at < began);
    shown.get(before.checked_sub(1)?).map(|(_, rank)| *rank)
}

/// The newest version that was done, or shown, before a read began.
fn floor(read: &Seen<'_>, mutations: &[Mutation<'_>], shown: &Shown) -> LogVersion {
    let before = mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked);
    let done = before.map(|mutation| mutation.version).max();
    done.max(shown_before(&shown.versions, read.operation.invoked)).unwrap_or(LogVersion::ZERO)
}

fn check_read(read: &Seen<'_>, mutations: &[Mutation<'_>], shown: &Shown, checked: &mut Checked) {
    let id = read.operation.id;
    let floor = floor(read, mutations, shown);
    match read.outcome {
        ClientOutcome::Done { version, results } => {
            let value = match register_value(results) {
                Ok(value) => value,
                Err(error) => return checked.note(format!("D1: {id}: {error}")),
            };
            let source = mutations.iter().find(|mutation| mutation.version == *version);
            let Some(source) = source.filter(|source| source.operation.value == value) else {
                return checked.note(format!("D1: {id} read value {value} at {version}, which no write made"));
            };
            if source.operation.invoked > read.at {
                return checked.note(format!("D1: {id} read {version} before it was invoked"));
            }
            if *version < floor {
                checked.stale(read);
            }
        }
        ClientOutcome::Failed { error: OpError::NotFound, .. } => {
            let removed = mutations.iter().any(|mutation| {
                mutation.operation.act == Act::Remove
                    && mutation.version >= floor
                    && mutation.operation.invoked <= read.at
            });
            if !removed && floor != LogVersion::ZERO {
                let ever = mutations
                    .iter()
                    .any(|mutation| mutation.operation.act == Act::Remove && mutation.operation.invoked <= read.at);
                let first = mutations.first().is_none_or(|first| first.completed >= read.operation.invoked);
                if !ever && !first {
                    return checked.note(format!("D1: {id} did not find what was written at {floor}"));
                }
                checked.stale(read);
            }
        }
        other => checked.note(format!("D1: {id} answered {other:?}")),
    }
}

/// How many mutations must, and how many may, be visible to a read.
fn bounds(read: &Seen<'_>, mutations: &[Mutation<'_>], shown: &Shown) -> (usize, usize) {
    let done = mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked).count();
    let least = done.max(shown_before(&shown.counts, read.operation.invoked).unwrap_or(0));
    let most = mutations.iter().filter(|mutation| mutation.operation.invoked <= read.at).count();
    (least, most)
}

fn check_counter_read(read: &Seen<'_>, mutations: &[Mutation<'_>], shown: &Shown, checked: &mut Checked) {
    let id = read.operation.id;
    let value = match read.outcome {
        ClientOutcome::Done { results, .. } => match counter_value(results) {
            Ok(value) => value,
            Err(error) => return checked.note(format!("D1: {id}: {error}")),
        },
        ClientOutcome::Failed { error: OpError::NotFound, .. } => 0,
        other => return checked.note(format!("D1: {id} answered {other:?}")),
    };
    let (least, most) = bounds(read, mutations, shown);
    let Ok(value) = usize::try_from(value) else { return checked.note(format!("E1: {id} read {value}")) };
    if value > most {
        return checked.note(format!("E1: {id} read {value}, but only {most} increments had begun"));
    }
    if value < least {
        checked.stale(read);
    }
}

fn check_increment(one: &Seen<'_>, mutations: &[Mutation<'_>], checked: &mut Checked) {
    let id = one.operation.id;
    let ClientOutcome::Done { version, results } = one.outcome else {
        return checked.note(format!("E1: {id} answered {:?}", one.outcome));
    };
    let value = match counter_value(results) {
        Ok(value) => value,
        Err(error) => return checked.note(format!("E1: {id}: {error}")),
    };
    let rank = mutations.iter().filter(|mutation| mutation.version <= *version).count();
    if usize::try_from(value) != Ok(rank) {
        checked.note(format!("E1: {id} at {version} is increment {rank} and answered {value}"));
    }
}

fn check_list_read(read: &Seen<'_>, mutations: &[Mutation<'_>], shown: &Shown, checked: &mut Checked) {
    let id = read.operation.id;
    let values = match read.outcome {
        ClientOutcome::Done { results, .. } => match list_values(results) {
            Ok(values) => values,
            Err(error) => return checked.note(format!("D1: {id}: {error}")),
        },
        ClientOutcome::Failed { error: OpError::NotFound, .. } => Vec::new(),
        other => return checked.note(format!("D1: {id} answered {other:?}")),
    };
    let expected = mutations.iter().map(|mutation| mutation.operation.value).take(values.len());
    if !expected.eq(values.iter().copied()) || values.len() > mutations.len() {
        let order: Vec<u64> = mutations.iter().map(|mutation| mutation.operation.value).collect();
        return checked.note(format!("E1: {id} read {values:?}; appended in this order: {order:?}"));
    }
    let (least, most) = bounds(read, mutations, shown);
    if values.len() > most {
        return checked.note(format!("E1: {id} read {} items, but only {most} appends had begun", values.len()));
    }
    if values.len() < least {
        checked.stale(read);
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::{ClientId, Epoch, Incarnation, RequestId};
    use holdfast_wire::{Blob, OpResult};

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    fn version(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(1), counter }
    }

    fn operation(tid: u64, act: Act, value: u64, during: (u64, u64), outcome: ClientOutcome) -> Operation {
        Operation {
            id: RequestId { client: ClientId(tid), incarnation: Incarnation(1), tid },
            object: ObjectName::new("o".to_owned()).unwrap_or_else(|error| panic!("{error}")),
            act,
            value,
            invoked: at(during.0),
            answer: Some((at(during.1), outcome)),
        }
    }

    fn write(tid: u64, during: (u64, u64)) -> Operation {
        let outcome = ClientOutcome::Done { version: version(tid), results: vec![OpResult::Done] };
        operation(tid, Act::Write { if_version: None }, tid, during, outcome)
    }

    fn read(tid: u64, of: u64, during: (u64, u64)) -> Operation {
        let blob = |bytes: [u8; 8]| Blob::from(bytes::Bytes::copy_from_slice(&bytes));
        let results = vec![OpResult::Data(blob(of.to_le_bytes())), OpResult::Attr(Some(blob(of.to_le_bytes())))];
        operation(tid, Act::Read, 0, during, ClientOutcome::Done { version: version(of), results })
    }

    #[test]
    fn a_read_that_shows_less_than_an_earlier_read_is_noticed_though_nothing_was_acknowledged() {
        // The second write is on its way all the time.
        let writes = || vec![write(1, (0, 1)), write(2, (2, 100))];
        let then = |first: u64, second: u64, began: u64| {
            let mut history = writes();
            history.extend([read(10, first, (10, 20)), read(11, second, (began, 40))]);
            check(&history, |_| false, None)
        };
        assert_eq!(then(2, 2, 30), Vec::<String>::new());
        assert_eq!(then(1, 2, 30), Vec::<String>::new());
        assert_eq!(then(2, 1, 15), Vec::<String>::new(), "they overlap");
        assert!(then(2, 1, 30).iter().any(|violation| violation.contains("D2")));
    }

    #[test]
    fn a_count_that_goes_back_between_two_reads_is_noticed() {
        let count = |tid, value: i64, during| {
            let outcome = ClientOutcome::Done { version: version(9), results: vec![OpResult::Counter(value)] };
            operation(tid, Act::ReadCounter, 0, during, outcome)
        };
        let increment = |tid: u64, during| {
            let results = vec![OpResult::Counter(i64::try_from(tid).unwrap_or(0))];
            operation(tid, Act::Increment, 0, during, ClientOutcome::Done { version: version(tid), results })
        };
        let history = |second| {
            vec![increment(1, (0, 1)), increment(2, (2, 100)), count(10, 2, (10, 20)), count(11, second, (30, 40))]
        };
        assert_eq!(check(&history(2), |_| false, None), Vec::<String>::new());
        assert!(check(&history(1), |_| false, None).iter().any(|violation| violation.contains("D2")));
    }
}
