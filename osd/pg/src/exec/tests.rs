//! Tests of executing op vectors.

#![allow(clippy::unwrap_used)]
use holdfast_types::{Epoch, ObjectName, Timestamp};

use super::*;
use crate::api::StoreOp;
use crate::memory::MemoryCollection;

fn key() -> ObjectKey {
    ObjectKey::of(&ObjectName::new("o").unwrap())
}

fn blob(text: &str) -> Blob {
    Blob(Bytes::copy_from_slice(text.as_bytes()))
}

fn row(key: &str, value: &str) -> Row {
    Row { key: key.into(), value: blob(value) }
}

/// Applies a vector to a store as a primary would, and gives its results.
fn apply(store: &mut MemoryCollection, ops: &[ObjectOp]) -> Result<Executed, Stopped> {
    let done = execute(store, &key(), ops, 16 << 20)?;
    let ops: Vec<StoreOp> =
        done.effects.iter().map(|effect| StoreOp::Object { key: key(), effect: effect.clone() }).collect();
    store.apply(&ops);
    Ok(done)
}

fn read_all() -> ObjectOp {
    ObjectOp::Read { offset: 0, length: 1 << 20 }
}

fn scan(start: &str, limit_rows: u32) -> ObjectOp {
    ObjectOp::ScanRows { start: start.into(), end: None, limit_rows, limit_bytes: 1 << 20 }
}

#[test]
fn a_failed_vector_has_no_effects_and_names_the_op() {
    let mut store = MemoryCollection::default();
    let ops = [ObjectOp::Write { offset: 0, data: blob("x") }, ObjectOp::AssertAbsent];
    assert!(matches!(apply(&mut store, &ops), Err(Stopped::Failed { index: 1, error: OpError::Exists })));
    assert!(store.objects.is_empty());
}

#[test]
fn ops_see_the_bytes_that_earlier_ops_of_the_vector_wrote() {
    let mut store = MemoryCollection::default();
    apply(&mut store, &[ObjectOp::WriteFull { data: blob("hello world") }]).unwrap();
    let ops = [
        ObjectOp::Write { offset: 6, data: blob("there") },
        ObjectOp::Zero { offset: 0, length: 2 },
        ObjectOp::Truncate { size: 9 },
        ObjectOp::Append { data: blob("!") },
        read_all(),
        ObjectOp::CompareExtent { offset: 2, data: blob("llo") },
    ];
    let done = apply(&mut store, &ops).unwrap();
    assert_eq!(done.results[4], OpResult::Data(blob("\0\0llo the!")));
    assert_eq!(done.bytes_delta, -1);
    let again = execute(&store, &key(), &[read_all()], 16 << 20).unwrap();
    assert_eq!(again.results[0], OpResult::Data(blob("\0\0llo the!")), "effects do what the vector saw");
}

#[test]
fn scans_merge_the_vector_own_rows_with_stored_ones() {
    let mut store = MemoryCollection::default();
    let rows = ["a", "b", "c", "d", "e"].map(|key| row(key, "old")).to_vec();
    apply(&mut store, &[ObjectOp::PutRows { rows }]).unwrap();
    let ops = [
        ObjectOp::DeleteRows { keys: vec![b"a".to_vec().into()] },
        ObjectOp::DeleteRowRange { start: b"c".to_vec(), end: Some(b"e".to_vec()) },
        ObjectOp::PutRows { rows: vec![row("b", "new"), row("cc", "new")] },
        scan("", 10),
        scan("", 2),
        ObjectOp::AssertRowRangeEmpty { start: b"d".to_vec(), end: Some(b"e".to_vec()) },
    ];
    let done = apply(&mut store, &ops).unwrap();
    let expected = vec![row("b", "new"), row("cc", "new"), row("e", "old")];
    assert_eq!(done.results[3], OpResult::RowPage { rows: expected.clone(), more: false });
    assert_eq!(done.results[4], OpResult::RowPage { rows: expected[..2].to_vec(), more: true });
    let again = execute(&store, &key(), &[scan("", 10)], 16 << 20).unwrap();
    assert_eq!(again.results[0], OpResult::RowPage { rows: expected, more: false });
}

#[test]
fn an_object_removed_and_made_anew_in_one_vector_keeps_nothing() {
    let mut store = MemoryCollection::default();
    let name = b"tag".to_vec();
    let set = ObjectOp::SetAttr { name: name.clone(), value: blob("1") };
    apply(&mut store, &[ObjectOp::WriteFull { data: blob("old") }, set]).unwrap();
    let ops = [
        ObjectOp::Remove,
        ObjectOp::AssertAbsent,
        ObjectOp::Write { offset: 1, data: blob("x") },
        ObjectOp::GetAttr { name },
        read_all(),
    ];
    let done = apply(&mut store, &ops).unwrap();
    assert_eq!(done.results[3], OpResult::Attr(None));
    assert_eq!(done.results[4], OpResult::Data(blob("\0x")));
    assert_eq!((done.objects_delta, done.bytes_delta), (0, -1));
}

