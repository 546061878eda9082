//! The simulator: a whole cluster in one thread, from one seed.
//!
//! Production code: placement groups (`holdfast-pg`), the store engine, the translation between the two and the taking up of
//! copies, recovery slots and heartbeat tables (`holdfast-osd`), the monitors' state machine and their leader's judgement
//! (`holdfast-mon-state`), map increments and CRUSH, the wire codec; in front of them the client's core and tables of rows
//! (`holdfast-client`, `holdfast-kvgroup`), and S3 gateways from the request down (`holdfast-gateway-s3`).
//! Simulated: network, clock, device and index under the engine, the monitors' log (one leader that never forks), and what in
//! a daemon is threads and sockets. One heap of events, one random number generator, no wall time, no hash maps: the same
//! seed gives the same run, and [`Report::hash`] proves it. A run has three phases: faults under load, healing, settling;
//! then every checker looks at what the clients saw and at what the disks hold.

mod campaign;
mod check;
mod checker;
mod client;
mod config;
mod control;
mod copies;
mod cuts;
mod decisions;
mod disk;
mod ending;
mod faults;
mod fence;
mod front;
mod health;
mod holdings;
#[cfg(feature = "mutants")]
mod hunt;
mod journal;
mod leases;
mod lies;
mod mask;
mod monitor;
mod node;
mod overwhelmed;
mod rifts;
#[cfg(feature = "mutants")]
mod rule;
mod scrub;
mod shell;
mod shrink;
mod strikes;
mod told;
mod watch;
mod world;
mod worlds;

pub use campaign::{SEEDS_ENOUGH, Summary, campaign, campaign_of_all_faults};
pub use checker::Checker;
pub use config::{Config, Faults};
pub use faults::{FaultCounts, FaultKind};
pub use front::{FrontSettings, FrontWork};
#[cfg(feature = "mutants")]
pub use hunt::{Budget, Catch, Hunt, Row, Without, break_rule, hunt};
pub use mask::{Chance, Mask, MaskError};
#[cfg(feature = "mutants")]
pub use rule::Rule;
pub use shrink::{Failure, Shrunk, Trial, shrink};
pub use strikes::{Attempt, Strike, attempt};
pub use world::{Report, Violation, run};
