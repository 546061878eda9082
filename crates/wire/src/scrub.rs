//! Scrub: what OSDs say to each other while they compare their copies of a placement group, what is kept of the outcome,
//! and what the monitors are told of it.
//!
//! The primary asks, the other acting members answer. Each question has a number, greater than those before it within one
//! activation; a repeated question has the same number, and an answer repeats the number of its question. So a late or
//! doubled message does nothing twice.

pub use holdfast_map::ScrubKind;
use holdfast_types::{Epoch, LogVersion, ObjectName, OsdId, PgId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::peer::{BackfillCursor, MissingItem};

/// One question or answer of a scrub.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ScrubMessage {
    /// Which question.
    #[n(0)]
    pub number: u64,
    /// What is said.
    #[n(1)]
    pub body: ScrubBody,
}

/// [`ScrubMessage::body`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ScrubBody {
    /// Primary → member: keep a scrub slot for this placement group. Repeated as long as it is needed.
    #[n(0)]
    Reserve,
    /// Member → primary: the slot is held.
    #[n(1)]
    Reserved,
    /// Primary → member: the slot is needed no more.
    #[n(2)]
    Release,
    /// Primary → member: look at your objects in this range. Answered by [`ScrubBody::Map`].
    #[n(3)]
    Scan(#[n(0)] ScrubRange),
    /// What is there.
    #[n(4)]
    Map(#[n(0)] ScrubMap),
    /// Primary → member: these copies of yours are bad. Answered by [`ScrubBody::Marked`].
    #[n(5)]
    Mark(#[n(0)] ScrubMarks),
    /// They count as missing, durably.
    #[n(6)]
    Marked,
    /// Primary → member: what is known of scrubs, to keep.
    #[n(7)]
    Note(#[n(0)] ScrubRecord),
}

/// Objects to look at, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ScrubRange {
    /// Keys after this one; empty: from the first.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub after: Vec<u8>,
    /// Up to and with this one.
    #[n(1)]
    pub upto: BackfillCursor,
    /// Whether all bytes are to be read.
    #[n(2)]
    pub deep: bool,
    /// Whether writes wait for the answer: no pauses then.
    #[n(3)]
    pub urgent: bool,
}

/// The objects of one member in a range.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ScrubMap {
    /// It is complete up to here; at most what was asked for.
    #[n(0)]
    pub upto: BackfillCursor,
    /// In key order.
    #[n(1)]
    pub items: Vec<ScrubItem>,
    /// Set when the member cannot list its objects.
    #[n(2)]
    pub failed: Option<bool>,
}

/// One object of a [`ScrubMap`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ScrubItem {
    /// The object's key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub key: Vec<u8>,
    /// What is there of it.
    #[n(1)]
    pub copy: ScrubCopy,
}

/// What is there of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ScrubCopy {
    /// All that was read matched its checksums.
    #[n(0)]
    Whole(#[n(0)] CopySummary),
    /// Something of it cannot be read.
    #[n(1)]
    Unreadable {
        /// Its version, if that can be read.
        #[n(0)]
        version: Option<LogVersion>,
    },
    /// A copy without a version: a transfer that never ended.
    #[n(2)]
    HalfWritten,
}

/// What is compared of a copy. Copies are the same when this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct CopySummary {
    /// Its version.
    #[n(0)]
    pub version: LogVersion,
    /// Bytes.
    #[n(1)]
    pub size: u64,
    /// CRC-64/NVME of all attributes and rows.
    #[n(2)]
    pub meta: u64,
    /// CRC-64/NVME of all bytes; `None` when they were not read.
    #[n(3)]
    pub data: Option<u64>,
}

/// What a member must not trust any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ScrubMarks {
    /// Copies that count as missing from now on; they are sent anew.
    #[n(0)]
    pub missing: Vec<MissingItem>,
    /// Objects that do not exist and are to be removed.
    #[n(1)]
    pub remove: Vec<ObjectName>,
}

/// How a copy is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum CopyFault {
    /// It is not there.
    #[n(0)]
    Missing,
    /// It is there and should not be.
    #[n(1)]
    Extra,
    /// It is another version.
    #[n(2)]
    Version,
    /// It has another size.
    #[n(3)]
    Size,
    /// Its attributes or rows differ.
    #[n(4)]
    Meta,
    /// Its bytes differ.
    #[n(5)]
    Data,
    /// It cannot be read, or does not match its own checksums.
    #[n(6)]
    Unreadable,
    /// It has no version.
    #[n(7)]
    HalfWritten,
}

