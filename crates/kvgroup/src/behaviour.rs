//! What a caller may rely on, and what an operation costs, over objects in memory.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use crate::testing::MemoryObjects;
use crate::{
    Affinity, BatchError, Condition, Config, Created, DropError, InvalidRequest, KvError, Mutation, PageLimit, Require,
    RowKey, Table, TableId, Tables,
};

fn small() -> Config {
    Config { row_overhead: 100, weight_split: 2000, weight_max: 8000, split_in_background: false, ..Config::default() }
}

fn id() -> TableId {
    TableId::new("t").unwrap()
}

async fn table(objects: &MemoryObjects, config: Config) -> (Tables<MemoryObjects>, Table<MemoryObjects>) {
    let tables = Tables::new(objects.clone(), config);
    assert_eq!(tables.create(&id(), Affinity::S3).await.unwrap(), Created::New);
    let table = tables.table(id(), Affinity::S3);
    (tables, table)
}

fn key(number: u32) -> Vec<u8> {
    format!("key{number:06}\0\u{1}").into_bytes()
}

fn put(number: u32, value: &'static str) -> Mutation {
    Mutation::Put { row: RowKey::new(1, key(number)), value: Bytes::from_static(value.as_bytes()) }
}

async fn all(table: &Table<MemoryObjects>, limit: PageLimit) -> Vec<Vec<u8>> {
    let (mut keys, mut start) = (Vec::new(), Vec::new());
    loop {
        let page = table.scan(1, &start, None, limit).await.unwrap();
        keys.extend(page.rows.into_iter().map(|(key, _)| key));
        match page.next {
            Some(next) => start = next,
            None => return keys,
        }
    }
}

#[tokio::test]
async fn a_batch_a_get_and_a_page_are_one_op_each() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, Config::default()).await;
    table.batch(&key(1), &[], &[put(1, "a")]).await.unwrap();
    let count = || objects.pool.lock().ops_count();
    let before = count();
    let absent = Condition { row: RowKey::new(2, key(1)), require: Require::Absent };
    let many = [put(1, "b"), Mutation::Add { row: RowKey::new(3, key(1)), delta: 5 }];
    assert_eq!(table.batch(&key(1), &[absent], &many).await.unwrap().counters, [5]);
    assert_eq!(count() - before, 1);
    assert_eq!(table.get(&RowKey::new(1, key(1))).await.unwrap().as_deref(), Some(&b"b"[..]));
    assert_eq!(count() - before, 2);
    let page = table.scan(1, b"", None, PageLimit { rows: 10, bytes: 1000 }).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (1, None));
    assert_eq!(count() - before, 3);
}

#[tokio::test]
async fn a_growing_table_splits_into_many_groups_and_lists_in_order() {
    let objects = MemoryObjects::default();
    let (tables, table) = table(&objects, Config { weight_split: 20_000, weight_max: 80_000, ..small() }).await;
    let mut expected = Vec::new();
    for number in 0..3000 {
        let number = number * 7919 % 3000;
        table.batch(&key(number), &[], &[put(number, "value")]).await.unwrap();
        expected.push(key(number));
    }
    expected.sort();
    assert_eq!(all(&table, PageLimit { rows: 100, bytes: 1 << 20 }).await, expected);
    let groups = objects.pool.lock().objects.len() - 1;
    // A group has 85 to 170 rows of 117 bytes.
    assert!((17..=40).contains(&groups), "{groups} groups");
    // Another process, with room for two groups in its cache, sees the same.
    let other = Tables::new(objects.clone(), Config { cached_groups: 2, ..small() }).table(id(), Affinity::S3);
    assert_eq!(all(&other, PageLimit { rows: 7, bytes: 300 }).await, expected);
    assert_eq!(tables.drop_if_empty(&id(), &[1]).await, Err(DropError::NotEmpty { space: 1 }));
}