#[test]
fn counters_add_and_raise_and_refuse_to_overflow() {
    let mut store = MemoryCollection::default();
    let counter = b"n".to_vec();
    let add = |delta| ObjectOp::AddRow { key: counter.clone(), delta };
    let ops = [add(5), add(-2), ObjectOp::MaxRow { key: counter.clone(), value: 10 }];
    let done = apply(&mut store, &ops).unwrap();
    assert_eq!(done.results, [OpResult::Counter(5), OpResult::Counter(3), OpResult::Counter(10)]);
    assert!(matches!(apply(&mut store, &[add(i64::MAX)]), Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })));
}

#[test]
fn reads_of_a_missing_object_fail_and_asserts_of_absence_hold() {
    let store = MemoryCollection::default();
    for op in [ObjectOp::Stat, read_all(), scan("", 1), ObjectOp::GetAttr { name: b"a".to_vec() }, ObjectOp::Remove] {
        assert!(matches!(
            execute(&store, &key(), &[op], 16 << 20),
            Err(Stopped::Failed { index: 0, error: OpError::NotFound })
        ));
    }
    let holds = [
        ObjectOp::AssertAbsent,
        ObjectOp::AssertVersion(LogVersion::ZERO),
        ObjectOp::AssertRow { key: b"r".to_vec(), condition: RowCondition::Absent },
        ObjectOp::AssertAttr { name: b"a".to_vec(), expected: None },
        ObjectOp::CompareExtent { offset: 0, data: blob("\0\0") },
    ];
    assert!(execute(&store, &key(), &holds, 16 << 20).unwrap().effects.is_empty());
}

#[test]
fn reserved_attributes_and_oversized_arguments_are_refused() {
    let store = MemoryCollection::default();
    let bad = [
        ObjectOp::SetAttr { name: VERSION_ATTR.to_vec(), value: blob("x") },
        ObjectOp::AssertAttr { name: Vec::new(), expected: None },
        ObjectOp::Write { offset: OBJECT_BYTES_MAX, data: blob("x") },
        ObjectOp::Write { offset: u64::MAX, data: blob("x") },
        ObjectOp::Truncate { size: OBJECT_BYTES_MAX + 1 },
        ObjectOp::PutRows { rows: vec![Row { key: vec![0; ROW_KEY_BYTES_MAX + 1], value: blob("") }] },
    ];
    for op in bad {
        assert!(matches!(
            execute(&store, &key(), &[op], 16 << 20),
            Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })
        ));
    }
}

#[test]
fn a_request_that_writes_cannot_answer_more_than_the_log_may_keep() {
    let mut store = MemoryCollection::default();
    let data = Blob(Bytes::from(vec![7; WRITE_RESULT_BYTES_MAX + 1]));
    apply(&mut store, &[ObjectOp::WriteFull { data }]).unwrap();
    assert!(execute(&store, &key(), &[read_all()], 16 << 20).is_ok());
    let ops = [read_all(), ObjectOp::Append { data: blob("x") }];
    assert!(matches!(
        execute(&store, &key(), &ops, 16 << 20),
        Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })
    ));
}

#[test]
fn a_request_that_could_write_cannot_answer_more_although_it_changes_nothing() {
    let mut store = MemoryCollection::default();
    let data = Blob(Bytes::from(vec![7; WRITE_RESULT_BYTES_MAX + 1]));
    apply(&mut store, &[ObjectOp::WriteFull { data }]).unwrap();
    let ops = [ObjectOp::Create { exclusive: false }, read_all()];
    assert!(matches!(
        execute(&store, &key(), &ops, 16 << 20),
        Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })
    ));
}

/// Counts the rows that are fetched by their keys.
struct Counting {
    store: MemoryCollection,
    fetched: std::cell::Cell<usize>,
}

