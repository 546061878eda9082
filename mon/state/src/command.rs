//! What the log of the monitors holds.

use std::collections::BTreeMap;

use holdfast_map::{ClusterFlags, SpaceLevel, UpmapItem};
use holdfast_types::{Epoch, Incarnation, MonId, OsdId, PgId, PoolId, RequestId};
use holdfast_wire::mon::{MonCommand, MonReply};
use minicbor::{Decode, Encode};

/// A batch of changes that the leader gathered for one log entry: together they make at most one map.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Command {
    /// The leader's wall clock when it proposed, in Unix milliseconds: the only time that a state machine sees.
    #[n(0)]
    pub at_unix_ms: u64,
    /// The changes, in order. Each is all or nothing by itself.
    #[n(1)]
    pub ops: Vec<Op>,
    /// The newest map at the proposer. Who has another map of that epoch must not apply anything more.
    #[n(2)]
    pub seen: Option<MapMark>,
}

/// Which map, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MapMark {
    /// Which.
    #[n(0)]
    pub epoch: Epoch,
    /// [`holdfast_map::ClusterMap::checksum`].
    #[n(1)]
    pub checksum: u32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Op {
    /// The request that asked for it, when a resend must not apply it twice.
    #[n(0)]
    pub id: Option<RequestId>,
    /// The change.
    #[n(1)]
    pub change: Change,
}

/// What can change.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Change {
    /// As asked from outside. Questions and reports are refused.
    #[n(0)]
    Request(#[n(0)] MonCommand),
    /// The leader judged that an OSD does not serve.
    #[n(1)]
    MarkDown {
        /// Which.
        #[n(0)]
        osd: OsdId,
        /// Which run; another run is left alone.
        #[n(1)]
        incarnation: Incarnation,
        /// The process is known to have ended (refused connection, seen by the monitor too).
        #[n(2)]
        dead: bool,
    },
    /// It has been down for long: give its data to others.
    #[n(2)]
    MarkOut(#[n(0)] OsdId),
    /// Space has run low, or is there again.
    #[n(3)]
    Flags(#[n(0)] ClusterFlags),
    /// A service let its lease run out.
    #[n(4)]
    ServiceGone {
        /// Which.
        #[n(0)]
        name: String,
        /// Which run; another run is left alone.
        #[n(1)]
        incarnation: Incarnation,
    },
    /// Where the monitors listen.
    #[n(5)]
    Mons(#[n(0)] BTreeMap<MonId, String>),
    /// Nobody needs the maps before this epoch any more.
    #[n(6)]
    TrimMaps(#[n(0)] Epoch),
    /// How full the OSDs are that are nearly full or more; the others are neither.
    #[n(7)]
    Space(#[n(0)] BTreeMap<OsdId, SpaceLevel>),
    /// The balancer exchanges members; an empty list takes the exchanges of a placement group back.
    #[n(8)]
    Upmap(#[n(0)] BTreeMap<PgId, Vec<UpmapItem>>),
    /// A pool gets more placement groups; they stay where they were split off.
    #[n(9)]
    Split {
        /// Which.
        #[n(0)]
        pool: PoolId,
        /// How many it has then.
        #[n(1)]
        pg_num: u32,
        /// The newest map when the leader saw that every OSD splits its copies. If one has booted since, nothing is
        /// split. Leaders of earlier builds do not say it, and what they decided is done.
        #[n(2)]
        judged_at: Option<Epoch>,
    },
    /// More of the placement groups of a pool that was split are placed by themselves.
    #[n(10)]
    Spread {
        /// Which.
        #[n(0)]
        pool: PoolId,
        /// By how many it is placed then.
        #[n(1)]
        placed: u32,
    },
    /// These scrubs are done, up to the wishes of these epochs.
    #[n(20)]
    ScrubsServed(#[n(0)] Vec<(PgId, Epoch)>),
}

/// What came of a [`Command`].
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Outcome {
    /// The newest map.
    #[n(0)]
    pub epoch: Epoch,
    /// One answer for each op, in order.
    #[n(1)]
    pub replies: Vec<MonReply>,
}

impl Command {
    /// The bytes that the log keeps: a version byte, then CBOR.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal(self)
    }

    /// Reads what [`Command::encode`] wrote.
    ///
    /// # Errors
    /// What the decoder says.
    pub fn decode(bytes: &[u8]) -> Result<Command, minicbor::decode::Error> {
        unseal(bytes)
    }
}

impl Outcome {
    /// The bytes that travel from the state machine back to the asker.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal(self)
    }

    /// Reads what [`Outcome::encode`] wrote.
    ///
    /// # Errors
    /// What the decoder says.
    pub fn decode(bytes: &[u8]) -> Result<Outcome, minicbor::decode::Error> {
        unseal(bytes)
    }
}

/// The version of all encodings of this crate.
const VERSION: u8 = 1;

pub(crate) fn seal<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    minicbor::encode(value, &mut out).expect("encoding to memory cannot fail");
    out
}

pub(crate) fn unseal<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, minicbor::decode::Error> {
    match bytes.split_first() {
        Some((&VERSION, body)) => minicbor::decode(body),
        Some((version, _)) => {
            Err(minicbor::decode::Error::message(format!("version {version}, this reader is {VERSION}")))
        }
        None => Err(minicbor::decode::Error::end_of_input()),
    }
}
