//! What a placement group is told, what it asks for, and what it sees of the local store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_map::{ClusterMap, PgMembers};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::peer::PeerMessage;
use holdfast_wire::{ClientReply, ClientRequest, Effect, Row};

use crate::key::ObjectKey;
use crate::lease::Granted;

/// The attribute that holds an object's version. Clients cannot name it.
pub const VERSION_ATTR: &[u8] = b"\0version";

/// Largest object in bytes: larger values are striped by the client. It bounds how long an op can wait for the
/// recovery of one object.
pub const OBJECT_BYTES_MAX: u64 = 8 << 20;

/// Most bytes of results that a request *with writes* may produce: they are kept in the log for a resend.
pub const WRITE_RESULT_BYTES_MAX: usize = 4096;

/// Names a transaction that was handed to the store. They become durable in order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(pub u64);

/// Where a client's answer goes; the shell's own handle, opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyTo(pub u64);

/// Which of the OSD's two recovery budgets a slot comes from (one each way).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// As primary, sending and fetching.
    Outgoing,
    /// As a target that is filled by its primary.
    Incoming,
    /// As primary, having copies compared.
    ScrubOutgoing,
    /// As a member whose copies are compared.
    ScrubIncoming,
}

/// All that a placement group is ever told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made and taken apart one at a time; a box would cost each message")]
pub enum Input {
    /// A later map than the one that [`crate::Pg::create`] or [`crate::Pg::load`] was given. Epochs come in order; where some
    /// are left out, a new interval of unknown age begins.
    Map {
        /// The map.
        map: Arc<ClusterMap>,
        /// `map.members(pg)`, computed by the shell for all placement groups at once.
        members: PgMembers,
    },
    /// A message about this placement group.
    Peer {
        /// The sender, as authenticated by its connection.
        from: OsdId,
        /// The sender's run, as authenticated by its connection.
        incarnation: Incarnation,
        /// What it says.
        message: PeerMessage,
    },
    /// A client's request.
    Client {
        /// Where the answer goes.
        reply_to: ReplyTo,
        /// What is asked.
        request: ClientRequest,
    },
    /// Nobody waits for these answers any more: what is only queued of them is dropped, and not answered.
    ClientsGone(Vec<ReplyTo>),
    /// This transaction, and all before it, survive a crash.
    Durable(TxnId),
    /// The store could not keep a transaction. The placement group stops for good: nothing after it may be trusted.
    SubmitFailed(TxnId),
    /// The slot that [`Output::Reserve`] asked for is held.
    Reserved(Slot),
    /// The slot is not to be had soon: the device is over its backfill limit.
    ReserveRefused(Slot),
    /// Time has passed: at least the time of the last [`Output::Wake`].
    Tick,
    /// The time of day, told once in a while (a minute or so): by it scrubs are scheduled. Without it none are.
    WallClock {
        /// Unix time in milliseconds.
        unix_ms: u64,
    },
}

