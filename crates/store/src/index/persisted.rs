//! What the index must not lack: the position up to which a flush made it durable, in the file `persisted` beside its files.
//!
//! Segments of the log are used anew once the index is durable beyond them. Should RocksDB lose a flush after that (its
//! manifest ends in a damaged edit, which looks like one that a power failure tore), the log would no longer make up for it,
//! and its end might pass for a torn one. So the position is written down before anything relies on it, and an index that
//! holds less is damaged.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::checksum::crc32c;
use crate::key::Position;

const FILE: &str = "persisted";
const FORMAT: &str = "holdfast-index-persisted 1";

fn text(position: Position) -> String {
    let body = format!("{FORMAT} {}", position.0);
    format!("{body} {:08x}\n", crc32c(body.as_bytes()))
}

/// The position that was written down last; zero when there is none, or it cannot be told.
pub(super) fn read(index: &Path) -> io::Result<Position> {
    let path = index.join(FILE);
    let found = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Position(0)),
        found => found?,
    };
    let number =
        std::str::from_utf8(&found).ok().and_then(|found| found.strip_prefix(FORMAT)?.split_whitespace().next());
    let position = number.and_then(|number| number.parse().ok()).map(Position);
    Ok(position.filter(|position| text(*position).as_bytes() == found).unwrap_or_else(|| {
        // It is a second witness only: a copy is not given up for it.
        tracing::warn!(path = %path.display(), "it is not known up to where the index was durable: the file is damaged");
        Position(0)
    }))
}

/// Writes the position down, durably.
pub(super) fn write(index: &Path, position: Position) -> io::Result<()> {
    let temporary = index.join(format!("{FILE}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text(position).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, index.join(FILE))?;
    File::open(index)?.sync_all()
}

/// Forgets it, before the index goes.
pub(super) fn clear(index: &Path) -> io::Result<()> {
    for name in [FILE.to_owned(), format!("{FILE}.new")] {
        match std::fs::remove_file(index.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    match File::open(index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        directory => directory?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_any_flipped_bit_makes_it_unknown() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), Position(0));
        for position in [1, 90, u64::MAX] {
            write(directory.path(), Position(position)).unwrap();
            assert_eq!(read(directory.path()).unwrap(), Position(position));
        }
        let bytes = std::fs::read(directory.path().join(FILE)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(directory.path().join(FILE), bad).unwrap();
            assert_eq!(read(directory.path()).unwrap(), Position(0), "bit {bit}");
        }
        clear(directory.path()).unwrap();
        assert!(!directory.path().join(FILE).exists());
        clear(&directory.path().join("nothing")).unwrap();
    }
}
