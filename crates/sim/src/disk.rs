//! A disk that forgets what was not synced: transactions are kept in order, a crash loses a suffix of those that are not
//! durable.

use std::collections::{BTreeMap, VecDeque};

use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{StoreOp, TxnId};
use holdfast_types::PgId;

/// A transaction that is visible but not durable.
#[derive(Debug)]
struct Unsynced {
    pg: PgId,
    txn: TxnId,
    ops: Vec<StoreOp>,
}

/// One OSD's disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// As a crash would leave it.
    durable: BTreeMap<PgId, MemoryCollection>,
    /// As the running process sees it.
    visible: BTreeMap<PgId, MemoryCollection>,
    unsynced: VecDeque<Unsynced>,
}

fn apply(state: &mut BTreeMap<PgId, MemoryCollection>, pg: PgId, ops: &[StoreOp]) {
    let collection = state.entry(pg).or_default();
    collection.apply(ops);
    if !collection.exists {
        state.remove(&pg);
    }
}

impl Disk {
    /// Takes a transaction, as a store would: `false` when it changes what cannot be read.
    #[must_use]
    pub fn submit(&mut self, pg: PgId, txn: TxnId, ops: Vec<StoreOp>) -> bool {
        let takes = self.visible.get(&pg).is_none_or(|collection| collection.takes(&ops));
        apply(&mut self.visible, pg, &ops);
        self.unsynced.push_back(Unsynced { pg, txn, ops });
        takes
    }

    /// Makes up to `count` transactions durable; gives, for each placement group, the newest of them.
    pub fn sync(&mut self, count: usize) -> BTreeMap<PgId, TxnId> {
        let mut newest = BTreeMap::new();
        for _ in 0..count {
            let Some(unsynced) = self.unsynced.pop_front() else { break };
            apply(&mut self.durable, unsynced.pg, &unsynced.ops);
            newest.insert(unsynced.pg, unsynced.txn);
        }
        newest
    }

    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Power is lost after `survivors` of the transactions that were not durable.
    pub fn crash(&mut self, survivors: usize) {
        self.sync(survivors);
        self.unsynced.clear();
        self.visible = self.durable.clone();
    }

    pub fn collection(&self, pg: PgId) -> Option<&MemoryCollection> {
        self.visible.get(&pg)
    }

    /// Says whether the collection finds no room for bytes of objects, or none at all.
    pub fn set_room(&mut self, pg: PgId, tight: bool, full: bool) {
        if let Some(collection) = self.visible.get_mut(&pg) {
            (collection.tight, collection.full) = (tight, full);
        }
    }

    pub fn collections(&self) -> impl Iterator<Item = (&PgId, &MemoryCollection)> {
        self.visible.iter()
    }

    /// Spoils the bytes of one object, or the `whole` of it; a rewrite heals it. Gives whether there was something to spoil.
    pub fn rot(&mut self, pick: usize, whole: bool) -> bool {
        let places: Vec<_> = self
            .visible
            .iter()
            .flat_map(|(pg, collection)| collection.objects.keys().map(|key| (*pg, key.clone())))
            .collect();
        let Some((pg, key)) = places.get(pick % places.len().max(1)) else { return false };
        for state in [&mut self.visible, &mut self.durable] {
            if let Some(object) = state.get_mut(pg).and_then(|collection| collection.objects.get_mut(key)) {
                object.rotten = !object.data.is_empty();
                object.unreadable = whole;
            }
        }
        true
    }
}