#[tokio::test]
async fn splits_in_the_background_end_in_the_same_table() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, Config { split_in_background: true, ..small() }).await;
    for number in 0..300 {
        table.batch(&key(number), &[], &[put(number, "value")]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(all(&table, PageLimit { rows: 1000, bytes: 1 << 20 }).await.len(), 300);
    assert!(objects.pool.lock().objects.len() > 10);
}

#[tokio::test]
async fn overwriting_blindly_corrects_the_estimate_and_splits_nothing() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, small()).await;
    for round in 0..200 {
        table.batch(&key(round % 3), &[], &[put(round % 3, "value")]).await.unwrap();
    }
    assert_eq!(objects.pool.lock().objects.len(), 2);
    // One op a batch, and a few for each of the dozen counts.
    assert!(objects.pool.lock().ops_count() < 200 + 120, "{} ops", objects.pool.lock().ops_count());
}

#[tokio::test]
async fn rows_of_one_route_stay_together_and_fill_their_group_at_last() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, small()).await;
    let part = |number: u32| {
        let row = RowKey::new(2, [key(1), number.to_be_bytes().to_vec()].concat());
        Mutation::Put { row, value: Bytes::from_static(b"part") }
    };
    table.batch(&key(0), &[], &[put(0, "value")]).await.unwrap();
    let mut number = 0;
    let error = loop {
        match table.batch(&key(1), &[], &[part(number), put(1, "value")]).await {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, BatchError::Kv(KvError::GroupFull));
    assert!((60..80).contains(&number), "{number} parts");
    // What makes room is taken, with what must be noted of it; the count that finds it out is the next batch's.
    let note =
        |text: &'static str| Mutation::Put { row: RowKey::new(9, key(1)), value: Bytes::from_static(text.as_bytes()) };
    let row = RowKey::new(1, key(1));
    let seen = Condition { row: row.clone(), require: Require::Equals(Bytes::from_static(b"value")) };
    table.batch(&key(1), &[seen], &[Mutation::Delete { row }, note("garbage")]).await.unwrap();
    let (start, end) = (key(1), crate::key::prefix_end(&key(1)).unwrap());
    table.batch(&key(1), &[], &[Mutation::DeleteRange { space: 2, start, end }, note("parts")]).await.unwrap();
    table.batch(&key(1), &[], &[part(0)]).await.unwrap();
}

#[tokio::test]
async fn a_full_cluster_takes_what_is_to_free_space_and_nothing_that_replaces() {
    let objects = MemoryObjects::default();
    let (tables, table) = table(&objects, small()).await;
    for number in 0..40 {
        table.batch(&key(number), &[], &[put(number, "value")]).await.unwrap();
    }
    objects.pool.lock().full = true;
    let full = Err(BatchError::Kv(KvError::ClusterFull));
    let delete = |number: u32| Mutation::Delete { row: RowKey::new(1, key(number)) };
    let note = |number: u32| Mutation::Put { row: RowKey::new(9, key(number)), value: Bytes::from_static(b"garbage") };
    for number in 0..40 {
        assert_eq!(table.batch(&key(number), &[], &[put(number, "other")]).await, full);
        assert_eq!(table.batch(&key(number), &[], &[delete(number), put(number, "other")]).await, full);
        assert_eq!(table.batch_freeing(&key(number), &[], &[note(number)]).await, full, "it deletes nothing");
        table.batch_freeing(&key(number), &[], &[delete(number), note(number)]).await.unwrap();
        assert_eq!(table.get(&RowKey::new(1, key(number))).await.unwrap(), None);
        table.batch_freeing(&key(number), &[], &[Mutation::Delete { row: RowKey::new(9, key(number)) }]).await.unwrap();
    }
    tables.drop_if_empty(&id(), &[1, 9]).await.unwrap();
    assert_eq!(table.get(&RowKey::new(1, key(1))).await, Err(KvError::TableGone), "it is dropped, full as it is");
    tables.purge(&id()).await.unwrap();
    assert!(objects.pool.lock().objects.is_empty());
}

