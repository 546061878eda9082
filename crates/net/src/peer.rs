//! The connecting side: one peer, whether there is a connection to it at the moment or not.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_types::Incarnation;
use holdfast_wire::frame::{GoodbyeReason, PeerIdentity};
use rand::SeedableRng;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backoff::Backoff;
use crate::connection::{Connection, Origin};
use crate::endpoint::Endpoint;
use crate::error::{CloseReason, ConnectError, NetError};
use crate::handshake::{self, Expected, HandshakeError};
use crate::message::{Handler, Message};

/// A connection that ended sooner than this did not count as a success: the next attempt waits.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where, as `host:port`; a name is resolved at each attempt.
    pub address: String,
    /// Whom to expect there; `None`: whoever answers.
    pub identity: Option<PeerIdentity>,
    /// Which run to expect; `None`: any that is not known to be over.
    pub incarnation: Option<Incarnation>,
}

/// When to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMode {
    /// When somebody wants to send.
    OnDemand,
    /// At once, and again whenever the connection ends: for peers whose death must be noticed.
    KeepConnected,
}

/// How it stands with a peer. Changes are published at once.
#[derive(Debug, Clone)]
pub struct PeerState {
    /// Attempts to connect that failed, over the peer's life.
    pub failed_attempts: u64,
    /// The latest.
    pub status: PeerStatus,
}

/// See [`PeerState`].
#[derive(Debug, Clone)]
pub enum PeerStatus {
    /// Not wanted yet.
    Idle,
    /// An attempt is under way.
    Connecting,
    /// There is a connection.
    Connected(Arc<Connection>),
    /// The connection ended; the next attempt is to come.
    Disconnected(Arc<CloseReason>),
    /// The latest attempt failed; the next one is to come.
    Unreachable(Arc<ConnectError>),
    /// The [`Peer`] was dropped or the endpoint shut down.
    GivenUp,
}

/// A peer to send to. Clones share it; when the last one is dropped, its connection ends.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
    _give_up: Arc<DropGuard>,
}

struct Shared {
    endpoint: Arc<Endpoint>,
    target: Target,
    state: watch::Sender<PeerState>,
    wanted: Notify,
}

impl Peer {
    /// A peer that is connected to as `mode` says. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(endpoint: &Arc<Endpoint>, target: Target, mode: PeerMode, handler: Arc<dyn Handler>) -> Peer {
        let give_up = endpoint.shutdown.child_token();
        let state = watch::Sender::new(PeerState { failed_attempts: 0, status: PeerStatus::Idle });
        let shared = Arc::new(Shared { endpoint: Arc::clone(endpoint), target, state, wanted: Notify::new() });
        endpoint.tasks.spawn(drive(Arc::clone(&shared), mode, handler, give_up.clone()));
        Peer { shared, _give_up: Arc::new(give_up.drop_guard()) }
    }

    /// Whom it connects to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.shared.target
    }

    /// How it stands, and what changes of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<PeerState> {
        self.shared.state.subscribe()
    }

    /// The connection, if there is one now.
    #[must_use]
    pub fn connected(&self) -> Option<Arc<Connection>> {
        match &self.shared.state.borrow().status {
            PeerStatus::Connected(connection) if !connection.is_closed() => Some(Arc::clone(connection)),
            _ => None,
        }
    }

    /// The connection; makes one if there is none. Waits for the next attempt and no longer: between attempts lies a
    /// growing pause, so whoever asks again and again is held to that pace.
    ///
    /// # Errors
    /// [`NetError::Connect`] when the attempt fails, [`NetError::GivenUp`].
    pub async fn connection(&self) -> Result<Arc<Connection>, NetError> {
        if let Some(connection) = self.connected() {
            return Ok(connection);
        }
        let mut state = self.shared.state.subscribe();
        let failed_before = state.borrow().failed_attempts;
        self.shared.wanted.notify_one();
        loop {
            {
                let state = state.borrow_and_update();
                match &state.status {
                    PeerStatus::Connected(connection) if !connection.is_closed() => return Ok(Arc::clone(connection)),
                    PeerStatus::Unreachable(error) if state.failed_attempts > failed_before => {
                        return Err(NetError::Connect(Arc::clone(error)));
                    }
                    PeerStatus::Disconnected(_) => self.shared.wanted.notify_one(),
                    PeerStatus::GivenUp => return Err(NetError::GivenUp),
                    PeerStatus::Idle
                    | PeerStatus::Connecting
                    | PeerStatus::Connected(_)
                    | PeerStatus::Unreachable(_) => {}
                }
            }
            if state.changed().await.is_err() {
                return Err(NetError::GivenUp);
            }
        }
    }

    /// Asks, connecting first if need be; one attempt. See [`Connection::request`].
    ///
    /// # Errors
    /// Those of [`Peer::connection`] and [`Connection::request`].
    pub async fn request(&self, message: Message, deadline: Instant) -> Result<Message, NetError> {
        if let Some(connection) = self.connected() {
            return connection.request(message, deadline).await;
        }
        let ask = async { self.connection().await?.request(message, deadline).await };
        tokio::time::timeout_at(deadline.into(), ask).await.unwrap_or(Err(NetError::Timeout))
    }

    /// Sends one way, connecting first if need be; one attempt. See [`Connection::send`].
    ///
    /// # Errors
    /// Those of [`Peer::connection`] and [`Connection::send`].
    pub async fn send(&self, message: Message) -> Result<(), NetError> {
        self.connection().await?.send(message).await
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("target", &self.shared.target).finish_non_exhaustive()
    }
}

