//! Recovery by the log: fetching what the primary misses, sending what others miss.
//!
//! An object that a client waits for goes first and needs no slot. The rest needs the OSD's outgoing slot and each
//! target's incoming one, taken in a fixed order (outgoing first, then targets by id), so that no two placement groups wait
//! for each other in a circle. A transfer is a sequence of pieces, one under way at a time; every piece is repeated until
//! it is answered.
//!
//! Invariants: V1 what is sent is committed and whole here; V2 at most [`crate::Limits::transfers_max`] background
//! transfers at a time; V3 an object is written again only after every copy of it is whole (`Active::is_degraded`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::{ObjectPiece, PeerBody, PiecePosition, Pull, Push, PushAck, PushWhat};

use crate::api::{Output, Slot};
use crate::exec;
use crate::key::ObjectKey;
use crate::missing::Lack;
use crate::pg::{AfterDurable, Pg, Role, Step, TICK};
use crate::transfer;
use crate::unnamed::Unnamed;

/// A piece that is not answered is sent or asked for again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// Each time that a piece is not answered again, the pause is doubled, up to this many times: whoever has no room for it
/// would get megabytes every second otherwise, for as long as it is full.
const RESEND_DOUBLINGS_MAX: u32 = 5;
/// A target that has granted its slot hears of us at least this often (`follower::SLOT_SILENCE_MAX` is much longer).
const SLOT_RENEWAL: Duration = Duration::from_secs(3);
/// After a refusal by a target, slots are asked for again after this long.
const SLOT_RETRY: Duration = Duration::from_secs(5);
/// Objects that nobody could give are asked for again after this long.
const UNFOUND_RETRY: Duration = Duration::from_secs(30);
/// Missing objects looked at in one step while searching for one to transfer.
const LOOK_MAX: usize = 256;

/// An object on its way here.
#[derive(Debug)]
struct Incoming {
    version: LogVersion,
    from: OsdId,
    position: PiecePosition,
    sent: Timestamp,
    repeated: u32,
    /// OSDs that cannot give it.
    failed: BTreeSet<OsdId>,
}

/// An object on its way to a peer.
#[derive(Debug)]
struct Outgoing {
    to: OsdId,
    key: ObjectKey,
    /// `None`: the object is to be removed there.
    version: Option<LogVersion>,
    position: PiecePosition,
    backfill: bool,
    sent: Timestamp,
    repeated: u32,
}

/// How long to wait for the answer to a piece that has been sent again so many times.
fn patience(repeated: u32) -> Duration {
    RESEND * (1 << repeated.min(RESEND_DOUBLINGS_MAX))
}

/// The recovery slots that this placement group holds or has asked for.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    local: LocalSlot,
    remote: BTreeMap<OsdId, RemoteSlot>,
    retry_at: Option<Timestamp>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LocalSlot {
    #[default]
    None,
    Asked,
    Held,
}

#[derive(Debug)]
struct RemoteSlot {
    granted: bool,
    asked: Timestamp,
}

impl Slots {
    pub fn asked_or_held(&self) -> bool {
        self.local != LocalSlot::None
    }
}

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pulls: BTreeMap<ObjectKey, Incoming>,
    pushes: BTreeMap<u64, Outgoing>,
    pushing: BTreeMap<ObjectKey, BTreeSet<OsdId>>,
    /// Objects that clients wait for.
    urgent: BTreeSet<ObjectKey>,
    /// Objects that nobody who is up has.
    unfound: BTreeSet<ObjectKey>,
    /// Objects that were fetched and are not durable here yet.
    landing: BTreeSet<ObjectKey>,
    /// When they are looked for again.
    look_again_at: Option<Timestamp>,
    /// Objects of which the version is not known.
    pub unnamed: Unnamed,
    pub slots: Slots,
    last_transfer: u64,
}

impl Recovery {
    /// Puts an object in front, unless nobody has it: who waits for that waits for an OSD to come back.
    pub fn hurry(&mut self, key: &ObjectKey) {
        if !self.unfound.contains(key) {
            self.urgent.insert(key.clone());
        }
    }