/// A group that stands still for a split would otherwise do so until there is room, which its rows do not give.
#[tokio::test]
async fn a_split_that_was_under_way_when_the_cluster_got_full_keeps_nothing_from_being_deleted() {
    let mut cut_short = 0;
    for vectors in 0..200 {
        let objects = MemoryObjects::default();
        let (tables, table) = table(&objects, small()).await;
        let from = objects.pool.lock().ops_count();
        objects.pool.lock().full_after = Some(from + vectors);
        let mut written = Vec::new();
        for number in 0..40 {
            match table.batch(&key(number), &[], &[put(number, "value")]).await {
                Ok(_) => written.push(number),
                Err(error) => assert_eq!(error, BatchError::Kv(KvError::ClusterFull)),
            }
        }
        cut_short += usize::from(written.len() < 40);
        // Another process, which knows nothing of what was under way.
        let tables_anew = Tables::new(objects.clone(), small());
        let anew = tables_anew.table(id(), Affinity::S3);
        for number in &written {
            let delete = Mutation::Delete { row: RowKey::new(1, key(*number)) };
            let seen = Condition { row: RowKey::new(1, key(*number)), require: Require::Present };
            anew.batch_freeing(&key(*number), &[seen], &[delete]).await.unwrap();
        }
        tables.drop_if_empty(&id(), &[1]).await.unwrap();
        tables.purge(&id()).await.unwrap();
    }
    assert!(cut_short > 40, "{cut_short}");
}

/// Manifests of large objects are rows of hundreds of KiB: two of them are more than a full cluster takes at once.
#[tokio::test]
async fn a_split_of_large_rows_ends_although_the_cluster_is_full() {
    let config = Config { weight_split: 4 << 20, weight_max: 8 << 20, split_in_background: false, ..Config::default() };
    let mut cut_short = 0;
    for vectors in 0..40 {
        let objects = MemoryObjects::default();
        let (_, table) = table(&objects, config.clone()).await;
        let from = objects.pool.lock().ops_count();
        objects.pool.lock().full_after = Some(from + vectors);
        let mut written = Vec::new();
        for number in 0..12 {
            let value = Bytes::from(vec![7; 700 << 10]);
            let put = Mutation::Put { row: RowKey::new(1, key(number)), value };
            match table.batch(&key(number), &[], &[put]).await {
                Ok(_) => written.push(number),
                Err(error) => assert_eq!(error, BatchError::Kv(KvError::ClusterFull)),
            }
        }
        cut_short += usize::from(written.len() < 12);
        let anew = Tables::new(objects.clone(), config.clone()).table(id(), Affinity::S3);
        for number in &written {
            let delete = Mutation::Delete { row: RowKey::new(1, key(*number)) };
            anew.batch_freeing(&key(*number), &[], &[delete]).await.unwrap();
        }
        assert!(all(&anew, PageLimit { rows: 100, bytes: 1 << 20 }).await.is_empty());
    }
    assert!(cut_short > 15, "{cut_short}");
}

#[tokio::test]
async fn a_failed_condition_names_itself_and_changes_nothing() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, small()).await;
    table.batch(&key(1), &[], &[put(1, "old")]).await.unwrap();
    let row = RowKey::new(1, key(1));
    let present = Condition { row: row.clone(), require: Require::Present };
    let equals = Condition { row: row.clone(), require: Require::Equals(Bytes::from_static(b"other")) };
    let outcome = table.batch(&key(1), &[present, equals], &[put(1, "new")]).await;
    let current = Some(Bytes::from_static(b"old"));
    assert_eq!(outcome, Err(BatchError::Condition { index: 1, current: current.clone() }));
    assert_eq!(table.get(&row).await.unwrap(), current);
}

#[tokio::test]
async fn counters_count() {
    let objects = MemoryObjects::default();
    let (_, table) = table(&objects, small()).await;
    let row = RowKey::new(3, key(1));
    assert_eq!(table.add(row.clone(), 3).await.unwrap(), 3);
    assert_eq!(table.add(row.clone(), -1).await.unwrap(), 2);
    assert_eq!(table.max(row.clone(), 9).await.unwrap(), 9);
    assert_eq!(table.max(row.clone(), 4).await.unwrap(), 9);
    let overflow = table.add(row, i64::MAX).await;
    assert_eq!(overflow, Err(BatchError::Kv(KvError::Invalid(InvalidRequest::Counter))));
}

