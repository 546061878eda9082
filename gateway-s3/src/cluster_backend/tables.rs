//! Rows over `kvgroup`: one S3 key is one route, so every batch is one op on one object.

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_kvgroup as kv;
use holdfast_kvgroup::{Affinity, InvalidRequest, KEY_BYTES_MAX, KvError, PageLimit};

use super::{failed, unavailable};
use crate::backend::{
    BackendError, BatchError, Condition, DropError, Mutation, Page, Purpose, RowKey, ScanLimit, ScanRange, TableId,
    Tables,
};
use crate::row::after_prefix;

/// Tables of the index pool.
pub(super) struct KvTables<O> {
    tables: kv::Tables<O>,
}

impl<O: kv::Objects> KvTables<O> {
    pub fn new(objects: O, config: kv::Config) -> KvTables<O> {
        KvTables { tables: kv::Tables::new(objects, config) }
    }

    fn table(&self, table: TableId) -> Result<kv::Table<O>, BackendError> {
        Ok(self.tables.table(kv_id(table)?, Affinity::S3))
    }
}

fn kv_id(table: TableId) -> Result<kv::TableId, BackendError> {
    kv::TableId::new(format!("s3.{table}")).map_err(failed)
}

fn kv_row(row: RowKey) -> kv::RowKey {
    kv::RowKey { space: row.space, key: row.key }
}

fn kv_condition(condition: Condition) -> kv::Condition {
    let (row, require) = match condition {
        Condition::Absent(row) => (row, kv::Require::Absent),
        Condition::Present(row) => (row, kv::Require::Present),
        Condition::Equals(row, value) => (row, kv::Require::Equals(value)),
    };
    kv::Condition { row: kv_row(row), require }
}

fn kv_mutation(mutation: Mutation) -> kv::Mutation {
    match mutation {
        Mutation::Put(row, value) => kv::Mutation::Put { row: kv_row(row), value },
        Mutation::Delete(row) => kv::Mutation::Delete { row: kv_row(row) },
        Mutation::DeleteRange { space, start, end } => kv::Mutation::DeleteRange { space, start, end },
    }
}

fn backend_error(table: TableId, error: KvError) -> BackendError {
    match error {
        KvError::TableGone => BackendError::NoTable(table),
        KvError::TableMissing => BackendError::TableMissing(table),
        KvError::ClusterFull => BackendError::Full,
        KvError::Invalid(InvalidRequest::KeyTooLong { .. }) => BackendError::KeyTooLong,
        KvError::Unanswered | KvError::Contended { .. } | KvError::GroupFull | KvError::Fenced | KvError::PoolGone => {
            unavailable(error)
        }
        KvError::Unreadable { .. }
        | KvError::Corrupt { .. }
        | KvError::UnknownFormat { .. }
        | KvError::AffinityMismatch { .. }
        | KvError::InvalidTableId { .. }
        | KvError::Invalid(_) => failed(error),
    }
}

fn page_limit(limit: ScanLimit) -> PageLimit {
    let clamp = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX).max(1);
    PageLimit { rows: clamp(limit.rows), bytes: clamp(limit.bytes) }
}

/// A range that no key of which is longer than a row's key may be, and that holds every row of `range`, perhaps more.
fn bounded(range: &ScanRange) -> (&[u8], Option<Vec<u8>>) {
    let start = range.start.get(..KEY_BYTES_MAX).unwrap_or(&range.start);
    let end = match &range.end {
        Some(end) => end.get(..KEY_BYTES_MAX).map_or_else(|| Some(end.clone()), after_prefix),
        None => None,
    };
    (start, end)
}

#[async_trait]
impl<O: kv::Objects> Tables for KvTables<O> {
    async fn create_table(&self, table: TableId) -> Result<(), BackendError> {
        let created = self.tables.create(&kv_id(table)?, Affinity::S3).await;
        created.map(drop).map_err(|error| backend_error(table, error))
    }

