//! What OSDs tell the monitors of themselves and of their placement groups.

use holdfast_types::{Epoch, Incarnation, LogVersion, OsdId, PgId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::scrub::PgScrub;

/// What a placement group is doing. Several can hold at once; `clean` only alone with `active`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgState {
    /// Serves reads and writes.
    #[n(0)]
    pub active: bool,
    /// Every object has been counted on every OSD of the up set, and acting is up.
    #[n(1)]
    pub clean: bool,
    /// Agreeing on the log.
    #[n(2)]
    pub peering: bool,
    /// Fewer copies than the pool asks for, of some objects at least.
    #[n(3)]
    pub degraded: bool,
    /// Fewer live members than the pool asks for.
    #[n(4)]
    pub undersized: bool,
    /// Copying objects by the log.
    #[n(5)]
    pub recovering: bool,
    /// Copying by scan.
    #[n(6)]
    pub backfilling: bool,
    /// Cannot peer until an OSD named in the row's `blocked_by` comes back.
    #[n(7)]
    pub down: bool,
    /// Too few complete copies to serve.
    #[n(8)]
    pub incomplete: bool,
    /// Up and acting sets differ.
    #[n(9)]
    pub remapped: bool,
    /// Copies of some objects differ, and it could not be told which are right, or a person is to decide.
    #[n(10)]
    #[cbor(default)]
    pub inconsistent: bool,
}

/// What a primary says of a placement group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PgReport {
    /// Which.
    #[n(0)]
    pub pg: PgId,
    /// The primary's map when it reported.
    #[n(1)]
    pub epoch: Epoch,
    /// First epoch of the interval it speaks of.
    #[n(2)]
    pub interval_start: Epoch,
    /// What it is doing.
    #[n(3)]
    pub state: PgState,
    /// Up set.
    #[n(4)]
    pub up: Vec<OsdId>,
    /// Acting set.
    #[n(5)]
    pub acting: Vec<OsdId>,
    /// Objects in the placement group.
    #[n(6)]
    pub objects: u64,
    /// Their bytes, once.
    #[n(7)]
    pub bytes: u64,
    /// Copies of objects that should exist and do not.
    #[n(8)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(9)]
    pub objects_unfound: u64,
    /// Head of the log.
    #[n(10)]
    pub last_update: LogVersion,
    /// Maps before this one are no longer needed for this placement group.
    #[n(11)]
    pub last_epoch_clean: Epoch,
    /// OSDs that must come back, or answer, before it can go on; of one that serves, those that may have what is unfound.
    #[n(12)]
    pub blocked_by: Vec<OsdId>,
    /// Its scrubs; `None` before the primary was told the time.
    #[n(13)]
    pub scrub: Option<PgScrub>,
    /// Names of some of the objects of which no live OSD has the newest version, escaped. While it is `down`: the one for
    /// the sake of which it waits for those who block it.
    #[n(14)]
    #[cbor(default)]
    pub unfound: Vec<String>,
}

/// Space of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct StoreUsage {
    /// Capacity in bytes.
    #[n(0)]
    pub total_bytes: u64,
    /// In use, in terms of the capacity: all of it when writes are refused for want of room. Garbage that is not yet
    /// cleaned does not count.
    #[n(1)]
    pub used_bytes: u64,
    /// Payload that is referred to.
    #[n(2)]
    pub live_bytes: u64,
}

/// What an OSD tells the monitors now and then, and at once when a state changed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct OsdReport {
    /// Who.
    #[n(0)]
    pub osd: OsdId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its map.
    #[n(2)]
    pub epoch: Epoch,
    /// Its space.
    #[n(3)]
    pub usage: StoreUsage,
    /// The placement groups of which it is primary and whose report changed (all of them at times).
    #[n(4)]
    pub pgs: Vec<PgReport>,
    /// Blocks whose checksum did not match since boot.
    #[n(5)]
    pub checksum_errors: u64,
    /// Of these, repaired from a peer.
    #[n(6)]
    pub repaired: u64,
    /// Copies of placement groups that could not be used any more and were given up since boot: they are filled anew.
    #[n(7)]
    pub copies_lost: Option<u64>,
}

impl PgState {
    /// The state as Ceph's users know it: words joined by `+`, such as `active+undersized+degraded`.
    #[must_use]
    pub fn describe(self) -> String {
        let words = [
            (self.active, "active"),
            (self.peering, "peering"),
            (self.down, "down"),
            (self.incomplete, "incomplete"),
            (self.clean, "clean"),
            (self.undersized, "undersized"),
            (self.degraded, "degraded"),
            (self.remapped, "remapped"),
            (self.recovering, "recovering"),
            (self.backfilling, "backfilling"),
            (self.inconsistent, "inconsistent"),
        ];
        let set: Vec<&str> = words.into_iter().filter_map(|(holds, word)| holds.then_some(word)).collect();
        if set.is_empty() { "unknown".to_owned() } else { set.join("+") }
    }
}