impl LocalObjects for Counting {
    fn stat(&self, key: &ObjectKey) -> Result<Option<u64>, ReadError> {
        self.store.stat(key)
    }
    fn read(&self, key: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError> {
        self.store.read(key, offset, length)
    }
    fn attr(&self, key: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.store.attr(key, name)
    }
    fn attrs(&self, key: &ObjectKey) -> Result<Vec<Row>, ReadError> {
        self.fetched.set(self.fetched.get() + 1);
        self.store.attrs(key)
    }
    fn rows_get(&self, key: &ObjectKey, rows: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError> {
        self.fetched.set(self.fetched.get() + rows.len());
        self.store.rows_get(key, rows)
    }
    fn rows_scan(
        &self,
        key: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<crate::api::RowsPage, ReadError> {
        self.store.rows_scan(key, start, end, limit_rows, limit_bytes)
    }
    fn list_objects(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<ObjectKey>, ReadError> {
        self.store.list_objects(after, limit)
    }
    fn list_sizes(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(ObjectKey, u64)>, ReadError> {
        self.store.list_sizes(after, limit)
    }
    fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.store.meta_get(key)
    }
    fn meta_scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        self.store.meta_scan(start, end, limit)
    }
    fn has_room(&self, bytes: u64) -> bool {
        self.store.has_room(bytes)
    }
    fn has_room_to_recover(&self, bytes: u64) -> bool {
        self.store.has_room_to_recover(bytes)
    }
    fn peer_has_room(&self, osd: holdfast_types::OsdId) -> bool {
        self.store.peer_has_room(osd)
    }
    fn lease_from(&self, osd: holdfast_types::OsdId, run: holdfast_types::Incarnation, epoch: Epoch) -> Timestamp {
        self.store.lease_from(osd, run, epoch)
    }
    fn leases_granted(&self) -> Vec<crate::Granted> {
        self.store.leases_granted()
    }
    fn leases_forgotten_until(&self) -> Timestamp {
        self.store.leases_forgotten_until()
    }
}

#[test]
fn rows_that_no_answer_could_carry_are_not_all_fetched() {
    let mut store = MemoryCollection::default();
    let value = Blob(Bytes::from(vec![1; ROW_VALUE_BYTES_MAX]));
    apply(&mut store, &[ObjectOp::PutRows { rows: vec![Row { key: b"large".to_vec(), value }] }]).unwrap();
    apply(&mut store, &[ObjectOp::PutRows { rows: vec![row("small", "x")] }]).unwrap();
    let store = Counting { store, fetched: std::cell::Cell::default() };
    let get = |key: &str, count| ObjectOp::GetRows { keys: vec![key.as_bytes().to_vec().into(); count] };
    let hide = ObjectOp::DeleteRows { keys: vec![b"other".to_vec().into()] };
    for ops in [vec![get("large", 8_000)], vec![hide, get("large", 8_000)], vec![get("small", GET_ROWS_MAX + 1)]] {
        store.fetched.set(0);
        let outcome = execute(&store, &key(), &ops, 16 << 20);
        assert!(matches!(outcome, Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })), "{outcome:?}");
        assert!(store.fetched.get() <= 24, "{}", store.fetched.get());
    }
    assert!(execute(&store, &key(), &[get("small", GET_ROWS_MAX)], 16 << 20).is_ok());
}

#[test]
fn attributes_are_counted_once_and_exactly() {
    let mut store = MemoryCollection::default();
    let set = |n: u8, bytes: usize| ObjectOp::SetAttr { name: vec![n], value: Blob(Bytes::from(vec![1; bytes])) };
    apply(&mut store, &(1..=10).map(|n| set(n, 60_000)).collect::<Vec<_>>()).unwrap();
    let counting = Counting { store: store.clone(), fetched: std::cell::Cell::default() };
    let mut many: Vec<ObjectOp> = (1..=17).map(|n| set(n, 60_000)).collect();
    many.extend((1..=17).map(|n| set(n, 61_600)));
    many.extend([set(1, 0), ObjectOp::RemoveAttr { name: vec![2] }, set(18, 60_000), set(19, 60_000)]);
    assert!(execute(&counting, &key(), &many, 16 << 20).is_ok());
    assert_eq!(counting.fetched.get(), 1);
    for bad in [vec![set(20, 60_000)], vec![ObjectOp::RemoveAttr { name: vec![99] }, set(20, 60_000)]] {
        let ops: Vec<ObjectOp> = many.iter().cloned().chain(bad).collect();
        assert!(matches!(
            execute(&store, &key(), &ops, 16 << 20),
            Err(Stopped::Failed { error: OpError::Invalid { .. }, .. })
        ));
    }
    let anew = [ObjectOp::Remove, ObjectOp::Create { exclusive: true }];
    let ops: Vec<ObjectOp> = many.iter().cloned().chain(anew).chain([set(20, 60_000)]).collect();
    assert!(execute(&store, &key(), &ops, 16 << 20).is_ok());
}

#[test]
fn versions_survive_their_attribute() {
    let version = LogVersion { epoch: Epoch(3), counter: u64::MAX };
    assert_eq!(parse_version(Some(&version_value(version))), version);
    assert_eq!(parse_version(Some(b"short")), LogVersion::ZERO);
    assert_eq!(parse_version(None), LogVersion::ZERO);
}
