//! The placement group: what every role shares, and the door to all of them.
//!
//! A [`Pg`] is one OSD's copy of one placement group. It is in one [`Role`] at a time; each role's transitions are in a
//! module of its own (`follower`, `peering`, `active`, `recovery`, `backfill`). A role lives within one interval: a new
//! interval always starts a new role, and whatever the old one still had under way is dropped or asked again.
//!
//! **One input, one step.** Within a step the store is seen as it was before it: transactions submitted by a step are
//! visible to the next one. What must read an object that the step has changed waits ([`Step::rerun`]).

mod maps;
pub(crate) mod messages;
mod transactions;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_types::{Epoch, Incarnation, LogVersion, OsdId, PgId, Timestamp};
use holdfast_wire::Effect;
use holdfast_wire::peer::{BackfillCursor, Notice, PeerBody, PeerMessage, PgHistory, PgInfo};

use crate::active::Active;
use crate::api::{Input, Limits, LoadError, LocalObjects, Outbox, Output, ReadError, StoreOp, TxnId};
use crate::clients::{Clients, Queued};
use crate::follower::Follower;
use crate::intervals::{self, Interval};
use crate::key::ObjectKey;
use crate::lease::Known;
use crate::log::Log;
use crate::merge::Merge;
use crate::missing::Missing;
use crate::mutants::{Mutant, on};
use crate::peering::Peering;
use crate::rows;
use crate::scrub::Scrub;

/// How often unanswered questions are looked at. Well below the time in which a silent peer is marked down.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// Damaged copies that are remembered until they are whole. Far more than a disk that is still worth its power has;
/// what is beyond is repaired all the same, only not counted.
const DAMAGED_MAX: usize = 4_096;
/// A message that names a map further ahead than this is dropped: no peer is so much better informed than an OSD that
/// lives, and the monitors would be asked for that map for ever.
pub const EPOCHS_AHEAD_MAX: u64 = 4_096;
/// The history row is rewritten at least every so many epochs, so that the OSD may forget older maps.
const STORED_EPOCH_LAG_MAX: u64 = 64;

/// What this OSD's store holds of the placement group.
#[derive(Debug)]
pub(crate) struct Holding {
    pub log: Log,
    pub missing: Missing,
    pub last_backfill: BackfillCursor,
    pub last_epoch_started: Epoch,
    /// Takes the place of a copy that was lost, and is not filled yet.
    pub lost: bool,
    /// Whether the counts are a guess (`split`).
    pub guessed: bool,
    /// Bytes of the complete copy that was here before this one, which is not complete yet, takes its place.
    pub replaces_bytes: Option<u64>,
    pub objects: i64,
    pub bytes: i64,
}

impl Holding {
    fn empty() -> Holding {
        Holding {
            log: Log::default(),
            missing: Missing::default(),
            last_backfill: BackfillCursor::Complete,
            last_epoch_started: Epoch::ZERO,
            lost: false,
            guessed: false,
            replaces_bytes: None,
            objects: 0,
            bytes: 0,
        }
    }

    /// Everything is to be filled anew, over what is here.
    pub fn begin_filling(&mut self) {
        if self.last_backfill.is_complete() {
            self.replaces_bytes = Some(u64::try_from(self.bytes).unwrap_or(0));
        }
        self.last_backfill = BackfillCursor::START;
    }

    /// Whether filling this copy takes no more room than the one whose place it takes had.
    pub fn needs_no_more_room(&self) -> bool {
        self.replaces_bytes.is_some_and(|before| i64::try_from(before).is_ok_and(|before| before >= self.bytes))
    }

    pub fn last_complete(&self) -> LogVersion {
        self.missing.last_complete(self.log.head())
    }

    pub fn info(&self) -> PgInfo {
        PgInfo {
            last_update: self.log.head(),
            last_complete: self.last_complete(),
            log_tail: self.log.tail(),
            last_backfill: self.last_backfill.clone(),
            last_epoch_started: self.last_epoch_started,
            objects: u64::try_from(self.objects).unwrap_or(0),
            bytes: u64::try_from(self.bytes).unwrap_or(0),
            lost: self.lost.then_some(true),
            guessed: self.guessed.then_some(true),
            replaces_bytes: self.replaces_bytes,
        }
    }

