//! What a member that is not the primary does in a scrub: keeps a slot, looks at its objects when asked, and takes note
//! which of its copies are bad.
//!
//! A question has a number. One that is repeated is answered as before; marks and notes take effect once.

use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::Effect;
use holdfast_wire::peer::{EntryKind, PeerBody};
use holdfast_wire::scrub::{ScrubBody, ScrubMap, ScrubMarks, ScrubMessage, ScrubRange, ScrubRecord};

use super::Pace;
use super::scan::Scan;
use crate::api::{Output, Slot, StoreOp};
use crate::exec;
use crate::key::ObjectKey;
use crate::missing::Lack;
use crate::pg::{Pg, Step};
use crate::rows;

/// A slot is given back, and a scan dropped, when the primary was not heard of for this long: its release may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct HeldSlot {
    granted: bool,
    heard: Timestamp,
}

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Member {
    slot: Option<HeldSlot>,
    /// The question that is being worked at.
    scan: Option<(u64, Scan)>,
    /// The last answer, until the next question.
    answer: Option<(u64, ScrubMap)>,
    /// The last marks that were taken.
    marked: u64,
    /// The last note that was taken.
    noted: u64,
    pace: Pace,
}

impl Member {
    pub fn holds_slot(&self) -> bool {
        self.slot.is_some()
    }
}

impl Pg {
    /// The primary asks something.
    pub(crate) fn scrub_asked(&mut self, from: OsdId, message: ScrubMessage, step: &mut Step<'_>) {
        let number = message.number;
        if let Some(slot) = &mut self.scrub.member.slot {
            slot.heard = step.now;
        }
        match message.body {
            ScrubBody::Reserve => self.scrub_slot_asked(from, step),
            ScrubBody::Release => self.release_scrub_member(step),
            ScrubBody::Scan(range) => self.scrub_scan_asked(from, number, range, step),
            ScrubBody::Mark(marks) => self.scrub_marked(from, number, &marks, step),
            ScrubBody::Note(record) => self.scrub_noted(from, number, record, step),
            ScrubBody::Reserved | ScrubBody::Map(_) | ScrubBody::Marked => {}
        }
    }

    pub(super) fn send_scrub(&self, to: OsdId, number: u64, body: ScrubBody, step: &mut Step<'_>) {
        self.send(to, PeerBody::Scrub(ScrubMessage { number, body }), step);
    }

    fn scrub_slot_asked(&mut self, from: OsdId, step: &mut Step<'_>) {
        match &self.scrub.member.slot {
            None => {
                self.scrub.member.slot = Some(HeldSlot { granted: false, heard: step.now });
                step.out.push(Output::Reserve(Slot::ScrubIncoming));
            }
            Some(slot) if slot.granted => self.send_scrub(from, 0, ScrubBody::Reserved, step),
            Some(_) => {}
        }
        self.tick_within(SILENCE_MAX, step);
    }

    pub(crate) fn scrub_incoming_reserved(&mut self, step: &mut Step<'_>) {
        let Some(slot) = &mut self.scrub.member.slot else { return };
        slot.granted = true;
        if let Some(primary) = self.members.primary() {
            self.send_scrub(primary, 0, ScrubBody::Reserved, step);
        }
    }

    pub(crate) fn scrub_incoming_refused(&mut self) {
        self.scrub.member.slot = None;
    }

    fn release_scrub_member(&mut self, step: &mut Step<'_>) {
        let member = &mut self.scrub.member;
        member.scan = None;
        member.answer = None;
        if member.slot.take().is_some() {
            step.out.push(Output::Release(Slot::ScrubIncoming));
        }
    }

    fn scrub_scan_asked(&mut self, from: OsdId, number: u64, range: ScrubRange, step: &mut Step<'_>) {
        let member = &mut self.scrub.member;
        if let Some((answered, map)) = &member.answer {
            if *answered == number {
                let body = ScrubBody::Map(map.clone());
                self.send_scrub(from, number, body, step);
                return;
            }
            if *answered > number {
                return;
            }
        }
        match &mut member.scan {
            Some((at, scan)) if *at == number => scan.hurry(range.urgent),
            Some((at, _)) if *at > number => {}
            _ => {
                member.answer = None;
                member.scan = Some((number, Scan::new(range)));
            }
        }
    }

