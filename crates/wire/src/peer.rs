//! Between OSDs: the messages of one placement group, heartbeats, and maps passed on.
//!
//! Every [`PeerMessage`] carries the sender's map epoch and the start of its interval (`docs/invariants.md`, F1): a
//! receiver whose own interval began after `epoch` drops the message, one whose map is older gets the map first. Every
//! message may be lost, duplicated and reordered; receivers are idempotent and senders repeat what is not answered.
//! All but a write (its effects have a limit of their own) stay below [`PEER_MESSAGE_BYTES_MAX`]: what can be larger (objects,
//! listings) is sent in pieces.

use bytes::Bytes;
use holdfast_types::{ClientId, Epoch, Incarnation, LogVersion, ObjectName, OsdId, PgId, RequestId};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::op::{Effect, Row};
use crate::payload::{Blob, PayloadContext};
use crate::scrub::ScrubMessage;

/// What the limits of senders keep messages between OSDs to, in bytes, but for a write. A receiver refuses only what no frame may
/// carry.
pub const PEER_MESSAGE_BYTES_MAX: usize = 8 << 20;

/// One message about one placement group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct PeerMessage {
    /// The placement group.
    #[n(0)]
    pub pg: PgId,
    /// The sender's map.
    #[n(1)]
    pub epoch: Epoch,
    /// First epoch of the sender's interval.
    #[n(2)]
    pub interval_start: Epoch,
    /// What is said.
    #[n(3)]
    pub body: PeerBody,
    /// The activation that this belongs to: counted by the primary in one run of its process, and repeated by the
    /// members that have taken its log in it. What replicates, recovers or fills is used only within the activation that
    /// both sides are in (F1 tells intervals apart, but one interval may see several activations).
    #[n(4)]
    pub activation: Option<u64>,
}

