//! Ids, epochs, versions and the monotonic timestamp: the words that every Holdfast crate shares.
//!
//! A type lives here only when at least two crates need it. Nothing here does IO or reads a clock.
//! All encodings are CBOR maps or transparent newtypes (`minicbor`); the formats that embed them are
//! versioned by their own envelopes (see `docs/formats/`).

mod id;
mod object;
mod time;
mod version;

pub use id::{ClientId, ClusterId, DiskUuid, Incarnation, MonId, OsdId, ParseIdError, PgId, PoolId};
pub use object::{InvalidObjectName, OBJECT_NAME_BYTES_MAX, ObjectName};
pub use time::Timestamp;
pub use version::{Epoch, LogVersion, RequestId};
