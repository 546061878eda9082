//! The backend's contract in the plainest form: one lock, ordered maps. Can be told to fail.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::{
    Backend, BackendError, BatchError, BlobId, Blobs, Condition, DropError, KeyInfo, Keys, Mutation, Page, Purpose,
    RowKey, ScanLimit, ScanRange, TableId, Tables,
};
use crate::row::{BlobRef, GLOBAL_TABLE, GcRow, Row as _, route, row_key, space, unique_id};

type Rows = BTreeMap<(u8, Vec<u8>), Bytes>;

/// Rows, blobs and keys in memory.
#[derive(Default)]
pub struct Memory {
    tables: Mutex<BTreeMap<TableId, Rows>>,
    dropped: Mutex<BTreeMap<TableId, Rows>>,
    blobs: Mutex<BTreeMap<(BlobId, u32), Bytes>>,
    keys: Mutex<HashMap<String, KeyInfo>>,
    /// Every call fails as if the cluster did not answer.
    pub unavailable: AtomicBool,
    /// Writes of stripes and puts fail as if the cluster were full.
    pub full: AtomicBool,
    /// Writes of stripes wait until they are let go.
    pub hold_stripes: AtomicBool,
    /// Writes of stripes that wait, or did.
    pub stripes_held: AtomicUsize,
    /// Lets writes of stripes go.
    pub stripe: Notify,
    /// Batches wait until they are let go.
    pub hold_batches: AtomicBool,
    /// Drops wait until they are let go.
    pub hold_drops: AtomicBool,
    /// Drops that wait.
    pub drops_held: AtomicUsize,
    /// Scans of a key's rows wait until they are let go.
    pub hold_scans: AtomicBool,
    /// Scans that wait, or did.
    pub scans_held: AtomicUsize,
    /// Lets what is held go.
    pub release: Notify,
    /// Batches are executed twice and answered as the second time, as if the first answer had been lost and the storage
    /// had forgotten that it gave one.
    pub repeat_batches: AtomicBool,
    /// Repeated batches wait between the two times until they are let go.
    pub hold_repeats: AtomicBool,
    /// Lets repeated batches go.
    pub repeat: Notify,
    /// Batches are executed and answered as if the answer had not come.
    pub lose_answers: AtomicBool,
    /// Batches are executed and wait for their answers until they are let go.
    pub hold_answers: AtomicBool,
    /// Batches that wait for their answers, or did.
    pub answers_held: AtomicUsize,
    /// Lets answers go.
    pub answer: Notify,
    /// Batches that came.
    pub batches: AtomicUsize,
    /// Gets that came.
    pub gets: AtomicUsize,
    /// Rows that scans have returned.
    pub rows_scanned: AtomicUsize,
}

impl Memory {
    /// An empty one with one key: `AKIAIOSFODNN7EXAMPLE` of the S3 guide.
    pub fn new() -> Arc<Memory> {
        let memory = Memory::default();
        memory.add_key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        Arc::new(memory)
    }

    /// Adds a key.
    pub fn add_key(&self, access_key: &str, secret: &str) {
        let info = KeyInfo { secret: secret.to_owned(), owner: "owner-id".to_owned(), name: "owner".to_owned() };
        self.keys.lock().insert(access_key.to_owned(), info);
    }

    /// This as a backend.
    pub fn backend(self: &Arc<Memory>) -> Backend {
        Backend { tables: self.clone(), blobs: self.clone(), keys: self.clone() }
    }

    /// How many stripes there are.
    pub fn stripes(&self) -> usize {
        self.blobs.lock().len()
    }

    /// How many rows there are in a space of all tables.
    pub fn rows(&self, space: u8) -> usize {
        let of = |tables: &BTreeMap<TableId, Rows>| {
            tables.values().flat_map(|rows| rows.keys()).filter(|(s, _)| *s == space).count()
        };
        of(&self.tables.lock()) + of(&self.dropped.lock())
    }

