//! A pass, as the primary leads it; the table is in `scrub`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_map::ScrubKind;
use holdfast_types::{Epoch, LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::BackfillCursor;
use holdfast_wire::scrub::{ScrubBody, ScrubMap, ScrubMarks, ScrubMessage, ScrubRange, ScrubRecord};

use super::scan::{ITEMS_MAX, Scan};
use super::{HOLD_MAX, Pace, RESEND, schedule};
use crate::active::Active;
use crate::api::{LocalObjects, Output, ReadError, ScrubLimits, Slot};
use crate::key::ObjectKey;
use crate::missing::Lack;
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Step, TICK};

/// Writes that make a chunk begin anew, in a row; the next one waits.
const DISTURBANCES_MAX: u32 = 4;
/// A chunk that writes could not wait for is tried so many times more, then the pass ends.
const GIVEN_UP_MAX: u32 = 5;
/// Pause before a chunk is tried again that writes could not wait for.
const GIVEN_UP_PAUSE: Duration = Duration::from_secs(1);
/// A pass that had to end is begun anew after this long.
const RETRY: Duration = Duration::from_secs(300);
/// Members that keep a slot hear of the primary at least this often (`member::SILENCE_MAX` is much longer).
const RENEWAL: Duration = Duration::from_secs(3);
/// Slots are given back when the placement group is not clean for this long.
const UNCLEAN_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Stage {
    Wait,
    /// `own`: whether the own slot is held; then when the next member was asked.
    Reserve {
        own: bool,
        asked: Option<Timestamp>,
    },
    Choose {
        since: Timestamp,
    },
    Settle {
        upto: BackfillCursor,
    },
    Scan {
        number: u64,
        upto: BackfillCursor,
        own: Option<Box<Scan>>,
        maps: BTreeMap<OsdId, ScrubMap>,
        asked: Timestamp,
    },
    Mark {
        number: u64,
        upto: BackfillCursor,
        marks: BTreeMap<OsdId, ScrubMarks>,
        waiting: BTreeSet<OsdId>,
        asked: Timestamp,
    },
}

/// See `scrub`.
#[derive(Debug)]
pub(crate) struct Pass {
    pub kind: ScrubKind,
    wish: Option<Epoch>,
    stage: Stage,
    /// Members that keep a slot.
    slots: BTreeSet<OsdId>,
    renewed: Timestamp,
    /// The chunk begins after this key.
    pub(super) after: Vec<u8>,
    /// The last chunk is done.
    is_past_all: bool,
    /// Most objects of the next chunk.
    objects: usize,
    disturbed: u32,
    given_up: u32,
    /// Since when a write waits for the chunk, and which objects' do.
    held_since: Option<Timestamp>,
    held: BTreeSet<ObjectKey>,
    pace: Pace,
    pub(super) verified: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The head of the log when the first chunk was chosen.
    pub(super) head: Option<LogVersion>,
    /// Wrong copies found.
    pub(super) faults: u64,
    /// Copies marked that are not whole yet.
    mending: u64,
    /// Inconsistent objects that are not kept by name.
    pub(super) unnamed: u64,
}

impl Pass {
    fn new(kind: ScrubKind, wish: Option<Epoch>, limits: &ScrubLimits) -> Pass {
        Pass {
            kind,
            wish,
            stage: Stage::Wait,
            slots: BTreeSet::new(),
            renewed: Timestamp::ZERO,
            after: Vec::new(),
            is_past_all: false,
            objects: limits.chunk_objects.max(1),
            disturbed: 0,
            given_up: 0,
            held_since: None,
            held: BTreeSet::new(),
            pace: Pace::default(),
            verified: 0,
            bytes: 0,
            head: None,
            faults: 0,
            mending: 0,
            unnamed: 0,
        }
    }

    pub fn asked_or_holds_slot(&self) -> bool {
        !matches!(self.stage, Stage::Wait)
    }

    /// Whether it has its turn: before that it waits to be told so.
    pub fn is_running(&self) -> bool {
        !matches!(self.stage, Stage::Wait | Stage::Reserve { own: false, .. })
    }

