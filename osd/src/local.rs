//! The store, as a placement group sees it; and the daemon's own rows beside them.

use bytes::Bytes;
use holdfast_map::ClusterMap;
use holdfast_pg::{LocalObjects, ObjectKey, ReadError, RowsPage, StoreOp};
use holdfast_store::{CollectionId, Store, Transaction, TxOp};
use holdfast_types::{Epoch, PgId, PoolId};
use holdfast_wire::{Blob, Effect, Row};

/// The collection of the daemon itself; pool 0 does not exist.
const OWN: CollectionId = CollectionId { pool: 0, seed: 0 };
/// Rows of the maps that were fed to the placement groups: this and the epoch, big-endian → `ClusterMap::encode_full`.
const MAP_ROWS: &[u8] = b"map/";
/// Maps kept. A placement group records its epoch at least every 256 epochs and must be fed from that one on after a
/// restart; the rest is margin for the shards that are behind.
const MAPS_KEPT: u64 = 512;
/// Old maps are deleted so many epochs at a time.
const MAP_TRIM_STEP: u64 = 64;

/// The collection of a placement group.
pub(crate) fn collection_of(pg: PgId) -> CollectionId {
    CollectionId { pool: pg.pool.0, seed: pg.seed }
}

/// The placement group of a collection; `None` for the daemon's own.
pub(crate) fn pg_of(collection: CollectionId) -> Option<PgId> {
    (collection != OWN).then_some(PgId { pool: PoolId(collection.pool), seed: collection.seed })
}

fn map_row(epoch: Epoch) -> Vec<u8> {
    let mut key = MAP_ROWS.to_vec();
    key.extend_from_slice(&epoch.0.to_be_bytes());
    key
}

/// Keeps a map. It is submitted before the placement groups are fed that map, and the store keeps order: what a
/// placement group recorded in an epoch never outlives a crash without the map of that epoch.
pub(crate) fn map_transaction(map: &ClusterMap) -> Transaction {
    let value = Bytes::from(map.encode_full());
    let mut ops = vec![TxOp::PutMeta { c: OWN, key: map_row(map.epoch), value }];
    if map.epoch.0.is_multiple_of(MAP_TRIM_STEP) && map.epoch.0 > MAPS_KEPT {
        let end = Some(map_row(Epoch(map.epoch.0 - MAPS_KEPT)));
        ops.push(TxOp::DeleteMetaRange { c: OWN, start: MAP_ROWS.to_vec(), end });
    }
    Transaction { ops }
}

/// Makes the daemon's own collection; `None` when it is there.
pub(crate) fn own_collection(collections: &[CollectionId]) -> Option<Transaction> {
    (!collections.contains(&OWN)).then(|| Transaction { ops: vec![TxOp::CreateCollection { c: OWN }] })
}

/// The kept maps, oldest first, encoded.
pub(crate) fn stored_maps(store: &Store) -> Result<Vec<Bytes>, holdfast_store::ReadError> {
    let kept = usize::try_from(MAPS_KEPT + MAP_TRIM_STEP).unwrap_or(usize::MAX) * 2;
    let end = map_row(Epoch(u64::MAX));
    let rows = store.meta_scan(OWN, MAP_ROWS, Some(&end), kept)?;
    Ok(rows.into_iter().map(|(_, value)| value).collect())
}

/// A placement group's collection.
pub(crate) struct Local<'a> {
    store: &'a Store,
    collection: CollectionId,
}

impl<'a> Local<'a> {
    pub(crate) fn new(store: &'a Store, pg: PgId) -> Local<'a> {
        Local { store, collection: collection_of(pg) }
    }
}

fn read_error(error: holdfast_store::ReadError) -> ReadError {
    let detail = crate::describe(&error);
    if error.is_corruption() { ReadError::Corrupt { detail } } else { ReadError::Device { detail } }
}

fn key(key: &ObjectKey) -> holdfast_store::ObjectKey {
    holdfast_store::ObjectKey::from(key.as_bytes())
}

impl LocalObjects for Local<'_> {
    fn stat(&self, object: &ObjectKey) -> Result<Option<u64>, ReadError> {
        let info = self.store.stat(self.collection, &key(object)).map_err(read_error)?;
        Ok(info.map(|info| info.size))
    }

    fn read(&self, object: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        self.store.read(self.collection, &key(object), offset, length).map_err(read_error)
    }

    fn attr(&self, object: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.store.attr(self.collection, &key(object), name).map_err(read_error)
    }

    fn attrs(&self, object: &ObjectKey) -> Result<Vec<Row>, ReadError> {
        let attrs = self.store.attrs(self.collection, &key(object)).map_err(read_error)?;
        Ok(attrs.into_iter().map(|(key, value)| Row { key, value: Blob(value) }).collect())
    }

    fn rows_get(&self, object: &ObjectKey, rows: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        self.store.rows_get(self.collection, &key(object), rows).map_err(read_error)
    }

    fn rows_scan(
        &self,
        object: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError> {
        let page = self
            .store
            .rows_scan(self.collection, &key(object), start, end, limit_rows, limit_bytes)
            .map_err(read_error)?;
        let rows = page.rows.into_iter().map(|(key, value)| Row { key, value: Blob(value) }).collect();
        Ok(RowsPage { rows, more: page.more })
    }

    fn list_objects(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<ObjectKey>, ReadError> {
        let after = after.map(holdfast_store::ObjectKey::from);
        let keys = self.store.list_objects(self.collection, after.as_ref(), limit).map_err(read_error)?;
        keys.iter()
            .map(|found| {
                ObjectKey::from_bytes(found.as_bytes()).ok_or_else(|| ReadError::Corrupt {
                    detail: format!("collection {:?} holds a key that is no object's", self.collection),
                })
            })
            .collect()
    }

    fn meta_get(&self, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.store.meta_get(self.collection, name).map_err(read_error)
    }

    fn meta_scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        let rows = self.store.meta_scan(self.collection, start, Some(end), limit).map_err(read_error)?;
        Ok(rows.into_iter().map(|(key, value)| (Bytes::from(key), value)).collect())
    }
}

/// A placement group's transaction in the store's words.
pub(crate) fn to_transaction(pg: PgId, ops: Vec<StoreOp>) -> Transaction {
    let c = collection_of(pg);
    let mut out = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            StoreOp::CreateCollection => out.push(TxOp::CreateCollection { c }),
            StoreOp::RemoveCollection => out.push(TxOp::RemoveCollection { c }),
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
        Effect::DeleteRows { keys } => TxOp::DeleteRows { c, o, keys: keys.into_iter().map(Into::into).collect() },
        Effect::DeleteRowRange { start, end } => TxOp::DeleteRowRange { c, o, start, end },
    }
}
