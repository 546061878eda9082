//! One run of a storage daemon: from the maps at hand until it is stopped or marked down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_net::mon_session::MonSession;
use holdfast_net::{Endpoint, Handler, Listener, LocalIdentity, NetConfig};
use holdfast_pg::{EPOCHS_AHEAD_MAX, Limits, Pg};
use holdfast_store::SubmitError;
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::Kind;
use holdfast_wire::frame::PeerIdentity;
use holdfast_wire::mon::{FailureKind, MapUpdate, MonCommand, MonReply};
use holdfast_wire::peer::{Heartbeat, HeartbeatReply, MapShare};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::copies::{CaughtUp, TakenUp};
use crate::daemon::{Base, OsdError, ask_maps, hangs};
use crate::handler::{OsdHandler, Sign};
use crate::heartbeat::{HEARTBEAT_GRACE, HEARTBEAT_INTERVAL, HeartbeatTable, Verdict};
use crate::leases::{EARLY_HEARTBEAT, EarlyBeats, Leases};
use crate::local::map_transactions;
use crate::maps::{MapUpdateError, Maps};
use crate::monitors::{self, Wishes};
use crate::peers::{Held, Outbound, Peers};
use crate::report;
use crate::shard::{Event, Fatal, Inbox, MapStep, STALL_GRACE, Shard, Shards, Shared, now};
use crate::slots::Slots;
use crate::space::PeerSpace;
use crate::standing::Standing;

/// Map updates that may wait to be taken; a sender beyond that waits or is heard later.
const UPDATES_MAX: usize = 64;
/// Pause before the monitors are told of this run again, when no map showed it.
const BOOT_REPEAT: Duration = Duration::from_millis(500);
/// Of so many of these attempts one is told in the log.
const BOOT_TOLD_EVERY: u64 = 60;
/// What a record of the store has beside the bytes of an object: headers, checksums, the log entry and its results.
const RECORD_OVERHEAD_BYTES: usize = 256 << 10;
/// A stopping daemon waits this long for the monitors to hear of it.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(1);

/// Maps that a run begins with and that may wait for the shards. Each carries the places of all placement groups.
const MAPS_AT_ONCE: usize = 16;
/// A stopping daemon with a hung device waits this long for what does not wait for the device.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a run ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// The daemon is to end.
    Stopped,
    /// The map says that this run is down.
    MarkedDown { epoch: Epoch },
    /// The store did not take a write that had been let in.
    NotTaken { detail: String },
}

/// The parts of a run that its tasks share.
struct Run {
    shared: Arc<Shared>,
    handler: Arc<dyn Handler>,
    /// Held for moments only, never while a map is stored or fed: heartbeats look here.
    maps: Mutex<Maps>,
    newest: watch::Sender<Arc<ClusterMap>>,
}

impl Run {
    /// Takes an update: each new map goes to the shards, in order, and to the table of peers. Only [`feed_updates`] does
    /// this, so what is taken first is fed first. Blocks while the store takes nothing.
    fn take(&self, update: &MapUpdate) -> Result<(), MapUpdateError> {
        let (new, taken) = self.maps.lock().take(update);
        if let Some(newest) = new.last() {
            self.shared.peers.follow(newest, &self.handler);
        }
        for map in new {
            self.keep(&map);
            self.feed(map);
        }
        taken
    }

    /// Feeds what a run begins with. The shards are waited for now and then: what waits for them must not be all maps of
    /// hours. Blocks while the store takes nothing; ends early when the daemon is to end.
    fn feed_first(&self, maps: CaughtUp, stop: &CancellationToken) {
        self.shared.peers.follow(maps.newest(), &self.handler);
        let kept = maps.kept.into_iter().map(|map| (map, true));
        let new = maps.new.into_iter().map(|map| (map, false));
        for (count, (map, is_kept)) in (1..).zip(kept.chain(new)) {
            if stop.is_cancelled() {
                return;
            }
            if !is_kept {
                self.keep(&map);
            }
            self.feed(map);
            if usize::is_multiple_of(count, MAPS_AT_ONCE) {
                self.shared.shards.wait();
            }
        }
    }