    /// The end of the present chunk, if there is one.
    fn chunk_end(&self) -> Option<&BackfillCursor> {
        match &self.stage {
            Stage::Settle { upto } | Stage::Scan { upto, .. } | Stage::Mark { upto, .. } => Some(upto),
            Stage::Wait | Stage::Reserve { .. } | Stage::Choose { .. } => None,
        }
    }

    fn in_chunk(&self, key: &ObjectKey) -> bool {
        let key = key.as_bytes();
        self.chunk_end().is_some_and(|upto| key > self.after.as_slice() && upto.covers(key))
    }

    fn is_urgent(&self) -> bool {
        self.disturbed >= DISTURBANCES_MAX
    }

    /// Whether a write to the object must wait; it is then remembered to do so.
    pub fn holds(&mut self, key: &ObjectKey, now: Timestamp) -> bool {
        let holds = self.in_chunk(key) && (self.is_urgent() || matches!(self.stage, Stage::Mark { .. }));
        if holds {
            self.held_since.get_or_insert(now);
            self.held.insert(key.clone());
        }
        holds
    }

    /// A write to the object goes out.
    pub fn saw_write(&mut self, key: &ObjectKey, now: Timestamp) {
        if self.in_chunk(key) {
            self.disturbed += 1;
            self.objects = (self.objects / 2).max(1);
            self.stage = Stage::Choose { since: now };
        }
    }

    /// Waiting writes are let go, and the chunk is tried again later. Gives `false` when it was tried too often.
    fn give_up_chunk(&mut self, now: Timestamp) -> bool {
        self.given_up += 1;
        self.disturbed = 0;
        self.objects = 1;
        self.pace.next = now + GIVEN_UP_PAUSE;
        self.stage = Stage::Choose { since: now };
        self.given_up <= GIVEN_UP_MAX
    }

    /// The chunk is done.
    fn go_on(&mut self, upto: BackfillCursor, now: Timestamp, limits: &ScrubLimits) {
        match upto {
            BackfillCursor::At(key) => self.after = key,
            BackfillCursor::Complete => self.is_past_all = true,
        }
        self.disturbed = 0;
        self.given_up = 0;
        self.objects = (self.objects * 2).min(limits.chunk_objects.max(1));
        self.stage = Stage::Choose { since: now };
    }

    /// The end of a chunk: so many objects, and in a deep scrub about so many bytes.
    fn choose(&self, store: &dyn LocalObjects, limits: &ScrubLimits) -> Result<BackfillCursor, ReadError> {
        let limit = self.objects.clamp(1, ITEMS_MAX);
        let after = (!self.after.is_empty()).then_some(self.after.as_slice());
        let keys = store.list_objects(after, limit)?;
        let mut bytes = 0u64;
        for (index, key) in keys.iter().enumerate() {
            // What cannot be read is small enough.
            bytes = bytes.saturating_add(store.stat(key).ok().flatten().unwrap_or(0));
            if (self.kind.is_deep() && bytes >= limits.chunk_bytes) || index + 1 == limit {
                return Ok(BackfillCursor::At(key.as_bytes().to_vec()));
            }
        }
        Ok(BackfillCursor::Complete)
    }
}

impl Pg {
    /// Goes on with the pass; begins one when it is time.
    pub(crate) fn advance_scrub(&mut self, step: &mut Step<'_>) {
        let pass = self.scrub.pass.take().or_else(|| self.begin_scrub(step).map(Box::new));
        let Some(mut pass) = pass else { return };
        if !pass.is_running() {
            self.take_up_wish(&mut pass);
        }
        let goes_on = self.drive_scrub(&mut pass, step);
        if goes_on {
            let held = pass.chunk_end().is_some();
            if !held {
                self.let_writes_go(&mut pass, step);
            }
            if pass.is_running() {
                self.tick_within(TICK, step);
            }
            self.scrub.pass = Some(pass);
        }
    }

