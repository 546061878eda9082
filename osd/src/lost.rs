//! A disk whose log or index cannot be trusted any more: what it holds is given up, and it begins anew, empty, under the
//! same OSD id.
//!
//! It must not be forgotten that it once held something: an empty disk that passed for one that never had anything would
//! speak for writes that it has acknowledged and lost. The file `lost` in the data directory remembers it
//! (`docs/formats/osd-directory.md`):
//!
//! - `life` counts the formattings after a loss. Each has a disk uuid of its own in the store, so that nothing of an
//!   earlier life is taken for part of the present log.
//! - `pending` says that the next formatting is not completed.
//! - `before` is the newest map when the loss became known. The OSD has held copies of placement groups of pools as old
//!   as that, or older, only in an earlier life; those that it is asked for now begin as lost
//!   ([`holdfast_pg::Pg::create_lost`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use holdfast_types::{DiskUuid, Epoch};
use tracing::warn;

use crate::config::OsdConfig;
use crate::twice::{self, Kept};

const FILE: &str = "lost";
/// Bytes at the start of a device where its superblocks are.
const SUPERBLOCKS_BYTES: usize = 128 << 10;

/// See the module document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lost {
    pub(crate) life: u64,
    pub(crate) pending: bool,
    pub(crate) before: Option<Epoch>,
}

impl Lost {
    /// What is remembered of this data directory.
    pub(crate) fn read(data_dir: &Path) -> io::Result<Lost> {
        match twice::read(data_dir, FILE, Lost::parse, Lost::parse)? {
            Kept::Nothing => Ok(Lost::default()),
            Kept::Damaged => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the file `lost` is malformed, and so is its copy"))
            }
            Kept::Whole(lost) => Ok(lost),
        }
    }

    fn parse(text: &str) -> Option<Lost> {
        let mut lost = Lost::default();
        for line in text.lines() {
            match line.split_once('=')? {
                ("life", life) => lost.life = life.parse().ok()?,
                ("pending", pending) => lost.pending = pending.parse().ok()?,
                ("before", epoch) => lost.before = Some(Epoch(epoch.parse().ok()?)),
                _ => return None,
            }
        }
        (lost.life > 0).then_some(lost)
    }

    /// Remembers it, durably.
    pub(crate) fn write(self, data_dir: &Path) -> io::Result<()> {
        let before = self.before.map(|before| format!("before={}\n", before.0)).unwrap_or_default();
        twice::write(data_dir, FILE, &format!("life={}\npending={}\n{before}", self.life, self.pending))
    }

    /// The disk's uuid in the store, in this life.
    pub(crate) fn disk(self, disk: DiskUuid) -> DiskUuid {
        let mut bytes = disk.0;
        for (byte, life) in bytes.iter_mut().zip(self.life.to_le_bytes()) {
            *byte ^= life;
        }
        DiskUuid(bytes)
    }
}

/// Makes the device blank. What was on it is kept aside where that is possible: a device file of the daemon's own, on a
/// file system with room for another one of its size. May be repeated.
pub(crate) fn set_aside(config: &OsdConfig, device: &Path, index: &Path) -> io::Result<()> {
    let kind = match fs::metadata(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?.file_type(),
    };
    // A link is the operator's: moved aside, a file would be made where it was, on another disk.
    if config.device.is_none() && !device.is_symlink() && room(&config.data_dir)? > config.capacity_bytes {
        let aside = |path: &Path| path.with_extension("lost");
        let old = aside(index);
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        if index.exists() {
            fs::rename(index, &old)?;
        }
        fs::rename(device, aside(device))?;
        File::open(&config.data_dir)?.sync_all()?;
        warn!(device = %aside(device).display(), "what could not be used is kept aside; remove it when it is not needed");
        return Ok(());
    }
    let mut file = OpenOptions::new().write(true).open(device)?;
    if kind.is_block_device() {
        file.write_all(&vec![0; SUPERBLOCKS_BYTES])?;
    } else {
        file.set_len(0)?;
    }
    file.sync_all()
}

fn room(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_remembered_and_each_life_has_a_disk_of_its_own() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let read = || Lost::read(dir.path()).expect("readable");
        assert_eq!(read(), Lost::default());
        let first = Lost { life: 1, pending: true, before: None };
        first.write(dir.path()).expect("written");
        assert_eq!(read(), first);
        let settled = Lost { life: 300, pending: false, before: Some(Epoch(7)) };
        settled.write(dir.path()).expect("written");
        assert_eq!(read(), settled);
        let disk = DiskUuid([9; 16]);
        assert_eq!(Lost::default().disk(disk), disk);
        assert!(first.disk(disk) != disk && settled.disk(disk) != first.disk(disk));
        fs::write(dir.path().join(FILE), "life=2\npending=false\n").expect("written");
        fs::remove_file(dir.path().join("lost.copy")).expect("removed");
        assert_eq!(read(), Lost { life: 2, pending: false, before: None }, "of an earlier build");
        for malformed in ["", "life=0", "life=1\nbefore=x", "life"] {
            fs::write(dir.path().join(FILE), malformed).expect("written");
            assert!(Lost::read(dir.path()).is_err(), "{malformed}");
        }
    }
}
