//! The engine: the store without threads and without a clock.
//!
//! A transaction goes through three states. *Submitted*: it has its place in the log and its effects are visible to reads,
//! from the overlay and from payload held in memory. *Durable*: its record and all before it are synced. *Applied*: the
//! index has its changes, the overlay has forgotten them. [`Engine::submit`] makes the first, [`Engine::commit`] the rest.
//!
//! Locks: `commit_turn` is held through a commit, `clean_turn` through a cleaning step, `state` only for moments and never
//! during device IO. They are taken in the order clean, release, commit, state.

pub(crate) mod blank;
mod blocks;
mod cache;
mod clean;
pub(crate) mod commit;
mod homes;
mod quarantine;
mod read;
mod replay;
mod space;
mod stage;
mod submit;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use holdfast_types::{ClusterId, DiskUuid, OsdId};
use minicbor::{Decode, Encode};
use parking_lot::{Mutex, RwLock};

use crate::device::Device;
use crate::error::{CleanError, CommitError, FormatError};
use crate::format::superblock::Superblock;
use crate::format::{SEGMENTS_START, record::RECORD_HEADER_BYTES};
use crate::index::{Batch, Change, Index, keys};
use crate::key::{Position, Usage};
use crate::overlay::{Changes, Overlay};

pub use clean::CleanProgress;
pub use quarantine::OnQuarantine;
pub(crate) use quarantine::{is_no_space, release};
pub use read::RowPage;
use space::{NO_SEGMENT, Space};
pub use verify::{BadRange, Verified};

/// Segment sizes for devices in use. Smaller ones work, and make tests that reuse segments quick.
pub const SUPPORTED_SEGMENT_BYTES: std::ops::RangeInclusive<u32> = (4 << 20)..=(256 << 20);
const SEGMENT_BYTES_MIN: u32 = 16 << 10;
const SECTOR_BYTES: std::ops::RangeInclusive<u32> = 512..=65536;
const CHECKSUM_BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=(64 << 10);

/// What is told once a transaction is durable, or never will be. Called in the order of submission.
pub type OnDurable = Box<dyn FnOnce(Result<(), Arc<CommitError>>) + Send + 'static>;

/// Who a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The device itself; drawn anew for each format.
    pub disk: DiskUuid,
    /// Its daemon.
    pub osd: OsdId,
}

/// Sizes. The first two are fixed when a device is formatted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a segment; see [`SUPPORTED_SEGMENT_BYTES`].
    pub segment_bytes: u32,
    /// Bytes that the device writes whole or not at all. A group of records begins on a multiple of it, so that a torn
    /// write never touches what was durable before.
    pub sector_bytes: u32,
    /// Bytes under one checksum, at most 64 KiB. A read of one byte reads and checks so many; each costs 4 bytes of onode.
    pub checksum_block_bytes: u32,
    /// Share of the device that only deletes and cleaning may use.
    pub reserve_percent: u32,
    /// The index is flushed when the log has grown by so many bytes since: bounds replay and the segments waiting for it.
    pub index_flush_bytes: u64,
    /// Memory for decoded onodes. [`Store`](crate::Store) takes it from its memory target.
    pub onode_cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            sector_bytes: 4096,
            checksum_block_bytes: 16 << 10,
            reserve_percent: 2,
            index_flush_bytes: 256 << 20,
            onode_cache_bytes: 8 << 20,
        }
    }
}

/// What the file system of the index has left for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexRoomLeft {
    /// Enough.
    Enough,
    /// So little that nothing more may be let in.
    Low {
        /// Whether the device is a file on the same file system: blocks which it gives back are room for the index.
        wants_blocks: bool,
    },
}

/// The row of the index that says up to where it is complete, and so where replay starts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct LogRow {
    #[n(0)]
    disk: DiskUuid,
    #[n(1)]
    position: Position,
    #[n(2)]
    segment: u32,
    #[n(3)]
    sequence: u64,
    /// Byte after the record at `position`.
    #[n(4)]
    offset: u32,
    #[n(5)]
    next_segment: u32,
    #[n(6)]
    chain: u32,
}

/// The row of the index for one segment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct SegmentRow {
    #[n(0)]
    sequence: u64,
    #[n(1)]
    live: u64,
}

pub(super) fn to_cbor<T: Encode<()>>(value: &T) -> Bytes {
    // Encoding into a Vec fails only if an Encode impl says so; the derived ones do not.
    minicbor::to_vec(value).expect("derived encoders do not fail").into()
}

/// The effect of one record, kept until the index has it.
struct Effect {
    position: Position,
    changes: Changes,
    /// Where the log goes on after the record.
    after: LogRow,
    /// The payload that readers find in memory: (segment, byte in it).
    payload: Vec<(u32, u32)>,
}

