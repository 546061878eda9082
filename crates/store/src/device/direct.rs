//! Large writes that go past the page cache.
//!
//! A large payload is written once and rarely read soon; through the page cache it costs fresh pages, a copy into them and
//! their writeback, two thirds of the processor time of the whole write. Here it is copied into one aligned buffer that
//! stays warm, and the device reads it from there. Both ways to the file are coherent: the kernel writes back and drops
//! cached pages of what is written directly, and a range is never written both ways at once.
//!
//! Only a way to be faster: whatever a file system does not take directly is written through the cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

/// Alignment of offsets, lengths and memory that all devices in use take; also the page size, so that direct and cached
/// writes never share a page.
const ALIGN: usize = 4096;
/// Smaller writes go through the cache: they are likely read soon, and cost little there.
const DIRECT_BYTES_MIN: usize = 256 << 10;
/// Bytes of the buffer: a record of 4 MiB with its header and a few small ones around it go in one piece.
const BUFFER_BYTES: usize = (4 << 20) + (64 << 10);

/// See the module.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: File,
    /// Made at the first large write; one too long by [`ALIGN`], to find the alignment in.
    buffer: Mutex<Vec<u8>>,
    /// The file system has not refused yet.
    works: AtomicBool,
}

impl DirectFile {
    /// Opens the same file once more; `None` when that is not possible.
    pub(super) fn of(file: &File) -> Option<DirectFile> {
        let flags = rustix::fs::OFlags::DIRECT.bits();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().write(true).custom_flags(flags as i32).open(path);
        match opened {
            Ok(file) => Some(DirectFile { file, buffer: Mutex::new(Vec::new()), works: AtomicBool::new(true) }),
            Err(error) => {
                tracing::info!(%error, "no direct IO here, large writes go through the page cache");
                None
            }
        }
    }

    /// Writes `data` from `offset` if it can go directly. `false`: nothing that counts was written, it must go another way.
    ///
    /// # Errors
    /// Any error of the device; an unknown part is then written.
    pub(super) fn write(&self, offset: u64, data: &[&[u8]]) -> io::Result<bool> {
        let bytes: usize = data.iter().map(|piece| piece.len()).sum();
        let aligned = offset.is_multiple_of(ALIGN as u64) && bytes.is_multiple_of(ALIGN);
        if bytes < DIRECT_BYTES_MIN || !aligned || !self.works.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut memory = self.buffer.lock();
        if memory.is_empty() {
            memory.resize(BUFFER_BYTES + ALIGN, 0);
        }
        let from = memory.as_ptr().align_offset(ALIGN);
        let Some(buffer) = memory.get_mut(from..from.saturating_add(BUFFER_BYTES)) else { return Ok(false) };
        let mut at = offset;
        let mut filled = 0;
        for piece in data {
            let mut rest = *piece;
            while !rest.is_empty() {
                let space = buffer.get_mut(filled..).unwrap_or_default();
                let (now, later) = rest.split_at(rest.len().min(space.len()));
                space.get_mut(..now.len()).unwrap_or_default().copy_from_slice(now);
                filled += now.len();
                rest = later;
                if filled == BUFFER_BYTES {
                    if !self.put(at, buffer)? {
                        return Ok(false);
                    }
                    at += filled as u64;
                    filled = 0;
                }
            }
        }
        self.put(at, buffer.get(..filled).unwrap_or_default())
    }

    fn put(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) if !written.is_multiple_of(ALIGN) && written < bytes.len() => return Ok(false),
                Ok(written) => {
                    offset += written as u64;
                    bytes = bytes.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    tracing::info!("the file system takes no direct writes, they go through the page cache");
                    self.works.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn direct_writes_are_what_the_cache_reads_whatever_the_pieces_are() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        let Some(direct) = DirectFile::of(&file) else { return };
        let noise: Vec<u8> = (0..9 << 20).map(|n: u32| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        for (round, total) in
            [DIRECT_BYTES_MIN, 1 << 20, BUFFER_BYTES, BUFFER_BYTES + ALIGN, 9 << 20].iter().enumerate()
        {
            let offset = (8192 * round) as u64;
            let mut stale = vec![0; *total];
            file.read_exact_at(&mut stale, offset).unwrap(); // now the cache has what was there before
            let mut pieces = Vec::new();
            let mut rest = noise.get(..*total).unwrap();
            for length in [104, 777, 4096, 1, 3 << 20, usize::MAX] {
                let (now, later) = rest.split_at(rest.len().min(length));
                pieces.push(now);
                rest = later;
            }
            if !direct.write(offset, &pieces).unwrap() {
                return; // a file system without direct IO
            }
            let mut read = vec![0; *total];
            file.read_exact_at(&mut read, offset).unwrap();
            assert!(read == noise[..*total], "{total} bytes");
        }
    }

    #[test]
    fn small_and_unaligned_writes_are_left_to_the_cache() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let Some(direct) = DirectFile::of(&file) else { return };
        let bytes = vec![7; 1 << 20];
        assert!(!direct.write(512, &[&bytes]).unwrap());
        assert!(!direct.write(0, &[&bytes, b"more"]).unwrap());
        assert!(!direct.write(0, &[&bytes[..4096]]).unwrap());
        let mut read = vec![1; 4096];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, vec![0; 4096]);
    }
}
