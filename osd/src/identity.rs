//! Who this daemon is: the disk's uuid, drawn once and kept beside the store; and which run of it this is. The files:
//! `docs/formats/osd-directory.md`.
//!
//! The uuid is durable before the monitors hear of it, and they give a known disk its id again: a crash at any point of
//! the first start neither loses nor doubles an OSD id. A store that is made anew after it has served gets another
//! uuid: it must not pass for the disk that held what is lost.

use std::path::Path;

use holdfast_types::{ClusterId, DiskUuid, Incarnation};

use crate::twice::{self, Kept, replace_durably};

/// The identity file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing it failed.
    #[error("cannot {act} {path}")]
    Io {
        /// `read` or `write`.
        act: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Neither it nor its copy is what a daemon wrote.
    #[error(
        "{path} is damaged, and so is {path}.copy, or it is not there; the superblock of the device names cluster and disk"
    )]
    Damaged {
        /// The file.
        path: String,
    },
    /// The disk is of another cluster.
    #[error("{path} belongs to cluster {theirs}, this daemon is configured for {ours}")]
    OtherCluster {
        /// The file.
        path: String,
        /// Configured.
        ours: ClusterId,
        /// On disk.
        theirs: ClusterId,
    },
}

const FILE: &str = "identity";
const FORMAT: &str = "holdfast-osd-identity 2";
/// Once, and without a checksum.
const FORMAT_1: &str = "holdfast-osd-identity 1";
/// The number of the last run, twice: either is enough.
const RUN_FILES: [&str; 2] = ["last-run", "last-run.copy"];
const RUN_FORMAT: &str = "holdfast-osd-run 2";
/// Without a checksum.
const RUN_FORMAT_1: &str = "holdfast-osd-run 1";

/// The uuid of the disk in `data_dir`; `None` before [`create`].
pub(crate) fn load(data_dir: &Path, cluster: ClusterId) -> Result<Option<DiskUuid>, IdentityError> {
    let path = data_dir.join(FILE).display().to_string();
    let kept = twice::read(data_dir, FILE, |text| parse(text, FORMAT), |old| parse(old, FORMAT_1));
    match kept.map_err(|source| IdentityError::Io { act: "read", path: path.clone(), source })? {
        Kept::Nothing => Ok(None),
        Kept::Damaged => Err(IdentityError::Damaged { path }),
        Kept::Whole((theirs, _)) if theirs != cluster => {
            Err(IdentityError::OtherCluster { path, ours: cluster, theirs })
        }
        Kept::Whole((_, disk)) => Ok(Some(disk)),
    }
}

/// Makes the uuid `disk` of the disk in `data_dir` durable.
pub(crate) fn create(data_dir: &Path, cluster: ClusterId, disk: DiskUuid) -> Result<(), IdentityError> {
    twice::write(data_dir, FILE, &format!("{FORMAT}\ncluster {cluster}\ndisk {disk}\n"))
        .map_err(|source| IdentityError::Io { act: "write", path: data_dir.join(FILE).display().to_string(), source })
}

fn parse(text: &str, format: &str) -> Option<(ClusterId, DiskUuid)> {
    let mut lines = text.lines();
    if lines.next() != Some(format) {
        return None;
    }
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    Some((field("cluster")?.parse().ok()?, field("disk")?.parse().ok()?))
}

/// The incarnation for the next run, durable before anybody hears of it: larger than all before, whatever the clock did
/// meanwhile and whether or not the monitors ever saw those runs (peers refuse a run that is older than one they heard).
pub(crate) fn next_run(data_dir: &Path, at_least: u64) -> Result<Incarnation, IdentityError> {
    let mut last = 0;
    for name in RUN_FILES {
        last = last.max(read_run(&data_dir.join(name))?);
    }
    let next = at_least.max(last.saturating_add(1));
    for name in RUN_FILES {
        replace_durably(data_dir, name, &run_text(next)).map_err(|source| IdentityError::Io {
            act: "write",
            path: data_dir.join(name).display().to_string(),
            source,
        })?;
    }
    Ok(Incarnation(next))
}

