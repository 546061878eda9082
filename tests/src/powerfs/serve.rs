//! The kernel's side: its requests (FUSE) to a [`Disk`], and the power that can be cut.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use rand::Rng as _;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;

use super::disk::{Disk, Stat, Sync};
use super::names::{Ino, Kind, Node};

/// The kernel need not ask again: nobody else changes anything.
const VALID: Duration = Duration::from_secs(3600);
/// The largest write that the kernel sends at once.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// What a disk wants direct writes aligned to.
const DIRECT_ALIGN: u64 = 512;
/// `whence` of [`Filesystem::lseek`].
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// Modes of `fallocate`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;

/// Whether there is power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Everything is served.
    On,
    /// Nothing is answered, nothing becomes durable.
    Cut,
    /// Whoever still waits is told an error: the process is dead, or about to be.
    Dead,
}

/// One switch for any number of disks.
pub(super) type Switch = Arc<RwLock<Stage>>;

/// How long syncs take: a share of `1 - rare` of them up to `often`, the others up to `seldom`.
#[derive(Debug, Clone, Copy)]
pub struct SyncTime {
    /// Most syncs take no longer.
    pub often: Duration,
    /// And the others no longer than this.
    pub seldom: Duration,
    /// How many are others.
    pub rare: f64,
}

impl SyncTime {
    /// As a busy disk: up to 2 ms, one in twenty up to 40 ms.
    pub const DISK: SyncTime =
        SyncTime { often: Duration::from_millis(2), seldom: Duration::from_millis(40), rare: 0.05 };

    fn draw(&self, random: &mut SmallRng) -> Duration {
        let longest = if random.random_bool(self.rare) { self.seldom } else { self.often };
        longest.mul_f64(random.random_range(0.0..1.0))
    }
}

type Answer = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// A sync that takes its time.
struct Job {
    due: Instant,
    sync: Sync,
    answer: Answer,
}

impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        self.due == other.due
    }
}

impl Eq for Job {}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Job) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Job {
    fn cmp(&self, other: &Job) -> std::cmp::Ordering {
        other.due.cmp(&self.due) // the soonest is the greatest
    }
}

/// What the server of a disk and its owner share.
pub(super) struct Shared {
    pub(super) disk: Mutex<Disk>,
    pub(super) switch: Switch,
    backing: PathBuf,
    /// Answers that nobody got because the power was cut.
    parked: Mutex<Vec<Answer>>,
    jobs: Sender<Job>,
    sync_time: SyncTime,
    random: Mutex<SmallRng>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.backing.display())
    }
}

impl Shared {
    /// A disk with its bytes in `backing`, and the thread that ends its syncs.
    pub(super) fn start(backing: &Path, switch: Switch, sync_time: SyncTime, random: SmallRng) -> Arc<Shared> {
        let (jobs, queue) = channel();
        let shared = Arc::new(Shared {
            disk: Mutex::new(Disk::new(backing.to_path_buf())),
            switch,
            backing: backing.to_path_buf(),
            parked: Mutex::default(),
            jobs,
            sync_time,
            random: Mutex::new(random),
        });
        let disk = Arc::downgrade(&shared);
        std::thread::spawn(move || {
            end_syncs(&queue, |job| {
                if let Some(shared) = disk.upgrade() {
                    shared.settle(job);
                }
            });
        });
        shared
    }

    fn settle(&self, job: Job) {
        let stage = self.switch.read();
        match *stage {
            Stage::On => {
                let settled = self.disk.lock().settle(job.sync);
                (job.answer)(settled.map_err(|error| Errno::from_i32(error.raw_os_error())));
            }
            Stage::Cut => self.parked.lock().push(job.answer),
            Stage::Dead => (job.answer)(Err(Errno::EIO)),
        }
    }

