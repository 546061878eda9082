//! Between a client and the primary of a placement group.

use holdfast_types::{Epoch, LogVersion, ObjectName, PgId, RequestId};
use minicbor::{Decode, Encode};

use crate::op::{ObjectOp, OpError, OpResult};
use crate::payload::PayloadContext;

/// An op vector on one object, stamped with the map that it was aimed by.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct ClientRequest {
    /// The same on every resend.
    #[n(0)]
    pub id: RequestId,
    /// The client's map when it chose the target.
    #[n(1)]
    pub epoch: Epoch,
    /// The placement group that the client computed.
    #[n(2)]
    pub pg: PgId,
    /// The object.
    #[n(3)]
    pub object: ObjectName,
    /// What to do.
    #[n(4)]
    pub ops: Vec<ObjectOp>,
    /// All requests of this session below this number are answered and never resent: their results may be forgotten.
    #[n(5)]
    pub lowest_outstanding_tid: u64,
    /// Set when this serves to free space though it puts rows, too (notes of what is to be collected, counters): it is let
    /// in on a full cluster as what only deletes is, if it deletes something and brings no bytes of objects and few of rows.
    #[n(6)]
    pub frees_space: Option<bool>,
}

impl ClientRequest {
    /// Whether any op may change the object.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.ops.iter().any(ObjectOp::is_write)
    }
}

/// The answer to a [`ClientRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map, context_bound = "PayloadContext")]
pub struct ClientReply {
    /// Of the request.
    #[n(0)]
    pub id: RequestId,
    /// The OSD's map.
    #[n(1)]
    pub epoch: Epoch,
    /// What came of it.
    #[n(2)]
    pub outcome: ClientOutcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "PayloadContext")]
pub enum ClientOutcome {
    /// Every op succeeded; writes are durable on the whole acting set.
    #[n(0)]
    Done {
        /// Version of the write, or of the object read ([`LogVersion::ZERO`] when it does not exist).
        #[n(0)]
        version: LogVersion,
        /// One result for each op.
        #[n(1)]
        results: Vec<OpResult>,
    },
    /// Op `index` failed and nothing had an effect.
    #[n(1)]
    Failed {
        /// Index into the request's ops.
        #[n(0)]
        index: u32,
        /// Why.
        #[n(1)]
        error: OpError,
    },
    /// The request was not executed here; see the reason for whether to send it again.
    #[n(2)]
    Refused(#[n(0)] RefusedReason),
}

/// Why a request was not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum RefusedReason {
    /// This OSD is not the primary at [`ClientReply::epoch`]: get that map, send the same request to its primary.
    #[n(0)]
    #[error("not the primary")]
    WrongPrimary,
    /// The cluster or an acting member is full: only ops that free space are admitted.
    #[n(1)]
    #[error("the cluster is full")]
    Full,
    /// The session is fenced: it must not be used again.
    #[n(2)]
    #[error("the session is blocklisted")]
    Blocklisted,
    /// The request is older than the session's forgotten results: it must not be executed again.
    #[n(3)]
    #[error("the request is older than what this session still has outstanding")]
    Forgotten,
    /// Too much is queued here: send it again after a pause.
    #[n(4)]
    #[error("the OSD is overloaded")]
    Busy,
    /// The pool is gone.
    #[n(5)]
    #[error("no such pool")]
    PoolGone,
}

/// Asks an OSD to say when no placement group of it acts by a map older than this one. A fence holds from then on: whoever
/// that map blocklists gets nothing done there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Barrier {
    /// The epoch.
    #[n(0)]
    pub epoch: Epoch,
}

/// The answer to a [`Barrier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BarrierReached {
    /// The oldest map that any placement group of the OSD acts by. Below [`Barrier::epoch`] when the OSD cannot keep the
    /// question until then: ask again.
    #[n(0)]
    pub epoch: Epoch,
    /// Placement groups that it leads by that map and that have not peered: of these an earlier primary, with all that serve
    /// under it, may be cut off and serve by an older map. Ask again.
    #[n(1)]
    pub unsettled: Option<u64>,
}
