//! The directory of a cluster: what lies where, files written whole or not at all, and the lock.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::daemon::{DaemonName, Role};
use crate::error::DevError;
use crate::process::ProcessIdentity;

/// Where a cluster lives.
///
/// ```text
/// cluster.toml      layout: cluster id, addresses          credentials.toml  S3 key pair, mode 0600
/// holdfast.toml     what HOLDFAST_CONFIG points to          lock              held while the cluster runs
/// mon-0.toml …      one configuration file for each daemon  mon-0/ osd-0/ …   their data
/// log/              one log for each daemon                 run/              one record for each running process
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDir {
    root: PathBuf,
}

/// The right to run the cluster of a directory; given up when dropped or when the process ends in any way.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl ClusterDir {
    /// Makes the directory where it is missing, and its sub-directories.
    ///
    /// # Errors
    /// [`DevError::File`].
    pub fn create(root: &Path) -> Result<ClusterDir, DevError> {
        fs::create_dir_all(root).map_err(DevError::file("make", root))?;
        let root = root.canonicalize().map_err(DevError::file("find", root))?;
        for sub in ["log", "run"] {
            let path = root.join(sub);
            fs::create_dir_all(&path).map_err(DevError::file("make", path))?;
        }
        Ok(ClusterDir { root })
    }

    /// The directory of a cluster that is there.
    ///
    /// # Errors
    /// [`DevError::NoCluster`].
    pub fn open(root: &Path) -> Result<ClusterDir, DevError> {
        let missing = |_| DevError::NoCluster { dir: root.to_path_buf() };
        let dir = ClusterDir { root: root.canonicalize().map_err(missing)? };
        if dir.layout_file().exists() { Ok(dir) } else { Err(DevError::NoCluster { dir: root.to_path_buf() }) }
    }

    /// The directory itself, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`DevError::Running`] when another process has it.
    pub fn lock(&self) -> Result<DirLock, DevError> {
        let file = self.lock_file()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DirLock { _file: file }),
            Err(_) => Err(DevError::Running { dir: self.root.clone(), owner: self.owner().map(|owner| owner.pid) }),
        }
    }

    /// Waits, blocking, until nobody runs the cluster.
    ///
    /// # Errors
    /// [`DevError::File`].
    pub fn wait_unlocked(&self) -> Result<(), DevError> {
        let file = self.lock_file()?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| DevError::file("lock", self.root.join("lock"))(error.into()))
    }

    fn lock_file(&self) -> Result<File, DevError> {
        let path = self.root.join("lock");
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(DevError::file("open", path))
    }

    /// The process that runs the cluster, if it is alive.
    #[must_use]
    pub fn owner(&self) -> Option<ProcessIdentity> {
        let text = fs::read_to_string(self.root.join("run/dev.json")).ok()?;
        let identity: ProcessIdentity = serde_json::from_str(&text).ok()?;
        identity.is_alive().then_some(identity)
    }

    /// Records this process as the one that runs the cluster.
    ///
    /// # Errors
    /// [`DevError::File`].
    pub fn record_owner(&self) -> Result<(), DevError> {
        let identity = ProcessIdentity::of_self().map_err(DevError::file("read", "/proc/self/stat"))?;
        self.write_record("run/dev.json", &identity)
    }

    /// Records which process serves a daemon.
    ///
    /// # Errors
    /// [`DevError::File`].
    pub fn record_daemon(&self, daemon: DaemonName, identity: &ProcessIdentity) -> Result<(), DevError> {
        self.write_record(&format!("run/{}.json", daemon.file_stem()), identity)
    }

    /// Takes back the record of a daemon.
    pub fn forget_daemon(&self, daemon: DaemonName) {
        // A record that stays names a process that is gone, which its identity shows.
        let _ = fs::remove_file(self.root.join(format!("run/{}.json", daemon.file_stem())));
    }

    /// The process that serves a daemon, if it is alive.
    #[must_use]
    pub fn process_of(&self, daemon: DaemonName) -> Option<ProcessIdentity> {
        let text = fs::read_to_string(self.root.join(format!("run/{}.json", daemon.file_stem()))).ok()?;
        let identity: ProcessIdentity = serde_json::from_str(&text).ok()?;
        identity.is_alive().then_some(identity)
    }

    fn write_record(&self, name: &str, identity: &ProcessIdentity) -> Result<(), DevError> {
        let text = serde_json::to_string(identity).expect("three plain fields always encode");
        self.write_whole(&self.root.join(name), &text, 0o644)
    }

    /// Replaces a file: after a crash it has the old content or the new, never a part.
    pub(crate) fn write_whole(&self, path: &Path, text: &str, mode: u32) -> Result<(), DevError> {
        let temporary = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(path.parent().unwrap_or(&self.root))?.sync_all()
        };
        write().map_err(DevError::file("write", path))
    }

    pub(crate) fn layout_file(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    pub(crate) fn credentials_file(&self) -> PathBuf {
        self.root.join("credentials.toml")
    }

    /// What `HOLDFAST_CONFIG` points to.
    #[must_use]
    pub fn client_config(&self) -> PathBuf {
        self.root.join("holdfast.toml")
    }

    /// The configuration file of a daemon.
    #[must_use]
    pub fn config_of(&self, daemon: DaemonName) -> PathBuf {
        self.root.join(format!("{}.toml", daemon.file_stem()))
    }

    /// The data directory of a daemon; gateways have none.
    #[must_use]
    pub fn data_of(&self, daemon: DaemonName) -> Option<PathBuf> {
        (daemon.role != Role::S3).then(|| self.root.join(daemon.file_stem()))
    }

    /// The log of a daemon that is a process of its own.
    #[must_use]
    pub fn log_of(&self, daemon: DaemonName) -> PathBuf {
        self.root.join(format!("log/{}.log", daemon.file_stem()))
    }

    /// The log of a detached `holdfast dev up`.
    #[must_use]
    pub fn own_log(&self) -> PathBuf {
        self.root.join("log/dev.log")
    }
}

/// The last lines of a log, at most `bytes_max` of it.
pub(crate) fn tail(path: &Path, bytes_max: usize) -> String {
    let Ok(content) = fs::read(path) else { return String::new() };
    let start = content.len().saturating_sub(bytes_max);
    String::from_utf8_lossy(content.get(start..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_on_one_directory_is_refused_and_names_the_first() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = ClusterDir::create(temp.path()).expect("made");
        let lock = dir.lock().expect("nobody has it");
        dir.record_owner().expect("written");
        match dir.lock() {
            Err(DevError::Running { owner, .. }) => assert_eq!(owner, Some(std::process::id())),
            other => panic!("a second lock must be refused: {other:?}"),
        }
        drop(lock);
        dir.lock().expect("given up");
    }

    #[test]
    fn a_directory_without_a_cluster_is_said_to_have_none() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(ClusterDir::open(temp.path()), Err(DevError::NoCluster { .. })));
    }
}
