//! Start, runs and end of a storage daemon.
//!
//! Start: identity → OSD id from the monitors → store. Each **run**: catch up with the maps since the last one, take up
//! the placement groups, tell the monitors of the new incarnation, serve until the map says otherwise or the daemon is
//! stopped.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_net::mon_session::{MonSession, MonSessionError};
use holdfast_pg::LoadError;
use holdfast_store::{FormatError, Identity, Options as StoreOptions, Store, StoreConfig, Transaction, TxOp};
use holdfast_types::{ClientId, DiskUuid, Epoch, Incarnation, OsdId, PgId};
use holdfast_wire::mon::{MapUpdate, MonCommand, MonError, MonReply};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::OsdConfig;
use crate::copies::{self, CaughtUp, TakenUp, needed_maps};
use crate::counters::Counters;
use crate::identity::{self, IdentityError};
use crate::local::{collection_of, own_collection};
use crate::lost::{self, Lost};
use crate::maps::Maps;
use crate::run::{self, RunEnd};
use crate::shard::STALL_GRACE;

/// Pause between attempts to reach the monitors while starting.
const RETRY: Duration = Duration::from_millis(200);
/// Time that a stopping daemon takes between two looks at a device that may hang.
const STALL_LOOK: Duration = Duration::from_millis(100);
/// Pause between attempts to begin a run on a full file system.
const RETRY_FULL: Duration = Duration::from_secs(2);

