//! What the disks hold in the end: all members the same, and no one else anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_osd::parts::{Leases, Local, PeerSpace};
use holdfast_pg::{LocalObjects, ObjectKey, ReadError};
use holdfast_types::{OsdId, PgId, Timestamp};
use holdfast_wire::Row;

use crate::node::Node;
use crate::world::World;

/// Everything of one object; `None` for what cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ObjectCopy {
    data: Option<Bytes>,
    attrs: Option<Vec<Row>>,
    rows: Option<Vec<Row>>,
}

impl ObjectCopy {
    fn is_whole(&self) -> bool {
        self.data.is_some() && self.attrs.is_some() && self.rows.is_some()
    }
}

/// `None` for what is damaged.
fn readable<T>(read: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(ReadError::Corrupt { .. } | ReadError::Device { .. }) => Ok(None),
    }
}

type Copies = BTreeMap<ObjectKey, ObjectCopy>;

fn read_copy(node: &Node, pg: PgId) -> Result<Copies, ReadError> {
    let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
    let view = Local::new(node.disk.engine(), pg, &space, &leases);
    let mut copies = Copies::new();
    for key in view.list_objects(None, usize::MAX)? {
        let data = readable(view.read(&key, 0, u64::MAX))?;
        let attrs = readable(view.attrs(&key))?;
        let rows = readable(view.rows_scan(&key, &[], None, usize::MAX, usize::MAX))?.map(|page| page.rows);
        copies.insert(key, ObjectCopy { data, attrs, rows });
    }
    Ok(copies)
}

impl World {
    /// All members hold the same objects. A copy may be unreadable only where something rotted and nothing was scrubbed:
    /// nobody has read it since.
    pub(crate) fn check_copies(&self) -> Result<(), String> {
        let newest = self.monitor.newest();
        for pg in self.monitor.pgs() {
            let mut first: Option<(OsdId, Copies)> = None;
            for osd in newest.members_of(pg).acting {
                let Some(node) = self.nodes.get(osd.0 as usize) else { continue };
                if !node.disk.pgs().contains(&pg) {
                    return Err(format!("S2: {osd} has no copy of {pg}"));
                }
                let mut copies = read_copy(node, pg).map_err(|error| format!("S2: {osd} cannot read {pg}: {error}"))?;
                if let Some(holdings) = &self.holdings {
                    copies.retain(|key, _| !holdings.lost.contains(key));
                }
                if let Some((key, _)) = copies.iter().find(|(_, copy)| !copy.is_whole()) {
                    if self.config.day.is_some() {
                        return Err(format!("N8: after a week of scrubs {osd} still has a bad {key:?} in {pg}"));
                    } else if node.disk.flips == 0 {
                        return Err(format!("S2: {osd} cannot read {key:?} of {pg}, though nothing rotted"));
                    }
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

fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
    one.is_none() || other.is_none() || one == other
}

fn compare(one: &Copies, other: &Copies) -> Result<(), String> {
    if !one.keys().eq(other.keys()) {
        return Err(format!("{:?} and {:?}", one.keys(), other.keys()));
    }
    for ((key, one), other) in one.iter().zip(other.values()) {
        if !agree(&one.data, &other.data) || !agree(&one.attrs, &other.attrs) || !agree(&one.rows, &other.rows) {
            return Err(format!("{key:?}: {one:?} and {other:?}"));
        }
    }
    Ok(())
}
