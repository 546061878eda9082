//! What ops do to the index. Submit and replay both go through here, so that they cannot differ.
//!
//! A [`Stage`] gathers the changes of one record over the projected state; nothing is changed until all its ops are
//! through. It depends on the state, the record and its place only: the same log always gives the same index.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use minicbor::bytes::ByteSlice;

use super::cache::OnodeCache;
use super::homes::{Collections, Place as Objects};
use super::read::cached_onode;
use crate::checksum::{ObjectTag, words};
use crate::format::record::{LogMove, LogOp};
use crate::index::{Index, IndexError, keys};
use crate::key::{CollectionId, ObjectKey, Position};
use crate::onode::{Extent, Onode, Sums, charge};
use crate::overlay::{Changes, Overlay, Seen, Value, scan_over};

/// A removed range of at most so many rows is removed row by row. Ranges make every later look-up slower until RocksDB has
/// compacted them away, and the common ranges (a trimmed log) are short.
const RANGE_ROWS_MAX: usize = 256;

/// Stands where an onode was that cannot be read; no onode is empty, so reading it fails.
const NO_ONODE: &[u8] = &[];

/// Why ops cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error("no collection {0}")]
    NoSuchCollection(CollectionId),
    #[error("collection {0} exists")]
    CollectionExists(CollectionId),
    #[error("{o} does not belong to {c}")]
    Foreign { c: CollectionId, o: ObjectKey },
    #[error("the metadata of {0} cannot be read")]
    Meta(CollectionId, #[source] IndexError),
    /// The onode of one object cannot be read: that object is lost on this device, and no other.
    #[error("cannot read the onode of {o} in {c}")]
    Onode { c: CollectionId, o: ObjectKey, source: IndexError },
    #[error("{0}")]
    Bad(&'static str),
}

/// Where the payload of a record is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) segment: u32,
    /// Byte in the segment.
    pub(super) payload_offset: u32,
    pub(super) block_log2: u8,
}

/// See the module.
pub(super) struct Stage<'a> {
    overlay: &'a Overlay,
    cache: &'a OnodeCache,
    index: &'a dyn Index,
    collections: &'a Collections,
    place: Place,
    /// The object of the op before: mostly that of the next one too.
    last: Option<Target>,
    pub(super) changes: Changes,
    /// Collections made, cut or (`None`) removed by this record.
    pub(super) collections_changed: BTreeMap<CollectionId, Option<Objects>>,
    /// What is in memory until the index has it and not in the record: metadata that splits copy.
    pub(super) copied_bytes: u64,
}

fn note_live<'a>(live: &'a mut BTreeMap<u32, i64>, o: &'a ObjectKey) -> impl FnMut(&Extent, bool) + 'a {
    move |extent, is_new| {
        let bytes = charge(o, extent.length) as i64;
        *live.entry(extent.segment).or_default() += if is_new { bytes } else { -bytes };
    }
}

/// An object and the key of its onode.
#[derive(Debug, Clone)]
struct Target {
    c: CollectionId,
    /// In whose name its keys and checksums are; see `homes`.
    home: CollectionId,
    o: ObjectKey,
    key: Bytes,
}

