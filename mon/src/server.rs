//! The listening socket: lets only HTTP/2 in, and says why a connection ended.
//!
//! A peer must send the whole HTTP/2 connection preface (RFC 9113 §3.4) first and soon; anything else closes the
//! connection with a logged reason, before a byte of it reaches the gRPC stack.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_net::mon_api::{MESSAGE_BYTES_MAX, Monitor, MonitorServer};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service;
use tracing::{debug, warn};

/// RFC 9113 §3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a peer may take to send it.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections at once: every daemon and client of a large cluster has one or two.
const CONNECTIONS_MAX: usize = 4_096;
/// Most calls at once on one connection.
const STREAMS_MAX: u32 = 1_024;
/// Pings find peers that vanished.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long calls may go on after a shutdown began.
const DRAIN: Duration = Duration::from_millis(500);

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
enum RefusedPreface {
    #[error("not HTTP/2: it begins with \"{}\"", .begins.escape_ascii())]
    NotHttp2 { begins: Vec<u8> },
    #[error("it ended after {bytes} bytes of the HTTP/2 preface")]
    Truncated { bytes: usize },
    #[error("no HTTP/2 preface within {PREFACE_TIMEOUT:?}")]
    Slow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Accepts until `stop`, then lets calls end.
pub(crate) async fn serve<M: Monitor>(listener: TcpListener, service: Arc<M>, stop: CancellationToken) {
    let service = MonitorServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await; // out of descriptors: do not spin
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(%remote, limit = CONNECTIONS_MAX, "connection closed: too many connections");
            continue;
        };
        let (service, stop) = (service.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, remote, service, stop).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        debug!(open = connections.len(), "connections dropped at shutdown");
    }
}

async fn connection<M: Monitor>(
    mut stream: TcpStream,
    remote: SocketAddr,
    service: MonitorServer<M>,
    stop: CancellationToken,
) {
    let preface = tokio::select! {
        preface = read_preface(&mut stream) => preface,
        () = stop.cancelled() => return,
    };
    if let Err(reason) = preface {
        warn!(%remote, %reason, "connection closed");
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%remote, %error, "no TCP_NODELAY");
    }
    let io = TokioIo::new(Prefaced { sent: 0, stream });
    let calls = service_fn(move |request| {
        let mut service = service.clone();
        async move { Ok::<_, Infallible>(service.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let mut serving = std::pin::pin!(builder.serve_connection(io, calls));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            // Subscriptions never end by themselves.
            tokio::time::timeout(DRAIN / 2, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let vanished = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
        if vanished {
            debug!(%remote, %error, cause, "connection ended");
        } else {
            warn!(%remote, %error, cause, "connection closed");
        }
    }
}

async fn read_preface(stream: &mut TcpStream) -> Result<(), RefusedPreface> {
    let reading = async {
        let mut seen = [0u8; PREFACE.len()];
        let mut length = 0;
        while let Some(rest) = seen.get_mut(length..).filter(|rest| !rest.is_empty()) {
            let bytes = stream.read(rest).await?;
            if bytes == 0 {
                return Err(RefusedPreface::Truncated { bytes: length });
            }
            length += bytes;
            if seen.iter().zip(PREFACE).take(length).any(|(seen, expected)| seen != expected) {
                return Err(RefusedPreface::NotHttp2 { begins: seen.iter().take(length).copied().collect() });
            }
        }
        Ok(())
    };
    tokio::time::timeout(PREFACE_TIMEOUT, reading).await.unwrap_or(Err(RefusedPreface::Slow))
}

/// A stream whose preface has been read already, and is given out once more.
struct Prefaced {
    sent: usize,
    stream: TcpStream,
}

impl AsyncRead for Prefaced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = PREFACE.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let now = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..now]);
            self.sent += now;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefaced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
