//! Which cells there are, and how far each goes.

use std::time::Duration;

use crate::load::Bounds;
use crate::objects::Op;

/// Sizes of an op, each with its short name.
pub const SIZES: [(&str, usize); 2] = [("4K", 4096), ("4M", 4 << 20)];
/// Clients side by side.
pub const CLIENTS: [usize; 2] = [16, 1];

/// Bytes that one cell writes at most. Three copies of it must fit the disk beside those of the other write cells.
const WRITTEN_BYTES_MAX: u64 = 1 << 30;
/// Ops that one cell does at most: a bound, far above what a cell of seconds reaches.
const OPS_MAX: u64 = 2_000_000;

/// The way into the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The client library.
    Objects,
    /// The S3 gateway.
    S3,
}

/// A load of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Through what.
    pub door: Door,
    /// What.
    pub op: Op,
    /// Short name of the size.
    pub size: &'static str,
    /// Bytes of an op.
    pub bytes: usize,
    /// Clients side by side.
    pub clients: usize,
}

impl Cell {
    /// All cells, in the order of measuring.
    #[must_use]
    pub fn all() -> Vec<Cell> {
        let mut cells = Vec::new();
        for door in [Door::Objects, Door::S3] {
            for (size, bytes) in SIZES {
                for clients in CLIENTS {
                    cells.extend([Op::Write, Op::Read].map(|op| Cell { door, op, size, bytes, clients }));
                }
            }
        }
        cells
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> String {
        let (size, clients) = (self.size, self.clients);
        match (self.door, self.op) {
            (Door::Objects, Op::Write) => format!("holdfast object {size} write c{clients}"),
            (Door::Objects, Op::Read) => format!("holdfast object {size} read c{clients}"),
            (Door::S3, Op::Write) => format!("holdfast S3 PUT {size} c{clients}"),
            (Door::S3, Op::Read) => format!("holdfast S3 GET {size} c{clients}"),
        }
    }

    /// When it ends.
    #[must_use]
    pub fn bounds(&self, time: Duration) -> Bounds {
        let ops_max = match self.op {
            Op::Write => (WRITTEN_BYTES_MAX / self.bytes as u64).min(OPS_MAX),
            Op::Read => OPS_MAX,
        };
        Bounds { time, ops_max }
    }

    /// Objects that it walks through. Reads: few, so that they measure the way and not the disk; writes: more than there
    /// are clients, so that none waits for another one's object.
    #[must_use]
    pub fn objects(&self) -> u64 {
        match (self.door, self.op, self.bytes) {
            (_, Op::Read, ..=65_536) => 300,
            (_, Op::Read, _) => 16,
            (Door::Objects, Op::Write, ..=65_536) => 2000,
            (Door::Objects, Op::Write, _) => 128,
            (Door::S3, Op::Write, ..=65_536) => 100_000,
            (Door::S3, Op::Write, _) => 64,
        }
    }
}

/// Bytes that one run may write to the disk, all copies together.
#[must_use]
pub fn disk_bytes_max(cells: &[Cell], copies: u64) -> u64 {
    let writes = cells.iter().filter(|cell| cell.op == Op::Write && cell.bytes > 65_536).count() as u64;
    (writes + 1) * WRITTEN_BYTES_MAX * copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_tell_cells_apart() {
        let cells = Cell::all();
        let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
        assert_eq!((cells.len(), names.len()), (16, 16));
    }

    #[test]
    fn what_is_read_was_not_being_written_and_every_cell_is_bounded() {
        for cell in Cell::all() {
            let bounds = cell.bounds(Duration::from_secs(5));
            assert!(bounds.ops_max > 0 && bounds.ops_max <= OPS_MAX);
            assert!(cell.objects() >= cell.clients as u64, "{}", cell.name());
            if cell.op == Op::Write {
                assert!(bounds.ops_max * cell.bytes as u64 <= WRITTEN_BYTES_MAX);
            }
        }
    }
}
