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

    /// Takes from another copy what cannot be read here. Gives whether both agree in what can be read of both.
    fn agrees_and_takes(&mut self, other: &ObjectCopy) -> bool {
        agrees_and_takes(&mut self.data, &other.data)
            && agrees_and_takes(&mut self.attrs, &other.attrs)
            && agrees_and_takes(&mut self.rows, &other.rows)
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
            // The first copy, and what it lacks from those that were compared with it.
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
                if let Some((other, reference)) = &mut first {
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

fn agrees_and_takes<T: PartialEq + Clone>(one: &mut Option<T>, other: &Option<T>) -> bool {
    if one.is_none() {
        one.clone_from(other);
    }
    other.is_none() || one == other
}

/// Compares copies with those that were seen before; what these lack for being unreadable is taken from the others.
fn compare(reference: &mut Copies, other: &Copies) -> Result<(), String> {
    if !reference.keys().eq(other.keys()) {
        return Err(format!("{:?} and {:?}", reference.keys(), other.keys()));
    }
    for ((key, one), other) in reference.iter_mut().zip(other.values()) {
        if !one.agrees_and_takes(other) {
            return Err(format!("{key:?}: {one:?} and {other:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_types::ObjectName;

    use super::*;

    #[test]
    fn copies_that_differ_are_noticed_though_the_first_one_cannot_be_read() {
        let copies = |data: Option<&'static [u8]>| {
            let copy =
                ObjectCopy { data: data.map(Bytes::from_static), attrs: Some(Vec::new()), rows: Some(Vec::new()) };
            Copies::from([(ObjectKey::of(&ObjectName::new("o").expect("valid")), copy)])
        };
        let compared = |second, third| {
            let mut reference = copies(None);
            compare(&mut reference, &copies(second)).and_then(|()| compare(&mut reference, &copies(third)))
        };
        assert_eq!(compared(Some(b"a"), Some(b"a")), Ok(()));
        assert_eq!(compared(Some(b"a"), None), Ok(()), "what cannot be read says nothing");
        assert!(compared(Some(b"a"), Some(b"b")).is_err());
    }
}
