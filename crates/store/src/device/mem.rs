//! A device in memory that fails as disks fail, by seed.
//!
//! Writes are held apart until a sync. [`MemDevice::crash`] decides for each un-synced sector, alone, whether it is kept,
//! lost, or torn (its first bytes new, the rest old). Faults are planned by IO index: the n-th IO of a run fails, is cut
//! short by a crash, or returns flipped bits, so that a test can try every index.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::Rng;

use super::Device;

/// What a torn write leaves whole.
const SECTOR_BYTES: usize = 512;
type Sector = [u8; SECTOR_BYTES];

/// A planned failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This IO and all later ones fail; a write may be partly there after [`MemDevice::crash`].
    Crash,
    /// This IO returns EIO; later ones work.
    Eio,
    /// This read returns one flipped bit, the stored bytes stay right.
    FlipBit,
}

/// What a disk does that says it did what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The next write is dropped: what was there before stays.
    WriteDropped,
    /// The next write goes to the sectors from this byte on.
    WriteMisdirected {
        /// Any byte of the first sector.
        to: u64,
    },
    /// The next read is one of the sectors from this byte on.
    ReadMisdirected {
        /// Any byte of the first sector.
        to: u64,
    },
    /// No sync does anything until the process ends or the power fails.
    SyncsDropped,
}

/// How often each thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemDeviceStats {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Faults that fired.
    pub faults: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Un-synced sectors that the crash before this device's life lost, or left in an older version.
    pub sectors_lost: u64,
    /// Un-synced sectors that it left torn.
    pub sectors_torn: u64,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: u64,
    durable: BTreeMap<u64, Sector>,
    /// Written since the last sync: the versions that each sector may have, in order.
    pending: BTreeMap<u64, Vec<Sector>>,
    faults: BTreeMap<u64, Fault>,
    /// Sectors that cannot be read until they are written anew.
    unreadable: BTreeSet<u64>,
    crashed: bool,
    no_blocks: bool,
    /// What it lies about next, each once but for syncs.
    lies: Vec<Lie>,
    lies_told: Vec<Lie>,
    stats: MemDeviceStats,
}

/// See the module. Clones share the bytes.
#[derive(Debug, Clone, Default)]
pub struct MemDevice {
    inner: Arc<Mutex<Inner>>,
    io_count: Arc<AtomicU64>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Inner {
    fn sector(&self, number: u64) -> Sector {
        let pending = self.pending.get(&number).and_then(|versions| versions.last());
        pending.or_else(|| self.durable.get(&number)).copied().unwrap_or([0; SECTOR_BYTES])
    }

    /// The place of an IO at `offset`: that of the lie that is told now, if one is.
    fn place(&mut self, offset: u64, bytes: u64, lie_of: impl Fn(&Lie) -> Option<u64>) -> u64 {
        let Some((index, to)) = self.lies.iter().enumerate().find_map(|(index, lie)| Some((index, lie_of(lie)?)))
        else {
            return offset;
        };
        // In its sector it begins where it should have, and it ends on the device.
        let shift = offset % SECTOR_BYTES as u64;
        let last = self.bytes.saturating_sub(bytes + shift) / SECTOR_BYTES as u64;
        let place = (to / SECTOR_BYTES as u64).min(last) * SECTOR_BYTES as u64 + shift;
        if place != offset {
            self.lies_told.push(self.lies.remove(index));
        }
        place
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        self.stats.bytes_written += data.len() as u64;
        while !data.is_empty() {
            let number = offset / SECTOR_BYTES as u64;
            let from = (offset % SECTOR_BYTES as u64) as usize;
            let count = data.len().min(SECTOR_BYTES - from);
            let mut sector = self.sector(number);
            self.unreadable.remove(&number);
            let (head, tail) = data.split_at(count);
            sector[from..from + count].copy_from_slice(head);
            self.pending.entry(number).or_default().push(sector);
            data = tail;
            offset += count as u64;
        }
    }
}

impl MemDevice {
    /// A device of `bytes` zeros.
    pub fn new(bytes: u64) -> MemDevice {
        let device = MemDevice::default();
        device.inner.lock().bytes = bytes;
        device
    }

    /// Plans `fault` for the IO with number `io_index` (reads, writes and syncs count from 0).
    pub fn plan(&self, io_index: u64, fault: Fault) {
        self.inner.lock().faults.insert(io_index, fault);
    }

    /// The number that the next IO will have.
    pub fn io_count(&self) -> u64 {
        self.io_count.load(Ordering::SeqCst)
    }

    /// What happened so far.
    pub fn stats(&self) -> MemDeviceStats {
        self.inner.lock().stats
    }

    /// Flips `bit` (0 to 7) of the byte at `offset`, as rot does: without any IO.
    pub fn flip(&self, offset: u64, bit: u8) {
        let mut inner = self.inner.lock();
        let number = offset / SECTOR_BYTES as u64;
        let at = (offset % SECTOR_BYTES as u64) as usize;
        let mut sector = inner.sector(number);
        sector[at] ^= 1 << (bit & 7);
        inner.pending.remove(&number);
        inner.durable.insert(number, sector);
    }

