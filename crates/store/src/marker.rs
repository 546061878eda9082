//! The marker of a quarantine, beside the index: the superblock of a device that fails may not take the note.
//!
//! `quarantined` says why. It stays until a person creates `release-quarantine` in the same directory; the next open then
//! removes both, and takes what the device holds.
//!
//! `index-damaged` says that the index is, and why. It stays until the store is formatted anew: nothing mends an index. When
//! both are there the quarantine counts, since a device in doubt is not to be filled again.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::device::Device;
use crate::engine::{OnQuarantine, release};
use crate::error::OpenError;

/// The note that the store is in quarantine.
const MARKER_FILE: &str = "quarantined";
/// The note that the index is damaged.
const DAMAGED_FILE: &str = "index-damaged";
/// The word of a person that it is to be used all the same.
pub(crate) const RELEASE_FILE: &str = "release-quarantine";

/// Writes the marker beside the index at `index` when called.
pub(crate) fn marking(index: &Path) -> OnQuarantine {
    let (quarantined, damaged) = (index.with_file_name(MARKER_FILE), index.with_file_name(DAMAGED_FILE));
    Box::new(move |error| {
        let marker = if error.index_is_damaged() { &damaged } else { &quarantined };
        let reason = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        if let Err(error) = write_durably(marker, &reason) {
            tracing::warn!(marker = %marker.display(), %error, "the failure could not be marked");
        }
    })
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Passes a store that is not marked, and releases one that a person wants released.
pub(crate) fn check(index: &Path, device: &dyn Device) -> Result<(), OpenError> {
    let marker = index.with_file_name(MARKER_FILE);
    let wish = index.with_file_name(RELEASE_FILE);
    let failed = |path: &Path, source| OpenError::Marker { marker: shown(path), source };
    if wish.try_exists().map_err(|source| failed(&wish, source))? {
        tracing::warn!(marker = %marker.display(), "the quarantine ends: a person asked for it");
        release(device)?;
        // The marker first: a crash in between leaves the wish, and nothing in quarantine.
        for path in [&marker, &wish] {
            remove(path).map_err(|source| failed(path, source))?;
        }
    }
    let reason_in = |path: &Path| match std::fs::read(path) {
        Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(path, source)),
    };
    if let Some(reason) = reason_in(&marker)? {
        return Err(OpenError::Marked { marker: shown(&marker), reason });
    }
    let damaged = index.with_file_name(DAMAGED_FILE);
    match reason_in(&damaged)? {
        Some(reason) => Err(OpenError::IndexDamaged { marker: shown(&damaged), reason }),
        None => Ok(()),
    }
}

/// Removes what was said of a store that was here before this one.
pub(crate) fn clear(index: &Path) -> io::Result<()> {
    remove(&index.with_file_name(MARKER_FILE))?;
    remove(&index.with_file_name(DAMAGED_FILE))?;
    remove(&index.with_file_name(RELEASE_FILE))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::MemDevice;
    use crate::engine::{Engine, Identity, Options};
    use crate::error::CommitError;
    use crate::index::MemIndex;
    use holdfast_types::{ClusterId, DiskUuid, OsdId};

    #[test]
    fn a_marked_store_stays_marked_until_the_wish_is_there_and_then_its_device_opens() {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("index");
        let identity = Identity { cluster: ClusterId([1; 16]), disk: DiskUuid([2; 16]), osd: OsdId(3) };
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        let (device, rows) = (MemDevice::new(2 << 20), MemIndex::new());
        let engine = Engine::format(device.clone(), rows.clone(), identity, options.clone()).unwrap();
        check(&index, &device).unwrap();
        let error = CommitError::Sync(io::Error::from_raw_os_error(5));
        marking(&index)(&error);
        engine.quarantine(&error);
        drop(engine);
        let marked = check(&index, &device);
        assert!(
            matches!(&marked, Err(OpenError::Marked { reason, .. }) if reason.contains("os error 5")),
            "{marked:?}"
        );
        assert!(Engine::open(device.clone(), rows.clone(), options.clone()).is_err(), "the superblock says so too");
        std::fs::write(directory.path().join(RELEASE_FILE), "").unwrap();
        check(&index, &device).unwrap();
        check(&index, &device).unwrap();
        Engine::open(device, rows, options).unwrap();
    }
}
