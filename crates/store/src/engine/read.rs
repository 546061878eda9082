//! Reading: the projected state, whatever of it is durable.
//!
//! Where the bytes are is found under the lock; the device is read without it, with the segments pinned so that they are not
//! used anew meanwhile. Each block is checked against the onode's checksum before a byte of it is returned.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::cache::OnodeCache;
use super::stage::decode_onode;
use super::{Engine, State};
use crate::checksum::{ObjectTag, crc32c};
use crate::device::Device;
use crate::error::ReadError;
use crate::index::{Index, IndexError, keys};
use crate::key::{CollectionId, ObjectInfo, ObjectKey};
use crate::onode::{Extent, Onode};
use crate::overlay::{Seen, Value, scan_over};

/// Some rows in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowPage {
    /// Keys and values.
    pub rows: Vec<(Bytes, Bytes)>,
    /// True when a limit ended the page and there may be more rows; go on after the last key.
    pub more: bool,
}

/// A piece of an object that is to be read, and from where.
enum Source {
    Memory(Bytes),
    Device { _pin: Arc<()> },
}

pub(super) fn lookup(state: &State, index: &dyn Index, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
    match state.overlay.get(key) {
        Some(Value::Raw(bytes)) => Ok(Some(bytes.clone())),
        Some(Value::Deleted) => Ok(None),
        Some(Value::Onode(onode)) => Ok(Some(onode.encode())),
        None => index.get(key),
    }
}

pub(super) fn lookup_onode(
    state: &State,
    index: &dyn Index,
    c: CollectionId,
    o: &ObjectKey,
) -> Result<Option<Arc<Onode>>, IndexError> {
    let Some(objects) = state.collections.get(c).filter(|objects| objects.has(o)) else { return Ok(None) };
    let key = keys::onode(objects.home, o);
    match state.overlay.get(&key) {
        Some(Value::Onode(onode)) => Ok(Some(Arc::clone(onode))),
        Some(Value::Deleted) => Ok(None),
        Some(Value::Raw(bytes)) => Ok(Some(Arc::new(decode_onode(&key, bytes)?))),
        None => cached_onode(&state.cache, index, &key),
    }
}

/// The onode that the index has. The caller holds the lock of the state, and the overlay says nothing about the key.
pub(super) fn cached_onode(
    cache: &OnodeCache,
    index: &dyn Index,
    key: &Bytes,
) -> Result<Option<Arc<Onode>>, IndexError> {
    if let Some(known) = cache.get(key) {
        return Ok(known);
    }
    let found = index.get(key)?.map(|bytes| decode_onode(key, &bytes).map(Arc::new)).transpose()?;
    cache.put(key.clone(), found.clone());
    Ok(found)
}

impl<D: Device, I: Index> Engine<D, I> {
    fn known_collection(&self, state: &State, collection: CollectionId) -> Result<(), ReadError> {
        if state.collections.contains(collection) { Ok(()) } else { Err(ReadError::NoSuchCollection { collection }) }
    }

    fn known_onode(&self, state: &State, c: CollectionId, o: &ObjectKey) -> Result<Arc<Onode>, ReadError> {
        self.known_collection(state, c)?;
        lookup_onode(state, &self.index, c, o)?
            .ok_or_else(|| ReadError::NoSuchObject { collection: c, object: o.clone() })
    }

    /// Up to `length` bytes from `offset`; fewer when the object ends before. Holes read as zeros. The answer is held in
    /// memory whole: the caller bounds `length`.
    ///
    /// # Errors
    /// [`ReadError`]; with [`Corrupt`](ReadError::Corrupt) or [`Device`](ReadError::Device) this copy of the object is bad.
    pub fn read(&self, c: CollectionId, o: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        let (total, home, mut pieces) = {
            let state = self.state.read();
            let onode = self.known_onode(&state, c, o)?;
            let end = offset.saturating_add(length).min(onode.size);
            if offset >= end {
                return Ok(Bytes::new());
            }
            let extents = onode.extents.get(onode.overlapping(offset, end)).unwrap_or_default();
            let pieces: Vec<(Extent, Source)> = extents
                .iter()
                .map(|extent| {
                    let piece = extent.slice(extent.logical.max(offset), extent.end().min(end));
                    let source = source_of(&state, &piece);
                    (piece, source)
                })
                .collect();
            ((end - offset) as usize, home_of(&state, c), pieces)
        };
        if let [(piece, Source::Memory(bytes))] = pieces.as_mut_slice()
            && piece.length as usize == total
        {
            return Ok(std::mem::take(bytes));
        }
        let tag = ObjectTag::new(home, o);
        let mut buffer = BytesMut::zeroed(total);
        for (piece, source) in &pieces {
            let from = (piece.logical - offset) as usize;
            let target = buffer.get_mut(from..from + piece.length as usize).unwrap_or_default();
            match source {
                Source::Memory(bytes) => target.copy_from_slice(bytes),
                Source::Device { .. } => self.read_extent(c, o, tag, piece, target)?,
            }
        }
        Ok(buffer.freeze())
    }

