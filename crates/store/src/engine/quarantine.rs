//! Quarantine: a device that failed a write or a sync is not trusted again by itself.
//!
//! After a failed sync the kernel has marked the pages clean and forgotten the error: the sync of the next open succeeds,
//! and the replay would take from the page cache what the device never got. So the failure is written down, in the
//! superblock and where [`Engine::on_quarantine`] says, and opening is refused until a person decides.
//!
//! A damaged index is written down, too, by the second of these places alone: RocksDB reads little of it when it opens, so
//! that the next open would pass, and fail at the next compaction, for ever. That copy is lost and no device in doubt.
//!
//! The superblock is written last and as well as the device allows: of a device that fails, the other place remains.

use super::Engine;
use crate::device::Device;
use crate::error::{CommitError, OpenError};
use crate::format::superblock::Superblock;
use crate::index::Index;

/// Told of the failure that puts a store into quarantine, or says that its index is damaged
/// ([`CommitError::index_is_damaged`]), before those who wait for the commit are.
pub type OnQuarantine = Box<dyn Fn(&CommitError) + Send + Sync>;

/// `ENOSPC` and `EDQUOT` of a write: the file system is full, and the device as good as before.
pub(crate) fn is_no_space(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

impl CommitError {
    /// True when what the device holds is in doubt after this error.
    pub fn doubts_the_device(&self) -> bool {
        match self {
            CommitError::Write { source, .. } => !is_no_space(source),
            // Even one for want of space: pages were dropped.
            CommitError::Sync(_) => true,
            CommitError::Index(error) => error.is_device_failure(),
            CommitError::Poisoned(error) => error.doubts_the_device(),
            CommitError::Panicked | CommitError::Closed => false,
        }
    }

    /// True when the index itself is damaged. Opening it anew mends nothing: the damage is met again.
    pub fn index_is_damaged(&self) -> bool {
        match self {
            CommitError::Index(error) => error.is_corruption(),
            CommitError::Poisoned(error) => error.index_is_damaged(),
            CommitError::Write { .. } | CommitError::Sync(_) | CommitError::Panicked | CommitError::Closed => false,
        }
    }
}

impl<D: Device, I: Index> Engine<D, I> {
    /// Has `told` called should the store go into quarantine, or its index be found damaged. The first call counts.
    pub fn on_quarantine(&self, told: OnQuarantine) {
        let _ = self.on_quarantine.set(told); // set already: the first one is as good
    }

    /// Writes down what a failure says of the device and the index beyond this process.
    pub(super) fn remember(&self, error: &CommitError) {
        if error.doubts_the_device() {
            self.quarantine(error);
        } else if error.index_is_damaged() {
            self.tell(error);
        }
    }

    fn tell(&self, error: &CommitError) {
        if let Some(told) = self.on_quarantine.get() {
            told(error);
        }
    }

    /// Writes down that the device is in doubt.
    pub(crate) fn quarantine(&self, error: &CommitError) {
        self.tell(error);
        let mut superblock = self.superblock.lock();
        superblock.generation += 1;
        superblock.quarantined = true;
        superblock.durable = self.state.read().durable;
        if let Err(error) = superblock.write(&self.device).and_then(|()| self.device.sync()) {
            tracing::warn!(disk = %self.layout.disk, %error, "the quarantine could not be written to the device");
        }
    }
}

/// Ends the quarantine of `device`: the next open takes what it finds.
///
/// # Errors
/// [`OpenError`], when there is no superblock or the device fails.
pub(crate) fn release(device: &dyn Device) -> Result<(), OpenError> {
    let (mut superblock, both_copies) = Superblock::read(device)?;
    if superblock.quarantined {
        superblock.generation = superblock.next_generation(both_copies);
        superblock.quarantined = false;
        superblock.clean = false;
        superblock.write(device)?;
        device.sync()?;
    }
    Ok(())
}
