//! The objects that a copy lacks although its log tells of them, or has told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use holdfast_types::{Epoch, LogVersion};
use holdfast_wire::peer::MissingItem;

use crate::key::ObjectKey;

/// Stands for the version of an object of which nobody who was asked could tell the version (`unnamed`). Before every
/// version that an entry can have (the first is of epoch 1), and not zero: zero stands for no object at all.
pub(crate) const UNNAMED: LogVersion = LogVersion { epoch: Epoch(0), counter: 1 };

/// Which version an object must have, and which one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lack {
    /// What the log says; [`UNNAMED`] when nobody can tell.
    pub need: LogVersion,
    /// What the store holds; zero for nothing, or nothing that can be trusted. [`UNNAMED`]: what is here has followed the
    /// log, so it is what is needed if ever it can be read again.
    pub have: LogVersion,
}

impl Lack {
    /// Whether the version that is needed is not known.
    pub fn is_unnamed(&self) -> bool {
        self.need == UNNAMED
    }

    /// Whether what is here is what is needed, if it can be read.
    pub fn is_unread(&self) -> bool {
        self.is_unnamed() && self.have == UNNAMED
    }
}

/// A place in the order of what is needed: several objects may be needed in a version that is not known.
pub(crate) type Need = (LogVersion, ObjectKey);

/// The missing set of one copy, ordered by key and by version needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    by_key: BTreeMap<ObjectKey, Lack>,
    by_need: BTreeSet<Need>,
}

impl Missing {
    pub fn from_items(items: &[MissingItem]) -> Missing {
        let mut missing = Missing::default();
        for item in items {
            missing.insert(ObjectKey::of(&item.object), Lack { need: item.need, have: item.have });
        }
        missing
    }

    pub fn to_items(&self) -> Vec<MissingItem> {
        let item =
            |(key, lack): (&ObjectKey, &Lack)| MissingItem { object: key.name(), need: lack.need, have: lack.have };
        self.by_key.iter().map(item).collect()
    }

    pub fn insert(&mut self, key: ObjectKey, lack: Lack) {
        self.remove(&key);
        self.by_need.insert((lack.need, key.clone()));
        self.by_key.insert(key, lack);
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Lack> {
        let (key, lack) = self.by_key.remove_entry(key)?;
        self.by_need.remove(&(lack.need, key));
        Some(lack)
    }

    /// Takes out those from a key on.
    pub fn split_off(&mut self, at: &[u8]) -> Missing {
        let keys: Vec<ObjectKey> = self.by_key.keys().filter(|key| key.as_bytes() >= at).cloned().collect();
        let mut taken = Missing::default();
        for key in keys {
            if let Some(lack) = self.remove(&key) {
                taken.insert(key, lack);
            }
        }
        taken
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Lack> {
        self.by_key.get(key).copied()
    }

    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.by_key.contains_key(key)
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Lack)> {
        self.by_key.iter()
    }

    /// Whether the object is missing in a version that is not known.
    pub fn is_unnamed(&self, key: &ObjectKey) -> bool {
        self.by_key.get(key).is_some_and(Lack::is_unnamed)
    }

    /// In the order in which the log tells of them: oldest need first.
    pub fn oldest_first(&self) -> impl Iterator<Item = &ObjectKey> {
        self.by_need.iter().map(|(_, key)| key)
    }

    /// Those that come after a place in that order; all without one.
    pub fn needed_after(&self, after: Option<&Need>) -> impl Iterator<Item = &Need> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_need.range::<Need, _>((after, Bound::Unbounded))
    }

    /// The version up to which nothing is missing, given the head of the log.
    pub fn last_complete(&self, head: LogVersion) -> LogVersion {
        match self.by_need.first() {
            None => head,
            Some((need, _)) => LogVersion { epoch: need.epoch, counter: need.counter.saturating_sub(1) },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_types::ObjectName;

    use super::*;

    fn key(object: &str) -> ObjectKey {
        ObjectKey::of(&ObjectName::new(object).unwrap())
    }

    #[test]
    fn objects_of_unknown_versions_do_not_hide_each_other() {
        let mut missing = Missing::default();
        let named = LogVersion { epoch: Epoch(1), counter: 1 };
        missing.insert(key("c"), Lack { need: named, have: LogVersion::ZERO });
        for object in ["a", "b"] {
            missing.insert(key(object), Lack { need: UNNAMED, have: LogVersion::ZERO });
        }
        assert_eq!(missing.oldest_first().count(), 3);
        assert_eq!(missing.oldest_first().last(), Some(&key("c")), "what is not known comes before every version");
        assert_eq!(missing.last_complete(named), LogVersion::ZERO);
        let first = missing.needed_after(None).next().cloned().unwrap();
        assert_eq!(missing.needed_after(Some(&first)).count(), 2);
        missing.insert(key("a"), Lack { need: named, have: LogVersion::ZERO });
        missing.remove(&key("b"));
        assert_eq!(missing.oldest_first().count(), 2);
        assert!(missing.iter().all(|(_, lack)| !lack.is_unnamed()));
    }
}
