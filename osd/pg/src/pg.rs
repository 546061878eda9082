//! The placement group: what every role shares, and the door to all of them.
//!
//! A [`Pg`] is one OSD's copy of one placement group. It is in one [`Role`] at a time; each role's transitions are in a
//! module of its own (`follower`, `peering`, `active`, `recovery`, `backfill`). A role lives within one interval: a new
//! interval always starts a new role, and whatever the old one still had under way is dropped or asked again.
//!
//! **One input, one step.** Within a step the store is seen as it was before it: transactions submitted by a step are
//! visible to the next one. What must read an object that the step has changed waits ([`Step::rerun`]).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_types::{Epoch, Incarnation, LogVersion, OsdId, PgId, Timestamp};
use holdfast_wire::peer::{BackfillCursor, Notice, PeerBody, PeerMessage, PgHistory, PgInfo};
use holdfast_wire::{ClientOutcome, ClientReply, Effect, RefusedReason};

use crate::active::Active;
use crate::api::{Input, Limits, LoadError, LocalObjects, Outbox, Output, ReadError, ReplyTo, Slot, StoreOp, TxnId};
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
use crate::rows::{self, HistoryRow};
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
    /// Intervals seen by this instance: tells apart what was started in which.
    interval_number: u64,
    /// The pool's placement groups as of which this copy is split.
    pub(crate) split_to: u32,
    /// Activations that this instance has begun as the primary.
    pub(crate) activations: u64,
    pub(crate) next_txn: u64,
    pending: VecDeque<PendingTxn>,
    /// Messages from newer maps.
    early: VecDeque<(OsdId, Incarnation, PeerMessage)>,
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

    // ---- maps and intervals ----

    fn on_map(&mut self, map: Arc<ClusterMap>, members: PgMembers, step: &mut Step<'_>) {
        if map.epoch <= self.map.epoch || matches!(self.role, Role::Removing) {
            return;
        }
        let deleted = map.is_deleted(self.id.pool);
        if !deleted && !map.pools.contains_key(&self.id.pool) {
            // No map after the one that created the pool can lack it but by its deletion: these monitors have
            // forgotten. What they do not know is kept as it is.
            tracing::error!(pg = %self.id, osd = %self.whoami, epoch = %map.epoch, "a map without this pool is ignored");
            return;
        }
        let gap = map.epoch != self.map.epoch.next();
        let next = Interval::beginning(&map, self.id, &members);
        let continues = self.interval.continues_as(&next) && !gap;
        let led = self.is_primary() && !gap;
        let last_map = std::mem::replace(&mut self.map, map);
        let last_members = std::mem::replace(&mut self.members, members);
        if !led || !self.is_primary() {
            self.leads_since = self.map.epoch;
        }
        if deleted {
            self.remove_copy(RefusedReason::PoolGone, step);
        } else if continues {
            let lag = self.stored_epoch.map_or(0, |stored| self.map.epoch.0 - stored.0);
            if lag >= STORED_EPOCH_LAG_MAX {
                let mut ops = Vec::new();
                self.push_history_row(&mut ops);
                self.submit(ops, None, step);
            }
            self.on_same_interval(step);
        } else {
            let ended = self.interval.ended(&last_map);
            let left = matches!(self.role, Role::Follower(_)).then(|| self.activation()).flatten();
            self.interval = next;
            self.keep_leases(if gap { None } else { last_members.primary() }, step);
            if gap {
                // Whether this is a new interval cannot be told: it counts as one, of unknown age.
                self.interval.may_be_older = Some(true);
                self.forget_past();
            } else if ended.maybe_rw && !on(Mutant::PastForgotten) {
                self.history.past.push(ended);
            }
            self.start_interval(step);
            if let Some(activation) = left.filter(|_| gap) {
                self.ask_activation(activation, step);
            }
        }
        self.deliver_early(step);
    }

    fn forget_past(&mut self) {
        self.history.past.clear();
        self.history.known_from = self.interval.first;
    }

    /// Whether the map means this run of this OSD, and says that it serves.
    fn is_alive(&self) -> bool {
        self.map.osds.get(&self.whoami).is_some_and(|info| info.up && info.incarnation == self.incarnation)
    }

    /// Whether this OSD leads the placement group in the present map.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.members.primary() == Some(self.whoami) && self.is_alive()
    }

    /// Starts a role anew: in a new interval, or because a member has lost track of the present one (see `peering`).
    pub(crate) fn start_interval(&mut self, step: &mut Step<'_>) {
        self.interval_number += 1;
        self.inbox.clear();
        self.cramped = self.is_cramped();
        self.tick_at = None;
        if matches!(self.role, Role::Stopped) {
            return;
        }
        self.leave_role(Role::Removing, step);
        let mut ops = Vec::new();
        if self.stored_epoch.is_none() {
            if std::mem::take(&mut self.discards) {
                // In one transaction with what takes its place: there is no moment at which this disk has no copy and
                // nothing says that it had one.
                ops.push(StoreOp::RemoveCollection);
            }
            ops.push(StoreOp::CreateCollection);
            ops.push(rows::put_info(&self.holding.info()));
        }
        let children = self.split_off(&mut ops, step);
        self.push_history_row(&mut ops);
        if children.is_empty() {
            self.submit(ops, None, step);
        } else {
            self.submit_split(ops, children, step);
        }
        if self.is_primary() {
            self.clients.wait_for_activation();
            self.role = Role::Peering(Box::default());
        } else {
            self.clients.refuse_all(RefusedReason::WrongPrimary, self.map.epoch, step.out);
            self.role = Role::Follower(Follower::new(step.now));
            self.greet_primary(step);
        }
        step.report = true;
    }

    /// Ends the present role: slots are given back, requests that it had executed but not answered wait again.
    fn leave_role(&mut self, next: Role, step: &mut Step<'_>) {
        self.scrub.reset(step.out);
        match std::mem::replace(&mut self.role, next) {
            Role::Active(active) => {
                active.release_slots(step.out);
                self.clients.take_back(active.into_requests());
            }
            Role::Follower(follower) if follower.holds_slot() => step.out.push(Output::Release(Slot::Incoming)),
            Role::Follower(_) | Role::Peering(_) | Role::Removing | Role::Stopped => {}
        }
    }

    /// Puts the history row as it is now.
    pub(crate) fn push_history_row(&mut self, ops: &mut Vec<StoreOp>) {
        let row = HistoryRow { epoch: self.map.epoch, interval: self.interval.clone(), history: self.history.clone() };
        self.stored_epoch = Some(row.epoch);
        ops.push(rows::put_history(&row));
    }

    fn on_same_interval(&mut self, step: &mut Step<'_>) {
        match &self.role {
            Role::Peering(_) => self.peering_saw_map(step),
            Role::Active(_) => self.active_saw_map(),
            Role::Follower(_) | Role::Removing | Role::Stopped => {}
        }
    }

    /// Takes over what a peer knows of the past.
    pub(crate) fn learn_history(&mut self, theirs: &PgHistory, their_interval_start: Epoch, step: &mut Step<'_>) {
        let learnt = intervals::merge_history(&mut self.history, theirs);
        if self.learn_beginning(their_interval_start) || learnt {
            let mut ops = Vec::new();
            self.push_history_row(&mut ops);
            self.submit(ops, None, step);
        }
    }

    /// A sender in the same interval may have seen it begin earlier. Gives whether that is news.
    pub(crate) fn learn_beginning(&mut self, their_interval_start: Epoch) -> bool {
        let earlier = their_interval_start < self.interval.first;
        if earlier {
            self.interval.first = their_interval_start;
        }
        earlier
    }

    /// Drops the copy and, when that is durable, the placement group.
    pub(crate) fn remove_copy(&mut self, reason: RefusedReason, step: &mut Step<'_>) {
        self.leave_role(Role::Removing, step);
        self.clients.refuse_all(reason, self.map.epoch, step.out);
        self.holding = Holding::empty();
        self.submit(vec![StoreOp::RemoveCollection], Some(AfterDurable::Gone), step);
    }

    // ---- messages ----

    fn on_peer(&mut self, from: OsdId, incarnation: Incarnation, message: PeerMessage, step: &mut Step<'_>) {
        if message.pg != self.id {
            return;
        }
        if message.epoch.0 > self.map.epoch.0.saturating_add(EPOCHS_AHEAD_MAX) {
            tracing::warn!(pg = %self.id, %from, epoch = %message.epoch, "message of a map far ahead dropped");
            return;
        }
        if message.epoch > self.map.epoch {
            step.out.push(Output::NeedMap { at_least: message.epoch });
            if self.early.len() >= self.limits.early_messages_max {
                self.early.pop_front(); // its sender repeats it
            }
            self.early.push_back((from, incarnation, message));
            return;
        }
        if self.is_current(from, incarnation, &message) {
            self.dispatch(from, message, step);
        }
    }

    /// F1 and F3: whether sender and receiver are in the same interval, and the sender in its present run.
    fn is_current(&self, from: OsdId, incarnation: Incarnation, message: &PeerMessage) -> bool {
        let sender = self.map.osds.get(&from).is_some_and(|info| info.up && info.incarnation == incarnation);
        let in_interval = message.epoch >= self.interval.first || on(Mutant::StaleIntervalAccepted);
        let current = sender && in_interval && self.is_alive();
        if !current {
            tracing::debug!(pg = %self.id, epoch = %message.epoch, %from, "message of another interval or run dropped");
        }
        current
    }

    fn deliver_early(&mut self, step: &mut Step<'_>) {
        for (from, incarnation, message) in std::mem::take(&mut self.early) {
            self.on_peer(from, incarnation, message, step);
        }
        for queued in self.clients.take_early(self.map.epoch) {
            self.on_client(queued, step);
        }
    }

    fn deliver_inbox(&mut self, step: &mut Step<'_>) {
        while !step.submitted {
            let Some((from, message)) = self.inbox.pop_front() else { return };
            self.dispatch(from, message, step);
        }
    }

    /// Keeps a message until the store shows what this step does.
    pub(crate) fn defer(&mut self, from: OsdId, message: PeerMessage) {
        self.inbox.push_back((from, message));
    }

    fn dispatch(&mut self, from: OsdId, message: PeerMessage, step: &mut Step<'_>) {
        let from_primary = self.members.primary() == Some(from);
        let reads_store = matches!(
            message.body,
            PeerBody::Pull(_)
                | PeerBody::BackfillScan(_)
                | PeerBody::BackfillDigest(_)
                | PeerBody::PushAck(_)
                | PeerBody::QueryLog { whole_after: Some(_), .. }
        );
        if reads_store && step.submitted {
            self.defer(from, message);
            return;
        }
        let said = Said { start: message.interval_start, activation: message.activation };
        match (message.body, &self.role) {
            (body, Role::Follower(_)) if from_primary => self.follow(from, body, said, step),
            (body, Role::Peering(_)) => self.peering_heard(from, body, said, step),
            (body, Role::Active(_)) => self.active_heard(from, body, said, step),
            (_, Role::Follower(_) | Role::Removing | Role::Stopped) => {}
        }
    }

    pub(crate) fn send(&self, to: OsdId, body: PeerBody, step: &mut Step<'_>) {
        self.send_each(std::iter::once(to), body, step);
    }

    /// Sends the same to several: encoded once.
    pub(crate) fn send_each(&self, to: impl IntoIterator<Item = OsdId>, body: PeerBody, step: &mut Step<'_>) {
        self.send_in(self.activation(), to, body, step);
    }

    fn send_in(
        &self,
        activation: Option<u64>,
        to: impl IntoIterator<Item = OsdId>,
        body: PeerBody,
        step: &mut Step<'_>,
    ) {
        let (pg, epoch, interval_start) = (self.id, self.map.epoch, self.interval.first);
        let message = Arc::new(PeerMessage { pg, epoch, interval_start, body, activation });
        step.out.extend(to.into_iter().map(|to| Output::Send { to, message: message.clone() }));
    }

    /// The activation that this copy is in.
    fn activation(&self) -> Option<u64> {
        match &self.role {
            Role::Peering(peering) if peering.is_activating() => Some(self.activations),
            Role::Active(_) => Some(self.activations),
            Role::Follower(follower) => follower.activation(),
            Role::Peering(_) | Role::Removing | Role::Stopped => None,
        }
    }

    /// Sends when all that was submitted so far is durable: nobody may act on what a crash can take back.
    pub(crate) fn send_when_durable(&mut self, to: OsdId, body: PeerBody, step: &mut Step<'_>) {
        let interval = self.interval_number;
        let activation = self.activation();
        match self.pending.back_mut().filter(|_| !on(Mutant::AckActivationBeforeDurable)) {
            Some(last) if last.interval == interval => {
                last.then.push(AfterDurable::Send(to, activation, Box::new(body)));
            }
            Some(last) => {
                // The last transaction belongs to an older interval; what hangs on it must be of this one.
                let txn = last.txn;
                let then = vec![AfterDurable::Send(to, activation, Box::new(body))];
                self.pending.push_back(PendingTxn { txn, interval, then });
            }
            None => self.send(to, body, step),
        }
    }

    pub(crate) fn reply(
        &self,
        reply_to: ReplyTo,
        id: holdfast_types::RequestId,
        outcome: ClientOutcome,
        out: &mut Outbox,
    ) {
        let reply = ClientReply { id, epoch: self.map.epoch, outcome };
        out.push(Output::Reply { reply_to, reply, valid_until: None });
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

    /// Whether an OSD may hold what nobody who was asked can give: one that is down, or that came up just now and has not
    /// made itself known yet.
    pub(crate) fn absent_may_have(&self) -> bool {
        let mut members = self.history.past.iter().flat_map(|past| &past.acting);
        let down = |osd: &OsdId| self.map.osds.get(osd).is_some_and(|info| !info.up);
        members.any(down) || self.unheard().next().is_some()
    }

    /// Members of past intervals that are up and of whom it is not known whether they hold a copy.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = OsdId> {
        let members = self.history.past.iter().flat_map(|past| &past.acting).copied();
        let heard = |osd: &OsdId| match &self.role {
            Role::Active(active) => {
                *osd == self.whoami
                    || active.peers.contains_key(osd)
                    || active.strays.contains(osd)
                    || active.without_copy.contains(osd)
            }
            _ => true,
        };
        members.filter(move |osd| self.map.is_up(*osd) && !heard(osd))
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

    // ---- transactions ----

    pub(crate) fn submit(&mut self, ops: Vec<StoreOp>, then: Option<AfterDurable>, step: &mut Step<'_>) {
        for op in &ops {
            if let StoreOp::Object { key, .. } = op
                && step.touched.last() != Some(key)
            {
                step.touched.push(key.clone());
            }
        }
        let txn = TxnId(self.next_txn);
        self.next_txn += 1;
        self.push_pending(txn);
        then.into_iter().for_each(|then| self.when_last_is_durable(then));
        step.submitted = true;
        step.out.push(Output::Submit { txn, ops });
    }

    /// Waits for a transaction to be durable.
    pub(crate) fn push_pending(&mut self, txn: TxnId) {
        self.pending.push_back(PendingTxn { txn, interval: self.interval_number, then: Vec::new() });
    }

    /// Has `then` done when the transaction that was just submitted is durable.
    pub(crate) fn when_last_is_durable(&mut self, then: AfterDurable) {
        if let Some(last) = self.pending.back_mut() {
            last.then.push(then);
        }
    }

    fn on_durable(&mut self, txn: TxnId, step: &mut Step<'_>) {
        while self.pending.front().is_some_and(|front| front.txn <= txn) {
            let Some(front) = self.pending.pop_front() else { break };
            for then in front.then {
                match then {
                    AfterDurable::Gone => {
                        // Nobody will hear of a newer map here: what waits for one is answered, too.
                        self.clients.refuse_all(RefusedReason::WrongPrimary, self.map.epoch, step.out);
                        self.clients.refuse_early(RefusedReason::WrongPrimary, self.map.epoch, step.out);
                        step.out.push(Output::Gone);
                    }
                    AfterDurable::Repaired => step.out.push(Output::CopyRepaired),
                    _ if front.interval != self.interval_number => {}
                    AfterDurable::Send(to, activation, body) => self.send_in(activation, [to], *body, step),
                    AfterDurable::Activated(head) => self.activation_durable(head),
                    AfterDurable::Logged(version) => self.on_logged(version, step),
                    AfterDurable::OwnActivation => self.own_activation_durable(step),
                    AfterDurable::Fetched(key) => self.fetched_durably(&key, step),
                }
            }
        }
    }

    fn on_logged(&mut self, version: LogVersion, step: &mut Step<'_>) {
        match &self.role {
            Role::Follower(_) => self.follower_logged(version, step),
            Role::Active(_) => self.active_logged(version, step),
            Role::Peering(_) | Role::Removing | Role::Stopped => {}
        }
    }

    fn on_reserved(&mut self, slot: Slot, step: &mut Step<'_>) {
        match (&mut self.role, slot) {
            (Role::Active(_), Slot::Outgoing) => self.outgoing_reserved(step),
            (Role::Follower(_), Slot::Incoming) => self.incoming_reserved(step),
            (Role::Active(_), Slot::ScrubOutgoing) => self.scrub_outgoing_reserved(),
            (Role::Follower(_), Slot::ScrubIncoming) => self.scrub_incoming_reserved(step),
            // The wish has been taken back meanwhile; so has the slot.
            _ => {}
        }
    }

    fn on_reserve_refused(&mut self, slot: Slot, step: &mut Step<'_>) {
        match (&mut self.role, slot) {
            (Role::Active(_), Slot::Outgoing) => self.outgoing_refused(step),
            (Role::Follower(_), Slot::Incoming) => self.incoming_refused(step),
            (Role::Active(_), Slot::ScrubOutgoing) => self.scrub_outgoing_refused(step),
            (Role::Follower(_), Slot::ScrubIncoming) => self.scrub_incoming_refused(),
            _ => {}
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