    /// Makes the sector with the byte at `offset` unreadable until it is written, as a bad sector is.
    pub fn spoil(&self, offset: u64) {
        self.inner.lock().unreadable.insert(offset / SECTOR_BYTES as u64);
    }

    /// Plans a lie.
    pub fn lie(&self, lie: Lie) {
        self.inner.lock().lies.push(lie);
    }

    /// From now on the device does what it says.
    pub fn lie_no_more(&self) {
        self.inner.lock().lies.clear();
    }

    /// The lies told since this was asked last, once per write, read or sync.
    pub fn lies_told(&self) -> Vec<Lie> {
        std::mem::take(&mut self.inner.lock().lies_told)
    }

    /// Lets the file system that the device is a file of be full, or not: [`Device::allocate`] fails with ENOSPC.
    pub fn set_no_blocks(&self, no_blocks: bool) {
        self.inner.lock().no_blocks = no_blocks;
    }

    /// Whether it is: see [`MemDevice::set_no_blocks`].
    pub fn has_no_blocks(&self) -> bool {
        self.inner.lock().no_blocks
    }

    /// What the device looks like after the power failed now: a new device in which each un-synced sector is kept (one of
    /// the versions written), lost or torn, as `rng` decides. This one is not changed.
    pub fn crash(&self, rng: &mut impl Rng) -> MemDevice {
        let inner = self.inner.lock();
        let mut durable = inner.durable.clone();
        let (mut lost, mut torn_sectors) = (0, 0);
        let mood = rng.random_range(0..8); // whole groups often survive or vanish together: give those cases weight
        for (number, versions) in &inner.pending {
            let old = durable.get(number).copied().unwrap_or([0; SECTOR_BYTES]);
            let kept = match mood {
                0 => None,
                1 => versions.last().copied(),
                _ => match rng.random_range(0..8) {
                    0..=2 => None,
                    3..=5 => versions.last().copied(),
                    6 => versions.get(rng.random_range(0..versions.len())).copied(),
                    _ => versions.last().map(|new| {
                        let cut = rng.random_range(0..SECTOR_BYTES);
                        let mut torn = old;
                        torn[..cut].copy_from_slice(&new[..cut]);
                        torn_sectors += u64::from(torn != old && torn != *new);
                        torn
                    }),
                },
            };
            lost += u64::from(kept.as_ref() != versions.last());
            if let Some(sector) = kept {
                durable.insert(*number, sector);
            }
        }
        let after = MemDevice::with_durable(&inner, durable);
        {
            let mut fresh = after.inner.lock();
            fresh.stats.sectors_lost = lost;
            fresh.stats.sectors_torn = torn_sectors;
        }
        after
    }

    /// A copy with the same bytes, all of them durable, and no planned faults: the process ended, and all was written back.
    pub fn restart(&self) -> MemDevice {
        let inner = self.inner.lock();
        let mut durable = inner.durable.clone();
        for (number, versions) in &inner.pending {
            if let Some(sector) = versions.last() {
                durable.insert(*number, *sector);
            }
        }
        MemDevice::with_durable(&inner, durable)
    }

    /// What the end of the process leaves: the same bytes, of which what was not synced is still in the page cache, and no
    /// planned faults. The power may fail later ([`MemDevice::crash`]).
    pub fn end_process(&self) -> MemDevice {
        let inner = self.inner.lock();
        let after = MemDevice::with_durable(&inner, inner.durable.clone());
        after.inner.lock().pending = inner.pending.clone();
        after
    }

    /// The device and the file system under it after `before`, with what was durable.
    fn with_durable(before: &Inner, durable: BTreeMap<u64, Sector>) -> MemDevice {
        let device = MemDevice::new(before.bytes);
        {
            let mut inner = device.inner.lock();
            inner.durable = durable;
            inner.unreadable = before.unreadable.clone();
            inner.no_blocks = before.no_blocks;
        }
        device
    }

