//! Whether the history of one key is linearizable: whether each operation can have taken effect at one moment between
//! its call and its answer, such that every read saw the newest write.
//!
//! The search goes through calls and answers in order of time and keeps every state that is still possible: what the key
//! holds, and which of the open operations have taken effect. An operation must have taken effect when its answer comes;
//! one of unknown outcome stays open for ever. Reads that fit the state are taken at once: that never loses a solution.
//! After Wing & Gong, "Testing and verifying concurrent objects" (1993), with the ordering of Lowe's just-in-time search.

use std::collections::BTreeSet;

/// What a key holds; `None`: no object.
pub type Held = Option<u64>;

/// What a read saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// This.
    Held(Held),
    /// An object, as a listing shows it: not which.
    Something,
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A PUT or DELETE.
    Write(Held),
    /// A GET or a listing.
    Read(Seen),
}

/// One operation on the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Who did it.
    pub client: u64,
    /// When it was called, in nanoseconds.
    pub called: u64,
    /// When its answer came; `None`: its outcome is unknown.
    pub answered: Option<u64>,
    /// What it did.
    pub action: Action,
}

/// Open operations at one time; a key with more operations of unknown outcome must no longer be written.
pub const OPEN_MAX: usize = 48;
/// States that are followed at one time. What a handful of clients and unknown outcomes can make is far below.
const STATES_MAX: usize = 100_000;

/// Why a history cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is linearizable.
    Linearizable,
    /// Nothing that this operation may have seen or done fits what others were answered.
    Impossible(Operation),
    /// More is open at one time than can be searched.
    TooMuchOpen,
}

/// A possible state: what the key holds, and the open operations (by slot) that have taken effect.
type State = (Held, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Before answers of the same nanosecond: then both orders are allowed.
    Call,
    Answer,
}

/// Judges the history of a key that held nothing before.
#[must_use]
pub fn judge(operations: &[Operation]) -> Verdict {
    let mut moments: Vec<(u64, Moment, usize)> = Vec::with_capacity(operations.len() * 2);
    for (index, operation) in operations.iter().enumerate() {
        moments.push((operation.called, Moment::Call, index));
        moments.extend(operation.answered.map(|answered| (answered, Moment::Answer, index)));
    }
    moments.sort_unstable();
    let mut slots: Vec<Option<usize>> = vec![None; OPEN_MAX];
    let mut states: BTreeSet<State> = BTreeSet::from([(None, 0)]);
    for (_, moment, index) in moments {
        let Some(operation) = operations.get(index) else { continue };
        if moment == Moment::Call {
            let Some(slot) = slots.iter_mut().find(|slot| slot.is_none()) else { return Verdict::TooMuchOpen };
            *slot = Some(index);
            continue;
        }
        let Some(slot) = slots.iter().position(|slot| *slot == Some(index)) else { continue };
        let Some(reached) = taken_effect(&states, &slots, operations, slot) else { return Verdict::TooMuchOpen };
        if reached.is_empty() {
            return Verdict::Impossible(*operation);
        }
        // The slot is used again: its mark must not be taken for its successor's.
        states = reached.into_iter().map(|(held, effective)| (held, effective & !(1 << slot))).collect();
        slots[slot] = None;
    }
    Verdict::Linearizable
}

/// All states in which the operation of `slot` has taken effect; `None`: too many.
fn taken_effect(
    states: &BTreeSet<State>,
    slots: &[Option<usize>],
    operations: &[Operation],
    slot: usize,
) -> Option<BTreeSet<State>> {
    let open: Vec<(usize, Action)> = slots
        .iter()
        .enumerate()
        .filter_map(|(slot, index)| index.and_then(|index| operations.get(index)).map(|found| (slot, found.action)))
        .collect();
    let with_reads = |(held, mut effective): State| -> State {
        for (slot, action) in &open {
            if let Action::Read(seen) = action
                && fits(*seen, held)
            {
                effective |= 1 << slot;
            }
        }
        (held, effective)
    };
    let mut todo: Vec<State> = states.iter().copied().map(with_reads).collect();
    let (mut met, mut reached) = (todo.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::new());
    while let Some((held, effective)) = todo.pop() {
        if effective & (1 << slot) != 0 {
            reached.insert((held, effective));
            continue;
        }
        for (other, action) in &open {
            let Action::Write(written) = action else { continue };
            if effective & (1 << other) != 0 {
                continue;
            }
            let next = with_reads((*written, effective | (1 << other)));
            if met.insert(next) {
                todo.push(next);
            }
        }
        if met.len() > STATES_MAX {
            return None;
        }
    }
    Some(reached)
}