/// What the shell is to do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Apply this transaction: visible to [`LocalObjects`] at once, durable later (then [`Input::Durable`]).
    Submit {
        /// Its name.
        txn: TxnId,
        /// What it does, in order, atomically.
        ops: Vec<StoreOp>,
    },
    /// As [`Output::Submit`], and then the children begin: each is a placement group of its own, whose first input may only
    /// come after this; when `txn` is durable, so is the `TxnId(1)` of each (a later one of its own says so, too). One whose collection exists already is
    /// dropped, and its [`StoreOp::Split`] left out. Other shards must not make a child of their own before they know
    /// whether this OSD has a parent to split (`split`).
    Split {
        /// Its name.
        txn: TxnId,
        /// What it does, in order, atomically.
        ops: Vec<StoreOp>,
        /// What the placement group is split into, beside itself.
        children: Vec<crate::Pg>,
    },
    /// Send, best effort.
    Send {
        /// To whom.
        to: OsdId,
        /// What. The same `Arc` when the same goes to several: a shell encodes it once.
        message: Arc<PeerMessage>,
    },
    /// Answer a client.
    Reply {
        /// As given in [`Input::Client`].
        reply_to: ReplyTo,
        /// The answer.
        reply: ClientReply,
        /// It must not leave later than this; then [`RefusedReason::Busy`](holdfast_wire::RefusedReason::Busy) takes its
        /// place, and the client asks again. `None`: it stays true.
        valid_until: Option<Timestamp>,
    },
    /// Ask the monitors to record that this OSD may have gone active in this interval. Repeated until the map says so.
    AskUpThru {
        /// The value that is needed.
        at_least: Epoch,
    },
    /// Ask the monitors for this acting set; empty: `up` again. Repeated until the map says so.
    AskPgTemp {
        /// The acting set wanted.
        want: Vec<OsdId>,
    },
    /// A message came from a newer map: get it.
    NeedMap {
        /// The epoch that is needed.
        at_least: Epoch,
    },
    /// Ask the OSD's budget for a recovery slot; answered by [`Input::Reserved`] or [`Input::ReserveRefused`].
    Reserve(Slot),
    /// Give a slot back, or take the question back.
    Release(Slot),
    /// [`crate::Pg::report`] changed in a way that the monitors should know soon.
    ReportChanged,
    /// Give [`Input::Tick`] at this time; it replaces an earlier wish. A time that is not in the future: at once, after
    /// the outputs before it are applied.
    Wake {
        /// When.
        at: Timestamp,
    },
    /// The copy is gone from the store (durably): forget this placement group.
    Gone,
    /// The local copy of an object turned out to be unreadable. Said once until that copy is written anew.
    CopyDamaged,
    /// A copy that was said to be damaged has been written anew from another one, durably.
    CopyRepaired,
}

/// Where a step puts its outputs.
pub type Outbox = Vec<Output>;

/// One change to this placement group's collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOp {
    /// Makes the collection, if it is missing.
    CreateCollection,
    /// Removes the collection with all it holds. Nothing else follows for this [`crate::Pg`].
    RemoveCollection,
    /// Changes an object. Any effect but [`Effect::Remove`] makes a missing object first; removing a missing object
    /// does nothing.
    Object {
        /// Which.
        key: ObjectKey,
        /// How.
        effect: Effect,
    },
    /// Puts a row of the collection itself.
    PutMeta {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// Deletes a row of the collection itself.
    DeleteMeta {
        /// Its key.
        key: Bytes,
    },
    /// Makes the collection of `child` from the objects of this one with keys from `at` on, and from a copy of this one's own
    /// rows; then does `then` to it, which is about its own rows only.
    Split {
        /// The new placement group.
        child: PgId,
        /// The first key that goes to it.
        at: Bytes,
        /// Changes of the child's own rows.
        then: Vec<StoreOp>,
    },
    /// Deletes the collection's own rows in `start..end`.
    DeleteMetaRange {
        /// First key.
        start: Bytes,
        /// First key after the range.
        end: Bytes,
    },
}

/// The local copy cannot give what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A checksum did not match.
    #[error("checksum mismatch in the local copy: {detail}")]
    Corrupt {
        /// Where, in the store's words.
        detail: String,
    },
    /// The device reported an error.
    #[error("device error: {detail}")]
    Device {
        /// In the store's words.
        detail: String,
    },
}

/// One answer of [`LocalObjects::rows_scan`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowsPage {
    /// Rows in key order.
    pub rows: Vec<Row>,
    /// Whether a limit ended the scan before the range did.
    pub more: bool,
}

/// This placement group's collection, as of all transactions submitted so far, durable or not; and the room around it.
///
/// Reads verify checksums: what is returned is what was written.
pub trait LocalObjects {
    /// Size in bytes; `None` when there is no such object.
    ///
    /// # Errors
    /// [`ReadError`].
    fn stat(&self, key: &ObjectKey) -> Result<Option<u64>, ReadError>;

