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
#[derive(Clone, Copy)]
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

/// A mutation whose client was told only that nobody remembers it any more: it took effect at some version before that was
/// said, or never. What it did is asked of the others: they may show it once, and need not show it at all.
type Forgotten<'a> = Seen<'a>;

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
        if matches!(outcome, ClientOutcome::Refused(RefusedReason::Full)) && act.changes() {
            continue; // it had no effect, or the others show it
        }
        by_object.entry(object).or_default().push(Seen { operation, at: *at, outcome });
    }
    for (object, seen) in by_object {
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
    let is_forgotten = |one: &&Seen<'_>| {
        matches!(one.outcome, ClientOutcome::Refused(RefusedReason::Forgotten)) && one.operation.act.changes()
    };
    let mut forgotten: Vec<Forgotten<'_>> = seen.iter().filter(is_forgotten).copied().collect();
    let mut mutations: Vec<Mutation<'_>> = Vec::new();
    for one in seen {
        if let (ClientOutcome::Done { version, .. }, true) = (one.outcome, one.operation.act.changes()) {
            mutations.push(Mutation { version: *version, operation: one.operation, completed: one.at });
        }
    }
    name_forgotten(seen, &mut forgotten, &mut mutations);
    mutations.sort_by_key(|mutation| mutation.version);
    let history = Known { shown: Shown::of(seen, &mutations, &forgotten), mutations, forgotten };
    check_order(&history, checked);
    for one in seen.iter().filter(|one| !is_forgotten(one)) {
        match one.operation.act {
            Act::Read => check_read(one, &history, checked),
            Act::ReadCounter => check_counter_read(one, &history, checked),
            Act::ReadList => check_list_read(one, &history, checked),
            Act::Increment => check_increment(one, &history, checked),
            Act::Write { if_version: Some(expected) } => {
                check_failed(one, &history, |found| found != expected, checked);
            }
            Act::Remove => check_failed(one, &history, |found| found == LogVersion::ZERO, checked),
            Act::Write { if_version: None } | Act::Append => {
                if !matches!(one.outcome, ClientOutcome::Done { .. }) {
                    checked.note(format!("D2: {} cannot fail, and was answered {:?}", one.operation.id, one.outcome));
                }
            }
        }
    }
}

/// A register's write that was forgotten has the version that a read has shown its value at, and was done when its client
/// was told that it is forgotten. A value at two versions is two mutations: [`check_order`] sees that.
fn name_forgotten<'a>(seen: &[Seen<'a>], forgotten: &mut Vec<Forgotten<'a>>, mutations: &mut Vec<Mutation<'a>>) {
    let mut named: BTreeMap<LogVersion, Forgotten<'a>> = BTreeMap::new();
    for read in seen.iter().filter(|one| one.operation.act == Act::Read) {
        let ClientOutcome::Done { version, results } = read.outcome else { continue };
        let Ok(value) = register_value(results) else { continue };
        if let Some(write) = forgotten.iter().find(|write| write.operation.value == value) {
            named.insert(*version, *write);
        }
    }
    let known: Vec<u64> = named.values().map(|write| write.operation.value).collect();
    forgotten.retain(|write| !known.contains(&write.operation.value));
    mutations.extend(named.into_iter().map(|(version, write)| Mutation {
        version,
        operation: write.operation,
        completed: write.at,
    }));
}

/// What is known of one object.
struct Known<'a> {
    /// In the order of their versions.
    mutations: Vec<Mutation<'a>>,
    /// May have taken effect at any version.
    forgotten: Vec<Forgotten<'a>>,
    shown: Shown,
}

impl Known<'_> {
    /// How many of the forgotten ones may have taken effect by then.
    fn forgotten_by(&self, then: Timestamp, which: impl Fn(Act) -> bool) -> usize {
        let begun = |one: &&Forgotten<'_>| one.operation.invoked <= then && which(one.operation.act);
        self.forgotten.iter().filter(begun).count()
    }

    /// Whether something of this kind is forgotten that may have taken effect by then.
    fn has_forgotten(&self, then: Timestamp, which: impl Fn(Act) -> bool) -> bool {
        self.forgotten_by(then, which) > 0
    }
}

