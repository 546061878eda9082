//! The primary while it serves: admission, execution, replication and commit of client requests.
//!
//! | request | executed when | answered when |
//! |---|---|---|
//! | write | active for writes, object whole on all members and not being filled | its entry is durable on all members |
//! | removal of what cannot be fetched (unfound, or no room) | at once: nothing of the object is needed | its entry is durable on all members |
//! | removal of what a member lacks that has no room for it | as a write, without waiting for that member | its entry is durable on all members |
//! | write seen before | object whole on `min_size` members | with the first result, when that is durable everywhere |
//! | read, failed assert | object whole here and on `min_size` members | its newest write is durable everywhere |
//!
//! Invariants: W1 a write is acknowledged only when every acting member and backfill target has it durable; W2 commits
//! are in log order; W3 what an answer shows of an object is committed (no read of what may be taken back); W4 a request
//! id is executed at most once while its session is remembered; W5 nothing is answered about an object of which fewer
//! than `min_size` acting members hold the newest version: an entry that activation has put into all logs may still be on
//! one disk only; W6 a write is refused before it is logged when a member that carries it out has no room for it, unless
//! it frees space, or when one that lacks the object has no room for the object.
//!
//! What shows an object leaves under the leases of all other acting members (`lease`); a write begins under them (H4).

mod requests;
mod writes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, RequestId, Timestamp};
use holdfast_wire::peer::{BackfillCursor, Notice, PeerBody, PgHistory};
use holdfast_wire::{ClientOutcome, Effect};

use crate::api::{Outbox, Output, Slot};
use crate::backfill::Backfill;
use crate::clients::Queued;
use crate::exec;
use crate::key::ObjectKey;
use crate::missing::Missing;
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Said, Step, TICK};
use crate::recovery::Recovery;
use crate::split::Recount;

/// The monitors are asked again for another acting set after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the primary knows of a member or backfill target.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Newest entry that is durable there.
    pub acked: LogVersion,
    pub missing: Missing,
    /// How far it is filled; ahead of what is durable there by what backfill has just completed.
    pub cursor: BackfillCursor,
    pub acting: bool,
}

impl Peer {
    pub fn new(acked: LogVersion, missing: Missing, cursor: BackfillCursor) -> Peer {
        Peer { acked, missing, cursor, acting: false }
    }
}

/// An answer that waits for the commit of a version.
#[derive(Debug)]
struct Held {
    queued: Queued,
    outcome: ClientOutcome,
    /// Whether a log entry tells of it.
    logged: bool,
}

/// What came of holding an answer.
enum Hold {
    /// It waits for the commit.
    Kept,
    /// It waits in the place of an earlier sending of the same request.
    Replaced(Queued),
    /// It may go out now.
    Due(Held),
}

impl Held {
    fn bytes(&self) -> usize {
        match &self.outcome {
            ClientOutcome::Done { results, .. } => results.iter().map(exec::result_bytes).sum(),
            ClientOutcome::Failed { .. } | ClientOutcome::Refused(_) => 0,
        }
    }
}

/// A write that is not yet durable everywhere.
#[derive(Debug)]
struct InFlight {
    version: LogVersion,
    previous: LogVersion,
    key: ObjectKey,
    effects: Vec<Effect>,
    /// Peers that carry it out; the others only log it. Decided once (B1): when it is sent again, backfill may have come
    /// past the object with what later writes made of it.
    carried_out_by: BTreeSet<OsdId>,
    answers: Vec<Held>,
    sent: Timestamp,
}