    pub fn is_pushing(&self, key: &ObjectKey) -> bool {
        self.pushing.contains_key(key)
    }

    pub fn is_pushing_to(&self, key: &ObjectKey, to: OsdId) -> bool {
        self.pushing.get(key).is_some_and(|targets| targets.contains(&to))
    }

    pub fn is_busy(&self) -> bool {
        let transfers = !self.pulls.is_empty() || !self.pushes.is_empty() || self.unnamed.is_busy();
        transfers || !self.urgent.is_empty() || self.slots.asked_or_held()
    }

    /// Whether nothing is on its way, to its place on the disk here, or in doubt.
    pub fn is_settled(&self) -> bool {
        self.landing.is_empty() && self.unnamed.is_empty()
    }

    pub fn is_transferring(&self) -> bool {
        !self.pulls.is_empty() || !self.pushes.is_empty()
    }

    pub fn transfers(&self) -> usize {
        self.pulls.len() + self.pushes.len()
    }

    pub fn is_landing(&self, key: &ObjectKey) -> bool {
        self.landing.contains(key)
    }

    pub fn is_unfound(&self, key: &ObjectKey) -> bool {
        self.unfound.contains(key)
    }

    pub fn unfound(&self) -> usize {
        self.unfound.len() + self.unnamed.unknown()
    }

    /// Someone new may have what could not be found.
    pub fn retry_unfound(&mut self) {
        self.unfound.clear();
    }

    /// Ends what is on its way of an object that is being deleted. Late pieces are not taken: nothing misses them.
    pub fn cancel(&mut self, key: &ObjectKey) {
        self.pulls.remove(key);
        self.unfound.remove(key);
        if self.pushing.remove(key).is_some() {
            self.pushes.retain(|_, push| push.key != *key);
        }
        self.urgent.remove(key);
        self.unnamed.forget(key);
    }

    /// The number that the next transfer will have.
    pub fn next_transfer(&self) -> u64 {
        self.last_transfer + 1
    }

    fn finish_push(&mut self, transfer: u64) -> Option<Outgoing> {
        let push = self.pushes.remove(&transfer)?;
        if let Some(targets) = self.pushing.get_mut(&push.key) {
            targets.remove(&push.to);
            if targets.is_empty() {
                self.pushing.remove(&push.key);
            }
        }
        Some(push)
    }
}

impl Pg {
    /// Starts what may be transferred now.
    pub(crate) fn recover(&mut self, step: &mut Step<'_>) {
        self.recover_urgent(step);
        let Role::Active(active) = &self.role else { return };
        let mut targets: BTreeSet<OsdId> =
            active.peers.iter().filter(|(_, peer)| !peer.missing.is_empty()).map(|(osd, _)| *osd).collect();
        let backfilling = active.peers.iter().find(|(_, peer)| !peer.cursor.is_complete()).map(|(osd, _)| *osd);
        let backfilling = active.backfill.as_ref().map(|backfill| backfill.target).or(backfilling);
        targets.extend(backfilling);
        let fetchable = self.holding.missing.len() > active.recovery.unfound.len();
        if targets.is_empty() && !fetchable {
            self.release_all_slots(step);
        } else if self.have_slots(&targets, step) {
            self.recover_by_log(step);
            self.backfill(backfilling, step);
        }
        self.report_unfound(step);
    }

    fn recover_urgent(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        if active.recovery.urgent.is_empty() {
            return;
        }
        let urgent: Vec<ObjectKey> = active.recovery.urgent.iter().take(LOOK_MAX).cloned().collect();
        for key in urgent {
            if self.holding.missing.contains(&key) {
                self.start_pull(&key, step);
                continue;
            }
            let Some(active) = self.active() else { return };
            let lacking: Vec<OsdId> =
                active.peers.iter().filter(|(_, peer)| peer.missing.contains(&key)).map(|(osd, _)| *osd).collect();
            if lacking.is_empty() && !active.recovery.is_pushing(&key) {
                active.recovery.urgent.remove(&key);
                self.clients.wake(&key);
                step.rerun = true;
            }
            for osd in lacking {
                self.start_push(osd, &key, step);
            }
        }
    }

