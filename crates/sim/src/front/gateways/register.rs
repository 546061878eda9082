//! What S3 clients asked of keys and were answered, and whether one order explains it: each key is a register that holds a
//! write or nothing. The search is that of Wing and Gong, with the states that were tried remembered (Lowe).

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Names a write; each has content of its own.
pub(crate) type WriteId = u64;

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OnlyIf {
    Any,
    /// The key is new.
    Absent,
    /// The object has this ETag.
    Etag(String),
}

/// What was asked of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Write { write: WriteId, only_if: OnlyIf },
    Delete,
    Read,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It may have happened, may yet, or never.
    Unknown,
    /// It had no effect and says nothing.
    Nothing,
    /// It took effect.
    Done,
    /// The condition did not hold: the object is there, or has another ETag.
    Refused,
    /// There was no object.
    Missing,
    /// The object of this write.
    Object(WriteId),
    /// Some object with this ETag.
    Etag(String),
    /// Some object whose bytes have this sum.
    Bytes(String),
}

/// One request of one client.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub key: usize,
    pub asked: Asked,
    pub answered: Answered,
    pub began: u64,
    /// `u64::MAX` while it is not answered.
    pub ended: u64,
}

impl Event {
    /// Whether it was answered, and changed nothing.
    fn only_looks(&self) -> bool {
        match self.answered {
            Answered::Missing | Answered::Object(_) | Answered::Etag(_) | Answered::Bytes(_) | Answered::Refused => {
                true
            }
            Answered::Unknown | Answered::Nothing | Answered::Done => false,
        }
    }
}

/// All requests of all clients, in the order in which they were asked.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub events: Vec<Event>,
    /// The ETag of each write, where it is known.
    pub etags: BTreeMap<WriteId, String>,
    /// The sum of the bytes of each write, where they are known. (The ETag of an upload in parts is another.)
    pub sums: BTreeMap<WriteId, String>,
}

impl History {
    /// Notes what is asked now; gives its number.
    pub fn begin(&mut self, now: u64, key: usize, asked: Asked) -> usize {
        self.events.push(Event { key, asked, answered: Answered::Unknown, began: now, ended: u64::MAX });
        self.events.len() - 1
    }

    /// Notes an answer. What is unknown stays open.
    pub fn end(&mut self, event: usize, now: u64, answered: Answered) {
        if let Some(event) = self.events.get_mut(event)
            && answered != Answered::Unknown
        {
            (event.answered, event.ended) = (answered, now);
        }
    }

    /// Notes what somebody saw who asked between these moments.
    pub fn saw(&mut self, began: u64, now: u64, key: usize, answered: Answered) {
        self.events.push(Event { key, asked: Asked::Read, answered, began, ended: now });
    }

    /// Writes and removals of which nobody knows whether they happened.
    pub fn unknown(&self) -> usize {
        self.events.iter().filter(|event| event.answered == Answered::Unknown && event.asked != Asked::Read).count()
    }
}

/// Checks each key on its own.
///
/// # Errors
/// The key that no order explains, and what happened to it.
pub(crate) fn check(history: &History, keys: usize) -> Result<(), String> {
    for key in 0..keys {
        let events: Vec<&Event> = history.events.iter().filter(|event| event.key == key).collect();
        let mut search = Search::new(&events, history);
        if !search.explains(&mut vec![0u64; search.events.len().div_ceil(64)], None) {
            return Err(format!("no order explains what happened to k{key}:\n{}", search.story()));
        }
    }
    Ok(())
}

fn is_done(done: &[u64], index: usize) -> bool {
    done.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
}