/// See the module document.
#[derive(Debug)]
pub(crate) struct Active {
    pub writeable: bool,
    pub peers: BTreeMap<OsdId, Peer>,
    /// Other OSDs that hold copies, and where their logs end.
    pub strays: BTreeMap<OsdId, LogVersion>,
    /// Objects that somebody wants to read, for want of a lease.
    leaseless: BTreeSet<ObjectKey>,
    /// Listings of backfill targets that were asked for so far.
    pub scans: u64,
    /// Others that have said that they hold none.
    pub without_copy: BTreeSet<OsdId>,
    pub recovery: Recovery,
    pub backfill: Option<Backfill>,
    pub committed_to: LogVersion,
    local_durable: LogVersion,
    in_flight: VecDeque<InFlight>,
    /// Answers that wait in there, and the bytes of their results.
    held: usize,
    held_bytes: usize,
    /// Newest uncommitted version by object.
    pub uncommitted: BTreeMap<ObjectKey, LogVersion>,
    /// The newest deletion of an object that was missing here or at a peer. Until it is committed it may come to nothing.
    pub lack_deleted: LogVersion,
    /// Requests that write, have an answer without a log entry, and wait for a commit to get it.
    unlogged: BTreeSet<RequestId>,
    pub clean: bool,
    pub recount: Recount,
    asked_acting_at: Option<Timestamp>,
    /// Who should serve, because this primary lacks something that it cannot get; it goes on with all else meanwhile.
    better_acting: Option<Vec<OsdId>>,
}

impl Active {
    pub fn new(
        writeable: bool,
        head: LogVersion,
        peers: BTreeMap<OsdId, Peer>,
        strays: BTreeMap<OsdId, LogVersion>,
    ) -> Active {
        Active {
            writeable,
            peers,
            strays,
            leaseless: BTreeSet::new(),
            scans: 0,
            without_copy: BTreeSet::new(),
            recovery: Recovery::default(),
            backfill: None,
            committed_to: head,
            local_durable: head,
            in_flight: VecDeque::new(),
            held: 0,
            held_bytes: 0,
            uncommitted: BTreeMap::new(),
            lack_deleted: LogVersion::ZERO,
            unlogged: BTreeSet::new(),
            clean: false,
            recount: Recount::default(),
            asked_acting_at: None,
            better_acting: None,
        }
    }

    /// Requests executed but not answered, in the order in which they came.
    pub fn into_requests(self) -> Vec<Queued> {
        self.in_flight.into_iter().flat_map(|write| write.answers).map(|held| held.queued).collect()
    }

    pub fn release_slots(&self, out: &mut Outbox) {
        if self.recovery.slots.asked_or_held() {
            out.push(Output::Release(Slot::Outgoing));
        }
    }

    pub fn is_uncommitted(&self, key: &ObjectKey) -> bool {
        self.uncommitted.contains_key(key)
    }

    /// Whether a write to any such object is not durable everywhere yet.
    pub fn has_uncommitted(&self, which: impl Fn(&ObjectKey) -> bool) -> bool {
        self.uncommitted.keys().any(which)
    }

    /// Keeps an answer until the version is committed.
    fn hold(&mut self, version: LogVersion, held: Held) -> Hold {
        if version <= self.committed_to {
            return Hold::Due(held);
        }
        let at = self.in_flight.partition_point(|write| write.version < version);
        let Some(write) = self.in_flight.get_mut(at) else { return Hold::Due(held) };
        let id = held.queued.request.id;
        if let Some(same) = write.answers.iter_mut().find(|other| other.queued.request.id == id) {
            self.held_bytes = (self.held_bytes + held.bytes()).saturating_sub(same.bytes());
            return Hold::Replaced(std::mem::replace(same, held).queued);
        }
        if !held.logged && held.queued.request.is_write() {
            self.unlogged.insert(id);
        }
        self.held += 1;
        self.held_bytes += held.bytes();
        write.answers.push(held);
        Hold::Kept
    }

    /// A request whose answer is held without a log entry was sent again: the answer goes to the new sending. Gives the
    /// one that it replaces.
    fn redirect(&mut self, queued: Queued) -> Queued {
        let id = queued.request.id;
        let held = self.in_flight.iter_mut().flat_map(|write| &mut write.answers);
        match held.into_iter().find(|held| !held.logged && held.queued.request.id == id) {
            Some(held) => std::mem::replace(&mut held.queued, queued),
            None => queued,
        }
    }

    /// Whether a write of the object must wait: it is missing, or being copied, on a peer.
    fn is_degraded(&self, key: &ObjectKey) -> bool {
        self.recovery.is_pushing(key) || self.peers.values().any(|peer| peer.missing.contains(key))
    }

