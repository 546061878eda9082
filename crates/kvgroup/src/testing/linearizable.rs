//! Whether there is an order of what happened to a route that explains every answer: a search in the manner of Wing
//! and Gong, with the states that were tried remembered (Lowe).

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::actors::{ROUTES, route};
use super::history::{Answered, Asked, Event};
use crate::{Affinity, Mutation, Require};

/// The rows of a route; `None` once the table is dropped.
type State = Option<BTreeMap<(u8, Vec<u8>), Bytes>>;

/// Checks each route of a history on its own.
///
/// # Errors
/// The route that no order explains, and all that happened to it.
pub fn check(history: &[Event]) -> Result<(), String> {
    for number in 0..ROUTES {
        let route = route(number);
        let events: Vec<&Event> = history.iter().filter(|event| concerns(event, &route)).collect();
        let mut search = Search::new(&route, &events);
        if !search.run() {
            let story = search.story();
            return Err(format!("no order explains what happened to {}:\n{story}", route.escape_ascii()));
        }
    }
    Ok(())
}

fn concerns(event: &Event, route: &[u8]) -> bool {
    if event.answered == Answered::Nothing {
        return false;
    }
    let is_of = |key: &[u8]| Affinity::S3.route(key) == route;
    match &event.asked {
        Asked::Batch { conditions, mutations } => {
            conditions.iter().any(|c| is_of(&c.row.key))
                || mutations.iter().any(|m| match m {
                    Mutation::Put { row, .. }
                    | Mutation::Delete { row }
                    | Mutation::Add { row, .. }
                    | Mutation::Max { row, .. } => is_of(&row.key),
                    Mutation::DeleteRange { start, .. } => is_of(start),
                })
        }
        Asked::Get { rows } => event.ended != u64::MAX && rows.iter().any(|row| is_of(&row.key)),
        Asked::Page { start, end, .. } => {
            let mut last = route.to_vec();
            last.push(0xff);
            event.ended != u64::MAX && **start <= *last && end.as_ref().is_none_or(|end| **end > *route)
        }
        Asked::Drop => true,
    }
}

struct Search<'h> {
    route: &'h [u8],
    events: Vec<&'h Event>,
    tried: HashSet<(Vec<u64>, State)>,
    /// The longest order that was found: how many events, which, and the state after them.
    furthest: (u32, Vec<u64>, State),
}

impl<'h> Search<'h> {
    fn new(route: &'h [u8], events: &[&'h Event]) -> Search<'h> {
        let mut events = events.to_vec();
        events.sort_by_key(|event| event.began);
        Search { route, events, tried: HashSet::new(), furthest: (0, Vec::new(), None) }
    }

    fn run(&mut self) -> bool {
        let mut done = vec![0u64; self.events.len().div_ceil(64)];
        self.explains(&mut done, &Some(BTreeMap::new()))
    }

    fn explains(&mut self, done: &mut Vec<u64>, state: &State) -> bool {
        let is_done = |done: &[u64], index: usize| done[index / 64] >> (index % 64) & 1 == 1;
        // What is answered before anything else began must come first.
        let Some(bound) =
            (0..self.events.len()).filter(|index| !is_done(done, *index)).map(|index| self.events[index].ended).min()
        else {
            return true;
        };
        if bound == u64::MAX {
            return true; // the rest was never answered: it need not have happened
        }
        if !self.tried.insert((done.clone(), state.clone())) {
            return false;
        }
        let count: u32 = done.iter().map(|word| word.count_ones()).sum();
        if count > self.furthest.0 {
            self.furthest = (count, done.clone(), state.clone());
        }
        // What was answered before what never was: the latter is needed only where an answer shows it.
        for answered in [true, false] {
            for index in 0..self.events.len() {
                let event = self.events[index];
                if event.began > bound {
                    break;
                }
                if is_done(done, index) || (event.ended != u64::MAX) != answered {
                    continue;
                }
                if let Some(next) = self.apply(event, state) {
                    done[index / 64] |= 1 << (index % 64);
                    if self.explains(done, &next) {
                        return true;
                    }
                    done[index / 64] &= !(1 << (index % 64));
                }
            }
        }
        false
    }

    /// What the longest order leaves over, newest first, and the state that it leads to: the contradiction is near.
    fn story(&self) -> String {
        let (_, done, state) = &self.furthest;
        let is_done = |index: usize| done.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1);
        let left: Vec<usize> = (0..self.events.len()).filter(|index| !is_done(*index)).collect();
        let bound = left.iter().map(|index| self.events[*index].ended).min().unwrap_or(u64::MAX);
        let mut lines = vec![format!("the longest order leads to {state:?}; not in it and begun by then:")];
        let near = |index: &&usize| self.events[**index].began <= bound;
        lines.extend(left.iter().filter(near).map(|index| format!("{:?}", self.events[*index])));
        lines.push("before:".to_owned());
        let before = (0..self.events.len()).rev().filter(|index| is_done(*index));
        let writes = before.filter(|index| matches!(self.events[*index].asked, Asked::Batch { .. } | Asked::Drop));
        lines.extend(writes.take(12).map(|index| format!("{:?}", self.events[index])));
        lines.join("\n")
    }

    /// The state after the event, if the event can have happened in this one.
    fn apply(&self, event: &Event, state: &State) -> Option<State> {
        let unknown = event.answered == Answered::Unknown;
        let Some(rows) = state else {
            let gone = unknown || matches!(event.answered, Answered::Gone | Answered::Dropped);
            return gone.then_some(None);
        };
        match &event.asked {
            Asked::Drop => (rows.is_empty() && (unknown || event.answered == Answered::Dropped)).then_some(None),
            Asked::Get { rows: asked } => {
                let values = asked.iter().map(|row| rows.get(&(row.space, row.key.clone())).cloned()).collect();
                (event.answered == Answered::Values(values)).then(|| state.clone())
            }
            Asked::Page { space, start, end } => {
                let Answered::Rows(seen) = &event.answered else { return None };
                let inside = |key: &Vec<u8>| key >= start && end.as_ref().is_none_or(|end| key < end);
                let there = rows.iter().filter(|((of, key), _)| of == space && inside(key));
                let seen = seen.iter().filter(|(key, _)| Affinity::S3.route(key) == self.route);
                let same = there.map(|((_, key), value)| (key, value)).eq(seen.map(|(key, value)| (key, value)));
                same.then(|| state.clone())
            }
            Asked::Batch { conditions, mutations } => {
                let failed = conditions.iter().enumerate().find_map(|(index, condition)| {
                    let current = rows.get(&(condition.row.space, condition.row.key.clone()));
                    let holds = match &condition.require {
                        Require::Absent => current.is_none(),
                        Require::Present => current.is_some(),
                        Require::Equals(value) => current == Some(value),
                    };
                    (!holds).then(|| Answered::Condition { index, current: current.cloned() })
                });
                if let Some(failed) = failed {
                    return (unknown || event.answered == failed).then(|| state.clone());
                }
                let (after, counters) = mutated(rows, mutations);
                (unknown || event.answered == Answered::Applied { counters }).then_some(Some(after))
            }
        }
    }
}

