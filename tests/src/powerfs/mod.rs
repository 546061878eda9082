//! File systems that lose power: what processes wrote and did not sync is gone then, as on a real machine, and what they
//! synced is not.
//!
//! `kill -9` of all processes proves little: the page cache survives, so whoever acknowledged before the sync is not found
//! out. Here the data of daemons lie on file systems (FUSE) of this process, which keep in memory whatever is not synced.
//! [`Grid::cut`] takes the power from all of them at one moment: from then on nothing is answered and nothing becomes
//! durable, syncs that are under way included. Then the processes are killed, [`Grid::release`] answers what they may still
//! wait for in the kernel, and [`Grid::restore`] unmounts (so that no cache of the kernel is left), drops what was not
//! synced, and mounts what remains.
//!
//! What survives is drawn from a seed. The rules are those of a journalling file system (ext4, XFS), where they differ the
//! harsher ones:
//! - Bytes: those that a finished `fsync` or `fdatasync` of the file covers, or that were written with `O_DSYNC` or `O_SYNC`,
//!   are there. Of all other pages (4 KiB) each may be there or not, whatever the order of writing; some are torn in sectors
//!   of 512 bytes. `O_DIRECT` alone makes nothing durable.
//! - Names, cuts and extensions (create, link, unlink, rename, truncate, chmod) are written to one journal in order; a prefix
//!   of it survives. A sync of a file or a directory makes it durable up to the last operation that changed that node, and
//!   not further. So a renamed file may be there under its old name until the directory is synced; a page is there only if
//!   the cut before it is. Nothing is written out early at a rename (as ext4 does unless told not to).
//! - Holes that were punched and not synced are there page by page.
//! - What is not synced is limited to 256 MiB for each disk; beyond, the file with most of it is written out, as a kernel
//!   does.
//!
//! A sync takes a disk's time ([`SyncTime`]), so that a cut meets some under way. What is not offered: extended attributes,
//! `ioctl`, `FALLOC_FL_ZERO_RANGE` and the like, `RENAME_EXCHANGE`; they fail with an error. Modes are kept and not
//! enforced. Shared writable mappings work; their pages reach the disk when the kernel writes them out, at the latest when
//! it is unmounted, after which they are dropped as not synced: `msync` syncs them. `sync` and `syncfs` reach nothing here,
//! as in any FUSE file system that is not told otherwise; nothing in the product uses them.

mod disk;
mod names;
mod pages;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fuser::{BackgroundSession, Config, MountOption};
use parking_lot::RwLock;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rustix::mount::UnmountFlags;

pub use pages::Lost;
pub use serve::SyncTime;
use serve::{Server, Shared, Stage, Switch};

/// Until the last process that was killed has let go of its files.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// Why this machine cannot have such file systems; `None`: it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".to_owned());
    }
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.err().map(|error| format!("/dev/fuse: {error}"))
}

/// One file system.
#[derive(Debug)]
struct Mount {
    at: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    lost: Lost,
}

impl Mount {
    fn mount(&mut self) -> anyhow::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("holdfast-power".to_owned())];
        let session = fuser::spawn_mount(Server(self.shared.clone()), &self.at, &config);
        self.session = Some(session.with_context(|| format!("cannot mount {}", self.at.display()))?);
        Ok(())
    }

    /// Not lazily: with it, every cache of what was there is gone.
    fn unmount(&mut self) -> anyhow::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let since = Instant::now();
        loop {
            match rustix::mount::unmount(&self.at, UnmountFlags::empty()) {
                Ok(()) => break,
                Err(rustix::io::Errno::BUSY) if since.elapsed() < UNMOUNT_LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    self.session = Some(session);
                    return Err(error).with_context(|| format!("cannot unmount {}", self.at.display()));
                }
            }
        }
        session.join().with_context(|| format!("the server of {} failed", self.at.display()))
    }
}

/// File systems that lose their power together.
#[derive(Debug)]
pub struct Grid {
    switch: Switch,
    mounts: Vec<Mount>,
    random: SmallRng,
}

impl Grid {
    /// No file system yet; what becomes of the others is drawn from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Grid {
        Grid { switch: Arc::new(RwLock::new(Stage::On)), mounts: Vec::new(), random: SmallRng::seed_from_u64(seed) }
    }

    /// Mounts an empty one at the directory `at`; what is durable of it lies in `backing`. Both are made.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn mount(&mut self, at: &Path, backing: &Path, sync_time: SyncTime) -> anyhow::Result<()> {
        std::fs::create_dir_all(at)?;
        std::fs::create_dir_all(backing)?;
        let random = SmallRng::from_rng(&mut self.random);
        let shared = Shared::start(backing, self.switch.clone(), sync_time, random);
        let mut mount = Mount { at: at.to_path_buf(), shared, session: None, lost: Lost::default() };
        mount.mount()?;
        self.mounts.push(mount);
        Ok(())
    }

    /// Takes the power away, from all at one moment.
    pub fn cut(&self) {
        *self.switch.write() = Stage::Cut;
    }

    /// Answers what processes wait for in the kernel, with an error: without that they cannot even be killed. To be called
    /// when each of them has been sent SIGKILL, so that none lives to see the error.
    pub fn release(&self) {
        *self.switch.write() = Stage::Dead;
        for mount in &self.mounts {
            mount.shared.release();
        }
    }

    /// Gives the power back, to what is left. All processes must be gone.
    ///
    /// # Errors
    /// When one is not, or the machine's file system fails.
    pub fn restore(&mut self) -> anyhow::Result<Lost> {
        ensure!(*self.switch.read() == Stage::Dead, "the power was not cut");
        let mut lost = Lost::default();
        for mount in &mut self.mounts {
            mount.unmount()?;
            let of_this = mount.shared.disk.lock().lose(&mut self.random)?;
            mount.lost.add(of_this);
            lost.add(of_this);
        }
        *self.switch.write() = Stage::On;
        self.mounts.iter_mut().try_for_each(Mount::mount)?;
        Ok(lost)
    }

    /// What each file system has lost so far, by where it is mounted.
    pub fn lost(&self) -> impl Iterator<Item = (&Path, Lost)> {
        self.mounts.iter().map(|mount| (mount.at.as_path(), mount.lost))
    }

    /// Syncs that were asked for, and pages that were written out without one.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let counts = self.mounts.iter().map(|mount| mount.shared.disk.lock().counts);
        counts.fold((0, 0), |sum, counts| (sum.0 + counts.syncs, sum.1 + counts.written_out))
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        self.release();
        for mount in &mut self.mounts {
            if mount.unmount().is_err() {
                // Somebody still holds it; it goes when they do.
                let _ = rustix::mount::unmount(&mount.at, UnmountFlags::DETACH);
            }
        }
    }
}

#[cfg(test)]
mod tests;
