//! What can go wrong, as a user of the cluster sees it: no epoch, no OSD.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_net::mon_session::MonSessionError;
use holdfast_types::OsdId;
use holdfast_wire::mon::MonError;
use holdfast_wire::{Blob, OpError};

/// Why an op was not finished yet when its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Its turn did not come: too much else is in flight, or there is no map.
    #[error("it was not sent")]
    NotSent,
    /// Nobody serves the object's placement group.
    #[error("nobody serves the object at present")]
    NoPrimary,
    /// It was sent, and not answered.
    #[error("no answer")]
    NoAnswer,
    /// The daemon that should serve it cannot be reached.
    #[error("the daemon that serves the object cannot be reached")]
    Unreachable,
    /// The connection broke.
    #[error("the connection was lost")]
    Disconnected,
    /// The daemon does not serve the object, or does not know it yet.
    #[error("the daemon does not serve the object yet")]
    WrongPrimary,
    /// The daemon has too much to do.
    #[error("the daemon is overloaded")]
    Busy,
    /// The cluster is full. The last sending of several was refused for it; an earlier one may yet be executed.
    #[error("the cluster is full")]
    Full,
    /// The daemon answered something else.
    #[error("the answer made no sense")]
    BadReply,
}

/// Why an op vector was not done. `index` is that of the op that failed; nothing had an effect then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// It is not known whether it took effect.
    #[error("not done within {after:?}: {last_cause}")]
    Timeout {
        /// How long it was tried.
        after: Duration,
        /// What was in the way last.
        last_cause: Cause,
    },
    /// The object is missing.
    #[error("no such object")]
    NotFound {
        /// Of the op.
        index: u32,
    },
    /// The object exists, and must not.
    #[error("the object exists")]
    Exists {
        /// Of the op.
        index: u32,
    },
    /// An assert did not hold.
    #[error("the condition of op {index} does not hold")]
    AssertFailed {
        /// Of the op.
        index: u32,
        /// The present value of the row or attribute; `None` when it is absent or the assert was of another kind.
        current: Option<Blob>,
    },
    /// The op makes no sense.
    #[error("op {index} is invalid: {reason}")]
    Invalid {
        /// Of the op.
        index: u32,
        /// Why.
        reason: String,
    },
    /// No copy that can be read is intact.
    #[error("the data cannot be read from any copy")]
    Unreadable {
        /// Of the op.
        index: u32,
    },
    /// The request exceeds what one message can carry.
    #[error("a request of {bytes} bytes is too large")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The cluster is full: only what frees space is admitted.
    #[error("the cluster is full")]
    Full,
    /// This client has been fenced: somebody else took over what it was using. It must not be used any more.
    #[error("this client has been fenced")]
    Fenced,
    /// The pool was deleted.
    #[error("the pool was deleted")]
    PoolGone,
    /// The cluster no longer knows whether the request was done. It takes a client that answers for a request twice.
    #[error("the request was given up before")]
    Forgotten,
    /// The op was done, and its result is of another kind than it must be.
    #[error("the result of op {index} makes no sense")]
    UnexpectedResult {
        /// Of the op.
        index: u32,
    },
    /// The client was shut down.
    #[error("the client was shut down")]
    ShutDown,
}

impl OperateError {
    pub(crate) fn from_op(index: u32, error: OpError) -> OperateError {
        match error {
            OpError::NotFound => OperateError::NotFound { index },
            OpError::Exists => OperateError::Exists { index },
            OpError::AssertFailed { current } => OperateError::AssertFailed { index, current },
            OpError::Invalid { reason } => OperateError::Invalid { index, reason },
            OpError::Unreadable => OperateError::Unreadable { index },
        }
    }

    /// Whether the op certainly had no effect. `false` after [`OperateError::Timeout`] and the like: unknown.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        match self {
            OperateError::NotFound { .. }
            | OperateError::Exists { .. }
            | OperateError::AssertFailed { .. }
            | OperateError::Invalid { .. }
            | OperateError::Unreadable { .. }
            | OperateError::TooLarge { .. }
            | OperateError::Full => true,
            OperateError::Timeout { .. }
            | OperateError::Fenced
            | OperateError::PoolGone
            | OperateError::Forgotten
            | OperateError::UnexpectedResult { .. }
            | OperateError::ShutDown => false,
        }
    }
}

/// Why the client could not do what was asked, beside ops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The monitors could not be asked. A command may still take effect.
    #[error(transparent)]
    Session(#[from] MonSessionError),
    /// The monitors answered, and gave no map in time.
    #[error("no cluster map within {after:?}")]
    NoMap {
        /// How long it was waited for.
        after: Duration,
    },
    /// The monitors refused.
    #[error(transparent)]
    Mon(#[from] MonError),
    /// There is no such pool.
    #[error("no such pool: {name}")]
    PoolNotFound {
        /// Its name.
        name: String,
    },
    /// The monitors' answer does not fit the question.
    #[error("the monitors' answer does not fit the question")]
    UnexpectedReply,
    /// A fence is in the map, and may not hold everywhere yet.
    #[error("the fence does not surely hold yet: {} after {after:?}", not_confirmed(waiting))]
    NotFencedYet {
        /// How long it was tried.
        after: Duration,
        /// Who has not confirmed it, or leads what has not peered. Empty: this client did not get the map.
        waiting: BTreeSet<OsdId>,
    },
    /// An op failed.
    #[error(transparent)]
    Operate(#[from] OperateError),
}

fn not_confirmed(waiting: &BTreeSet<OsdId>) -> String {
    if waiting.is_empty() {
        return "no map that shows it".to_owned();
    }
    let names: Vec<String> = waiting.iter().map(ToString::to_string).collect();
    format!("{} did not confirm it, or may still serve what has not peered without them,", names.join(", "))
}