    /// Stores a map; before it is fed, see [`map_transactions`]. Blocks while the store takes nothing.
    fn keep(&self, map: &ClusterMap) {
        for transaction in map_transactions(map) {
            let fatal = self.shared.fatal.clone();
            let kept = self.shared.store.submit(transaction, move |result| {
                if let Err(error) = result {
                    let _ = fatal.send(Fatal::Store(crate::describe(&*error)));
                }
            });
            if let Err(error) = kept {
                let detail = crate::describe(&error);
                let no_space = matches!(error, SubmitError::NoSpace { .. });
                let _ = self.shared.fatal.send(if no_space { Fatal::NotTaken(detail) } else { Fatal::Store(detail) });
                return;
            }
        }
    }

    /// Hands a map that is stored to the shards.
    fn feed(&self, map: Arc<ClusterMap>) {
        debug!(osd = %self.shared.osd, epoch = %map.epoch, "new map");
        let step = MapStep::new(map.clone());
        for index in 0..self.shared.shards.count() {
            self.shared.shards.send_to(index, Event::Map(step.clone()));
        }
        self.newest.send_replace(map);
    }
}

/// Serves until the end of the run.
pub(crate) async fn run(
    base: &Base,
    incarnation: Incarnation,
    maps: CaughtUp,
    taken: TakenUp,
    lost_before: Option<Epoch>,
) -> Result<RunEnd, OsdError> {
    let stop = CancellationToken::new();
    let _stop_tasks = stop.clone().drop_guard();
    let local = LocalIdentity {
        cluster: base.config.cluster,
        identity: PeerIdentity::Osd(base.id),
        incarnation,
        features: 0,
        features_required: 0,
    };
    let endpoint = Endpoint::new(local, NetConfig::default(), stop.clone());
    let (shards, inboxes) = Shards::new(base.config.shards);
    let (fatal, mut fatal_seen) = mpsc::unbounded_channel();
    let (signs, signs_seen) = mpsc::unbounded_channel();
    let (updates, updates_seen) = mpsc::channel(UPDATES_MAX);
    let report_due = Arc::new(Notify::new());
    let leases = Arc::new(Leases::new(now()));
    let shared = Arc::new(Shared {
        osd: base.id,
        incarnation,
        store: base.store.clone(),
        shards: shards.clone(),
        peers: Arc::new(Peers::new(base.id, endpoint.clone())),
        wishes: Arc::new(Wishes::default()),
        slots: Slots::default(),
        limits: limits(base),
        counters: base.counters.clone(),
        lost_before,
        lost_now: base.lost_now,
        lost_copies: taken.lost.iter().map(|(pg, _)| *pg).collect(),
        stall_grace: STALL_GRACE,
        space: PeerSpace::default(),
        leases: leases.clone(),
        fatal,
        report_due: report_due.clone(),
    });
    let handler: Arc<dyn Handler> =
        Arc::new(OsdHandler { shards: shards.clone(), signs, maps: updates.clone(), leases: leases.clone() });
    let (start, newest) = (maps.start.clone(), maps.newest().clone());
    let run = Arc::new(Run {
        shared: shared.clone(),
        handler: handler.clone(),
        maps: Mutex::new(Maps::new(newest)),
        newest: watch::Sender::new(start.clone()),
    });
    let (ended, shards_ended) = mpsc::channel(1);
    start_shards(&shared, &start, taken.pgs, inboxes, &ended)?;
    drop(ended);
    let (feeding, stop_feeding) = (run.clone(), base.stop.clone());
    let mut fed = tokio::task::spawn_blocking(move || feeding.feed_first(maps, &stop_feeding));
    let fed = tokio::select! {
        fed = &mut fed => fed,
        () = stopped_and_hung(base) => {
            base.store.abandon();
            fed.await
        }
    };
    fed.map_err(|panic| OsdError::StoreFailed { detail: format!("feeding the maps panicked: {panic}") })?;
    let _listener = serve(base, &endpoint, &handler)?;

    let mut standing = Standing::default();
    // Before the boot, so that no map that shows it is missed.
    let mut map_seen = run.newest.subscribe();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(feed_updates(run.clone(), updates_seen, updates.clone(), base.session.clone(), stop.clone()));
    tasks.spawn(follow(base.session.clone(), run.clone(), updates.clone()));
    tasks.spawn(monitors::fulfil(
        shared.wishes.clone(),
        base.session.clone(),
        base.id,
        incarnation,
        run.newest.subscribe(),
        run.clone().asker(base, updates.clone()),
        stop.clone(),
    ));
    tasks.spawn(report::run(shared.clone(), base.session.clone(), run.newest.subscribe(), report_due, stop.clone()));
    tasks.spawn(watch_peers(base.session.clone(), run.clone(), signs_seen, stop.clone()));
    tasks.spawn(boot(base.session.clone(), boot_command(base, incarnation), run.clone(), stop.clone()));

    let end = loop {
        tokio::select! {
            () = base.stop.cancelled() => {
                leases.give_up();
                say_stopping(base, incarnation).await;
                break Ok(RunEnd::Stopped);
            }
            Some(fatal) = fatal_seen.recv() => match fatal {
                Fatal::Store(detail) => break Err(OsdError::StoreFailed { detail }),
                Fatal::NotTaken(detail) => {
                    leases.give_up();
                    say_stopping(base, incarnation).await;
                    break Ok(RunEnd::NotTaken { detail });
                }
            },
            _ = map_seen.changed() => {
                let map = map_seen.borrow_and_update().clone();
                let stood = standing;
                standing = stood.by(&map, base.id, incarnation);
                match standing {
                    Standing::Up if stood != Standing::Up => {
                        info!(osd = %base.id, epoch = %map.epoch, "up");
                        base.up.send_replace(true);
                    }
                    Standing::Unseen | Standing::Up => {}
                    Standing::Over => break Ok(RunEnd::MarkedDown { epoch: map.epoch }),
                }
            }
        }
    };
    // The next run's boot says that this one reads nothing any more.
    leases.give_up();
    stop.cancel();
    for index in 0..shards.count() {
        shards.send_to(index, Event::Stop);
    }
    tasks.close();
    let mut shards_ended = shards_ended;
    let all_ended = async {
        // Nothing is ever sent: it ends with the last shard. One that panicked has said why; the run ends in any case.
        let _ = shards_ended.recv().await;
        endpoint.shutdown().await;
        tasks.wait().await;
    };
    let mut all_ended = std::pin::pin!(all_ended);
    tokio::select! {
        () = &mut all_ended => {}
        () = stopped_and_hung(base) => {
            warn!(osd = %base.id, "the device hangs: what waits for it is left");
            base.store.abandon();
            // Who waited for the store goes on now; who waits for the device itself is not waited for.
            let _ = tokio::time::timeout(ABANDONED_TIMEOUT, all_ended).await;
        }
    }
    end
}