/// What OSDs say to each other about a placement group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum PeerBody {
    /// Primary → anyone: tell me of your copy. Answered by [`PeerBody::Notice`].
    #[n(0)]
    QueryInfo,
    /// The sender's copy; an answer, or unasked from a stray to a new primary.
    #[n(1)]
    Notice(#[n(0)] Notice),
    /// Primary → holder: send your log after `since`. Answered by [`PeerBody::Log`].
    #[n(2)]
    QueryLog {
        /// The last entry that the primary assumes to be shared; [`LogVersion::ZERO`] asks for the whole log.
        #[n(0)]
        since: LogVersion,
        /// Say, too, whether you can give all objects that the entries after this one tell of: nobody else may.
        #[n(1)]
        whole_after: Option<LogVersion>,
    },
    /// The sender's log, and what of it cannot be given.
    #[n(3)]
    Log(#[n(0)] LogReply),
    /// Primary → acting and backfill peers: take this log, the placement group goes active.
    #[n(4)]
    Activate(#[n(0)] Activate),
    /// The activation is durable here.
    #[n(5)]
    ActivateAck(#[n(0)] ActivateAck),
    /// Primary → acting and backfill peers: one write.
    #[n(6)]
    RepOp(#[n(0)] RepOp),
    /// All entries up to `version` are durable here.
    #[n(7)]
    RepOpAck {
        /// The newest durable entry.
        #[n(0)]
        version: LogVersion,
        /// Set when the sender has no room for more than is on its way: no new writes, please.
        #[n(1)]
        full: Option<bool>,
    },
    /// Primary → holder: send a piece of this object. Answered by [`PeerBody::PullReply`].
    #[n(8)]
    Pull(#[n(0)] Pull),
    /// A piece of an object that was asked for.
    #[n(9)]
    PullReply(#[n(0)] ObjectPiece),
    /// The object cannot be sent: it is not here in that version, or it is unreadable.
    #[n(10)]
    PullFailed(#[n(0)] Pull),
    /// Primary → peer that misses it: a piece of an object.
    #[n(11)]
    Push(#[n(0)] Push),
    /// The piece is durable (or was not needed any more); `next` is what to send now, `None` when the object is whole.
    #[n(12)]
    PushAck(#[n(0)] PushAck),
    /// Primary → backfill target: list your objects after `after`. Answered by [`PeerBody::BackfillDigest`].
    #[n(13)]
    BackfillScan(#[n(0)] BackfillScan),
    /// Objects of the target with their versions.
    #[n(14)]
    BackfillDigest(#[n(0)] BackfillDigest),
    /// Primary → backfill target: everything up to `cursor` is now as here. Answered by [`PeerBody::BackfillProgressAck`].
    #[n(15)]
    BackfillProgress(#[n(0)] BackfillProgress),
    /// The cursor is durable.
    #[n(16)]
    BackfillProgressAck {
        /// The cursor that is durable.
        #[n(0)]
        cursor: BackfillCursor,
    },
    /// Primary → target: may I recover to you?
    #[n(17)]
    ReservationRequest,
    /// Target → primary: go on.
    #[n(18)]
    ReservationGrant,
    /// Target → primary: not now (too full, or too busy to queue); ask again later.
    #[n(19)]
    ReservationReject,
    /// Primary → target: done, for now.
    #[n(20)]
    ReservationRelease,
    /// Primary → peers: newer history to keep (after activation, and when clean).
    #[n(21)]
    History(#[n(0)] PgHistory),
    /// Primary → stray: the placement group is clean without you, drop your copy.
    #[n(22)]
    RemovePg,
    /// Member → primary: I do not know the activation that you speak of (the maps that I saw have a gap, and what came
    /// before it does not count); have me take your log again.
    #[n(23)]
    NotActivated {
        /// The primary's activation.
        #[n(0)]
        activation: u64,
    },
    /// Comparing copies; both ways.
    #[n(24)]
    Scrub(#[n(0)] ScrubMessage),
}

/// How far a copy has been filled, in key order (bit-reversed object hash, then name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum BackfillCursor {
    /// Objects with keys up to this one follow the log, later ones are unknown. Empty: none yet.
    #[n(0)]
    At(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// The copy is complete (`last_backfill = MAX`).
    #[n(1)]
    Complete,
}

impl BackfillCursor {
    /// Nothing filled yet.
    pub const START: BackfillCursor = BackfillCursor::At(Vec::new());

    /// Whether the object of that key follows the log in this copy.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        match self {
            BackfillCursor::At(cursor) => key <= cursor.as_slice(),
            BackfillCursor::Complete => true,
        }
    }

    /// Whether the whole copy follows the log.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        *self == BackfillCursor::Complete
    }
}

/// What one OSD's copy of a placement group holds.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PgInfo {
    /// Newest log entry.
    #[n(0)]
    pub last_update: LogVersion,
    /// All objects are present as of this version.
    #[n(1)]
    pub last_complete: LogVersion,
    /// The log holds the entries after this version.
    #[n(2)]
    pub log_tail: LogVersion,
    /// How far the copy is filled.
    #[n(3)]
    pub last_backfill: BackfillCursor,
    /// Epoch of the last activation that this copy took part in (`info_les`).
    #[n(4)]
    pub last_epoch_started: Epoch,
    /// Objects in the placement group as of `last_update`.
    #[n(5)]
    pub objects: u64,
    /// Their bytes.
    #[n(6)]
    pub bytes: u64,
    /// Set when the copy takes the place of one that was lost, until it is filled: it does not speak for the intervals
    /// that its OSD was a member of.
    #[n(7)]
    pub lost: Option<bool>,
    /// Set when `objects` and `bytes` are a guess: a split of a copy that was not whole shared them out. An active primary
    /// counts anew.
    #[n(9)]
    pub guessed: Option<bool>,
    /// Bytes of the complete copy that was here before this one, which is not complete yet, takes its place.
    #[n(8)]
    pub replaces_bytes: Option<u64>,
}

impl PgInfo {
    /// Of a copy that has never held anything.
    #[must_use]
    pub fn empty() -> PgInfo {
        PgInfo {
            last_update: LogVersion::ZERO,
            last_complete: LogVersion::ZERO,
            log_tail: LogVersion::ZERO,
            last_backfill: BackfillCursor::Complete,
            last_epoch_started: Epoch::ZERO,
            objects: 0,
            bytes: 0,
            lost: None,
            guessed: None,
            replaces_bytes: None,
        }
    }
}

/// What is known of a placement group's life, apart from any one copy.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PgHistory {
    /// Epoch of the pool's creation.
    #[n(0)]
    pub epoch_created: Epoch,
    /// Newest activation that all its acting members had made durable (`les`).
    #[n(1)]
    pub last_epoch_started: Epoch,
    /// Newest epoch at which all copies were complete (`lec`).
    #[n(2)]
    pub last_epoch_clean: Epoch,
    /// First epoch that `past` tells of: earlier intervals do not matter any more, or are unknown to this holder.
    #[n(3)]
    pub known_from: Epoch,
    /// The intervals since, oldest first, without the present one.
    #[n(4)]
    pub past: Vec<PastInterval>,
}

/// A run of epochs with the same members, now over.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PastInterval {
    /// First epoch.
    #[n(0)]
    pub first: Epoch,
    /// Last epoch.
    #[n(1)]
    pub last: Epoch,
    /// The up set.
    #[n(2)]
    pub up: Vec<OsdId>,
    /// The acting set; its first member was the primary.
    #[n(3)]
    pub acting: Vec<OsdId>,
    /// Whether writes may have been acknowledged in it.
    #[n(4)]
    pub maybe_rw: bool,
}

/// [`PeerBody::Notice`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Notice {
    /// The copy; `None` when the sender has none.
    #[n(0)]
    pub info: Option<PgInfo>,
    /// What the sender knows of the past; `None` when it has no copy.
    #[n(1)]
    pub history: Option<PgHistory>,
    /// Objects that the copy misses.
    #[n(2)]
    pub missing_count: u64,
    /// Set when the objects of the copy cannot be listed: others cannot be filled from it.
    #[n(3)]
    pub unlisted: Option<bool>,
    /// Set when the sender has no room for what the copy misses: others, who have it, should lead.
    #[n(4)]
    pub cramped: Option<bool>,
    /// What earlier primaries' leases still had when this was sent (`osd/pg`, `lease`).
    #[n(5)]
    pub leases: Option<Vec<HeldLease>>,
    /// Milliseconds for which the sender, which has just started, may have granted leases that it does not know of.
    #[n(6)]
    pub leases_forgotten_ms: Option<u64>,
}

/// What a primary's read lease still has, by who granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HeldLease {
    /// The primary.
    #[n(0)]
    pub primary: OsdId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Milliseconds until it ends, at most.
    #[n(2)]
    pub left_ms: u64,
}

/// Whether a log entry changed an object or removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum EntryKind {
    /// The object exists after it.
    #[n(0)]
    Modify,
    /// The object does not exist after it.
    #[n(1)]
    Delete,
}

/// What the ops of a logged request answered: kept for a resend. Empty bodies stand for `count` times "done".
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct StoredResults {
    /// Ops in the request.
    #[n(0)]
    pub count: u32,
    /// Their results, encoded by [`crate::encode`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The payload of that encoding.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
}

/// One entry of a placement group's log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogEntry {
    /// Its version.
    #[n(0)]
    pub version: LogVersion,
    /// Version of the object before it; [`LogVersion::ZERO`] when there was none.
    #[n(1)]
    pub prior_version: LogVersion,
    /// The object.
    #[n(2)]
    pub object: ObjectName,
    /// What it did.
    #[n(3)]
    pub kind: EntryKind,
    /// The request that made it.
    #[n(4)]
    pub request: RequestId,
    /// The session's watermark as sent with that request.
    #[n(5)]
    pub lowest_outstanding_tid: u64,
    /// What was answered.
    #[n(6)]
    pub results: StoredResults,
    /// Change of the number of objects.
    #[n(7)]
    pub objects_delta: i64,
    /// Change of the number of bytes.
    #[n(8)]
    pub bytes_delta: i64,
}

/// One object that a copy misses. The version `[0, 1]` stands for one that nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MissingItem {
    /// The object.
    #[n(0)]
    pub object: ObjectName,
    /// The version that the log says it has.
    #[n(1)]
    pub need: LogVersion,
    /// The version that is there; [`LogVersion::ZERO`] for none or one that cannot be trusted.
    #[n(2)]
    pub have: LogVersion,
}

/// [`PeerBody::Log`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogReply {
    /// As asked.
    #[n(0)]
    pub since: LogVersion,
    /// Whether `since` is an entry of this log, or its tail: without it the entries do not join the asker's.
    #[n(1)]
    pub overlaps: bool,
    /// The copy.
    #[n(2)]
    pub info: PgInfo,
    /// What the sender knows of the past.
    #[n(3)]
    pub history: PgHistory,
    /// Entries after `since`, oldest first; the whole log when `since` is zero or does not overlap.
    #[n(4)]
    pub entries: Vec<LogEntry>,
    /// When that was asked: the first object found that the sender misses or cannot read, of those that the entries after
    /// the one in question tell of. Not the whole missing set, which may be more than one message can carry: a member tells
    /// it in its [`ActivateAck`].
    #[n(5)]
    pub missing: Vec<MissingItem>,
    /// Entries at or before the tail, kept for exactly-once only; sent with the whole log.
    #[n(6)]
    pub dups: Vec<LogEntry>,
}

/// [`PeerBody::Activate`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Activate {
    /// The last entry shared with the receiver; `None` replaces the receiver's log and starts backfill afresh.
    #[n(0)]
    pub since: Option<LogVersion>,
    /// The authoritative entries after `since`, or the whole log.
    #[n(1)]
    pub entries: Vec<LogEntry>,
    /// The primary's copy: head, tail, counts.
    #[n(2)]
    pub info: PgInfo,
    /// What is known of the past.
    #[n(3)]
    pub history: PgHistory,
    /// The value for the receiver's `info_les`; unset when too few members act for writes.
    #[n(4)]
    pub last_epoch_started: Option<Epoch>,
    /// With a whole log: the entries at or before its tail.
    #[n(5)]
    pub dups: Vec<LogEntry>,
    /// With a whole log: the sessions of which entries were dropped before that.
    #[n(6)]
    pub sessions: Option<Vec<SessionMemory>>,
}

/// What is remembered of a client run beyond the entries of a log that are kept: which of its requests were executed, not
/// how they were answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct SessionMemory {
    /// The client.
    #[n(0)]
    pub client: ClientId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Requests below are answered and never resent.
    #[n(2)]
    pub watermark: u64,
    /// Requests below may have been executed: there was no room to say which.
    #[n(3)]
    pub floor: u64,
    /// Requests that were executed.
    #[n(4)]
    pub executed: Vec<u64>,
    /// Version of the session's newest entry.
    #[n(5)]
    pub last: LogVersion,
}

