//! Submitted changes that the index does not have yet, laid over it.
//!
//! The overlay holds for each key only the newest submitted value, with the position that set it. A removed range drops the
//! values in it, so a value present is always newer than each range that covers it.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use crate::index::{Change, Index, IndexError};
use crate::key::Position;
use crate::onode::Onode;

/// What a key has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Nothing.
    Deleted,
    /// Bytes, as the index has them.
    Raw(Bytes),
    /// An onode, encoded when it goes to the index.
    Onode(Arc<Onode>),
}

/// A present value: from the overlay or from the index.
pub(crate) enum Seen<'a> {
    Raw(&'a [u8]),
    Onode(&'a Arc<Onode>),
}

/// What one transaction changes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Ranges removed before the points are set.
    pub(crate) ranges: Vec<(Bytes, Bytes)>,
    pub(crate) points: BTreeMap<Bytes, Value>,
    /// Change of live bytes by segment.
    pub(crate) live: BTreeMap<u32, i64>,
}

impl Changes {
    pub(crate) fn set(&mut self, key: Bytes, value: Value) {
        self.points.insert(key, value);
    }

    pub(crate) fn remove_range(&mut self, from: Bytes, to: Bytes) {
        let gone: Vec<Bytes> = range_of(&self.points, &from, Some(&to)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.points.remove(&key);
        }
        self.ranges.push((from, to));
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.points.get(key).or_else(|| self.covers(key).then_some(&Value::Deleted))
    }

    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.ranges.iter().any(|(from, to)| from <= key && key < to)
    }

    /// The changes as the index takes them.
    pub(crate) fn append_to(&self, changes: &mut Vec<Change>) {
        changes.extend(self.ranges.iter().map(|(from, to)| Change::DeleteRange(from.clone(), to.clone())));
        changes.extend(self.points.iter().map(|(key, value)| match value {
            Value::Deleted => Change::Delete(key.clone()),
            Value::Raw(bytes) => Change::Put(key.clone(), bytes.clone()),
            Value::Onode(onode) => Change::Put(key.clone(), onode.encode()),
        }));
    }
}

fn range_of<'a, V>(
    points: &'a BTreeMap<Bytes, V>,
    start: &[u8],
    end: Option<&[u8]>,
) -> impl Iterator<Item = (&'a Bytes, &'a V)> {
    // An empty or reversed range panics in BTreeMap; it stands for nothing here.
    let end = end.map(|end| end.max(start));
    points.range::<[u8], _>((Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded)))
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    points: BTreeMap<Bytes, (Position, Value)>,
    ranges: Vec<(Position, Bytes, Bytes)>,
}

impl Overlay {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        match self.points.get(key) {
            Some((_, value)) => Some(value),
            None => self.covers(key).then_some(&Value::Deleted),
        }
    }

    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.ranges.iter().any(|(_, from, to)| from <= key && key < to)
    }

    pub(crate) fn range(&self, start: &[u8], end: Option<&[u8]>) -> impl Iterator<Item = (&Bytes, &Value)> {
        range_of(&self.points, start, end).map(|(key, (_, value))| (key, value))
    }

    /// Lays `changes`, made by the transaction at `position`, over what is there.
    pub(crate) fn add(&mut self, position: Position, changes: &Changes) {
        for (from, to) in &changes.ranges {
            let gone: Vec<Bytes> = range_of(&self.points, from, Some(to)).map(|(key, _)| key.clone()).collect();
            for key in gone {
                self.points.remove(&key);
            }
            self.ranges.push((position, from.clone(), to.clone()));
        }
        for (key, value) in &changes.points {
            self.points.insert(key.clone(), (position, value.clone()));
        }
    }

    /// Forgets `changes` of the transaction at `position`, which the index now has; shows the values that are forgotten.
    pub(crate) fn retire(&mut self, position: Position, changes: &Changes, mut forgotten: impl FnMut(&Bytes, Value)) {
        for key in changes.points.keys() {
            if self.points.get(key).is_some_and(|(set_at, _)| *set_at == position)
                && let Some((_, value)) = self.points.remove(key)
            {
                forgotten(key, value);
            }
        }
        if !changes.ranges.is_empty() {
            self.ranges.retain(|(set_at, _, _)| *set_at > position);
        }
    }
}

/// Shows in order the present keys of `start..end` of `index` with `upper` laid over it. `covers` tells which keys of the
/// index are removed although `upper` does not have them.
pub(crate) fn scan_over<'a>(
    upper: impl Iterator<Item = (&'a Bytes, &'a Value)>,
    covers: impl Fn(&[u8]) -> bool,
    index: &dyn Index,
    start: &[u8],
    end: Option<&[u8]>,
    visit: &mut dyn FnMut(&[u8], Seen<'_>) -> ControlFlow<()>,
) -> Result<(), IndexError> {
    let mut upper = upper.peekable();
    let mut broken = false;
    let mut show = |key: &[u8], value: &Value| match value {
        Value::Deleted => ControlFlow::Continue(()),
        Value::Raw(bytes) => visit(key, Seen::Raw(bytes)),
        Value::Onode(onode) => visit(key, Seen::Onode(onode)),
    };
    index.scan(start, end, &mut |key, value| {
        while let Some((over, over_value)) = upper.next_if(|(over, _)| over.as_ref() < key) {
            if show(over, over_value).is_break() {
                broken = true;
                return ControlFlow::Break(());
            }
        }
        let shown = match upper.next_if(|(over, _)| over.as_ref() == key) {
            Some((over, over_value)) => show(over, over_value),
            None if covers(key) => ControlFlow::Continue(()),
            None => show(key, &Value::Raw(Bytes::copy_from_slice(value))),
        };
        broken = shown.is_break();
        shown
    })?;
    if !broken {
        for (key, value) in upper {
            if show(key, value).is_break() {
                break;
            }
        }
    }
    Ok(())
}