fn run_text(number: u64) -> String {
    let body = format!("{RUN_FORMAT} {number}");
    format!("{body} {:08x}\n", crc_fast::crc32_iscsi(body.as_bytes()))
}

fn parse_run(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    if let Some(rest) = text.strip_prefix(RUN_FORMAT_1) {
        return rest.trim().parse().ok();
    }
    let number = text.strip_prefix(RUN_FORMAT)?.split_whitespace().next()?.parse().ok()?;
    (run_text(number) == text).then_some(number)
}

/// The number in this file; 0 when there is none, or it is damaged.
fn read_run(path: &Path) -> Result<u64, IdentityError> {
    let shown = path.display().to_string();
    let found = match std::fs::read(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(IdentityError::Io { act: "read", path: shown, source }),
    };
    Ok(parse_run(&found).unwrap_or_else(|| {
        // The copy has it; without it the clock and the map nearly always do. Not to start over this would be worse.
        tracing::warn!(path = %shown, "the number of the last run is damaged there");
        0
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_uuid_and_its_cluster() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = ClusterId([1; 16]);
        let disk = DiskUuid([3; 16]);
        assert_eq!(load(dir.path(), cluster).expect("first start"), None);
        create(dir.path(), cluster, disk).expect("written");
        assert_eq!(load(dir.path(), cluster).expect("restart"), Some(disk));
        let other = load(dir.path(), ClusterId([2; 16]));
        assert!(matches!(other, Err(IdentityError::OtherCluster { .. })), "{other:?}");
        let old = format!("{FORMAT_1}\ncluster {cluster}\ndisk {}\n", DiskUuid([4; 16]));
        std::fs::write(dir.path().join(FILE), old).expect("written");
        std::fs::remove_file(dir.path().join("identity.copy")).expect("removed");
        assert_eq!(load(dir.path(), cluster).expect("of an earlier build"), Some(DiskUuid([4; 16])));
    }

    #[test]
    fn runs_are_numbered_upwards_though_the_clock_goes_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(next_run(dir.path(), 600).expect("a fast clock"), Incarnation(600));
        assert_eq!(next_run(dir.path(), 100).expect("it was set back"), Incarnation(601));
        assert_eq!(next_run(dir.path(), 900).expect("time goes on"), Incarnation(900));
        for name in RUN_FILES {
            std::fs::write(dir.path().join(name), [0xff]).expect("written");
        }
        assert_eq!(next_run(dir.path(), 901).expect("damage is no obstacle"), Incarnation(901));
    }

    #[test]
    fn no_flipped_bit_makes_a_daemon_forget_its_last_run_or_keeps_it_from_starting() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(next_run(dir.path(), 600).expect("a fast clock"), Incarnation(600));
        for (name, other) in [(0, 1), (1, 0)].map(|(name, other)| (RUN_FILES[name], RUN_FILES[other])) {
            for bit in 0..run_text(1000).len() * 8 {
                let last = next_run(dir.path(), 1).expect("a run").0;
                let mut bytes = std::fs::read(dir.path().join(name)).expect("read");
                let Some(byte) = bytes.get_mut(bit / 8) else { continue };
                *byte ^= 1 << (bit % 8);
                std::fs::write(dir.path().join(name), bytes).expect("written");
                let next = next_run(dir.path(), 1).expect("damage is no obstacle").0;
                assert_eq!(next, last + 1, "bit {bit} of {name}, {other} is whole");
            }
        }
    }

    #[test]
    fn the_run_that_an_earlier_build_wrote_down_is_known() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join(RUN_FILES[0]), "holdfast-osd-run 1 70\n").expect("written");
        assert_eq!(next_run(dir.path(), 1).expect("a run"), Incarnation(71));
    }

    #[test]
    fn a_damaged_identity_is_an_error_not_a_new_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join(FILE), "holdfast-osd-identity 1\ncluster x\n").expect("written");
        assert!(matches!(load(dir.path(), ClusterId([1; 16])), Err(IdentityError::Damaged { .. })));
    }
}
