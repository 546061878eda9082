//! The reading and the writing task of a connection.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::Kind;
use holdfast_wire::frame::{Frame, FrameDecoder, FrameHeader, GoodbyeReason, HEADER_BYTES, PeerIdentity, Step};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::CloseReason;
use crate::handshake::{KIND_GOODBYE, KIND_HELLO, decode_goodbye, encode_goodbye};
use crate::message::{Handler, Message, Permit};
use crate::outgoing::{Outgoing, Written};

/// How much of an unwanted stream is read away before it is reset, and for how long.
const DRAIN_BYTES: u64 = 64 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// A message is no heartbeat when it is larger.
const HEARTBEAT_BYTES_MAX: usize = 512;

/// Runs a connection to its end.
pub(crate) async fn drive(
    connection: Arc<Connection>,
    stream: TcpStream,
    decoder: FrameDecoder,
    handler: Arc<dyn Handler>,
    slot: Option<OwnedSemaphorePermit>,
) {
    if let Err(error) = watch_path(&stream, connection.endpoint.config().silence_timeout) {
        tracing::debug!(peer = %connection.peer(), %error, "the kernel does not watch the path of this connection");
    }
    let (mut read_half, write_half) = stream.into_split();
    let write_half = Arc::new(write_half);
    connection.outgoing.attach(Arc::clone(&write_half));
    let writer = tokio::spawn(write_loop(Arc::clone(&connection), write_half));
    handler.on_connected(&connection);
    let reason = read_loop(&connection, &mut read_half, decoder, &*handler).await;
    connection.end(reason);
    let reason = connection.close_reason();
    let (peer, remote) = (connection.peer(), connection.remote());
    if reason.is_misbehaviour() {
        tracing::warn!(%peer, %remote, %reason, "connection closed");
    } else {
        tracing::debug!(%peer, %remote, %reason, "connection closed");
    }
    connection.endpoint.forget(&connection);
    handler.on_closed(&connection, &reason);
    let _ = writer.await; // ends within the linger timeout
    if goodbye_for(&reason).is_some() {
        drain(&mut read_half).await;
    }
    drop(slot);
}

/// Lets the kernel find out when the path to the peer's host has broken silently: by probes while there is nothing to
/// send, by missing acknowledgements otherwise.
fn watch_path(stream: &TcpStream, silence: Duration) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_keepidle(stream, (silence / 2).max(Duration::from_secs(1)))?;
    sockopt::set_tcp_keepintvl(stream, (silence / 5).max(Duration::from_secs(1)))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, millis)
}

/// Reads until the connection ends; why it does.
async fn read_loop(
    connection: &Arc<Connection>,
    stream: &mut (impl AsyncRead + Unpin),
    mut decoder: FrameDecoder,
    handler: &dyn Handler,
) -> CloseReason {
    let local_end = || CloseReason::Local(GoodbyeReason::Shutdown); // a reason given earlier takes precedence
    let mut cancelled = pin!(connection.closing.cancelled());
    let mut watch = Watch::new(connection);
    let mut timer = pin!(tokio::time::sleep(watch.period));
    let mut permit = Permit::default();
    loop {
        match decoder.next() {
            Err(error) => return CloseReason::BadFrame(error),
            Ok(Step::Header(header)) if header.is_response() => {} // paid for by the request
            Ok(Step::Header(header)) if is_heartbeat(&header, **connection.peer()) => {}
            Ok(Step::Header(header)) => {
                permit = match connection.try_charge(header.frame_bytes()) {
                    Some(permit) => permit,
                    None => {
                        let permit = tokio::select! {
                            biased;
                            () = &mut cancelled => return local_end(),
                            permit = connection.charge(header.frame_bytes()) => permit,
                        };
                        watch.excuse(); // it was our handler that was slow, not the peer
                        timer.as_mut().reset(Instant::now() + watch.period);
                        permit
                    }
                };
            }
            Ok(Step::Frame(frame)) => {
                if let Err(reason) = dispatch(connection, frame, handler, std::mem::take(&mut permit)) {
                    return reason;
                }
            }
            Ok(Step::Incomplete) => tokio::select! {
                biased;
                () = &mut cancelled => return local_end(),
                read = async {
                    watch.waits(decoder.is_mid_frame());
                    stream.read_buf(&mut decoder.space()).await
                } => match read {
                    Ok(0) => return CloseReason::EndOfStream { mid_frame: decoder.is_mid_frame() },
                    Ok(bytes) => watch.received(bytes),
                    Err(error) => return CloseReason::Lost(Arc::new(error)),
                },
                () = &mut timer => {
                    if let Some(reason) = watch.look(connection, decoder.is_mid_frame()) {
                        return reason;
                    }
                    timer.as_mut().reset(Instant::now() + watch.period);
                }
            },
        }
    }
}

