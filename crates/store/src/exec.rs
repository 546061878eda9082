//! Applies a record's steps to the state: what its transaction changes in the index. Used alike when a transaction is
//! submitted and when its record is read again after a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use minicbor::bytes::ByteVec;

use crate::error::{IndexError, SubmitError};
use crate::index::Index;
use crate::keys;
use crate::onode::{Extent, Onode, Run};
use crate::record::RecordOp;
use crate::txn::{CollectionId, OBJECT_KEY_BYTES_MAX, ObjectKey};

/// Entries that are submitted and not in the index yet, with the transaction that made each.
pub(crate) type Overlay = BTreeMap<Vec<u8>, (u64, Option<Bytes>)>;

/// One entry, as of all submitted transactions.
pub(crate) fn lookup<I: Index>(overlay: &Overlay, index: &I, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
    match overlay.get(key) {
        Some((_, value)) => Ok(value.clone()),
        None => index.get(key),
    }
}

/// Entries of `start..end` in order, as of all submitted transactions, until `visit` returns `false`.
pub(crate) fn merged_scan<I: Index>(
    overlay: &BTreeMap<Vec<u8>, Option<Bytes>>,
    index: &I,
    start: &[u8],
    end: Option<&[u8]>,
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), IndexError> {
    let mut pending = overlay.iter().peekable();
    let mut wanted = true;
    index.scan(start, end, &mut |key, value| {
        while wanted
            && let Some((newer, _)) = pending.peek()
            && newer.as_slice() < key
        {
            if let Some((newer, Some(value))) = pending.next() {
                wanted = visit(newer, value);
            }
        }
        if !wanted {
            return false;
        }
        if pending.peek().is_some_and(|(newer, _)| newer.as_slice() == key) {
            if let Some((newer, Some(value))) = pending.next() {
                wanted = visit(newer, value);
            }
        } else {
            wanted = visit(key, value);
        }
        wanted
    })?;
    for (key, value) in pending {
        if !wanted {
            break;
        }
        if let Some(value) = value {
            wanted = visit(key, value);
        }
    }
    Ok(())
}

/// The overlay's part of a range, without the numbers.
pub(crate) fn overlay_range(overlay: &Overlay, start: &[u8], end: Option<&[u8]>) -> BTreeMap<Vec<u8>, Option<Bytes>> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    if end.is_some_and(|end| end <= start) {
        return BTreeMap::new();
    }
    let range = overlay.range::<[u8], _>((Included(start), end.map_or(Unbounded, Excluded)));
    range.map(|(key, (_, value))| (key.clone(), value.clone())).collect()
}

/// What a transaction changes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Entries of the index.
    pub(crate) entries: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Live bytes of segments.
    pub(crate) live: BTreeMap<u64, i64>,
}

/// Where the payload of a record lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PayloadPlace {
    pub(crate) segment: u64,
    /// Byte in the segment.
    pub(crate) at: u32,
    pub(crate) sequence: u64,
}

struct Exec<'a, I> {
    overlay: &'a Overlay,
    index: &'a I,
    place: PayloadPlace,
    onodes: BTreeMap<(CollectionId, ObjectKey), Option<Onode>>,
    changes: Changes,
}

/// Applies the steps in order.
pub(crate) fn apply<I: Index>(
    overlay: &Overlay,
    index: &I,
    place: PayloadPlace,
    ops: &[RecordOp],
) -> Result<Changes, SubmitError> {
    let mut exec = Exec { overlay, index, place, onodes: BTreeMap::new(), changes: Changes::default() };
    for op in ops {
        exec.step(op)?;
    }
    exec.settle();
    Ok(exec.changes)
}

