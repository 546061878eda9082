//! Which collections there are, and where the index keeps the objects of each.
//!
//! The keys of an object's onode and rows, and the binding of its checksums, name a collection: its **home**. Mostly that
//! is the collection that it is in. A split gives a range of a collection's objects to another one and leaves them in
//! their home: it changes two rows, whatever number of objects it moves.
//!
//! Invariants: K8 collections with the same home have ranges that do not overlap; K9 an object is in the collection whose
//! home and range its key is in, and in no other; K10 a collection that is made anew never gets a home that another one
//! still uses. All of this follows from the log: replay comes to the same homes.

use std::collections::BTreeMap;

use bytes::Bytes;
use minicbor::bytes::ByteSlice;
use minicbor::{Decode, Encode};

use crate::index::keys;
use crate::key::{CollectionId, ObjectKey};

/// Where other homes than the collection's own name are: this many bits up in the first number.
const OTHER_HOMES_SHIFT: u32 = 48;

/// The objects of one collection: those of `home` with keys in `from..to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) home: CollectionId,
    /// The first key that may be here; empty: any.
    pub(crate) from: Bytes,
    /// The first key after those that may be here.
    pub(crate) to: Option<Bytes>,
}

/// As the row of the collection has it.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Row<'a> {
    #[n(0)]
    home: CollectionId,
    #[b(1)]
    from: &'a ByteSlice,
    #[b(2)]
    to: Option<&'a ByteSlice>,
}

impl Place {
    /// All of a home.
    fn whole(home: CollectionId) -> Place {
        Place { home, from: Bytes::new(), to: None }
    }

    /// Whether an object of that key may be here.
    pub(crate) fn has(&self, o: &ObjectKey) -> bool {
        let key = o.as_bytes();
        key >= &self.from[..] && self.to.as_ref().is_none_or(|to| key < &to[..])
    }

    /// The onodes: first key, and first key after them.
    pub(crate) fn onodes(&self) -> (Bytes, Bytes) {
        let from = keys::onode_bound(self.home, &self.from);
        let end = || keys::prefix_end(&keys::table_prefix(keys::TABLE_ONODE, self.home));
        (from, self.to.as_ref().map_or_else(end, |to| keys::onode_bound(self.home, to)))
    }

    /// The rows of all objects: first key, and first key after them.
    pub(crate) fn rows(&self) -> (Bytes, Bytes) {
        let from = keys::row_bound(self.home, &self.from);
        let end = || keys::prefix_end(&keys::table_prefix(keys::TABLE_ROW, self.home));
        (from, self.to.as_ref().map_or_else(end, |to| keys::row_bound(self.home, to)))
    }

    /// Gives what is at `at` or after it away.
    pub(crate) fn split(&self, at: &[u8]) -> (Place, Place) {
        let clamped = |bytes: &[u8]| {
            let bytes = bytes.max(&self.from[..]);
            Bytes::copy_from_slice(self.to.as_ref().map_or(bytes, |to| bytes.min(&to[..])))
        };
        let at = clamped(at);
        (Place { to: Some(at.clone()), ..self.clone() }, Place { from: at, ..self.clone() })
    }

    /// The value of the collection's row; empty when there is nothing to say.
    pub(crate) fn encode(&self, c: CollectionId) -> Bytes {
        if *self == Place::whole(c) {
            return Bytes::new();
        }
        let row = Row { home: self.home, from: (&self.from[..]).into(), to: self.to.as_deref().map(Into::into) };
        minicbor::to_vec(row).expect("derived encoders do not fail").into()
    }