struct Search<'h> {
    events: Vec<&'h Event>,
    /// What was never answered and is as good as any other of the same name: only the first of them is tried.
    alike: Vec<Option<Alike<'h>>>,
    etags: &'h BTreeMap<WriteId, String>,
    sums: &'h BTreeMap<WriteId, String>,
    tried: HashSet<(Vec<u64>, Option<WriteId>)>,
    /// The longest order that was found: how many events, which, and the state after them.
    furthest: (u32, Vec<u64>, Option<WriteId>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alike<'h> {
    /// A removal.
    Removal,
    /// A write that nobody saw but who was refused because of it, and its ETag, if somebody has asked for that.
    Unseen(Option<&'h str>),
}

impl<'h> Search<'h> {
    fn new(events: &[&'h Event], history: &'h History) -> Search<'h> {
        let (etags, sums) = (&history.etags, &history.sums);
        let seen: BTreeSet<WriteId> = events
            .iter()
            .filter_map(|event| if let Answered::Object(write) = event.answered { Some(write) } else { None })
            .collect();
        let shown: BTreeSet<&str> = events
            .iter()
            .filter_map(|event| if let Answered::Etag(etag) = &event.answered { Some(etag.as_str()) } else { None })
            .collect();
        let copied: BTreeSet<&str> = events
            .iter()
            .filter_map(|event| if let Answered::Bytes(sum) = &event.answered { Some(sum.as_str()) } else { None })
            .collect();
        let refused = events.iter().any(|event| event.answered == Answered::Refused);
        let may_be = |names: &BTreeSet<&str>, of: Option<&String>| of.is_none_or(|name| names.contains(name.as_str()));
        let is_seen = |write: &WriteId| {
            seen.contains(write) || may_be(&shown, etags.get(write)) || may_be(&copied, sums.get(write))
        };
        let asked_for: BTreeSet<&str> = events
            .iter()
            .filter_map(|event| match &event.asked {
                Asked::Write { only_if: OnlyIf::Etag(etag), .. } => Some(etag.as_str()),
                _ => None,
            })
            .collect();
        let named = |write: &WriteId| etags.get(write).map(String::as_str).filter(|etag| asked_for.contains(etag));
        // What was never answered and that nobody can have met need not have happened. A condition on its ETag that was met
        // is a meeting, too.
        let needed = |event: &&&'h Event| match (&event.asked, &event.answered) {
            (_, Answered::Nothing) | (Asked::Read, Answered::Unknown) => false,
            (Asked::Write { write, .. }, Answered::Unknown) => refused || is_seen(write) || named(write).is_some(),
            _ => true,
        };
        let mut events: Vec<&'h Event> = events.iter().filter(needed).copied().collect();
        events.sort_by_key(|event| event.began);
        let alike = |event: &&'h Event| match (&event.asked, &event.answered) {
            (Asked::Delete, Answered::Unknown) => Some(Alike::Removal),
            (Asked::Write { write, only_if: OnlyIf::Any }, Answered::Unknown) if !is_seen(write) => {
                Some(Alike::Unseen(named(write)))
            }
            _ => None,
        };
        let alike = events.iter().map(alike).collect();
        Search { events, alike, etags, sums, tried: HashSet::new(), furthest: (0, Vec::new(), None) }
    }

    fn explains(&mut self, done: &mut Vec<u64>, state: Option<WriteId>) -> bool {
        // What is answered before anything else began must come first.
        let left = (0..self.events.len()).filter(|index| !is_done(done, *index));
        let Some(bound) = left.map(|index| self.events[index].ended).min() else { return true };
        if bound == u64::MAX {
            return true; // the rest was never answered: it need not have happened
        }
        if !self.tried.insert((done.clone(), state)) {
            return false;
        }
        let count: u32 = done.iter().map(|word| word.count_ones()).sum();
        if count > self.furthest.0 {
            self.furthest = (count, done.clone(), state);
        }
        let can_come = |index: &usize| self.events[*index].began <= bound && !is_done(done, *index);
        let mut next: Vec<usize> = (0..self.events.len()).filter(can_come).collect();
        // What can come now and changes nothing may as well come now.
        let looks =
            |index: &&usize| self.events[**index].only_looks() && self.apply(self.events[**index], state).is_some();
        if let Some(look) = next.iter().find(looks).copied() {
            next = vec![look];
        }
        // What was answered before what never was: the latter is needed only where an answer shows it.
        next.sort_by_key(|index| self.events[*index].ended == u64::MAX);
        let mut tried: BTreeSet<Alike<'_>> = BTreeSet::new();
        for index in next.clone() {
            let event = self.events[index];
            let Some(after) = self.apply(event, state) else { continue };
            if event.answered == Answered::Unknown {
                let is_met = |other: &usize| {
                    let other = self.events[*other];
                    self.apply(other, after).is_some() && self.apply(other, state).is_none()
                };
                let is_first = self.alike[index].is_none_or(|alike| tried.insert(alike));
                if !is_first || !next.iter().any(is_met) {
                    continue;
                }
            }
            done[index / 64] |= 1 << (index % 64);
            if self.explains(done, after) {
                return true;
            }
            done[index / 64] &= !(1 << (index % 64));
        }
        false
    }

    /// Whether the object of a write can have this ETag.
    fn has(&self, write: WriteId, etag: &str) -> bool {
        self.etags.get(&write).is_none_or(|of| of == etag)
    }

    /// Whether the bytes of a write can have this sum.
    fn has_bytes(&self, write: WriteId, sum: &str) -> bool {
        self.sums.get(&write).is_none_or(|of| of == sum)
    }

    /// The state after the event, if the event can have happened in this one.
    fn apply(&self, event: &Event, state: Option<WriteId>) -> Option<Option<WriteId>> {
        match (&event.asked, &event.answered) {
            (_, Answered::Missing) => state.is_none().then_some(None),
            (_, Answered::Object(write)) => (state == Some(*write)).then_some(state),
            (_, Answered::Etag(etag)) => state.is_some_and(|write| self.has(write, etag)).then_some(state),
            (_, Answered::Bytes(sum)) => state.is_some_and(|write| self.has_bytes(write, sum)).then_some(state),
            (Asked::Write { only_if, .. }, Answered::Refused) => match (only_if, state) {
                (OnlyIf::Absent, Some(_)) => Some(state),
                // Of unknown ETags it may be any.
                (OnlyIf::Etag(etag), Some(write)) => (self.etags.get(&write) != Some(etag)).then_some(state),
                _ => None,
            },
            (Asked::Write { write, only_if }, _) => {
                let holds = match only_if {
                    OnlyIf::Any => true,
                    OnlyIf::Absent => state.is_none(),
                    OnlyIf::Etag(etag) => state.is_some_and(|write| self.has(write, etag)),
                };
                holds.then_some(Some(*write))
            }
            (Asked::Delete, _) => Some(None),
            (Asked::Read, _) => Some(state),
        }
    }

    /// What the longest order leaves over, and the state that it leads to: the contradiction is near.
    fn story(&self) -> String {
        let (_, done, state) = &self.furthest;
        let left: Vec<usize> = (0..self.events.len()).filter(|index| !is_done(done, *index)).collect();
        let bound = left.iter().map(|index| self.events[*index].ended).min().unwrap_or(u64::MAX);
        let mut lines = vec![format!("the longest order leads to {state:?}; not in it and begun by then:")];
        let near = |index: &&usize| self.events[**index].began <= bound;
        lines.extend(left.iter().filter(near).map(|index| format!("{:?}", self.events[*index])));
        lines.push("before:".to_owned());
        let before = (0..self.events.len()).rev().filter(|index| is_done(done, *index));
        lines.extend(before.take(12).map(|index| format!("{:?}", self.events[index])));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: u64 = u64::MAX;

    fn event(asked: Asked, answered: Answered, began: u64, ended: u64) -> Event {
        Event { key: 0, asked, answered, began, ended }
    }

    fn put(write: WriteId, began: u64, ended: u64) -> Event {
        let answered = if ended == NEVER { Answered::Unknown } else { Answered::Done };
        event(Asked::Write { write, only_if: OnlyIf::Any }, answered, began, ended)
    }

    fn saw(answered: Answered, began: u64, ended: u64) -> Event {
        event(Asked::Read, answered, began, ended)
    }

    fn explained(events: &[Event]) -> bool {
        let etags = [(1, "a".to_owned()), (2, "b".to_owned())].into();
        let sums = [(1, "one".to_owned()), (2, "two".to_owned())].into();
        check(&History { events: events.to_vec(), etags, sums }, 1).is_ok()
    }

    #[test]
    fn the_checker_knows_right_from_wrong() {
        use Answered::{Etag, Missing, Object};
        assert!(explained(&[put(1, 0, 1), saw(Object(1), 2, 3)]));
        assert!(!explained(&[put(1, 0, 1), saw(Missing, 2, 3)]));
        assert!(!explained(&[put(1, 0, 1), put(2, 2, 3), saw(Etag("a".to_owned()), 4, 5)]));
        assert!(explained(&[put(1, 0, 1), put(2, 2, NEVER), saw(Etag("a".to_owned()), 4, 5)]));
        assert!(explained(&[put(1, 0, 1), put(2, 2, NEVER), saw(Object(1), 4, 5), saw(Object(2), 6, 7)]));
        assert!(!explained(&[put(1, 0, 1), put(2, 2, NEVER), saw(Object(2), 4, 5), saw(Object(1), 6, 7)]));
        let copied = |sum: &str| Answered::Bytes(sum.to_owned());
        assert!(!explained(&[put(1, 0, 1), put(2, 2, 3), saw(copied("one"), 4, 5)]), "a copy of what was replaced");
        assert!(explained(&[put(1, 0, 1), put(2, 2, 3), saw(copied("one"), 2, 5), saw(copied("two"), 4, 6)]));
        assert!(explained(&[put(1, 0, 1), put(2, 2, NEVER), saw(copied("two"), 4, 5)]), "it shows that it happened");
        let gone = event(Asked::Delete, Answered::Done, 4, 5);
        assert!(explained(&[put(1, 0, 1), gone.clone(), saw(Missing, 6, 7)]));
        assert!(!explained(&[put(1, 0, 1), gone, saw(Object(1), 6, 7)]));
        let new = |answered| event(Asked::Write { write: 2, only_if: OnlyIf::Absent }, answered, 2, 3);
        assert!(!explained(&[put(1, 0, 1), new(Answered::Done)]));
        assert!(explained(&[put(1, 0, 1), new(Answered::Refused)]));
        assert!(!explained(&[new(Answered::Refused)]));
    }

    #[test]
    fn who_refused_a_write_that_asks_for_an_etag_had_another_one() {
        let only_if = OnlyIf::Etag("a".to_owned());
        let refused = event(Asked::Write { write: 3, only_if }, Answered::Refused, 5, 6);
        assert!(!explained(&[put(1, 0, NEVER), refused.clone()]), "it is what was asked for");
        assert!(explained(&[put(2, 0, NEVER), refused.clone()]));
        assert!(explained(&[put(1, 0, NEVER), put(2, 1, NEVER), refused]), "nobody has seen either of them");
    }

    #[test]
    fn a_condition_that_was_met_shows_a_write_that_was_never_answered() {
        let etags: BTreeMap<WriteId, String> = [(1, "a".into()), (2, "a".into()), (4, "b".into())].into();
        let sums: BTreeMap<WriteId, String> = [(1, "x".into()), (2, "x".into()), (4, "y".into())].into();
        let gone = || event(Asked::Delete, Answered::Done, 2, 3);
        let asks = || event(Asked::Write { write: 3, only_if: OnlyIf::Etag("a".to_owned()) }, Answered::Done, 6, 7);
        let is_explained = |events: &[Event]| {
            check(&History { events: events.to_vec(), etags: etags.clone(), sums: sums.clone() }, 1).is_ok()
        };
        assert!(is_explained(&[put(1, 0, 1), gone(), put(2, 4, NEVER), asks()]), "it has this ETag");
        assert!(!is_explained(&[put(1, 0, 1), gone(), asks()]), "nothing has");
        assert!(!is_explained(&[put(1, 0, 1), gone(), put(4, 4, NEVER), asks()]), "another ETag");
        assert!(!is_explained(&[put(1, 0, 1), gone(), asks(), put(2, 8, NEVER)]), "too late");
    }
}