/// A record that is submitted and not yet durable.
struct Pending {
    effect: Effect,
    segment: u32,
    offset: u32,
    /// The header of the segment, when the record opens it: one sector.
    segment_header: Option<Vec<u8>>,
    header: [u8; RECORD_HEADER_BYTES],
    ops: Vec<u8>,
    payload: Vec<Bytes>,
    bytes: u64,
    /// Beside the record: see [`stage::Stage::copied_bytes`].
    copied_bytes: u64,
    /// In a mutex only to be shareable: it is taken out by value.
    on_durable: Option<Mutex<OnDurable>>,
}

/// What changes with each transaction.
struct State {
    overlay: Overlay,
    cache: cache::OnodeCache,
    collections: homes::Collections,
    space: Space,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    /// Payload that is not applied yet, by segment and byte in it.
    in_memory: BTreeMap<(u32, u32), Bytes>,
    durable: Position,
    applied: Position,
    /// The index surely has all up to here after a crash.
    flushed: Position,
    /// Log bytes since the last index flush, and what their records have copied within the index.
    unflushed_bytes: u64,
    failed: Option<Arc<CommitError>>,
    closed: bool,
}

/// What only the commit under way needs.
struct CommitSide {
    /// Live bytes by segment as the index has them: sequence and bytes.
    live: Vec<SegmentRow>,
}

/// See the module.
pub struct Engine<D, I> {
    device: D,
    index: I,
    superblock: Mutex<Superblock>,
    layout: Superblock,
    options: Options,
    clean_turn: Mutex<clean::Cleaner>,
    release_turn: Mutex<()>,
    commit_turn: Mutex<CommitSide>,
    state: RwLock<State>,
    on_quarantine: OnceLock<OnQuarantine>,
}

impl<D, I> std::fmt::Debug for Engine<D, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({}, {})", self.layout.osd, self.layout.disk)
    }
}

