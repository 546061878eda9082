//! Every message between daemons and clients, its encoding, its versions and the framing.
//!
//! A message is a CBOR map with integer keys (RFC 8949; unknown keys are skipped, new fields are optional) beside a
//! **payload** of plain bytes that is never copied or re-encoded: a [`Blob`] inside a message is encoded as a
//! reference into the payload. This crate opens no socket and keeps no session. Formats: `docs/formats/wire.md`,
//! `docs/formats/frame.md`.

mod client;
mod codec;
pub mod frame;
mod kind;
pub mod mon;
mod op;
mod payload;
pub mod peer;
pub mod pools;
pub mod scrub;

pub use client::{Barrier, BarrierReached, ClientOutcome, ClientReply, ClientRequest, RefusedReason};
pub use codec::{Decoded, Encoded, WireError, decode, encode};
pub use kind::Kind;
pub use op::{Effect, ObjectOp, ObjectStat, OpError, OpResult, Row, RowCondition};
pub use payload::{Blob, Payload, PayloadContext};