#[tokio::test]
async fn a_dropped_table_is_gone_for_all_and_leaves_what_it_may() {
    let objects = MemoryObjects::default();
    let (tables, table) = table(&objects, small()).await;
    let other = Tables::new(objects.clone(), small()).table(id(), Affinity::S3);
    for number in 0..40 {
        let garbage = Mutation::Put { row: RowKey::new(9, key(number)), value: Bytes::from_static(b"gc") };
        table.batch(&key(number), &[], &[put(number, "value"), garbage]).await.unwrap();
        other.get(&RowKey::new(1, key(number))).await.unwrap().unwrap();
    }
    for number in 0..40 {
        let row = RowKey::new(1, key(number));
        table.batch(&key(number), &[], &[Mutation::Delete { row }]).await.unwrap();
    }
    assert_eq!(tables.purge(&id()).await, Err(KvError::Contended { rounds: 0 }));
    tables.drop_if_empty(&id(), &[1, 2]).await.unwrap();
    tables.drop_if_empty(&id(), &[1, 2]).await.unwrap();
    for table in [&table, &other] {
        let gone = Err(BatchError::Kv(KvError::TableGone));
        assert_eq!(table.batch(&key(7), &[], &[put(7, "late")]).await, gone);
        assert_eq!(table.get(&RowKey::new(1, key(7))).await, Err(KvError::TableGone));
    }
    assert_eq!(tables.create(&id(), Affinity::S3).await.unwrap(), Created::AlreadyThere);
    let (mut left, mut start) = (0, Vec::new());
    loop {
        let page = tables.dropped_rows(&id(), 9, &start, PageLimit { rows: 7, bytes: 1000 }).await.unwrap();
        left += page.rows.len();
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    assert_eq!(left, 40);
    tables.purge(&id()).await.unwrap();
    tables.purge(&id()).await.unwrap();
    assert!(objects.pool.lock().objects.is_empty());
    assert_eq!(tables.drop_if_empty(&id(), &[1]).await, Err(DropError::Kv(KvError::TableMissing)));
    for table in [&table, &other] {
        assert_eq!(table.get(&RowKey::new(1, key(7))).await, Err(KvError::TableMissing), "nobody can tell why");
    }
}

#[tokio::test]
async fn a_table_keeps_its_affinity() {
    let objects = MemoryObjects::default();
    let (tables, _) = table(&objects, small()).await;
    let wrong = tables.table(id(), Affinity::WholeKey);
    let expected = KvError::AffinityMismatch { expected: Affinity::WholeKey, actual: Affinity::S3 };
    assert_eq!(wrong.get(&RowKey::new(1, "k")).await, Err(expected));
}

#[tokio::test]
async fn damaged_objects_are_errors_not_panics() {
    let objects = MemoryObjects::default();
    let (tables, table) = table(&objects, small()).await;
    table.batch(&key(1), &[], &[put(1, "a")]).await.unwrap();
    let names: Vec<_> = objects.pool.lock().objects.keys().cloned().collect();
    let whole = objects.pool.lock().objects.clone();
    for name in names {
        for garbage in [&b""[..], b"\xff\xff", b"\xa1\x00\x18\x63", b"\xa0"] {
            let mut objects_now = whole.clone();
            let object = objects_now.get_mut(&name).unwrap();
            object.attrs.values_mut().for_each(|value| *value = Bytes::copy_from_slice(garbage));
            object.rows.values_mut().for_each(|value| *value = Bytes::copy_from_slice(garbage));
            objects.pool.lock().objects = objects_now;
            let fresh = Tables::new(objects.clone(), small()).table(id(), Affinity::S3);
            assert!(fresh.get(&RowKey::new(1, key(1))).await.is_err());
            assert!(fresh.batch(&key(1), &[], &[put(1, "b")]).await.is_err());
            assert!(tables.drop_if_empty(&id(), &[1]).await.is_err());
        }
    }
}
