//! Keys: what a caller names a row by, which rows must stay together, and how both are laid out in objects.
//!
//! Physical row key in a group object: space byte, then the key's bytes. Rows of one group are therefore ordered by
//! space, then key. Space [`SPACE_RESERVED`] holds the group's own rows and is closed to callers.
//!
//! Row keys of a root object order *descending* by start key ([`root_row_key`]): "the last group that starts at or
//! before this key" is then the first row of a forward scan, one small read whatever the number of groups.

use minicbor::{Decode, Encode};

/// The space of a group's own rows.
pub const SPACE_RESERVED: u8 = 0xff;
/// The longest row key that a placement group takes, in bytes.
const PHYSICAL_KEY_BYTES_MAX: usize = 2048;
/// The longest key of a row, in bytes: with its space it is a physical row key.
pub const KEY_BYTES_MAX: usize = PHYSICAL_KEY_BYTES_MAX - 1;

/// Physical key of the row that holds a group's estimated weight (a counter, little-endian `i64`).
pub(crate) const WEIGHT_ROW: &[u8] = &[SPACE_RESERVED];
/// First byte of the row keys that map start keys to groups in a root object.
const ROOT_GROUPS: u8 = 0x01;
/// Physical key of the row that counts the groups of a table, in its root object.
pub(crate) const GROUP_COUNT_ROW: &[u8] = &[SPACE_RESERVED];

/// A row of a table: its space and its key within the space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The space: rows of one kind. Not [`SPACE_RESERVED`].
    pub space: u8,
    /// The key within the space, at most [`KEY_BYTES_MAX`] bytes.
    pub key: Vec<u8>,
}

impl RowKey {
    /// Names a row.
    #[must_use]
    pub fn new(space: u8, key: impl Into<Vec<u8>>) -> RowKey {
        RowKey { space, key: key.into() }
    }

    /// The row's key in the group object.
    pub(crate) fn physical(&self) -> Vec<u8> {
        physical(self.space, &self.key)
    }
}

/// The key in a group object of `key` in `space`.
pub(crate) fn physical(space: u8, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(space);
    bytes.extend_from_slice(key);
    bytes
}

/// The first physical key after all rows of `space`.
pub(crate) fn space_end(space: u8) -> Vec<u8> {
    vec![space.saturating_add(1)]
}

/// The smallest key after `key`.
pub(crate) fn successor(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.extend_from_slice(key);
    bytes.push(0);
    bytes
}

/// The smallest key after all keys that start with `prefix`; `None` when there is none (`prefix` is all `0xff`).
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut bytes = prefix.get(..=kept)?.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    Some(bytes)
}

/// Which rows of a table always lie in the same group, so that a batch over them is one op.
///
/// The *route* of a key is a prefix of it; rows of equal route stay together because groups are cut only at routes.
/// That works because routes are idempotent (`route(route(k)) == route(k)`) and contiguous (a key between two keys of
/// one route has that route); both kinds below are, whatever the keys. A table has one affinity for ever: it is kept
/// in the root object and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Affinity {
    /// Each key is its own route: only rows of equal key (in several spaces) stay together.
    #[n(0)]
    WholeKey,
    /// The route ends with the first occurrence of these two bytes. A key without them is its own route.
    #[n(1)]
    ThroughTerminator(#[n(0)] u8, #[n(1)] u8),
}

impl Affinity {
    /// The affinity of S3 bucket tables: keys are escaped and end with `00 01`.
    pub const S3: Affinity = Affinity::ThroughTerminator(0x00, 0x01);

    /// The route of `key`, a prefix of it.
    #[must_use]
    pub fn route<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        match *self {
            Affinity::WholeKey => key,
            Affinity::ThroughTerminator(first, second) => {
                let end = key.windows(2).position(|pair| pair == [first, second]).map_or(key.len(), |at| at + 2);
                key.get(..end).unwrap_or(key)
            }
        }
    }

    /// Whether every key of `start..end` has the route `route`. Never so of a route that is a single key.
    #[must_use]
    pub fn range_stays_in(&self, start: &[u8], end: &[u8], route: &[u8]) -> bool {
        match *self {
            Affinity::WholeKey => false,
            Affinity::ThroughTerminator(first, second) => {
                route.ends_with(&[first, second])
                    && self.route(start) == route
                    && prefix_end(route).is_some_and(|route_end| *end <= *route_end)
            }
        }
    }
}