    fn recover_by_log(&mut self, step: &mut Step<'_>) {
        let max = self.limits.transfers_max;
        let Role::Active(active) = &self.role else { return };
        let recovery = &active.recovery;
        let free = max.saturating_sub(recovery.transfers());
        if free == 0 {
            return;
        }
        let wanted = self.holding.missing.oldest_first().map(|(key, _)| key);
        let wanted = wanted.filter(|key| !recovery.pulls.contains_key(*key) && !recovery.unfound.contains(*key));
        let pulls: Vec<ObjectKey> = wanted.take(free).cloned().collect();
        let mut pushes = Vec::new();
        for (osd, peer) in &active.peers {
            let lacking = peer.missing.oldest_first().take(LOOK_MAX).map(|(key, _)| key);
            let ready = lacking.filter(|key| {
                !self.holding.missing.contains(key)
                    && !recovery.is_pushing_to(key, *osd)
                    && !active.is_uncommitted(key)
                    && !step.touched.contains(key)
            });
            pushes.extend(ready.take(free.saturating_sub(pulls.len() + pushes.len())).map(|key| (*osd, key.clone())));
        }
        for key in pulls {
            self.start_pull(&key, step);
        }
        for (osd, key) in pushes {
            self.start_push(osd, &key, step);
        }
    }

    // ---- fetching ----

    fn start_pull(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        let Some(lack) = self.holding.missing.get(key) else { return };
        let Some(active) = self.active() else { return };
        if active.recovery.pulls.contains_key(key) || active.recovery.unfound.contains(key) {
            return;
        }
        self.pull_from_next(key, lack.need, BTreeSet::new(), step);
    }

    /// Asks the next OSD that may have the object; without one it is unfound.
    fn pull_from_next(&mut self, key: &ObjectKey, version: LogVersion, failed: BTreeSet<OsdId>, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let holders = active.peers.iter().filter(|(osd, peer)| {
            !peer.missing.contains(key) && peer.cursor.covers(key.as_bytes()) && !failed.contains(osd)
        });
        let (holds, will_hold): (Vec<_>, Vec<_>) = holders.partition(|(_, peer)| peer.acked >= version);
        let strays = active.strays.iter().copied().filter(|osd| !failed.contains(osd));
        // A target that is being filled may have kept what all others lost sight of: it was the only one that had the
        // object, and the log went on without it. It gives out no other version than the one asked for.
        let unfilled = active.peers.iter().filter(|(osd, peer)| {
            !peer.missing.contains(key) && !peer.cursor.covers(key.as_bytes()) && !failed.contains(osd)
        });
        let unfilled = unfilled.map(|(osd, _)| *osd);
        // Last those that are known not to have it, or not to be able to read it: that may have been for a moment only.
        let lack = active.peers.iter().filter(|(osd, peer)| peer.missing.contains(key) && !failed.contains(osd));
        let lack = lack.map(|(osd, _)| *osd).filter(|_| will_hold.is_empty());
        let Some(from) = holds.into_iter().map(|(osd, _)| *osd).chain(strays).chain(unfilled).chain(lack).next() else {
            if will_hold.is_empty() {
                active.recovery.unfound.insert(key.clone());
                active.recovery.urgent.remove(key);
                step.report = true;
                self.tick_within(TICK, step);
                // Who waits for it is told, or waits on for an OSD that is down.
                self.clients.wake(key);
                step.rerun = true;
            }
            // Else the write of this version is on its way to a peer: asked for in the step that sees it acknowledged.
            return;
        };
        let position = PiecePosition::default();
        let incoming = Incoming { version, from, position: position.clone(), sent: step.now, repeated: 0, failed };
        active.recovery.pulls.insert(key.clone(), incoming);
        self.send(from, PeerBody::Pull(Pull { object: key.name(), version, position }), step);
        self.tick_within(TICK, step);
    }

