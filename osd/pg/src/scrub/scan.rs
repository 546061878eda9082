//! One member's look at its objects in a range, some bytes at a time.
//!
//! What is read has passed the store's checksums, or counts as unreadable. A scan sees the store as it is at each piece; the
//! primary uses the outcome only if no object of the range was written meanwhile.

use std::collections::VecDeque;

use crc_fast::{CrcAlgorithm, Digest};
use holdfast_types::LogVersion;
use holdfast_wire::peer::BackfillCursor;
use holdfast_wire::scrub::{CopySummary, ScrubCopy, ScrubItem, ScrubMap, ScrubRange};

use crate::api::{LocalObjects, ReadError};
use crate::exec;
use crate::key::ObjectKey;

/// Objects that a member tells of in one answer: with the longest names it stays far below a message's limit.
pub(crate) const ITEMS_MAX: usize = 1_024;
/// What looking at an object costs beside its bytes, in bytes: an index lookup or two.
const OBJECT_COST_BYTES: usize = 4 << 10;
/// Rows read at a time.
const PAGE_ROWS: usize = 4_096;

fn digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}

/// An object that is being looked at.
#[derive(Debug)]
struct Current {
    key: ObjectKey,
    version: LogVersion,
    size: u64,
    read: u64,
    /// The last row that was read, once the bytes are.
    row: Option<Vec<u8>>,
    data: Digest,
    meta: Digest,
}

/// See the module document.
#[derive(Debug)]
pub(crate) struct Scan {
    range: ScrubRange,
    /// `None` until the objects are listed.
    keys: Option<VecDeque<ObjectKey>>,
    upto: BackfillCursor,
    current: Option<Current>,
    items: Vec<ScrubItem>,
}

/// What one step of an object gave.
enum Looked {
    /// There is more of it.
    More(usize),
    /// This is what it is; `None`: it is gone.
    Done(Option<ScrubCopy>, usize),
}

impl Scan {
    pub fn new(range: ScrubRange) -> Scan {
        let upto = range.upto.clone();
        Scan { range, keys: None, upto, current: None, items: Vec::new() }
    }

    pub fn is_urgent(&self) -> bool {
        self.range.urgent
    }

    pub fn hurry(&mut self, urgent: bool) {
        self.range.urgent |= urgent;
    }

    /// Looks at about `budget` bytes more; gives the outcome when that is all.
    pub fn piece(&mut self, store: &dyn LocalObjects, budget: usize) -> Option<ScrubMap> {
        let mut left = budget.max(1);
        let mut keys = match self.keys.take() {
            Some(keys) => keys,
            None => match self.list(store) {
                Ok(keys) => keys,
                Err(error) => {
                    tracing::error!(%error, "a scrub cannot list the objects here");
                    return Some(ScrubMap { upto: self.range.upto.clone(), items: Vec::new(), failed: Some(true) });
                }
            },
        };
        while left > 0 {
            let mut current = match self.current.take() {
                Some(current) => current,
                None => match keys.pop_front() {
                    Some(key) => Current::new(key),
                    None => {
                        let (upto, items) = (self.upto.clone(), std::mem::take(&mut self.items));
                        return Some(ScrubMap { upto, items, failed: None });
                    }
                },
            };
            match current.look(store, self.range.deep, left) {
                Looked::More(cost) => {
                    left = left.saturating_sub(cost);
                    self.current = Some(current);
                }
                Looked::Done(copy, cost) => {
                    left = left.saturating_sub(cost.saturating_add(OBJECT_COST_BYTES));
                    let item = |copy| ScrubItem { key: current.key.as_bytes().to_vec(), copy };
                    self.items.extend(copy.map(item));
                }
            }
        }
        self.keys = Some(keys);
        None
    }

    fn list(&mut self, store: &dyn LocalObjects) -> Result<VecDeque<ObjectKey>, ReadError> {
        let after = (!self.range.after.is_empty()).then_some(self.range.after.as_slice());
        let mut keys = store.list_objects(after, ITEMS_MAX)?;
        if let Some(last) = keys.last().filter(|_| keys.len() >= ITEMS_MAX) {
            self.upto = self.range.upto.clone().min(BackfillCursor::At(last.as_bytes().to_vec()));
        }
        keys.retain(|key| self.upto.covers(key.as_bytes()));
        Ok(keys.into())
    }
}

impl Current {
    fn new(key: ObjectKey) -> Current {
        let version = LogVersion::ZERO;
        Current { key, version, size: 0, read: 0, row: None, data: digest(), meta: digest() }
    }

    fn look(&mut self, store: &dyn LocalObjects, deep: bool, budget: usize) -> Looked {
        match self.try_look(store, deep, budget) {
            Ok(looked) => looked,
            Err(error) => {
                tracing::debug!(object = ?self.key, %error, "a scrub found an unreadable copy");
                let version = Some(self.version).filter(|version| *version != LogVersion::ZERO);
                Looked::Done(Some(ScrubCopy::Unreadable { version }), 0)
            }
        }
    }

