//! Whether a device may be formatted: only when nobody's data is on it.
//!
//! A daemon formats when it finds no sign of its store. The sign may be lost (a directory that is not mounted, a restored
//! system disk) while the device holds the only copy of something, so the device itself has the last word.

use super::Identity;
use super::replay::LogReader;
use crate::device::Device;
use crate::error::{FormatError, OpenError};
use crate::format::SEGMENTS_START;
use crate::format::superblock::Superblock;

/// Formatting leaves generation 2, and the opening after it 3: a store of a later one was in use.
const GENERATION_OF_NEW: u64 = 3;

/// Passes a device without superblock and with nothing but zeros where it would be, and one whose formatting for the same
/// `identity` was cut off before anything was stored.
pub(crate) fn check_blank(device: &dyn Device, identity: Identity) -> Result<(), FormatError> {
    if device.len()? < SEGMENTS_START {
        return check_zeros(device); // a file that is to be made longer
    }
    let found = match Superblock::read(device) {
        Ok((found, _)) => found,
        Err(OpenError::NoSuperblock) => return check_zeros(device),
        Err(OpenError::Device(error)) => return Err(FormatError::Device(error)),
        Err(error) => return Err(FormatError::InUse { found: None, reason: error.to_string() }),
    };
    let of_it = Identity { cluster: found.cluster, disk: found.disk, osd: found.osd };
    let in_use = |reason: &str| FormatError::InUse { found: Some(of_it), reason: reason.to_owned() };
    if (found.cluster, found.disk) != (identity.cluster, identity.disk) {
        return Err(in_use("it is another store"));
    }
    if found.generation > GENERATION_OF_NEW || found.durable.0 > 0 {
        return Err(in_use("it has been in use"));
    }
    if found.device_bytes() > device.len()? {
        return Ok(()); // a file that was replaced by a smaller one: there is nothing to lose
    }
    let mut reader = LogReader::new(device, &found);
    for segment in 0..found.segment_count {
        match reader.segment_header(segment) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(in_use("it has a log")),
            Err(OpenError::Device(error)) => return Err(FormatError::Device(error)),
            Err(error) => return Err(in_use(&error.to_string())),
        }
    }
    Ok(())
}

/// Another system's header, or both superblocks gone bad, are no reason to overwrite what follows them.
fn check_zeros(device: &dyn Device) -> Result<(), FormatError> {
    let mut bytes = vec![0; usize::try_from(device.len()?.min(SEGMENTS_START)).unwrap_or(0)];
    device.read_at(0, &mut bytes)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(FormatError::InUse { found: None, reason: format!("its first {} KiB are not zeros", SEGMENTS_START >> 10) })
}