    /// Whether a peer that lacks the object has just said that it has no room for it.
    fn lacks_room_for(&self, key: &ObjectKey, now: Timestamp) -> bool {
        let lacks =
            |(osd, peer): (&OsdId, &Peer)| peer.missing.contains(key) && self.recovery.has_no_room(*osd, key, now);
        self.peers.iter().any(lacks)
    }

    /// Whether a peer lacks the object that has not said lately that it has no room for it.
    fn is_to_get(&self, key: &ObjectKey, now: Timestamp) -> bool {
        let is_to_get =
            |(osd, peer): (&OsdId, &Peer)| peer.missing.contains(key) && !self.recovery.has_no_room(*osd, key, now);
        self.peers.iter().any(is_to_get)
    }

    /// Acting members, this one included, that hold the newest version of an object which is whole here.
    fn copies_held(&self, key: &ObjectKey) -> usize {
        1 + self.peers.values().filter(|peer| peer.acting && !peer.missing.contains(key)).count()
    }

    /// Whether a peer is to carry out a write of the object, or only to log it.
    fn takes_effects(&self, osd: OsdId, peer: &Peer, key: &ObjectKey) -> bool {
        peer.cursor.covers(key.as_bytes())
            || self.backfill.as_ref().is_some_and(|backfill| {
                backfill.target == osd && backfill.is_filled(key) && !on(Mutant::BatchNotWritten)
            })
    }

    /// Whether another acting set has been asked for, in which another leads.
    pub fn asks_for_another(&self) -> bool {
        self.better_acting.is_some()
    }

    /// Everything is where it should be, as far as copies go.
    pub fn all_copied(&self) -> bool {
        self.peers.values().all(|peer| peer.missing.is_empty() && peer.cursor.is_complete())
    }
}

/// What came of trying a request.
enum Tried {
    Done,
    /// Until something else happens to the object.
    Wait(Queued),
    /// In the next step, when the store shows what this one does.
    NextStep(Queued),
}

impl Pg {
    pub(crate) fn active(&mut self) -> Option<&mut Active> {
        match &mut self.role {
            Role::Active(active) => Some(active),
            _ => None,
        }
    }

    pub(crate) fn active_heard(&mut self, from: OsdId, body: PeerBody, said: Said, step: &mut Step<'_>) {
        let in_this_activation = said.activation == Some(self.activations);
        if matches!(body, PeerBody::PullReply(_) | PeerBody::PullFailed(_)) {
            self.stray_answers(from);
        }
        match body {
            PeerBody::Notice(Notice { info: Some(info), history, .. }) => {
                if let Some(history) = &history {
                    self.learn_history(history, said.start, step);
                    self.tell_history(from, history, step);
                }
                self.stray_appeared(from, info.last_update, step);
            }
            PeerBody::Notice(_) => {
                if let Some(active) = self.active() {
                    active.without_copy.insert(from);
                }
                self.stray_answers(from);
            }
            PeerBody::PullReply(piece)
                if self.answers_question(from, &ObjectKey::of(&piece.object), &piece.position) =>
            {
                let is_stray = self.active().is_some_and(|active| active.strays.contains_key(&from));
                let told = (in_this_activation || is_stray).then_some(piece.version);
                self.version_told(&ObjectKey::of(&piece.object), told, step);
            }
            PeerBody::PullReply(piece) => self.pull_replied(from, piece, step),
            PeerBody::PullFailed(pull) if pull.version == LogVersion::ZERO => {
                let key = ObjectKey::of(&pull.object);
                if self.answers_question(from, &key, &pull.position) {
                    self.version_told(&key, None, step);
                }
            }
            PeerBody::PullFailed(pull) => self.pull_failed(from, &pull, step),
            PeerBody::NotActivated { activation } if activation == self.activations => {
                tracing::info!(pg = %self.id, %from, activation, "a member has lost track, peering again");
                self.peer_again(step);
            }
            _ if !in_this_activation => {
                tracing::debug!(pg = %self.id, %from, ?said, "message of another activation dropped");
            }
            // That the sender is full, the shell has noted: see `LocalObjects::peer_has_room`.
            PeerBody::RepOpAck { version, full: _ } => self.acknowledged(from, version, step),
            PeerBody::PushAck(ack) => self.push_acknowledged(from, &ack, step),
            PeerBody::BackfillDigest(digest) => self.backfill_compared(from, &digest, step),
            PeerBody::BackfillProgressAck { cursor } => self.backfill_progressed(from, &cursor, step),
            PeerBody::ReservationGrant => self.remote_granted(from),
            PeerBody::ReservationReject => self.remote_rejected(from, step),
            PeerBody::Scrub(message) => self.scrub_answered(from, message, step),
            _ => {}
        }
    }