    /// Reads and checks the blocks of `extent`; its bytes go to `target`, which has their length.
    pub(super) fn read_extent(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        tag: ObjectTag,
        extent: &Extent,
        target: &mut [u8],
    ) -> Result<(), ReadError> {
        let device_offset = self.layout.segment_start(extent.segment) + u64::from(extent.position);
        let failed = |source| ReadError::Device { offset: device_offset, length: u64::from(extent.stored), source };
        if extent.skip == 0 && extent.stored == extent.length {
            self.device.read_at(device_offset, target).map_err(failed)?;
            return check_blocks(c, o, tag, extent, target);
        }
        let mut blocks = vec![0; extent.stored as usize];
        self.device.read_at(device_offset, &mut blocks).map_err(failed)?;
        check_blocks(c, o, tag, extent, &blocks)?;
        let from = extent.skip as usize;
        target.copy_from_slice(blocks.get(from..from + target.len()).unwrap_or_default());
        Ok(())
    }

    /// What is known of an object without reading its bytes; `None` when it does not exist.
    ///
    /// # Errors
    /// [`ReadError::NoSuchCollection`] and [`ReadError::Index`].
    pub fn stat(&self, c: CollectionId, o: &ObjectKey) -> Result<Option<ObjectInfo>, ReadError> {
        let state = self.state.read();
        self.known_collection(&state, c)?;
        Ok(lookup_onode(&state, &self.index, c, o)?.map(|onode| ObjectInfo {
            size: onode.size,
            changed_at: onode.changed_at,
            extent_count: onode.extents.len() as u32,
            stored_bytes: onode.extents.iter().map(|extent| u64::from(extent.length)).sum(),
        }))
    }

    /// One attribute; `None` when the object does not have it.
    ///
    /// # Errors
    /// [`ReadError`]; the object must exist.
    pub fn attr(&self, c: CollectionId, o: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let state = self.state.read();
        Ok(self.known_onode(&state, c, o)?.attrs.get(name).cloned())
    }

    /// All attributes.
    ///
    /// # Errors
    /// [`ReadError`]; the object must exist.
    pub fn attrs(&self, c: CollectionId, o: &ObjectKey) -> Result<BTreeMap<Vec<u8>, Bytes>, ReadError> {
        let state = self.state.read();
        Ok(self.known_onode(&state, c, o)?.attrs.clone())
    }

    /// The values of `rows`, in the same order; `None` for those that do not exist.
    ///
    /// # Errors
    /// [`ReadError`]; the object must exist.
    pub fn rows_get<K: AsRef<[u8]>>(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        rows: &[K],
    ) -> Result<Vec<Option<Bytes>>, ReadError> {
        let state = self.state.read();
        self.known_onode(&state, c, o)?;
        let home = home_of(&state, c);
        rows.iter().map(|row| Ok(lookup(&state, &self.index, &keys::row(home, o, row.as_ref()))?)).collect()
    }

