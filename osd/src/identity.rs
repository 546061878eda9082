//! Who this daemon is: the disk's uuid, drawn once and kept beside the store.
//!
//! The uuid is durable before the monitors hear of it, and they give a known disk its id again: a crash at any point of
//! the first start neither loses nor doubles an OSD id. A store that is made anew after it has served gets another
//! uuid: it must not pass for the disk that held what is lost.

use std::io::Write as _;
use std::path::Path;

use holdfast_types::{ClusterId, DiskUuid};

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
    /// Its content is not what a daemon wrote.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
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
const FORMAT: &str = "holdfast-osd-identity 1";

/// The uuid of the disk in `data_dir`; drawn and made durable at the first call.
pub(crate) fn load_or_create(data_dir: &Path, cluster: ClusterId) -> Result<DiskUuid, IdentityError> {
    let path = data_dir.join(FILE);
    let shown = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, &shown, cluster),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => draw_anew(data_dir, cluster),
        Err(source) => Err(IdentityError::Io { act: "read", path: shown, source }),
    }
}

/// Draws another uuid and makes it durable: the store of the one before is lost.
pub(crate) fn draw_anew(data_dir: &Path, cluster: ClusterId) -> Result<DiskUuid, IdentityError> {
    let disk = DiskUuid(rand::random());
    write_durably(data_dir, &format!("{FORMAT}\ncluster {cluster}\ndisk {disk}\n")).map_err(|source| {
        IdentityError::Io { act: "write", path: data_dir.join(FILE).display().to_string(), source }
    })?;
    Ok(disk)
}

fn parse(text: &str, path: &str, ours: ClusterId) -> Result<DiskUuid, IdentityError> {
    let damaged = |detail: &str| IdentityError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return Err(damaged("the first line does not name the format"));
    }
    let mut field = |name: &str| {
        lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' ')).ok_or_else(|| damaged(name))
    };
    let theirs: ClusterId = field("cluster")?.parse().map_err(|_| damaged("cluster"))?;
    let disk = field("disk")?.parse().map_err(|_| damaged("disk"))?;
    if theirs != ours {
        return Err(IdentityError::OtherCluster { path: path.to_owned(), ours, theirs });
    }
    Ok(disk)
}

fn write_durably(dir: &Path, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let temporary = dir.join("identity.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(FILE))?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_uuid_and_its_cluster() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = ClusterId([1; 16]);
        let disk = load_or_create(dir.path(), cluster).expect("first start");
        assert_eq!(load_or_create(dir.path(), cluster).expect("restart"), disk);
        let other = load_or_create(dir.path(), ClusterId([2; 16]));
        assert!(matches!(other, Err(IdentityError::OtherCluster { .. })), "{other:?}");
    }

    #[test]
    fn a_damaged_identity_is_an_error_not_a_new_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join(FILE), "holdfast-osd-identity 1\ncluster x\n").expect("written");
        assert!(matches!(load_or_create(dir.path(), ClusterId([1; 16])), Err(IdentityError::Damaged { .. })));
    }
}