    fn try_look(&mut self, store: &dyn LocalObjects, deep: bool, budget: usize) -> Result<Looked, ReadError> {
        if self.version == LogVersion::ZERO {
            let Some(size) = store.stat(&self.key)? else { return Ok(Looked::Done(None, 0)) };
            self.version = exec::stored_version(store, &self.key)?;
            if self.version == LogVersion::ZERO {
                return Ok(Looked::Done(Some(ScrubCopy::HalfWritten), 0));
            }
            self.size = size;
            for attr in store.attrs(&self.key)? {
                put(&mut self.meta, &attr.key, attr.value.as_ref());
            }
        }
        if deep && self.read < self.size {
            let data = store.read(&self.key, self.read, (self.size - self.read).min(budget as u64))?;
            self.data.update(&data);
            // A copy that ends early was changed meanwhile, and will not be used; or its size is a lie.
            self.read = if data.is_empty() { self.size } else { self.read + data.len() as u64 };
            return Ok(Looked::More(data.len()));
        }
        let start = match &self.row {
            Some(row) => [row.as_slice(), &[0]].concat(),
            None => Vec::new(),
        };
        let page = store.rows_scan(&self.key, &start, None, PAGE_ROWS, budget)?;
        let mut bytes = 0;
        for row in &page.rows {
            bytes += row.key.len() + row.value.len();
            put(&mut self.meta, &row.key, row.value.as_ref());
        }
        if let Some(last) = page.rows.last().filter(|_| page.more) {
            self.row = Some(last.key.clone());
            return Ok(Looked::More(bytes));
        }
        let (version, size) = (self.version, self.size);
        let data = deep.then(|| self.data.finalize());
        let summary = CopySummary { version, size, meta: self.meta.finalize(), data };
        Ok(Looked::Done(Some(ScrubCopy::Whole(summary)), bytes))
    }
}

/// Adds a key and its value, each with its length: no two lists of pairs give the same bytes.
fn put(digest: &mut Digest, key: &[u8], value: &[u8]) {
    digest.update(&(key.len() as u64).to_le_bytes());
    digest.update(key);
    digest.update(&(value.len() as u64).to_le_bytes());
    digest.update(value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use holdfast_types::{Epoch, ObjectName};

    use super::*;
    use crate::api::VERSION_ATTR;
    use crate::memory::{MemoryCollection, MemoryObject};

    fn key(index: u32) -> ObjectKey {
        ObjectKey::of(&ObjectName::new(format!("object-{index}")).unwrap())
    }

    fn filled(objects: u32) -> MemoryCollection {
        let mut store = MemoryCollection { exists: true, ..MemoryCollection::default() };
        for index in 0..objects {
            let version = LogVersion { epoch: Epoch(1), counter: u64::from(index) + 1 };
            let attrs = [(VERSION_ATTR.to_vec(), exec::version_value(version))].into();
            let rows = (0..index).map(|row| (vec![u8::try_from(row).unwrap()], Bytes::from_static(b"row"))).collect();
            let data = vec![7; index as usize * 100];
            store.objects.insert(key(index), MemoryObject { data, attrs, rows, ..MemoryObject::default() });
        }
        store
    }

    fn scan(store: &MemoryCollection, deep: bool, budget: usize) -> ScrubMap {
        let range = ScrubRange { after: Vec::new(), upto: BackfillCursor::Complete, deep, urgent: false };
        let mut scan = Scan::new(range);
        (0..10_000).find_map(|_| scan.piece(store, budget)).unwrap()
    }

    fn copy_of(map: &ScrubMap, index: u32) -> ScrubCopy {
        map.items.iter().find(|item| item.key == key(index).as_bytes()).unwrap().copy
    }

    #[test]
    fn a_scan_in_small_pieces_sees_what_one_in_a_large_piece_sees() {
        let store = filled(12);
        let at_once = scan(&store, true, usize::MAX);
        assert_eq!(at_once.items.len(), 12);
        assert_eq!(scan(&store, true, 33), at_once);
        assert_eq!(scan(&store, true, 1), at_once);
        assert!(at_once.items.windows(2).all(|pair| pair[0].key < pair[1].key));
    }

    #[test]
    fn each_part_of_an_object_is_in_what_is_compared() {
        let before = scan(&filled(9), true, 64);
        let changes: [fn(&mut MemoryObject); 5] = [
            |object| object.data[250] ^= 1,
            |object| object.data.push(0),
            |object| drop(object.rows.insert(b"\x02".to_vec(), Bytes::from_static(b"rov"))),
            |object| drop(object.attrs.insert(b"a".to_vec(), Bytes::new())),
            |object| drop(object.rows.remove(b"\x07".as_slice())),
        ];
        for change in changes {
            let mut store = filled(9);
            change(store.objects.get_mut(&key(8)).unwrap());
            let after = scan(&store, true, 64);
            assert_ne!(copy_of(&after, 8), copy_of(&before, 8));
            assert_eq!(copy_of(&after, 7), copy_of(&before, 7));
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_and_does_not_end_the_scan() {
        let mut store = filled(5);
        store.objects.get_mut(&key(3)).unwrap().rotten = true;
        store.objects.get_mut(&key(2)).unwrap().attrs.clear();
        let map = scan(&store, true, 64);
        let version = Some(LogVersion { epoch: Epoch(1), counter: 4 });
        assert_eq!(copy_of(&map, 3), ScrubCopy::Unreadable { version });
        assert_eq!(copy_of(&map, 2), ScrubCopy::HalfWritten);
        assert_eq!(map.items.len(), 5);
        assert!(matches!(copy_of(&scan(&store, false, 64), 3), ScrubCopy::Whole(_)), "a shallow one reads no bytes");
    }

    #[test]
    fn an_answer_is_bounded_and_says_how_far_it_goes() {
        let store = filled(0);
        assert_eq!(scan(&store, true, 1).upto, BackfillCursor::Complete);
        let mut store = store;
        for index in 0..2_000 {
            store.objects.insert(key(index), MemoryObject::default());
        }
        let map = scan(&store, false, usize::MAX);
        assert_eq!(map.items.len(), ITEMS_MAX);
        assert_eq!(map.upto, BackfillCursor::At(map.items.last().unwrap().key.clone()));
    }
}