    pub(crate) fn pull_replied(&mut self, from: OsdId, piece: ObjectPiece, step: &mut Step<'_>) {
        let key = ObjectKey::of(&piece.object);
        let Some(active) = self.active() else { return };
        let Some(incoming) = active.recovery.pulls.get_mut(&key) else { return };
        if incoming.from != from || incoming.version != piece.version || incoming.position != piece.position {
            return;
        }
        if !step.store.has_room(piece.data.len() as u64) {
            return; // asked for again, and there may be room then
        }
        let (object, version, next) = (piece.object.clone(), piece.version, piece.next.clone());
        match &next {
            Some(position) => {
                incoming.position = position.clone();
                incoming.sent = step.now;
                incoming.repeated = 0;
            }
            None => {
                active.recovery.pulls.remove(&key);
            }
        }
        self.write_piece(&key, piece, step);
        match next {
            Some(position) => self.send(from, PeerBody::Pull(Pull { object, version, position }), step),
            None => self.object_fetched(key, step),
        }
    }

    pub(crate) fn pull_failed(&mut self, from: OsdId, pull: &Pull, step: &mut Step<'_>) {
        let key = ObjectKey::of(&pull.object);
        let Some(active) = self.active() else { return };
        let matches = |incoming: &Incoming| incoming.from == from && incoming.version == pull.version;
        if !active.recovery.pulls.get(&key).is_some_and(matches) {
            return;
        }
        let Some(mut incoming) = active.recovery.pulls.remove(&key) else { return };
        if let Some(peer) = active.peers.get_mut(&from) {
            // A member that cannot give what it should have lacks it, too: it will be sent back to it.
            peer.missing.insert(key.clone(), Lack { need: pull.version, have: LogVersion::ZERO });
        }
        incoming.failed.insert(from);
        self.pull_from_next(&key, incoming.version, incoming.failed, step);
    }

    /// An object is here, and not yet for good. Until it is, nobody builds on it (V5): a write that reaches a replica
    /// replaces the copy that it was fetched from, and a crash here would then leave none.
    fn object_fetched(&mut self, key: ObjectKey, step: &mut Step<'_>) {
        if let Some(active) = self.active() {
            active.recovery.landing.insert(key.clone());
        }
        self.when_last_is_durable(AfterDurable::Fetched(key));
        step.report |= self.holding.missing.is_empty();
    }

    pub(crate) fn fetched_durably(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        if let Some(active) = self.active() {
            active.recovery.landing.remove(key);
        }
        self.clients.wake(key);
        step.rerun = true;
    }

    // ---- sending ----

    fn start_push(&mut self, to: OsdId, key: &ObjectKey, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        let Some(lack) = active.peers.get(&to).and_then(|peer| peer.missing.get(key)) else { return };
        if active.recovery.is_pushing_to(key, to) || active.is_uncommitted(key) {
            return;
        }
        self.push_object(to, key, Some(lack.need), false, step);
    }

    /// Begins a transfer. `version` `None` removes the object there (backfill only).
    pub(crate) fn push_object(
        &mut self,
        to: OsdId,
        key: &ObjectKey,
        version: Option<LogVersion>,
        backfill: bool,
        step: &mut Step<'_>,
    ) {
        if step.touched.contains(key) {
            step.rerun = true;
            return;
        }
        let Some(active) = self.active() else { return };
        active.recovery.last_transfer += 1;
        let transfer = active.recovery.last_transfer;
        let position = PiecePosition::default();
        let push = Outgoing { to, key: key.clone(), version, position, backfill, sent: step.now, repeated: 0 };
        active.recovery.pushes.insert(transfer, push);
        active.recovery.pushing.entry(key.clone()).or_default().insert(to);
        self.send_piece(transfer, step);
        self.tick_within(TICK, step);
    }