/// Connects, waits for the connection's end, and so on, until given up.
async fn drive(shared: Arc<Shared>, mode: PeerMode, handler: Arc<dyn Handler>, give_up: CancellationToken) {
    let life = async {
        let config = shared.endpoint.config();
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
        let mut rng = rand::rngs::SmallRng::from_os_rng();
        loop {
            if mode == PeerMode::OnDemand {
                shared.wanted.notified().await;
            }
            let pause = match attempt(&shared, &handler).await {
                Some(lived) if lived >= SHORT_LIVED => {
                    backoff.reset();
                    Duration::ZERO
                }
                _ => backoff.next_pause(&mut rng),
            };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = give_up.cancelled() => {}
        () = life => {}
    }
    let before = shared.state.send_replace(PeerState { failed_attempts: 0, status: PeerStatus::GivenUp });
    if let PeerStatus::Connected(connection) = before.status {
        connection.close(GoodbyeReason::Shutdown);
    }
}

/// One attempt, and if it succeeds the whole life of the connection; how long that was.
async fn attempt(shared: &Arc<Shared>, handler: &Arc<dyn Handler>) -> Option<Duration> {
    shared.state.send_modify(|state| state.status = PeerStatus::Connecting);
    match connect(&shared.endpoint, &shared.target, handler).await {
        Ok(connection) => {
            let since = Instant::now();
            shared.state.send_modify(|state| state.status = PeerStatus::Connected(Arc::clone(&connection)));
            let reason = connection.closed().await;
            shared.state.send_modify(|state| state.status = PeerStatus::Disconnected(reason));
            Some(since.elapsed())
        }
        Err(error) => {
            tracing::debug!(address = %shared.target.address, %error, "cannot connect");
            handler.on_unreachable(&shared.target, &error);
            shared.state.send_modify(|state| {
                state.failed_attempts += 1;
                state.status = PeerStatus::Unreachable(Arc::new(error));
            });
            None
        }
    }
}

async fn connect(
    endpoint: &Arc<Endpoint>,
    target: &Target,
    handler: &Arc<dyn Handler>,
) -> Result<Arc<Connection>, ConnectError> {
    let address = || target.address.clone();
    let io_error = |source| ConnectError::Io { address: address(), source };
    let config = endpoint.config();
    let timed_out = |after| ConnectError::Timeout { address: address(), after };
    let mut stream = tokio::time::timeout(config.connect_timeout, TcpStream::connect(&target.address))
        .await
        .map_err(|_| timed_out(config.connect_timeout))?
        .map_err(|error| io_error(Arc::new(error)))?;
    stream.set_nodelay(true).map_err(|error| io_error(Arc::new(error)))?;
    let remote = stream.peer_addr().map_err(|error| io_error(Arc::new(error)))?;
    let expected = Expected { identity: target.identity, incarnation: target.incarnation };
    let handshake = handshake::connect(endpoint, &mut stream, remote, expected);
    let established = tokio::time::timeout(config.handshake_timeout, handshake)
        .await
        .map_err(|_| timed_out(config.handshake_timeout))?
        .map_err(|error| match error {
            HandshakeError::Io(source) => io_error(source),
            HandshakeError::EndOfStream => io_error(Arc::new(std::io::ErrorKind::UnexpectedEof.into())),
            HandshakeError::Unacceptable(reason) => ConnectError::Unacceptable { address: address(), reason },
            HandshakeError::Rejected(reason) => ConnectError::Rejected { address: address(), reason },
            HandshakeError::NoHello(source) => ConnectError::NotHoldfast { address: address(), source },
        })?;
    let origin = Origin { remote, slot: None };
    Ok(Connection::start(endpoint, stream, origin, established, Arc::clone(handler)))
}
