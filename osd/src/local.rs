//! The store, as a placement group sees it; and the daemon's own rows beside them.
//!
//! All of it works on the engine, over any device and index: the simulator uses the same code.

use bytes::Bytes;
use holdfast_map::ClusterMap;
use holdfast_pg::{Granted, LocalObjects, ObjectKey, ReadError, RowsPage, StoreOp};
use holdfast_store::{CollectionId, Device, Engine, Index, ReadError as StoreReadError, Transaction, TxOp};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, PoolId, Timestamp};
use holdfast_wire::{Blob, Effect, Row};

use crate::leases::Leases;
use crate::space::{self, PeerSpace};

/// The collection of the daemon itself; pool 0 does not exist.
pub const OWN: CollectionId = CollectionId { pool: 0, seed: 0 };
/// Rows of the maps that were fed to the placement groups: this and the epoch, big-endian → `ClusterMap::encode_full`, or
/// [`PIECES`] and a count.
const MAP_ROWS: &[u8] = b"map/";
/// Begins the row of a map that is kept in pieces, and no encoded map. Their number (`u32`, big-endian) follows; piece `i`
/// is the row whose key has `i` (`u32`, big-endian) after the epoch.
const PIECES: &[u8] = b"pieces";
/// Larger maps are kept in pieces of this size: a map may be larger than what the store takes in one transaction.
const PIECE_BYTES: usize = 1 << 20;
/// Maps kept. A placement group records its epoch at least every 64 epochs and must be fed from that one on after a
/// restart; the rest is margin for the shards that are behind.
const MAPS_KEPT: u64 = 512;
/// Old maps are deleted so many epochs at a time.
const MAP_TRIM_STEP: u64 = 64;
/// Maps read at a time.
const MAPS_AT_A_TIME: usize = 256;

/// The collection of a placement group.
#[must_use]
pub fn collection_of(pg: PgId) -> CollectionId {
    CollectionId { pool: pg.pool.0, seed: pg.seed }
}

/// The placement group of a collection; `None` for the daemon's own.
#[must_use]
pub fn pg_of(collection: CollectionId) -> Option<PgId> {
    (collection != OWN).then_some(PgId { pool: PoolId(collection.pool), seed: collection.seed })
}

fn map_row(epoch: Epoch) -> Vec<u8> {
    let mut key = MAP_ROWS.to_vec();
    key.extend_from_slice(&epoch.0.to_be_bytes());
    key
}

/// Keeps a map, by transactions in this order. They are submitted before the placement groups are fed that map, and the
/// store keeps order: what a placement group recorded in an epoch never outlives a crash without the map of that epoch, and
/// the row that counts the pieces never without them.
#[must_use]
pub fn map_transactions(map: &ClusterMap) -> Vec<Transaction> {
    let mut transactions = kept_map(map.epoch, Bytes::from(map.encode_full()));
    if map.epoch.0.is_multiple_of(MAP_TRIM_STEP) && map.epoch.0 > MAPS_KEPT {
        let end = Some(map_row(Epoch(map.epoch.0 - MAPS_KEPT)));
        let trim = TxOp::DeleteMetaRange { c: OWN, start: MAP_ROWS.to_vec(), end };
        transactions.push(Transaction { ops: vec![trim] });
    }
    transactions
}

fn kept_map(epoch: Epoch, encoded: Bytes) -> Vec<Transaction> {
    let put = |key, value| Transaction { ops: vec![TxOp::PutMeta { c: OWN, key, value }] };
    if encoded.len() <= PIECE_BYTES {
        return vec![put(map_row(epoch), encoded)];
    }
    let pieces = (0u32..).zip((0..encoded.len()).step_by(PIECE_BYTES));
    let mut transactions: Vec<_> = pieces
        .map(|(index, start)| {
            let piece = encoded.slice(start..encoded.len().min(start + PIECE_BYTES));
            put([map_row(epoch), index.to_be_bytes().to_vec()].concat(), piece)
        })
        .collect();
    let count = u32::try_from(transactions.len()).unwrap_or(u32::MAX);
    transactions.push(put(map_row(epoch), Bytes::from([PIECES, &count.to_be_bytes()].concat())));
    transactions
}