/// Ends when the daemon is to end, and its device hangs.
async fn stopped_and_hung(base: &Base) {
    base.stop.cancelled().await;
    hangs(&base.store, STALL_GRACE).await;
}

/// The usual limits, and what one transaction of the store can take: a record lies within one segment. All OSDs of a
/// cluster are to have segments of one size.
pub(crate) fn limits(base: &Base) -> Limits {
    let usual = Limits::default();
    let segment_bytes = usize::try_from(base.store.engine().superblock().segment_bytes).unwrap_or(usize::MAX);
    let record_bytes = segment_bytes.saturating_sub(RECORD_OVERHEAD_BYTES);
    Limits {
        effects_bytes_max: usual.effects_bytes_max.min(record_bytes),
        piece_bytes: usual.piece_bytes.min(record_bytes / 2),
        ..usual
    }
}

async fn say_stopping(base: &Base, incarnation: Incarnation) {
    let stopping = MonCommand::OsdStopping { osd: base.id, incarnation };
    if let Err(error) = base.session.execute_within(stopping, STOPPING_TIMEOUT).await {
        info!(%error, "the monitors were not told that this run stops; its peers will tell them");
    }
}

/// Starts the threads of the shards; each holds `ended` to its end.
fn start_shards(
    shared: &Arc<Shared>,
    start: &Arc<ClusterMap>,
    mut pgs: BTreeMap<PgId, Pg>,
    inboxes: Vec<Inbox>,
    ended: &mpsc::Sender<()>,
) -> Result<(), OsdError> {
    let step = MapStep::new(start.clone());
    let known: BTreeSet<PgId> = pgs.keys().copied().collect();
    let owed: Vec<PgId> = pgs.values().flat_map(Pg::owed_children).filter(|pg| !known.contains(pg)).collect();
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let mine: Vec<PgId> = pgs.keys().copied().filter(|pg| shared.shards.index_of(*pg) == index).collect();
        let owned = mine.into_iter().filter_map(|pg| pgs.remove_entry(&pg)).collect();
        let awaited = owed.iter().copied().filter(|pg| shared.shards.index_of(*pg) == index).collect();
        let shard = Shard::new(index, shared.clone(), step.clone(), owned, awaited);
        let fatal = shared.fatal.clone();
        let ended = ended.clone();
        let body = move || {
            let _ended = ended;
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shard.run(&inbox)));
            if ran.is_err() {
                // A broken invariant: losing this copy is better than spreading what it might say.
                let _ = fatal.send(Fatal::Store("a shard panicked; see the log above".to_owned()));
            }
        };
        let name = format!("{}-shard{index}", shared.osd);
        let thread = std::thread::Builder::new().name(name).spawn(body);
        thread.map_err(|error| OsdError::StoreFailed { detail: format!("no thread: {error}") })?;
    }
    Ok(())
}

