//! The queue between senders and a connection's writing task.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use holdfast_wire::frame::{FrameError, FrameHeader, HEADER_BYTES, Label};
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
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

/// A frame ready to be written.
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
        }
    }

    /// What a frame takes of the room: all of it when it is larger, so that it can pass alone.
    fn cost(&self, frame: &OutFrame) -> u32 {
        u32::try_from(frame.bytes + FRAME_OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.capacity)
    }

    /// Waits for room. [`NoRoom`]: the connection has ended.
    pub(crate) async fn push(&self, frame: OutFrame) -> Result<(), NoRoom> {
        let cost = self.cost(&frame);
        self.room.acquire_many(cost).await.map_err(|_| NoRoom)?.forget();
        self.enqueue(frame, cost);
        Ok(())
    }

    pub(crate) fn try_push(&self, frame: OutFrame) -> Result<(), NoRoom> {
        let cost = self.cost(&frame);
        self.room.try_acquire_many(cost).map_err(|_| NoRoom)?.forget();
        self.enqueue(frame, cost);
        Ok(())
    }

    fn enqueue(&self, frame: OutFrame, cost: u32) {
        self.queue.lock().push_back((frame, cost));
        self.ready.notify_one();
    }

    /// Until [`Batch::take`] may find something.
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
pub(crate) struct Batch {
    chunks: VecDeque<Bytes>,
    cost: usize,
}

impl Batch {
    /// Takes the next frames from the queue; whether there is anything to write.
    pub(crate) fn take(&mut self, outgoing: &Outgoing) -> bool {
        let (mut bytes, mut queue) = (0, outgoing.queue.lock());
        while self.chunks.len() < SLICES_MAX && bytes < BATCH_BYTES {
            let Some((frame, cost)) = queue.pop_front() else { break };
            bytes += frame.bytes;
            self.cost += cost as usize;
            self.chunks.push_back(frame.head);
            self.chunks.extend(frame.rest);
        }
        !self.chunks.is_empty()
    }

    /// Writes all of it and gives its room back. Can be dropped and called again: it goes on where it was.
    pub(crate) async fn write(
        &mut self,
        outgoing: &Outgoing,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        while !self.chunks.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = slices.iter_mut().zip(&self.chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count();
            let written = stream.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        outgoing.room.add_permits(std::mem::take(&mut self.cost));
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
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