/// What failed by its condition did so in a state that there was between question and answer. `fails`: whether it does in the
/// state that this version made, zero for no object.
fn check_failed(one: &Seen<'_>, known: &Known<'_>, fails: impl Fn(LogVersion) -> bool, checked: &mut Checked) {
    let is_remove = one.operation.act == Act::Remove;
    match one.outcome {
        ClientOutcome::Done { .. } => return,
        ClientOutcome::Failed { error: OpError::NotFound, .. } if is_remove => {}
        ClientOutcome::Failed { error: OpError::AssertFailed { .. }, .. } if !is_remove => {}
        other => return checked.note(format!("D2: {} cannot be answered {other:?}", one.operation.id)),
    }
    if known.has_forgotten(one.at, Act::changes) {
        return; // it may have found what that made
    }
    let mutations = &known.mutations;
    // A state has ended when the first of those that came after it was done.
    let mut end = Timestamp::from_nanos(u64::MAX);
    let justified = (0..=mutations.len()).rev().any(|done| {
        end = mutations.get(done).map_or(end, |next| end.min(next.completed));
        let last = done.checked_sub(1).and_then(|last| mutations.get(last));
        let begins = last.is_none_or(|last| last.operation.invoked <= one.at);
        let existing = last.filter(|last| last.operation.act != Act::Remove);
        begins && end >= one.operation.invoked && fails(existing.map_or(LogVersion::ZERO, |last| last.version))
    });
    if !justified {
        checked.note(format!("D2: {} failed by what was not so any more", one.operation.id));
    }
}