fn serve(base: &Base, endpoint: &Arc<Endpoint>, handler: &Arc<dyn Handler>) -> Result<Listener, OsdError> {
    let failed = |source| OsdError::Listen { address: base.address.to_string(), source };
    let socket = base.listener.try_clone().map_err(failed)?;
    let socket = tokio::net::TcpListener::from_std(socket).map_err(failed)?;
    Listener::serve(endpoint, socket, handler.clone()).map_err(failed)
}

/// Takes the updates, one after the other, on a thread that may wait for the store: when its queue is full or it makes room,
/// the worker that heartbeats and answers need goes on. Whoever follows the maps ends when this does, because nobody takes
/// them any more.
async fn feed_updates(
    run: Arc<Run>,
    mut updates_seen: mpsc::Receiver<MapUpdate>,
    updates: mpsc::Sender<MapUpdate>,
    session: MonSession,
    stop: CancellationToken,
) {
    while let Some(Some(update)) = stop.run_until_cancelled(updates_seen.recv()).await {
        let (taking, is_full) = (run.clone(), update.full.is_some());
        match tokio::task::spawn_blocking(move || taking.take(&update)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_full => {
                warn!(error = %crate::describe(&error), "the full map cannot be used either");
            }
            Ok(Err(error)) => {
                warn!(error = %crate::describe(&error), "map update not used; the full map is asked for");
                tokio::spawn(refetch(session.clone(), updates.clone(), stop.clone()));
            }
            Err(panic) => {
                let _ = run.shared.fatal.send(Fatal::Store(format!("feeding the maps panicked: {panic}")));
                return;
            }
        }
    }
}

async fn follow(session: MonSession, run: Arc<Run>, updates: mpsc::Sender<MapUpdate>) {
    session.follow(|| run.maps.lock().current().epoch, updates).await;
}

