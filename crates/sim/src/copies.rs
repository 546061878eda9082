//! What the disks hold in the end: all members the same, and no one else anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_osd::parts::{Local, PeerSpace};
use holdfast_pg::{LocalObjects, ObjectKey, ReadError};
use holdfast_types::{OsdId, PgId};
use holdfast_wire::Row;

use crate::node::Node;
use crate::world::World;

/// Everything of one object; no bytes when they cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ObjectCopy {
    data: Option<Bytes>,
    attrs: Vec<Row>,
    rows: Vec<Row>,
}

type Copies = BTreeMap<ObjectKey, ObjectCopy>;

fn read_copy(node: &Node, pg: PgId) -> Result<Copies, ReadError> {
    let space = PeerSpace::default();
    let view = Local::new(node.disk.engine(), pg, &space);
    let mut copies = Copies::new();
    for key in view.list_objects(None, usize::MAX)? {
        let data = match view.read(&key, 0, u64::MAX) {
            Ok(data) => Some(data),
            Err(ReadError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let rows = view.rows_scan(&key, &[], None, usize::MAX, usize::MAX)?.rows;
        copies.insert(key.clone(), ObjectCopy { data, attrs: view.attrs(&key)?, rows });
    }
    Ok(copies)
}

impl World {
    /// All members hold the same objects. A copy may be unreadable only where bits were flipped: nobody has read it since.
    pub(crate) fn check_copies(&self) -> Result<(), String> {
        let newest = self.monitor.newest();
        for pg in self.monitor.pgs() {
            let mut first: Option<(OsdId, Copies)> = None;
            for osd in newest.members_of(pg).acting {
                let Some(node) = self.nodes.get(osd.0 as usize) else { continue };
                if !node.disk.pgs().contains(&pg) {
                    return Err(format!("S2: {osd} has no copy of {pg}"));
                }
                let copies = read_copy(node, pg).map_err(|error| format!("S2: {osd} cannot read {pg}: {error}"))?;
                if let Some((key, _)) = copies.iter().find(|(_, copy)| copy.data.is_none())
                    && node.disk.flips == 0
                {
                    return Err(format!("S2: {osd} cannot read {key:?} of {pg}, though nothing rotted"));
                }
                if let Some((other, reference)) = &first {
                    compare(reference, &copies)
                        .map_err(|what| format!("S2: {pg} differs between {other} and {osd}: {what}"))?;
                } else {
                    first = Some((osd, copies));
                }
            }
        }
        Ok(())
    }
}

fn compare(one: &Copies, other: &Copies) -> Result<(), String> {
    if !one.keys().eq(other.keys()) {
        return Err(format!("{:?} and {:?}", one.keys(), other.keys()));
    }
    for ((key, one), other) in one.iter().zip(other.values()) {
        let same_data = one.data.is_none() || other.data.is_none() || one.data == other.data;
        if !same_data || one.attrs != other.attrs || one.rows != other.rows {
            return Err(format!("{key:?}: {one:?} and {other:?}"));
        }
    }
    Ok(())
}