fn object(o: &ByteSlice) -> Result<ObjectKey, StageError> {
    ObjectKey::new(Bytes::copy_from_slice(o)).map_err(|_| StageError::Bad("an object key is too long"))
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        overlay: &'a Overlay,
        cache: &'a OnodeCache,
        index: &'a dyn Index,
        collections: &'a Collections,
        place: Place,
    ) -> Stage<'a> {
        let (changes, collections_changed) = (Changes::default(), BTreeMap::new());
        Stage { overlay, cache, index, collections, place, last: None, changes, collections_changed, copied_bytes: 0 }
    }

    /// The object that an op names; its collection must exist.
    fn target(&mut self, c: CollectionId, o: &ByteSlice) -> Result<Target, StageError> {
        let objects = self.objects(c)?;
        let same = |last: &&Target| last.c == c && last.o.as_bytes() == o as &[u8];
        if let Some(last) = self.last.as_ref().filter(same) {
            return Ok(last.clone());
        }
        let (o, home) = (object(o)?, objects.home);
        if !objects.has(&o) {
            return Err(StageError::Foreign { c, o });
        }
        let target = Target { c, home, key: keys::onode(home, &o), o };
        self.last = Some(target.clone());
        Ok(target)
    }

    /// The objects of a collection; `None` when it does not exist.
    fn find(&self, c: CollectionId) -> Option<&Objects> {
        self.collections_changed.get(&c).map_or_else(|| self.collections.get(c), Option::as_ref)
    }

    fn objects(&self, c: CollectionId) -> Result<&Objects, StageError> {
        self.find(c).ok_or(StageError::NoSuchCollection(c))
    }

    fn check(&self, c: CollectionId) -> Result<(), StageError> {
        self.objects(c).map(|_| ())
    }

    /// Makes a collection, or changes what is in it.
    fn set_collection(&mut self, c: CollectionId, objects: Objects) {
        self.changes.set(keys::collection(c), Value::Raw(objects.encode(c)));
        self.collections_changed.insert(c, Some(objects));
        self.last = None;
    }

    /// The onode to be changed, in `changes`; made if absent and `create`.
    fn onode(&mut self, target: &Target, create: bool) -> Result<Option<&mut Onode>, StageError> {
        let key = &target.key;
        let staged = matches!(self.changes.points.get(key), Some(Value::Onode(_)));
        if !staged {
            match self.look(target)? {
                Some(onode) => self.changes.set(key.clone(), Value::Onode(onode)),
                None if create => {
                    let onode = Onode { changed_at: self.place.position, ..Onode::default() };
                    self.changes.set(key.clone(), Value::Onode(Arc::new(onode)));
                }
                None => return Ok(None),
            }
        }
        match self.changes.points.get_mut(key) {
            Some(Value::Onode(onode)) => Ok(Some(Arc::make_mut(onode))),
            _ => Ok(None),
        }
    }

    /// The onode as it is, without taking it into `changes`.
    fn look(&self, target: &Target) -> Result<Option<Arc<Onode>>, StageError> {
        let Target { c, o, key, .. } = target;
        let value = self.changes.get(key).or_else(|| self.overlay.get(key));
        let read = match value {
            Some(Value::Onode(onode)) => Ok(Some(Arc::clone(onode))),
            Some(Value::Deleted) => Ok(None),
            Some(Value::Raw(bytes)) => decode_onode(key, bytes).map(|onode| Some(Arc::new(onode))),
            None => cached_onode(self.cache, self.index, key),
        };
        read.map_err(|source| StageError::Onode { c: *c, o: o.clone(), source })
    }

    /// Replay only: an op of an object whose onode cannot be read. The log has only what changed, so the object is lost
    /// here; reads of it fail until it is removed or comes from another copy. All else goes on.
    pub(super) fn give_up(&mut self, c: CollectionId, o: &ObjectKey) {
        let home = self.find(c).map_or(c, |objects| objects.home);
        self.changes.set(keys::onode(home, o), Value::Raw(Bytes::from_static(NO_ONODE)));
    }

    /// Shows the present keys of a range with this record's changes so far.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], Seen<'_>) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let mut upper: BTreeMap<&Bytes, &Value> =
            self.overlay.range(start, Some(end)).filter(|(key, _)| !self.changes.covers(key)).collect();
        if start < end {
            upper.extend(
                self.changes
                    .points
                    .range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Excluded(end))),
            );
        }
        let covers = |key: &[u8]| self.changes.covers(key) || self.overlay.covers(key);
        scan_over(upper.into_iter(), covers, self.index, start, Some(end), visit)
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8]) {
        let mut found = Vec::new();
        let scanned = self.scan(start, end, &mut |key, _| {
            found.push(Bytes::copy_from_slice(key));
            if found.len() > RANGE_ROWS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // Rows that cannot be read can be removed all the same: the range covers them.
        if scanned.is_err() || found.len() > RANGE_ROWS_MAX {
            self.changes.remove_range(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        } else {
            for key in found {
                self.changes.set(key, Value::Deleted);
            }
        }
    }

    /// Onodes that cannot be read go too; their bytes stay counted as live, since nobody knows where they are.
    fn remove_collection(&mut self, c: CollectionId) -> Result<(), StageError> {
        let objects = self.objects(c)?.clone();
        let (onodes, onodes_end) = objects.onodes();
        let mut live = BTreeMap::new();
        let scanned = self.scan(&onodes, &onodes_end, &mut |key, seen| {
            let onode = match seen {
                Seen::Onode(onode) => Ok(Arc::clone(onode)),
                Seen::Raw(bytes) => decode_onode(key, bytes).map(Arc::new),
            };
            match (onode, keys::parse_onode(key)) {
                (Ok(onode), Some((_, o))) => {
                    let mut note = note_live(&mut live, &o);
                    onode.extents.iter().for_each(|extent| note(extent, false));
                }
                (Err(error), _) => tracing::warn!(collection = %c, %error, "an onode is removed unread"),
                (Ok(_), None) => tracing::warn!(collection = %c, "an onode with a malformed key is removed"),
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = scanned {
            tracing::warn!(collection = %c, %error, "onodes are removed unread");
        }
        for (segment, bytes) in live {
            *self.changes.live.entry(segment).or_default() += bytes;
        }
        let meta = keys::table_prefix(keys::TABLE_META, c);
        let meta_end = keys::prefix_end(&meta);
        let (rows, rows_end) = objects.rows();
        for (start, end) in [(onodes, onodes_end), (rows, rows_end), (meta, meta_end)] {
            self.remove_range(&start, &end);
        }
        self.changes.set(keys::collection(c), Value::Deleted);
        self.collections_changed.insert(c, None);
        self.last = None;
        Ok(())
    }

    /// Gives the objects of `c` from `at` on to `into`, and a copy of its metadata.
    fn split_collection(&mut self, c: CollectionId, into: CollectionId, at: &[u8]) -> Result<(), StageError> {
        let (low, high) = self.objects(c)?.split(at);
        if self.find(into).is_some() {
            return Err(StageError::CollectionExists(into));
        }
        let meta = keys::table_prefix(keys::TABLE_META, c);
        let mut copied = Vec::new();
        let scanned = self.scan(&meta, &keys::prefix_end(&meta), &mut |key, seen| {
            if let Seen::Raw(value) = seen {
                let key = key.get(meta.len()..).unwrap_or_default();
                copied.push((keys::meta(into, key), Bytes::copy_from_slice(value)));
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|source| StageError::Meta(c, source))?;
        for (key, value) in copied {
            self.copied_bytes += (key.len() + value.len()) as u64;
            self.changes.set(key, Value::Raw(value));
        }
        self.set_collection(c, low);
        self.set_collection(into, high);
        Ok(())
    }

    /// Removes an object, also one whose onode cannot be read: so a copy from elsewhere can take its place.
    fn remove_object(&mut self, target: &Target) {
        let Target { c, home, o, key } = target;
        let has_rows = match self.look(target) {
            Ok(None) => return,
            Ok(Some(onode)) => {
                let mut note = note_live(&mut self.changes.live, o);
                onode.extents.iter().for_each(|extent| note(extent, false));
                onode.has_rows
            }
            Err(error) => {
                tracing::warn!(collection = %c, object = %o, %error, "an object is removed unread");
                true // perhaps
            }
        };
        self.changes.set(key.clone(), Value::Deleted);
        if has_rows {
            let prefix = keys::row_prefix(*home, o).freeze();
            self.remove_range(&prefix, &keys::prefix_end(&prefix));
        }
    }

    /// The next `length` bytes of payload as an extent at `logical`.
    fn take_payload(&mut self, tag: ObjectTag, logical: u64, length: u32, sums: &[u8]) -> Extent {
        let position = self.place.payload_offset;
        self.place.payload_offset += length;
        let version = self.place.position;
        let block_log2 = self.place.block_log2;
        let bound = words(sums)
            .enumerate()
            .map(|(block, crc)| tag.bind(crc, logical.wrapping_add((block as u64) << block_log2), version));
        let sums = Sums::collect(bound);
        Extent {
            logical,
            length,
            segment: self.place.segment,
            position,
            skip: 0,
            stored: length,
            version,
            block_log2,
            sums,
        }
    }

    /// Takes the effect of one op into `changes`.
    pub(super) fn apply(&mut self, op: &LogOp<'_>) -> Result<(), StageError> {
        let position = self.place.position;
        match op {
            LogOp::CreateCollection { c } => {
                if self.find(*c).is_some() {
                    return Err(StageError::CollectionExists(*c));
                }
                let objects = self.collections.new_place(*c, &self.collections_changed);
                self.set_collection(*c, objects);
            }
            LogOp::RemoveCollection { c } => self.remove_collection(*c)?,
            LogOp::SplitCollection { c, into, at } => self.split_collection(*c, *into, at)?,
            LogOp::Touch { c, o } => {
                let target = self.target(*c, o)?;
                self.onode(&target, true)?;
            }
            LogOp::Write { c, o, offset, length, sums } => {
                let target = self.target(*c, o)?;
                let extent = self.take_payload(ObjectTag::new(target.home, &target.o), *offset, *length, sums);
                let end = extent.end();
                self.change_bytes(&target, |onode, live| {
                    onode.replace(*offset, end, Some(extent), note_live(live, &target.o));
                    onode.size = onode.size.max(end);
                    onode.changed_at = position;
                })?;
            }
            LogOp::Truncate { c, o, size } => {
                let target = self.target(*c, o)?;
                self.change_bytes(&target, |onode, live| {
                    onode.replace(*size, u64::MAX, None, note_live(live, &target.o));
                    onode.size = *size;
                    onode.changed_at = position;
                })?;
            }
            LogOp::Zero { c, o, offset, length } => {
                let target = self.target(*c, o)?;
                let end = offset.checked_add(*length).ok_or(StageError::Bad("a zeroed range is too long"))?;
                self.change_bytes(&target, |onode, live| {
                    onode.replace(*offset, end, None, note_live(live, &target.o));
                    onode.size = if *length > 0 { onode.size.max(end) } else { onode.size };
                    onode.changed_at = position;
                })?;
            }
            LogOp::Remove { c, o } => {
                let target = self.target(*c, o)?;
                self.remove_object(&target);
            }
            LogOp::SetAttr { c, o, name, value } => {
                let target = self.target(*c, o)?;
                if let Some(onode) = self.onode(&target, true)? {
                    onode.attrs.insert(name.to_vec(), Bytes::copy_from_slice(value));
                    onode.changed_at = position;
                }
            }
            LogOp::RemoveAttr { c, o, name } => {
                let target = self.target(*c, o)?;
                if let Some(onode) = self.onode(&target, false)?
                    && onode.attrs.remove(name.as_ref() as &[u8]).is_some()
                {
                    onode.changed_at = position;
                }
            }
            LogOp::PutRows { c, o, rows } => {
                let target = self.target(*c, o)?;
                // The onode is rewritten only when this is the first row.
                if !self.look(&target)?.is_some_and(|onode| onode.has_rows)
                    && let Some(onode) = self.onode(&target, true)?
                {
                    onode.has_rows = true;
                }
                for row in rows {
                    self.changes
                        .set(keys::row(target.home, &target.o, row.key), Value::Raw(Bytes::copy_from_slice(row.value)));
                }
            }
            LogOp::DeleteRows { c, o, keys: rows } => {
                let target = self.target(*c, o)?;
                for row in rows {
                    self.changes.set(keys::row(target.home, &target.o, row), Value::Deleted);
                }
            }
            LogOp::DeleteRowRange { c, o, start, end } => {
                let Target { home, o, .. } = self.target(*c, o)?;
                let from = keys::row(home, &o, start);
                let to =
                    end.map_or_else(|| keys::prefix_end(&keys::row_prefix(home, &o)), |end| keys::row(home, &o, end));
                self.remove_range(&from, &to);
            }
            LogOp::PutMeta { c, key, value } => {
                self.check(*c)?;
                self.changes.set(keys::meta(*c, key), Value::Raw(Bytes::copy_from_slice(value)));
            }
            LogOp::DeleteMeta { c, key } => {
                self.check(*c)?;
                self.changes.set(keys::meta(*c, key), Value::Deleted);
            }
            LogOp::DeleteMetaRange { c, start, end } => {
                self.check(*c)?;
                let all = keys::table_prefix(keys::TABLE_META, *c);
                let to = end.map_or_else(|| keys::prefix_end(&all), |end| keys::meta(*c, end));
                self.remove_range(&keys::meta(*c, start), &to);
            }
            LogOp::Relocate { c, o, moves } => {
                let (c, o) = (*c, object(o)?);
                // A collection that is gone, or has given the object away since, has none of it to move.
                let home = self.find(c).filter(|objects| objects.has(&o)).map(|objects| objects.home);
                let target = Target { c, home: home.unwrap_or(c), key: keys::onode(home.unwrap_or(c), &o), o };
                self.relocate(&target, home.is_some(), moves)?;
            }
        }
        Ok(())
    }

    fn change_bytes(
        &mut self,
        target: &Target,
        change: impl FnOnce(&mut Onode, &mut BTreeMap<u32, i64>),
    ) -> Result<(), StageError> {
        let mut live = std::mem::take(&mut self.changes.live);
        let done = self.onode(target, true).map(|onode| {
            if let Some(onode) = onode {
                change(onode, &mut live);
            }
        });
        self.changes.live = live;
        done
    }

    /// Points extents at their moved bytes. Bytes that were changed or removed since the cleaner looked stay as they are.
    fn relocate(&mut self, target: &Target, is_here: bool, moves: &[LogMove<'_>]) -> Result<(), StageError> {
        let Target { home, o, .. } = target;
        let tag = ObjectTag::new(*home, o);
        let exists = is_here && matches!(self.look(target), Ok(Some(_)));
        for piece in moves {
            let new = self.take_payload(tag, piece.offset, piece.length, piece.sums);
            if !exists {
                continue;
            }
            self.change_bytes(target, |onode, live| {
                let end = new.end();
                let unchanged = match onode.extents.get(onode.overlapping(piece.offset, end)) {
                    Some([old]) => {
                        old.logical <= piece.offset
                            && end <= old.end()
                            && (old.segment, old.version) == (piece.old_segment, piece.old_version)
                            && old.position_of(piece.offset) == piece.old_position
                    }
                    _ => false,
                };
                if unchanged {
                    onode.replace(piece.offset, end, Some(new), note_live(live, o));
                }
            })?;
        }
        Ok(())
    }
}

pub(super) fn decode_onode(key: &[u8], bytes: &[u8]) -> Result<Onode, IndexError> {
    Onode::decode(bytes).map_err(|reason| IndexError::Malformed { key: key.to_vec(), reason })
}