    /// How many tables there are, dropped ones that are not purged included.
    pub fn tables(&self) -> usize {
        self.tables.lock().len() + self.dropped.lock().len()
    }

    fn up(&self) -> Result<(), BackendError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(BackendError::Unavailable("told to be".into()));
        }
        Ok(())
    }

    fn with<T>(&self, table: TableId, f: impl FnOnce(&mut Rows) -> T) -> Result<T, BackendError> {
        self.up()?;
        self.tables.lock().get_mut(&table).map(f).ok_or_else(|| self.no_table(table))
    }

    fn no_table(&self, table: TableId) -> BackendError {
        let dropped = self.dropped.lock().contains_key(&table);
        if dropped { BackendError::NoTable(table) } else { BackendError::TableMissing(table) }
    }

    /// Hides the tables of all buckets, also of deleted ones, as if nothing of them could be found.
    pub fn hide_buckets(&self) -> Hidden {
        let mut tables = self.tables.lock();
        let global = tables.remove(&GLOBAL_TABLE);
        let hidden =
            Hidden { tables: std::mem::take(&mut *tables), dropped: std::mem::take(&mut *self.dropped.lock()) };
        tables.extend(global.map(|rows| (GLOBAL_TABLE, rows)));
        hidden
    }

    /// Shows them again.
    pub fn show_buckets(&self, hidden: Hidden) {
        self.tables.lock().extend(hidden.tables);
        self.dropped.lock().extend(hidden.dropped);
    }

    /// Puts a garbage row of `key` into every bucket.
    pub fn add_garbage(&self, key: &str, blobs: Vec<BlobRef>, since_ms: u64) {
        let value = GcRow { blobs, since_ms, intent: false }.to_bytes();
        let place = row_key(space::GC, &route(key), &unique_id());
        for (_, rows) in self.tables.lock().iter_mut().filter(|(table, _)| **table != GLOBAL_TABLE) {
            rows.insert((place.space, place.key.clone()), value.clone());
        }
    }

    /// Flips a bit in every stripe.
    pub fn rot(&self) {
        for stripe in self.blobs.lock().values_mut() {
            let mut rotten = stripe.to_vec();
            rotten.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            *stripe = rotten.into();
        }
    }

    /// Replaces the value of each row of a space by bytes that mean nothing.
    pub fn damage(&self, space: u8) {
        for rows in self.tables.lock().values_mut() {
            rows.iter_mut()
                .filter(|((of, _), _)| *of == space)
                .for_each(|(_, value)| *value = Bytes::from_static(b"?"));
        }
    }

    fn apply(
        &self,
        table: TableId,
        route: &[u8],
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
        purpose: Purpose,
    ) -> Result<(), BatchError> {
        // What is to free space and deletes something is let in, with the rows that belong to it.
        let frees =
            purpose == Purpose::FreeSpace && mutations.iter().any(|mutation| !matches!(mutation, Mutation::Put(..)));
        if self.full.load(Ordering::SeqCst) && !frees {
            return Err(BackendError::Full.into());
        }
        let keys = conditions
            .iter()
            .map(|condition| match condition {
                Condition::Absent(key) | Condition::Present(key) | Condition::Equals(key, _) => &key.key,
            })
            .chain(mutations.iter().map(|mutation| match mutation {
                Mutation::Put(key, _) | Mutation::Delete(key) => &key.key,
                Mutation::DeleteRange { start, .. } => start,
            }));
        assert!(keys.into_iter().all(|key| key.starts_with(route)), "a batch is within its route");
        self.with(table, |rows| {
            for (index, condition) in conditions.iter().enumerate() {
                let (key, holds): (_, fn(Option<&Bytes>, &Bytes) -> bool) = match condition {
                    Condition::Absent(key) => (key, |current, _| current.is_none()),
                    Condition::Present(key) => (key, |current, _| current.is_some()),
                    Condition::Equals(key, _) => (key, |current, wanted| current == Some(wanted)),
                };
                let wanted = match condition {
                    Condition::Equals(_, wanted) => wanted.clone(),
                    Condition::Absent(_) | Condition::Present(_) => Bytes::new(),
                };
                let current = rows.get(&place(key));
                if !holds(current, &wanted) {
                    return Err(BatchError::ConditionFailed { index, current: current.cloned() });
                }
            }
            for mutation in mutations {
                match mutation {
                    Mutation::Put(key, value) => {
                        rows.insert((key.space, key.key), value);
                    }
                    Mutation::Delete(key) => {
                        rows.remove(&(key.space, key.key));
                    }
                    Mutation::DeleteRange { space, start, end } => {
                        let gone: Vec<_> =
                            rows.range((space, start)..(space, end)).map(|(key, _)| key.clone()).collect();
                        for key in gone {
                            rows.remove(&key);
                        }
                    }
                }
            }
            Ok(())
        })?
    }
}

