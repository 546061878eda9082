//! The bytes of one file: what would be there if the power failed now, and what was written since.
//!
//! The first lies in a file of the machine that runs the test, the second in memory, in pages of 4 KiB. A sync takes the
//! pages that are there when it begins into a layer of its own, and they are durable when it ends: what is written
//! meanwhile is not of it, and what is read is everything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::SystemTime;

use rand::Rng as _;
use rand::rngs::SmallRng;
use rustix::fs::{FallocateFlags, SeekFrom};

/// Bytes of a page: as the page cache, so that what survives of it is what would.
pub const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// The most bytes that are written at once.
const RUN_BYTES_MAX: usize = 1 << 20;

/// The number of an operation on names (of a truncate, too) in the order of all of them.
pub type Seq = u64;

/// What a page holds.
#[derive(Debug, Clone)]
enum Bytes {
    /// A hole.
    Zero,
    /// Its bytes.
    Data(Box<[u8; PAGE_BYTES]>),
}

/// A page that is not durable yet.
#[derive(Debug, Clone)]
struct Page {
    bytes: Bytes,
    /// The truncate (or creation) that was before it: without that it cannot be there either.
    after: Seq,
}

/// Pages that one sync makes durable.
#[derive(Debug)]
struct Layer {
    sync: u64,
    pages: BTreeMap<u64, Page>,
    size: u64,
}

/// What a power loss did to a file, or to several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Pages written and not synced, of which nothing is left.
    pub dropped: u64,
    /// Pages not synced that are there all the same.
    pub survived: u64,
    /// Pages of which only some sectors are there.
    pub torn: u64,
    /// Operations on names that are undone.
    pub operations: u64,
}

impl Lost {
    /// Adds what another one did.
    pub fn add(&mut self, other: Lost) {
        self.dropped += other.dropped;
        self.survived += other.survived;
        self.torn += other.torn;
        self.operations += other.operations;
    }
}

/// What survives of pages that were not synced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survival {
    /// Of each page, the probability that anything of it does.
    pub page: f64,
    /// Of a page that does, the probability that it is torn.
    pub torn: f64,
    /// The newest operation on names that is durable.
    pub committed: Seq,
}

/// See the module.
#[derive(Debug)]
pub struct FileData {
    backing: File,
    /// What processes see.
    size: u64,
    /// Length of `backing`: what would be there after a power loss.
    durable_size: u64,
    /// Truncates that are not durable, in their order. What they have cut off is not to be seen, but still there.
    truncates: Vec<(Seq, u64)>,
    /// The last truncate, or the creation.
    shaped: Seq,
    frozen: Vec<Layer>,
    dirty: BTreeMap<u64, Page>,
    /// When it was last written.
    pub modified: SystemTime,
}

impl FileData {
    /// An empty file, created by that operation.
    #[must_use]
    pub fn new(backing: File, created: Seq) -> FileData {
        FileData {
            backing,
            size: 0,
            durable_size: 0,
            truncates: Vec::new(),
            shaped: created,
            frozen: Vec::new(),
            dirty: BTreeMap::new(),
            modified: SystemTime::now(),
        }
    }