    /// Goes on with what was asked, as time allows; gives the slot back when the primary is silent.
    pub(crate) fn advance_scrub_member(&mut self, step: &mut Step<'_>) {
        let Some(slot) = &self.scrub.member.slot else {
            // Without a slot nothing is read: the primary asks for one first.
            self.scrub.member.scan = None;
            return;
        };
        let silence = step.now.since(slot.heard);
        if silence >= SILENCE_MAX {
            return self.release_scrub_member(step);
        }
        self.tick_within(SILENCE_MAX.saturating_sub(silence), step);
        let limits = self.limits.scrub;
        let head = self.holding.log.head();
        let member = &mut self.scrub.member;
        let Some((number, scan)) = &mut member.scan else { return };
        let (number, urgent) = (*number, scan.is_urgent());
        if (member.pace.next > step.now && !urgent) || step.submitted {
            let wait = member.pace.next.since(step.now).max(limits.pause);
            self.tick_within(wait, step);
            return;
        }
        let map = scan.piece(step.store, limits.piece_bytes);
        let pause = member.pace.pause(step.now, head, &limits, urgent);
        let Some(map) = map else {
            self.tick_within(pause, step);
            return;
        };
        member.scan = None;
        member.answer = Some((number, map.clone()));
        if let Some(primary) = self.members.primary() {
            self.send_scrub(primary, number, ScrubBody::Map(map), step);
        }
    }

    /// These copies are bad: they are missing from now on. Says so when that is durable.
    fn scrub_marked(&mut self, from: OsdId, number: u64, marks: &ScrubMarks, step: &mut Step<'_>) {
        if number > self.scrub.member.marked {
            self.scrub.member.marked = number;
            self.take_scrub_marks(marks, step);
        }
        let marked = PeerBody::Scrub(ScrubMessage { number, body: ScrubBody::Marked });
        self.send_when_durable(from, marked, step);
    }

    /// Puts bad copies into the missing set, and removes what should not exist. Gives the copies that are missing now.
    pub(super) fn take_scrub_marks(&mut self, marks: &ScrubMarks, step: &mut Step<'_>) -> u64 {
        let mut ops: Vec<StoreOp> = Vec::new();
        let mut taken = 0;
        for item in &marks.missing {
            let key = ObjectKey::of(&item.object);
            let newest = self.holding.log.newest_of(&item.object);
            // The primary has compared what the log says; should it be wrong, what is newer stays.
            let outdated = newest.is_some_and(|entry| entry.version > item.need || entry.kind == EntryKind::Delete);
            if outdated
                || item.need > self.holding.log.head()
                || self.holding.missing.get(&key).is_some_and(|lack| !lack.is_unnamed())
                || !self.holding.last_backfill.covers(key.as_bytes())
            {
                tracing::warn!(pg = %self.id, osd = %self.whoami, object = ?key, "a mark that does not fit is not taken");
                continue;
            }
            tracing::warn!(pg = %self.id, osd = %self.whoami, object = ?key, version = %item.need,
                "scrub: the copy here is bad, it is fetched anew");
            self.put_lack(&key, Lack { need: item.need, have: LogVersion::ZERO }, &mut ops);
            self.count_damage(&key, step);
            taken += 1;
        }
        for object in &marks.remove {
            let key = ObjectKey::of(object);
            let exists = self.holding.log.newest_of(object).is_some_and(|entry| entry.kind == EntryKind::Modify);
            if exists || self.holding.missing.contains(&key) {
                continue;
            }
            let version = exec::stored_version(step.store, &key).ok();
            tracing::warn!(pg = %self.id, osd = %self.whoami, object = ?key, ?version,
                "scrub: the copy here should not exist, it is removed");
            ops.push(StoreOp::Object { key, effect: Effect::Remove });
        }
        if !ops.is_empty() {
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
        }
        taken
    }

    /// The primary has news of scrubs, or has not heard yet what is known here.
    fn scrub_noted(&mut self, from: OsdId, number: u64, record: ScrubRecord, step: &mut Step<'_>) {
        if number > self.scrub.member.noted {
            self.scrub.member.noted = number;
            if self.scrub.rank(&self.scrub.record, step.now) > self.scrub.rank(&record, step.now) {
                let known = ScrubBody::Note(self.scrub.record.clone());
                self.send_scrub(from, 0, known, step);
            } else if self.scrub.record != record {
                self.submit(vec![rows::put_scrub(&record)], None, step);
                self.scrub.record = record;
            }
        }
    }
}
