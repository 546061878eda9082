//! The marker of a quarantine, beside the index: the superblock of a device that fails may not take the note.
//!
//! `quarantined` says why. It stays until a person creates `release-quarantine` in the same directory; the next open then
//! removes both, and takes what the device holds.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::device::Device;
use crate::engine::{OnQuarantine, release};
use crate::error::OpenError;

/// The note that the store is in quarantine.
const MARKER_FILE: &str = "quarantined";
/// The word of a person that it is to be used all the same.
pub(crate) const RELEASE_FILE: &str = "release-quarantine";

/// Writes the marker beside the index at `index` when called.
pub(crate) fn marking(index: &Path) -> OnQuarantine {
    let marker = index.with_file_name(MARKER_FILE);
    Box::new(move |error| {
        let reason = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        if let Err(error) = write_durably(&marker, &reason) {
            tracing::warn!(marker = %marker.display(), %error, "the quarantine could not be marked");
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
        return Ok(());
    }
    match std::fs::read_to_string(&marker) {
        Ok(reason) => Err(OpenError::Marked { marker: shown(&marker), reason: reason.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed(&marker, source)),
    }
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