/// Makes the daemon's own collection; `None` when it is there.
#[must_use]
pub fn own_collection(collections: &[CollectionId]) -> Option<Transaction> {
    (!collections.contains(&OWN)).then(|| Transaction { ops: vec![TxOp::CreateCollection { c: OWN }] })
}

/// The kept maps from this epoch on, oldest first, encoded. One whose pieces are not all there does not decode.
///
/// # Errors
/// What the store says.
pub fn stored_maps<D: Device, I: Index>(engine: &Engine<D, I>, from: Epoch) -> Result<Vec<Bytes>, StoreReadError> {
    let end = map_row(Epoch(u64::MAX));
    let mut start = map_row(from);
    let mut maps = StoredMaps::default();
    loop {
        let page = engine.meta_scan(OWN, &start, Some(&end), MAPS_AT_A_TIME, usize::MAX)?;
        if let Some((last, _)) = page.rows.last() {
            start = last.to_vec();
            start.push(0);
        }
        page.rows.into_iter().for_each(|(key, value)| maps.row(&key, value));
        if !page.more {
            return Ok(maps.end());
        }
    }
}

/// Puts maps together from their rows, which come in the order of their keys: the row of a map before its pieces.
#[derive(Default)]
struct StoredMaps {
    maps: Vec<Bytes>,
    /// The row of the map whose pieces come: its key, how many there are, and what came.
    pieces: Option<(Vec<u8>, u32, Vec<Bytes>)>,
}

impl StoredMaps {
    fn row(&mut self, key: &[u8], value: Bytes) {
        let row_bytes = MAP_ROWS.len() + size_of::<u64>();
        if key.len() > row_bytes {
            // Pieces whose row is missing, or beyond its count, are of a daemon that was killed while it wrote them.
            if let Some((row, count, pieces)) = &mut self.pieces
                && key.starts_with(row)
                && pieces.len() < *count as usize
            {
                pieces.push(value);
            }
            return;
        }
        self.finish();
        match value.strip_prefix(PIECES).map(<[u8; 4]>::try_from) {
            Some(Ok(count)) => self.pieces = Some((key.to_vec(), u32::from_be_bytes(count), Vec::new())),
            Some(Err(_)) | None => self.maps.push(value),
        }
    }

    fn finish(&mut self) {
        if let Some((_, _, pieces)) = self.pieces.take() {
            self.maps.push(pieces.concat().into());
        }
    }

    fn end(mut self) -> Vec<Bytes> {
        self.finish();
        self.maps
    }
}

/// A placement group's collection.
#[derive(Debug)]
pub struct Local<'a, D, I> {
    engine: &'a Engine<D, I>,
    collection: CollectionId,
    peers: &'a PeerSpace,
    leases: &'a Leases,
}

impl<'a, D: Device, I: Index> Local<'a, D, I> {
    /// The collection of `pg` in the store; `peers` says who else has room, `leases` what may be read.
    #[must_use]
    pub fn new(engine: &'a Engine<D, I>, pg: PgId, peers: &'a PeerSpace, leases: &'a Leases) -> Local<'a, D, I> {
        Local { engine, collection: collection_of(pg), peers, leases }
    }

    fn object_key(&self, found: &holdfast_store::ObjectKey) -> Result<ObjectKey, ReadError> {
        ObjectKey::from_bytes(found.as_bytes()).ok_or_else(|| ReadError::Corrupt {
            detail: format!("collection {} holds a key that is no object's", self.collection),
        })
    }
}

fn listed_after(key: &[u8]) -> Result<holdfast_store::ObjectKey, ReadError> {
    let failed = |error| ReadError::Device { detail: format!("a listing begins at no object's key: {error}") };
    holdfast_store::ObjectKey::new(key.to_vec()).map_err(failed)
}

/// What is missing is no error to a placement group: it asks before it has made its collection, and for objects that
/// may not exist.
fn present<T>(result: Result<T, StoreReadError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreReadError::NoSuchCollection { .. } | StoreReadError::NoSuchObject { .. }) => Ok(None),
        Err(error @ StoreReadError::Corrupt { .. }) => Err(ReadError::Corrupt { detail: crate::describe(&error) }),
        Err(StoreReadError::Index(error)) if error.is_corruption() => {
            Err(ReadError::Corrupt { detail: crate::describe(&error) })
        }
        Err(error) => Err(ReadError::Device { detail: crate::describe(&error) }),
    }
}