fn fits(seen: Seen, held: Held) -> bool {
    match seen {
        Seen::Held(seen) => seen == held,
        Seen::Something => held.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(called: u64, answered: u64, held: Held) -> Operation {
        Operation { client: 1, called, answered: Some(answered), action: Action::Write(held) }
    }

    fn lost(called: u64, held: Held) -> Operation {
        Operation { client: 1, called, answered: None, action: Action::Write(held) }
    }

    fn read(called: u64, answered: u64, held: Held) -> Operation {
        Operation { client: 2, called, answered: Some(answered), action: Action::Read(Seen::Held(held)) }
    }

    fn listed(called: u64, answered: u64) -> Operation {
        Operation { client: 3, called, answered: Some(answered), action: Action::Read(Seen::Something) }
    }

    fn is_good(history: &[Operation]) -> bool {
        judge(history) == Verdict::Linearizable
    }

    #[test]
    fn reads_see_the_newest_write() {
        assert!(is_good(&[write(0, 1, Some(1)), read(2, 3, Some(1)), write(4, 5, None), read(6, 7, None)]));
        assert!(!is_good(&[write(0, 1, Some(1)), write(2, 3, Some(2)), read(4, 5, Some(1))]), "a stale read");
        assert!(!is_good(&[write(0, 1, Some(1)), read(2, 3, None)]), "a lost write");
        assert!(!is_good(&[write(0, 1, Some(1)), write(2, 3, None), listed(4, 5)]), "a listing of what was deleted");
        assert!(!is_good(&[write(0, 1, Some(1)), write(2, 3, None), read(4, 5, Some(1))]), "a resurrection");
    }

    #[test]
    fn concurrent_writes_have_one_order_for_all() {
        let both = [write(0, 10, Some(1)), write(1, 9, Some(2))];
        assert!(is_good(&[&both[..], &[read(11, 12, Some(1)), read(13, 14, Some(1))]].concat()));
        assert!(is_good(&[&both[..], &[read(11, 12, Some(2))]].concat()));
        assert!(!is_good(&[&both[..], &[read(11, 12, Some(2)), read(13, 14, Some(1))]].concat()));
        assert!(is_good(&[&both[..], &[read(2, 3, Some(2)), read(4, 5, Some(1))]].concat()), "one after the other");
        assert!(!is_good(&[&both[..], &[read(2, 3, Some(2)), read(4, 5, Some(1)), read(6, 7, Some(2))]].concat()));
    }

    #[test]
    fn an_unknown_write_takes_effect_once_at_any_later_time_or_never() {
        assert!(is_good(&[write(0, 1, Some(1)), lost(2, Some(2)), read(3, 4, Some(1)), read(5, 6, Some(1))]));
        assert!(is_good(&[write(0, 1, Some(1)), lost(2, Some(2)), read(3, 4, Some(1)), read(5, 6, Some(2))]));
        let back = [write(0, 1, Some(1)), lost(2, Some(2)), read(3, 4, Some(2)), read(5, 6, Some(1))];
        assert!(!is_good(&back), "what was seen once does not go away");
        let twice = [lost(0, Some(2)), read(1, 2, Some(2)), write(3, 4, Some(3)), read(5, 6, Some(2))];
        assert!(!is_good(&twice), "it takes effect once");
        assert!(!is_good(&[read(0, 1, Some(2)), lost(2, Some(2))]), "not before it was called");
    }

    #[test]
    fn a_slot_that_is_used_again_keeps_no_mark() {
        let mut history = Vec::new();
        for round in 0..200u64 {
            history.push(write(round * 10, round * 10 + 3, Some(round)));
            history.push(read(round * 10 + 4, round * 10 + 5, Some(round)));
        }
        assert!(is_good(&history));
        history.push(read(2000, 2001, Some(198)));
        assert!(matches!(judge(&history), Verdict::Impossible(_)));
    }

    #[test]
    fn more_than_can_be_searched_is_said() {
        let open: Vec<Operation> = (0..=OPEN_MAX as u64).map(|call| lost(call, Some(call))).collect();
        assert_eq!(judge(&open), Verdict::TooMuchOpen);
    }
}
