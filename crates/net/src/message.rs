//! A message, and who is told of it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::Connection;
use crate::error::{CloseReason, ConnectError, NetError};
use crate::outgoing::OutFrame;
use crate::peer::Target;

/// A message to send, or a received one.
#[derive(Clone, Default)]
pub struct Message {
    /// What the body is; see [`holdfast_wire::Kind`].
    pub kind: u16,
    /// Received: of the request that this is or answers, 0 when one way. Sent: set by the connection.
    pub request_id: u64,
    /// Follows one client op through all daemons; 0: none.
    pub trace_id: u64,
    /// CBOR.
    pub body: Bytes,
    /// Bytes beside the body, sent without being copied. Received: no chunk or one.
    pub payload: Vec<Bytes>,
}

impl Message {
    /// A message to send.
    #[must_use]
    pub fn new(kind: u16, body: Bytes, payload: Vec<Bytes>) -> Message {
        Message { kind, request_id: 0, trace_id: 0, body, payload }
    }

    /// Makes the frame of a one-way message, to send the same to several connections.
    ///
    /// # Errors
    /// [`NetError::TooLarge`].
    pub fn prepare(self) -> Result<Prepared, NetError> {
        let frame = OutFrame::new(Message { request_id: 0, ..self }, 0).map_err(NetError::TooLarge)?;
        Ok(Prepared { frame })
    }

    /// With this trace id.
    #[must_use]
    pub fn traced(self, trace_id: u64) -> Message {
        Message { trace_id, ..self }
    }

    /// The payload of a received message; empty when there is none.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        self.payload.first().cloned().unwrap_or_default()
    }
}

/// A one-way message with its checksums computed. Clones share its bytes.
#[derive(Clone)]
pub struct Prepared {
    pub(crate) frame: OutFrame,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("request_id", &self.request_id)
            .field("trace_id", &self.trace_id)
            .field("body_bytes", &self.body.len())
            .field("payload_bytes", &self.payload.iter().map(Bytes::len).sum::<usize>())
            .finish()
    }
}

/// The charge of a received message to its connection and endpoint, given back on drop.
///
/// Keep it as long as the message's memory or the work it causes is held (see the rule in the crate's documentation).
#[derive(Debug, Default)]
pub struct Permit {
    pub(crate) connection: Option<OwnedSemaphorePermit>,
    pub(crate) endpoint: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// What is charged, in bytes: the message's length and some overhead, or the whole limit for a larger message.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let bytes =
            |permit: &Option<OwnedSemaphorePermit>| permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        bytes(&self.connection).max(bytes(&self.endpoint))
    }
}

/// Who is told of what arrives. Called on the connection's reading task: must not block.
pub trait Handler: Send + Sync + 'static {
    /// A connection is ready.
    fn on_connected(&self, connection: &Arc<Connection>) {
        let _ = connection;
    }

    /// A one-way message or a request (then answer with [`Connection::reply`]). Responses go to the asker instead.
    fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit);

    /// The connection has ended; nothing more comes from it.
    fn on_closed(&self, connection: &Arc<Connection>, reason: &CloseReason) {
        let _ = (connection, reason);
    }

    /// A [`crate::Peer`] could not connect. Told of each attempt at once.
    fn on_unreachable(&self, target: &Target, error: &ConnectError) {
        let _ = (target, error);
    }
}

/// For an endpoint that only asks: whatever it is sent unasked is dropped.
#[derive(Debug, Default)]
pub struct NoHandler;

impl Handler for NoHandler {
    fn on_message(&self, from: &Arc<Connection>, message: Message, _: Permit) {
        tracing::debug!(peer = %from.peer(), kind = message.kind, "unasked message dropped");
    }
}