    /// Rows in `start..end` (no end: all from `start`), at most `limit_rows`, and no more once `limit_bytes` of keys and
    /// values are reached (so always at least one).
    ///
    /// # Errors
    /// [`ReadError`]; the object must exist.
    pub fn rows_scan(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowPage, ReadError> {
        let state = self.state.read();
        self.known_onode(&state, c, o)?;
        let home = home_of(&state, c);
        let prefix = keys::row_prefix(home, o).freeze();
        let to = end.map_or_else(|| keys::prefix_end(&prefix), |end| keys::row(home, o, end));
        Ok(self.page(&state, &keys::row(home, o, start), &to, prefix.len(), limit_rows, limit_bytes)?)
    }

    /// One metadata row of a collection.
    ///
    /// # Errors
    /// [`ReadError`]; the collection must exist.
    pub fn meta_get(&self, c: CollectionId, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let state = self.state.read();
        self.known_collection(&state, c)?;
        Ok(lookup(&state, &self.index, &keys::meta(c, key))?)
    }

    /// Metadata rows of a collection; as [`Engine::rows_scan`].
    ///
    /// # Errors
    /// [`ReadError`]; the collection must exist.
    pub fn meta_scan(
        &self,
        c: CollectionId,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowPage, ReadError> {
        let state = self.state.read();
        self.known_collection(&state, c)?;
        let prefix = keys::table_prefix(keys::TABLE_META, c);
        let to = end.map_or_else(|| keys::prefix_end(&prefix), |end| keys::meta(c, end));
        Ok(self.page(&state, &keys::meta(c, start), &to, prefix.len(), limit_rows, limit_bytes)?)
    }

    fn page(
        &self,
        state: &State,
        start: &[u8],
        end: &[u8],
        prefix_bytes: usize,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowPage, IndexError> {
        let mut page = RowPage::default();
        let mut bytes = 0;
        let mut visit = |key: &[u8], seen: Seen<'_>| {
            if page.rows.len() >= limit_rows || bytes >= limit_bytes {
                page.more = true;
                return ControlFlow::Break(());
            }
            let Seen::Raw(value) = seen else { return ControlFlow::Continue(()) };
            let key = key.get(prefix_bytes..).unwrap_or_default();
            bytes += key.len() + value.len();
            page.rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        };
        let covers = |key: &[u8]| state.overlay.covers(key);
        scan_over(state.overlay.range(start, Some(end)), covers, &self.index, start, Some(end), &mut visit)?;
        Ok(page)
    }

    /// Objects of a collection in the order of their keys, those after `start_after`, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`]; the collection must exist.
    pub fn list_objects(
        &self,
        c: CollectionId,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectKey>, ReadError> {
        let mut objects = Vec::new();
        self.each_onode(c, start_after, limit, &mut |object, _| {
            objects.push(object);
            Ok(())
        })?;
        Ok(objects)
    }

    /// As [`Engine::list_objects`], with the sizes of the objects.
    ///
    /// # Errors
    /// [`ReadError`]; the collection must exist.
    pub fn list_sizes(
        &self,
        c: CollectionId,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<(ObjectKey, u64)>, ReadError> {
        let mut sizes = Vec::new();
        self.each_onode(c, start_after, limit, &mut |object, seen| {
            let size = match seen {
                Seen::Onode(onode) => onode.size,
                Seen::Raw(bytes) => decode_onode(object.as_bytes(), bytes)?.size,
            };
            sizes.push((object, size));
            Ok(())
        })?;
        Ok(sizes)
    }

    fn each_onode(
        &self,
        c: CollectionId,
        start_after: Option<&ObjectKey>,
        limit: usize,
        take: &mut dyn FnMut(ObjectKey, Seen<'_>) -> Result<(), IndexError>,
    ) -> Result<(), ReadError> {
        let state = self.state.read();
        self.known_collection(&state, c)?;
        let Some(place) = state.collections.get(c) else { return Ok(()) };
        let (mut start, end) = place.onodes();
        if let Some(object) = start_after {
            let mut key = keys::onode(place.home, object).to_vec();
            key.push(0); // the smallest key after it
            start = start.max(Bytes::from(key));
        }
        let (mut taken, mut failed) = (0, None);
        let mut visit = |key: &[u8], seen: Seen<'_>| {
            if taken >= limit {
                return ControlFlow::Break(());
            }
            taken += 1;
            let malformed = || IndexError::Malformed { key: key.to_vec(), reason: "not an onode's key" };
            match keys::parse_onode(key).ok_or_else(malformed).and_then(|(_, object)| take(object, seen)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let covers = |key: &[u8]| state.overlay.covers(key);
        scan_over(state.overlay.range(&start, Some(&end)), covers, &self.index, &start, Some(&end), &mut visit)?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The collections that exist, in order.
    pub fn collections(&self) -> Vec<CollectionId> {
        self.state.read().collections.ids().collect()
    }

    /// True when the collection exists.
    pub fn collection_exists(&self, c: CollectionId) -> bool {
        self.state.read().collections.contains(c)
    }

    /// The keys that objects of the collection may have: from the first, up to and without the second.
    pub fn collection_range(&self, c: CollectionId) -> Option<(Bytes, Option<Bytes>)> {
        self.state.read().collections.get(c).map(|objects| (objects.from.clone(), objects.to.clone()))
    }
}

/// In whose name the keys and checksums of a collection's objects are.
pub(super) fn home_of(state: &State, c: CollectionId) -> CollectionId {
    state.collections.get(c).map_or(c, |objects| objects.home)
}

fn source_of(state: &State, piece: &Extent) -> Source {
    let at = (piece.segment, piece.position);
    if let Some((start, bytes)) = state.in_memory.range(..=at).next_back() {
        let from = (piece.position.wrapping_sub(start.1) as usize).saturating_add(piece.skip as usize);
        let to = from.saturating_add(piece.length as usize);
        if start.0 == piece.segment && to <= bytes.len() {
            return Source::Memory(bytes.slice(from..to));
        }
    }
    let pin = state.space.segments.get(piece.segment as usize).map(|segment| Arc::clone(&segment.pin));
    Source::Device { _pin: pin.unwrap_or_default() }
}

/// Checks `blocks`, all kept blocks of `extent`, against its checksums.
fn check_blocks(
    c: CollectionId,
    o: &ObjectKey,
    tag: ObjectTag,
    extent: &Extent,
    blocks: &[u8],
) -> Result<(), ReadError> {
    let block_bytes = 1usize << extent.block_log2;
    for (number, (block, stored)) in blocks.chunks(block_bytes).zip(extent.sums.as_slice()).enumerate() {
        let offset = extent.blocks_start().wrapping_add((number * block_bytes) as u64);
        let computed = tag.bind(crc32c(block), offset, extent.version);
        if computed != *stored {
            return Err(ReadError::Corrupt {
                collection: c,
                object: o.clone(),
                offset,
                length: block.len() as u32,
                stored: *stored,
                computed,
            });
        }
    }
    Ok(())
}
