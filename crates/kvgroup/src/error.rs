//! What can go wrong, and what is then known of the rows.

use bytes::Bytes;
use holdfast_types::ObjectName;
use holdfast_wire::OpError;

use crate::batch::VALUE_BYTES_MAX;
use crate::key::{Affinity, KEY_BYTES_MAX};

/// Why an op vector on an object gave no results.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectsError {
    /// Op `index` failed; none had an effect.
    #[error("op {index} failed")]
    Op {
        /// Index into the ops.
        index: u32,
        /// Why.
        #[source]
        error: OpError,
    },
    /// No answer: the ops may have had their effect, may have it later, or never.
    #[error("no answer in time")]
    OutcomeUnknown,
    /// Refused without effect: only ops that free space are admitted.
    #[error("the cluster is full")]
    Full,
    /// Refused without effect: more than one message can carry.
    #[error("a request of {bytes} bytes is too large")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// This client has been fenced off. An earlier send of the same ops may have had its effect.
    #[error("this client is fenced off")]
    Fenced,
    /// The pool does not exist. An earlier send of the same ops may have had its effect.
    #[error("no such pool")]
    PoolGone,
}

/// Why an operation failed. None of these had an effect on rows that a caller can see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The table was dropped.
    #[error("the table was dropped")]
    TableGone,
    /// The table has no root: it was never created, or was purged, or something below serves less than it should. It is
    /// no proof that the table was dropped.
    #[error("no such table")]
    TableMissing,
    /// The cluster did not answer in time; the rows were not changed by this call.
    #[error("the cluster did not answer in time")]
    Unanswered,
    /// The table kept changing under the operation; trying again later may succeed.
    #[error("the table kept changing, gave up after {rounds} rounds")]
    Contended {
        /// How often it was tried.
        rounds: u32,
    },
    /// The group holds as much as a group may and its rows share one route, so it cannot be split.
    #[error("the rows of this route fill their group")]
    GroupFull,
    /// The cluster is full.
    #[error("the cluster is full")]
    ClusterFull,
    /// This client has been fenced off.
    #[error("this client is fenced off")]
    Fenced,
    /// The pool does not exist.
    #[error("no such pool")]
    PoolGone,
    /// An object's rows cannot be read from any copy.
    #[error("{object} cannot be read from any copy")]
    Unreadable {
        /// The object.
        object: ObjectName,
    },
    /// An object is not what this crate writes.
    #[error("{object} is damaged: {reason}")]
    Corrupt {
        /// The object.
        object: ObjectName,
        /// What is wrong.
        reason: &'static str,
    },
    /// An object was written by a newer version of this software.
    #[error("{object} has the unknown format {format}")]
    UnknownFormat {
        /// The object.
        object: ObjectName,
        /// Its format.
        format: u16,
    },
    /// The table keeps other rows together than the caller thinks.
    #[error("the table has the affinity {actual:?}, not {expected:?}")]
    AffinityMismatch {
        /// What the caller passed.
        expected: Affinity,
        /// What the table was created with.
        actual: Affinity,
    },
    /// A table id is empty or too long.
    #[error("a table id has 1 to 128 bytes, not {length}")]
    InvalidTableId {
        /// Its length.
        length: usize,
    },
    /// The request breaks a limit or rule.
    #[error("invalid request")]
    Invalid(#[from] InvalidRequest),
}

/// A request that is never right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A key is too long.
    #[error("a key of {length} bytes is longer than {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Its length.
        length: usize,
    },
    /// A value is too long.
    #[error("a value of {length} bytes is longer than {VALUE_BYTES_MAX}")]
    ValueTooLong {
        /// Its length.
        length: usize,
    },
    /// A space is reserved.
    #[error("space {space:#04x} is reserved")]
    ReservedSpace {
        /// The space.
        space: u8,
    },
    /// A row is not of the batch's route.
    #[error("a row of the batch has another route")]
    ForeignRoute,
    /// The batch is too large.
    #[error("a batch of {rows} rows and {bytes} bytes is larger than a batch may be")]
    BatchTooLarge {
        /// Conditions and mutations.
        rows: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
    /// A limit of zero rows or bytes.
    #[error("a scan needs limits above zero")]
    ZeroLimit,
    /// A counter left its range, or is added to a row that is no counter.
    #[error("a counter left its range, or the row is no counter")]
    Counter,
}

/// Why a batch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A condition did not hold; nothing changed.
    #[error("condition {index} does not hold")]
    Condition {
        /// Index of the first condition that did not hold.
        index: usize,
        /// The row's value instead; `None` when it is absent.
        current: Option<Bytes>,
    },
    /// No answer to the batch: it may have had its effect, may have it later, or never. It was not sent twice; read
    /// the rows to learn what became of it.
    #[error("the outcome of the batch is not known")]
    OutcomeUnknown,
    /// Something else; nothing changed.
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// Why a table was not dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DropError {
    /// It has rows in the spaces that must be empty.
    #[error("the table has rows in space {space:#04x}")]
    NotEmpty {
        /// The space.
        space: u8,
    },
    /// Something else.
    #[error(transparent)]
    Kv(#[from] KvError),
}