    /// Bytes from `offset`, at most `length`, fewer at the object's end; none when it is missing.
    ///
    /// # Errors
    /// [`ReadError`].
    fn read(&self, key: &ObjectKey, offset: u64, length: u64) -> Result<Bytes, ReadError>;

    /// One attribute.
    ///
    /// # Errors
    /// [`ReadError`].
    fn attr(&self, key: &ObjectKey, name: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// All attributes, ordered by name.
    ///
    /// # Errors
    /// [`ReadError`].
    fn attrs(&self, key: &ObjectKey) -> Result<Vec<Row>, ReadError>;

    /// The values of these rows, in the order asked.
    ///
    /// # Errors
    /// [`ReadError`].
    fn rows_get(&self, key: &ObjectKey, rows: &[&[u8]]) -> Result<Vec<Option<Bytes>>, ReadError>;

    /// Rows of `start..end` in order, until `limit_rows` rows or, with the last one, `limit_bytes` bytes of keys and
    /// values are reached.
    ///
    /// # Errors
    /// [`ReadError`].
    fn rows_scan(
        &self,
        key: &ObjectKey,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowsPage, ReadError>;

    /// Keys of objects after `after` (`None`: from the first), in key order, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    fn list_objects(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<ObjectKey>, ReadError>;

    /// As [`LocalObjects::list_objects`], with the bytes of each.
    ///
    /// # Errors
    /// [`ReadError`].
    fn list_sizes(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(ObjectKey, u64)>, ReadError>;

    /// A row of the collection itself.
    ///
    /// # Errors
    /// [`ReadError`].
    fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// The collection's own rows of `start..end` in order, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    fn meta_scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadError>;

    /// Whether writes of so many more bytes of objects may be let in, with enough left for all that other primaries have
    /// let in meanwhile. Of zero bytes: whether this OSD is not full. (What carries no bytes of objects — rows, the log,
    /// deletes — fits a full one, too.)
    fn has_room(&self, bytes: u64) -> bool;

    /// Whether a copy of an object that the log says must be here may bring so many bytes: more than
    /// [`LocalObjects::has_room`] lets in, for an object that is missing keeps waiting whoever needs it, also to free
    /// space. Zero bytes always fit.
    fn has_room_to_recover(&self, bytes: u64) -> bool;

    /// Bytes of clients' requests that wait in all placement groups of this OSD, this one included, as of before this step;
    /// zero where nobody counts them.
    fn client_bytes_waiting(&self) -> u64 {
        0
    }

    /// Whether another OSD has room, by what it said last. `true` when it has not said anything.
    fn peer_has_room(&self, osd: OsdId) -> bool;

    /// The end of the newest lease that this run of an OSD has given to this one in an epoch up to `epoch`;
    /// [`Timestamp::ZERO`] when there is none (see `lease`).
    fn lease_from(&self, osd: OsdId, incarnation: Incarnation, epoch: Epoch) -> Timestamp;

    /// The leases that this OSD has given, ended ones too.
    fn leases_granted(&self) -> Vec<Granted>;

    /// Until then this OSD may have given leases before it started.
    fn leases_forgotten_until(&self) -> Timestamp;
}

/// Sizes that bound a placement group's memory and work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Log entries kept when all copies are complete.
    pub log_entries_min: usize,
    /// Log entries kept while a copy is not: a longer log saves more backfills.
    pub log_entries_max: usize,
    /// Bytes of log entries, whatever their count: a whole log must fit one message between OSDs.
    pub log_bytes_max: usize,
    /// Entries dropped at a time, so that the cost of a range delete is shared.
    pub log_trim_batch: usize,
    /// Trimmed entries whose answers are still kept for exactly-once.
    pub dups_max: usize,
    /// Bytes of trimmed entries that are kept.
    pub dups_bytes_max: usize,
    /// Requests of one client run that are remembered as executed when their answers are not kept any more. Some times
    /// what a client has under way in one placement group; the rows of all sessions that one write may change
    /// (`log_trim_batch`) go to the store together with it.
    pub executed_max: usize,
    /// Client runs that are remembered. Far more than write to one placement group within the time in which a client gives
    /// a request up.
    pub sessions_max: usize,
    /// Client requests that wait here for peering, recovery or commit.
    pub client_requests_max: usize,
    /// Bytes of such requests, beside a single larger one; what is beyond is told to come again. One placement group that
    /// cannot serve must not keep the memory that the OSD has for the requests to all others.
    pub client_bytes_max: u64,
    /// Bytes of such requests in all placement groups of an OSD. A connection may bring more than that, and one request
    /// beside it: whatever cannot be served, what can be is.
    pub client_bytes_waiting_max: u64,
    /// Messages kept for a map that has not come yet.
    pub early_messages_max: usize,
    /// Objects that are copied at the same time. While clients are served, none is begun beside another.
    pub transfers_max: usize,
    /// Bytes of an object in one message, bytes and rows together.
    pub piece_bytes: usize,
    /// Objects looked at in one step of a backfill, or of counting anew after a split.
    pub backfill_batch: usize,
    /// Bytes that the effects of one request may have: what the stores of all members take in one transaction.
    pub effects_bytes_max: usize,
    /// How copies are compared.
    pub scrub: ScrubLimits,
}

/// How often, how fast and how far copies are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubLimits {
    /// Between two scrubs.
    pub interval: Duration,
    /// Between two deep scrubs.
    pub deep_interval: Duration,
    /// Objects compared at a time; writes to them may wait for that.
    pub chunk_objects: usize,
    /// Bytes of objects compared at a time in a deep scrub, but for a single larger object.
    pub chunk_bytes: u64,
    /// Bytes that a member reads in one step.
    pub piece_bytes: usize,
    /// Pause between two such steps.
    pub pause: Duration,
    /// The same while the placement group is being written to.
    pub pause_busy: Duration,
    /// Copies that one scrub repairs by itself; what is beyond waits for a person.
    pub repairs_max: u64,
}

impl Default for ScrubLimits {
    fn default() -> ScrubLimits {
        ScrubLimits {
            interval: Duration::from_secs(24 * 60 * 60),
            deep_interval: Duration::from_secs(7 * 24 * 60 * 60),
            chunk_objects: 32,
            chunk_bytes: 8 << 20,
            piece_bytes: 512 << 10,
            pause: Duration::from_millis(8),
            pause_busy: Duration::from_millis(32),
            repairs_max: 5,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            log_entries_min: 3_000,
            log_entries_max: 10_000,
            log_bytes_max: 3 << 20,
            log_trim_batch: 128,
            dups_max: 3_000,
            dups_bytes_max: 2 << 20,
            executed_max: 128,
            sessions_max: 1_024,
            client_requests_max: 4_096,
            client_bytes_max: 32 << 20,
            client_bytes_waiting_max: 48 << 20,
            early_messages_max: 1_024,
            transfers_max: 4,
            piece_bytes: 4 << 20,
            backfill_batch: 128,
            effects_bytes_max: 12 << 20,
            scrub: ScrubLimits::default(),
        }
    }
}

/// A stored copy that cannot be taken up. The OSD must not serve the placement group from it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store could not be read.
    #[error("the placement group's own rows cannot be read")]
    Read(#[from] ReadError),
    /// The collection lacks a row that every copy has.
    #[error("the placement group's {row} row is missing")]
    Absent {
        /// Which.
        row: &'static str,
    },
    /// A row is not what it should be.
    #[error("the placement group's {row} row is malformed: {detail}")]
    Malformed {
        /// Which.
        row: &'static str,
        /// How.
        detail: String,
    },
}