    async fn drop_table_if_empty(&self, table: TableId, spaces: &[u8]) -> Result<(), DropError> {
        match self.tables.drop_if_empty(&kv_id(table)?, spaces).await {
            Ok(()) => Ok(()),
            Err(kv::DropError::NotEmpty { space }) => Err(DropError::NotEmpty { space }),
            Err(kv::DropError::Kv(error)) => Err(backend_error(table, error).into()),
        }
    }

    async fn dropped_rows(
        &self,
        table: TableId,
        space: u8,
        start: Vec<u8>,
        limit: ScanLimit,
    ) -> Result<Page, BackendError> {
        let page = self.tables.dropped_rows(&kv_id(table)?, space, &start, page_limit(limit)).await;
        page.map(|page| Page { rows: page.rows, next: page.next }).map_err(|error| backend_error(table, error))
    }

    async fn purge_table(&self, table: TableId) -> Result<(), BackendError> {
        self.tables.purge(&kv_id(table)?).await.map_err(|error| backend_error(table, error))
    }

    async fn batch(
        &self,
        table: TableId,
        route: &[u8],
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
        purpose: Purpose,
    ) -> Result<(), BatchError> {
        let conditions: Vec<_> = conditions.into_iter().map(kv_condition).collect();
        let mutations: Vec<_> = mutations.into_iter().map(kv_mutation).collect();
        let table_of = self.table(table)?;
        let applied = match purpose {
            Purpose::Store => table_of.batch(route, &conditions, &mutations).await,
            Purpose::FreeSpace => table_of.batch_freeing(route, &conditions, &mutations).await,
        };
        match applied {
            Ok(_) => Ok(()),
            Err(kv::BatchError::Condition { index, current }) => Err(BatchError::ConditionFailed { index, current }),
            Err(error @ kv::BatchError::OutcomeUnknown) => Err(unavailable(error).into()),
            Err(kv::BatchError::Kv(error)) => Err(backend_error(table, error).into()),
        }
    }

    async fn get(&self, table: TableId, route: &[u8], keys: Vec<RowKey>) -> Result<Vec<Option<Bytes>>, BackendError> {
        let rows: Vec<_> = keys.into_iter().map(kv_row).collect();
        self.table(table)?.get_many(route, &rows).await.map_err(|error| backend_error(table, error))
    }

    async fn scan(&self, table: TableId, range: ScanRange, limit: ScanLimit) -> Result<Page, BackendError> {
        let kv_table = self.table(table)?;
        let (start, end) = bounded(&range);
        let mut start = start.to_vec();
        loop {
            let page = kv_table
                .scan(range.space, &start, end.as_deref(), page_limit(limit))
                .await
                .map_err(|error| backend_error(table, error))?;
            let inside = |key: &[u8]| *key >= *range.start && range.end.as_deref().is_none_or(|end| *key < *end);
            let mut rows = page.rows;
            rows.retain(|(key, _)| inside(key));
            match page.next {
                // A group without rows of the range; the next one may have some.
                Some(next) if rows.is_empty() => start = next,
                next => return Ok(Page { rows, next }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_range_holds_every_row_of_the_range() {
        let range = |start: &[u8], end: Option<&[u8]>| ScanRange {
            space: 1,
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
        };
        let short = range(b"a", Some(b"b"));
        assert_eq!(bounded(&short), (&b"a"[..], Some(b"b".to_vec())));
        let long = [vec![b'a'; KEY_BYTES_MAX], b"tail".to_vec()].concat();
        let both = range(&long, Some(&long));
        let (start, end) = bounded(&both);
        let longest_row = vec![b'a'; KEY_BYTES_MAX];
        assert_eq!(start, longest_row);
        let end = end.expect("an end");
        assert!(longest_row < end && end.len() <= KEY_BYTES_MAX);
        assert_eq!(bounded(&range(b"", Some(&vec![0xff; KEY_BYTES_MAX + 1]))).1, None);
    }
}
