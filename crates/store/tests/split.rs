//! Splitting a collection.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::*;
use holdfast_store::{CollectionId, ReadError, SubmitError, Transaction, TxOp};
use rand::SeedableRng;
use rand::rngs::SmallRng;

fn submit(engine: &MemEngine, ops: Vec<TxOp>) {
    engine.submit(Transaction { ops }).unwrap();
}

fn name(number: u32) -> String {
    format!("object-{number:04}")
}

fn fill(engine: &MemEngine, c: CollectionId, count: u32) -> BTreeMap<u32, Bytes> {
    let mut rng = SmallRng::seed_from_u64(u64::from(count));
    let mut contents = BTreeMap::new();
    for number in 0..count {
        let (o, content) = (object(&name(number)), data(&mut rng, 1500));
        let rows = vec![(b"row".to_vec(), Bytes::from(name(number)))];
        submit(
            engine,
            vec![TxOp::Write { c, o: o.clone(), offset: 0, data: content.clone() }, TxOp::PutRows { c, o, rows }],
        );
        contents.insert(number, content);
        if number % 16 == 0 {
            engine.commit().unwrap();
        }
    }
    engine.commit().unwrap();
    contents
}

#[track_caller]
fn check(engine: &MemEngine, c: CollectionId, contents: &BTreeMap<u32, Bytes>, numbers: std::ops::Range<u32>) {
    let expected: Vec<_> = numbers.clone().map(|number| object(&name(number))).collect();
    assert_eq!(engine.list_objects(c, None, usize::MAX).unwrap(), expected);
    for number in numbers {
        let o = object(&name(number));
        assert_eq!(engine.read(c, &o, 0, u64::MAX).unwrap(), contents[&number], "{}", name(number));
        assert_eq!(engine.rows_get(c, &o, &[b"row"]).unwrap(), [Some(Bytes::from(name(number)))]);
    }
}

#[test]
fn what_a_split_copies_counts_as_pending_like_what_is_written() {
    let (_device, _index, engine) = new_engine(&tiny(4096));
    let (low, high) = (collection(0), collection(1));
    submit(&engine, vec![TxOp::CreateCollection { c: low }]);
    for row in 0..40u8 {
        submit(&engine, vec![TxOp::PutMeta { c: low, key: vec![row], value: Bytes::from(vec![row; 1000]) }]);
        engine.commit().unwrap();
    }
    assert_eq!(engine.pending_bytes(), 0);
    submit(&engine, vec![TxOp::SplitCollection { c: low, into: high, at: b"m".to_vec() }]);
    assert!(engine.pending_bytes() > 40 * 1000, "a writer waits for it: {}", engine.pending_bytes());
    engine.commit().unwrap();
    assert_eq!(engine.pending_bytes(), 0);
}

#[test]
fn a_split_moves_no_object_and_both_sides_are_on_their_own_from_then_on() {
    let options = tiny(512);
    let (device, index, engine) = new_engine(&options);
    let (low, high, higher) = (collection(0), collection(1), collection(2));
    submit(&engine, vec![TxOp::CreateCollection { c: low }]);
    submit(&engine, vec![TxOp::PutMeta { c: low, key: b"m".to_vec(), value: Bytes::from_static(b"both") }]);
    let contents = fill(&engine, low, 300);
    let (before, live) = (engine.submitted_position(), engine.usage().live_bytes);
    let split = |c, into, number| TxOp::SplitCollection { c, into, at: name(number).into_bytes() };
    submit(&engine, vec![split(low, high, 100), split(high, higher, 200)]);
    assert!(engine.pending_bytes() < 512, "the record does not depend on how much is split");
    assert_eq!((engine.submitted_position(), engine.usage().live_bytes), (before.next(), live));
    engine.commit().unwrap();
    for c in [low, high, higher] {
        assert_eq!(engine.meta_get(c, b"m").unwrap(), Some(Bytes::from_static(b"both")));
    }
    let foreign = engine.submit(Transaction { ops: vec![TxOp::Touch { c: low, o: object(&name(150)) }] });
    assert!(matches!(foreign, Err(SubmitError::ForeignObject { .. })), "{foreign:?}");
    let elsewhere = engine.read(low, &object(&name(150)), 0, 1);
    assert!(matches!(elsewhere, Err(ReadError::NoSuchObject { .. })), "{elsewhere:?}");
    assert_eq!(engine.list_sizes(high, Some(&object(&name(198))), 9).unwrap(), [(object(&name(199)), 1500)]);

    // The middle goes, the others stay, also over a restart and with all that is live moved.
    submit(&engine, vec![TxOp::RemoveCollection { c: high }]);
    engine.commit().unwrap();
    assert!(engine.usage().live_bytes < live * 3 / 4);
    engine.close().unwrap();
    let engine = reopen(&device, &index, &options);
    check(&engine, low, &contents, 0..100);
    check(&engine, higher, &contents, 200..300);
    // Made anew while another collection still has objects where its own were: it is empty, and takes any object.
    submit(&engine, vec![TxOp::RemoveCollection { c: low }, TxOp::CreateCollection { c: low }]);
    assert_eq!(engine.list_objects(low, None, 9).unwrap(), []);
    let anew = fill(&engine, low, 250);
    check(&engine, low, &anew, 0..250);
    check(&engine, higher, &contents, 200..300);
    submit(&engine, vec![TxOp::RemoveCollection { c: higher }]);
    engine.commit().unwrap();
    check(&engine, low, &anew, 0..250);
}

#[test]
fn the_cleaner_finds_what_was_split_off_by_the_records_of_before() {
    let options = tiny(512);
    let (_, _, engine) = new_engine(&options);
    let (low, high) = (collection(0), collection(1));
    submit(&engine, vec![TxOp::CreateCollection { c: low }]);
    let contents = fill(&engine, low, 240);
    submit(&engine, vec![TxOp::SplitCollection { c: low, into: high, at: name(120).into_bytes() }]);
    // One in four stays: every segment has some that is live, of the one and of the other.
    let kept: Vec<u32> = (0..240).filter(|number| number % 4 == 0).collect();
    for number in (0..240).filter(|number| number % 4 != 0) {
        let c = if number < 120 { low } else { high };
        submit(&engine, vec![TxOp::Remove { c, o: object(&name(number)) }]);
    }
    engine.commit().unwrap();
    let used = engine.usage().used_bytes;
    let mut freed = 0;
    for _ in 0..100 {
        freed += engine.clean_step(u64::MAX).unwrap().freed_segments;
    }
    assert!(freed > 2 && engine.usage().used_bytes < used, "{freed} segments");
    for number in kept {
        let c = if number < 120 { low } else { high };
        assert_eq!(engine.read(c, &object(&name(number)), 0, u64::MAX).unwrap(), contents[&number]);
    }
}
