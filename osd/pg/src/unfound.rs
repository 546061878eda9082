//! Objects that nobody who is up can give, and asking for them again.
//!
//! In rounds, one object at a time, beside all else: however many nobody has, what somebody has does not wait for them. A
//! round begins a while after an object could not be found, and as soon as somebody is heard who did not answer before. One
//! that is under way is not cut short by that: the next one follows it.
//!
//! Invariant: U5 each object that could not be found is asked for in every round, whoever does not answer meanwhile, and
//! whoever is heard again and again.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use holdfast_types::Timestamp;

use crate::key::ObjectKey;

/// Objects that nobody could give are asked for again after this long.
pub(crate) const UNFOUND_RETRY: Duration = Duration::from_secs(30);

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Unfound {
    objects: BTreeSet<ObjectKey>,
    /// When a round is to begin.
    round_at: Option<Timestamp>,
    /// What is still to be asked for in this round: what clients wait for, and the rest.
    waited_for: BTreeSet<ObjectKey>,
    others: BTreeSet<ObjectKey>,
    /// A round is to follow this one.
    round_follows: bool,
    /// What was asked for last: with somebody who answers nothing but the question who is there, others have their turn.
    last: Option<ObjectKey>,
    /// What is being asked for elsewhere, while one is heard who did not answer when asked for it.
    once_more: BTreeSet<ObjectKey>,
}

impl Unfound {
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.objects.contains(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.iter()
    }

    /// Nobody has an object, as far as is known.
    pub fn insert(&mut self, key: &ObjectKey) {
        self.objects.insert(key.clone());
        if self.once_more.remove(key) {
            // Its turn is after what is still to be asked for.
            self.round_follows = true;
        }
    }

