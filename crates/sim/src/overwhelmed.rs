//! Objects that were struck more than copies written in place survive (docs/adr/0010): the judgement by what the simulator
//! itself knows of each copy of each version ([`Holdings`]).
//!
//! An object that no copy can give breaks a promise, unless nothing could have kept it. That is judged by what became durable in
//! the stores and by what the simulator did to the disks, never by the word of an OSD but for the version that it needs. It is
//! asked only in worlds whose sectors go bad.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_pg::{ObjectKey, Output, ReplyTo};
use holdfast_types::{LogVersion, ObjectName, OsdId, PgId, RequestId};
use holdfast_wire::{ClientOutcome, ClientReply, OpError};

use crate::client::Operation;
use crate::holdings::{Fate, Holdings};
use crate::node::Node;
use crate::world::World;

/// Whether an object was struck more than copies survive: each copy there ever was of the version that is needed was struck, or
/// replaced by a write that was taken back; and at least one was struck, for writes alone must never cost the last copy.
///
/// `told` is the newest version that a client was told of. What replaced a copy was taken back, or it would be what is needed;
/// that is right only if nobody was told of it.
pub(crate) fn is_overwhelmed(needed: LogVersion, told: LogVersion, fates: &[Fate]) -> bool {
    let explained = |fate: &Fate| match fate {
        Fate::Struck => true,
        Fate::Replaced(by) => *by > needed,
        Fate::Unexplained => false,
    };
    told <= needed && fates.contains(&Fate::Struck) && fates.iter().all(explained)
}

impl Holdings {
    /// Whether this object was struck more than copies survive: see [`is_overwhelmed`]. Where a whole copy is left of an older
    /// version that would have done, since nobody was told of a newer one, two disks must have been struck in a version that would
    /// have done: what one copy alone cannot give is not to be adopted (docs/adr/0009), but the others whose log could be taken
    /// instead may be gone with a disk. No object would have done as well, and needs no copy.
    fn judge(&self, nodes: &[Node], key: &ObjectKey, needed: LogVersion) -> bool {
        let told = self.told.get(key).copied().unwrap_or_default();
        let would_do = |version: &LogVersion| (told..needed).contains(version);
        let versions = self.copies.get(key);
        let held: BTreeSet<LogVersion> = versions.into_iter().flat_map(BTreeMap::keys).copied().collect();
        let mut older = held.iter().filter(|version| would_do(version)).peekable();
        let ends = versions.into_iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values).flatten();
        let removed = ends.filter_map(|end| end.by).any(|by| would_do(&by) && !held.contains(&by));
        let was_none = told < needed && (older.peek().is_none() || removed);
        let whole = older.flat_map(|version| self.fates(nodes, key, *version)).any(|fate| fate == Fate::Unexplained);
        let fates = self.fates(nodes, key, needed);
        let that_would_do = held.iter().filter(|version| would_do(version) || **version == needed);
        let struck = self.struck(nodes, key, that_would_do).len();
        (!(whole || was_none) || struck > 1) && is_overwhelmed(needed, told, &fates)
    }

    /// Whether it was right to answer each time that no copy can be read, or not to answer: what was logged on an object that is
    /// lost can neither be confirmed nor denied. A read must be told that it cannot be had.
    pub fn excuses(&self, operation: &Operation) -> bool {
        match operation.answer {
            Some(_) => self.unreadable.get(&operation.id).is_some_and(|told| told.right),
            None => operation.act.changes() && self.lost.contains(&ObjectKey::of(&operation.object)),
        }
    }

    /// Whether anything was excused.
    pub fn excused(&self) -> bool {
        !self.lost.is_empty() || self.unreadable.values().any(|told| told.right)
    }
}

impl World {
    /// Notes what an answer tells of an object.
    pub(crate) fn note_told(&mut self, client: usize, reply: &ClientReply) {
        let ClientOutcome::Done { version, .. } = &reply.outcome else { return };
        let asked = self.clients.get(client).and_then(|client| client.asked(reply.id.tid, &self.history));
        if let (Some((object, _)), Some(holdings)) = (asked, &mut self.holdings) {
            holdings.told(&object, *version);
        }
    }