fn key(key: &ObjectKey) -> holdfast_store::ObjectKey {
    holdfast_store::ObjectKey::new(key.as_bytes().to_vec()).expect("an object's key is shorter than the store's limit")
}

impl<D: Device, I: Index> LocalObjects for Local<'_, D, I> {
    fn stat(&self, object: &ObjectKey) -> Result<Option<u64>, ReadError> {
        let info = present(self.engine.stat(self.collection, &key(object)))?.flatten();
        Ok(info.map(|info| info.size))
    }

    fn read(&self, object: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        Ok(present(self.engine.read(self.collection, &key(object), offset, length))?.unwrap_or_default())
    }

    fn attr(&self, object: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(present(self.engine.attr(self.collection, &key(object), name))?.flatten())
    }

    fn attrs(&self, object: &ObjectKey) -> Result<Vec<Row>, ReadError> {
        let attrs = present(self.engine.attrs(self.collection, &key(object)))?.unwrap_or_default();
        Ok(attrs.into_iter().map(|(key, value)| Row { key: key.to_vec(), value: Blob(value) }).collect())
    }

    fn rows_get(&self, object: &ObjectKey, rows: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        let values = present(self.engine.rows_get(self.collection, &key(object), rows))?;
        Ok(values.unwrap_or_else(|| vec![None; rows.len()]))
    }

    fn rows_scan(
        &self,
        object: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError> {
        let found = self.engine.rows_scan(self.collection, &key(object), start, end, limit_rows, limit_bytes);
        let Some(page) = present(found)? else { return Ok(RowsPage::default()) };
        let rows = page.rows.into_iter().map(|(key, value)| Row { key: key.to_vec(), value: Blob(value) }).collect();
        Ok(RowsPage { rows, more: page.more })
    }

    fn list_objects(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<ObjectKey>, ReadError> {
        let after = after.map(listed_after).transpose()?;
        let keys = present(self.engine.list_objects(self.collection, after.as_ref(), limit))?.unwrap_or_default();
        keys.iter().map(|found| self.object_key(found)).collect()
    }

    fn list_sizes(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(ObjectKey, u64)>, ReadError> {
        let after = after.map(listed_after).transpose()?;
        let sizes = present(self.engine.list_sizes(self.collection, after.as_ref(), limit))?.unwrap_or_default();
        sizes.iter().map(|(found, size)| Ok((self.object_key(found)?, *size))).collect()
    }

    fn meta_get(&self, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(present(self.engine.meta_get(self.collection, name))?.flatten())
    }

    fn meta_scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        let found = self.engine.meta_scan(self.collection, start, Some(end), limit, usize::MAX);
        Ok(present(found)?.map(|page| page.rows).unwrap_or_default())
    }

    fn has_room(&self, bytes: u64) -> bool {
        space::has_room(self.engine, bytes)
    }

    fn has_room_to_recover(&self, bytes: u64) -> bool {
        space::has_room_to_recover(self.engine, bytes)
    }

    fn peer_has_room(&self, osd: OsdId) -> bool {
        self.peers.has_room(osd)
    }

    fn client_bytes_waiting(&self) -> u64 {
        self.peers.client_bytes_waiting()
    }

    fn lease_from(&self, osd: OsdId, incarnation: Incarnation, epoch: Epoch) -> Timestamp {
        self.leases.from(osd, incarnation, epoch)
    }

    fn leases_granted(&self) -> Vec<Granted> {
        self.leases.granted()
    }

    fn leases_forgotten_until(&self) -> Timestamp {
        self.leases.forgotten_until()
    }
}

/// A placement group's transaction in the store's words.
#[must_use]
pub fn to_transaction<D: Device, I: Index>(engine: &Engine<D, I>, pg: PgId, ops: Vec<StoreOp>) -> Transaction {
    let c = collection_of(pg);
    let mut out = Vec::with_capacity(ops.len());
    // Only this placement group's shard makes and removes the collection, so it cannot appear in between.
    let mut exists = engine.collection_exists(c);
    for op in ops {
        match op {
            StoreOp::CreateCollection if exists => {}
            StoreOp::CreateCollection => {
                exists = true;
                out.push(TxOp::CreateCollection { c });
            }
            StoreOp::RemoveCollection if !exists => {}
            StoreOp::RemoveCollection => {
                exists = false;
                out.push(TxOp::RemoveCollection { c });
            }
            StoreOp::Split { child, at, then } => {
                out.push(TxOp::SplitCollection { c, into: collection_of(child), at: at.to_vec() });
                out.extend(to_transaction(engine, child, then).ops);
            }
            StoreOp::PutMeta { key, value } => out.push(TxOp::PutMeta { c, key: key.to_vec(), value }),
            StoreOp::DeleteMeta { key } => out.push(TxOp::DeleteMeta { c, key: key.to_vec() }),
            StoreOp::DeleteMetaRange { start, end } => {
                out.push(TxOp::DeleteMetaRange { c, start: start.to_vec(), end: Some(end.to_vec()) });
            }
            StoreOp::Object { key: object, effect } => out.push(effect_op(c, key(&object), effect)),
        }
    }
    Transaction { ops: out }
}

fn effect_op(c: CollectionId, o: holdfast_store::ObjectKey, effect: Effect) -> TxOp {
    match effect {
        Effect::Touch => TxOp::Touch { c, o },
        Effect::Write { offset, data } => TxOp::Write { c, o, offset, data: data.0 },
        Effect::Zero { offset, length } => TxOp::Zero { c, o, offset, length },
        Effect::Truncate { size } => TxOp::Truncate { c, o, size },
        Effect::Remove => TxOp::Remove { c, o },
        Effect::SetAttr { name, value } => TxOp::SetAttr { c, o, name, value: value.0 },
        Effect::RemoveAttr { name } => TxOp::RemoveAttr { c, o, name },
        Effect::PutRows { rows } => {
            TxOp::PutRows { c, o, rows: rows.into_iter().map(|row| (row.key, row.value.0)).collect() }
        }
        Effect::DeleteRows { keys } => TxOp::DeleteRows { c, o, keys: keys.into_iter().map(Vec::from).collect() },
        Effect::DeleteRowRange { start, end } => TxOp::DeleteRowRange { c, o, start, end },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(transactions: Vec<Transaction>) -> std::collections::BTreeMap<Vec<u8>, Bytes> {
        let puts = transactions.into_iter().flat_map(|transaction| transaction.ops).map(|op| match op {
            TxOp::PutMeta { key, value, .. } => (key, value),
            other => panic!("a map is rows: {other:?}"),
        });
        puts.collect()
    }

    fn read(rows: &std::collections::BTreeMap<Vec<u8>, Bytes>) -> Vec<Bytes> {
        let mut maps = StoredMaps::default();
        rows.iter().for_each(|(key, value)| maps.row(key, value.clone()));
        maps.end()
    }

    fn encoded(bytes: usize, seed: u8) -> Bytes {
        (0..bytes).map(|n| (n % 251) as u8 ^ seed).collect()
    }

    #[test]
    fn a_map_larger_than_a_transaction_of_the_store_is_kept_and_found() {
        let maps = [encoded(9 << 20, 1), encoded(100, 2), encoded(PIECE_BYTES, 3), encoded(PIECE_BYTES + 1, 4)];
        let mut kept = std::collections::BTreeMap::new();
        for (epoch, map) in (7..).zip(&maps) {
            let transactions = kept_map(Epoch(epoch), map.clone());
            assert!(transactions.iter().all(|transaction| transaction.ops.len() == 1), "one row at a time");
            kept.extend(rows(transactions));
        }
        assert!(kept.values().all(|value| value.len() <= PIECE_BYTES));
        assert!(read(&kept) == maps);
    }

    #[test]
    fn a_map_that_was_cut_off_by_a_crash_is_none_whatever_it_left() {
        let (whole, large) = (encoded(100, 1), encoded(3 * PIECE_BYTES, 2));
        let transactions = kept_map(Epoch(8), large.clone());
        for written in 0..transactions.len() {
            let mut kept = rows(kept_map(Epoch(7), whole.clone()));
            kept.extend(rows(transactions[..written].to_vec()));
            assert!(read(&kept) == [whole.clone()], "{written} transactions");
            // The same epoch comes again, in fewer pieces.
            let again = encoded(PIECE_BYTES + 5, 3);
            kept.extend(rows(kept_map(Epoch(8), again.clone())));
            assert!(read(&kept) == [whole.clone(), again]);
        }
    }
}