    /// What a person wants first, then what the calendar says.
    fn begin_scrub(&mut self, step: &mut Step<'_>) -> Option<Pass> {
        let limits = self.limits.scrub;
        let wish = self.map.scrub_wishes.get(&self.id).copied();
        let wish = wish.filter(|wish| wish.epoch > self.scrub.record.served);
        let wall = self.scrub.wall_ms(step.now);
        if (wish.is_none() && wall.is_none()) || !self.is_ready_for_scrub() {
            return None;
        }
        if let Some(at) = self.scrub.retry_at.filter(|at| *at > step.now) {
            self.tick_within(at.since(step.now), step);
            return None;
        }
        self.scrub.retry_at = None;
        if let Some(now_ms) = wall.filter(|_| self.scrub.record.born_ms == 0) {
            // What was never scrubbed is as old as this.
            self.scrub.record.born_ms = now_ms;
            self.keep_scrub_record(step);
        }
        let pass = match wish {
            Some(wish) => Pass::new(wish.kind, Some(wish.epoch), &limits),
            None => {
                let kind = schedule::due(&self.scrub.record, self.id, &limits, wall?)?;
                Pass::new(kind, None, &limits)
            }
        };
        tracing::debug!(pg = %self.id, osd = %self.whoami, kind = ?pass.kind, "scrub begins");
        step.report = true;
        Some(pass)
    }

    /// A pass that has not had its turn yet does what is asked for meanwhile, too.
    fn take_up_wish(&self, pass: &mut Pass) {
        let wish = self.map.scrub_wishes.get(&self.id).filter(|wish| wish.epoch > self.scrub.record.served);
        if let Some(wish) = wish.filter(|wish| Some(wish.epoch) > pass.wish) {
            pass.kind = pass.kind.max(wish.kind);
            pass.wish = Some(wish.epoch);
        }
    }

    /// Whether all copies should be the same, and nothing is being copied.
    fn is_ready_for_scrub(&self) -> bool {
        let Role::Active(active) = &self.role else { return false };
        active.clean
            && active.writeable
            && active.backfill.is_none()
            && self.holding.missing.is_empty()
            && active.all_copied()
            && !active.recovery.is_transferring()
    }

    fn scrub_members(&self) -> BTreeSet<OsdId> {
        let Role::Active(active) = &self.role else { return BTreeSet::new() };
        active.peers.iter().filter(|(_, peer)| peer.acting).map(|(osd, _)| *osd).collect()
    }

    fn let_writes_go(&mut self, pass: &mut Pass, step: &mut Step<'_>) {
        pass.held_since = None;
        for key in std::mem::take(&mut pass.held) {
            self.clients.wake(&key);
            step.rerun = true;
        }
    }

    fn drive_scrub(&mut self, pass: &mut Pass, step: &mut Step<'_>) -> bool {
        self.renew_scrub_slots(pass, step);
        let overdue = pass.held_since.is_some_and(|since| step.now.since(since) >= HOLD_MAX);
        if overdue && matches!(pass.stage, Stage::Settle { .. } | Stage::Scan { .. }) {
            return if pass.give_up_chunk(step.now) { true } else { self.end_scrub(pass, false, step) };
        }
        match &pass.stage {
            Stage::Wait => {
                if self.is_ready_for_scrub() {
                    pass.stage = Stage::Reserve { own: false, asked: None };
                    step.out.push(Output::Reserve(Slot::ScrubOutgoing));
                }
                true
            }
            Stage::Reserve { own, asked } => {
                let (own, asked) = (*own, *asked);
                self.reserve_for_scrub(pass, own, asked, step);
                true
            }
            Stage::Choose { since } => {
                let since = *since;
                self.choose_chunk(pass, since, step)
            }
            Stage::Settle { upto } => {
                let upto = upto.clone();
                self.settle_chunk(pass, upto, step);
                true
            }
            Stage::Scan { .. } => self.scan_chunk(pass, step),
            Stage::Mark { .. } => {
                self.mark_copies(pass, step);
                true
            }
        }
    }

    // ---- slots ----

    fn reserve_for_scrub(&mut self, pass: &mut Pass, own: bool, asked: Option<Timestamp>, step: &mut Step<'_>) {
        if !own {
            return;
        }
        let next = self.scrub_members().into_iter().find(|osd| !pass.slots.contains(osd));
        let Some(next) = next else {
            pass.stage = Stage::Choose { since: step.now };
            step.rerun = true;
            return;
        };
        if asked.is_none_or(|asked| step.now.since(asked) >= RESEND) {
            pass.stage = Stage::Reserve { own, asked: Some(step.now) };
            self.send_scrub(next, 0, ScrubBody::Reserve, step);
        }
    }

