//! The two headline tests with real processes: five OSDs and three monitors on hosts of their own, load from many clients,
//! and then the power of all hosts at one moment with everything that was not synced, or one bit in one file of one OSD.
//! Nothing that was acknowledged may be lost or wrong, and everything must come back by itself.
//!
//! `cargo xtask headline` runs both, after the simulator has run its worlds of the same faults; a plain `cargo test` runs a
//! small dose of the first. `HOLDFAST_HEADLINE_ROUNDS` says how often each strikes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod flip;
mod power;

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::fabric::{self, Fabric};
use holdfast_tests::field;
use holdfast_tests::powerfs;
use holdfast_tests::running::on_client;
use holdfast_tests::world::{seed, skip};

const BUCKET: &str = "headline";
/// With nobody's help. It is a bound on harm, not the time that is promised; that is measured by the chaos test.
const CLEAN_LIMIT: Duration = Duration::from_secs(120);
/// Rounds of a small dose.
const ROUNDS_FEW: u64 = 2;

/// How often each strikes; `None`: a small dose.
fn asked() -> Option<u64> {
    std::env::var("HOLDFAST_HEADLINE_ROUNDS").ok()?.parse().ok()
}

/// The network, if this machine can have it and the file systems. A run that was asked for fails without.
fn ground() -> anyhow::Result<Option<Arc<Fabric>>> {
    match fabric::obstacle().or_else(powerfs::obstacle) {
        None => field::fabric().map(Some),
        Some(obstacle) => {
            ensure!(asked().is_none(), "{obstacle}");
            skip(&obstacle).map(|()| None)
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_all_hosts_lose_power_and_what_was_not_synced() -> anyhow::Result<()> {
    let Some(fabric) = ground()? else { return Ok(()) };
    on_client(&fabric, power::run(fabric.clone(), asked().unwrap_or(ROUNDS_FEW), seed()))
}

#[test]
#[ignore = "takes minutes: `cargo xtask headline` runs it; in each run of all tests, those of the OSD (`rot.rs`) spoil copies"]
fn nothing_acknowledged_is_lost_or_wrong_when_a_bit_flips_in_a_file_of_one_osd() -> anyhow::Result<()> {
    let Some(fabric) = ground()? else { return Ok(()) };
    on_client(&fabric, flip::run(fabric.clone(), asked().unwrap_or(ROUNDS_FEW), seed()))
}
