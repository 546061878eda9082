//! The placement-group machine of replicated pools: peering, the log, replication, recovery and backfill.
//!
//! A pure, synchronous core: [`Pg::step`] is told one [`Input`] and says in [`Output`]s what is to be
//! done; it reads no clock, does no IO but through [`LocalObjects`], and the same inputs give the same outputs.
//! What must hold is listed by id in `docs/invariants.md`; the transition tables are in the module documents here, the
//! stored rows in `docs/formats/pg.md`.
//!
//! Read in this order: `api` (what goes in and out), `pg` (what all roles share), `intervals`, `log` and `merge`,
//! `peering` with `standby`, `active` with `clients`, `exec` and `lease`, `follower` with `adopt`, `recovery` with `transfer`,
//! `unnamed` and `slots`, `backfill`, `scrub`, `split`.

mod active;
mod adopt;
mod api;
mod backfill;
mod clients;
mod exec;
mod follower;
mod inspect;
mod intervals;
mod key;
mod lease;
mod log;
pub mod memory;
mod merge;
mod missing;
pub mod mutants;
mod peering;
mod pg;
mod recovery;
mod report;
mod rows;
mod scrub;
mod slots;
mod split;
mod standby;
#[cfg(test)]
mod tests;
mod transfer;
mod unfound;
mod unnamed;

pub use api::{
    Input, Limits, LoadError, LocalObjects, OBJECT_BYTES_MAX, Outbox, Output, ReadError, ReplyTo, RowsPage,
    ScrubLimits, Slot, StoreOp, TxnId, VERSION_ATTR, WRITE_RESULT_BYTES_MAX,
};
pub use inspect::version_held;
pub use key::ObjectKey;
pub use lease::{Granted, LEASE, LEASE_GRANTED};
pub use pg::{EPOCHS_AHEAD_MAX, Pg, answer_without_copy};