    fn renew_scrub_slots(&mut self, pass: &mut Pass, step: &mut Step<'_>) {
        if !pass.slots.is_empty() && step.now.since(pass.renewed) >= RENEWAL {
            pass.renewed = step.now;
            for osd in pass.slots.clone() {
                self.send_scrub(osd, 0, ScrubBody::Reserve, step);
            }
        }
    }

    fn release_scrub_slots(&self, pass: &mut Pass, step: &mut Step<'_>) {
        if pass.asked_or_holds_slot() {
            step.out.push(Output::Release(Slot::ScrubOutgoing));
        }
        pass.slots.clear();
        for osd in self.scrub_members() {
            self.send_scrub(osd, 0, ScrubBody::Release, step);
        }
        pass.stage = Stage::Wait;
    }

    pub(crate) fn scrub_outgoing_reserved(&mut self) {
        if let Some(Stage::Reserve { own, asked }) = self.scrub.pass.as_mut().map(|pass| &mut pass.stage)
            && !*own
        {
            (*own, *asked) = (true, None);
        }
    }

    pub(crate) fn scrub_outgoing_refused(&mut self, step: &Step<'_>) {
        self.scrub.pass = None;
        self.scrub.retry_at = Some(step.now + RETRY);
    }

    // ---- chunks ----

    fn choose_chunk(&mut self, pass: &mut Pass, since: Timestamp, step: &mut Step<'_>) -> bool {
        if !self.is_ready_for_scrub() {
            if step.now.since(since) >= UNCLEAN_MAX {
                self.release_scrub_slots(pass, step);
            }
            return true;
        }
        if pass.mending > 0 {
            self.scrub.record.repaired = self.scrub.record.repaired.saturating_add(std::mem::take(&mut pass.mending));
            self.keep_scrub_record(step);
        }
        if pass.is_past_all {
            return self.end_scrub(pass, true, step);
        }
        if pass.pace.next > step.now {
            self.tick_within(pass.pace.next.since(step.now), step);
            return true;
        }
        pass.head.get_or_insert(self.holding.log.head());
        match pass.choose(step.store, &self.limits.scrub) {
            Ok(upto) => {
                self.settle_chunk(pass, upto, step);
                true
            }
            Err(error) => {
                tracing::error!(pg = %self.id, osd = %self.whoami, %error, "a scrub cannot list the objects here");
                self.end_scrub(pass, false, step)
            }
        }
    }

    /// Asks all members about the chunk, when no write to it is under way.
    fn settle_chunk(&mut self, pass: &mut Pass, upto: BackfillCursor, step: &mut Step<'_>) {
        pass.stage = Stage::Settle { upto: upto.clone() };
        let Role::Active(active) = &self.role else { return };
        if active.has_uncommitted(|key| pass.in_chunk(key)) || step.touched.iter().any(|key| pass.in_chunk(key)) {
            return;
        }
        self.scrub.number += 1;
        let number = self.scrub.number;
        let range = self.range_of(pass, upto.clone());
        let own = Some(Box::new(Scan::new(range.clone())));
        pass.stage = Stage::Scan { number, upto, own, maps: BTreeMap::new(), asked: step.now };
        for osd in self.scrub_members() {
            self.send_scrub(osd, number, ScrubBody::Scan(range.clone()), step);
        }
        step.rerun = true;
    }

    fn range_of(&self, pass: &Pass, upto: BackfillCursor) -> ScrubRange {
        ScrubRange { after: pass.after.clone(), upto, deep: pass.kind.is_deep(), urgent: pass.is_urgent() }
    }

