//! The queue between senders and a connection's stream.
//!
//! Whoever has the writer writes: normally the connection's writing task, but a thread that has queued answers may write
//! them itself ([`Outgoing::flush`]), which spares waking the task. What the socket does not take at once is the task's.
//! Nothing is forgotten between the two: who queues and does not get the writer wakes the task, and the task waits for
//! the writer.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use holdfast_wire::frame::{FrameError, FrameHeader, HEADER_BYTES, Label};
use parking_lot::Mutex;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, Semaphore};

use crate::message::Message;

/// Charged for each frame beside its bytes: bookkeeping, and with it the bound on the number of queued frames.
const FRAME_OVERHEAD_BYTES: usize = 256;

/// Bodies up to this are copied behind their header: one more slice of a vectored write costs more.
const BODY_COPIED_BYTES_MAX: usize = 4 << 10;

/// Slices of one vectored write. Beyond some dozens the system call's fixed cost no longer shows.
const SLICES_MAX: usize = 64;

/// Bytes after which a batch is written. What Linux takes in one piece on loopback; more only delays the credit.
const BATCH_BYTES: usize = 512 << 10;

/// A thread that is not the writing task writes batches of up to this many bytes itself: copying more into the socket
/// would keep it from its own work for longer than waking the task takes.
const FLUSH_BYTES_MAX: usize = 64 << 10;

/// A frame ready to be written. Cheap to clone.
#[derive(Clone)]
pub(crate) struct OutFrame {
    head: Bytes,
    rest: Vec<Bytes>,
    bytes: usize,
}

impl OutFrame {
    /// Checks limits and computes checksums, on the sender's thread.
    pub(crate) fn new(message: Message, flags: u16) -> Result<OutFrame, FrameError> {
        let Message { kind, request_id, trace_id, body, payload } = message;
        let header = FrameHeader::for_message(Label { kind, flags, request_id, trace_id }, &body, &payload)?;
        let mut head = BytesMut::with_capacity(HEADER_BYTES + body.len().min(BODY_COPIED_BYTES_MAX));
        head.extend_from_slice(&header.encode());
        let mut rest = payload;
        if body.len() <= BODY_COPIED_BYTES_MAX {
            head.extend_from_slice(&body);
        } else {
            rest.insert(0, body);
        }
        rest.retain(|chunk| !chunk.is_empty());
        Ok(OutFrame { head: head.freeze(), rest, bytes: header.frame_bytes() })
    }
}

/// Bounded in bytes; senders wait for room in the order in which they came.
pub(crate) struct Outgoing {
    queue: Mutex<VecDeque<(OutFrame, u32)>>,
    ready: Notify,
    room: Semaphore,
    capacity: u32,
    /// Whether anything was queued since this was last asked.
    used: AtomicBool,
    writer: Mutex<Writer>,
}

/// The end of the queue. Locked for the time of one write that does not wait.
#[derive(Default)]
struct Writer {
    batch: Batch,
    /// From the handshake to the end of the connection.
    stream: Option<Arc<OwnedWriteHalf>>,
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing is left to write.
    All,
    /// A batch; there may be more.
    Some,
    /// What the socket takes; the rest when it is writable again.
    Blocked,
}

/// There is no room, or the connection has ended.
pub(crate) struct NoRoom;

impl Outgoing {
    pub(crate) fn new(capacity: usize) -> Outgoing {
        let capacity = u32::try_from(capacity.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Outgoing {
            queue: Mutex::new(VecDeque::new()),
            ready: Notify::new(),
            room: Semaphore::new(capacity as usize),
            capacity,
            used: AtomicBool::new(false),
            writer: Mutex::default(),
        }
    }

    /// The stream is ready for frames.
    pub(crate) fn attach(&self, stream: Arc<OwnedWriteHalf>) {
        self.writer.lock().stream = Some(stream);
    }

    /// Whether anything was queued since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Forgets the frames of which nothing was written.
    pub(crate) fn discard(&self) {
        self.queue.lock().clear();
    }

    /// Nobody writes after this.
    pub(crate) fn detach(&self) {
        self.writer.lock().stream = None;
    }

    /// What a frame takes of the room: all of it when it is larger, so that it can pass alone.
    fn cost(&self, frame: &OutFrame) -> u32 {
        u32::try_from(frame.bytes + FRAME_OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.capacity)
    }

    /// Waits for room. [`NoRoom`]: the connection has ended.
    pub(crate) async fn push(&self, frame: OutFrame) -> Result<(), NoRoom> {
        let cost = self.cost(&frame);
        self.room.acquire_many(cost).await.map_err(|_| NoRoom)?.forget();
        self.used.store(true, Ordering::Relaxed);
        self.queue.lock().push_back((frame, cost));
        self.ready.notify_one();
        Ok(())
    }

    pub(crate) fn try_push(&self, frame: OutFrame) -> Result<(), NoRoom> {
        self.try_hold(frame)?;
        self.ready.notify_one();
        Ok(())
    }

    /// As `try_push`, but nothing is written before the next `flush` (or somebody else's push).
    pub(crate) fn try_hold(&self, frame: OutFrame) -> Result<(), NoRoom> {
        let cost = self.cost(&frame);
        self.room.try_acquire_many(cost).map_err(|_| NoRoom)?.forget();
        self.used.store(true, Ordering::Relaxed);
        self.queue.lock().push_back((frame, cost));
        Ok(())
    }

    /// Writes what is queued, as far as that does not wait; the rest is the writing task's.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let written = match self.writer.try_lock() {
            Some(mut writer) => writer.write(self, FLUSH_BYTES_MAX)?,
            None => Written::Blocked,
        };
        if written != Written::All {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Writes one batch, as far as that does not wait. For the writing task.
    pub(crate) fn write(&self) -> io::Result<Written> {
        self.writer.lock().write(self, usize::MAX)
    }

    /// Until there may be something to write.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.room.available_permits() == self.capacity as usize
    }

    /// Whoever waits for room, or asks for it later, is told that there is none.
    pub(crate) fn close(&self) {
        self.room.close();
    }
}

/// Frames that are being written.
#[derive(Default)]
struct Batch {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    cost: usize,
}

impl Writer {
    /// Writes the rest of the last batch, or the next one if it has at most `bytes_max` bytes.
    fn write(&mut self, outgoing: &Outgoing, bytes_max: usize) -> io::Result<Written> {
        let Some(stream) = &self.stream else { return Ok(Written::Blocked) };
        let more = self.batch.fill(outgoing);
        if self.batch.bytes > bytes_max {
            return Ok(Written::Some);
        }
        while !self.batch.chunks.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let chunks = self.batch.chunks.iter();
            let count = slices.iter_mut().zip(chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count();
            match stream.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.batch.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Written::Blocked),
                Err(error) => return Err(error),
            }
        }
        outgoing.room.add_permits(std::mem::take(&mut self.batch.cost));
        Ok(if more { Written::Some } else { Written::All })
    }
}

impl Batch {
    /// Takes the next frames from the queue; whether some are left there.
    fn fill(&mut self, outgoing: &Outgoing) -> bool {
        let mut queue = outgoing.queue.lock();
        while self.chunks.len() < SLICES_MAX && self.bytes < BATCH_BYTES {
            let Some((frame, cost)) = queue.pop_front() else { return false };
            self.bytes += frame.bytes;
            self.cost += cost as usize;
            self.chunks.push_back(frame.head);
            self.chunks.extend(frame.rest);
        }
        !queue.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.chunks.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
    }
}
