//! Recovery slots: how many placement groups of an OSD copy objects at the same time.
//!
//! The primary needs its own OSD's outgoing slot for everything that no client waits for, and a target's incoming slot for
//! what it sends there. Each target counts for itself: one that does not answer, or refuses, keeps nobody else waiting. So
//! no circle of waiting is closed: whoever holds a slot uses it, gives it back, and needs no further one for that; who can
//! make no progress (what is to be sent is unfound, say) gives it back, too, and asks again later.
//!
//! | a target | is left out for |
//! |---|---|
//! | refuses the slot (full, or too busy to queue) | [`SLOT_RETRY`] |
//! | had no room for a piece of a backfill | the same, doubled each time that it happens again |
//! | a backfill can make no progress | the same, doubled each time that it happens again |
//! | has no room for any of the objects that it lacks, or none of them can be had | [`SLOT_RETRY`] |
//!
//! The outgoing slot is not kept for targets that are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{OsdId, Timestamp};
use holdfast_wire::peer::PeerBody;

use crate::api::{Output, Slot};
use crate::pg::{Pg, Step, TICK};

/// A question that is not answered is asked again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// A target that has granted its slot hears of us at least this often (`follower::SLOT_SILENCE_MAX` is much longer).
const SLOT_RENEWAL: Duration = Duration::from_secs(3);
/// After a refusal, a slot is asked for again after this long.
pub(crate) const SLOT_RETRY: Duration = Duration::from_secs(5);
/// Each time that a target finds no room again, the pause is doubled, up to this many times.
const RETRY_DOUBLINGS_MAX: u32 = 3;

/// The pause after want of room has been met so many times in a row.
pub(crate) fn pause_for_room(times: u32) -> Duration {
    SLOT_RETRY * (1 << times.saturating_sub(1).min(RETRY_DOUBLINGS_MAX))
}

/// The recovery slots that this placement group holds or has asked for.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    local: LocalSlot,
    /// When the own slot, having been refused, is asked for again.
    retry_at: Option<Timestamp>,
    remote: BTreeMap<OsdId, RemoteSlot>,
    left_out: BTreeMap<OsdId, LeftOut>,
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

#[derive(Debug)]
struct LeftOut {
    until: Timestamp,
    /// How often in a row it has found no room, or got nowhere.
    times: u32,
}

/// Why a target is left out for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It gives no slot, or nothing of what it lacks can be sent: there is no room for it, or it is unfound.
    Slot,
    /// It had no room for a piece of a backfill.
    Piece,
    /// Its backfill can make no progress.
    Stuck,
}

impl Slots {
    pub fn asked_or_held(&self) -> bool {
        self.local != LocalSlot::None
    }

    pub fn is_granted(&self, target: OsdId) -> bool {
        self.remote.get(&target).is_some_and(|slot| slot.granted)
    }

    pub fn is_left_out(&self, target: OsdId, now: Timestamp) -> bool {
        self.left_out.get(&target).is_some_and(|left_out| left_out.until > now)
    }

    /// The target has found room.
    pub fn found_room(&mut self, target: OsdId) {
        self.left_out.remove(&target);
    }
}

impl Pg {
    fn slots(&mut self) -> Option<&mut Slots> {
        self.active().map(|active| &mut active.recovery.slots)
    }

    /// Whether the own OSD's outgoing slot is held; asks for it if not.
    pub(crate) fn has_outgoing_slot(&mut self, step: &mut Step<'_>) -> bool {
        let Some(slots) = self.slots() else { return false };
        if slots.retry_at.is_some_and(|at| at > step.now) {
            return false;
        }
        slots.retry_at = None;
        if slots.local == LocalSlot::None {
            slots.local = LocalSlot::Asked;
            step.out.push(Output::Reserve(Slot::Outgoing));
        }
        slots.local == LocalSlot::Held
    }