impl Run {
    /// A queue for epochs that somebody has spoken of; a task fetches them.
    fn asker(self: Arc<Self>, base: &Base, updates: mpsc::Sender<MapUpdate>) -> mpsc::Sender<Epoch> {
        let (wanted, mut wanted_seen) = mpsc::channel::<Epoch>(1);
        let session = base.session.clone();
        tokio::spawn(async move {
            while let Some(epoch) = wanted_seen.recv().await {
                let held = self.maps.lock().current().epoch;
                if held >= epoch {
                    continue;
                }
                match ask_maps(&session, held).await {
                    Ok(update) => {
                        if updates.send(update).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => debug!(error = %crate::describe(&error), "maps could not be fetched"),
                }
            }
        });
        wanted
    }
}

/// After an update that did not apply: the newest full map, handed in like any other update.
async fn refetch(session: MonSession, updates: mpsc::Sender<MapUpdate>, stop: CancellationToken) {
    let fetch = async {
        match ask_maps(&session, Epoch::ZERO).await {
            // A run that is ending takes no more maps.
            Ok(update) => drop(updates.send(update).await),
            Err(error) => debug!(error = %crate::describe(&error), "the full map could not be fetched"),
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = fetch => {}
    }
}

fn boot_command(base: &Base, incarnation: Incarnation) -> MonCommand {
    MonCommand::OsdBoot {
        osd: base.id,
        disk: base.disk,
        incarnation,
        address: base.config.advertise.clone().unwrap_or_else(|| base.address.to_string()),
        can_split: Some(true),
    }
}

/// Tells the monitors of this run until a map shows it.
async fn boot(session: MonSession, command: MonCommand, run: Arc<Run>, stop: CancellationToken) {
    let (me, incarnation) = (run.shared.osd, run.shared.incarnation);
    let mut map = run.newest.subscribe();
    let shown = |map: &Arc<ClusterMap>| map.osds.get(&me).is_some_and(|info| info.incarnation == incarnation);
    for attempt in 0_u64.. {
        // Often enough to be seen, not twice a second while the monitors hold a daemon off for minutes.
        let is_told = attempt.is_multiple_of(BOOT_TOLD_EVERY);
        // Peers take this daemon for dead while its device hangs: it would come up to be found dead again.
        if run.shared.store.stalled_for() > HEARTBEAT_GRACE {
            if is_told {
                warn!(osd = %me, "the device takes nothing: this daemon comes up when it does");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BOOT_REPEAT) => continue,
            }
        }
        match session.execute(command.clone()).await {
            Ok(MonReply::Done { epoch }) => run.shared.wishes.want_map(epoch),
            Ok(MonReply::Failed(error)) if is_told => {
                warn!(osd = %me, %error, "the monitors do not let this daemon boot");
            }
            Err(error) if is_told => warn!(osd = %me, %error, "the monitors were not told of this daemon yet"),
            Ok(MonReply::Failed(_)) | Err(_) => {}
            Ok(_) => warn!(osd = %me, "the monitors answered a boot with something else"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = map.wait_for(shown) => return,
            () = tokio::time::sleep(BOOT_REPEAT) => {}
        }
    }
}

/// Sends heartbeats, and reports who does not answer.
async fn watch_peers(
    session: MonSession,
    run: Arc<Run>,
    mut signs: mpsc::UnboundedReceiver<Sign>,
    stop: CancellationToken,
) {
    let mut table = HeartbeatTable::default();
    let (answers, mut answers_seen) = mpsc::unbounded_channel::<Answer>();
    let mut beat = tokio::time::interval(HEARTBEAT_INTERVAL);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut early_beats, mut early) = (EarlyBeats::default(), tokio::time::interval(EARLY_HEARTBEAT));
    early.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {
                table.watch(now(), &run.shared.peers.watched());
                send_heartbeats(&run, &answers, run.shared.peers.watched().into_keys());
                for verdict in table.overdue(now()) {
                    report_verdict(&session, &run, verdict);
                }
            }
            // Nobody waits a whole interval for the first lease of a peer's new run, or of this one's.
            _ = early.tick() => {
                let due = early_beats.due(now(), &run.shared.peers.watched(), &run.shared.leases);
                send_heartbeats(&run, &answers, due);
            }
            Some(Answer { asked, reply }) = answers_seen.recv() => {
                run.shared.leases.got(reply.from, reply.incarnation, reply.epoch, asked);
                run.shared.space.note(reply.from, reply.full.unwrap_or(false));
                if let Some(verdict) = table.answered(now(), reply.from, reply.incarnation) {
                    report_verdict(&session, &run, verdict);
                }
                share_maps(&run, &reply);
            }
            Some(Sign::Refused { osd, incarnation }) = signs.recv() => {
                let map = run.newest.borrow().clone();
                if map.osds.get(&osd).is_some_and(|info| info.up && info.incarnation == incarnation) {
                    debug!(%osd, "connections are refused: reported");
                    tell(&session, MonCommand::OsdFailure {
                        reporter: run.shared.osd, target: osd, incarnation, kind: FailureKind::Refused,
                    });
                }
            }
        }
    }
}

