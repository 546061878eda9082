//! Positions in the three histories: of the cluster map, of a placement group's log, of a client's requests.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{ClientId, Incarnation};

/// The number of a cluster map. Maps are numbered from 1; 0 means "no map yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Epoch(#[n(0)] pub u64);

impl Epoch {
    /// The epoch before the first map.
    pub const ZERO: Epoch = Epoch(0);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// The version of a placement-group log entry: the map epoch of the primary that made it, and a counter that only
/// grows within the placement group. Ordered by epoch, then counter. Shown as `12'345`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(array)]
pub struct LogVersion {
    /// The epoch in which the primary executed the op.
    #[n(0)]
    pub epoch: Epoch,
    /// The number of the op in the placement group's whole life.
    #[n(1)]
    pub counter: u64,
}

impl LogVersion {
    /// Before every entry.
    pub const ZERO: LogVersion = LogVersion { epoch: Epoch(0), counter: 0 };
    /// After every entry.
    pub const MAX: LogVersion = LogVersion { epoch: Epoch(u64::MAX), counter: u64::MAX };
}

impl fmt::Display for LogVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}'{}", self.epoch.0, self.counter)
    }
}

impl Serialize for LogVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Names one client request for ever: a resend carries the same id, and is executed at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(array)]
pub struct RequestId {
    /// Who asks.
    #[n(0)]
    pub client: ClientId,
    /// Which run of that client.
    #[n(1)]
    pub incarnation: Incarnation,
    /// The request's number within the run, from 1.
    #[n(2)]
    pub tid: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.client, self.incarnation, self.tid)
    }
}