    fn stray_appeared(&mut self, from: OsdId, head: LogVersion, step: &mut Step<'_>) {
        let Role::Active(active) = &mut self.role else { return };
        if active.peers.contains_key(&from) {
            return;
        }
        if active.clean {
            self.send(from, PeerBody::RemovePg, step);
        } else if active.strays.insert(from, head).is_none() {
            active.recovery.appeared(from, |key| self.clients.is_blocked(key));
        }
        self.stray_answers(from);
    }

    /// Who did not answer does again: what could not be found may be with it.
    fn stray_answers(&mut self, from: OsdId) {
        let Role::Active(active) = &mut self.role else { return };
        if active.recovery.unnamed.note_heard(from) {
            active.recovery.answers_again(from, |key| self.clients.is_blocked(key));
        }
    }

    pub(crate) fn active_saw_map(&mut self) {
        let map = self.map.clone();
        let Some(active) = self.active() else { return };
        active.strays.retain(|osd, _| map.is_up(*osd));
        active.without_copy.retain(|osd| map.is_up(*osd));
    }

    pub(crate) fn advance_active(&mut self, step: &mut Step<'_>) {
        self.run_clients(step);
        self.count_anew(step);
        let mends = on(Mutant::CleanWhileMending) && !self.holding.missing.is_empty();
        let Some(active) = self.active() else { return };
        if active.clean && !mends {
            return;
        }
        self.recover(step);
        self.reach_min_size(step);
        self.settle(step);
    }

    /// Below `min_size` nothing is served. Copies that have been filled join as soon as they make it enough, though others
    /// are not filled yet, or never can be; only what is missing on them waits.
    fn reach_min_size(&mut self, step: &mut Step<'_>) {
        let up = self.members.up.clone();
        let mut want = self.members.acting.clone();
        let (size, min_size) = (self.interval.size as usize, self.interval.min_size as usize);
        let Some(active) = self.active().filter(|active| !active.writeable) else { return };
        if active.backfill.as_ref().is_some_and(|backfill| !backfill.is_between_batches()) {
            return; // what is on its way would be sent again
        }
        let filled = active.peers.iter().filter(|(_, peer)| !peer.acting && peer.cursor.is_complete());
        want.extend(filled.map(|(osd, _)| *osd).take(size.saturating_sub(want.len())));
        if want.len() < min_size || want.len() == self.members.acting.len() {
            return;
        }
        let Some(active) = self.active() else { return };
        if active.asked_acting_at.is_none_or(|at| step.now.since(at) >= ASK_AGAIN) {
            active.asked_acting_at = Some(step.now);
            let want = if want == up { Vec::new() } else { want };
            step.out.push(Output::AskPgTemp { want });
        }
        self.tick_within(ASK_AGAIN, step);
    }

