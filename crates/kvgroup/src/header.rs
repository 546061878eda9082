//! The records of root and group objects, and every transition of a group.
//!
//! Each object carries its record in attribute [`HEADER_ATTR`] and the record's version alone in [`VERSION_ATTR`].
//! Both are always set together, by an op vector that asserts the version before it: so versions only grow, each is
//! given once in an object's life, and *asserting eight bytes asserts the whole record*. That assertion opens every
//! op vector of this crate; it is what makes paused, repeated and late requests harmless.
//!
//! Transitions of a group (all others are impossible; `n` is the version before):
//!
//! | from | to | by | condition beside version `n` |
//! |---|---|---|---|
//! | (missing) | `Building` 1 | split of the parent | the object is missing |
//! | (missing) | `Open` 1 | creation of a table | the object is missing |
//! | `Open` | `Splitting` n+1 | [`GroupHeader::split`] | – |
//! | `Splitting` | `Open`, shorter, n+1 | [`GroupHeader::cut`] | all rows copied, root row of the new group put |
//! | `Building` 1 | `Open` 2 | [`GroupHeader::opened`] | the parent was cut |
//! | `Open` | `Open`, same range, n+1 | [`GroupHeader::bumped`] | weight corrected, once |
//! | `Open` | `Dropping` n+1 | [`GroupHeader::freeze`] | no rows; the root is `Dropping` |
//! | `Dropping` | `Open` n+1 | [`GroupHeader::thawed`] | the root left that attempt, undropped |
//!
//! A `Splitting` group never goes back: a split that was begun is finished, by whoever meets it. So "the parent's
//! version has passed the split's" means exactly "the parent was cut". Source: ADR 0002.

use std::fmt;

use bytes::Bytes;
use holdfast_types::ObjectName;
use holdfast_wire::{Blob, ObjectOp};
use minicbor::{Decode, Encode};

use crate::error::KvError;
use crate::key::Affinity;

/// Attribute of the record.
pub(crate) const HEADER_ATTR: &[u8] = b"kv.header";
/// Attribute of the record's version, little-endian `u64`.
pub(crate) const VERSION_ATTR: &[u8] = b"kv.version";
/// Format of both records that this code writes, and the newest that it reads.
const FORMAT: u16 = 1;
/// The longest table id, in bytes: object names stay far below their limit.
pub const TABLE_ID_BYTES_MAX: usize = 128;

/// The name of a table: 1 to [`TABLE_ID_BYTES_MAX`] bytes. **Never reused**: a table that takes the name of a dropped
/// one could be reached by requests meant for that; draw ids at random, or number them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(Box<[u8]>);

impl TableId {
    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`KvError::InvalidTableId`] when it is empty or too long.
    pub fn new(id: impl Into<Vec<u8>>) -> Result<TableId, KvError> {
        let id: Vec<u8> = id.into();
        if id.is_empty() || id.len() > TABLE_ID_BYTES_MAX {
            return Err(KvError::InvalidTableId { length: id.len() });
        }
        Ok(TableId(id.into_boxed_slice()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The table's root object.
    pub(crate) fn root_object(&self) -> ObjectName {
        self.object(b"root")
    }

    /// The object of one of the table's groups.
    pub(crate) fn group_object(&self, group: GroupId) -> ObjectName {
        self.object(format!("g/{group}").as_bytes())
    }

    fn object(&self, suffix: &[u8]) -> ObjectName {
        let mut name = b"kv/".to_vec();
        name.extend_from_slice(&self.0);
        name.push(b'/');
        name.extend_from_slice(suffix);
        ObjectName::new(name).expect("a table id of at most 128 bytes leaves room for the fixed parts")
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableId({self})")
    }
}

/// The name of a group, drawn at random and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct GroupId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({self})")
    }
}

/// What a group is doing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum GroupState {
    /// Serving.
    #[n(0)]
    Open,
    /// Frozen while its rows from `mid` on are copied to `new`. Reads are right until it is cut.
    #[n(1)]
    Splitting {
        #[cbor(n(0), with = "minicbor::bytes")]
        mid: Vec<u8>,
        #[n(1)]
        new: GroupId,
    },
    /// Being filled by the split of `parent`, whose version during the split is `parent_version`.
    #[n(2)]
    Building {
        #[n(0)]
        parent: GroupId,
        #[n(1)]
        parent_version: u64,
    },
    /// Frozen, and empty, for the attempt to drop the table that made the root's version `root_version`.
    #[n(3)]
    Dropping {
        #[n(0)]
        root_version: u64,
    },
}

/// The record of a group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct GroupHeader {
    #[n(0)]
    format: u16,
    #[n(1)]
    pub version: u64,
    /// First key, in every space.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub start: Vec<u8>,
    /// First key after the group; `None`: it is the last.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub end: Option<Vec<u8>>,
    #[n(4)]
    pub state: GroupState,
}

impl GroupHeader {
    /// The only group of a new table.
    pub fn first() -> GroupHeader {
        GroupHeader { format: FORMAT, version: 1, start: Vec::new(), end: None, state: GroupState::Open }
    }