type Rows = BTreeMap<(u8, Vec<u8>), Bytes>;

fn mutated(rows: &Rows, mutations: &[Mutation]) -> (Rows, Vec<i64>) {
    let (mut rows, mut counters) = (rows.clone(), Vec::new());
    for mutation in mutations {
        let mut count = |rows: &mut Rows, key: (u8, Vec<u8>), change: &dyn Fn(i64) -> i64| {
            let old =
                rows.get(&key).map_or(0, |bytes| i64::from_le_bytes(bytes.as_ref().try_into().unwrap_or_default()));
            counters.push(change(old));
            rows.insert(key, Bytes::copy_from_slice(&change(old).to_le_bytes()));
        };
        match mutation {
            Mutation::Put { row, value } => {
                rows.insert((row.space, row.key.clone()), value.clone());
            }
            Mutation::Delete { row } => {
                rows.remove(&(row.space, row.key.clone()));
            }
            Mutation::DeleteRange { space, start, end } => {
                rows.retain(|(of, key), _| of != space || key < start || key >= end);
            }
            Mutation::Add { row, delta } => count(&mut rows, (row.space, row.key.clone()), &|old| old + delta),
            Mutation::Max { row, value } => count(&mut rows, (row.space, row.key.clone()), &|old| old.max(*value)),
        }
    }
    (rows, counters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowKey;

    fn put(value: &'static str, began: u64, ended: u64) -> Event {
        let row = RowKey::new(1, route(0));
        let mutations = vec![Mutation::Put { row, value: Bytes::from_static(value.as_bytes()) }];
        let answered = if ended == u64::MAX { Answered::Unknown } else { Answered::Applied { counters: vec![] } };
        Event { asked: Asked::Batch { conditions: vec![], mutations }, answered, began, ended }
    }

    fn saw(value: Option<&'static str>, began: u64, ended: u64) -> Event {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        let asked = Asked::Get { rows: vec![RowKey::new(1, route(0))] };
        Event { asked, answered: Answered::Values(vec![value]), began, ended }
    }

    fn explained(events: &[Event]) -> bool {
        Search::new(&route(0), &events.iter().collect::<Vec<_>>()).run()
    }

    #[test]
    fn the_checker_knows_right_from_wrong() {
        assert!(explained(&[put("a", 0, 1), saw(Some("a"), 2, 3)]));
        assert!(!explained(&[put("a", 0, 1), saw(None, 2, 3)]));
        assert!(explained(&[put("a", 0, 4), saw(None, 2, 3), saw(Some("a"), 2, 3)]));
        assert!(!explained(&[put("a", 0, 9), saw(Some("a"), 2, 3), saw(None, 4, 5)]));
        assert!(explained(&[put("a", 0, u64::MAX), saw(None, 2, 3), saw(Some("a"), 50, 51)]));
        assert!(!explained(&[put("a", 0, u64::MAX), put("b", 2, 3), saw(Some("a"), 4, 5), saw(Some("b"), 6, 7)]));
    }
}
