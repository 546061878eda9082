//! The obvious store: one collection in memory, the model for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::{Blob, Effect, Row};

use crate::api::{LocalObjects, ReadError, RowsPage, StoreOp};
use crate::key::ObjectKey;
use crate::lease::Granted;

/// One object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryObject {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its attributes.
    pub attrs: BTreeMap<Vec<u8>, Bytes>,
    /// Its rows.
    pub rows: BTreeMap<Vec<u8>, Bytes>,
    /// Whether reading its bytes fails, as rot would make it.
    pub rotten: bool,
    /// Whether nothing of it can be read but its key. A store then takes only its removal.
    pub unreadable: bool,
}

/// A collection in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryCollection {
    /// Whether it has been created.
    pub exists: bool,
    /// Objects by key.
    pub objects: BTreeMap<ObjectKey, MemoryObject>,
    /// The collection's own rows.
    pub meta: BTreeMap<Vec<u8>, Bytes>,
    /// Whether its objects cannot be listed.
    pub unlisted: bool,
    /// Whether there is no room for more.
    pub full: bool,
    /// Whether there is no room for bytes of objects, though it is not full.
    pub tight: bool,
    /// Largest piece of an object that recovery may bring all the same.
    pub spare: u64,
    /// With so many bytes of objects it is full, and to recover an object it must not hold more, if it has an end.
    pub limit: Option<u64>,
    /// Other OSDs that have said that they have no room.
    pub full_peers: BTreeSet<OsdId>,
    /// Bytes of requests that wait in all placement groups.
    pub client_bytes_waiting: u64,
    /// Collections that splits of this one have made, until whoever keeps collections takes them.
    pub made: BTreeMap<PgId, MemoryCollection>,
    /// Ends of the leases that others have given; without an entry one that never ends.
    pub leases: BTreeMap<OsdId, Timestamp>,
    /// Leases given here.
    pub granted: Vec<Granted>,
    /// Until then it may have given more.
    pub forgotten_until: Timestamp,
}

impl MemoryCollection {
    /// Bytes of all objects.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.objects.values().map(|object| object.data.len() as u64).sum()
    }

    fn readable(&self, key: &ObjectKey) -> Result<Option<&MemoryObject>, ReadError> {
        match self.objects.get(key) {
            Some(object) if object.unreadable => Err(ReadError::Corrupt { detail: "unreadable".to_owned() }),
            object => Ok(object),
        }
    }

    /// Whether a store would take these operations: an object that cannot be read can only be removed.
    #[must_use]
    pub fn takes(&self, ops: &[StoreOp]) -> bool {
        let mut removed = BTreeSet::new();
        ops.iter().all(|op| match op {
            StoreOp::Object { key, effect: Effect::Remove } => {
                removed.insert(key);
                true
            }
            StoreOp::Object { key, .. } => removed.contains(key) || self.readable(key).is_ok(),
            _ => true,
        })
    }

    /// Applies a transaction.
    pub fn apply(&mut self, ops: &[StoreOp]) {
        for op in ops {
            match op {
                StoreOp::CreateCollection => self.exists = true,
                StoreOp::RemoveCollection => *self = MemoryCollection::default(),
                StoreOp::Object { key, effect: Effect::Remove } => {
                    self.objects.remove(key);
                }
                StoreOp::Object { key, effect } => self.objects.entry(key.clone()).or_default().apply(effect),
                StoreOp::Split { child, at, then } => {
                    let high = |key: &ObjectKey| key.as_bytes() >= &at[..];
                    let mut made = MemoryCollection { made: BTreeMap::new(), ..self.clone() };
                    made.objects.retain(|key, _| high(key));
                    self.objects.retain(|key, _| !high(key));
                    made.apply(then);
                    self.made.insert(*child, made);
                }
                StoreOp::PutMeta { key, value } => {
                    self.meta.insert(key.to_vec(), value.clone());
                }
                StoreOp::DeleteMeta { key } => {
                    self.meta.remove(&key[..]);
                }
                StoreOp::DeleteMetaRange { start, end } => {
                    self.meta.retain(|key, _| !(key[..] >= start[..] && key[..] < end[..]));
                }
            }
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl MemoryObject {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Touch | Effect::Remove => {}
            Effect::Write { offset, data } => {
                let (start, end) = (index(*offset), index(*offset) + data.len());
                if self.data.len() < end {
                    self.data.resize(end, 0);
                }
                self.data[start..end].copy_from_slice(data.as_ref());
            }
            Effect::Zero { offset, length } => {
                let end = index(offset + length).min(self.data.len());
                let start = index(*offset).min(end);
                self.data[start..end].fill(0);
            }
            Effect::Truncate { size } => {
                self.data.resize(index(*size), 0);
                self.rotten &= *size > 0;
            }
            Effect::SetAttr { name, value } => {
                self.attrs.insert(name.clone(), value.0.clone());
            }
            Effect::RemoveAttr { name } => {
                self.attrs.remove(name);
            }
            Effect::PutRows { rows } => {
                self.rows.extend(rows.iter().map(|row| (row.key.clone(), row.value.0.clone())));
            }
            Effect::DeleteRows { keys } => {
                for key in keys {
                    self.rows.remove(key.as_slice());
                }
            }
            Effect::DeleteRowRange { start, end } => {
                let inside =
                    |key: &[u8]| key >= start.as_slice() && end.as_ref().is_none_or(|end| key < end.as_slice());
                self.rows.retain(|key, _| !inside(key));
            }
        }
    }
}