/// Tables that are hidden.
#[derive(Debug)]
pub struct Hidden {
    tables: BTreeMap<TableId, Rows>,
    dropped: BTreeMap<TableId, Rows>,
}

fn page(rows: &Rows, range: ScanRange, limit: ScanLimit) -> Page {
    let mut page = Page::default();
    let mut bytes = 0;
    if range.end.as_ref().is_some_and(|end| *end <= range.start) {
        return page;
    }
    let end = match range.end {
        Some(end) => Bound::Excluded((range.space, end)),
        None => Bound::Excluded((range.space + 1, Vec::new())),
    };
    for ((_, key), value) in rows.range((Bound::Included((range.space, range.start)), end)) {
        if !page.rows.is_empty() && (page.rows.len() >= limit.rows || bytes >= limit.bytes) {
            page.next = Some(key.clone());
            break;
        }
        bytes += key.len() + value.len();
        page.rows.push((key.clone(), value.clone()));
    }
    page
}

fn place(key: &RowKey) -> (u8, Vec<u8>) {
    (key.space, key.key.clone())
}

#[async_trait]
impl Tables for Memory {
    async fn create_table(&self, table: TableId) -> Result<(), BackendError> {
        self.up()?;
        self.tables.lock().entry(table).or_default();
        Ok(())
    }

    async fn drop_table_if_empty(&self, table: TableId, spaces: &[u8]) -> Result<(), DropError> {
        if self.hold_drops.load(Ordering::SeqCst) {
            self.drops_held.fetch_add(1, Ordering::SeqCst);
            self.release.notified().await;
        }
        self.up()?;
        let mut tables = self.tables.lock();
        let rows = tables.get(&table).ok_or_else(|| self.no_table(table))?;
        if let Some((space, _)) = rows.keys().find(|(space, _)| spaces.contains(space)) {
            return Err(DropError::NotEmpty { space: *space });
        }
        if let Some(rows) = tables.remove(&table) {
            self.dropped.lock().insert(table, rows);
        }
        Ok(())
    }

    async fn dropped_rows(
        &self,
        table: TableId,
        space: u8,
        start: Vec<u8>,
        limit: ScanLimit,
    ) -> Result<Page, BackendError> {
        self.up()?;
        if self.tables.lock().contains_key(&table) {
            return Err(BackendError::Unavailable("it is not dropped".into()));
        }
        let dropped = self.dropped.lock();
        let rows = dropped.get(&table).ok_or(BackendError::TableMissing(table))?;
        Ok(page(rows, ScanRange { space, start, end: None }, limit))
    }

    async fn purge_table(&self, table: TableId) -> Result<(), BackendError> {
        self.up()?;
        self.dropped.lock().remove(&table);
        Ok(())
    }

