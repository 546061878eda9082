//! From committed commands to the next maps; from reports to what the leader should do and what `status` says.
//!
//! Two halves, both pure (no IO, no clock, no async):
//! - [`State`] is replicated: [`State::apply`] is a deterministic function of the state and a committed [`Command`].
//!   One command (a batch of changes) makes at most one new map epoch, with its increment. It does not know that it is
//!   replicated.
//! - [`leader::Leader`] is what only the present leader keeps in memory: failure reports, statistics of placement
//!   groups and devices, leases of services. It decides what to propose, with time passed in; a new leader starts
//!   empty, and what it has not heard counts as unknown, never as clean.
//!
//! Invariants: every map's checksum travels in its increment; a refused change leaves no trace; an answered request
//! that comes again is answered alike and not applied again.

mod answered;
mod command;
mod config;
mod hierarchy;
mod keys;
pub mod leader;
mod maps;
mod notes;
mod osds;
mod pools;
#[cfg(not(feature = "mutants"))]
mod sabotage;
#[cfg(feature = "mutants")]
pub mod sabotage;
mod scrubs;
mod state;
mod words;

pub use command::{Change, Command, MapMark, Op, Outcome};
pub use hierarchy::crush_weight;
pub use maps::PastMap;
pub use notes::{DownReason, HoldOff, OsdNote, OutReason};
pub use state::{Diverged, RestoreError, STATE_BYTES_MAX, State};