    /// What [`Place::encode`] made; `None` when it is malformed.
    pub(crate) fn decode(c: CollectionId, bytes: &[u8]) -> Option<Place> {
        if bytes.is_empty() {
            return Some(Place::whole(c));
        }
        let row: Row<'_> = minicbor::decode(bytes).ok()?;
        let (from, to) = (Bytes::copy_from_slice(row.from), row.to.map(|to| Bytes::copy_from_slice(to)));
        Some(Place { home: row.home, from, to })
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collections(BTreeMap<CollectionId, Place>);

impl Collections {
    pub(crate) fn get(&self, c: CollectionId) -> Option<&Place> {
        self.0.get(&c)
    }

    pub(crate) fn contains(&self, c: CollectionId) -> bool {
        self.0.contains_key(&c)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = CollectionId> + '_ {
        self.0.keys().copied()
    }

    pub(crate) fn insert(&mut self, c: CollectionId, place: Place) {
        self.0.insert(c, place);
    }

    /// Takes over what a record changes: `None` for a collection that is removed.
    pub(crate) fn change(&mut self, changed: BTreeMap<CollectionId, Option<Place>>) {
        for (c, place) in changed {
            match place {
                Some(place) => self.0.insert(c, place),
                None => self.0.remove(&c),
            };
        }
    }

    /// The collection that has the object of that key of a home.
    pub(crate) fn owner(&self, home: CollectionId, o: &ObjectKey) -> Option<CollectionId> {
        let own = self.0.get_key_value(&home);
        let has = |place: &Place| place.home == home && place.has(o);
        let mut all = own.into_iter().chain(&self.0);
        all.find(|(_, place)| has(place)).map(|(c, _)| *c)
    }

    /// Where a collection that is made now has its objects: in its own name, or, while others still have some there, in one
    /// that nobody uses (K10). `changed`: by the same record.
    pub(crate) fn new_place(&self, c: CollectionId, changed: &BTreeMap<CollectionId, Option<Place>>) -> Place {
        let uses = |home: CollectionId| {
            let unchanged = self.0.iter().filter(|(id, _)| !changed.contains_key(id)).map(|(_, place)| place);
            unchanged.chain(changed.values().flatten()).any(|place| place.home == home)
        };
        let others = (1u64..).map(|n| CollectionId { pool: c.pool ^ (n << OTHER_HOMES_SHIFT), ..c });
        let home = std::iter::once(c).chain(others).find(|home| !uses(*home));
        Place::whole(home.unwrap_or(c))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn id(seed: u32) -> CollectionId {
        CollectionId { pool: 1, seed }
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 1..6)
    }

    proptest! {
        #[test]
        fn a_range_of_objects_is_the_same_range_of_onodes_and_rows(at in key(), object in key(), row: Vec<u8>) {
            let (low, high) = Place::whole(id(3)).split(&at);
            let o = ObjectKey::new(object.clone()).unwrap();
            let within = |(from, to): (Bytes, Bytes), key: &Bytes| from <= *key && *key < to;
            for place in [&low, &high] {
                prop_assert_eq!(within(place.onodes(), &keys::onode(place.home, &o)), place.has(&o));
                prop_assert_eq!(within(place.rows(), &keys::row(place.home, &o, &row)), place.has(&o));
            }
            prop_assert!(low.has(&o) != high.has(&o), "K8");
            prop_assert_eq!(Place::decode(id(9), &low.encode(id(9))), Some(low));
            prop_assert_eq!(Place::decode(id(3), &Place::whole(id(3)).encode(id(3))), Some(Place::whole(id(3))));
        }
    }

    #[test]
    fn a_home_that_is_still_used_is_not_given_again() {
        let (mut all, nothing) = (Collections::default(), BTreeMap::new());
        let place = all.new_place(id(1), &nothing);
        assert_eq!(place, Place::whole(id(1)));
        let (low, high) = place.split(b"m");
        all.insert(id(1), low);
        all.insert(id(2), high.clone());
        let a = ObjectKey::new(b"a".to_vec()).unwrap();
        let z = ObjectKey::new(b"z".to_vec()).unwrap();
        assert_eq!((all.owner(id(1), &a), all.owner(id(1), &z)), (Some(id(1)), Some(id(2))));
        all.change(BTreeMap::from([(id(1), None)]));
        let again = all.new_place(id(1), &nothing);
        assert_ne!(again.home, id(1), "objects of {} are there", id(2));
        assert_eq!(all.owner(id(1), &a), None);
        assert_eq!(all.new_place(id(1), &BTreeMap::from([(id(2), None)])).home, id(1), "free again");
    }
}