    /// Asks these targets for their slots, and gives back those of all others.
    pub(crate) fn ask_targets(&mut self, targets: &BTreeSet<OsdId>, step: &mut Step<'_>) {
        let Some(slots) = self.slots() else { return };
        let done: Vec<OsdId> = slots.remote.keys().copied().filter(|osd| !targets.contains(osd)).collect();
        slots.remote.retain(|osd, _| targets.contains(osd));
        let mut ask = Vec::new();
        for osd in targets {
            slots.remote.entry(*osd).or_insert_with(|| {
                ask.push(*osd);
                RemoteSlot { granted: false, asked: step.now }
            });
        }
        if !ask.is_empty() {
            self.tick_within(TICK, step);
        }
        self.send_each(done, PeerBody::ReservationRelease, step);
        self.send_each(ask, PeerBody::ReservationRequest, step);
    }

    pub(crate) fn release_all_slots(&mut self, step: &mut Step<'_>) {
        let Some(slots) = self.slots() else { return };
        let held = slots.asked_or_held();
        slots.local = LocalSlot::None;
        let remote = std::mem::take(&mut slots.remote);
        if held {
            step.out.push(Output::Release(Slot::Outgoing));
        }
        self.send_each(remote.into_keys(), PeerBody::ReservationRelease, step);
    }

    pub(crate) fn renew_slots(&mut self, step: &mut Step<'_>) {
        let Some(slots) = self.slots() else { return };
        let mut ask = Vec::new();
        for (osd, slot) in &mut slots.remote {
            let pause = if slot.granted { SLOT_RENEWAL } else { RESEND };
            if step.now.since(slot.asked) >= pause {
                slot.asked = step.now;
                ask.push(*osd);
            }
        }
        let waits = slots.left_out.values().map(|left_out| left_out.until).chain(slots.retry_at);
        if let Some(next) = waits.filter(|at| *at > step.now).min() {
            self.tick_within(next.since(step.now), step);
        }
        self.send_each(ask, PeerBody::ReservationRequest, step);
    }

    /// Leaves a target out for a while: what a backfill has under way to it is ended, for clients may wait for that.
    pub(crate) fn leave_out(&mut self, target: OsdId, refusal: Refusal, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let slots = &mut active.recovery.slots;
        let held = slots.remote.remove(&target).is_some();
        let left_out = slots.left_out.entry(target).or_insert(LeftOut { until: step.now, times: 0 });
        let pause = match refusal {
            Refusal::Slot => SLOT_RETRY,
            Refusal::Piece | Refusal::Stuck => {
                left_out.times = left_out.times.saturating_add(1);
                pause_for_room(left_out.times)
            }
        };
        left_out.until = left_out.until.max(step.now + pause);
        let ended = active.recovery.end_backfill_to(target);
        if active.backfill.as_ref().is_some_and(|backfill| backfill.target == target && backfill.can_be_put_off()) {
            // The next one in need is filled meanwhile; this one is compared again from its cursor.
            active.backfill = None;
            step.report = true;
        }
        if held {
            self.send(target, PeerBody::ReservationRelease, step);
        }
        step.rerun = true; // the own slot may not be needed any more, and clients may go on
        for key in ended {
            self.clients.wake(&key);
        }
        self.tick_within(pause, step);
    }

    pub(crate) fn outgoing_reserved(&mut self, step: &mut Step<'_>) {
        let Some(slots) = self.slots() else { return };
        match slots.local {
            LocalSlot::Asked => slots.local = LocalSlot::Held,
            LocalSlot::None => step.out.push(Output::Release(Slot::Outgoing)),
            LocalSlot::Held => {}
        }
    }

    pub(crate) fn outgoing_refused(&mut self, step: &mut Step<'_>) {
        let Some(slots) = self.slots() else { return };
        slots.local = LocalSlot::None;
        slots.retry_at = Some(step.now + SLOT_RETRY);
        self.tick_within(SLOT_RETRY, step);
    }

    pub(crate) fn remote_granted(&mut self, from: OsdId) {
        if let Some(slot) = self.slots().and_then(|slots| slots.remote.get_mut(&from)) {
            slot.granted = true;
        }
    }

    pub(crate) fn remote_rejected(&mut self, from: OsdId, step: &mut Step<'_>) {
        if self.slots().is_some_and(|slots| slots.remote.contains_key(&from)) {
            self.leave_out(from, Refusal::Slot, step);
        }
    }
}
