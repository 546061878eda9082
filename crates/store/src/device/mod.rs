//! The device: numbered bytes that can be read, written and synced.
//!
//! All IO of the store's log goes through [`Device`]. A write is durable only after the next [`Device::sync`] that began
//! after it returned; without one, each sector of it may be there, be missing or be torn after a crash.

mod direct;
mod file;
mod mem;

pub use file::FileDevice;
pub use mem::{Fault, Lie, MemDevice, MemDeviceStats};

use std::io;

/// A block device, a file, or memory. All methods may be called from several threads.
pub trait Device: Send + Sync {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Any error of the device, and reading beyond its end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes the pieces of `data` one after the other from `offset`.
    ///
    /// # Errors
    /// Any error of the device; an unknown part is then written.
    fn write_at(&self, offset: u64, data: &[&[u8]]) -> io::Result<()>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// Any error of the device. The call must not be repeated to "try again": a second one may succeed without the data.
    fn sync(&self) -> io::Result<()>;

    /// Tells that the bytes are not needed any more. They may then read as anything.
    ///
    /// # Errors
    /// Any error of the device; callers may ignore it.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Tells that the bytes will be written soon, so that a file can have its blocks before a sync waits for them.
    ///
    /// # Errors
    /// Any error of the device, among them that its file system is full.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }

    /// Makes later reads come from the device itself, not from a cache of it. Called after a sync, before what is read is
    /// taken for durable.
    fn drop_cache(&self) {}

    /// Bytes of the device.
    ///
    /// # Errors
    /// Any error of the device.
    fn len(&self) -> io::Result<u64>;

    /// True when the device has no bytes.
    ///
    /// # Errors
    /// As [`Device::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}