    /// Bytes that processes see.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// 512-byte blocks in use.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let durable = self.backing.metadata().map_or(0, |metadata| metadata.blocks());
        durable + self.unsynced_pages() * PAGE / 512
    }

    /// Pages that would be lost now.
    #[must_use]
    pub fn unsynced_pages(&self) -> u64 {
        self.layers().map(|pages| pages.len() as u64).sum()
    }

    /// Bytes at the start of `backing` that may be seen.
    fn shown(&self) -> u64 {
        self.truncates.iter().map(|(_, size)| *size).fold(self.durable_size, u64::min)
    }

    fn layers(&self) -> impl Iterator<Item = &BTreeMap<u64, Page>> {
        self.frozen.iter().map(|layer| &layer.pages).chain([&self.dirty])
    }

    /// Reads up to `length` bytes: fewer at the end of the file.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = self.size.min(offset.saturating_add(length as u64));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let shown = usize::try_from(self.shown().saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
        if let Some(durable) = bytes.get_mut(..shown) {
            self.backing.read_exact_at(durable, offset)?;
        }
        for pages in self.layers() {
            for (number, page) in pages.range(offset / PAGE..end.div_ceil(PAGE)) {
                let start = number * PAGE;
                let (from, to) = (start.max(offset), (start + PAGE).min(end));
                let at = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(0);
                let Some(target) = bytes.get_mut(at(from, offset)..at(to, offset)) else { continue };
                match &page.bytes {
                    Bytes::Zero => target.fill(0),
                    Bytes::Data(data) => {
                        target.copy_from_slice(data.get(at(from, start)..at(to, start)).unwrap_or_default());
                    }
                }
            }
        }
        Ok(bytes)
    }

    fn page(&self, number: u64) -> io::Result<Box<[u8; PAGE_BYTES]>> {
        let mut page = Box::new([0; PAGE_BYTES]);
        let bytes = self.read(number * PAGE, PAGE_BYTES)?;
        page.get_mut(..bytes.len()).unwrap_or_default().copy_from_slice(&bytes);
        Ok(page)
    }

    /// Writes; durable after the next sync.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, usize::try_from(at % PAGE).unwrap_or(0));
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - within));
            let mut page = if now.len() == PAGE_BYTES { Box::new([0; PAGE_BYTES]) } else { self.page(number)? };
            page.get_mut(within..within + now.len()).unwrap_or_default().copy_from_slice(now);
            self.dirty.insert(number, Page { bytes: Bytes::Data(page), after: self.shaped });
            at += now.len() as u64;
            rest = later;
            self.size = self.size.max(at);
        }
        self.modified = SystemTime::now();
        Ok(())
    }

    /// Makes bytes zero, within the present size.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn punch(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(self.size);
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if whole.is_empty() {
            let zeros = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
            return self.write(offset, &zeros);
        }
        let (first, last) = (whole.start * PAGE, whole.end * PAGE);
        self.write(offset, &vec![0; usize::try_from(first - offset).unwrap_or(0)])?;
        self.write(last, &vec![0; usize::try_from(end - last).unwrap_or(0)])?;
        for number in whole {
            self.dirty.insert(number, Page { bytes: Bytes::Zero, after: self.shaped });
        }
        Ok(())
    }

    /// Has the machine's file system set room aside; changes nothing that can be read.
    ///
    /// # Errors
    /// That there is no room.
    pub fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.backing, FallocateFlags::KEEP_SIZE, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Cuts or extends, as operation `seq`; durable when [`FileData::truncated`] is told so.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn truncate(&mut self, seq: Seq, size: u64) -> io::Result<()> {
        let within = usize::try_from(size % PAGE).unwrap_or(0);
        if size < self.size && within > 0 {
            // What is cut off must not be there again when the file grows.
            let mut page = self.page(size / PAGE)?;
            page.get_mut(within..).unwrap_or_default().fill(0);
            self.dirty.insert(size / PAGE, Page { bytes: Bytes::Data(page), after: seq });
        }
        let beyond = size.div_ceil(PAGE);
        self.dirty.split_off(&beyond);
        for layer in &mut self.frozen {
            layer.pages.split_off(&beyond);
            layer.size = layer.size.min(size);
        }
        self.size = size;
        self.shaped = seq;
        self.truncates.push((seq, size));
        self.modified = SystemTime::now();
        Ok(())
    }

    /// A truncate has become durable.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn truncated(&mut self, seq: Seq) -> io::Result<()> {
        if let Some(place) = self.truncates.iter().position(|(other, _)| *other == seq) {
            let (_, size) = self.truncates.remove(place);
            self.backing.set_len(size)?;
            self.durable_size = size;
        }
        Ok(())
    }

    /// A sync begins: whatever was written until now is of it.
    pub fn freeze(&mut self, sync: u64) {
        let pages = std::mem::take(&mut self.dirty);
        self.frozen.push(Layer { sync, pages, size: self.size });
    }

    /// The sync has ended: what is of it, and of those that began before, is durable.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn settle(&mut self, sync: u64) -> io::Result<()> {
        let still = self.frozen.iter().position(|layer| layer.sync > sync).unwrap_or(self.frozen.len());
        let settled: Vec<Layer> = self.frozen.drain(..still).collect();
        for layer in settled {
            self.put(layer.pages.iter().map(|(number, page)| (*number, &page.bytes)))?;
            if layer.size != self.durable_size || !layer.pages.is_empty() {
                self.backing.set_len(layer.size)?;
            }
            self.durable_size = layer.size;
        }
        Ok(())
    }

    /// Writes pages to the machine's file, neighbours together.
    fn put<'a>(&self, pages: impl Iterator<Item = (u64, &'a Bytes)>) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (mut run, mut zeros) = (Vec::new(), 0u64);
        let mut start = 0;
        // Of `run` and `zeros` one is empty.
        let out = |run: &mut Vec<u8>, zeros: &mut u64, start: u64| -> io::Result<()> {
            self.backing.write_all_at(run, start)?;
            if *zeros > 0 {
                rustix::fs::fallocate(&self.backing, hole, start, *zeros)?;
            }
            run.clear();
            *zeros = 0;
            Ok(())
        };
        for (number, bytes) in pages {
            let length = run.len() as u64 + zeros;
            let fits = match bytes {
                Bytes::Zero => run.is_empty(),
                Bytes::Data(_) => zeros == 0 && run.len() + PAGE_BYTES <= RUN_BYTES_MAX,
            };
            if length == 0 || start + length != number * PAGE || !fits {
                out(&mut run, &mut zeros, start)?;
                start = number * PAGE;
            }
            match bytes {
                Bytes::Zero => zeros += PAGE,
                Bytes::Data(data) => run.extend_from_slice(data.as_slice()),
            }
        }
        out(&mut run, &mut zeros, start)
    }

    /// The power fails: of what was not synced, this much survives. Processes have lost everything else, too.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn lose(&mut self, survival: Survival, random: &mut SmallRng) -> io::Result<Lost> {
        let mut lost = Lost::default();
        self.truncates.clear();
        let dirty = std::mem::take(&mut self.dirty);
        let last = Layer { sync: u64::MAX, pages: dirty, size: self.size };
        for layer in self.frozen.drain(..).chain([last]) {
            for (number, page) in layer.pages {
                if page.after > survival.committed || !random.random_bool(survival.page) {
                    lost.dropped += 1;
                    continue;
                }
                let start = number * PAGE;
                let torn = random.random_bool(survival.torn);
                let new = match page.bytes {
                    Bytes::Zero => Box::new([0; PAGE_BYTES]),
                    Bytes::Data(data) => data,
                };
                for (index, sector) in new.chunks_exact(SECTOR_BYTES).enumerate() {
                    if !torn || random.random_bool(0.5) {
                        self.backing.write_all_at(sector, start + (index * SECTOR_BYTES) as u64)?;
                    }
                }
                self.durable_size = self.durable_size.max((start + PAGE).min(layer.size));
                lost.survived += u64::from(!torn);
                lost.torn += u64::from(torn);
            }
        }
        self.backing.set_len(self.durable_size)?;
        self.size = self.durable_size;
        Ok(lost)
    }

    /// The first byte of data, or of a hole, from `offset` on; `None` when there is none.
    ///
    /// # Errors
    /// Any error of the machine's file system.
    pub fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        if offset >= self.size {
            return Ok(None);
        }
        if self.unsynced_pages() > 0 || !self.truncates.is_empty() {
            return Ok(Some(if hole { self.size } else { offset })); // all of it may be data
        }
        let sought = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        match rustix::fs::seek(&self.backing, sought) {
            Err(rustix::io::Errno::NXIO) => Ok(None),
            outcome => Ok(Some(outcome?)),
        }
    }
}