/// An answered heartbeat.
struct Answer {
    /// When it was sent.
    asked: Timestamp,
    reply: HeartbeatReply,
}

fn send_heartbeats(run: &Arc<Run>, answers: &mpsc::UnboundedSender<Answer>, to: impl IntoIterator<Item = OsdId>) {
    let asked = now();
    let heartbeat = Heartbeat {
        from: run.shared.osd,
        incarnation: run.shared.incarnation,
        epoch: run.newest.borrow().epoch,
        stamp: asked.as_nanos(),
    };
    for osd in to {
        let (peers, answers) = (run.shared.peers.clone(), answers.clone());
        tokio::spawn(async move {
            // Given up after the grace: at most five are under way for one peer, and the early ones.
            if let Some(reply) = peers.heartbeat(osd, &heartbeat, HEARTBEAT_GRACE).await {
                let _ = answers.send(Answer { asked, reply });
            }
        });
    }
}

/// A peer with an older map gets the increments; one with a newer map makes this daemon ask.
fn share_maps(run: &Run, reply: &HeartbeatReply) {
    let maps = run.maps.lock();
    let mine = maps.current().epoch;
    if reply.epoch.0 > mine.0.saturating_add(EPOCHS_AHEAD_MAX) {
        debug!(from = %reply.from, epoch = %reply.epoch, "a peer speaks of a map far ahead");
    } else if reply.epoch > mine {
        run.shared.wishes.want_map(reply.epoch);
    } else if reply.epoch < mine
        && let Some(increments) = maps.after(reply.epoch)
        && let Some(share) = Outbound::new(Kind::MapShare, &MapShare { increments, full: None })
    {
        let mut held = Held::default();
        run.shared.peers.send(reply.from, &share, &mut held);
        held.flush();
    }
}

fn report_verdict(session: &MonSession, run: &Run, verdict: Verdict) {
    let reporter = run.shared.osd;
    let command = match verdict {
        Verdict::Silent { osd, incarnation, silence } => {
            warn!(%osd, ?silence, "peer does not answer: reported");
            let for_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
            MonCommand::OsdFailure { reporter, target: osd, incarnation, kind: FailureKind::Silent { for_ms } }
        }
        Verdict::Alive { osd } => MonCommand::OsdAlive { reporter, target: osd },
    };
    tell(session, command);
}

/// Tells the monitors without waiting: what was lost is said again while it holds.
fn tell(session: &MonSession, command: MonCommand) {
    let session = session.clone();
    tokio::spawn(async move {
        if let Err(error) = session.execute_within(command, HEARTBEAT_GRACE).await {
            debug!(%error, "the monitors did not take a report about a peer");
        }
    });
}