    /// Whether `key` lies in the group's range.
    pub fn covers(&self, key: &[u8]) -> bool {
        *key >= *self.start && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    fn next(&self, state: GroupState) -> GroupHeader {
        GroupHeader { version: self.version + 1, state, ..self.clone() }
    }

    /// Open, with the same range and a new version.
    pub fn bumped(&self) -> Option<GroupHeader> {
        matches!(self.state, GroupState::Open).then(|| self.next(GroupState::Open))
    }

    /// Frozen for a split at `mid`, which lies strictly inside the range.
    pub fn split(&self, mid: &[u8], new: GroupId) -> Option<GroupHeader> {
        (matches!(self.state, GroupState::Open) && self.covers(mid) && *mid > *self.start)
            .then(|| self.next(GroupState::Splitting { mid: mid.to_vec(), new }))
    }

    /// The group that the split of this one fills.
    pub fn child(&self, parent: GroupId) -> Option<GroupHeader> {
        let GroupState::Splitting { mid, .. } = &self.state else { return None };
        Some(GroupHeader {
            format: FORMAT,
            version: 1,
            start: mid.clone(),
            end: self.end.clone(),
            state: GroupState::Building { parent, parent_version: self.version },
        })
    }

    /// Open, and ending where the split cuts it.
    pub fn cut(&self) -> Option<GroupHeader> {
        let GroupState::Splitting { mid, .. } = &self.state else { return None };
        Some(GroupHeader { end: Some(mid.clone()), ..self.next(GroupState::Open) })
    }

    /// The filled group, open.
    pub fn opened(&self) -> Option<GroupHeader> {
        matches!(self.state, GroupState::Building { .. }).then(|| self.next(GroupState::Open))
    }

    /// Frozen for a drop.
    pub fn freeze(&self, root_version: u64) -> Option<GroupHeader> {
        matches!(self.state, GroupState::Open).then(|| self.next(GroupState::Dropping { root_version }))
    }

    /// Open again after a drop was given up.
    pub fn thawed(&self) -> Option<GroupHeader> {
        matches!(self.state, GroupState::Dropping { .. }).then(|| self.next(GroupState::Open))
    }
}

/// What a table is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum RootState {
    /// In use.
    #[n(0)]
    Open,
    /// Somebody tries to drop it: no group may be added.
    #[n(1)]
    Dropping,
    /// Dropped, for ever.
    #[n(2)]
    Dropped,
}

/// The record of a table's root object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct RootHeader {
    #[n(0)]
    format: u16,
    #[n(1)]
    pub version: u64,
    #[n(2)]
    pub affinity: Affinity,
    #[n(3)]
    pub state: RootState,
}

impl RootHeader {
    /// Of a new table.
    pub fn first(affinity: Affinity) -> RootHeader {
        RootHeader { format: FORMAT, version: 1, affinity, state: RootState::Open }
    }

    /// `Open` → `Dropping` → `Dropped` or `Open`; nothing else.
    pub fn with_state(&self, state: RootState) -> Option<RootHeader> {
        matches!(
            (self.state, state),
            (RootState::Open, RootState::Dropping) | (RootState::Dropping, RootState::Dropped | RootState::Open)
        )
        .then_some(RootHeader { version: self.version + 1, state, ..*self })
    }
}

/// A row of a root object: the group that starts at the row's key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct RootRow {
    #[n(0)]
    pub group: GroupId,
}

/// Encodes a record or row.
pub(crate) fn encoded<T: Encode<()>>(value: &T) -> Bytes {
    Bytes::from(minicbor::to_vec(value).expect("encoding to memory cannot fail"))
}

/// A record with a version, kept in the two attributes.
pub(crate) trait Record: Encode<()> + for<'b> Decode<'b, ()> {
    fn version(&self) -> u64;

    /// The ops that set it.
    fn set(&self) -> [ObjectOp; 2] {
        [
            ObjectOp::SetAttr { name: HEADER_ATTR.to_vec(), value: Blob(encoded(self)) },
            ObjectOp::SetAttr { name: VERSION_ATTR.to_vec(), value: version_blob(self.version()) },
        ]
    }

    /// [`Record::set`] for [`Shared::change_freeing`](crate::shell::Shared::change_freeing): what is to free space must
    /// delete something.
    fn replace(&self) -> [ObjectOp; 3] {
        let [header, version] = self.set();
        [ObjectOp::RemoveAttr { name: HEADER_ATTR.to_vec() }, header, version]
    }

    /// Reads it from its two attributes.
    fn parse(object: &ObjectName, header: &[u8], version: &[u8]) -> Result<Self, KvError> {
        let corrupt = |reason| KvError::Corrupt { object: object.clone(), reason };
        // The format is read first, on its own: of a newer one nothing else may be understood.
        let format = minicbor::decode::<FormatOnly>(header).map_err(|_| corrupt("the record is not CBOR"))?.format;
        if format != FORMAT {
            return Err(KvError::UnknownFormat { object: object.clone(), format });
        }
        let record = minicbor::decode::<Self>(header).map_err(|_| corrupt("the record does not decode"))?;
        if version != record.version().to_le_bytes() {
            return Err(corrupt("the record's version is not the one beside it"));
        }
        Ok(record)
    }
}