    fn scan_chunk(&mut self, pass: &mut Pass, step: &mut Step<'_>) -> bool {
        if !self.is_ready_for_scrub() {
            // Something of it was found damaged by a reader, and is being fetched.
            pass.stage = Stage::Choose { since: step.now };
            return true;
        }
        let (limits, head, urgent) = (self.limits.scrub, self.holding.log.head(), pass.is_urgent());
        let (me, members) = (self.whoami, self.scrub_members());
        let after = pass.after.clone();
        let (kind, pace) = (pass.kind, &mut pass.pace);
        let Stage::Scan { number, upto, own, maps, asked } = &mut pass.stage else { return true };
        if let Some(scan) = own {
            if (pace.next > step.now && !urgent) || step.submitted {
                let wait = pace.next.since(step.now).max(limits.pause);
                self.tick_within(wait, step);
            } else {
                let piece = scan.piece(step.store, limits.piece_bytes);
                let pause = pace.pause(step.now, head, &limits, urgent);
                match piece {
                    Some(map) => {
                        maps.insert(me, map);
                        *own = None;
                    }
                    None => self.tick_within(pause, step),
                }
            }
        }
        let silent: Vec<OsdId> = members.iter().copied().filter(|osd| !maps.contains_key(osd)).collect();
        if silent.is_empty() && own.is_none() {
            let maps = std::mem::take(maps);
            return self.compare_chunk(pass, &maps, step);
        }
        if step.now.since(*asked) >= RESEND {
            *asked = step.now;
            let range = ScrubRange { after, upto: upto.clone(), deep: kind.is_deep(), urgent };
            let number = *number;
            for osd in silent {
                self.send_scrub(osd, number, ScrubBody::Scan(range.clone()), step);
            }
        }
        true
    }

    fn compare_chunk(&mut self, pass: &mut Pass, maps: &BTreeMap<OsdId, ScrubMap>, step: &mut Step<'_>) -> bool {
        if maps.values().any(|map| map.failed == Some(true)) {
            tracing::error!(pg = %self.id, "a scrub ends: a member cannot list its objects");
            return self.end_scrub(pass, false, step);
        }
        let upto = maps.values().map(|map| map.upto.clone()).min().unwrap_or(BackfillCursor::Complete);
        let found = self.judge_chunk(pass, maps, &upto);
        self.record_findings(pass, &upto, found.inconsistent, step);
        if found.marks.is_empty() || on(Mutant::ScrubMarksNothing) {
            pass.go_on(upto, step.now, &self.limits.scrub);
            step.rerun = true;
            return true;
        }
        self.scrub.number += 1;
        let number = self.scrub.number;
        let waiting: BTreeSet<OsdId> = found.marks.keys().copied().filter(|osd| *osd != self.whoami).collect();
        for (osd, marks) in found.marks.iter().filter(|(osd, _)| waiting.contains(osd)) {
            self.send_scrub(*osd, number, ScrubBody::Mark(marks.clone()), step);
        }
        pass.stage = Stage::Mark { number, upto, marks: found.marks, waiting, asked: step.now };
        step.rerun = true;
        true
    }

    // ---- repair ----

    /// When all bad copies are durably missing on the other members, they are missing here, too: recovery does the rest.
    fn mark_copies(&mut self, pass: &mut Pass, step: &mut Step<'_>) {
        let Stage::Mark { number, upto, marks, waiting, asked } = &mut pass.stage else { return };
        if !waiting.is_empty() {
            if step.now.since(*asked) >= RESEND {
                *asked = step.now;
                for osd in waiting.iter() {
                    let marks = marks.get(osd).cloned().unwrap_or_default();
                    let message = ScrubMessage { number: *number, body: ScrubBody::Mark(marks) };
                    self.send(*osd, holdfast_wire::peer::PeerBody::Scrub(message), step);
                }
            }
            return;
        }
        let (upto, marks) = (upto.clone(), std::mem::take(marks));
        let own = marks.get(&self.whoami).cloned().unwrap_or_default();
        let mut mending = self.take_scrub_marks(&own, step);
        let mut removed = own.remove.len() as u64;
        let Some(active) = self.active() else { return };
        for (osd, marks) in &marks {
            removed += if active.peers.contains_key(osd) { marks.remove.len() as u64 } else { 0 };
            mending += mark_peer(active, *osd, marks);
        }
        if mending > 0 {
            active.clean = false;
        }
        pass.mending += mending + removed;
        pass.go_on(upto, step.now, &self.limits.scrub);
        step.report = true;
        step.rerun = true;
    }

