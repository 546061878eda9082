//! One established connection, the same whichever side opened it.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use holdfast_wire::frame::{FLAG_RESPONSE, GoodbyeReason, HEADER_BYTES, PeerIdentity};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::error::{CloseReason, NetError};
use crate::handshake::{Authenticated, Established};
use crate::message::{Handler, Message, Permit, Prepared};
use crate::outgoing::{OutFrame, Outgoing};

/// Charged for each inbound message beside its bytes: the bookkeeping of a request, roughly.
const MESSAGE_OVERHEAD_BYTES: usize = 512;

/// A connection. It lives until it is closed by either side, not until it is dropped.
pub struct Connection {
    id: u64,
    remote: SocketAddr,
    accepted: bool,
    peer: Authenticated<PeerIdentity>,
    version: u16,
    features: u64,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) outgoing: Outgoing,
    pending: Mutex<Pending>,
    credit: Arc<Semaphore>,
    credit_bytes: usize,
    pub(crate) closing: CancellationToken,
    reason: OnceLock<Arc<CloseReason>>,
}

/// Requests that wait for their response; `None` once the connection has ended.
struct Pending {
    next_id: u64,
    waiting: Option<HashMap<u64, oneshot::Sender<Message>>>,
}

impl Connection {
    /// Takes over a stream after its handshake.
    pub(crate) fn start(
        endpoint: &Arc<Endpoint>,
        stream: TcpStream,
        origin: Origin,
        established: Established,
        handler: Arc<dyn Handler>,
    ) -> Arc<Connection> {
        let Established { decoder, peer, version, features } = established;
        let config = endpoint.config();
        let credit_bytes = config.inbound_bytes_max.clamp(1, u32::MAX as usize >> 3);
        let connection = Arc::new(Connection {
            id: endpoint.next_connection_id(),
            remote: origin.remote,
            accepted: origin.slot.is_some(),
            peer,
            version,
            features,
            outgoing: Outgoing::new(config.outgoing_bytes_max),
            pending: Mutex::new(Pending { next_id: 1, waiting: Some(HashMap::new()) }),
            credit: Arc::new(Semaphore::new(credit_bytes)),
            credit_bytes,
            closing: endpoint.shutdown.child_token(),
            reason: OnceLock::new(),
            endpoint: Arc::clone(endpoint),
        });
        endpoint.register(&connection);
        let driver = crate::io::drive(Arc::clone(&connection), stream, decoder, handler, origin.slot);
        endpoint.tasks.spawn(driver);
        connection
    }

