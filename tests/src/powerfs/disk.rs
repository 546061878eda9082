//! A file system and what a power loss leaves of it, without the kernel's side: see [`super`] for what it promises.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use rand::Rng as _;
use rand::rngs::SmallRng;
use rustix::io::Errno;

use super::names::{Ino, Kind, Names, Node, Op, ROOT};
use super::pages::{FileData, Lost, PAGE, Seq, Survival};

/// Pages of all files that may be without sync at one time: 256 MiB. Beyond that the file that has most is written out, as
/// the kernel does.
const UNSYNCED_PAGES_MAX: u64 = (256 << 20) / PAGE;

/// A sync that has begun; [`Disk::settle`] ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Sync {
    ino: Ino,
    number: u64,
    /// The names are durable up to this one then.
    operations: Seq,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Which.
    pub ino: Ino,
    /// Kind, permissions, links.
    pub node: Node,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// When it was last written; unknown for what is no file.
    pub modified: SystemTime,
}

/// What has happened to a disk so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Syncs of files and directories.
    pub syncs: u64,
    /// Pages written out without a sync, for want of memory.
    pub written_out: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    backing: PathBuf,
    /// What processes see.
    names: Names,
    /// What would be there after a power loss.
    durable: Names,
    /// What makes the one of the other, in order.
    journal: VecDeque<(Seq, Op)>,
    /// The last operation that changed each node.
    touched: BTreeMap<Ino, Seq>,
    files: BTreeMap<Ino, FileData>,
    /// How often a file is open; only those that are.
    open: BTreeMap<Ino, u64>,
    next: u64,
    unsynced_pages: u64,
    /// What happened.
    pub counts: Counts,
}

