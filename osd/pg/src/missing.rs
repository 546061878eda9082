//! The objects that a copy lacks although its log tells of them.

use std::collections::BTreeMap;
use std::ops::Bound;

use holdfast_types::LogVersion;
use holdfast_wire::peer::MissingItem;

use crate::key::ObjectKey;

/// Which version an object must have, and which one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lack {
    /// What the log says.
    pub need: LogVersion,
    /// What the store holds; zero for nothing, or nothing that can be trusted.
    pub have: LogVersion,
}

/// The missing set of one copy, ordered by key and by version needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    by_key: BTreeMap<ObjectKey, Lack>,
    by_need: BTreeMap<LogVersion, ObjectKey>,
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
        if let Some(old) = self.by_key.insert(key.clone(), lack) {
            self.by_need.remove(&old.need);
        }
        self.by_need.insert(lack.need, key);
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Lack> {
        let lack = self.by_key.remove(key)?;
        self.by_need.remove(&lack.need);
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

    /// In the order in which the log tells of them: oldest need first.
    pub fn oldest_first(&self) -> impl Iterator<Item = (&ObjectKey, LogVersion)> {
        self.by_need.iter().map(|(need, key)| (key, *need))
    }

    /// Those needed in a later version than this one, oldest need first.
    pub fn needed_after(&self, after: LogVersion) -> impl Iterator<Item = (&ObjectKey, LogVersion)> {
        let later = (Bound::Excluded(after), Bound::Unbounded);
        self.by_need.range(later).map(|(need, key)| (key, *need))
    }

    /// The version up to which nothing is missing, given the head of the log.
    pub fn last_complete(&self, head: LogVersion) -> LogVersion {
        match self.by_need.keys().next() {
            None => head,
            Some(need) => LogVersion { epoch: need.epoch, counter: need.counter.saturating_sub(1) },
        }
    }
}