    async fn batch(
        &self,
        table: TableId,
        route: &[u8],
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
        purpose: Purpose,
    ) -> Result<(), BatchError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        if self.hold_batches.load(Ordering::SeqCst) {
            self.release.notified().await;
        }
        if self.repeat_batches.load(Ordering::SeqCst) {
            let _ = self.apply(table, route, conditions.clone(), mutations.clone(), purpose);
            if self.hold_repeats.load(Ordering::SeqCst) {
                self.repeat.notified().await;
            }
        }
        let result = self.apply(table, route, conditions, mutations, purpose);
        let lost = self.lose_answers.load(Ordering::SeqCst);
        if self.hold_answers.load(Ordering::SeqCst) {
            self.answers_held.fetch_add(1, Ordering::SeqCst);
            self.answer.notified().await;
        }
        if lost {
            return Err(BackendError::Unavailable("the answer was lost".into()).into());
        }
        result
    }

    async fn get(&self, table: TableId, route: &[u8], keys: Vec<RowKey>) -> Result<Vec<Option<Bytes>>, BackendError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        assert!(keys.iter().all(|key| key.key.starts_with(route)), "a get is within its route");
        self.with(table, |rows| keys.iter().map(|key| rows.get(&place(key)).cloned()).collect())
    }

    async fn scan(&self, table: TableId, range: ScanRange, limit: ScanLimit) -> Result<Page, BackendError> {
        if self.hold_scans.load(Ordering::SeqCst) {
            self.scans_held.fetch_add(1, Ordering::SeqCst);
            self.release.notified().await;
        }
        let page = self.with(table, |rows| page(rows, range, limit))?;
        self.rows_scanned.fetch_add(page.rows.len(), Ordering::SeqCst);
        Ok(page)
    }
}

#[async_trait]
impl Blobs for Memory {
    async fn new_id(&self) -> Result<BlobId, BackendError> {
        Ok(BlobId(crate::row::unique_id()))
    }

    async fn put_stripe(&self, blob: BlobId, stripe: u32, data: Bytes) -> Result<(), BackendError> {
        self.up()?;
        if self.hold_stripes.load(Ordering::SeqCst) {
            self.stripes_held.fetch_add(1, Ordering::SeqCst);
            self.stripe.notified().await;
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(BackendError::Full);
        }
        self.blobs.lock().insert((blob, stripe), Bytes::copy_from_slice(&data));
        Ok(())
    }

    async fn put_range(&self, blob: BlobId, stripe: u32, offset: u32, data: Bytes) -> Result<(), BackendError> {
        self.up()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(BackendError::Full);
        }
        let mut blobs = self.blobs.lock();
        let mut whole = blobs.get(&(blob, stripe)).map_or(Vec::new(), |whole| whole.to_vec());
        let end = offset as usize + data.len();
        whole.resize(whole.len().max(end), 0);
        whole[offset as usize..end].copy_from_slice(&data);
        blobs.insert((blob, stripe), whole.into());
        Ok(())
    }

    async fn get(&self, blob: BlobId, stripe: u32, offset: u32, length: u32) -> Result<Bytes, BackendError> {
        self.up()?;
        let blobs = self.blobs.lock();
        let missing = BackendError::NoStripe { blob, stripe };
        let Some(data) = blobs.get(&(blob, stripe)) else { return Err(missing) };
        let (start, end) = (offset as usize, offset as usize + length as usize);
        if end > data.len() {
            return Err(missing);
        }
        Ok(data.slice(start..end))
    }

    async fn delete(&self, blob: BlobId, stripes: u32) -> Result<(), BackendError> {
        self.up()?;
        let mut blobs = self.blobs.lock();
        for stripe in 0..stripes {
            blobs.remove(&(blob, stripe));
        }
        Ok(())
    }

    async fn is_short_of_room(&self) -> Result<bool, BackendError> {
        self.up()?;
        Ok(self.full.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl Keys for Memory {
    async fn secret_for(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
        self.up()?;
        Ok(self.keys.lock().get(access_key).cloned())
    }
}