impl LocalObjects for MemoryCollection {
    fn stat(&self, key: &ObjectKey) -> Result<Option<u64>, ReadError> {
        Ok(self.readable(key)?.map(|object| object.data.len() as u64))
    }

    fn read(&self, key: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        let Some(object) = self.readable(key)? else { return Ok(Bytes::new()) };
        if object.rotten {
            return Err(ReadError::Corrupt { detail: "rotten".to_owned() });
        }
        let start = index(offset).min(object.data.len());
        let end = index(offset.saturating_add(length)).min(object.data.len());
        Ok(Bytes::copy_from_slice(&object.data[start..end]))
    }

    fn attr(&self, key: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(self.readable(key)?.and_then(|object| object.attrs.get(name)).cloned())
    }

    fn attrs(&self, key: &ObjectKey) -> Result<Vec<Row>, ReadError> {
        let Some(object) = self.readable(key)? else { return Ok(Vec::new()) };
        Ok(object.attrs.iter().map(|(key, value)| Row { key: key.clone(), value: Blob(value.clone()) }).collect())
    }

    fn rows_get(&self, key: &ObjectKey, rows: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        let object = self.readable(key)?;
        Ok(rows.iter().map(|row| object.and_then(|object| object.rows.get(*row)).cloned()).collect())
    }

    fn rows_scan(
        &self,
        key: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError> {
        let mut page = RowsPage::default();
        let Some(object) = self.readable(key)? else { return Ok(page) };
        let mut bytes = 0;
        let from = object.rows.range::<[u8], _>((Bound::Included(start), Bound::Unbounded));
        for (key, value) in from.take_while(|(key, _)| end.is_none_or(|end| key.as_slice() < end)) {
            if page.rows.len() >= limit_rows || bytes >= limit_bytes {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            page.rows.push(Row { key: key.clone(), value: Blob(value.clone()) });
        }
        Ok(page)
    }

    fn list_objects(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<ObjectKey>, ReadError> {
        if self.unlisted {
            return Err(ReadError::Corrupt { detail: "unlisted".to_owned() });
        }
        let keys = self.objects.keys().filter(|key| after.is_none_or(|after| key.as_bytes() > after));
        Ok(keys.take(limit).cloned().collect())
    }

    fn list_sizes(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(ObjectKey, u64)>, ReadError> {
        let keys = self.list_objects(after, limit)?;
        let size = |key: &ObjectKey| self.objects.get(key).map_or(0, |object| object.data.len() as u64);
        Ok(keys.into_iter().map(|key| (key.clone(), size(&key))).collect())
    }

    fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(self.meta.get(key).cloned())
    }

    fn meta_scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let range = self.meta.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        Ok(range.take(limit).map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())).collect())
    }

    fn has_room(&self, bytes: u64) -> bool {
        !self.full && (!self.tight || bytes == 0) && self.limit.is_none_or(|limit| self.live_bytes() + bytes < limit)
    }

    fn has_room_to_recover(&self, bytes: u64) -> bool {
        let fits = self.limit.is_none_or(|limit| self.live_bytes() + bytes <= limit);
        !self.full && !self.tight && fits || bytes <= self.spare
    }

    fn peer_has_room(&self, osd: OsdId) -> bool {
        !self.full_peers.contains(&osd)
    }

    fn client_bytes_waiting(&self) -> u64 {
        self.client_bytes_waiting
    }

    fn lease_from(&self, osd: OsdId, _incarnation: Incarnation, _epoch: Epoch) -> Timestamp {
        self.leases.get(&osd).copied().unwrap_or(Timestamp::from_nanos(u64::MAX))
    }

    fn leases_granted(&self) -> Vec<Granted> {
        self.granted.clone()
    }

    fn leases_forgotten_until(&self) -> Timestamp {
        self.forgotten_until
    }
}
