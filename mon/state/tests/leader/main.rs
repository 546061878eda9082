//! The leader's half: judging reports, and what status makes of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod balancing;
mod explaining;
mod judging;
mod limits;
mod removing;
mod world;
