//! Turns: who of those that wait for room is next.
//!
//! Ordinary writes that find no room wait for the cleaner one after the other. While one waits, none that came later is let
//! in, however small: else a large one would wait for as long as small ones take what cleaning gains. What may use the
//! reserve (deletes, rows) needs less and has a queue of its own; it may overtake an ordinary write that waits, by
//! so many bytes in all, and then waits too until that one has its answer. So whoever is first has what the cleaner gains
//! to itself in the end, and waits no longer than cleaning helps.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Who waits looks so often whether the store stops.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What a transaction needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Ordinary,
    /// It may use the reserve.
    Reserve,
}

#[derive(Debug, Default)]
struct Waiting {
    next_ticket: u64,
    ordinary: BTreeSet<u64>,
    reserve: BTreeSet<u64>,
    /// Bytes that overtook the first of the ordinary ones.
    overtook_bytes: u64,
    stopped: bool,
}

impl Waiting {
    fn of(&mut self, class: Class) -> &mut BTreeSet<u64> {
        match class {
            Class::Ordinary => &mut self.ordinary,
            Class::Reserve => &mut self.reserve,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    overtaking_bytes_max: u64,
}

/// The place of one transaction among those that wait, if it has to; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    class: Class,
    ticket: Option<u64>,
}

impl Turns {
    pub(crate) fn new(overtaking_bytes_max: u64) -> Turns {
        Turns { waiting: Mutex::default(), changed: Condvar::new(), overtaking_bytes_max }
    }

    pub(crate) fn arrive(&self, class: Class) -> Turn<'_> {
        Turn { turns: self, class, ticket: None }
    }

    /// Nobody waits for a turn any more.
    pub(crate) fn stop(&self) {
        self.waiting.lock().stopped = true;
        self.changed.notify_all();
    }
}

impl Turn<'_> {
    fn must_wait(&self, waiting: &mut Waiting) -> bool {
        let max = self.turns.overtaking_bytes_max;
        let is_overtaking = self.class == Class::Reserve && !waiting.ordinary.is_empty();
        let first = waiting.of(self.class).first().copied();
        let is_behind = first.is_some_and(|first| self.ticket.is_none_or(|ticket| first < ticket));
        !waiting.stopped && (is_behind || is_overtaking && waiting.overtook_bytes >= max)
    }

    /// Returns when it is this one's turn to look for room.
    pub(crate) fn wait(&mut self) {
        let turns = self.turns;
        let mut waiting = turns.waiting.lock();
        while self.must_wait(&mut waiting) {
            self.take_ticket(&mut waiting);
            let _ = turns.changed.wait_for(&mut waiting, LOOK_INTERVAL);
        }
    }

    fn take_ticket(&mut self, waiting: &mut Waiting) {
        if self.ticket.is_none() {
            let ticket = waiting.next_ticket;
            waiting.next_ticket += 1;
            waiting.of(self.class).insert(ticket);
            self.ticket = Some(ticket);
        }
    }

    /// There was no room: those that come later wait until this one has its answer.
    pub(crate) fn hold(&mut self) {
        self.take_ticket(&mut self.turns.waiting.lock());
    }

    /// It has its place, of so many bytes.
    pub(crate) fn took(&self, bytes: u64) {
        if self.class == Class::Reserve {
            let mut waiting = self.turns.waiting.lock();
            waiting.overtook_bytes =
                if waiting.ordinary.is_empty() { 0 } else { waiting.overtook_bytes.saturating_add(bytes) };
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut waiting = self.turns.waiting.lock();
        if self.class == Class::Ordinary && waiting.ordinary.first() == Some(&ticket) {
            waiting.overtook_bytes = 0;
        }
        waiting.of(self.class).remove(&ticket);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_wait(turn: &Turn<'_>) -> bool {
        turn.must_wait(&mut turn.turns.waiting.lock())
    }

    #[test]
    fn who_waits_is_overtaken_by_none_of_its_kind_and_by_few_bytes_of_the_other() {
        let turns = Turns::new(1000);
        let mut large = turns.arrive(Class::Ordinary);
        assert!(!must_wait(&large));
        large.hold();
        let mut small = turns.arrive(Class::Ordinary);
        assert!(must_wait(&small) && !must_wait(&large));
        small.hold();
        for _ in 0..2 {
            let delete = turns.arrive(Class::Reserve);
            assert!(!must_wait(&delete));
            delete.took(500);
        }
        let late = turns.arrive(Class::Reserve);
        assert!(must_wait(&late), "they have overtaken enough");
        drop(large);
        assert!(!must_wait(&late) && !must_wait(&small), "the next one is waiting now, and was overtaken by none");
        late.took(2000);
        assert!(must_wait(&late));
        drop(small);
        assert!(!must_wait(&late) && !must_wait(&turns.arrive(Class::Ordinary)));
    }

    #[test]
    fn those_that_use_the_reserve_come_one_after_the_other_too() {
        let turns = Turns::new(1000);
        let (mut one, mut other) = (turns.arrive(Class::Reserve), turns.arrive(Class::Reserve));
        one.hold();
        assert!(must_wait(&other) && !must_wait(&turns.arrive(Class::Ordinary)));
        other.hold();
        turns.stop();
        other.wait();
        drop(one);
        assert!(!must_wait(&other));
    }
}