    /// Takes the counts of another copy.
    pub fn take_counts(&mut self, info: &PgInfo) {
        self.objects = i64::try_from(info.objects).unwrap_or(i64::MAX);
        self.bytes = i64::try_from(info.bytes).unwrap_or(i64::MAX);
        self.guessed = info.guessed == Some(true);
    }

    /// Takes the outcome of a merge, and says what that does to the store (without the info row).
    pub fn take_merge(&mut self, merge: Merge, ops: &mut Vec<StoreOp>) {
        let dropped = self.log.rewind_to(merge.common);
        if !dropped.is_empty() {
            ops.push(rows::delete_log_after(merge.common));
        }
        for entry in merge.adopted {
            ops.push(rows::put_log(&entry));
            self.log.append(entry);
        }
        let remove = |key| StoreOp::Object { key, effect: holdfast_wire::Effect::Remove };
        ops.extend(merge.remove.into_iter().map(remove));
        rows::change_missing(&self.missing, &merge.missing, ops);
        self.missing = merge.missing;
        self.objects += merge.objects_delta;
        self.bytes += merge.bytes_delta;
    }
}

/// What this OSD is to the placement group in the present interval.
#[derive(Debug)]
pub(crate) enum Role {
    /// Not the primary: a replica, a backfill target, or a stray.
    Follower(Follower),
    /// The primary, agreeing with the others on the log.
    Peering(Box<Peering>),
    /// The primary, after all members have taken the log.
    Active(Box<Active>),
    /// The copy is being removed.
    Removing,
    /// The store has failed: nothing more is said.
    Stopped,
}

/// What happens when a transaction is durable, provided that the interval is still the same.
#[derive(Debug)]
pub(crate) enum AfterDurable {
    /// Entries up to this one are durable here.
    Logged(LogVersion),
    /// A message may go out, of the activation in which it was written.
    Send(OsdId, Option<u64>, Box<PeerBody>),
    /// The log that the primary's activation brought is durable, up to this head.
    Activated(LogVersion),
    /// The primary's own activation is durable.
    OwnActivation,
    /// The collection is gone.
    Gone,
    /// A damaged copy of an object is whole again.
    Repaired,
    /// An object that the primary has fetched is here for good.
    Fetched(ObjectKey),
}

#[derive(Debug)]
struct PendingTxn {
    txn: TxnId,
    interval: u64,
    then: Vec<AfterDurable>,
}

/// What a message says beside its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    /// When the present interval began, as far as the sender knows.
    pub start: Epoch,
    /// The activation that the sender is in.
    pub activation: Option<u64>,
}

/// One call of [`Pg::step`].
pub(crate) struct Step<'a> {
    pub now: Timestamp,
    pub store: &'a dyn LocalObjects,
    pub out: &'a mut Outbox,
    /// Objects changed by this step: the store does not show it yet.
    pub touched: Vec<ObjectKey>,
    /// Whether the store is to be changed by this step.
    pub submitted: bool,
    /// Whether something waits for the store to show what this step does.
    pub rerun: bool,
    /// Whether the report changed.
    pub report: bool,
}