    /// An object is deleted, or more is known of it.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
        self.once_more.remove(key);
    }

    /// What is not missing any more is not to be found. (What is asked for may not be known to be missing yet.)
    pub fn retain(&mut self, is_missing: impl Fn(&ObjectKey) -> bool, is_asked_for: impl Fn(&ObjectKey) -> bool) {
        self.objects.retain(|key| is_missing(key));
        self.once_more.retain(|key| is_asked_for(key));
    }

    /// Takes all out: they are looked for as any other that is missing.
    pub fn take(&mut self) -> BTreeSet<ObjectKey> {
        self.waited_for.clear();
        self.others.clear();
        self.round_follows = false;
        std::mem::take(&mut self.objects)
    }

    /// Begins a round, or has one follow the one that is under way.
    pub fn begin_round(&mut self, is_waited_for: impl Fn(&ObjectKey) -> bool) {
        self.round_follows = !self.waited_for.is_empty() || !self.others.is_empty();
        if !self.round_follows {
            (self.waited_for, self.others) = self.objects.iter().cloned().partition(is_waited_for);
        }
    }

    /// Notes what is being asked for elsewhere, of what somebody did not answer who is heard again.
    pub fn ask_once_more(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.once_more.extend(keys);
    }

    /// Whether somebody will be asked for it who did not answer.
    pub fn will_be_asked_once_more(&self, key: &ObjectKey) -> bool {
        self.once_more.contains(key)
    }

    /// Whether an object that could not be found will be asked for in this round, or in one that follows it.
    pub fn will_be_retried(&self, key: &ObjectKey) -> bool {
        self.waited_for.contains(key) || self.others.contains(key) || self.round_follows && self.objects.contains(key)
    }

    /// A client waits for an object: it goes in front in this round.
    pub fn wait_for(&mut self, key: &ObjectKey) {
        if self.others.remove(key) {
            self.waited_for.insert(key.clone());
        }
    }

    /// Takes the next one of the round out, to be asked for.
    pub fn next(&mut self, is_waited_for: impl Fn(&ObjectKey) -> bool) -> Option<ObjectKey> {
        loop {
            let all = if self.waited_for.is_empty() { &mut self.others } else { &mut self.waited_for };
            let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let next = all.range::<ObjectKey, _>((after, Bound::Unbounded)).next().or_else(|| all.first());
            let Some(key) = next.cloned() else {
                if !self.round_follows {
                    return None;
                }
                self.begin_round(&is_waited_for);
                continue;
            };
            all.remove(&key);
            if self.objects.remove(&key) {
                self.last = Some(key.clone());
                return Some(key);
            }
        }
    }

    /// Whether a round is to begin now; there is one every [`UNFOUND_RETRY`] while something cannot be found.
    pub fn round_is_due(&mut self, now: Timestamp) -> bool {
        if self.objects.is_empty() {
            self.round_at = None;
            return false;
        }
        let at = *self.round_at.get_or_insert(now + UNFOUND_RETRY);
        if at > now {
            return false;
        }
        self.round_at = Some(now + UNFOUND_RETRY);
        true
    }

    /// Until the next round begins.
    pub fn round_in(&self, now: Timestamp) -> Option<Duration> {
        self.round_at.map(|at| at.since(now))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::ObjectName;

    use super::*;

    /// Some key; a greater number gives a greater one.
    fn key(number: usize) -> ObjectKey {
        let mut keys: Vec<ObjectKey> =
            (0..10).map(|name| ObjectKey::of(&ObjectName::new(format!("object-{name}")).expect("a name"))).collect();
        keys.sort();
        keys.swap_remove(number)
    }

    fn unfound(count: usize) -> Unfound {
        let mut unfound = Unfound::default();
        (0..count).for_each(|number| unfound.insert(&key(number)));
        unfound
    }

    /// Asks for the next one, which nobody has.
    fn next(unfound: &mut Unfound) -> Option<ObjectKey> {
        let next = unfound.next(|_| false);
        next.iter().for_each(|key| unfound.insert(key));
        next
    }

    #[test]
    fn each_object_has_its_turn_however_often_a_round_is_begun() {
        let mut unfound = unfound(5);
        unfound.begin_round(|waited_for| *waited_for == key(3));
        let mut asked = Vec::new();
        while asked.len() < 12 {
            unfound.begin_round(|_| false);
            assert!((0..5).all(|number| unfound.will_be_retried(&key(number))));
            asked.extend(next(&mut unfound));
        }
        assert_eq!(asked[0], key(3), "somebody waits for it");
        assert_eq!(asked[1..5].iter().cloned().collect::<BTreeSet<_>>().len(), 4);
        assert!(unfound.iter().all(|key| asked[5..10].contains(key)), "all of the next round");
    }

    #[test]
    fn a_round_ends_and_begins_behind_what_was_asked_for_last() {
        let mut unfound = unfound(3);
        unfound.begin_round(|_| false);
        assert_eq!((next(&mut unfound), next(&mut unfound)), (Some(key(0)), Some(key(1))));
        unfound.remove(&key(2));
        assert_eq!(next(&mut unfound), None);
        unfound.insert(&key(2));
        assert!(!unfound.will_be_retried(&key(2)));
        unfound.begin_round(|_| false);
        assert_eq!((next(&mut unfound), next(&mut unfound)), (Some(key(2)), Some(key(0))));
        unfound.take();
        assert_eq!((next(&mut unfound), unfound.iter().count()), (None, 0));
    }

    #[test]
    fn what_was_asked_for_elsewhere_when_somebody_was_heard_again_has_another_turn() {
        let mut unfound = unfound(2);
        unfound.ask_once_more([key(7), key(8), key(9)]);
        unfound.remove(&key(8));
        unfound.retain(|_| true, |key| *key != self::key(9));
        [8, 9].into_iter().for_each(|number| unfound.insert(&key(number)));
        assert!(!unfound.will_be_retried(&key(8)) && !unfound.will_be_retried(&key(9)));
        unfound.insert(&key(7));
        assert!(unfound.will_be_retried(&key(7)));
        let asked: BTreeSet<ObjectKey> = std::iter::from_fn(|| next(&mut unfound)).collect();
        assert!(asked.contains(&key(7)));
    }

    #[test]
    fn what_is_asked_for_once_more_again_and_again_keeps_no_other_from_its_turn() {
        let mut unfound = unfound(4);
        unfound.begin_round(|_| false);
        let mut asked = BTreeSet::new();
        for _ in 0..8 {
            let Some(key) = unfound.next(|_| false) else { break };
            // All who may have it are heard while others are asked.
            unfound.ask_once_more([key.clone()]);
            unfound.insert(&key);
            asked.insert(key);
        }
        assert_eq!(asked.len(), 4);
    }

    #[test]
    fn rounds_are_due_as_long_as_something_cannot_be_found() {
        let mut unfound = unfound(1);
        let mut now = Timestamp::ZERO;
        let mut due = 0;
        for _ in 0..600 {
            now = now + Duration::from_secs(1);
            due += u32::from(unfound.round_is_due(now));
        }
        assert_eq!(due, 19);
        unfound.remove(&key(0));
        assert!(!unfound.round_is_due(now + UNFOUND_RETRY) && unfound.round_in(now).is_none());
    }
}