    /// A number unique within the endpoint.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &Authenticated<PeerIdentity> {
        &self.peer
    }

    /// The other side's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether the other side opened it.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// The protocol version that both sides speak.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The feature bits that both sides offer.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Sends one way. Waits while the queue is full.
    ///
    /// # Errors
    /// [`NetError::Closed`], [`NetError::TooLarge`].
    pub async fn send(&self, message: Message) -> Result<(), NetError> {
        self.push(Message { request_id: 0, ..message }, 0).await
    }

    /// Sends one way, unless the queue is full.
    ///
    /// # Errors
    /// [`NetError::QueueFull`], and those of [`Connection::send`].
    pub fn try_send(&self, message: Message) -> Result<(), NetError> {
        self.try_push(Message { request_id: 0, ..message }, 0)
    }

    /// Answers the request of that id (from [`Message::request_id`]). Waits while the queue is full.
    ///
    /// # Errors
    /// [`NetError::Closed`], [`NetError::TooLarge`].
    pub async fn reply(&self, request_id: u64, message: Message) -> Result<(), NetError> {
        self.push(Message { request_id, ..message }, FLAG_RESPONSE).await
    }

    /// Answers a request, unless the queue is full.
    ///
    /// # Errors
    /// [`NetError::QueueFull`], and those of [`Connection::reply`].
    pub fn try_reply(&self, request_id: u64, message: Message) -> Result<(), NetError> {
        self.try_push(Message { request_id, ..message }, FLAG_RESPONSE)
    }

    /// As [`Connection::try_send`], but written with the next [`Connection::flush`]: for a thread that sends several
    /// messages in a row and is no task of the runtime.
    ///
    /// # Errors
    /// Those of [`Connection::try_send`].
    pub fn hold_send(&self, message: Prepared) -> Result<(), NetError> {
        self.try_hold(message.frame)
    }

    /// As [`Connection::try_reply`], but written with the next [`Connection::flush`].
    ///
    /// # Errors
    /// Those of [`Connection::try_reply`].
    pub fn hold_reply(&self, request_id: u64, message: Message) -> Result<(), NetError> {
        let frame = OutFrame::new(Message { request_id, ..message }, FLAG_RESPONSE).map_err(NetError::TooLarge)?;
        self.try_hold(frame)
    }

    /// Writes what is held, on this thread as far as the socket takes it at once; never waits.
    pub fn flush(&self) {
        if let Err(error) = self.outgoing.flush() {
            self.end(CloseReason::Lost(Arc::new(error)));
        }
    }

    /// Asks, and waits for the answer until `deadline`. Dropping the future gives the request up; an answer that
    /// comes later is dropped.
    ///
    /// # Errors
    /// [`NetError::Timeout`], and those of [`Connection::send`].
    pub async fn request(self: &Arc<Self>, message: Message, deadline: Instant) -> Result<Message, NetError> {
        match tokio::time::timeout_at(deadline.into(), self.ask(message)).await {
            Ok(answer) => answer,
            Err(_) => Err(NetError::Timeout),
        }
    }

    async fn ask(&self, message: Message) -> Result<Message, NetError> {
        let (answer, answered) = oneshot::channel();
        let request_id = {
            let mut pending = self.pending.lock();
            let request_id = pending.next_id;
            pending.next_id += 1;
            match &mut pending.waiting {
                Some(waiting) => waiting.insert(request_id, answer),
                None => return Err(self.closed_error()),
            };
            request_id
        };
        let _forget = ForgetOnDrop { connection: self, request_id };
        self.push(Message { request_id, ..message }, 0).await?;
        answered.await.map_err(|_| self.closed_error())
    }

    /// Closes it, telling the peer why. For [`GoodbyeReason::Shutdown`], what is queued is written first.
    pub fn close(&self, reason: GoodbyeReason) {
        self.end(CloseReason::Local(reason));
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Waits for its end; why it ended.
    pub async fn closed(&self) -> Arc<CloseReason> {
        self.closing.cancelled().await;
        self.close_reason()
    }

    /// Ends it; the first reason counts. All outstanding requests fail at once.
    pub(crate) fn end(&self, reason: CloseReason) {
        self.reason.get_or_init(|| Arc::new(reason));
        drop(self.pending.lock().waiting.take()); // each waiting request learns it by the loss of its sender
        self.outgoing.close();
        self.closing.cancel();
    }

    /// Why it ended. The endpoint's shutdown gives no reason of its own, so it is the default.
    pub(crate) fn close_reason(&self) -> Arc<CloseReason> {
        Arc::clone(self.reason.get_or_init(|| Arc::new(CloseReason::Local(GoodbyeReason::Shutdown))))
    }

    fn closed_error(&self) -> NetError {
        NetError::Closed(self.close_reason())
    }

    async fn push(&self, message: Message, flags: u16) -> Result<(), NetError> {
        let frame = OutFrame::new(message, flags).map_err(NetError::TooLarge)?;
        self.outgoing.push(frame).await.map_err(|_| self.closed_error())
    }

    fn try_push(&self, message: Message, flags: u16) -> Result<(), NetError> {
        let frame = OutFrame::new(message, flags).map_err(NetError::TooLarge)?;
        self.outgoing.try_push(frame).map_err(|_| self.no_room_error())
    }

    fn try_hold(&self, frame: OutFrame) -> Result<(), NetError> {
        self.outgoing.try_hold(frame).map_err(|_| self.no_room_error())
    }

    fn no_room_error(&self) -> NetError {
        if self.is_closed() { self.closed_error() } else { NetError::QueueFull }
    }

    /// Gives a response to whoever waits for it. One that nobody waits for came too late.
    pub(crate) fn complete(&self, message: Message) {
        let waiting = self.pending.lock().waiting.as_mut().and_then(|waiting| waiting.remove(&message.request_id));
        match waiting {
            Some(answer) => drop(answer.send(message)), // fails when it was given up just now
            None => tracing::debug!(peer = %self.peer, request_id = message.request_id, "late response dropped"),
        }
    }

    /// Whether neither side waits for anything.
    pub(crate) fn is_quiet(&self) -> bool {
        self.credit.available_permits() == self.credit_bytes
            && self.outgoing.is_empty()
            && self.pending.lock().waiting.as_ref().is_none_or(HashMap::is_empty)
    }

    /// The charge for a message, at once if there is credit.
    pub(crate) fn try_charge(&self, frame_bytes: usize) -> Option<Permit> {
        let (own, shared) = self.charge_bytes(frame_bytes);
        let connection = Arc::clone(&self.credit).try_acquire_many_owned(own).ok()?;
        let endpoint = Arc::clone(self.endpoint.credit_for(*self.peer)).try_acquire_many_owned(shared).ok()?;
        Some(Permit { connection: Some(connection), endpoint: Some(endpoint) })
    }

    /// The charge for a message, when there is credit for it. The connection's own comes first: what is held of the
    /// endpoint's is then always with a handler, which will give it back.
    pub(crate) async fn charge(&self, frame_bytes: usize) -> Permit {
        let (own, shared) = self.charge_bytes(frame_bytes);
        let connection = Arc::clone(&self.credit).acquire_many_owned(own).await.ok();
        let endpoint = Arc::clone(self.endpoint.credit_for(*self.peer)).acquire_many_owned(shared).await.ok();
        Permit { connection, endpoint }
    }

    fn charge_bytes(&self, frame_bytes: usize) -> (u32, u32) {
        let bytes = frame_bytes - HEADER_BYTES + MESSAGE_OVERHEAD_BYTES;
        let capped = |cap: usize| u32::try_from(bytes.min(cap)).unwrap_or(u32::MAX);
        (capped(self.credit_bytes), capped(self.endpoint.config().inbound_bytes_total_max.max(1)))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// Where a connection comes from.
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    /// Its slot among the accepted ones, held as long as it lives; `None` when this side opened it.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
}

/// Takes a request out of the pending ones when its asker goes away.
struct ForgetOnDrop<'a> {
    connection: &'a Connection,
    request_id: u64,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = &mut self.connection.pending.lock().waiting {
            waiting.remove(&self.request_id);
        }
    }
}
