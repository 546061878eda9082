//! The simulator: a whole cluster in one thread, from one seed.
//!
//! Placement groups are the production core (`holdfast-pg`); the network, the disks, the clock and the monitors are
//! simulated. One heap of events, one random number generator, no wall time, no hash maps: the same seed gives the same
//! run, and [`Report::hash`] proves it. A run has three phases: faults under load, healing, settling; then every checker of
//! `check` looks at what the clients saw and at what the disks hold.
//!
//! On a violation [`run`] returns it with the seed and the command that replays it.

mod campaign;
mod check;
mod client;
mod config;
mod disk;
mod monitor;
mod node;
mod world;

pub use campaign::{Summary, campaign};
pub use config::{Config, Faults};
pub use world::{FaultCounts, Report, Violation, run};