/// Row key in a root object of the group that starts at `start`: descending in `start`.
///
/// `00` is escaped as `00 ff` and the end marked `00 00`, which keeps the order and makes no encoding a prefix of
/// another; complementing each byte then reverses the order exactly.
pub(crate) fn root_row_key(start: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(start.len() + 3);
    bytes.push(ROOT_GROUPS);
    for byte in start {
        bytes.push(!byte);
        if *byte == 0 {
            bytes.push(!0xff);
        }
    }
    bytes.extend_from_slice(&[!0, !0]);
    bytes
}

/// Whether a group may start at `start`: its root row's key must not be too long.
pub(crate) fn may_start_at(start: &[u8]) -> bool {
    let zeros = start.iter().filter(|byte| **byte == 0).count();
    1 + start.len() + zeros + 2 <= PHYSICAL_KEY_BYTES_MAX
}

/// The start key of a group from its row key in the root object; `None` when that is not such a key.
pub(crate) fn start_of_root_row(row_key: &[u8]) -> Option<Vec<u8>> {
    let (&kind, encoded) = row_key.split_first()?;
    let encoded = encoded.strip_suffix(&[!0, !0])?;
    if kind != ROOT_GROUPS {
        return None;
    }
    let mut start = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.iter();
    while let Some(byte) = bytes.next() {
        let byte = !byte;
        start.push(byte);
        if byte == 0 && bytes.next() != Some(&!0xff) {
            return None;
        }
    }
    Some(start)
}

/// The first row key after those of groups, in a root object.
pub(crate) fn root_rows_end() -> Vec<u8> {
    vec![ROOT_GROUPS + 1]
}

/// The first possible row key of groups, in a root object.
pub(crate) fn root_rows_start() -> Vec<u8> {
    vec![ROOT_GROUPS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(0xfe), Just(0xff)], 0..8)
    }

    proptest! {
        #[test]
        fn root_rows_order_descending_and_read_back(a in bytes(), b in bytes()) {
            prop_assert_eq!(root_row_key(&a).cmp(&root_row_key(&b)), b.cmp(&a));
            prop_assert_eq!(start_of_root_row(&root_row_key(&a)), Some(a.clone()));
            prop_assert!(root_row_key(&a) < root_rows_end() && root_row_key(&a) > root_rows_start());
        }

        #[test]
        fn routes_are_idempotent_and_contiguous(mut keys in proptest::array::uniform3(bytes()), whole in any::<bool>()) {
            let affinity = if whole { Affinity::WholeKey } else { Affinity::S3 };
            keys.sort();
            let [a, b, c] = &keys;
            prop_assert_eq!(affinity.route(affinity.route(a)), affinity.route(a));
            if affinity.route(a) == affinity.route(c) {
                prop_assert_eq!(affinity.route(a), affinity.route(b));
            }
        }

        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix in bytes(), key in bytes()) {
            let inside = key >= prefix && prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }

    proptest! {
        #[test]
        fn a_range_of_one_route_holds_no_other(keys in proptest::array::uniform3(bytes()), route in bytes()) {
            let [start, end, key] = &keys;
            let start = [&*route, start].concat();
            let end = [&*route, end].concat();
            let route = Affinity::S3.route(&start).to_vec();
            if Affinity::S3.range_stays_in(&start, &end, &route) {
                let key = [&*route, key].concat();
                prop_assert!(!(start <= key && key < end) || Affinity::S3.route(&key) == route);
            }
        }
    }

    #[test]
    fn an_s3_route_ends_with_its_terminator() {
        assert_eq!(Affinity::S3.route(b"a\x00\xff\x00\x01part"), b"a\x00\xff\x00\x01");
        let (route, end) = (b"a\x00\x01", b"a\x00\x02");
        assert!(Affinity::S3.range_stays_in(b"a\x00\x01u", end, route));
        assert!(!Affinity::S3.range_stays_in(route, b"a\x00\x02\x00", route));
        assert!(!Affinity::S3.range_stays_in(b"a", b"b", b"a"));
        assert!(!Affinity::WholeKey.range_stays_in(b"a", b"a\x00", b"a"));
    }
}
