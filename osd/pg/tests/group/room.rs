//! Copies on OSDs that have no room.

use holdfast_wire::{Blob, ClientOutcome, ObjectOp, OpResult, Row};

use crate::group::{Group, name, osd, short_log};
use holdfast_pg::ObjectKey;

fn rows(keys: &[&str]) -> ObjectOp {
    let row = |key: &&str| Row { key: key.as_bytes().to_vec(), value: Blob::default() };
    ObjectOp::PutRows { rows: keys.iter().map(row).collect() }
}

fn delete(key: &str) -> ObjectOp {
    ObjectOp::DeleteRows { keys: vec![key.as_bytes().to_vec().into()] }
}

fn is_done(outcome: &ClientOutcome) -> bool {
    matches!(outcome, ClientOutcome::Done { .. })
}

impl Group {
    /// An OSD is full, and everybody knows.
    fn fill(&mut self, id: usize) {
        self.nodes[id].store.full = true;
        for node in &mut self.nodes {
            node.store.full_peers.insert(osd(id));
        }
    }

    fn keys_of_rows(&self, id: usize, object: &str) -> Vec<&[u8]> {
        let object = &self.nodes[id].store.objects[&ObjectKey::of(&name(object))];
        object.rows.keys().map(Vec::as_slice).collect()
    }

    /// An object of bytes that the third copy lacks, noticed by a write that is answered.
    fn lose_third_copy(&mut self, object: &str) {
        self.spoil(2, object);
        let outcome = self.operate(object, vec![ObjectOp::RemoveAttr { name: b"none".to_vec() }]);
        assert!(is_done(&outcome), "{outcome:?}");
    }
}

#[test]
fn rows_can_be_deleted_although_a_full_member_lacks_them() {
    let mut group = Group::of(3, 3, short_log());
    group.operate("index", vec![rows(&["a", "b", "c", "d"])]);
    group.write_before_the_log("other");
    group.spoil(2, "index");
    group.fill(2);
    for key in ["a", "b", "c"] {
        let outcome = group.operate("index", vec![delete(key)]);
        assert!(is_done(&outcome), "{outcome:?}");
    }
    group.run_until_clean();
    assert!((0..3).all(|id| group.keys_of_rows(id, "index") == [b"d"]));
}

#[test]
fn a_full_primary_fetches_rows_that_it_lacks() {
    let mut group = Group::of(3, 3, short_log());
    group.operate("index", vec![rows(&["a", "b"])]);
    group.write_before_the_log("other");
    group.spoil(0, "index");
    group.fill(0);
    let outcome = group.operate("index", vec![ObjectOp::GetRows { keys: vec![b"a".to_vec().into()] }]);
    let there = [OpResult::RowValues(vec![Some(Blob::default())])];
    assert!(matches!(&outcome, ClientOutcome::Done { results, .. } if *results == there), "{outcome:?}");
    assert!(is_done(&group.operate("index", vec![delete("a")])));
    group.run_until_clean();
}

#[test]
fn recovery_may_use_the_spare_room_of_a_full_osd() {
    for id in [0, 2] {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        group.spoil(id, "old");
        group.nodes[id].store.full = true;
        group.nodes[id].store.spare = 1 << 20;
        if id == 0 {
            assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])));
        } else {
            group.lose_third_copy("old");
        }
        group.run_until_clean();
        assert!((0..3).all(|id| group.is_whole(id, "old")));
    }
}