/// One placement group on one OSD.
#[derive(Debug)]
pub struct Pg {
    pub(crate) id: PgId,
    pub(crate) whoami: OsdId,
    pub(crate) incarnation: Incarnation,
    pub(crate) limits: Limits,
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) members: PgMembers,
    pub(crate) interval: Interval,
    pub(crate) history: PgHistory,
    pub(crate) holding: Holding,
    pub(crate) role: Role,
    pub(crate) clients: Clients,
    /// Since which epoch this instance has led without a break, if it leads.
    pub(crate) leads_since: Epoch,
    /// Intervals seen by this instance, and activations that it has followed: tells apart what was started in which.
    pub(crate) interval_number: u64,
    /// The pool's placement groups as of which this copy is split.
    pub(crate) split_to: u32,
    /// Activations that this instance has begun as the primary.
    pub(crate) activations: u64,
    pub(crate) next_txn: u64,
    pending: VecDeque<PendingTxn>,
    /// Messages from newer maps.
    pub(crate) early: VecDeque<(OsdId, Incarnation, PeerMessage)>,
    /// Messages that must read what an earlier input of the same step changed.
    inbox: VecDeque<(OsdId, PeerMessage)>,
    /// Objects whose copy here was found unreadable and is not yet written anew; bounded.
    pub(crate) damaged: BTreeSet<ObjectKey>,
    /// What primaries of ended intervals may still go by, as far as it was granted here.
    pub(crate) leases: Known,
    /// Whether the objects of this copy could not be listed, and not since.
    pub(crate) unlisted: bool,
    /// Whether, as primary, it had no room to fetch what is missing here, and still misses something.
    pub(crate) cramped: bool,
    /// Whether this instance has given up what it held once because of that.
    pub(crate) gave_up: bool,
    pub(crate) scrub: Scrub,
    /// Epoch of the stored history row; `None` while there is no collection.
    pub(crate) stored_epoch: Option<Epoch>,
    /// Whether the store holds something under this name that is not to be used.
    discards: bool,
    tick_at: Option<Timestamp>,
    wake_wish: Option<Timestamp>,
    /// Since when, in one attempt after the other, these are waited for who could take the place of the source of the log
    /// (P7); the time begins anew only when others are missed, too.
    pub(crate) stand_ins_missed: Option<(Timestamp, BTreeSet<OsdId>)>,
}

impl Pg {
    /// A placement group of which this disk has no copy yet. `map` is the oldest map at hand that has the pool — at best
    /// the one that created it, which alone proves that nothing happened before; later maps follow as [`Input::Map`].
    #[must_use]
    pub fn create(pg: PgId, whoami: OsdId, incarnation: Incarnation, map: Arc<ClusterMap>, limits: Limits) -> Pg {
        let members = map.members(pg);
        Pg::create_with(pg, whoami, incarnation, map, members, limits)
    }

    /// As [`Pg::create`], for a caller that has computed the members already.
    #[must_use]
    pub fn create_with(
        pg: PgId,
        whoami: OsdId,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
        members: PgMembers,
        limits: Limits,
    ) -> Pg {
        let interval = Interval::beginning(&map, pg, &members);
        let created = map.pools.get(&pg.pool).map_or(map.epoch, |pool| pool.created);
        let history = intervals::new_history(created, map.epoch);
        let leads_since = map.epoch;
        let split_to = interval.pg_num;
        Pg {
            id: pg,
            whoami,
            incarnation,
            limits,
            map,
            members,
            interval,
            history,
            holding: Holding::empty(),
            role: Role::Follower(Follower::unstarted()),
            clients: Clients::default(),
            leads_since,
            interval_number: 0,
            split_to,
            activations: 0,
            next_txn: 1,
            pending: VecDeque::new(),
            early: VecDeque::new(),
            inbox: VecDeque::new(),
            damaged: BTreeSet::new(),
            leases: Known::default(),
            unlisted: false,
            cramped: false,
            gave_up: false,
            scrub: Scrub::default(),
            stored_epoch: None,
            discards: false,
            tick_at: None,
            wake_wish: None,
            stand_ins_missed: None,
        }
    }

    /// A placement group whose copy on this disk is lost: unreadable, or gone with the rest of an untrusted log. It begins
    /// empty, as a copy that has yet to be filled: it is never chosen, and it does not speak for any interval that its
    /// OSD was a member of — as if the disk had been replaced. `discard`: the store still holds what is
    /// left of it. `map` as in [`Pg::create`].
    #[must_use]
    pub fn create_lost(
        pg: PgId,
        whoami: OsdId,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
        limits: Limits,
        discard: bool,
    ) -> Pg {
        let mut this = Pg::create(pg, whoami, incarnation, map, limits);
        this.holding.last_backfill = BackfillCursor::START;
        this.holding.lost = true;
        this.discards = discard;
        this
    }

