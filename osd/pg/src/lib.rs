//! The placement-group machine of replicated pools: peering, the log, replication, recovery and backfill.
//!
//! A pure, synchronous core (design.md §2): [`Pg::step`] is told one [`Input`] and says in [`Output`]s what is to be
//! done; it reads no clock, does no IO but through [`LocalObjects`], and the same inputs give the same outputs.
//! The protocol is fixed in `docs/invariants.md` (what must hold, by id) and in the module documents here.

mod api;
mod key;

pub use api::{
    Input, Limits, LoadError, LocalObjects, OBJECT_BYTES_MAX, Outbox, Output, ReadError, ReplyTo, RowsPage, Slot,
    StoreOp, TxnId, VERSION_ATTR, WRITE_RESULT_BYTES_MAX,
};
pub use key::ObjectKey;