    /// What a placement group lacks, if anybody wants to know.
    pub(crate) fn lacked(&self, osd: OsdId, pg: PgId) -> BTreeMap<ObjectKey, LogVersion> {
        let copy = self.holdings.as_ref().and_then(|_| self.nodes.get(osd.0 as usize)?.pgs.get(&pg));
        copy.map(holdfast_pg::Pg::lacked).unwrap_or_default()
    }

    /// Judges the answers of a step that no copy can be read, before anything that followed them in that step is done.
    /// `before` is what the placement group lacked when it began.
    pub(crate) fn judge_answers(
        &mut self,
        osd: OsdId,
        pg: PgId,
        before: &BTreeMap<ObjectKey, LogVersion>,
        outbox: &[Output],
    ) {
        let unreadable = |output: &Output| match output {
            Output::Reply { reply_to, reply, .. } => {
                let failed = matches!(reply.outcome, ClientOutcome::Failed { error: OpError::Unreadable, .. });
                failed.then_some((*reply_to, reply.id))
            }
            _ => None,
        };
        let answers: Vec<(ReplyTo, RequestId)> = outbox.iter().filter_map(unreadable).collect();
        if answers.is_empty() || self.holdings.is_none() {
            return;
        }
        let after = self.lacked(osd, pg);
        let run = (osd, self.node(osd).incarnation);
        for (reply_to, request) in answers {
            let client = usize::try_from(reply_to.0).ok().and_then(|client| self.clients.get(client));
            let asked = client.and_then(|client| client.asked(request.tid, &self.history));
            let asked = asked.map(|(object, act)| (ObjectKey::of(&object), act.changes()));
            let Some(((key, changes), holdings)) = asked.zip(self.holdings.as_mut()) else {
                continue; // it was answered before
            };
            let right = match (before.get(&key), after.get(&key)) {
                (Some(before), Some(after)) if before != after => Some(false),
                // A delete that follows in this step lets nobody lack it any more.
                (Some(needed), _) | (None, Some(needed)) => Some(holdings.judge(&self.nodes, &key, *needed)),
                (None, None) => None,
            };
            holdings.told_unreadable(request, changes, run, right);
        }
    }