/// Signs of life cost no credit: a daemon that is busy, with all of it given away, must be able to say that it is alive.
/// They are small, and daemons send them once a second and wait for the answer.
fn is_heartbeat(header: &FrameHeader, peer: PeerIdentity) -> bool {
    let is_daemon = match peer {
        PeerIdentity::Osd(_) | PeerIdentity::Mon(_) => true,
        PeerIdentity::Client(_) => false,
    };
    is_daemon && header.kind == Kind::Heartbeat as u16 && header.frame_bytes() <= HEADER_BYTES + HEARTBEAT_BYTES_MAX
}

/// Hands a frame to whom it is for.
fn dispatch(
    connection: &Arc<Connection>,
    frame: Frame,
    handler: &dyn Handler,
    permit: Permit,
) -> Result<(), CloseReason> {
    match frame.header.kind {
        KIND_GOODBYE => Err(decode_goodbye(&frame).map_or(CloseReason::RemoteUnknown, CloseReason::Remote)),
        KIND_HELLO => Err(CloseReason::Violation("a second hello")),
        kind => {
            let response = frame.header.is_response();
            let message = Message {
                kind,
                request_id: frame.header.request_id,
                trace_id: frame.header.trace_id,
                body: frame.body,
                payload: if frame.payload.is_empty() { Vec::new() } else { vec![frame.payload] },
            };
            match (response, message.request_id) {
                (true, 0) => return Err(CloseReason::Violation("a response to no request")),
                (true, _) => connection.complete(message),
                (false, _) => handler.on_message(connection, message, permit),
            }
            Ok(())
        }
    }
}

/// Notices a frame that stops half way or hardly goes on, and a connection that nobody uses, with one timer and no clock
/// reading per frame: it looks once a period what came since its last look.
struct Watch {
    period: Duration,
    /// Bytes since the last look.
    bytes: u64,
    /// Whether a part of a frame was there whenever more was waited for since the last look.
    all_mid_frame: bool,
    /// Time without a byte in the middle of a frame.
    stalled_for: Duration,
    quiet_for: Duration,
    stall_timeout: Duration,
    pace_bytes: u64,
    /// Whether the last period was too slow, too.
    slow: bool,
    idle_timeout: Duration,
}

impl Watch {
    fn new(connection: &Connection) -> Watch {
        let config = connection.endpoint.config();
        let period = config.pace_window.min(config.stall_timeout).min(config.idle_timeout);
        let share = period.as_secs_f64() / config.pace_window.as_secs_f64().max(f64::MIN_POSITIVE);
        Watch {
            period,
            bytes: 0,
            all_mid_frame: false,
            stalled_for: Duration::ZERO,
            quiet_for: Duration::ZERO,
            stall_timeout: config.stall_timeout,
            pace_bytes: (config.pace_bytes as f64 * share) as u64,
            slow: false,
            idle_timeout: config.idle_timeout,
        }
    }

    /// More is waited for; `mid_frame`: of a frame of which a part is there.
    fn waits(&mut self, mid_frame: bool) {
        self.all_mid_frame &= mid_frame;
    }

