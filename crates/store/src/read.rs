//! Reads: onode, then device, then checksums. Any thread, at any time.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::device::Device;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::exec::{merged_scan, overlay_range};
use crate::index::Index;
use crate::keys;
use crate::layout::BLOCK_BYTES;
use crate::onode::{Extent, Onode, bind_all, checksums};
use crate::txn::{CollectionId, ObjectKey};

/// A read that finds its extents moved tries again; each move needs a pass of the cleaner, so a few are plenty.
const ATTEMPTS: usize = 4;

/// What is known of an object without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Size in bytes.
    pub size: u64,
}

/// Rows of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowsPage {
    /// In order of their keys.
    pub rows: Vec<(Vec<u8>, Bytes)>,
    /// Whether a limit ended the page before the range did.
    pub more: bool,
}

/// Space on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// All segments.
    pub total_bytes: u64,
    /// Segments in use, whatever of them is garbage.
    pub used_bytes: u64,
    /// What objects refer to.
    pub live_bytes: u64,
}

impl<D: Device, I: Index> Engine<D, I> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        if let Some((_, value)) = self.core.lock().overlay.get(key) {
            return Ok(value.clone());
        }
        Ok(self.index.get(key)?)
    }

    fn onode(&self, c: CollectionId, o: &ObjectKey) -> Result<Option<Onode>, ReadError> {
        let Some(bytes) = self.get(&keys::onode(c, o))? else { return Ok(None) };
        let damaged = |detail| ReadError::Damaged { detail: format!("onode of {c:?}/{o:?}: {detail}") };
        Onode::decode(&bytes).map(Some).map_err(damaged)
    }

    /// Entries of the index in a range, until `visit` returns `false`.
    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let pending = overlay_range(&self.core.lock().overlay, start, end);
        Ok(merged_scan(&pending, &self.index, start, end, visit)?)
    }

    /// An object's size; `None` when there is none.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn stat(&self, c: CollectionId, o: &ObjectKey) -> Result<Option<ObjectInfo>, ReadError> {
        Ok(self.onode(c, o)?.map(|onode| ObjectInfo { size: onode.size }))
    }

    /// Bytes from `offset`, at most `length`, fewer at the object's end; none when it is missing.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, c: CollectionId, o: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        let mut before: Option<Onode> = None;
        for _ in 0..ATTEMPTS {
            let Some(onode) = self.onode(c, o)? else { return Ok(Bytes::new()) };
            let end = offset.saturating_add(length).min(onode.size);
            if offset >= end {
                return Ok(Bytes::new());
            }
            match self.read_extents(c, o, &onode, offset, end) {
                Ok(bytes) => return Ok(bytes),
                // The cleaner may have moved the bytes under the read; the same onode twice is the truth.
                Err(error) if before.as_ref() == Some(&onode) => return Err(error),
                Err(_) => before = Some(onode),
            }
        }
        let onode = self.onode(c, o)?.unwrap_or_default();
        let end = offset.saturating_add(length).min(onode.size).max(offset);
        self.read_extents(c, o, &onode, offset, end)
    }

    fn read_extents(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        onode: &Onode,
        offset: u64,
        end: u64,
    ) -> Result<Bytes, ReadError> {
        let wanted = |extent: &&Extent| extent.offset < end && extent.offset + u64::from(extent.length) > offset;
        let mut parts = onode.extents.iter().filter(wanted).peekable();
        if let Some(only) = parts.peek()
            && only.offset <= offset
            && only.offset + u64::from(only.length) >= end
        {
            return self.read_extent(c, o, only, offset, end);
        }
        let bytes = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let mut out = BytesMut::zeroed(bytes);
        for extent in parts {
            let (from, to) = (extent.offset.max(offset), (extent.offset + u64::from(extent.length)).min(end));
            let data = self.read_extent(c, o, extent, from, to)?;
            let at = usize::try_from(from - offset).unwrap_or(usize::MAX);
            out[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(out.freeze())
    }

    /// The object's bytes `from..to`, which lie in one extent: whole blocks are read and verified.
    fn read_extent(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        extent: &Extent,
        from: u64,
        to: u64,
    ) -> Result<Bytes, ReadError> {
        let run = &extent.run;
        let block = u64::from(BLOCK_BYTES);
        let first = (from - run.logical) / block;
        let start = first * block;
        let end = (to - run.logical).next_multiple_of(block).min(u64::from(run.length));
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let (inflight, base) = {
            let core = self.core.lock();
            (core.inflight.get(&(run.segment, run.at)).cloned(), core.segments.base(run.segment))
        };
        let data = match (inflight, base) {
            (Some(data), _) => data.slice(usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0)),
            (None, Some(base)) => {
                let mut buffer = BytesMut::zeroed(length);
                self.device.read_at(base + u64::from(run.at) + start, &mut buffer)?;
                buffer.freeze()
            }
            (None, None) => {
                return Err(ReadError::Damaged {
                    detail: format!("{c:?}/{o:?} lies in a freed segment {}", run.segment),
                });
            }
        };
        let blocks = run.checksums.len();
        let mut computed = vec![0; blocks];
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        for (place, checksum) in checksums(&data).into_iter().enumerate() {
            if let Some(slot) = computed.get_mut(first + place) {
                *slot = checksum;
            }
        }
        bind_all(&mut computed, c, o, run.logical, run.sequence);
        let count = data.len().div_ceil(BLOCK_BYTES as usize);
        for place in first..first + count {
            let stored = run.checksums.get(place).copied().unwrap_or_default();
            let found = computed.get(place).copied().unwrap_or_default();
            if stored != found || place >= blocks {
                return Err(ReadError::Corrupt {
                    collection: c,
                    object: o.clone(),
                    offset: run.logical + place as u64 * block,
                    stored,
                    computed: found,
                });
            }
        }
        let skip = usize::try_from(from - run.logical - start).unwrap_or(usize::MAX);
        let wanted = usize::try_from(to - from).unwrap_or(usize::MAX);
        Ok(data.slice(skip..skip + wanted))
    }

    /// One attribute.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn attr(&self, c: CollectionId, o: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(self.attrs(c, o)?.into_iter().find(|(found, _)| found == name).map(|(_, value)| value))
    }

    /// All attributes, ordered by name.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn attrs(&self, c: CollectionId, o: &ObjectKey) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        let onode = self.onode(c, o)?.unwrap_or_default();
        let pair = |(name, value): (minicbor::bytes::ByteVec, minicbor::bytes::ByteVec)| {
            (Vec::from(name), Bytes::from(Vec::from(value)))
        };
        Ok(onode.attributes.into_iter().map(pair).collect())
    }

    /// The values of these rows, in the order asked.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn rows_get(&self, c: CollectionId, o: &ObjectKey, names: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        names.iter().map(|name| self.get(&keys::row(c, o, name))).collect()
    }

    /// Rows of `start..end` in order, until a limit is reached.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn rows_scan(
        &self,
        c: CollectionId,
        o: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError> {
        let prefix = keys::rows(c, o);
        let first = keys::row(c, o, start);
        let last = match end {
            Some(end) => Some(keys::row(c, o, end)),
            None => keys::after_prefix(&prefix),
        };
        let mut page = RowsPage::default();
        let mut bytes = 0;
        self.scan(&first, last.as_deref(), &mut |key, value| {
            if page.rows.len() >= limit_rows || bytes >= limit_bytes {
                page.more = true;
                return false;
            }
            let name = key[prefix.len()..].to_vec();
            bytes += name.len() + value.len();
            page.rows.push((name, Bytes::copy_from_slice(value)));
            true
        })?;
        Ok(page)
    }

    /// Objects after `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn list_objects(
        &self,
        c: CollectionId,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectKey>, ReadError> {
        let prefix = keys::onode_from(c, &[]);
        let mut first = keys::onode_from(c, after.map_or(&[], ObjectKey::as_bytes));
        if after.is_some() {
            first.push(0);
        }
        let mut found = Vec::new();
        self.scan(&first, keys::after_prefix(&prefix).as_deref(), &mut |key, _| {
            if found.len() >= limit {
                return false;
            }
            found.push(ObjectKey::from(&key[keys::COLLECTION_PREFIX_BYTES..]));
            true
        })?;
        Ok(found)
    }

    /// A row of the collection itself.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn meta_get(&self, c: CollectionId, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.get(&keys::meta(c, name))
    }

    /// The collection's own rows of `start..end`, in order, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn meta_scan(
        &self,
        c: CollectionId,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        let last = match end {
            Some(end) => Some(keys::meta(c, end)),
            None => keys::after_prefix(&keys::meta(c, &[])),
        };
        let mut found = Vec::new();
        self.scan(&keys::meta(c, start), last.as_deref(), &mut |key, value| {
            if found.len() >= limit {
                return false;
            }
            found.push((key[keys::COLLECTION_PREFIX_BYTES..].to_vec(), Bytes::copy_from_slice(value)));
            true
        })?;
        Ok(found)
    }

    /// All collections, in order.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn collections(&self) -> Result<Vec<CollectionId>, ReadError> {
        let prefix = keys::collections();
        let mut found = Vec::new();
        self.scan(&prefix, keys::after_prefix(&prefix).as_deref(), &mut |key, _| {
            found.extend(keys::collection_id(key));
            true
        })?;
        Ok(found)
    }

    /// Space on the device.
    pub fn usage(&self) -> Usage {
        let core = self.core.lock();
        let total_bytes = core.segments.total_bytes();
        Usage {
            total_bytes,
            used_bytes: total_bytes - core.segments.free_bytes(),
            live_bytes: core.segments.live_bytes(),
        }
    }
}