    fn send_piece(&mut self, transfer: u64, step: &mut Step<'_>) {
        let Some(push) = self.active().and_then(|active| active.recovery.pushes.get_mut(&transfer)) else { return };
        push.sent = step.now;
        let (to, key, backfill) = (push.to, push.key.clone(), push.backfill);
        let Some(version) = push.version else {
            let what = PushWhat::Remove(key.name());
            self.send(to, PeerBody::Push(Push { transfer, backfill, what }), step);
            return;
        };
        let position = push.position.clone();
        match transfer::read_piece(step.store, &key, version, &position, self.limits.piece_bytes) {
            Ok(Some(piece)) => {
                let what = PushWhat::Piece(piece);
                self.send(to, PeerBody::Push(Push { transfer, backfill, what }), step);
            }
            outcome => {
                // The own copy is not what the log says: it is not whole either.
                match &outcome {
                    Err(error) => self.note_damage(&key, error, step),
                    Ok(_) => tracing::warn!(pg = %self.id, object = ?key, %version, "own copy has another version"),
                }
                if let Some(active) = self.active() {
                    active.recovery.finish_push(transfer);
                }
                self.mark_own_missing(&key, step);
            }
        }
    }

    pub(crate) fn push_acknowledged(&mut self, from: OsdId, ack: &PushAck, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let Some(push) = active.recovery.pushes.get_mut(&ack.transfer).filter(|push| push.to == from) else { return };
        if let Some(next) = &ack.next {
            if push.position != *next {
                push.position = next.clone();
                push.repeated = 0;
                self.send_piece(ack.transfer, step);
            }
            return;
        }
        let Some(push) = active.recovery.finish_push(ack.transfer) else { return };
        if push.backfill {
            if let Some(backfill) = &mut active.backfill {
                backfill.item_done(&push.key);
            }
        } else if let Some(peer) = active.peers.get_mut(&from) {
            peer.missing.remove(&push.key);
            step.report |= peer.missing.is_empty();
        }
        self.clients.wake(&push.key);
        step.rerun = true;
    }

    // ---- time ----