/// Why a storage daemon cannot start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum OsdError {
    /// The identity file.
    #[error("the daemon's identity cannot be used")]
    Identity(#[from] IdentityError),
    /// The monitors cannot be asked, and not for want of patience.
    #[error("the monitors cannot be used")]
    Monitors(#[from] MonSessionError),
    /// The monitors refuse this daemon.
    #[error("the monitors refuse this daemon")]
    Refused(#[source] MonError),
    /// The store cannot be opened.
    #[error("the store in {path} cannot be opened")]
    Store {
        /// The data directory.
        path: String,
        /// Why.
        #[source]
        source: holdfast_store::OpenError,
    },
    /// The store cannot be made.
    #[error("no store can be made in {path}")]
    Format {
        /// The data directory.
        path: String,
        /// Why.
        #[source]
        source: holdfast_store::FormatError,
    },
    /// The mark of a completed formatting cannot be written.
    #[error("cannot write to {path}")]
    Mark {
        /// The data directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The device is another disk's.
    #[error("the device in {path} is {found:?}, this daemon is {wanted:?}")]
    OtherDisk {
        /// The data directory.
        path: String,
        /// On the device.
        found: Identity,
        /// By the identity file and the monitors.
        wanted: Identity,
    },
    /// The store holds what the daemon's own rows should not.
    #[error("the store's own rows cannot be read")]
    OwnRows(#[from] holdfast_store::ReadError),
    /// A map that cannot be used.
    #[error("a cluster map cannot be used")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A placement group's copy cannot be taken up: nothing is served from this disk until a person looked at it.
    #[error("the copy of placement group {pg} on this disk cannot be taken up")]
    PlacementGroup {
        /// Which.
        pg: PgId,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// The configured device is not there. Nothing is made in its place: under `/dev` that would be a file in memory.
    #[error("there is no device {device}: attach it, or make an empty file there with `truncate -s SIZE {device}`")]
    NoDevice {
        /// As configured.
        device: String,
    },
    /// The network.
    #[error("cannot serve on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store failed while serving.
    #[error("the store failed: {detail}")]
    StoreFailed {
        /// In its words.
        detail: String,
    },
    /// An answer that does not fit the question.
    #[error("the monitors answered {command} with something else")]
    Unexpected {
        /// Which question.
        command: &'static str,
    },
}

/// A storage daemon that was started.
#[derive(Debug)]
pub struct OsdHandle {
    id: OsdId,
    address: SocketAddr,
    up: watch::Receiver<bool>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), OsdError>>,
}

impl OsdHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> OsdId {
        self.id
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the map shows it up: `true`. `false` when it ended before; [`OsdHandle::join`] tells why.
    pub fn wait_up(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut up = self.up.clone();
        async move { up.wait_for(|up| *up).await.is_ok() }
    }

    /// Asks it to end: it tells the monitors, finishes what is under way and closes its store. Then [`OsdHandle::join`].
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Why it had to end by itself.
    pub async fn join(self) -> Result<(), OsdError> {
        match self.task.await {
            Ok(end) => end,
            Err(panic) => Err(OsdError::StoreFailed { detail: format!("a task of the daemon panicked: {panic}") }),
        }
    }
}

/// What stays the same over all runs.
pub(crate) struct Base {
    pub(crate) config: OsdConfig,
    pub(crate) disk: DiskUuid,
    pub(crate) id: OsdId,
    pub(crate) session: MonSession,
    pub(crate) store: Store,
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
    pub(crate) up: watch::Sender<bool>,
    pub(crate) counters: Arc<Counters>,
    /// Whether this process has found that all copies on the disk are lost.
    pub(crate) lost_now: bool,
    pub(crate) stop: CancellationToken,
}

/// Starts a storage daemon on a listening socket. Returns when it has its id and its store; it comes up by itself
/// ([`OsdHandle::wait_up`]).
///
/// # Errors
/// [`OsdError`]. Monitors that are not there yet are waited for.
pub async fn start(config: OsdConfig, listener: TcpListener, stop: CancellationToken) -> Result<OsdHandle, OsdError> {
    let no_address = |source| OsdError::Listen { address: "the given socket".to_owned(), source };
    listener.set_nonblocking(true).map_err(no_address)?;
    let address = listener.local_addr().map_err(no_address)?;
    check_attached(&config)?;
    let mut disk = known_disk(&config)?;
    let caller = ClientId(rand::random());
    let session = MonSession::new(config.cluster, &config.monitors, caller, Incarnation(unix_millis()))?;
    let id = match register(&config, disk, &session, &stop).await {
        Err(OsdError::Refused(MonError::Exists { .. })) => {
            // The disk has served and its store is gone: what is made now is a new disk, without a say about the past.
            disk = DiskUuid(rand::random());
            identity::create(&config.data_dir, config.cluster, disk)?;
            warn!(data_dir = %config.data_dir.display(), %disk, "the store is lost: joining as a new disk");
            register(&config, disk, &session, &stop).await?
        }
        registered => registered?,
    };
    let (store, lost_now) = open_store(&config, disk, id).await?;
    make_own_collection(&store).await?;
    info!(osd = %id, %address, data_dir = %config.data_dir.display(), "storage daemon starts");
    let (up, up_seen) = watch::channel(false);
    let counters = Arc::new(Counters::default());
    let base = Base { config, disk, id, session, store, listener, address, up, counters, lost_now, stop: stop.clone() };
    let task = tokio::spawn(live(base));
    Ok(OsdHandle { id, address, up: up_seen, stop, task })
}

/// Milliseconds since 1970; for incarnations, which must only grow.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn register(
    config: &OsdConfig,
    disk: DiskUuid,
    session: &MonSession,
    stop: &CancellationToken,
) -> Result<OsdId, OsdError> {
    let command = MonCommand::OsdRegister {
        disk,
        location: config.location.clone(),
        class: config.class.clone(),
        capacity_bytes: config.capacity_bytes,
        wanted: config.wanted_id,
        blank: Some(is_blank(config, disk)?),
    };
    loop {
        let answer = tokio::select! {
            () = stop.cancelled() => return Err(OsdError::Refused(MonError::Unavailable)),
            answer = session.execute(command.clone()) => answer,
        };
        match answer {
            Ok(MonReply::OsdId(id)) => return Ok(id),
            Ok(MonReply::Failed(error)) => return Err(OsdError::Refused(error)),
            Ok(_) => return Err(OsdError::Unexpected { command: "OsdRegister" }),
            Err(error @ MonSessionError::Timeout { .. }) => {
                warn!(%error, "waiting for the monitors");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Marks a store whose formatting was completed.
const FORMATTED: &str = "formatted";

/// The store, and whether what it held had to be given up.
async fn open_store(config: &OsdConfig, disk: DiskUuid, id: OsdId) -> Result<(Store, bool), OsdError> {
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || open_store_blocking(&config, disk, id)).await;
    opened.unwrap_or_else(|panic| Err(OsdError::StoreFailed { detail: format!("opening the store panicked: {panic}") }))
}

fn store_config(config: &OsdConfig) -> StoreConfig {
    StoreConfig {
        device: config.device.clone().unwrap_or_else(|| config.data_dir.join("block")),
        may_make_device: config.device.is_none(),
        index: config.data_dir.join("index"),
        memory_target: config.memory_target,
        options: StoreOptions { segment_bytes: config.segment_bytes, ..StoreOptions::default() },
    }
}

/// Says at once that a device is not attached, not only when the monitors have answered. It may go later: the store makes
/// none in its place either.
fn check_attached(config: &OsdConfig) -> Result<(), OsdError> {
    let StoreConfig { device, may_make_device, .. } = store_config(config);
    let is_not_there = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let own_to_be_made = may_make_device && std::fs::symlink_metadata(&device).is_err_and(|error| is_not_there(&error));
    match std::fs::metadata(&device) {
        Err(error) if is_not_there(&error) && !own_to_be_made => {
            Err(OsdError::NoDevice { device: device.display().to_string() })
        }
        // Whatever else keeps it from being looked at, its opening will tell.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The disk's uuid; drawn at the first start. Not for a device that holds something: then it is the directory with the
/// identity that is missing (not mounted, on a system disk that was made anew), and neither may the device be formatted
/// nor the monitors hear of a new disk.
fn known_disk(config: &OsdConfig) -> Result<DiskUuid, OsdError> {
    if let Some(disk) = identity::load(&config.data_dir, config.cluster)? {
        return Ok(disk);
    }
    let disk = DiskUuid(rand::random());
    let drawn = Identity { cluster: config.cluster, disk, osd: config.wanted_id.unwrap_or_default() };
    Store::check_device(&store_config(config), drawn).map_err(|source| not_formatted(config, source))?;
    identity::create(&config.data_dir, config.cluster, disk)?;
    Ok(disk)
}

/// Whether the store of this disk is yet to be made. One that was given up has a memory of that in its data directory, and
/// speaks for nothing that it lost.
fn is_blank(config: &OsdConfig, disk: DiskUuid) -> Result<bool, OsdError> {
    let path = config.data_dir.display().to_string();
    let mark = |source| OsdError::Mark { path: path.clone(), source };
    if Lost::read(&config.data_dir).map_err(mark)?.life > 0
        || config.data_dir.join(FORMATTED).try_exists().map_err(mark)?
    {
        return Ok(false);
    }
    let own = Identity { cluster: config.cluster, disk, osd: config.wanted_id.unwrap_or_default() };
    match Store::check_device(&store_config(config), own) {
        Ok(()) => Ok(true),
        Err(FormatError::InUse { found: Some(found), .. }) if found.disk == disk => Ok(false),
        Err(source) => Err(not_formatted(config, source)),
    }
}

fn not_formatted(config: &OsdConfig, source: FormatError) -> OsdError {
    match source {
        FormatError::NoDevice { device } => OsdError::NoDevice { device: device.display().to_string() },
        source => OsdError::Format { path: config.data_dir.display().to_string(), source },
    }
}

fn open_store_blocking(config: &OsdConfig, disk: DiskUuid, id: OsdId) -> Result<(Store, bool), OsdError> {
    let path = config.data_dir.display().to_string();
    let mark = |source| OsdError::Mark { path: path.clone(), source };
    let mut lost = Lost::read(&config.data_dir).map_err(mark)?;
    let identity = Identity { cluster: config.cluster, disk: lost.disk(disk), osd: id };
    let store_config = store_config(config);
    let formatted = config.data_dir.join(FORMATTED);
    if !lost.pending && !formatted.try_exists().map_err(mark)? {
        // Nothing was ever acknowledged from a store whose formatting was not completed. Whether it was, the device knows
        // best.
        let new = match Store::format(&store_config, identity, config.capacity_bytes) {
            Ok(store) => Some(store),
            Err(FormatError::InUse { found: Some(found), .. }) if found == identity => {
                warn!(osd = %id, %path, "the mark of the formatted store is gone, the store is not");
                None
            }
            Err(source) => return Err(not_formatted(config, source)),
        };
        let marked = std::fs::File::create(&formatted)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::File::open(&config.data_dir)?.sync_all());
        marked.map_err(mark)?;
        if let Some(store) = new {
            return Ok((store, false));
        }
    }
    if !lost.pending {
        match Store::open(&store_config) {
            Ok(store) => return check_identity(store, identity, path).map(|store| (store, false)),
            Err(source) if source.copy_is_lost() => {
                error!(osd = %id, path, error = %crate::describe(&source),
                    "what this disk holds cannot be trusted: it is given up, and filled anew from the other copies");
                lost = Lost { life: lost.life + 1, pending: true, before: None };
                lost.write(&config.data_dir).map_err(mark)?;
            }
            Err(source) => return Err(OsdError::Store { path, source }),
        }
    }
    check_given_up(config, disk, lost, identity)?;
    lost::set_aside(config, &store_config.device, &store_config.index).map_err(mark)?;
    let identity = Identity { disk: lost.disk(disk), ..identity };
    let store = Store::format(&store_config, identity, config.capacity_bytes)
        .map_err(|source| not_formatted(config, source))?;
    Lost { pending: false, ..lost }.write(&config.data_dir).map_err(mark)?;
    Ok((store, true))
}

/// Passes a device that holds nothing, or what this daemon gave up, or began to make after that: names of devices change
/// at a boot, and what is there now may be another disk.
fn check_given_up(config: &OsdConfig, disk: DiskUuid, lost: Lost, identity: Identity) -> Result<(), OsdError> {
    let of_life = |life| Identity { disk: Lost { life, ..lost }.disk(disk), ..identity };
    let own = [of_life(lost.life.saturating_sub(1)), of_life(lost.life)];
    match Store::check_device(&store_config(config), own[1]) {
        Err(FormatError::InUse { found: Some(found), .. }) if own.contains(&found) => Ok(()),
        checked => checked.map_err(|source| not_formatted(config, source)),
    }
}

fn check_identity(store: Store, identity: Identity, path: String) -> Result<Store, OsdError> {
    let superblock = store.engine().superblock();
    let found = Identity { cluster: superblock.cluster, disk: superblock.disk, osd: superblock.osd };
    if found != identity {
        return Err(OsdError::OtherDisk { path, found, wanted: identity });
    }
    Ok(store)
}

/// Makes the daemon's own collection on a new disk, durably.
async fn make_own_collection(store: &Store) -> Result<(), OsdError> {
    let Some(transaction) = own_collection(&store.engine().collections()) else { return Ok(()) };
    let failed = |detail: String| OsdError::StoreFailed { detail };
    let (done, durable) = tokio::sync::oneshot::channel();
    let told = move |result: Result<(), Arc<_>>| {
        // The receiver waits just below.
        let _ = done.send(result);
    };
    store.submit(transaction, told).map_err(|error| failed(crate::describe(&error)))?;
    match durable.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(crate::describe(&*error))),
        Err(_) => Err(failed("the store ended".to_owned())),
    }
}

/// Runs, one after the other, until the daemon is stopped or cannot go on.
async fn live(base: Base) -> Result<(), OsdError> {
    let end = loop {
        let maps = match tokio::select! {
            () = base.stop.cancelled() => break Ok(()),
            maps = catch_up(&base) => maps,
        } {
            Ok(maps) => maps,
            Err(OsdError::Monitors(error @ MonSessionError::Timeout { .. })) => {
                warn!(osd = %base.id, %error, "waiting for the monitors");
                pause(&base.stop, RETRY).await;
                continue;
            }
            Err(error) => break Err(error),
        };
        let last = maps.newest().osds.get(&base.id).map_or(0, |info| info.incarnation.0);
        let incarnation = match identity::next_run(&base.config.data_dir, unix_millis().max(last.saturating_add(1))) {
            Ok(incarnation) => incarnation,
            Err(IdentityError::Io { source, .. }) if is_full(&source) => {
                wait_for_room(&base).await;
                continue;
            }
            Err(error) => break Err(error.into()),
        };
        let taken = note_loss(&base, &maps).and_then(|lost| Ok((lost, take_up(&base, incarnation, &maps)?)));
        let (lost, taken) = match taken {
            Ok(taken) => taken,
            Err(OsdError::Mark { source, .. }) if is_full(&source) => {
                wait_for_room(&base).await;
                continue;
            }
            Err(error) => break Err(error),
        };
        match run::run(&base, incarnation, maps, taken, lost).await {
            Ok(RunEnd::Stopped) => break Ok(()),
            Ok(RunEnd::MarkedDown { epoch }) => {
                warn!(osd = %base.id, %epoch, "the monitors marked this daemon down while it lives; it comes back");
                base.up.send_replace(false);
            }
            Ok(RunEnd::NotTaken { detail }) => {
                warn!(osd = %base.id, %detail, "the store did not take a write: the next run starts, and comes back without it");
                base.up.send_replace(false);
                pause(&base.stop, RETRY).await;
            }
            Err(error) => break Err(error),
        }
    };
    base.up.send_replace(false);
    close(base.store, STALL_GRACE).await;
    end
}

/// Waits so long, or until the daemon is to end.
async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// A file system that is full, or of which this user has had all that it may.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

async fn wait_for_room(base: &Base) {
    warn!(osd = %base.id, data_dir = %base.config.data_dir.display(), "the file system is full: waiting for room");
    pause(&base.stop, RETRY_FULL).await;
}

/// Ends when the store's device hangs for longer than `grace`.
pub(crate) async fn hangs(store: &Store, grace: Duration) {
    while store.stalled_for() <= grace {
        tokio::time::sleep(STALL_LOOK).await;
    }
}

/// Closes the store, unless its device hangs: nothing ends the wait for that, and what it has not taken was not
/// acknowledged to anybody.
async fn close(store: Store, grace: Duration) {
    let (closed, told) = tokio::sync::oneshot::channel();
    let closing = store.clone();
    // Not on a thread of the runtime, which waits for those at its own end.
    let thread = std::thread::Builder::new().name("store-close".to_owned()).spawn(move || {
        let result = closing.close();
        // Before it is told: who is told may open the store anew.
        drop(closing);
        // Nobody listens any more when the device hangs.
        let _ = closed.send(result);
    });
    if let Err(error) = thread {
        warn!(%error, "the store was not closed in order; the next start replays");
        return;
    }
    tokio::select! {
        result = told => match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %crate::describe(&error), "the store was not closed in order; the next start replays");
            }
            Err(_) => warn!("closing the store panicked"),
        },
        () = hangs(&store, grace) => {
            warn!("the device hangs: the store is left as it is; the next start replays");
            store.abandon();
        }
    }
}

/// The kept maps that a placement group still needs, and from the monitors all maps after them.
async fn catch_up(base: &Base) -> Result<CaughtUp, OsdError> {
    let mut caught_up = needed_maps(base.store.engine(), base.config.cluster)?;
    let mut maps = Maps::new(caught_up.newest().clone());
    loop {
        let update = ask_maps(&base.session, maps.current().epoch).await?;
        let (new, taken) = maps.take(&update);
        taken.map_err(|error| OsdError::Map(error.into()))?;
        if new.is_empty() {
            return Ok(caught_up);
        }
        caught_up.new.extend(new);
    }
}

/// Maps after `after` from the monitors; the newest full map when `after` is zero.
pub(crate) async fn ask_maps(session: &MonSession, after: Epoch) -> Result<MapUpdate, OsdError> {
    match session.execute(MonCommand::GetMaps { after }).await? {
        MonReply::Maps(update) => Ok(update),
        MonReply::Failed(error) => Err(OsdError::Refused(error)),
        _ => Err(OsdError::Unexpected { command: "GetMaps" }),
    }
}

/// Up to which epoch this disk has lost all that it held, if ever; recorded before the first run after that.
fn note_loss(base: &Base, maps: &CaughtUp) -> Result<Option<Epoch>, OsdError> {
    let data_dir = &base.config.data_dir;
    let mark = |source| OsdError::Mark { path: data_dir.display().to_string(), source };
    let mut lost = Lost::read(data_dir).map_err(mark)?;
    if lost.life > 0 && lost.before.is_none() {
        lost.before = Some(maps.newest().epoch);
        lost.write(data_dir).map_err(mark)?;
    }
    Ok(lost.before)
}

/// The placement groups that this disk has copies of. A copy that cannot be taken up is given up: it begins anew, as a
/// lost one.
fn take_up(base: &Base, incarnation: Incarnation, maps: &CaughtUp) -> Result<TakenUp, OsdError> {
    let taken = copies::take_up(base.store.engine(), base.id, incarnation, maps, run::limits(base));
    let taken = taken.map_err(|(pg, source)| OsdError::PlacementGroup { pg, source })?;
    for (pg, error) in &taken.lost {
        error!(osd = %base.id, %pg, error = %crate::describe(error),
            "the copy of a placement group is not to be used: it is given up, and filled anew from the others");
        base.counters.copy_lost();
    }
    for pg in &taken.deleted {
        remove_collection(base, *pg)?;
    }
    Ok(taken)
}

fn remove_collection(base: &Base, pg: PgId) -> Result<(), OsdError> {
    let ops = vec![TxOp::RemoveCollection { c: collection_of(pg) }];
    let removed = base.store.submit(Transaction { ops }, |result| {
        if let Err(error) = result {
            warn!(error = %crate::describe(&*error), "a copy of a deleted pool was not removed");
        }
    });
    removed.map_err(|error| OsdError::StoreFailed { detail: crate::describe(&error) })
}

#[cfg(test)]
mod tests;