    /// Has a sync end after its time, then answers.
    fn sync(&self, disk: &mut Disk, ino: Ino, answer: Answer) {
        let sync = disk.begin_sync(ino);
        let due = Instant::now() + self.sync_time.draw(&mut self.random.lock());
        if let Err(error) = self.jobs.send(Job { due, sync, answer }) {
            (error.0.answer)(Err(Errno::EIO));
        }
    }

    /// Tells everyone who waits for an answer that there is none.
    pub(super) fn release(&self) {
        for answer in std::mem::take(&mut *self.parked.lock()) {
            answer(Err(Errno::EIO));
        }
    }
}

/// Ends syncs when they are due, until nobody can ask for one.
fn end_syncs(queue: &Receiver<Job>, settle: impl Fn(Job)) {
    let mut waiting: BinaryHeap<Job> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|job| job.due <= now) {
            waiting.pop().into_iter().for_each(&settle);
        }
        let pause = waiting.peek().map_or(VALID, |job| job.due.saturating_duration_since(now));
        match queue.recv_timeout(pause) {
            Ok(job) => waiting.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A reply that can say that there is none.
trait Refuse: Send + 'static {
    fn refuse(self, error: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, error: Errno) {
                self.error(error);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

/// What the kernel talks to.
#[derive(Debug)]
pub(super) struct Server(pub(super) Arc<Shared>);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.modified,
        mtime: stat.modified,
        ctime: stat.modified,
        crtime: stat.modified,
        kind: kind(&stat.node),
        perm: stat.node.mode,
        nlink: stat.node.links,
        uid: stat.node.uid,
        gid: stat.node.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn kind(node: &Node) -> FileType {
    match node.kind {
        Kind::Dir(_) => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
    }
}

fn node(request: &Request, kind: Kind, mode: u32, umask: u32) -> Node {
    let links = if matches!(kind, Kind::Dir(_)) { 2 } else { 1 };
    let mode = u16::try_from(mode & !umask & 0o7777).unwrap_or(0o600);
    Node { kind, mode, uid: request.uid(), gid: request.gid(), links }
}

fn has(flags: OpenFlags, flag: OFlags) -> bool {
    OFlags::from_bits_retain(u32::from_ne_bytes(flags.0.to_ne_bytes())).contains(flag)
}

impl Server {
    /// Serves a request, when there is power.
    fn serve<R: Refuse>(&self, reply: R, act: impl FnOnce(&mut Disk, R)) {
        let stage = self.0.switch.read();
        match *stage {
            Stage::On => act(&mut self.0.disk.lock(), reply),
            Stage::Cut => self.0.parked.lock().push(Box::new(|_| reply.refuse(Errno::EIO))),
            Stage::Dead => reply.refuse(Errno::EIO),
        }
    }

    fn entry(&self, reply: ReplyEntry, act: impl FnOnce(&mut Disk) -> Result<Stat, rustix::io::Errno>) {
        self.serve(reply, |disk, reply| match act(disk) {
            Ok(stat) => reply.entry(&VALID, &attributes(&stat), Generation(0)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn empty(&self, reply: ReplyEmpty, act: impl FnOnce(&mut Disk) -> Result<(), rustix::io::Errno>) {
        self.serve(reply, |disk, reply| match act(disk) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn synced(&self, ino: INodeNo, reply: ReplyEmpty) {
        self.serve(reply, |disk, reply| {
            let answer = |outcome: Result<(), Errno>| match outcome {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            };
            self.0.sync(disk, ino.0, Box::new(answer));
        });
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Smaller ones would do, too.
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.look_up(parent.0, name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(reply, |disk, reply| match disk.stat(ino.0) {
            Ok(stat) => reply.attr(&VALID, &attributes(&stat)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(reply, |disk, reply| {
            let act = |disk: &mut Disk| {
                let mode = mode.and_then(|mode| u16::try_from(mode & 0o7777).ok());
                disk.set_attributes(ino.0, mode, uid, gid)?;
                if let Some(size) = size {
                    disk.truncate(ino.0, size)?;
                }
                disk.stat(ino.0)
            };
            match act(disk) {
                Ok(stat) => reply.attr(&VALID, &attributes(&stat)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(reply, |disk, reply| match disk.stat(ino.0).map(|stat| stat.node.kind) {
            Ok(Kind::Symlink(target)) => reply.data(target.as_bytes()),
            _ => reply.error(Errno::EINVAL),
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let node = node(request, Kind::Dir(std::collections::BTreeMap::new()), mode, umask);
        self.entry(reply, |disk| disk.create(parent.0, name, node));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = node(request, Kind::Symlink(target.as_os_str().to_owned()), 0o777, 0);
        self.entry(reply, |disk| disk.create(parent.0, name, node));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.remove(parent.0, name, false));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |disk| disk.remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        self.empty(reply, |disk| disk.rename((parent.0, name), (to.0, to_name), replace));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |disk| disk.link(ino.0, parent.0, name));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.serve(reply, |disk, reply| {
            disk.opened(ino.0);
            // What is cached is what is there: a mount begins with nothing cached.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let node = node(request, Kind::File, mode, umask);
        self.serve(reply, |disk, reply| match disk.create(parent.0, name, node) {
            Ok(stat) => {
                disk.opened(stat.ino);
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&VALID, &attributes(&stat), Generation(0), FileHandle(0), flags);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        self.serve(reply, |disk, reply| match disk.read(ino.0, offset, length) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let unaligned = !offset.is_multiple_of(DIRECT_ALIGN) || !u64::from(length).is_multiple_of(DIRECT_ALIGN);
        if !cached && has(flags, OFlags::DIRECT) && unaligned {
            return reply.error(Errno::EINVAL);
        }
        self.serve(reply, |disk, reply| {
            if let Err(error) = disk.write(ino.0, offset, data) {
                return reply.error(errno(error));
            }
            if cached || !has(flags, OFlags::DSYNC) {
                return reply.written(length);
            }
            let answer = move |outcome: Result<(), Errno>| match outcome {
                Ok(()) => reply.written(length),
                Err(error) => reply.error(error),
            };
            self.0.sync(disk, ino.0, Box::new(answer));
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |disk| {
            disk.released(ino.0);
            Ok(())
        });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.synced(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.synced(ino, reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(reply, |disk, mut reply| match disk.entries(ino.0) {
            Ok(entries) => {
                let own = [(".".into(), ino.0, FileType::Directory), ("..".into(), ino.0, FileType::Directory)];
                let others = entries.into_iter().map(|(name, stat)| (name, stat.ino, kind(&stat.node)));
                for (index, (name, ino, kind)) in (1u64..).zip(own.into_iter().chain(others)) {
                    if index > offset && reply.add(INodeNo(ino), index, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.serve(reply, |_, reply| match rustix::fs::statvfs(&self.0.backing) {
            Ok(stat) => {
                let small = |number: u64| u32::try_from(number).unwrap_or(4096);
                let (block, fragment) = (small(stat.f_bsize), small(stat.f_frsize));
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    block,
                    255,
                    fragment,
                );
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.empty(reply, |disk| match mode {
            0 | KEEP_SIZE => disk.allocate(ino.0, offset, length, mode == KEEP_SIZE),
            _ if mode == PUNCH_HOLE | KEEP_SIZE => disk.punch(ino.0, offset, length),
            _ => Err(rustix::io::Errno::OPNOTSUPP),
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.serve(reply, |disk, reply| {
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            let sought = match whence {
                SEEK_DATA => disk.seek(ino.0, offset, false),
                SEEK_HOLE => disk.seek(ino.0, offset, true),
                _ => Err(rustix::io::Errno::INVAL),
            };
            match sought.map(i64::try_from) {
                Ok(Ok(offset)) => reply.offset(offset),
                Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
                Err(error) => reply.error(errno(error)),
            }
        });
    }
}
