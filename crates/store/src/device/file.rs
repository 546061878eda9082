//! A block device or a (sparse) file, with pread, pwritev and fdatasync.
//!
//! Reads go through the page cache: it is then the store's read cache, and gives way to others under pressure. The log is
//! written directly where the file system can, all else through the cache.
//! The descriptor is opened for itself and locked, so that no two stores use one device.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt as _};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::Device;
use super::direct::DirectFile;

/// Most pieces that one pwritev takes (Linux IOV_MAX).
const WRITE_PIECES_MAX: usize = 1024;

/// What an allocation leaves free at least: a share of its bytes, and no more than this. The index writes there, too.
const LEFT_SHARE: u64 = 16;
const LEFT_BYTES_MAX: u64 = 4 << 20;
/// A file system that is nearly full is asked for this many bytes at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    direct: Option<DirectFile>,
    bytes: u64,
    is_file: bool,
}

impl FileDevice {
    /// Opens an existing file or block device.
    ///
    /// # Errors
    /// As the file system says; `WouldBlock` when another process has it open as a device.
    pub fn open(path: &Path) -> io::Result<FileDevice> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        FileDevice::from_file(file)
    }

    /// Opens an existing file or block device, or makes a sparse file of `bytes`. A file that exists is extended to
    /// `bytes`, never cut.
    ///
    /// A link to a device that is not there is an error, and nothing is made: behind it would be a file in `/dev`, in
    /// memory.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn create(path: &Path, bytes: u64) -> io::Result<FileDevice> {
        match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => FileDevice::open_extended(path, bytes),
            made => FileDevice::extended(made?, path, bytes),
        }
    }

    /// Opens an existing file or block device. A file is extended to `bytes`, never cut.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn open_extended(path: &Path, bytes: u64) -> io::Result<FileDevice> {
        FileDevice::extended(OpenOptions::new().read(true).write(true).open(path)?, path, bytes)
    }

    fn extended(file: File, path: &Path, bytes: u64) -> io::Result<FileDevice> {
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.len() < bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?; // else the name may be lost although the file is not
            }
        }
        FileDevice::from_file(file)
    }

    fn from_file(file: File) -> io::Result<FileDevice> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let bytes = if kind.is_block_device() {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?
        } else {
            metadata.len()
        };
        // Objects lie in the order of their writing: what follows one is rarely read next. It may also be under way to the
        // device just now; see `direct`.
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
        let direct = DirectFile::of(&file);
        Ok(FileDevice { file, direct, bytes, is_file: kind.is_file() })
    }

    /// Whether the range has its blocks already: `StorageFull` if it lacks any.
    ///
    /// Only by asking for them can it be told. One call for all of it would take all that is left, be it for a moment, and
    /// keep that where it fails (ext4, XFS); others would have none. So it is asked for in pieces, and the first one that
    /// took anything is given back.
    fn allocate_nothing_new(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = PIECE_BYTES.min(end - at);
            let before = self.file.metadata()?.blocks();
            let full = match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, piece) {
                Ok(()) => self.file.metadata()?.blocks() > before,
                Err(Errno::OPNOTSUPP) => return Ok(()), // as above; what it has cannot be told either
                Err(Errno::NOSPC | Errno::DQUOT) => true,
                Err(error) => return Err(error.into()),
            };
            if full {
                if let Err(error) = self.discard(at, piece) {
                    tracing::debug!(%error, "what a full file system gave is kept");
                }
                return Err(io::ErrorKind::StorageFull.into());
            }
            at += piece;
        }
        Ok(())
    }
}

impl Device for FileDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, mut offset: u64, data: &[&[u8]]) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && direct.write(offset, data)?
        {
            return Ok(());
        }
        let mut pieces: Vec<IoSlice<'_>> =
            data.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)).collect();
        let mut rest: &mut [IoSlice<'_>] = &mut pieces;
        while !rest.is_empty() {
            let count = rest.len().min(WRITE_PIECES_MAX);
            match rustix::io::pwritev(&self.file, rest.get(..count).unwrap_or_default(), offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if !self.is_file {
            // A block device gets no discard: BLKDISCARD needs an ioctl without a safe binding, and is only a hint.
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, length)?)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        if !self.is_file {
            return Ok(());
        }
        let stat = rustix::fs::fstatvfs(&self.file)?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < length + (length / LEFT_SHARE).min(LEFT_BYTES_MAX) {
            return self.allocate_nothing_new(offset, length);
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(()), // only a help; the write allocates
            result => Ok(result?),
        }
    }

    fn drop_cache(&self) {
        // Pages that a failed writeback left behind are clean and yet not what the device holds.
        if let Err(error) = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed) {
            tracing::warn!(%error, "the page cache of the device was not dropped");
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BYTES: u64 = 8 << 20;

    #[test]
    fn a_full_file_system_is_asked_for_nothing_that_is_there_and_keeps_what_it_cannot_give() {
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::create(&directory.path().join("block"), 2 * BYTES).unwrap();
        let held = || device.file.metadata().unwrap().blocks() * 512;
        let is_refused = || device.allocate_nothing_new(0, BYTES).unwrap_err().kind() == io::ErrorKind::StorageFull;
        assert!(is_refused());
        assert_eq!(held(), 0);
        device.allocate(0, BYTES / 2).unwrap();
        let half = held();
        assert!(half >= BYTES / 2 && is_refused(), "{half}");
        assert_eq!(held(), half, "what it had it has, and no more");
        device.allocate(0, BYTES).unwrap();
        let whole = held();
        device.allocate_nothing_new(0, BYTES).unwrap();
        assert_eq!(held(), whole);
        device.write_at(4096, &[&[7; 8192]]).unwrap();
        device.sync().unwrap();
        device.allocate_nothing_new(0, BYTES).unwrap();
        let mut read = [0; 8192];
        device.read_at(4096, &mut read).unwrap();
        assert_eq!(read, [7; 8192]);
    }
}