/// [`PeerBody::ActivateAck`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ActivateAck {
    /// The receiver's copy after it took the log.
    #[n(0)]
    pub info: PgInfo,
    /// Objects that it misses, or a part of them.
    #[n(1)]
    pub missing: Vec<MissingItem>,
    /// Place of the first of these among all that it misses; unset for zero.
    #[n(2)]
    pub missing_from: Option<u64>,
    /// How many it misses in all; unset when these are all. The parts of one set have the same number.
    #[n(3)]
    pub missing_count: Option<u64>,
}

/// [`PeerBody::RepOp`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct RepOp {
    /// The entry before this one: the receiver's head when it applies this.
    #[n(0)]
    pub previous: LogVersion,
    /// The entry.
    #[n(1)]
    pub entry: LogEntry,
    /// What it does; `None` for a backfill target that has not got to the object yet.
    #[n(2)]
    pub effects: Option<Vec<Effect>>,
    /// Everything up to this version is durable on all members.
    #[n(3)]
    pub committed_to: LogVersion,
    /// Drop log entries up to this version.
    #[n(4)]
    pub trim_to: LogVersion,
}

/// Where in an object the next piece starts: bytes first, then rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct PiecePosition {
    /// Bytes already sent.
    #[n(0)]
    pub bytes: u64,
    /// Rows up to and with this key are sent.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub row: Option<Vec<u8>>,
}