fn io_error(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

impl Disk {
    /// An empty file system whose durable bytes lie in the directory `backing`.
    #[must_use]
    pub fn new(backing: PathBuf) -> Disk {
        Disk {
            backing,
            names: Names::default(),
            durable: Names::default(),
            journal: VecDeque::new(),
            touched: BTreeMap::new(),
            files: BTreeMap::new(),
            open: BTreeMap::new(),
            next: ROOT,
            unsynced_pages: 0,
            counts: Counts::default(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn backing_of(&self, ino: Ino) -> PathBuf {
        self.backing.join(ino.to_string())
    }

    fn file(&self, ino: Ino) -> Result<&FileData, Errno> {
        self.files.get(&ino).ok_or(Errno::STALE)
    }

    /// Does something to the bytes of a file and keeps count of what is not synced.
    fn change<T>(&mut self, ino: Ino, act: impl FnOnce(&mut FileData) -> io::Result<T>) -> Result<T, Errno> {
        let file = self.files.get_mut(&ino).ok_or(Errno::STALE)?;
        let before = file.unsynced_pages();
        let outcome = act(file);
        self.unsynced_pages = (self.unsynced_pages + file.unsynced_pages()).saturating_sub(before);
        outcome.map_err(|error| io_error(&error))
    }

    /// What is known of a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn stat(&self, ino: Ino) -> Result<Stat, Errno> {
        let node = self.names.get(ino).ok_or(Errno::NOENT)?.clone();
        let file = self.files.get(&ino);
        let link_bytes = if let Kind::Symlink(target) = &node.kind { target.len() as u64 } else { PAGE };
        Ok(Stat {
            ino,
            node,
            size: file.map_or(link_bytes, FileData::size),
            blocks: file.map_or(0, FileData::blocks),
            modified: file.map_or(SystemTime::UNIX_EPOCH, |file| file.modified),
        })
    }

    /// The node of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn look_up(&self, parent: Ino, name: &OsStr) -> Result<Stat, Errno> {
        self.stat(self.names.look_up(parent, name).ok_or(Errno::NOENT)?)
    }

    /// The names in a directory, with their nodes.
    ///
    /// # Errors
    /// When it is none.
    pub fn entries(&self, dir: Ino) -> Result<Vec<(OsString, Stat)>, Errno> {
        let entries = self.names.entries(dir).ok_or(Errno::NOTDIR)?;
        entries.iter().map(|(name, ino)| Ok((name.clone(), self.stat(*ino)?))).collect()
    }

    /// Does it for the processes, and notes it for the disk.
    fn perform(&mut self, op: Op) -> Seq {
        let seq = self.number();
        for ino in self.names.touched(&op) {
            self.touched.insert(ino, seq);
        }
        if let Some(nameless) = self.names.apply(&op)
            && !self.open.contains_key(&nameless)
        {
            self.names.forget(nameless);
        }
        self.journal.push_back((seq, op));
        seq
    }

    /// Makes a file, directory or link.
    ///
    /// # Errors
    /// When the name is taken, or the directory is none.
    pub fn create(&mut self, parent: Ino, name: &OsStr, node: Node) -> Result<Stat, Errno> {
        let entries = self.names.entries(parent).ok_or(Errno::NOTDIR)?;
        if entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let ino = self.number();
        let is_file = node.kind == Kind::File;
        let seq = self.perform(Op::Create { parent, name: name.to_owned(), ino, node });
        if is_file {
            let mut options = OpenOptions::new();
            let backing = options.read(true).write(true).create_new(true).open(self.backing_of(ino));
            self.files.insert(ino, FileData::new(backing.map_err(|error| io_error(&error))?, seq));
        }
        self.stat(ino)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// When the name is taken, or the node is no file.
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Stat, Errno> {
        let entries = self.names.entries(parent).ok_or(Errno::NOTDIR)?;
        if entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        if self.names.get(ino).is_none_or(|node| node.links == 0 || matches!(node.kind, Kind::Dir(_))) {
            return Err(Errno::PERM);
        }
        self.perform(Op::Link { parent, name: name.to_owned(), ino });
        self.stat(ino)
    }

    /// Takes a name away, of a directory or of something else.
    ///
    /// # Errors
    /// When there is none, it is the other kind, or a directory with names in it.
    pub fn remove(&mut self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let ino = self.names.look_up(parent, name).ok_or(Errno::NOENT)?;
        match self.names.entries(ino) {
            Some(_) if !directory => return Err(Errno::ISDIR),
            Some(entries) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
            None if directory => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.perform(Op::Remove { parent, name: name.to_owned() });
        Ok(())
    }

    /// Renames, over another one if there is one and that is wanted.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), replace: bool) -> Result<(), Errno> {
        let ino = self.names.look_up(from.0, from.1).ok_or(Errno::NOENT)?;
        self.names.entries(to.0).ok_or(Errno::NOTDIR)?;
        if let Some(there) = self.names.look_up(to.0, to.1) {
            match (self.names.entries(ino), self.names.entries(there)) {
                _ if !replace => return Err(Errno::EXIST),
                (Some(_), None) => return Err(Errno::NOTDIR),
                (None, Some(_)) => return Err(Errno::ISDIR),
                (Some(_), Some(entries)) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        let (name, to_name) = (from.1.to_owned(), to.1.to_owned());
        self.perform(Op::Rename { parent: from.0, name, to: to.0, to_name });
        Ok(())
    }

    /// Changes who may do what.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_attributes(
        &mut self,
        ino: Ino,
        mode: Option<u16>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        let node = self.names.get(ino).ok_or(Errno::NOENT)?;
        let (mode, uid, gid) = (mode.unwrap_or(node.mode), uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
        if (mode, uid, gid) != (node.mode, node.uid, node.gid) {
            self.perform(Op::Attributes { ino, mode, uid, gid });
        }
        Ok(())
    }

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// When it is none.
    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<(), Errno> {
        if self.file(ino)?.size() == size {
            return Ok(());
        }
        let seq = self.perform(Op::Truncate { ino, size });
        self.change(ino, |file| file.truncate(seq, size))
    }

    /// Someone has opened a file.
    pub fn opened(&mut self, ino: Ino) {
        *self.open.entry(ino).or_default() += 1;
    }

    /// Someone has closed it.
    pub fn released(&mut self, ino: Ino) {
        let Some(count) = self.open.get_mut(&ino) else { return };
        *count -= 1;
        if *count == 0 {
            self.open.remove(&ino);
            if self.names.get(ino).is_some_and(|node| node.links == 0) {
                self.names.forget(ino);
            }
            self.collect(ino);
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// When it is no file, or the machine's file system fails.
    pub fn read(&self, ino: Ino, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        self.file(ino)?.read(offset, length).map_err(|error| io_error(&error))
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.change(ino, |file| file.write(offset, data))?;
        self.write_out()
    }

    /// Makes bytes zero.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn punch(&mut self, ino: Ino, offset: u64, length: u64) -> Result<(), Errno> {
        self.change(ino, |file| file.punch(offset, length))
    }

    /// Sets room aside, and extends the file to it if that is wanted.
    ///
    /// # Errors
    /// As [`Disk::read`], and when there is no room.
    pub fn allocate(&mut self, ino: Ino, offset: u64, length: u64, keep_size: bool) -> Result<(), Errno> {
        self.file(ino)?.allocate(offset, length).map_err(|error| io_error(&error))?;
        let end = offset.saturating_add(length);
        if !keep_size && end > self.file(ino)?.size() {
            self.truncate(ino, end)?;
        }
        Ok(())
    }

    /// See [`FileData::seek`].
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, Errno> {
        self.file(ino)?.seek(offset, hole).map_err(|error| io_error(&error))?.ok_or(Errno::NXIO)
    }

    /// A sync of a file or directory begins. It covers what was written to the file until now, and the names up to the last
    /// operation that changed this node.
    pub fn begin_sync(&mut self, ino: Ino) -> Sync {
        let number = self.number();
        if let Some(file) = self.files.get_mut(&ino) {
            file.freeze(number);
        }
        self.counts.syncs += 1;
        Sync { ino, number, operations: self.touched.get(&ino).copied().unwrap_or(0) }
    }

    /// The sync ends: what it covers is durable.
    ///
    /// # Errors
    /// When the machine's file system fails.
    pub fn settle(&mut self, sync: Sync) -> Result<(), Errno> {
        self.commit(sync.operations)?;
        if self.files.contains_key(&sync.ino) {
            self.change(sync.ino, |file| file.settle(sync.number))?;
        }
        Ok(())
    }

    /// Makes the operations up to this one durable.
    fn commit(&mut self, through: Seq) -> Result<(), Errno> {
        while let Some((seq, op)) = self.journal.pop_front_if(|(seq, _)| *seq <= through) {
            if let Op::Truncate { ino, .. } = op
                && self.files.contains_key(&ino)
            {
                self.change(ino, |file| file.truncated(seq))?;
            }
            if let Some(nameless) = self.durable.apply(&op) {
                self.durable.forget(nameless);
                self.collect(nameless);
            }
        }
        Ok(())
    }

    /// Throws the bytes of a file away of which neither a name nor the memory of one is left.
    fn collect(&mut self, ino: Ino) {
        let in_journal =
            self.journal.iter().any(|(_, op)| matches!(op, Op::Create { ino: created, .. } if *created == ino));
        if self.names.get(ino).is_some() || self.durable.get(ino).is_some() || in_journal {
            return;
        }
        if let Some(file) = self.files.remove(&ino) {
            self.unsynced_pages = self.unsynced_pages.saturating_sub(file.unsynced_pages());
        }
        self.touched.remove(&ino);
        // It may be a directory, and then has none.
        let _ = std::fs::remove_file(self.backing_of(ino));
    }

    fn write_out(&mut self) -> Result<(), Errno> {
        while self.unsynced_pages > UNSYNCED_PAGES_MAX {
            let most = self.files.iter().max_by_key(|(_, file)| file.unsynced_pages());
            let Some((ino, pages)) = most.map(|(ino, file)| (*ino, file.unsynced_pages())) else { return Ok(()) };
            let sync = self.begin_sync(ino);
            self.settle(sync)?;
            self.counts.written_out += pages;
        }
        Ok(())
    }

    /// The power fails. Processes are gone, with them everything that is open.
    ///
    /// # Errors
    /// When the machine's file system fails.
    pub fn lose(&mut self, random: &mut SmallRng) -> io::Result<Lost> {
        let waiting: Vec<Seq> = self.journal.iter().map(|(seq, _)| *seq).collect();
        // The journal is written in order: a prefix of it is there.
        let kept = match random.random_range(0..4) {
            0 => 0,
            1 => waiting.len(),
            _ => random.random_range(0..=waiting.len()),
        };
        let through = kept.checked_sub(1).and_then(|last| waiting.get(last)).copied().unwrap_or(0);
        self.commit(through).map_err(io::Error::from)?;
        let committed = self.journal.front().map_or(Seq::MAX, |(seq, _)| *seq - 1);
        let (page, torn) = match random.random_range(0..4) {
            0 => (0.0, 0.0),
            1 => (*[0.1, 0.5, 0.9].get(random.random_range(0..3)).unwrap_or(&0.5), 0.0),
            _ => (*[0.1, 0.5, 0.9].get(random.random_range(0..3)).unwrap_or(&0.5), 0.3),
        };
        let mut lost = Lost { operations: (waiting.len() - kept) as u64, ..Lost::default() };
        self.journal.clear();
        self.names = self.durable.clone();
        self.open.clear();
        self.touched.clear();
        let there = self.durable.inos();
        let gone: BTreeSet<Ino> = self.files.keys().copied().filter(|ino| !there.contains(ino)).collect();
        for ino in gone {
            lost.dropped += self.files.get(&ino).map_or(0, FileData::unsynced_pages);
            self.collect(ino);
        }
        for file in self.files.values_mut() {
            lost.add(file.lose(Survival { page, torn, committed }, random)?);
        }
        self.unsynced_pages = 0;
        Ok(lost)
    }
}
