//! Which groups a process knows of. Pure; bounded; always allowed to be wrong.
//!
//! An entry is a hint: each op asserts the version it was chosen by. Entries may overlap after a split; the one that
//! starts last before a key wins, and a stale one is found out by its version.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::header::{GroupHeader, GroupId, TableId};

/// A group as it was last seen.
#[derive(Debug, Clone)]
pub(crate) struct KnownGroup {
    pub id: GroupId,
    pub header: Arc<GroupHeader>,
    /// Its estimated weight.
    pub estimate: i64,
    /// Counting it again below this estimate is of no use: it was counted and could not be split.
    pub count_from: i64,
}

#[derive(Debug)]
struct Entry {
    group: KnownGroup,
    used: u64,
}

/// The groups that a process knows of, least recently used ones forgotten first.
#[derive(Debug)]
pub(crate) struct RouteCache {
    tables: BTreeMap<TableId, BTreeMap<Vec<u8>, Entry>>,
    /// Use order: `used` of an entry to its place.
    order: BTreeMap<u64, (TableId, Vec<u8>)>,
    used_last: u64,
    capacity: usize,
}

impl RouteCache {
    pub fn new(capacity: usize) -> RouteCache {
        RouteCache { tables: BTreeMap::new(), order: BTreeMap::new(), used_last: 0, capacity: capacity.max(1) }
    }

    /// The group that `key` is thought to be in.
    pub fn find(&mut self, table: &TableId, key: &[u8]) -> Option<KnownGroup> {
        let groups = self.tables.get_mut(table)?;
        let (_, entry) = groups.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        if !entry.group.header.covers(key) {
            return None;
        }
        if let Some(place) = self.order.remove(&entry.used) {
            self.used_last += 1;
            entry.used = self.used_last;
            self.order.insert(self.used_last, place);
        }
        Some(entry.group.clone())
    }

    /// Remembers a group as it was just seen. An older sight of the same group does not replace a newer one.
    pub fn insert(&mut self, table: &TableId, group: KnownGroup) {
        let start = group.header.start.clone();
        let groups = self.tables.entry(table.clone()).or_default();
        if let Some(old) = groups.get(&start) {
            if old.group.id == group.id && old.group.header.version > group.header.version {
                return;
            }
            self.order.remove(&old.used);
        }
        self.used_last += 1;
        groups.insert(start.clone(), Entry { group, used: self.used_last });
        self.order.insert(self.used_last, (table.clone(), start));
        while self.order.len() > self.capacity
            && let Some((_, (table, start))) = self.order.pop_first()
        {
            self.forget(&table, &start);
        }
    }

    /// Notes a group's new estimate.
    pub fn estimated(&mut self, table: &TableId, group: &KnownGroup, estimate: i64, count_from: i64) {
        if let Some(entry) = self.tables.get_mut(table).and_then(|groups| groups.get_mut(&group.header.start))
            && entry.group.id == group.id
        {
            entry.group.estimate = estimate;
            entry.group.count_from = count_from;
        }
    }

    /// Forgets what was found to be wrong.
    pub fn remove(&mut self, table: &TableId, group: &KnownGroup) {
        let Some(entry) = self.tables.get(table).and_then(|groups| groups.get(&group.header.start)) else { return };
        if entry.group.id == group.id && entry.group.header.version <= group.header.version {
            self.order.remove(&entry.used);
            self.forget(table, &group.header.start);
        }
    }

    /// Forgets a table.
    pub fn remove_table(&mut self, table: &TableId) {
        for entry in self.tables.remove(table).unwrap_or_default().into_values() {
            self.order.remove(&entry.used);
        }
    }

    fn forget(&mut self, table: &TableId, start: &[u8]) {
        if let Some(groups) = self.tables.get_mut(table) {
            groups.remove(start);
            if groups.is_empty() {
                self.tables.remove(table);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: u8, header: GroupHeader) -> KnownGroup {
        KnownGroup { id: GroupId([id; 16]), header: Arc::new(header), estimate: 0, count_from: 0 }
    }

    fn split() -> (GroupHeader, GroupHeader) {
        let splitting = GroupHeader::first().split(b"m", GroupId([2; 16])).expect("inside");
        let right = splitting.child(GroupId([1; 16])).and_then(|child| child.opened()).expect("splitting");
        (splitting.cut().expect("splitting"), right)
    }

    #[test]
    fn a_key_is_found_in_the_group_that_covers_it_and_in_no_other() {
        let table = TableId::new("t").expect("valid");
        let mut cache = RouteCache::new(8);
        let (left, right) = split();
        cache.insert(&table, group(1, left));
        assert!(cache.find(&table, b"z").is_none());
        cache.insert(&table, group(2, right));
        assert_eq!(cache.find(&table, b"a").map(|g| g.id), Some(GroupId([1; 16])));
        assert_eq!(cache.find(&table, b"m").map(|g| g.id), Some(GroupId([2; 16])));
        assert!(cache.find(&TableId::new("u").expect("valid"), b"a").is_none());
        cache.remove_table(&table);
        assert!(cache.find(&table, b"a").is_none());
        assert!(cache.order.is_empty());
    }

    #[test]
    fn an_old_sight_never_replaces_nor_removes_a_newer_one() {
        let table = TableId::new("t").expect("valid");
        let mut cache = RouteCache::new(8);
        let (left, _) = split();
        let old = group(1, GroupHeader::first());
        cache.insert(&table, group(1, left));
        cache.insert(&table, old.clone());
        cache.remove(&table, &old);
        assert_eq!(cache.find(&table, b"a").map(|g| g.header.version), Some(3));
    }

    #[test]
    fn the_least_recently_used_group_is_forgotten_first() {
        let mut cache = RouteCache::new(2);
        let tables: Vec<_> = ["a", "b", "c"].iter().map(|id| TableId::new(*id).expect("valid")).collect();
        cache.insert(&tables[0], group(1, GroupHeader::first()));
        cache.insert(&tables[1], group(2, GroupHeader::first()));
        assert!(cache.find(&tables[0], b"k").is_some());
        cache.insert(&tables[2], group(3, GroupHeader::first()));
        assert!(cache.find(&tables[1], b"k").is_none());
        assert!(cache.find(&tables[0], b"k").is_some() && cache.find(&tables[2], b"k").is_some());
        assert_eq!(cache.order.len(), 2);
    }
}
