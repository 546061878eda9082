//! The least rate of a client, in both directions: who moves almost nothing does not keep memory and connections for ever.
//!
//! [`Pace`] counts the time spent waiting for the client, not the time in which we were busy: [`BYTES_MIN`] must move in
//! every [`PATIENCE`] of waiting. [`Paced`] holds what is sent to that; request bodies are read with a [`Pace`] of their
//! own ([`crate::body`]), since only there it is known that bytes are due.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a client may take for [`BYTES_MIN`].
const PATIENCE: Duration = Duration::from_secs(60);
/// About 1 KiB/s: a tenth of the slowest modem that speaks TLS.
const BYTES_MIN: usize = 64 * 1024;

/// How fast a client was lately.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// How long to wait for the next bytes; nothing by then is too little.
    pub fn patience(&self) -> Duration {
        PATIENCE.saturating_sub(self.waited)
    }

    /// Some bytes moved after waiting for them.
    pub fn moved(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes >= BYTES_MIN {
            *self = Pace::default();
        }
    }
}

/// A connection that fails when its peer takes what is written too slowly.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    pace: Pace,
    /// Since when the peer takes nothing, and the end of our patience.
    blocked: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<S> Paced<S> {
    /// Watches a connection.
    pub fn new(inner: S) -> Paced<S> {
        Paced { inner, pace: Pace::default(), blocked: None }
    }

    fn watch(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(result) => {
                let waited = self.blocked.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
                self.pace.moved(*result.as_ref().unwrap_or(&0), waited);
                Poll::Ready(result)
            }
            Poll::Pending => {
                let patience = self.pace.patience();
                let (_, end) = self.blocked.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(patience))));
                ready!(end.as_mut().poll(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes too little")))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, data);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, data);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_after_a_minute() {
        let (ours, _theirs) = duplex(1024);
        let started = Instant::now();
        let error = Paced::new(ours).write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn drops_do_not_buy_time_and_a_slow_reader_is_served() {
        for (bytes, served) in [(100, false), (8192, true)] {
            let (ours, mut theirs) = duplex(1024);
            let reading = tokio::spawn(async move {
                let mut buffer = vec![0; bytes];
                loop {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    if theirs.read_exact(&mut buffer).await.is_err() {
                        return;
                    }
                }
            });
            let mut ours = Paced::new(ours);
            let result = ours.write_all(&vec![0; 1 << 20]).await;
            assert_eq!(result.is_ok(), served, "{bytes} bytes every five seconds: {result:?}");
            reading.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn our_own_pauses_are_not_the_peers() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut ours = Paced::new(ours);
        for _ in 0..10 {
            ours.write_all(b"little").await.unwrap();
            tokio::time::sleep(PATIENCE).await;
        }
        drop(ours);
        let mut all = String::new();
        theirs.read_to_string(&mut all).await.unwrap();
        assert_eq!(all.len(), 60);
    }
}
