//! The device under the store: positional reads and writes, and a sync.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::DeviceError;

/// A block device, or what behaves like one. Writes become durable with the next [`Device::sync`] that begins after
/// them; before it, any part of them may be lost in a crash.
pub trait Device: Send + Sync {
    /// Fills `buffer` from device byte `offset`.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `parts`, one after the other, from device byte `offset`.
    ///
    /// # Errors
    /// [`DeviceError`]; any part of the write may have happened.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DeviceError>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing is known then of any write since the last sync that succeeded.
    fn sync(&self) -> Result<(), DeviceError>;

    /// Says that a range will be written soon, so that space for it is taken now, outside the write path.
    ///
    /// # Errors
    /// [`DeviceError`], for want of space as a rule.
    fn prepare(&self, offset: u64, length: u64) -> Result<(), DeviceError>;

    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file or a block device of the system.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    length: u64,
    regular: bool,
}

fn failed(act: &'static str, offset: u64, length: usize, source: io::Error) -> DeviceError {
    DeviceError { act, offset, length: length as u64, source: Arc::new(source) }
}

impl FileDevice {
    /// Opens a device; makes a sparse file of `create_bytes` when there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, create_bytes: u64) -> io::Result<FileDevice> {
        let file = OpenOptions::new().read(true).write(true).create(create_bytes > 0).truncate(false).open(path)?;
        let metadata = file.metadata()?;
        let regular = metadata.is_file();
        if regular && metadata.len() == 0 && create_bytes > 0 {
            file.set_len(create_bytes)?;
            file.sync_all()?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        let length =
            if regular { file.metadata()?.len() } else { rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))? };
        Ok(FileDevice { file, length, regular })
    }
}

impl Device for FileDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| failed("read", offset, buffer.len(), error))
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DeviceError> {
        /// Buffers of one call; Linux takes 1,024.
        const PARTS_MAX: usize = 512;
        let mut at = offset;
        let mut rest = parts;
        let mut skip = 0; // bytes of rest[0] that are written
        while !rest.is_empty() {
            let slices: Vec<io::IoSlice<'_>> = rest
                .iter()
                .take(PARTS_MAX)
                .enumerate()
                .map(|(index, part)| io::IoSlice::new(if index == 0 { &part[skip..] } else { part }))
                .collect();
            let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
            let mut written = match rustix::io::pwritev(&self.file, &slices, at) {
                Ok(0) if wanted > 0 => {
                    return Err(failed("write", at, wanted, io::ErrorKind::WriteZero.into()));
                }
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(failed("write", at, wanted, error.into())),
            };
            at += written as u64;
            while let Some(first) = rest.first() {
                let left = first.len() - skip;
                if written < left {
                    skip += written;
                    break;
                }
                written -= left;
                skip = 0;
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|error| failed("sync", 0, 0, error))
    }

    fn prepare(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        if !self.regular {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, length) {
            // A file system without it allocates at the write; that is slower and still right.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(failed("allocate", offset, usize::try_from(length).unwrap_or(usize::MAX), error.into())),
        }
    }

    fn len(&self) -> u64 {
        self.length
    }
}
