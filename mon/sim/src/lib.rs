//! The production monitors in a simulated world: the Raft library, our log store, state machine, batcher and service, as the
//! daemon runs them ([`holdfast_mon::member`]), on simulated machines.
//!
//! - `runtime`: one thread, a virtual clock, a seeded choice of what runs next; nodes that are killed, paused, skewed.
//! - `disk`: what a kill, a power cut or a failing disk takes. `net`: what happens to messages. `host`: both, and clocks,
//!   behind the monitor's [`holdfast_mon::host::Host`].
//! - `world`: the machines and what is checked while they run. `faults`: what goes wrong. `client` and `check`: who uses
//!   the monitors, and whether what they saw can be.
//! - [`run()`] is one seed, [`campaign()`] many.
//!
//! Each promise that is looked after has a [`Checker`], which has its id in `docs/invariants.md`. With the feature `mutants`,
//! `hunt` proves that each of them is needed.

mod campaign;
mod check;
mod checker;
mod client;
mod disk;
mod faults;
mod host;
#[cfg(feature = "mutants")]
mod hunt;
mod net;
mod run;
mod runtime;
mod world;

pub use campaign::{Summary, campaign};
pub use checker::{Checker, Violation};
#[cfg(feature = "mutants")]
pub use hunt::{Budget, Catch, Hunt, Row, Without, break_rule, hunt};
pub use run::{Config, Report, run};