impl CopyFault {
    /// A word or two for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            CopyFault::Missing => "is missing",
            CopyFault::Extra => "should not exist",
            CopyFault::Version => "has another version",
            CopyFault::Size => "has another size",
            CopyFault::Meta => "has other attributes or rows",
            CopyFault::Data => "has other bytes",
            CopyFault::Unreadable => "cannot be read",
            CopyFault::HalfWritten => "is half written",
        }
    }
}

/// A copy that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BadCopy {
    /// Where.
    #[n(0)]
    pub osd: OsdId,
    /// How.
    #[n(1)]
    pub fault: CopyFault,
}

/// An object whose copies differ, and which was not repaired.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Inconsistency {
    /// The object.
    #[n(0)]
    pub object: ObjectName,
    /// Whether all bytes had to be read to see it.
    #[n(1)]
    pub deep: bool,
    /// Which copies are wrong, or may be.
    #[n(2)]
    pub copies: Vec<BadCopy>,
}

/// What a placement group knows of its scrubs; each member keeps it. Times are Unix milliseconds, zero: never.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ScrubRecord {
    /// When the placement group was first told the time.
    #[n(0)]
    pub born_ms: u64,
    /// When the last scrub of either kind ended.
    #[n(1)]
    pub scrubbed_ms: u64,
    /// When the last deep scrub ended.
    #[n(2)]
    pub deep_scrubbed_ms: u64,
    /// Objects that the last scrub found whole on all members, those that it had repaired included.
    #[n(3)]
    pub verified: u64,
    /// Copies that scrubs have had repaired, ever.
    #[n(4)]
    pub repaired: u64,
    /// Objects that are inconsistent, in key order; bounded.
    #[n(5)]
    pub inconsistent: Vec<Inconsistency>,
    /// How many more there are.
    #[n(6)]
    pub inconsistent_more: u64,
    /// The newest wish of the map that was fulfilled.
    #[n(7)]
    pub served: Epoch,
}

impl ScrubRecord {
    /// Objects that are inconsistent.
    #[must_use]
    pub fn inconsistent_count(&self) -> u64 {
        self.inconsistent_more.saturating_add(self.inconsistent.len() as u64)
    }
}

/// What the monitors are told of a placement group's scrubs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgScrub {
    /// When the last scrub of either kind ended, in Unix milliseconds; zero: never.
    #[n(0)]
    pub scrubbed_ms: u64,
    /// When the last deep scrub ended.
    #[n(1)]
    pub deep_scrubbed_ms: u64,
    /// Seconds since then, or since the placement group was first told the time.
    #[n(2)]
    pub scrub_age_s: u64,
    /// The same for deep scrubs.
    #[n(3)]
    pub deep_scrub_age_s: u64,
    /// Objects that the last scrub found whole on all members.
    #[n(4)]
    pub objects_verified: u64,
    /// Objects whose copies differ, and which were not repaired.
    #[n(5)]
    pub objects_inconsistent: u64,
    /// Copies that scrubs have had repaired, ever.
    #[n(6)]
    pub copies_repaired: u64,
    /// What is going on.
    #[n(7)]
    pub running: Option<ScrubKind>,
    /// The newest wish of the map that was fulfilled.
    #[n(8)]
    pub served: Epoch,
    /// Some of the inconsistent objects, and what is wrong with their copies; for people.
    #[n(9)]
    pub examples: Vec<String>,
}

/// Scrubs of all placement groups together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct ScrubStatus {
    /// Objects that the last scrubs found whole on all members.
    #[n(0)]
    pub objects_verified: u64,
    /// Objects whose copies differ, and which were not repaired.
    #[n(1)]
    pub objects_inconsistent: u64,
    /// Copies that scrubs have had repaired.
    #[n(2)]
    pub copies_repaired: u64,
    /// Placement groups that are being scrubbed.
    #[n(3)]
    pub pgs_scrubbing: u32,
    /// The oldest last scrub, in seconds ago.
    #[n(4)]
    pub oldest_scrub_age_s: u64,
    /// The oldest last deep scrub, in seconds ago.
    #[n(5)]
    pub oldest_deep_scrub_age_s: u64,
}

/// What a person wants to have scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ScrubTarget {
    /// One placement group.
    #[n(0)]
    Pg(#[n(0)] PgId),
    /// All placement groups that have a copy on this OSD.
    #[n(1)]
    Osd(#[n(0)] OsdId),
}
