//! End-to-end tests of the built binary: real processes, real kills, real sockets.
//!
//! `cargo xtask end-to-end` runs them one at a time; `HOLDFAST_DOSE=full` runs the long forms.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod chaos;
mod fences;
mod full;
mod growth;
mod listings;
mod memory;
mod outages;
mod restart;
