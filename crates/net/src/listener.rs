//! The accepting side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::frame::GoodbyeReason;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connection::{Connection, Origin};
use crate::endpoint::Endpoint;
use crate::handshake::{self, HandshakeError, encode_goodbye};
use crate::message::Handler;

/// Pause after `accept` failed, as a rule for want of file descriptors: trying at once would only burn a core.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until it is dropped or the endpoint shuts down. Those accepted live on when it is dropped.
#[derive(Debug)]
pub struct Listener {
    local_address: SocketAddr,
    _stop: DropGuard,
}

impl Listener {
    /// Binds and begins to accept. Port 0 takes a free one; see [`Listener::local_address`].
    ///
    /// # Errors
    /// What binding says.
    pub async fn bind(
        endpoint: &Arc<Endpoint>,
        address: SocketAddr,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Listener> {
        Listener::serve(endpoint, TcpListener::bind(address).await?, handler)
    }

    /// Begins to accept on a socket that is bound already.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn serve(endpoint: &Arc<Endpoint>, socket: TcpListener, handler: Arc<dyn Handler>) -> io::Result<Listener> {
        let local_address = socket.local_addr()?;
        let stop = endpoint.shutdown.child_token();
        endpoint.tasks.spawn(accept_loop(Arc::clone(endpoint), socket, handler, stop.clone()));
        Ok(Listener { local_address, _stop: stop.drop_guard() })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }
}

async fn accept_loop(endpoint: Arc<Endpoint>, socket: TcpListener, handler: Arc<dyn Handler>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => match Arc::clone(&endpoint.slots).try_acquire_owned() {
                Ok(slot) => {
                    endpoint.tasks.spawn(welcome(Arc::clone(&endpoint), stream, remote, slot, Arc::clone(&handler)));
                }
                Err(_) => turn_away(&endpoint, &stream, remote),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_ERROR_PAUSE).await;
            }
        }
    }
}

/// The handshake of one accepted connection.
async fn welcome(
    endpoint: Arc<Endpoint>,
    mut stream: TcpStream,
    remote: SocketAddr,
    slot: OwnedSemaphorePermit,
    handler: Arc<dyn Handler>,
) {
    let _ = stream.set_nodelay(true); // fails only on a dead socket, which the handshake notices
    let handshake = handshake::accept(&endpoint, &mut stream, remote);
    let outcome = tokio::select! {
        biased;
        () = endpoint.shutdown.cancelled() => return,
        outcome = tokio::time::timeout(endpoint.config().handshake_timeout, handshake) => outcome,
    };
    match outcome {
        Ok(Ok(established)) => {
            Connection::start(&endpoint, stream, Origin { remote, slot: Some(slot) }, established, handler);
        }
        Ok(Err(error)) => log_failed(remote, &error),
        Err(_) => {
            let _ = stream.try_write(&encode_goodbye(&GoodbyeReason::NoHello));
            tracing::warn!(%remote, "connection closed: no hello in time");
        }
    }
}

fn log_failed(remote: SocketAddr, error: &HandshakeError) {
    match error {
        HandshakeError::Unacceptable(reason) => tracing::warn!(%remote, %reason, "connection refused"),
        HandshakeError::Rejected(reason) => tracing::info!(%remote, %reason, "the connecting peer said goodbye"),
        HandshakeError::NoHello(Some(error)) => tracing::warn!(%remote, reason = %error, "connection closed: no hello"),
        HandshakeError::NoHello(None) => {
            tracing::warn!(%remote, reason = "the first frame is no hello", "connection closed: no hello");
        }
        // Port scans and health probes end so.
        HandshakeError::EndOfStream => tracing::debug!(%remote, "connection ended before its hello"),
        HandshakeError::Io(error) => tracing::debug!(%remote, %error, "connection lost before its hello"),
    }
}

/// All slots are taken: one attempt to say so, without waiting.
fn turn_away(endpoint: &Endpoint, stream: &TcpStream, remote: SocketAddr) {
    let limit = u32::try_from(endpoint.config().connections_max).unwrap_or(u32::MAX);
    let _ = stream.try_write(&encode_goodbye(&GoodbyeReason::TooManyConnections { limit }));
    tracing::warn!(%remote, limit, "connection turned away: too many");
}