/// Versions are unique, agree with real time, and conditions held.
fn check_order(known: &Known<'_>, checked: &mut Checked) {
    let mutations = &known.mutations;
    let mut values: Vec<u64> = mutations.iter().map(|mutation| mutation.operation.value).collect();
    values.sort_unstable();
    if let Some(twice) = values.windows(2).find(|pair| pair[0] == pair[1]) {
        checked.note(format!("E1: value {} was written twice", twice[0]));
    }
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
            // What was forgotten may have removed, or made, what was there.
            Act::Write { if_version: Some(LogVersion::ZERO) }
                if known.has_forgotten(mutation.completed, |act| act == Act::Remove) => {}
            Act::Remove if known.has_forgotten(mutation.completed, |act| matches!(act, Act::Write { .. })) => {}
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
    fn of(seen: &[Seen<'_>], mutations: &[Mutation<'_>], forgotten: &[Forgotten<'_>]) -> Shown {
        let (mut versions, mut counts) = (Vec::new(), Vec::new());
        for read in seen {
            if forgotten.is_empty() {
                versions.extend(removal_shown(read, mutations).map(|version| (read.at, version)));
            }
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

/// A read that finds no object shows a removal: at least the first one that is newer than what was done before it was asked.
fn removal_shown(read: &Seen<'_>, mutations: &[Mutation<'_>]) -> Option<LogVersion> {
    if read.operation.act != Act::Read
        || !matches!(read.outcome, ClientOutcome::Failed { error: OpError::NotFound, .. })
    {
        return None;
    }
    let before = mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked);
    let floor = before.map(|mutation| mutation.version).max()?;
    let after = mutations.iter().filter(|mutation| mutation.version >= floor);
    after
        .filter(|mutation| mutation.operation.act == Act::Remove && mutation.operation.invoked <= read.at)
        .map(|mutation| mutation.version)
        .min()
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
fn floor(read: &Seen<'_>, known: &Known<'_>) -> LogVersion {
    let before = known.mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked);
    let done = before.map(|mutation| mutation.version).max();
    done.max(shown_before(&known.shown.versions, read.operation.invoked)).unwrap_or(LogVersion::ZERO)
}

fn check_read(read: &Seen<'_>, known: &Known<'_>, checked: &mut Checked) {
    let id = read.operation.id;
    let (floor, mutations) = (floor(read, known), &known.mutations);
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
            let removed = removed || known.has_forgotten(read.at, |act| act == Act::Remove);
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
fn bounds(read: &Seen<'_>, known: &Known<'_>) -> (usize, usize) {
    let mutations = &known.mutations;
    let done = mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked).count();
    let least = done.max(shown_before(&known.shown.counts, read.operation.invoked).unwrap_or(0));
    let most = mutations.iter().filter(|mutation| mutation.operation.invoked <= read.at).count();
    let most = most + known.forgotten_by(read.at, |_| true);
    (least, most)
}

fn check_counter_read(read: &Seen<'_>, known: &Known<'_>, checked: &mut Checked) {
    let id = read.operation.id;
    let value = match read.outcome {
        ClientOutcome::Done { results, .. } => match counter_value(results) {
            Ok(value) => value,
            Err(error) => return checked.note(format!("D1: {id}: {error}")),
        },
        ClientOutcome::Failed { error: OpError::NotFound, .. } => 0,
        other => return checked.note(format!("D1: {id} answered {other:?}")),
    };
    let (least, most) = bounds(read, known);
    let Ok(value) = usize::try_from(value) else { return checked.note(format!("E1: {id} read {value}")) };
    if value > most {
        return checked.note(format!("E1: {id} read {value}, but only {most} increments had begun"));
    }
    if value < least {
        checked.stale(read);
    }
}

fn check_increment(one: &Seen<'_>, known: &Known<'_>, checked: &mut Checked) {
    let id = one.operation.id;
    let ClientOutcome::Done { version, results } = one.outcome else {
        return checked.note(format!("E1: {id} answered {:?}", one.outcome));
    };
    let value = match counter_value(results) {
        Ok(value) => value,
        Err(error) => return checked.note(format!("E1: {id}: {error}")),
    };
    let rank = known.mutations.iter().filter(|mutation| mutation.version <= *version).count();
    let most = rank + known.forgotten_by(one.at, |_| true);
    if !usize::try_from(value).is_ok_and(|value| (rank..=most).contains(&value)) {
        checked.note(format!("E1: {id} at {version} is increment {rank} to {most} and answered {value}"));
    }
}

fn check_list_read(read: &Seen<'_>, known: &Known<'_>, checked: &mut Checked) {
    let id = read.operation.id;
    let values = match read.outcome {
        ClientOutcome::Done { results, .. } => match list_values(results) {
            Ok(values) => values,
            Err(error) => return checked.note(format!("D1: {id}: {error}")),
        },
        ClientOutcome::Failed { error: OpError::NotFound, .. } => Vec::new(),
        other => return checked.note(format!("D1: {id} answered {other:?}")),
    };
    let (mutations, forgotten) = (&known.mutations, &known.forgotten);
    // What was forgotten may stand anywhere, once.
    let is_forgotten = |value: &u64| forgotten.iter().any(|one| one.operation.value == *value);
    let mut strays: Vec<u64> = values.iter().copied().filter(is_forgotten).collect();
    strays.sort_unstable();
    let repeated = strays.windows(2).any(|pair| pair[0] == pair[1]);
    let shown: Vec<u64> = values.iter().copied().filter(|value| !is_forgotten(value)).collect();
    let expected = mutations.iter().map(|mutation| mutation.operation.value).take(shown.len());
    if repeated || !expected.eq(shown.iter().copied()) || shown.len() > mutations.len() {
        let order: Vec<u64> = mutations.iter().map(|mutation| mutation.operation.value).collect();
        return checked.note(format!("E1: {id} read {values:?}; appended in this order: {order:?}"));
    }
    let (least, most) = bounds(read, known);
    if values.len() > most {
        return checked.note(format!("E1: {id} read {} items, but only {most} appends had begun", values.len()));
    }
    let done = mutations.iter().filter(|mutation| mutation.completed < read.operation.invoked).count();
    if values.len() < least || shown.len() < done {
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
            operation(tid, Act::Increment, tid, during, ClientOutcome::Done { version: version(tid), results })
        };
        let history = |second| {
            vec![increment(1, (0, 1)), increment(2, (2, 100)), count(10, 2, (10, 20)), count(11, second, (30, 40))]
        };
        assert_eq!(check(&history(2), |_| false, None), Vec::<String>::new());
        assert!(check(&history(1), |_| false, None).iter().any(|violation| violation.contains("D2")));
    }

    fn remove(tid: u64, during: (u64, u64)) -> Operation {
        let outcome = ClientOutcome::Done { version: version(tid), results: vec![OpResult::Done] };
        operation(tid, Act::Remove, tid, during, outcome)
    }

    fn failed(tid: u64, act: Act, during: (u64, u64), error: OpError) -> Operation {
        operation(tid, act, tid, during, ClientOutcome::Failed { index: 0, error })
    }

    fn not_found(tid: u64, during: (u64, u64)) -> Operation {
        failed(tid, Act::Read, during, OpError::NotFound)
    }

    fn forgotten(tid: u64, act: Act, during: (u64, u64)) -> Operation {
        operation(tid, act, tid, during, ClientOutcome::Refused(RefusedReason::Forgotten))
    }

    fn is_told_of(history: &[Operation], checker: &str) -> bool {
        check(history, |_| false, None).iter().any(|violation| violation.contains(checker))
    }

    fn is_right(history: &[Operation]) {
        assert_eq!(check(history, |_| false, None), Vec::<String>::new());
    }

    #[test]
    fn an_object_that_a_read_did_not_find_does_not_come_back() {
        // The removal is on its way all the time.
        let before = || vec![write(1, (0, 1)), remove(2, (2, 100)), not_found(10, (10, 20))];
        let shows = |of, during| before().into_iter().chain([read(11, of, during)]).collect::<Vec<_>>();
        is_right(&shows(1, (15, 40)));
        assert!(is_told_of(&shows(1, (30, 40)), "D2"));
        is_right(&before().into_iter().chain([write(3, (25, 28)), read(11, 3, (30, 40))]).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_condition_failed_by_had_not_been_replaced_before() {
        let conditional = |of| {
            let act = Act::Write { if_version: Some(version(of)) };
            failed(10, act, (50, 60), OpError::AssertFailed { current: None })
        };
        // The third was done before the second: the first one's state had ended by then, whatever became of the second.
        let writes = || vec![write(1, (0, 1)), write(2, (2, 100)), write(3, (3, 10))];
        let then = |of| writes().into_iter().chain([conditional(of)]).collect::<Vec<_>>();
        is_right(&then(1));
        assert!(is_told_of(&then(3), "D2"), "nothing but the third was there");
    }

    #[test]
    fn what_cannot_fail_is_not_answered_that_it_did() {
        let write = Act::Write { if_version: None };
        assert!(is_told_of(&[failed(1, write, (0, 1), OpError::NotFound)], "D2"));
        assert!(is_told_of(&[failed(1, Act::Append, (0, 1), OpError::AssertFailed { current: None })], "D2"));
        assert!(is_told_of(&[failed(1, Act::Remove, (0, 1), OpError::Exists)], "D2"));
        is_right(&[failed(1, Act::Remove, (0, 1), OpError::NotFound)]);
    }

    #[test]
    fn a_request_that_is_forgotten_hides_nothing_of_what_else_is_wrong() {
        let lost = |tid| forgotten(tid, Act::Write { if_version: None }, (2, 50));
        is_right(&[write(1, (0, 1)), lost(2), read(10, 1, (10, 20)), read(11, 2, (30, 40))]);
        is_right(&[write(1, (0, 1)), lost(2), read(10, 1, (60, 70))]);
        let back = [write(1, (0, 1)), lost(2), read(10, 2, (10, 20)), read(11, 1, (30, 40))];
        assert!(is_told_of(&back, "D2"), "it was shown");
        let stale = [write(1, (0, 1)), lost(2), write(3, (3, 4)), read(10, 1, (30, 40))];
        assert!(is_told_of(&stale, "D2"), "another was acknowledged");
        let twice = [lost(2), read(10, 2, (10, 20)), write(3, (21, 22)), shown_at(11, 2, 4, (30, 40))];
        assert!(is_told_of(&twice, "E1"));
    }

    /// The value of a write at another version than its own.
    fn shown_at(tid: u64, of: u64, at_version: u64, during: (u64, u64)) -> Operation {
        let mut read = read(tid, of, during);
        if let Some((_, ClientOutcome::Done { version: shown, .. })) = &mut read.answer {
            *shown = version(at_version);
        }
        read
    }

    #[test]
    fn an_item_or_a_count_that_is_forgotten_is_seen_once_or_never() {
        let append = |tid: u64, during| {
            let outcome = ClientOutcome::Done { version: version(tid), results: vec![OpResult::Done] };
            operation(tid, Act::Append, tid, during, outcome)
        };
        let list = |tid, values: &[u64], during| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let results = vec![OpResult::Data(Blob::from(bytes::Bytes::from(bytes)))];
            operation(tid, Act::ReadList, 0, during, ClientOutcome::Done { version: version(9), results })
        };
        let shows = |values: &[u64]| {
            vec![append(1, (0, 1)), forgotten(2, Act::Append, (2, 50)), append(3, (3, 4)), list(10, values, (10, 20))]
        };
        for right in [&[1, 3][..], &[2, 1, 3], &[1, 2, 3], &[1, 3, 2]] {
            is_right(&shows(right));
        }
        assert!(is_told_of(&shows(&[1, 2, 3, 2]), "E1"));
        assert!(is_told_of(&shows(&[1, 2]), "D2"), "the third was acknowledged");
        assert!(is_told_of(&shows(&[3, 1]), "E1"));
    }
}