    fn begin(&self, inner: &mut Inner) -> Option<Fault> {
        let index = self.io_count.fetch_add(1, Ordering::SeqCst);
        if inner.crashed {
            return Some(Fault::Crash);
        }
        let fault = inner.faults.remove(&index);
        if fault.is_some() {
            inner.stats.faults += 1;
        }
        if fault == Some(Fault::Crash) {
            inner.crashed = true;
        }
        fault
    }
}

impl Device for MemDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.stats.reads += 1;
        let fault = self.begin(&mut inner);
        if matches!(fault, Some(Fault::Crash | Fault::Eio)) {
            return Err(eio());
        }
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > inner.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let offset = inner.place(offset, buffer.len() as u64, |lie| match lie {
            Lie::ReadMisdirected { to } => Some(*to),
            _ => None,
        });
        let sectors =
            offset / SECTOR_BYTES as u64..offset.saturating_add(buffer.len() as u64).div_ceil(SECTOR_BYTES as u64);
        if inner.unreadable.range(sectors).next().is_some() {
            return Err(eio());
        }
        let mut at = offset;
        let mut rest = &mut *buffer;
        while !rest.is_empty() {
            let sector = inner.sector(at / SECTOR_BYTES as u64);
            let from = (at % SECTOR_BYTES as u64) as usize;
            let count = rest.len().min(SECTOR_BYTES - from);
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(count);
            head.copy_from_slice(&sector[from..from + count]);
            rest = tail;
            at += count as u64;
        }
        if fault == Some(Fault::FlipBit)
            && let Some(byte) = buffer.first_mut()
        {
            *byte ^= 1;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[&[u8]]) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.stats.writes += 1;
        let was_crashed = inner.crashed;
        let fault = self.begin(&mut inner);
        if was_crashed || fault == Some(Fault::Eio) {
            return Err(eio());
        }
        let bytes: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        if offset.checked_add(bytes).is_none_or(|end| end > inner.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(index) = inner.lies.iter().position(|lie| *lie == Lie::WriteDropped) {
            let lie = inner.lies.remove(index);
            inner.lies_told.push(lie);
            return if fault == Some(Fault::Crash) { Err(eio()) } else { Ok(()) };
        }
        let mut at = inner.place(offset, bytes, |lie| match lie {
            Lie::WriteMisdirected { to } => Some(*to),
            _ => None,
        });
        for piece in data {
            inner.write(at, piece);
            at += piece.len() as u64;
        }
        // A write cut short by the crash was under way: any of its sectors may have arrived.
        if fault == Some(Fault::Crash) { Err(eio()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.stats.syncs += 1;
        if matches!(self.begin(&mut inner), Some(Fault::Crash | Fault::Eio)) {
            return Err(eio());
        }
        if inner.lies.contains(&Lie::SyncsDropped) {
            inner.lies_told.push(Lie::SyncsDropped);
            return Ok(());
        }
        for (number, versions) in std::mem::take(&mut inner.pending) {
            if let Some(sector) = versions.last() {
                inner.durable.insert(number, *sector);
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.crashed {
            return Err(eio());
        }
        // Bytes of whole sectors go; a discard needs no sync, which is the worst that a real device may do.
        let first = offset.div_ceil(SECTOR_BYTES as u64);
        let end = (offset + length) / SECTOR_BYTES as u64;
        inner.durable.retain(|number, _| !(first..end).contains(number));
        inner.pending.retain(|number, _| !(first..end).contains(number));
        Ok(())
    }

    fn allocate(&self, _offset: u64, _length: u64) -> io::Result<()> {
        if self.inner.lock().no_blocks { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().bytes)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const SECTOR: u64 = SECTOR_BYTES as u64;

    /// Four sectors, each full of its number, durable.
    fn device() -> MemDevice {
        let device = MemDevice::new(4 * SECTOR);
        for number in 0..4 {
            write(&device, number, number as u8);
        }
        device.sync().expect("a sync");
        device
    }

    fn write(device: &MemDevice, number: u64, byte: u8) {
        device.write_at(number * SECTOR, &[&[byte; SECTOR_BYTES]]).expect("a write");
    }

    fn read(device: &MemDevice) -> [u8; 4] {
        [0, 1, 2, 3].map(|number| {
            let mut sector = [0xff; SECTOR_BYTES];
            device.read_at(number * SECTOR, &mut sector).expect("a read");
            sector[0]
        })
    }

    #[test]
    fn a_dropped_write_is_acknowledged_and_leaves_what_was_there() {
        let device = device();
        device.lie(Lie::WriteDropped);
        write(&device, 1, 9);
        write(&device, 2, 9);
        assert_eq!(read(&device), [0, 1, 9, 3], "one write is dropped");
        assert_eq!(device.lies_told(), [Lie::WriteDropped]);
    }

    #[test]
    fn a_misdirected_write_changes_another_place_and_ends_on_the_device() {
        let device = device();
        device.lie(Lie::WriteMisdirected { to: 3 * SECTOR + 7 });
        device.write_at(0, &[&[9; 2 * SECTOR_BYTES]]).expect("a write");
        assert_eq!(read(&device), [0, 1, 9, 9]);
    }

    #[test]
    fn a_misdirected_read_shows_another_place_once() {
        let device = device();
        device.lie(Lie::ReadMisdirected { to: 2 * SECTOR });
        assert_eq!(read(&device), [2, 1, 2, 3]);
        assert_eq!(read(&device), [0, 1, 2, 3]);
    }

    #[test]
    fn what_a_lying_sync_did_not_do_is_lost_with_the_power() {
        let lost = |lies: bool| {
            (0..50).any(|seed| {
                let device = device();
                if lies {
                    device.lie(Lie::SyncsDropped);
                }
                write(&device, 1, 9);
                device.sync().expect("it says that it did");
                read(&device.crash(&mut SmallRng::seed_from_u64(seed))) == [0, 1, 2, 3]
            })
        };
        assert!(lost(true));
        assert!(!lost(false));
    }
}