/// A part of an object. The last one (`next` `None`) carries the attributes and makes the object count.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct ObjectPiece {
    /// The object.
    #[n(0)]
    pub object: ObjectName,
    /// Its version.
    #[n(1)]
    pub version: LogVersion,
    /// Where this piece starts.
    #[n(2)]
    pub position: PiecePosition,
    /// Where the next one starts; `None` when this is the last.
    #[n(3)]
    pub next: Option<PiecePosition>,
    /// Size of the whole object in bytes.
    #[n(4)]
    pub size: u64,
    /// Bytes from `position.bytes`.
    #[n(5)]
    pub data: Blob,
    /// Rows after `position.row`.
    #[n(6)]
    pub rows: Vec<Row>,
    /// With the last piece: all attributes, key and value.
    #[n(7)]
    pub attrs: Vec<Row>,
}

/// [`PeerBody::Pull`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pull {
    /// The object.
    #[n(0)]
    pub object: ObjectName,
    /// The version wanted. [`LogVersion::ZERO`]: say which version you have, with an empty piece; zero when there is no
    /// such object. [`PeerBody::PullFailed`] then means that it cannot be told.
    #[n(1)]
    pub version: LogVersion,
    /// Where to start; in a question for the version any number in `bytes`, which the answer repeats.
    #[n(2)]
    pub position: PiecePosition,
}

/// [`PeerBody::Push`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct Push {
    /// Number of this transfer, unique and growing within the interval.
    #[n(0)]
    pub transfer: u64,
    /// Whether this fills a backfill target, instead of an entry of its missing set.
    #[n(1)]
    pub backfill: bool,
    /// What to do.
    #[n(2)]
    pub what: PushWhat,
}