    /// Whether all placement groups are clean, and all requests answered, but for objects that were struck more than copies
    /// survive; these are lost.
    pub(crate) fn has_settled_but_for_the_lost(&mut self) -> bool {
        let Some(holdings) = &self.holdings else { return false };
        let newest = self.monitor.newest();
        let mut lost = BTreeSet::new();
        for pg in self.monitor.pgs() {
            let primary = newest.members_of(pg).primary().and_then(|osd| self.nodes.get(osd.0 as usize));
            let Some(core) = primary.filter(|node| node.running).and_then(|node| node.pgs.get(&pg)) else {
                return false;
            };
            if core.epoch() != newest.map.epoch {
                return false;
            }
            if core.report().state.clean {
                continue;
            }
            let Some(lacked) = core.lacks_only() else { return false };
            let judge = |(key, needed): (&ObjectKey, &LogVersion)| holdings.judge(&self.nodes, key, *needed);
            if lacked.is_empty() || !lacked.iter().all(judge) {
                return false;
            }
            lost.extend(lacked.into_keys());
        }
        let waits = |object: ObjectName| lost.contains(&ObjectKey::of(&object));
        if !self.clients.iter().flat_map(|client| client.waited_for(&self.history)).all(waits) {
            return false;
        }
        // Whoever reads is told that it cannot be had.
        if !self.history.iter().filter(|operation| operation.answer.is_none()).all(|operation| operation.act.changes())
        {
            return false;
        }
        if let Some(holdings) = &mut self.holdings {
            holdings.lost = lost;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_types::{Epoch, Incarnation, PoolId};
    use holdfast_wire::Effect;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use holdfast_pg::{Limits, StoreOp, TxnId, VERSION_ATTR};

    use super::*;
    use crate::holdings::changes;
    use crate::node::RATE;

    const PG: PgId = PgId { pool: PoolId(1), seed: 0 };

    fn at(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(1), counter }
    }

    fn key() -> ObjectKey {
        ObjectKey::of(&ObjectName::new("o").expect("valid"))
    }

    #[test]
    fn only_what_was_struck_or_taken_back_everywhere_and_struck_somewhere_is_excused() {
        use Fate::{Replaced, Struck, Unexplained};
        let excused = |fates: &[Fate]| is_overwhelmed(at(5), at(5), fates);
        assert!(excused(&[Struck]));
        assert!(excused(&[Struck, Replaced(at(6)), Struck]));
        assert!(!excused(&[Struck, Replaced(at(6)), Unexplained]), "each copy must be explained");
        assert!(!excused(&[Replaced(at(6)), Replaced(at(7))]), "writes alone must not cost the last copy");
        assert!(!excused(&[Struck, Replaced(at(4))]), "an older version over a newer one");
        assert!(!excused(&[]), "nobody ever had what is needed");
        assert!(!is_overwhelmed(at(5), at(6), &[Struck, Replaced(at(6))]), "what replaced it was acknowledged");
    }

    #[test]
    fn what_was_rightly_told_may_only_be_told_again_by_the_same_run_to_the_same_change() {
        let id = RequestId { client: holdfast_types::ClientId(1), incarnation: Incarnation(1), tid: 1 };
        let (run, next) = ((OsdId(0), Incarnation(1)), (OsdId(0), Incarnation(2)));
        let right = |changes: bool, told: &[((OsdId, Incarnation), Option<bool>)]| {
            let mut holdings = Holdings::default();
            told.iter().for_each(|(by, right)| holdings.told_unreadable(id, changes, *by, *right));
            holdings.unreadable[&id].right
        };
        assert!(right(true, &[(run, Some(true)), (run, None)]));
        assert!(!right(false, &[(run, Some(true)), (run, None)]), "a read is carried out anew");
        assert!(!right(true, &[(run, Some(true)), (next, None)]), "another run remembers nothing");
        assert!(!right(true, &[(run, None)]), "nothing was told before");
        assert!(!right(true, &[(run, Some(false)), (run, None)]), "what was wrong stays so");
        assert!(!right(true, &[(run, Some(true)), (run, Some(false))]));
    }

    /// Two OSDs, on whose disks writes are carried out as placement groups have it.
    struct Disks {
        nodes: Vec<Node>,
        holdings: Holdings,
        submitted: u64,
    }

    impl Disks {
        fn new() -> Disks {
            let node = |osd| Node::new(OsdId(osd), Limits::default(), 40, RATE).expect("a node");
            let mut disks = Disks { nodes: vec![node(0), node(1)], holdings: Holdings::default(), submitted: 0 };
            for osd in [0, 1] {
                disks.submit(osd, vec![StoreOp::CreateCollection]);
            }
            disks
        }

        fn submit(&mut self, osd: u32, ops: Vec<StoreOp>) {
            self.take(osd, ops);
            self.commit(osd);
        }

        /// What is submitted is not durable before [`Disks::commit`].
        fn take(&mut self, osd: u32, ops: Vec<StoreOp>) {
            let node = &mut self.nodes[osd as usize];
            let changes = changes(&node.disk, PG, &ops);
            self.submitted += 1;
            node.disk.submit(Incarnation(1), PG, TxnId(self.submitted), ops).expect("taken");
            self.holdings.submitted((OsdId(osd), node.life), node.disk.submitted_position(), changes);
        }

        fn commit(&mut self, osd: u32) {
            let node = &mut self.nodes[osd as usize];
            node.disk.commit(Incarnation(1)).expect("committed");
            self.holdings.durable((OsdId(osd), node.life), node.disk.durable_position());
        }

        /// Loses what was not durable.
        fn crash(&mut self, osd: u32) {
            let node = &mut self.nodes[osd as usize];
            node.disk.crash(&mut SmallRng::seed_from_u64(1), true);
            node.disk.open().expect("opened");
            self.holdings.found((OsdId(osd), node.life), node.disk.submitted_position(), &node.disk);
        }

        /// Appends to the object, in place.
        fn write(&mut self, osd: u32, counter: u64) {
            self.submit(osd, Disks::append(counter));
        }

        fn append(counter: u64) -> Vec<StoreOp> {
            let value = [1_u64.to_le_bytes(), counter.to_le_bytes()].concat();
            let version = Effect::SetAttr { name: VERSION_ATTR.to_vec(), value: value.into() };
            let data = Effect::Write { offset: counter * 100, data: Bytes::from(vec![7; 100]).into() };
            let object = |effect| StoreOp::Object { key: key(), effect };
            vec![object(data), object(version)]
        }

        fn remove(&mut self, osd: u32) {
            self.submit(osd, vec![StoreOp::Object { key: key(), effect: Effect::Remove }]);
        }

        fn spoil(&mut self, osd: u32) {
            assert!(self.nodes[osd as usize].disk.spoil(&mut SmallRng::seed_from_u64(1)));
        }

        fn is_lost(&self, needed: u64) -> bool {
            self.holdings.judge(&self.nodes, &key(), at(needed))
        }
    }

    #[test]
    fn a_whole_copy_anywhere_is_no_excuse_and_an_overwritten_one_only_beside_a_struck_one() {
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        assert!(!disks.is_lost(1));
        disks.spoil(0);
        assert!(!disks.is_lost(1), "the other is whole");
        disks.write(1, 2);
        assert!(disks.is_lost(1), "what was carried out over it is not needed, so it was taken back");
        disks.holdings.told(&key().name(), at(2));
        assert!(!disks.is_lost(1), "but somebody was told of that");
        assert!(!disks.is_lost(2), "which is whole");
    }

    #[test]
    fn writes_that_were_taken_back_are_no_excuse_alone() {
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        disks.write(1, 2);
        disks.nodes[0].give_up_disk().expect("formatted");
        assert!(disks.is_lost(1), "the disk that was given up had it to the last");

        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        (0..2).for_each(|osd| disks.write(osd, 2));
        assert!(!disks.is_lost(1));
        disks.nodes[0].give_up_disk().expect("formatted");
        assert!(!disks.is_lost(1), "it was overwritten there before");
    }

    #[test]
    fn a_copy_that_was_removed_for_no_known_reason_is_no_excuse_unless_it_was_struck_before() {
        for struck_before in [false, true] {
            let mut disks = Disks::new();
            (0..2).for_each(|osd| disks.write(osd, 1));
            disks.spoil(0);
            if struck_before {
                disks.spoil(1);
            }
            disks.remove(1);
            assert_eq!(disks.is_lost(1), struck_before);
        }
    }

    #[test]
    fn a_struck_version_that_nobody_was_told_of_is_no_excuse_while_the_one_before_is_whole() {
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        disks.write(0, 2);
        disks.spoil(0);
        assert!(!disks.is_lost(2), "the other has the version before");
        disks.holdings.told(&key().name(), at(2));
        assert!(disks.is_lost(2));
    }

    #[test]
    fn a_disk_that_was_given_up_explains_nothing_once_all_was_whole_again() {
        for healed in [false, true] {
            let mut disks = Disks::new();
            (0..2).for_each(|osd| disks.write(osd, 1));
            disks.holdings.told(&key().name(), at(1));
            disks.nodes[0].give_up_disk().expect("formatted");
            disks.submit(0, vec![StoreOp::CreateCollection]);
            disks.write(0, 1);
            if healed {
                disks.holdings.healed(&disks.nodes);
            }
            (0..2).for_each(|osd| disks.write(osd, 2));
            assert_eq!(disks.is_lost(1), !healed, "writes alone must not cost the last copy");
        }
    }

    #[test]
    fn one_struck_copy_does_not_cost_the_version_before_and_two_do() {
        let mut disks = Disks::new();
        disks.nodes.push(Node::new(OsdId(2), Limits::default(), 40, RATE).expect("a node"));
        disks.submit(2, vec![StoreOp::CreateCollection]);
        (0..3).for_each(|osd| disks.write(osd, 1));
        (0..2).for_each(|osd| disks.write(osd, 2));
        disks.nodes[0].give_up_disk().expect("formatted");
        assert!(!disks.is_lost(2), "the second is whole");
        disks.spoil(1);
        assert!(disks.is_lost(2), "though the third has the version before");
    }

    #[test]
    fn one_struck_copy_of_an_object_that_nobody_knows_of_is_no_excuse_where_there_was_none_before() {
        for removed in [false, true] {
            let mut disks = Disks::new();
            if removed {
                (0..2).for_each(|osd| disks.write(osd, 4));
                (0..2).for_each(|osd| disks.remove(osd));
                disks.holdings.told(&key().name(), at(5));
            }
            disks.write(0, 6);
            disks.spoil(0);
            assert!(!disks.is_lost(6), "no object would have done");
            disks.holdings.told(&key().name(), at(6));
            assert!(disks.is_lost(6));
        }
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 6));
        (0..2).for_each(|osd| disks.spoil(osd));
        assert!(disks.is_lost(6), "whoever had it was struck");
    }

    #[test]
    fn a_disk_with_the_version_before_that_is_given_up_counts_beside_one_struck_copy() {
        let mut disks = Disks::new();
        disks.nodes.push(Node::new(OsdId(2), Limits::default(), 40, RATE).expect("a node"));
        disks.submit(2, vec![StoreOp::CreateCollection]);
        (0..3).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        disks.write(0, 2);
        disks.spoil(0);
        assert!(!disks.is_lost(2), "two have the version before");
        disks.nodes[1].give_up_disk().expect("formatted");
        assert!(disks.is_lost(2), "who has it whole may have been away");
    }

    #[test]
    fn what_was_never_durable_is_not_lost_with_its_disk() {
        for durable in [false, true] {
            let mut disks = Disks::new();
            disks.nodes.push(Node::new(OsdId(2), Limits::default(), 40, RATE).expect("a node"));
            disks.submit(2, vec![StoreOp::CreateCollection]);
            (1..3).for_each(|osd| disks.write(osd, 1));
            disks.holdings.told(&key().name(), at(1));
            disks.take(0, Disks::append(2));
            assert!(!disks.is_lost(2), "it is on its way to the disk");
            if durable {
                disks.commit(0);
            }
            disks.nodes[0].disk_failed = true;
            disks.write(1, 2);
            disks.spoil(1);
            assert_eq!(disks.is_lost(2), durable, "the third has the version before");
            disks.nodes[0].give_up_disk().expect("formatted");
            disks.nodes[0].disk_failed = false;
            assert_eq!(disks.is_lost(2), durable);
        }
    }

    #[test]
    fn what_went_back_in_a_crash_is_held_again_and_excuses_nothing() {
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        disks.spoil(1);
        disks.take(0, Disks::append(2));
        disks.crash(0);
        if disks.nodes[0].disk.version_of(PG, &key()) == Some(at(1)) {
            assert!(!disks.is_lost(1), "it is whole again");
            assert!(disks.holdings.fates(&disks.nodes, &key(), at(2)).is_empty(), "and the other never was");
        } else {
            assert!(disks.is_lost(1));
        }
        // A store that forgets what was durable.
        let life = (OsdId(0), disks.nodes[0].life);
        disks.holdings.copies.entry(key()).or_default().entry(at(9)).or_default().insert(life, None);
        disks.crash(0);
        disks.nodes[0].give_up_disk().expect("formatted");
        assert_eq!(disks.holdings.fates(&disks.nodes, &key(), at(9)), [Fate::Unexplained]);
    }

    #[test]
    fn a_copy_that_went_with_its_placement_group_is_no_excuse_when_the_disk_is_given_up_later() {
        let mut disks = Disks::new();
        (0..2).for_each(|osd| disks.write(osd, 1));
        disks.holdings.told(&key().name(), at(1));
        disks.spoil(0);
        disks.submit(1, vec![StoreOp::RemoveCollection, StoreOp::CreateCollection]);
        disks.nodes[1].give_up_disk().expect("formatted");
        assert!(!disks.is_lost(1));
    }
}