    /// The epoch of the map to give to [`Pg::load`]: maps after it are then fed one by one.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn stored_epoch(store: &dyn LocalObjects) -> Result<Option<Epoch>, LoadError> {
        Ok(rows::load_history(store)?.map(|row| row.epoch))
    }

    /// Takes up the stored copy after a restart. `map` is that of [`Pg::stored_epoch`], or the first later one at hand.
    ///
    /// # Errors
    /// [`LoadError`]: such a copy must not be used.
    pub fn load(
        pg: PgId,
        whoami: OsdId,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
        limits: Limits,
        store: &dyn LocalObjects,
    ) -> Result<Pg, LoadError> {
        let members = map.members(pg);
        Pg::load_with(pg, whoami, incarnation, map, members, limits, store)
    }

    /// As [`Pg::load`], for a caller that has computed the members already.
    ///
    /// # Errors
    /// [`LoadError`]: such a copy must not be used.
    pub fn load_with(
        pg: PgId,
        whoami: OsdId,
        incarnation: Incarnation,
        map: Arc<ClusterMap>,
        members: PgMembers,
        limits: Limits,
        store: &dyn LocalObjects,
    ) -> Result<Pg, LoadError> {
        let stored = rows::load(store)?;
        let mut this = Pg::create_with(pg, whoami, incarnation, map, members, limits);
        this.history = stored.row.history;
        this.split_to = stored.row.interval.pg_num;
        if this.map.epoch == stored.row.epoch {
            this.interval = stored.row.interval;
        } else {
            // Maps in between are lost: what happened there must be learnt from others.
            this.interval.may_be_older = Some(true);
            this.forget_past();
        }
        this.stored_epoch = Some(stored.row.epoch);
        this.scrub = Scrub::stored(rows::load_scrub(store));
        this.holding = Holding {
            log: stored.log,
            missing: stored.missing,
            last_backfill: stored.info.last_backfill,
            last_epoch_started: stored.info.last_epoch_started,
            lost: stored.info.lost == Some(true),
            guessed: stored.info.guessed == Some(true),
            replaces_bytes: stored.info.replaces_bytes,
            objects: i64::try_from(stored.info.objects).unwrap_or(i64::MAX),
            bytes: i64::try_from(stored.info.bytes).unwrap_or(i64::MAX),
        };
        Ok(this)
    }

    /// The placement group's id.
    #[must_use]
    pub fn id(&self) -> PgId {
        self.id
    }

    /// The map that was applied last.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.map.epoch
    }

    /// Bytes of clients' requests that wait here.
    #[must_use]
    pub fn client_bytes(&self) -> u64 {
        self.clients.bytes()
    }

    /// The acting set of that map, primary first.
    #[must_use]
    pub fn acting(&self) -> &[OsdId] {
        &self.members.acting
    }

    /// Advances by one input: never waits, reads no clock, does no IO but reads through `store`. The same state, `now`,
    /// `input` and store give the same `outbox`.
    pub fn step(&mut self, now: Timestamp, input: Input, store: &dyn LocalObjects, outbox: &mut Outbox) {
        let mut step =
            Step { now, store, out: outbox, touched: Vec::new(), submitted: false, rerun: false, report: false };
        if matches!(self.role, Role::Stopped) {
            return;
        }
        if self.interval_number == 0 {
            self.start_interval(&mut step);
        }
        if self.wake_wish.is_some_and(|at| at <= now) {
            self.wake_wish = None;
        }
        self.apply(input, &mut step);
        self.deliver_inbox(&mut step);
        self.advance(&mut step);
        self.finish(&mut step);
        if !crate::mutants::assertions_are_silent() {
            self.check_invariants();
        }
    }

    fn apply(&mut self, input: Input, step: &mut Step<'_>) {
        match input {
            Input::Map { map, members } => self.on_map(map, members, step),
            Input::Peer { from, incarnation, message } => self.on_peer(from, incarnation, message, step),
            Input::Client { reply_to, request } => self.on_client(Queued { reply_to, request }, step),
            Input::ClientsGone(gone) => drop(self.clients.take_gone(&gone.into_iter().collect())),
            Input::Durable(txn) => self.on_durable(txn, step),
            Input::SubmitFailed(_) => {
                tracing::error!(pg = %self.id, osd = %self.whoami, "the store failed, the placement group stops");
                self.role = Role::Stopped;
            }
            Input::Reserved(slot) => self.on_reserved(slot, step),
            Input::ReserveRefused(slot) => self.on_reserve_refused(slot, step),
            Input::WallClock { unix_ms } => self.wall_clock(unix_ms, step),
            Input::Tick => {
                if self.tick_at.is_some_and(|at| at <= step.now) {
                    self.tick_at = None;
                    self.on_tick(step);
                }
            }
        }
    }

    /// Starts what the input made possible.
    fn advance(&mut self, step: &mut Step<'_>) {
        match &self.role {
            Role::Peering(_) => self.advance_peering(step),
            Role::Active(_) => {
                self.advance_active(step);
                self.advance_scrub(step);
            }
            Role::Follower(_) => self.advance_scrub_member(step),
            Role::Removing | Role::Stopped => {}
        }
    }

    /// Tells the shell when to come back, and whether the report changed.
    fn finish(&mut self, step: &mut Step<'_>) {
        if step.report && self.is_primary() {
            step.out.push(Output::ReportChanged);
        }
        if !self.inbox.is_empty() {
            step.rerun = true;
        }
        let wish = if step.rerun || on(Mutant::WokenForEver) { Some(step.now) } else { self.tick_at };
        if let Some(at) = wish.filter(|at| Some(*at) != self.wake_wish) {
            self.wake_wish = Some(at);
            step.out.push(Output::Wake { at });
        }
    }

    /// Asks for a tick at the latest after `after`.
    pub(crate) fn tick_within(&mut self, after: Duration, step: &Step<'_>) {
        let at = step.now + after;
        if self.tick_at.is_none_or(|set| set > at) {
            self.tick_at = Some(at);
        }
    }

    fn on_tick(&mut self, step: &mut Step<'_>) {
        match &self.role {
            Role::Follower(_) => self.tick_follower(step),
            Role::Peering(_) => self.tick_peering(step),
            Role::Active(_) => self.tick_active(step),
            Role::Removing | Role::Stopped => {}
        }
    }

    // ---- damage ----

    /// Takes note that the copy of an object here cannot be read.
    pub(crate) fn note_damage(&mut self, key: &ObjectKey, error: &ReadError, step: &mut Step<'_>) {
        tracing::warn!(pg = %self.id, osd = %self.whoami, object = ?key, %error, "the copy here is unreadable");
        self.count_damage(key, step);
    }

    /// Counts a bad copy here until it is whole.
    pub(crate) fn count_damage(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        if self.damaged.len() < DAMAGED_MAX && self.damaged.insert(key.clone()) {
            step.out.push(Output::CopyDamaged);
        }
    }

    /// The copy of an object is being written anew as a whole; gives what to do when that is durable.
    pub(crate) fn mend(&mut self, key: &ObjectKey) -> Option<AfterDurable> {
        self.damaged.remove(key).then_some(AfterDurable::Repaired)
    }

    /// A write that leaves nothing of the old bytes ends the damage, too; no other copy was needed for it.
    pub(crate) fn forget_damage(&mut self, key: &ObjectKey, effects: &[Effect]) {
        let replaces = |effect: &Effect| matches!(effect, Effect::Remove | Effect::Truncate { size: 0 });
        if !self.damaged.is_empty() && effects.iter().any(replaces) {
            self.damaged.remove(key);
        }
    }

    /// Takes note of whether the objects of this copy can be listed. Gives whether it is news that they cannot.
    pub(crate) fn note_listing(&mut self, outcome: Result<(), &ReadError>, step: &mut Step<'_>) -> bool {
        if let Err(error) = outcome {
            tracing::error!(pg = %self.id, osd = %self.whoami, %error, "the objects of the copy here cannot be listed");
        }
        let changed = self.unlisted != outcome.is_err();
        self.unlisted = outcome.is_err();
        if changed {
            step.out.push(if self.unlisted { Output::CopyDamaged } else { Output::CopyRepaired });
        }
        changed && self.unlisted
    }

    /// Gives up a copy that is being filled and cannot be compared with another: it is filled from the beginning, as after
    /// a loss. Once in the life of this instance: when that does not help, the device must be replaced.
    pub(crate) fn give_up_unlisted(&mut self, step: &mut Step<'_>) -> bool {
        if self.holding.last_backfill.is_complete() || std::mem::replace(&mut self.gave_up, true) {
            return false;
        }
        tracing::warn!(pg = %self.id, osd = %self.whoami, "what is here of a copy is given up");
        self.holding = Holding { last_backfill: BackfillCursor::START, lost: true, ..Holding::empty() };
        // In one transaction, as in `start_interval`.
        let mut ops = vec![StoreOp::RemoveCollection, StoreOp::CreateCollection];
        ops.push(rows::put_info(&self.holding.info()));
        self.push_history_row(&mut ops);
        self.submit(ops, None, step);
        for _ in std::mem::take(&mut self.damaged) {
            self.when_last_is_durable(AfterDurable::Repaired);
        }
        true
    }

    /// Whether an OSD may hold what nobody who was asked can give: see [`Pg::absent`].
    pub(crate) fn absent_may_have(&self) -> bool {
        self.absent().next().is_some()
    }

    /// OSDs that may hold what nobody who was asked can give: those that are down, those that came up just now and have not
    /// made themselves known yet, and those that do not answer. Some may come twice.
    pub(crate) fn absent(&self) -> impl Iterator<Item = OsdId> {
        let members = self.history.past.iter().flat_map(|past| &past.acting).copied();
        let down = |osd: &OsdId| self.map.osds.get(osd).is_some_and(|info| !info.up);
        members.filter(down).chain(self.unheard())
    }

    /// Members of past intervals that are up and of whom it is not known whether they hold a copy, and strays that do not
    /// answer. Some may come twice.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = OsdId> {
        let members = self.history.past.iter().flat_map(|past| &past.acting).copied();
        let heard = |osd: &OsdId| match &self.role {
            Role::Active(active) => {
                *osd == self.whoami
                    || active.peers.contains_key(osd)
                    || active.strays.contains_key(osd)
                    || active.without_copy.contains(osd)
            }
            _ => true,
        };
        let silent = match &self.role {
            Role::Active(active) => {
                Some(active.recovery.unnamed.silent().filter(|osd| active.strays.contains_key(osd)))
            }
            _ => None,
        };
        members.filter(move |osd| self.map.is_up(*osd) && !heard(osd)).chain(silent.into_iter().flatten())
    }

    /// Whether another one should lead, who has what there is no room for here.
    pub(crate) fn is_cramped(&self) -> bool {
        self.cramped && !self.holding.missing.is_empty()
    }

    /// What this copy says of itself.
    pub(crate) fn notice(&self, step: &Step<'_>) -> Notice {
        let (leases, leases_forgotten_ms) = self.leases_left(step);
        Notice {
            leases,
            leases_forgotten_ms,
            info: Some(self.holding.info()),
            history: Some(self.history.clone()),
            missing_count: self.holding.missing.len() as u64,
            unlisted: self.unlisted.then_some(true),
            cramped: self.is_cramped().then_some(true),
        }
    }

    /// Peers of the primary: acting and up, without itself.
    pub(crate) fn peers_wanted(&self) -> BTreeSet<OsdId> {
        let all = self.members.up.iter().chain(&self.members.acting);
        all.copied().filter(|osd| *osd != self.whoami).collect()
    }
}

/// What an OSD without a copy of the placement group answers to a message about it, if anything.
#[must_use]
pub fn answer_without_copy(message: &PeerMessage, epoch: Epoch) -> Option<PeerMessage> {
    let body = match &message.body {
        PeerBody::QueryInfo | PeerBody::QueryLog { .. } => PeerBody::Notice(Notice::default()),
        // The copy was removed since the primary heard of it: who waits for the object is to look elsewhere.
        PeerBody::Pull(pull) => PeerBody::PullFailed(pull.clone()),
        _ => return None,
    };
    let interval_start = message.interval_start;
    Some(PeerMessage { pg: message.pg, epoch, interval_start, body, activation: None })
}