    /// When all copies are whole: clean, or back to the acting set that placement wants.
    fn settle(&mut self, step: &mut Step<'_>) {
        let whole = self.holding.missing.is_empty();
        let up: Vec<OsdId> = self.members.up.clone();
        let (is_up_set, epoch) = (self.members.acting == up, self.map.epoch);
        let size = self.interval.size as usize;
        let acting_len = self.members.acting.len();
        let Some(active) = self.active() else { return };
        let all_copied = active.all_copied() || on(Mutant::CleanTooEarly);
        if !whole || !all_copied || active.backfill.is_some() || !active.recovery.is_settled() {
            return;
        }
        // If such a deletion is lost with this primary, the object is missing again, and a stray may have its only copy.
        if active.lack_deleted > active.committed_to {
            return;
        }
        // Placement that has found no room for all copies must not cost one that there is: the members that serve stay, and
        // when they are as many as there shall be, nothing is left to do before a map places all (`active+clean+remapped`).
        let placed = is_up_set || (up.len() < acting_len.min(size) && !on(Mutant::ShortUpSetAsked));
        if !placed {
            if active.asked_acting_at.is_none_or(|at| step.now.since(at) >= ASK_AGAIN) {
                active.asked_acting_at = Some(step.now);
                step.out.push(Output::AskPgTemp { want: Vec::new() });
            }
            self.tick_within(ASK_AGAIN, step);
            return;
        }
        if acting_len < size || !active.writeable {
            return;
        }
        active.clean = true;
        let strays = std::mem::take(&mut active.strays);
        self.history.last_epoch_clean = epoch;
        crate::intervals::forget_superseded(&mut self.history);
        let mut ops = Vec::new();
        self.push_history_row(&mut ops);
        self.submit(ops, None, step);
        self.share_history(step);
        for stray in strays.into_keys() {
            self.send(stray, PeerBody::RemovePg, step);
        }
        tracing::debug!(pg = %self.id, osd = %self.whoami, "clean");
        step.rerun |= self.holding.guessed;
        step.report = true;
    }

    /// Asks for another to lead, who has `what`. Until the map says so this one serves all that it can: the monitors may be
    /// away. Peering then decides, knowing why.
    pub(crate) fn let_another_lead(&mut self, what: impl Fn(&Peer) -> bool, step: &mut Step<'_>) -> bool {
        let all: Vec<OsdId> = self.members.up.iter().chain(&self.members.acting).copied().collect();
        let acting = self.members.acting.clone();
        let Some(active) = self.active() else { return false };
        let may_lead = |osd: &&OsdId| active.peers.get(osd).is_some_and(|peer| peer.acting && what(peer));
        let Some(first) = all.iter().find(may_lead).copied() else { return false };
        let mut want = vec![first];
        for osd in all {
            if acting.contains(&osd) && !want.contains(&osd) {
                want.push(osd);
            }
        }
        active.better_acting = Some(want);
        active.asked_acting_at = None;
        self.ask_better_acting(step);
        true
    }

    fn ask_better_acting(&mut self, step: &mut Step<'_>) {
        let is_wanted = self.is_cramped() || self.unlisted;
        let Some(active) = self.active() else { return };
        if !is_wanted && active.better_acting.take().is_some() {
            active.asked_acting_at = None;
        }
        let Some(want) = &active.better_acting else { return };
        if active.asked_acting_at.is_none_or(|at| step.now.since(at) >= ASK_AGAIN) {
            active.asked_acting_at = Some(step.now);
            step.out.push(Output::AskPgTemp { want: want.clone() });
        }
        self.tick_within(ASK_AGAIN, step);
    }

    pub(crate) fn share_history(&self, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        for osd in active.peers.keys() {
            self.send(*osd, PeerBody::History(self.history.clone()), step);
        }
    }

    /// A member shows that the word of this activation has not come to it ([`Pg::share_history`] tells it once).
    fn tell_history(&self, to: OsdId, theirs: &PgHistory, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        if active.peers.contains_key(&to) && theirs.last_epoch_started < self.history.last_epoch_started {
            self.send(to, PeerBody::History(self.history.clone()), step);
        }
    }

    pub(crate) fn tick_active(&mut self, step: &mut Step<'_>) {
        let leaseless = self.active().map(|active| std::mem::take(&mut active.leaseless)).unwrap_or_default();
        for key in leaseless {
            self.clients.wake(&key);
            step.rerun = true;
        }
        if !on(Mutant::WritesNotResent) {
            self.resend_writes(step);
        }
        self.resend_transfers(step);
        self.resend_questions(step);
        self.look_again_for_unfound(step);
        self.resend_backfill(step);
        self.renew_slots(step);
        self.ask_better_acting(step);
        let Some(active) = self.active() else { return };
        let busy = !active.in_flight.is_empty() || active.backfill.is_some() || active.recovery.is_busy();
        if busy || active.asked_acting_at.is_some() {
            self.tick_within(TICK, step);
        }
    }
}