    // ---- answers ----

    /// A member answers.
    pub(crate) fn scrub_answered(&mut self, from: OsdId, message: ScrubMessage, step: &mut Step<'_>) {
        let message = match message {
            ScrubMessage { body: ScrubBody::Note(record), .. } => return self.scrub_record_told(record, step),
            message => message,
        };
        let members = self.scrub_members();
        let is_member = members.contains(&from);
        let Some(pass) = self.scrub.pass.as_mut().filter(|_| is_member) else {
            if matches!(message.body, ScrubBody::Reserved) {
                self.send_scrub(from, 0, ScrubBody::Release, step); // its release was lost
            }
            return;
        };
        match (message.body, &mut pass.stage) {
            (ScrubBody::Reserved, Stage::Reserve { own, asked }) if !pass.slots.contains(&from) => {
                let next = members.into_iter().find(|osd| !pass.slots.contains(osd));
                if *own && next == Some(from) {
                    pass.slots.insert(from);
                    *asked = None;
                    pass.renewed = step.now;
                } else {
                    // It is from before this pass. To keep it and wait for another could close a circle.
                    self.send_scrub(from, 0, ScrubBody::Release, step);
                }
            }
            (ScrubBody::Map(map), Stage::Scan { number, maps, .. }) if *number == message.number => {
                maps.insert(from, map);
            }
            (ScrubBody::Marked, Stage::Mark { number, waiting, .. }) if *number == message.number => {
                waiting.remove(&from);
            }
            _ => {}
        }
    }

    // ---- the end ----

    /// Ends the pass; `complete`: all objects were compared. Always gives `false`: it does not go on.
    fn end_scrub(&mut self, pass: &mut Pass, complete: bool, step: &mut Step<'_>) -> bool {
        self.let_writes_go(pass, step);
        self.release_scrub_slots(pass, step);
        step.report = true;
        if !complete {
            self.scrub.retry_at = Some(step.now + RETRY);
            return false;
        }
        self.check_counts(pass, step);
        let now_ms = self.scrub.wall_ms(step.now);
        let record = &mut self.scrub.record;
        record.verified = pass.verified;
        if let Some(now_ms) = now_ms {
            record.scrubbed_ms = now_ms;
            if pass.kind.is_deep() {
                record.deep_scrubbed_ms = now_ms;
            }
        }
        if pass.kind.is_deep() {
            record.inconsistent_more = pass.unnamed;
        }
        record.served = record.served.max(pass.wish.unwrap_or(Epoch::ZERO));
        tracing::info!(pg = %self.id, osd = %self.whoami, kind = ?pass.kind, verified = pass.verified,
            wrong_copies = pass.faults, inconsistent = record.inconsistent_count(), "scrubbed");
        self.keep_scrub_record(step);
        false
    }

    /// Tells the others what is known of scrubs, those that are being filled, too: they may lead next. Who knows better
    /// says so.
    pub(crate) fn share_scrub_record(&mut self, step: &mut Step<'_>) {
        self.scrub.number += 1;
        let message = ScrubMessage { number: self.scrub.number, body: ScrubBody::Note(self.scrub.record.clone()) };
        self.send_each(self.peers_wanted(), holdfast_wire::peer::PeerBody::Scrub(message), step);
    }

    /// A member knows more than what it was told.
    fn scrub_record_told(&mut self, record: ScrubRecord, step: &mut Step<'_>) {
        if self.scrub.rank(&record, step.now) > self.scrub.rank(&self.scrub.record, step.now) {
            self.scrub.record = record;
            self.keep_scrub_record(step);
        }
    }
}

/// Copies that a peer has in its missing set now. Gives how many.
fn mark_peer(active: &mut Active, osd: OsdId, marks: &ScrubMarks) -> u64 {
    let Some(peer) = active.peers.get_mut(&osd) else { return 0 };
    for item in &marks.missing {
        peer.missing.insert(ObjectKey::of(&item.object), Lack { need: item.need, have: LogVersion::ZERO });
    }
    marks.missing.len() as u64
}