fn check_options(options: &Options) -> Result<(), FormatError> {
    for (bytes, bounds) in [(options.sector_bytes, SECTOR_BYTES), (options.checksum_block_bytes, CHECKSUM_BLOCK_BYTES)]
    {
        if !bytes.is_power_of_two() || !bounds.contains(&bytes) {
            let (min, max) = (u64::from(*bounds.start()), u64::from(*bounds.end()));
            return Err(FormatError::BlockBytes { bytes: u64::from(bytes), min, max });
        }
    }
    let max = *SUPPORTED_SEGMENT_BYTES.end();
    let bytes = options.segment_bytes;
    if !(SEGMENT_BYTES_MIN..=max).contains(&bytes)
        || !bytes.is_multiple_of(options.sector_bytes)
        || bytes / 8 < options.sector_bytes
    {
        let (min, max) = (u64::from(SEGMENT_BYTES_MIN), u64::from(max));
        return Err(FormatError::SegmentBytes { bytes: u64::from(bytes), min, max });
    }
    Ok(())
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Makes an empty store of `device` and `index`, and opens it. The index may hold anything. The device must be blank,
    /// or cut off while it was formatted for the same `identity`.
    ///
    /// # Errors
    /// [`FormatError`]; after [`InUse`](FormatError::InUse) nothing has changed, after others the device may be neither
    /// blank nor a new store: formatting can be repeated.
    pub fn format(device: D, index: I, identity: Identity, options: Options) -> Result<Engine<D, I>, FormatError> {
        check_options(&options)?;
        blank::check_blank(&device, identity)?;
        let device_bytes = device.len()?;
        let segments = device_bytes.saturating_sub(SEGMENTS_START) / u64::from(options.segment_bytes);
        if segments < space::SEGMENTS_MIN {
            return Err(FormatError::TooSmall { device_bytes, segments, needed: space::SEGMENTS_MIN });
        }
        let log = LogRow {
            disk: identity.disk,
            position: Position(0),
            segment: NO_SEGMENT,
            sequence: 0,
            offset: u32::MAX,
            next_segment: 0,
            chain: 0,
        };
        let changes = vec![
            Change::DeleteRange(Bytes::from_static(&[0x00]), Bytes::from_static(&[0xff])),
            Change::Put(keys::log(), to_cbor(&log)),
        ];
        index.apply(Batch { changes, position: Position(0) })?;
        index.flush()?;
        for generation in 1..=2 {
            let superblock = Superblock {
                cluster: identity.cluster,
                disk: identity.disk,
                osd: identity.osd,
                sector_bytes: options.sector_bytes,
                segment_bytes: options.segment_bytes,
                segment_count: u32::try_from(segments).unwrap_or(u32::MAX - 1),
                generation,
                durable: Position(0),
                clean: true,
                quarantined: false,
            };
            superblock.write(&device)?;
            device.sync()?;
        }
        Ok(Engine::open(device, index, options)?)
    }

    /// What the superblock says, as of opening.
    pub fn superblock(&self) -> &Superblock {
        &self.layout
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The index.
    pub fn index(&self) -> &I {
        &self.index
    }

    /// Space on the device.
    pub fn usage(&self) -> Usage {
        let index_bytes = self.index.size_bytes();
        let state = self.state.read();
        Usage {
            total_bytes: u64::from(self.layout.segment_count) * u64::from(self.layout.segment_bytes),
            used_bytes: state.space.used_bytes(),
            live_bytes: state.space.live,
            live_bytes_limit: state.space.admission_limit(),
            index_bytes,
            pending_bytes: state.pending_bytes,
        }
    }

    /// Live bytes, and how many there may be at most; cheaper than [`Engine::usage`]. While the device has no blocks for
    /// the next segment (the file system under a sparse file is full), or the index lacks room, there may be no more than
    /// there are.
    pub fn live_bytes(&self) -> (u64, u64) {
        let state = self.state.read();
        (state.space.live, state.space.admission_limit())
    }

    /// Takes note of what the file system of the index has left. While that is little nothing more is let in; what was let in
    /// is taken.
    pub(crate) fn note_index_room(&self, left: IndexRoomLeft) {
        let wants_blocks = left == IndexRoomLeft::Low { wants_blocks: true };
        self.state.write().space.note_index_room(left != IndexRoomLeft::Enough, wants_blocks);
    }

    /// All positions up to this one are durable.
    pub fn durable_position(&self) -> Position {
        self.state.read().durable
    }

    /// The position of the last submitted transaction.
    pub fn submitted_position(&self) -> Position {
        Position(self.state.read().space.head.position.0 - 1)
    }

    /// Bytes that the next commit writes.
    pub fn pending_bytes(&self) -> u64 {
        self.state.read().pending_bytes
    }

    /// True when an index flush is due, by the bytes of the log since the last one.
    pub fn wants_index_flush(&self) -> bool {
        self.state.read().unflushed_bytes >= self.options.index_flush_bytes
    }

    /// True when something was applied since the last index flush.
    pub fn has_unflushed(&self) -> bool {
        let state = self.state.read();
        state.applied > state.flushed
    }

    /// True when there are few free segments and cleaning would make more, or the next one has no blocks yet, or the index
    /// lacks room and cleaning would give blocks back to its file system.
    pub fn wants_cleaning(&self) -> bool {
        let state = self.state.read();
        let space = &state.space;
        let is_short = space.free.len() < space.free_target() || space.index_wants_blocks;
        space.next_has_no_blocks
            || (space.index_wants_blocks && !space.free_have_no_blocks)
            || (is_short && space.cleaning_helps())
    }

    /// Makes the index durable up to what is applied, and frees the segments that this makes free.
    ///
    /// # Errors
    /// [`CleanError::Index`].
    pub fn flush_index(&self) -> Result<(), CleanError> {
        let bytes_before = self.state.read().unflushed_bytes;
        self.index.flush()?;
        let persisted = self.index.persisted_position();
        {
            let mut state = self.state.write();
            // Not beyond what is applied: a commit under way may have changed the index and still hold the payload of its
            // records by their place, so their segments must not be used anew yet.
            state.flushed = state.flushed.max(persisted.min(state.applied));
            state.unflushed_bytes = state.unflushed_bytes.saturating_sub(bytes_before);
        }
        self.release_segments();
        Ok(())
    }

    /// Commits what waits, flushes the index and marks the store as closed: the next open replays nothing. Later submits
    /// fail with [`Closed`](crate::SubmitError::Closed).
    ///
    /// # Errors
    /// [`CleanError`]; the store is then as after a crash, which loses nothing that was durable.
    pub fn close(&self) -> Result<(), CleanError> {
        self.state.write().closed = true;
        self.commit()?;
        self.flush_index()?;
        let mut superblock = self.superblock.lock();
        superblock.generation += 1;
        superblock.durable = self.state.read().durable;
        superblock.clean = true;
        superblock.write(&self.device)?;
        self.device.sync()?;
        Ok(())
    }

    /// Puts segments that nothing needs any more back among the free ones.
    fn release_segments(&self) {
        let _turn = self.release_turn.lock(); // else two find the same ones, and one discards what the other gave away
        let (released, room) = {
            let state = self.state.read();
            let room = if state.space.wants_blocks() { 0 } else { state.space.warm_room() };
            (state.space.released(state.flushed), room)
        };
        let (warm, cold) = released.split_at(released.len().min(room));
        for segment in cold {
            self.discard_segment(*segment);
        }
        self.state.write().space.set_free(warm, cold);
        self.discard_free();
        self.allocate_again();
    }
}
