//! Simulated disks: the key-value store beneath a monitor's log, with what a kill, a power cut and a failing disk take.
//!
//! A store is a map that is durable and the batches written since. A killed process leaves those to the operating system;
//! a power cut keeps a prefix of them, cut at random: that is what RocksDB's write-ahead log promises (`kv` of the monitor),
//! no more. A durable write or a sync that a crash interrupts may have taken effect or not.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use holdfast_mon::raft::{Kv, Write};
use parking_lot::Mutex;

use crate::runtime::{self, NodeId};
use crate::world;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Where a monitor has its vote.
const VOTE: &[u8] = b"m/vote";
/// There while it waits to be let in.
const JOINING: &[u8] = b"m/joining";

/// How a process comes to its end at an IO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process ends; the operating system keeps what it wrote.
    Kill,
    /// The machine loses power.
    PowerCut,
}

/// The disk of one monitor.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// What survives a power cut.
    durable: Rows,
    /// What a reader sees.
    seen: Rows,
    /// What was written since the last sync, in order.
    unsynced: Vec<Vec<Write>>,
    /// Counts opens: a store that was opened earlier is dead.
    opened: u64,
    /// Crash at this many IOs from now.
    pub(crate) crash_in: Option<(u32, Crash)>,
    /// Whether that has happened, and the process's end is due.
    pub(crate) crashed: Option<Crash>,
    /// The power fails a moment after the next vote was written.
    pub(crate) cut_after_vote: bool,
    /// Syncs fail.
    pub(crate) failing: bool,
    /// Whether one has failed since the store was opened.
    pub(crate) hurt: bool,
    /// How many times slower than usual.
    pub(crate) slowness: u32,
    /// Nothing completes before this time.
    pub(crate) stuck_until: u64,
}

fn apply(rows: &mut Rows, batch: &[Write]) {
    for change in batch {
        match change {
            Write::Put(key, value) => {
                rows.insert(key.clone(), value.clone());
            }
            Write::Delete(key) => {
                rows.remove(key);
            }
            Write::DeleteRange(from, until) => {
                let range = (Bound::Included(from.clone()), Bound::Excluded(until.clone()));
                let keys: Vec<Vec<u8>> = rows.range(range).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    rows.remove(&key);
                }
            }
        }
    }
}

impl Disk {
    fn settle(&mut self, batches: usize) {
        for change in self.unsynced.drain(..batches).flatten() {
            match change {
                Write::Put(key, value) => {
                    self.durable.insert(key, value);
                }
                change => apply(&mut self.durable, &[change]),
            }
        }
    }

    /// The machine loses power. Tells whether anything was lost.
    pub(crate) fn power_cut(&mut self) -> bool {
        let count = self.unsynced.len();
        let kept = usize::try_from(runtime::random() % (count as u64 + 1)).unwrap_or(0);
        self.settle(kept);
        let lost = !self.unsynced.is_empty();
        self.unsynced.clear();
        self.seen = self.durable.clone();
        lost
    }

    /// All content is gone: the disk was changed.
    pub(crate) fn wipe(&mut self) {
        *self = Disk { opened: self.opened, ..Disk::default() };
    }

    /// Whether the monitor remembers nothing yet or waits to be let in.
    pub(crate) fn is_joining(&self) -> bool {
        self.is_marked() || self.is_blank()
    }

    /// Whether the monitor knows that it began without memory.
    pub(crate) fn is_marked(&self) -> bool {
        self.seen.contains_key(JOINING)
    }

    /// Whether the monitor has never taken part.
    pub(crate) fn is_blank(&self) -> bool {
        !self.seen.contains_key(VOTE)
    }

    /// Faults of the disk that pass.
    pub(crate) fn mend(&mut self) {
        (self.failing, self.slowness, self.stuck_until, self.crash_in) = (false, 0, 0, None);
        self.cut_after_vote = false;
    }
}

/// A monitor's store on its [`Disk`].
pub struct SimKv {
    node: NodeId,
    disk: Arc<Mutex<Disk>>,
    opened: u64,
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "this process has been killed")
}

impl SimKv {
    /// Runs an IO, unless the process is dead or dies at it. `effect` may or may not be done then.
    fn io<T>(&self, effect: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        if disk.opened != self.opened || disk.crashed.is_some() {
            return Err(gone());
        }
        match disk.crash_in {
            Some((0, crash)) => {
                disk.crash_in = None;
                disk.crashed = Some(crash);
                if runtime::random().is_multiple_of(2) {
                    let _ = effect(&mut disk);
                }
                runtime::doom(self.node);
                world::crashed_at_io(self.node);
                Err(gone())
            }
            Some((left, crash)) => {
                disk.crash_in = Some((left - 1, crash));
                effect(&mut disk)
            }
            None => effect(&mut disk),
        }
    }
}

impl Kv for SimKv {
    fn open(directory: &Path) -> io::Result<SimKv> {
        let node = directory.to_str().and_then(|name| name.parse().ok()).ok_or(io::ErrorKind::NotFound)?;
        let disk = world::disk(node);
        let opened = {
            let mut disk = disk.lock();
            disk.opened += 1;
            disk.hurt = false;
            disk.opened
        };
        Ok(SimKv { node, disk, opened })
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.io(|disk| Ok(disk.seen.get(key).cloned()))
    }

    fn scan(&self, from: &[u8], until: &[u8], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let range = (Bound::Included(from.to_vec()), Bound::Excluded(until.to_vec()));
        let values: Vec<Vec<u8>> =
            self.io(|disk| Ok(disk.seen.range(range).map(|(_, value)| value.clone()).collect()))?;
        values.iter().try_for_each(|value| each(value))
    }

    fn last(&self, from: &[u8], until: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let range = (Bound::Included(from.to_vec()), Bound::Excluded(until.to_vec()));
        self.io(|disk| Ok(disk.seen.range(range).next_back().map(|(_, value)| value.clone())))
    }

    fn write(&self, batch: Vec<Write>, durable: bool) -> io::Result<()> {
        self.io(|disk| {
            if durable && disk.failing {
                world::count("fsync-error");
                disk.hurt = true;
                return Err(io::Error::other("the simulated disk cannot sync"));
            }
            apply(&mut disk.seen, &batch);
            let votes = batch.iter().any(|change| matches!(change, Write::Put(key, _) if key == VOTE));
            if votes && std::mem::take(&mut disk.cut_after_vote) {
                world::cut_soon(self.node);
            }
            disk.unsynced.push(batch);
            if durable {
                let all = disk.unsynced.len();
                disk.settle(all);
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.io(|disk| {
            if disk.failing {
                world::count("fsync-error");
                disk.hurt = true;
                return Err(io::Error::other("the simulated disk cannot sync"));
            }
            let all = disk.unsynced.len();
            disk.settle(all);
            Ok(())
        })
    }
}