    pub(crate) fn resend_transfers(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let mut pulls = Vec::new();
        for (key, incoming) in &mut active.recovery.pulls {
            if step.now.since(incoming.sent) >= patience(incoming.repeated) {
                incoming.sent = step.now;
                incoming.repeated += 1;
                let (version, position) = (incoming.version, incoming.position.clone());
                pulls.push((incoming.from, Pull { object: key.name(), version, position }));
            }
        }
        let mut late = Vec::new();
        for (transfer, push) in &mut active.recovery.pushes {
            if step.now.since(push.sent) >= patience(push.repeated) {
                push.repeated += 1;
                late.push(*transfer);
            }
        }
        let gone: Vec<ObjectKey> = active
            .recovery
            .pulls
            .iter()
            .filter(|(_, incoming)| {
                !active.peers.contains_key(&incoming.from) && !active.strays.contains(&incoming.from)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for (from, pull) in pulls {
            self.send(from, PeerBody::Pull(pull), step);
        }
        for transfer in late {
            self.send_piece(transfer, step);
        }
        for key in gone {
            // The stray that was to give it is down.
            let Some(incoming) = self.active().and_then(|active| active.recovery.pulls.remove(&key)) else { continue };
            self.pull_from_next(&key, incoming.version, incoming.failed, step);
        }
    }

    /// What could not be found or read may only have been out of reach: all holders are asked again now and then.
    pub(crate) fn look_again_for_unfound(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let recovery = &mut active.recovery;
        if recovery.unfound() == 0 {
            recovery.look_again_at = None;
            return;
        }
        match recovery.look_again_at {
            None => recovery.look_again_at = Some(step.now + UNFOUND_RETRY),
            Some(at) if at <= step.now => {
                recovery.look_again_at = None;
                recovery.unfound.clear();
                let unheard: BTreeSet<OsdId> = self.unheard().collect();
                self.send_each(unheard, PeerBody::QueryInfo, step);
                self.ask_again_for_unknown(step);
            }
            Some(_) => {}
        }
        self.tick_within(UNFOUND_RETRY, step);
    }

    // ---- slots ----

    /// Whether all slots for these targets are held; asks for the next one if not.
    fn have_slots(&mut self, targets: &BTreeSet<OsdId>, step: &mut Step<'_>) -> bool {
        let Some(active) = self.active() else { return false };
        let slots = &mut active.recovery.slots;
        if slots.retry_at.is_some_and(|at| at > step.now) {
            return false;
        }
        match slots.local {
            LocalSlot::None => {
                slots.local = LocalSlot::Asked;
                step.out.push(Output::Reserve(Slot::Outgoing));
                return false;
            }
            LocalSlot::Asked => return false,
            LocalSlot::Held => {}
        }
        let done: Vec<OsdId> = slots.remote.keys().copied().filter(|osd| !targets.contains(osd)).collect();
        for osd in &done {
            slots.remote.remove(osd);
        }
        let mut ask = None;
        for osd in targets {
            let slot = slots.remote.entry(*osd).or_insert_with(|| {
                ask = Some(*osd);
                RemoteSlot { granted: false, asked: step.now }
            });
            if !slot.granted {
                break;
            }
        }
        let all = targets.iter().all(|osd| slots.remote.get(osd).is_some_and(|slot| slot.granted));
        for osd in done {
            self.send(osd, PeerBody::ReservationRelease, step);
        }
        if let Some(osd) = ask {
            self.send(osd, PeerBody::ReservationRequest, step);
            self.tick_within(TICK, step);
        }
        all
    }

    fn release_all_slots(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let slots = std::mem::take(&mut active.recovery.slots);
        if slots.asked_or_held() {
            step.out.push(Output::Release(Slot::Outgoing));
        }
        for osd in slots.remote.into_keys() {
            self.send(osd, PeerBody::ReservationRelease, step);
        }
    }

    pub(crate) fn renew_slots(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let mut ask = Vec::new();
        for (osd, slot) in &mut active.recovery.slots.remote {
            let pause = if slot.granted { SLOT_RENEWAL } else { RESEND };
            if step.now.since(slot.asked) >= pause {
                slot.asked = step.now;
                ask.push(*osd);
            }
        }
        if active.recovery.slots.retry_at.is_some() {
            self.tick_within(TICK, step);
        }
        for osd in ask {
            self.send(osd, PeerBody::ReservationRequest, step);
        }
    }

    pub(crate) fn outgoing_reserved(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        match active.recovery.slots.local {
            LocalSlot::Asked => active.recovery.slots.local = LocalSlot::Held,
            LocalSlot::None => step.out.push(Output::Release(Slot::Outgoing)),
            LocalSlot::Held => {}
        }
    }

    pub(crate) fn outgoing_refused(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        active.recovery.slots.local = LocalSlot::None;
        active.recovery.slots.retry_at = Some(step.now + SLOT_RETRY);
        self.tick_within(SLOT_RETRY, step);
    }

    pub(crate) fn remote_granted(&mut self, from: OsdId) {
        if let Some(slot) = self.active().and_then(|active| active.recovery.slots.remote.get_mut(&from)) {
            slot.granted = true;
        }
    }

    pub(crate) fn remote_rejected(&mut self, from: OsdId, step: &mut Step<'_>) {
        if self.active().is_some_and(|active| active.recovery.slots.remote.contains_key(&from)) {
            self.release_all_slots(step);
            if let Some(active) = self.active() {
                active.recovery.slots.retry_at = Some(step.now + SLOT_RETRY);
            }
            self.tick_within(SLOT_RETRY, step);
        }
    }

    fn report_unfound(&mut self, _step: &mut Step<'_>) {
        let missing = &self.holding.missing;
        if let Role::Active(active) = &mut self.role {
            active.recovery.unfound.retain(|key| missing.contains(key));
        }
    }

    /// The present version of the own copy of an object; zero when there is none.
    pub(crate) fn own_version(&self, key: &ObjectKey, step: &Step<'_>) -> LogVersion {
        exec::stored_version(step.store, key).unwrap_or(LogVersion::ZERO)
    }
}