/// What a push does to the receiver's copy.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum PushWhat {
    /// Writes a part of an object.
    #[n(0)]
    Piece(#[n(0)] ObjectPiece),
    /// Removes an object that the primary does not have: in a backfill, or when the receiver lacks it in a version that
    /// nobody can tell.
    #[n(1)]
    Remove(#[n(0)] ObjectName),
}

/// [`PeerBody::PushAck`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PushAck {
    /// The transfer.
    #[n(0)]
    pub transfer: u64,
    /// What to send now; `None` when the object is whole (or gone).
    #[n(1)]
    pub next: Option<PiecePosition>,
    /// Set when there is no room for the piece at `next`: it has not been taken.
    #[n(2)]
    pub no_room: Option<bool>,
}

/// [`PeerBody::BackfillScan`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BackfillScan {
    /// List keys after this one.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub after: Vec<u8>,
    /// At most this many.
    #[n(1)]
    pub limit: u32,
    /// Which listing this is, counted by the primary in one activation. What it does after one was taken shows in the next
    /// only.
    #[n(2)]
    pub number: Option<u64>,
    /// Pushes of the backfill with a smaller [`Push::transfer`] are late: what they are about is compared anew. Primaries of
    /// earlier builds leave it out.
    #[n(3)]
    pub transfer_floor: Option<u64>,
}

/// [`PeerBody::BackfillDigest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BackfillDigest {
    /// As asked.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub after: Vec<u8>,
    /// The listing is complete up to here.
    #[n(1)]
    pub upto: BackfillCursor,
    /// Objects in key order with their versions.
    #[n(2)]
    pub objects: Vec<DigestItem>,
    /// As asked; members of earlier builds leave it out.
    #[n(3)]
    pub number: Option<u64>,
}

/// One object of a [`BackfillDigest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct DigestItem {
    /// The object's key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub key: Vec<u8>,
    /// Its version; [`LogVersion::ZERO`] for a half-written copy.
    #[n(1)]
    pub version: LogVersion,
}

/// [`PeerBody::BackfillProgress`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BackfillProgress {
    /// How far the target is filled now.
    #[n(0)]
    pub cursor: BackfillCursor,
    /// Pushes with a smaller [`Push::transfer`] are late duplicates.
    #[n(1)]
    pub transfer_floor: u64,
    /// Objects up to there that nobody could give so far: the target lacks them from now on.
    #[n(2)]
    pub lacking: Option<Vec<MissingItem>>,
}

/// OSD → OSD, once each heartbeat interval, over a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Heartbeat {
    /// The sender.
    #[n(0)]
    pub from: OsdId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its map.
    #[n(2)]
    pub epoch: Epoch,
    /// The sender's clock in nanoseconds, given back in the reply.
    #[n(3)]
    pub stamp: u64,
}

/// The answer to a [`Heartbeat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HeartbeatReply {
    /// The sender.
    #[n(0)]
    pub from: OsdId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// The newest epoch that one of its shards had as the question came by.
    #[n(2)]
    pub epoch: Epoch,
    /// As received.
    #[n(3)]
    pub stamp: u64,
    /// Set when the sender has no room for new writes.
    #[n(4)]
    pub full: Option<bool>,
}

/// Maps for a peer that is behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct MapShare {
    /// Encoded increments (`holdfast_map::Increment::encode`), oldest first, without gap.
    #[n(0)]
    pub increments: Vec<ByteVec>,
    /// An encoded full map that the increments follow, when the receiver is too far behind.
    #[n(1)]
    pub full: Option<ByteVec>,
}

impl StoredResults {
    /// Keeps results; those that all say "done" cost nothing.
    #[must_use]
    pub fn keep(results: &[crate::OpResult]) -> StoredResults {
        let count = u32::try_from(results.len()).unwrap_or(u32::MAX);
        if results.iter().all(|result| *result == crate::OpResult::Done) {
            return StoredResults { count, ..StoredResults::default() };
        }
        let mut payload = crate::Payload::default();
        let mut body = Vec::new();
        minicbor::encode_with(results, &mut body, &mut payload).expect("encoding to memory cannot fail");
        StoredResults { count, body, payload: payload.chunks.concat() }
    }

    /// Gives the results back.
    ///
    /// # Errors
    /// When the bytes are not results: a log row that passed its checksum but was written by something else.
    pub fn restore(&self) -> Result<Vec<crate::OpResult>, minicbor::decode::Error> {
        if self.body.is_empty() {
            return Ok(vec![crate::OpResult::Done; self.count as usize]);
        }
        let mut context = crate::Payload { received: Bytes::from(self.payload.clone()), ..crate::Payload::default() };
        minicbor::decode_with(&self.body, &mut context)
    }
}
