//! Why a connection ended, could not be made, or did not answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::frame::{FrameError, GoodbyeReason};

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it, and told the peer so.
    #[error("closed by this side: {0}")]
    Local(GoodbyeReason),
    /// The peer closed it, and said why.
    #[error("closed by the peer: {0}")]
    Remote(GoodbyeReason),
    /// The peer's goodbye is of a kind that this build does not know.
    #[error("closed by the peer for an unknown reason")]
    RemoteUnknown,
    /// The stream ended without a goodbye: the peer's process is gone.
    #[error("the peer's stream ended without a goodbye")]
    EndOfStream {
        /// Whether in the middle of a frame.
        mid_frame: bool,
    },
    /// Reading or writing failed: as a rule, a reset.
    #[error("connection lost: {0}")]
    Lost(#[source] Arc<io::Error>),
    /// The peer sent what is no frame, or not here.
    #[error("bad frame: {0}")]
    BadFrame(#[source] FrameError),
    /// The peer broke the rules with a well-formed frame.
    #[error("protocol violated: {0}")]
    Violation(&'static str),
    /// A frame began to arrive and did not go on.
    #[error("a frame stopped arriving half way")]
    Stalled,
    /// Frames arrive, but so slowly that a new connection is the better one.
    #[error("only {bytes} bytes of a frame arrived within {within:?}")]
    Slow {
        /// Bytes that arrived.
        bytes: u64,
        /// The time in which they did.
        within: std::time::Duration,
    },
}

impl CloseReason {
    /// Whether this suggests that the peer's process or host is gone: a hint for failure detection, no proof.
    #[must_use]
    pub fn suggests_death(&self) -> bool {
        match self {
            CloseReason::EndOfStream { .. } | CloseReason::Lost(_) | CloseReason::Stalled => true,
            CloseReason::Local(_)
            | CloseReason::Remote(_)
            | CloseReason::RemoteUnknown
            | CloseReason::BadFrame(_)
            | CloseReason::Violation(_)
            | CloseReason::Slow { .. } => false,
        }
    }

    /// Whether the peer misbehaved, so that a person should be able to read of it.
    pub(crate) fn is_misbehaviour(&self) -> bool {
        match self {
            CloseReason::BadFrame(_) | CloseReason::Violation(_) | CloseReason::Stalled | CloseReason::Slow { .. } => {
                true
            }
            CloseReason::EndOfStream { mid_frame } => *mid_frame,
            CloseReason::Local(_) | CloseReason::Remote(_) | CloseReason::RemoteUnknown | CloseReason::Lost(_) => false,
        }
    }
}

/// Why a connection could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// TCP: refused, unreachable, reset during the handshake.
    #[error("cannot connect to {address}: {source}")]
    Io {
        /// Where to.
        address: String,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("no answer from {address} within {after:?}")]
    Timeout {
        /// Where to.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer refused us.
    #[error("refused by {address}: {reason}")]
    Rejected {
        /// Where to.
        address: String,
        /// What it said.
        reason: GoodbyeReason,
    },
    /// We refused the peer.
    #[error("peer at {address} is not acceptable: {reason}")]
    Unacceptable {
        /// Where to.
        address: String,
        /// What we said.
        reason: GoodbyeReason,
    },
    /// The peer does not speak our protocol.
    #[error("{address} does not answer with a valid hello")]
    NotHoldfast {
        /// Where to.
        address: String,
        /// What is wrong, where its first frame was one at all.
        #[source]
        source: Option<FrameError>,
    },
}

impl ConnectError {
    /// Whether the peer's host answered that nobody listens there: the strongest hint that its process is gone.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, ConnectError::Io { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// Why a message was not sent, or a request not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// There is no connection, and the latest attempt to make one failed. The message was not sent.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The connection ended. The message may have been received, or not.
    #[error("connection ended: {0}")]
    Closed(#[source] Arc<CloseReason>),
    /// No answer in time. The message may have been received, or not.
    #[error("no answer in time")]
    Timeout,
    /// The message exceeds the limits of a frame. It was not sent.
    #[error("message too large: {0}")]
    TooLarge(#[source] FrameError),
    /// The queue is full. The message was not sent.
    #[error("the connection's queue is full")]
    QueueFull,
    /// The [`crate::Peer`] was given up. The message was not sent.
    #[error("the peer was given up")]
    GivenUp,
}