#[derive(Decode)]
#[cbor(map)]
struct FormatOnly {
    #[n(0)]
    format: u16,
}

impl Record for GroupHeader {
    fn version(&self) -> u64 {
        self.version
    }
}

impl Record for RootHeader {
    fn version(&self) -> u64 {
        self.version
    }
}

fn version_blob(version: u64) -> Blob {
    Blob(Bytes::copy_from_slice(&version.to_le_bytes()))
}

/// The op that opens every vector on an existing object: fails unless its record is the one of `version`.
pub(crate) fn assert_version(version: u64) -> ObjectOp {
    ObjectOp::AssertAttr { name: VERSION_ATTR.to_vec(), expected: Some(version_blob(version)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(open: &GroupHeader) -> Vec<GroupHeader> {
        let splitting = open.split(b"m", GroupId([7; 16])).expect("inside");
        vec![
            open.clone(),
            splitting.child(GroupId([1; 16])).expect("splitting"),
            open.freeze(9).expect("open"),
            splitting,
        ]
    }

    #[test]
    fn only_the_transitions_of_the_table_exist() {
        let name = |header: &Option<GroupHeader>| match header.as_ref().map(|header| &header.state) {
            None => "-",
            Some(GroupState::Open) => "Open",
            Some(GroupState::Splitting { .. }) => "Splitting",
            Some(GroupState::Building { .. }) => "Building",
            Some(GroupState::Dropping { .. }) => "Dropping",
        };
        let mut table = String::new();
        for header in states(&GroupHeader::first()) {
            let next = [
                header.bumped(),
                header.split(b"k", GroupId([8; 16])),
                header.cut(),
                header.opened(),
                header.freeze(3),
                header.thawed(),
            ];
            for next in next.iter().flatten() {
                assert_eq!(next.version, header.version + 1);
            }
            let names: Vec<_> = next.iter().map(name).collect();
            table += &format!("{}: {}\n", name(&Some(header)), names.join(" "));
        }
        // from: bumped split cut opened freeze thawed
        assert_eq!(
            table,
            "Open: Open Splitting - - Dropping -\n\
             Building: - - - Open - -\n\
             Dropping: - - - - - Open\n\
             Splitting: - - Open - - -\n"
        );
    }

    #[test]
    fn a_split_cuts_strictly_inside_and_its_halves_meet() {
        let whole = GroupHeader::first();
        assert_eq!(whole.split(b"", GroupId([1; 16])), None);
        let splitting = whole.split(b"m", GroupId([1; 16])).expect("inside");
        let (left, right) =
            (splitting.cut().expect("splitting"), splitting.child(GroupId([0; 16])).expect("splitting"));
        assert_eq!((left.end.as_deref(), &*right.start, &right.end), (Some(&b"m"[..]), &b"m"[..], &None));
        assert!(left.covers(b"lzz") && !left.covers(b"m") && right.covers(b"m"));
        assert_eq!(left.split(b"m", GroupId([2; 16])), None);
    }

    #[test]
    fn records_read_back_and_others_are_refused() {
        let object = ObjectName::new("o").expect("valid");
        for header in states(&GroupHeader::first()) {
            let version = header.version.to_le_bytes();
            assert_eq!(GroupHeader::parse(&object, &encoded(&header), &version).expect("just written"), header);
            assert!(GroupHeader::parse(&object, &encoded(&header), b"other").is_err());
        }
        let newer = GroupHeader { format: 2, ..GroupHeader::first() };
        assert!(matches!(
            GroupHeader::parse(&object, &encoded(&newer), &1u64.to_le_bytes()),
            Err(KvError::UnknownFormat { format: 2, .. })
        ));
        assert!(GroupHeader::parse(&object, b"\xff", b"").is_err());
    }

    /// The bytes of format 1: a change of encoding must come with a new format number.
    #[test]
    fn format_1_is_these_bytes() {
        let splitting = GroupHeader::first().split(b"m", GroupId([7; 16])).expect("inside");
        let hex: String = encoded(&splitting).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "a400010102024004820182416d5007070707070707070707070707070707");
    }

    #[test]
    fn a_dropped_table_stays_dropped() {
        let open = RootHeader::first(Affinity::S3);
        let dropping = open.with_state(RootState::Dropping).expect("allowed");
        let dropped = dropping.with_state(RootState::Dropped).expect("allowed");
        assert_eq!(open.with_state(RootState::Dropped), None);
        assert_eq!(dropping.with_state(RootState::Open).map(|root| root.version), Some(3));
        for state in [RootState::Open, RootState::Dropping, RootState::Dropped] {
            assert_eq!(dropped.with_state(state), None);
        }
    }
}