impl<I: Index> Exec<'_, I> {
    fn step(&mut self, op: &RecordOp) -> Result<(), SubmitError> {
        match op {
            RecordOp::CreateCollection(c) => self.put(keys::collection(*c), Some(Bytes::from_static(&[1]))),
            RecordOp::RemoveCollection(c) => self.remove_collection(*c)?,
            RecordOp::Touch(c, o) => {
                self.object(*c, o)?;
            }
            RecordOp::Write { c, o, offset, length, payload_at, checksums } => {
                let PayloadPlace { segment, at, sequence } = self.place;
                let run = Run {
                    segment,
                    at: at + payload_at,
                    length: *length,
                    logical: *offset,
                    sequence,
                    checksums: checksums.clone(),
                };
                let end = offset + u64::from(*length);
                self.punch(*c, o, *offset, end)?;
                let onode = self.object(*c, o)?;
                onode.insert(Extent { offset: *offset, length: *length, run });
                onode.size = onode.size.max(end);
                *self.changes.live.entry(segment).or_default() += i64::from(*length);
            }
            RecordOp::Truncate(c, o, size) => {
                self.punch(*c, o, *size, u64::MAX)?;
                self.object(*c, o)?.size = *size;
            }
            RecordOp::Zero(c, o, offset, length) => {
                self.punch(*c, o, *offset, offset + length)?;
                let onode = self.object(*c, o)?;
                onode.size = onode.size.max(offset + length);
            }
            RecordOp::Remove(c, o) => self.remove(*c, o)?,
            RecordOp::SetAttr(c, o, name, value) => {
                self.object(*c, o)?.attributes.insert(name.clone(), value.clone());
            }
            RecordOp::RemoveAttr(c, o, name) => {
                self.object(*c, o)?.attributes.remove(name);
            }
            RecordOp::PutRows(c, o, rows) => {
                self.object(*c, o)?;
                for (name, value) in rows {
                    self.put(keys::row(*c, o, name), Some(bytes_of(value)));
                }
            }
            RecordOp::DeleteRows(c, o, names) => {
                self.object(*c, o)?;
                for name in names {
                    self.put(keys::row(*c, o, name), None);
                }
            }
            RecordOp::DeleteRowRange(c, o, start, end) => {
                self.object(*c, o)?;
                let first = keys::row(*c, o, start);
                let last = match end {
                    Some(end) => Some(keys::row(*c, o, end)),
                    None => keys::after_prefix(&keys::rows(*c, o)),
                };
                self.delete_range(&first, last.as_deref())?;
            }
            RecordOp::PutMeta(c, name, value) => {
                self.need_collection(*c)?;
                self.put(keys::meta(*c, name), Some(bytes_of(value)));
            }
            RecordOp::DeleteMeta(c, name) => self.put(keys::meta(*c, name), None),
            RecordOp::DeleteMetaRange(c, start, end) => {
                let last = match end {
                    Some(end) => Some(keys::meta(*c, end)),
                    None => keys::after_prefix(&keys::meta(*c, &[])),
                };
                self.delete_range(&keys::meta(*c, start), last.as_deref())?;
            }
        }
        Ok(())
    }

    fn put(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.changes.entries.insert(key, value);
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        match self.changes.entries.get(key) {
            Some(value) => Ok(value.clone()),
            None => lookup(self.overlay, self.index, key),
        }
    }

    fn need_collection(&self, c: CollectionId) -> Result<(), SubmitError> {
        match self.lookup(&keys::collection(c))? {
            Some(_) => Ok(()),
            None => Err(SubmitError::Invalid { reason: format!("there is no collection {}.{:x}", c.pool, c.seed) }),
        }
    }

    fn load(&mut self, c: CollectionId, o: &ObjectKey) -> Result<&mut Option<Onode>, SubmitError> {
        if !self.onodes.contains_key(&(c, o.clone())) {
            if o.as_bytes().len() > OBJECT_KEY_BYTES_MAX {
                let reason = format!("an object key has at most {OBJECT_KEY_BYTES_MAX} bytes");
                return Err(SubmitError::Invalid { reason });
            }
            self.need_collection(c)?;
            let onode = match self.lookup(&keys::onode(c, o))? {
                Some(bytes) => Some(Onode::decode(&bytes).map_err(|detail| damaged(c, o, &detail))?),
                None => None,
            };
            self.onodes.insert((c, o.clone()), onode);
        }
        Ok(self.onodes.entry((c, o.clone())).or_default())
    }

    /// The object; made if it is missing.
    fn object(&mut self, c: CollectionId, o: &ObjectKey) -> Result<&mut Onode, SubmitError> {
        Ok(self.load(c, o)?.get_or_insert_default())
    }

    fn punch(&mut self, c: CollectionId, o: &ObjectKey, start: u64, end: u64) -> Result<(), SubmitError> {
        let mut freed = Vec::new();
        self.object(c, o)?.punch(start, end, &mut |segment, bytes| freed.push((segment, bytes)));
        for (segment, bytes) in freed {
            *self.changes.live.entry(segment).or_default() -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
        Ok(())
    }

    fn remove(&mut self, c: CollectionId, o: &ObjectKey) -> Result<(), SubmitError> {
        if self.load(c, o)?.is_none() {
            return Ok(());
        }
        self.punch(c, o, 0, u64::MAX)?;
        let rows = keys::rows(c, o);
        self.delete_range(&rows, keys::after_prefix(&rows).as_deref())?;
        self.onodes.insert((c, o.clone()), None);
        Ok(())
    }

    fn remove_collection(&mut self, c: CollectionId) -> Result<(), SubmitError> {
        self.settle();
        let objects = keys::onode_from(c, &[]);
        let mut found = Vec::new();
        self.scan(&objects, keys::after_prefix(&objects).as_deref(), &mut |_, value| found.push(value.to_vec()))?;
        for bytes in found {
            let onode = Onode::decode(&bytes).map_err(|detail| SubmitError::Damaged { detail })?;
            for extent in onode.extents {
                *self.changes.live.entry(extent.run.segment).or_default() -= i64::from(extent.length);
            }
        }
        for prefix in keys::all_of(c) {
            self.delete_range(&prefix, keys::after_prefix(&prefix).as_deref())?;
        }
        Ok(())
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), IndexError> {
        let mut pending = overlay_range(self.overlay, start, end);
        let own = self.changes.entries.range(start.to_vec()..);
        for (key, value) in own.take_while(|(key, _)| end.is_none_or(|end| key.as_slice() < end)) {
            pending.insert(key.clone(), value.clone());
        }
        merged_scan(&pending, self.index, start, end, &mut |key, value| {
            visit(key, value);
            true
        })
    }

    fn delete_range(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<(), SubmitError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let mut doomed = Vec::new();
        self.scan(start, end, &mut |key, _| doomed.push(key.to_vec()))?;
        for key in doomed {
            self.put(key, None);
        }
        Ok(())
    }

    /// Turns the onodes at hand into entries.
    fn settle(&mut self) {
        for ((c, o), onode) in std::mem::take(&mut self.onodes) {
            let value = onode.map(|onode| Bytes::from(onode.encode()));
            self.changes.entries.insert(keys::onode(c, &o), value);
        }
    }
}

fn bytes_of(value: &ByteVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

fn damaged(c: CollectionId, o: &ObjectKey, detail: &str) -> SubmitError {
    SubmitError::Damaged { detail: format!("onode of {c:?}/{o:?}: {detail}") }
}