    fn received(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// What came since the last look says nothing of the peer.
    fn excuse(&mut self) {
        (self.bytes, self.all_mid_frame) = (self.bytes.max(1), false);
    }

    fn look(&mut self, connection: &Connection, mid_frame: bool) -> Option<CloseReason> {
        let bytes = std::mem::take(&mut self.bytes);
        let all_mid_frame = std::mem::replace(&mut self.all_mid_frame, mid_frame);
        let progressed = bytes > 0;
        self.stalled_for = if mid_frame && !progressed { self.stalled_for + self.period } else { Duration::ZERO };
        if self.stalled_for >= self.stall_timeout {
            return Some(CloseReason::Stalled);
        }
        // Twice: bytes that come after a pause may come late in a period. Nothing at all is for the kernel to judge, or the
        // peer is stopped.
        let slow = all_mid_frame && mid_frame && bytes < self.pace_bytes;
        let was_slow = std::mem::replace(&mut self.slow, slow);
        if slow && was_slow && progressed {
            return Some(CloseReason::Slow { bytes, within: self.period });
        }
        // What is sent without a question is answered on another connection.
        let sent = connection.outgoing.take_used();
        if progressed || sent || !connection.is_quiet() {
            self.quiet_for = Duration::ZERO;
            return None;
        }
        self.quiet_for += self.period;
        (self.quiet_for >= self.idle_timeout).then_some(CloseReason::Local(GoodbyeReason::Idle))
    }
}

/// Writes what is queued until the connection ends, then a goodbye if this side ended it.
async fn write_loop(connection: Arc<Connection>, stream: Arc<OwnedWriteHalf>) {
    let outgoing = &connection.outgoing;
    {
        let mut cancelled = pin!(connection.closing.cancelled());
        let written = tokio::select! {
            biased;
            () = &mut cancelled => Ok(()),
            written = write_on(outgoing, &stream, true) => written,
        };
        if let Err(error) = written {
            connection.end(CloseReason::Lost(Arc::new(error)));
        }
    }
    connection.end(CloseReason::Local(GoodbyeReason::Shutdown)); // a reason given earlier takes precedence
    let reason = connection.close_reason();
    let last_words = async {
        let Some(goodbye) = goodbye_for(&reason) else {
            outgoing.detach();
            return Ok(());
        };
        // What is asked again on a new connection need not come twice.
        if goodbye != GoodbyeReason::Shutdown || matches!(*reason, CloseReason::Slow { .. }) {
            outgoing.discard();
        }
        write_on(outgoing, &stream, false).await?; // a frame that was begun must be ended first
        outgoing.detach();
        match Arc::into_inner(stream) {
            Some(mut stream) => {
                stream.write_all(&encode_goodbye(&goodbye)).await?;
                stream.shutdown().await
            }
            None => Ok(()),
        }
    };
    // Best effort: the peer may be gone, or not read.
    let _ = tokio::time::timeout(connection.endpoint.config().linger_timeout, last_words).await;
    outgoing.detach();
}

/// Writes what is queued; `forever`: and what will be, else until nothing is left.
async fn write_on(outgoing: &Outgoing, stream: &OwnedWriteHalf, forever: bool) -> std::io::Result<()> {
    loop {
        match outgoing.write()? {
            Written::All if forever => outgoing.ready().await,
            Written::All => return Ok(()),
            Written::Some => tokio::task::yield_now().await,
            Written::Blocked => stream.writable().await?,
        }
    }
}

/// What to tell the peer at the end, if there is anybody to tell.
fn goodbye_for(reason: &CloseReason) -> Option<GoodbyeReason> {
    match reason {
        CloseReason::Local(reason) => Some(reason.clone()),
        CloseReason::BadFrame(error) => Some(GoodbyeReason::BadFrame { detail: error.to_string() }),
        CloseReason::Violation(what) => Some(GoodbyeReason::BadFrame { detail: (*what).to_owned() }),
        CloseReason::Stalled => Some(GoodbyeReason::BadFrame { detail: "stalled".to_owned() }),
        CloseReason::Slow { .. } => Some(GoodbyeReason::Shutdown),
        CloseReason::Remote(_)
        | CloseReason::RemoteUnknown
        | CloseReason::EndOfStream { .. }
        | CloseReason::Lost(_) => None,
    }
}

/// Reads away a little of what the peer still sends, so that closing does not reset the connection before the peer has
/// read our goodbye.
pub(crate) async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = stream.take(DRAIN_BYTES);
    let mut nowhere = tokio::io::sink();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tokio::io::copy(&mut rest, &mut nowhere)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_a_silent_path_within_the_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        watch_path(&stream, Duration::from_secs(10)).expect("this kernel has the options");
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream), Ok(10_000));
        assert_eq!(rustix::net::sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(rustix::net::sockopt::tcp_keepidle(&stream), Ok(Duration::from_secs(5)));
    }

    #[test]
    fn only_an_end_by_this_side_is_told_to_the_peer() {
        assert_eq!(goodbye_for(&CloseReason::Local(GoodbyeReason::Idle)), Some(GoodbyeReason::Idle));
        assert!(goodbye_for(&CloseReason::Violation("x")).is_some());
        assert_eq!(goodbye_for(&CloseReason::Remote(GoodbyeReason::Idle)), None);
        assert_eq!(goodbye_for(&CloseReason::EndOfStream { mid_frame: true }), None);
    }
}
