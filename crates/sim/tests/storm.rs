//! Runs with faults.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use holdfast_sim::{Config, FaultCounts, Faults, run};

/// First seed and number of seeds; `SIM_FROM` and `SIM_SEEDS` replace them.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("SIM_FROM").unwrap_or(0);
    from..from + number("SIM_SEEDS").unwrap_or(count)
}

fn run_all(count: u64, config: &Config) -> (FaultCounts, u64) {
    let (mut total, mut operations, mut simulated, mut failed) = (FaultCounts::default(), 0, 0, Vec::new());
    let config = &Config { trace: std::env::var_os("SIM_TRACE").is_some(), ..*config };
    for seed in seeds(count) {
        match std::panic::catch_unwind(|| run(seed, config)) {
            Ok(Ok(report)) => {
                operations += report.operations;
                simulated += report.simulated_ms;
                total.losses += report.faults.losses;
                total.duplicates += report.faults.duplicates;
                total.crashes += report.faults.crashes;
                total.lost_transactions += report.faults.lost_transactions;
                total.power_losses += report.faults.power_losses;
                total.partitions += report.faults.partitions;
                total.remaps += report.faults.remaps;
                total.rots += report.faults.rots;
            }
            Ok(Err(violation)) => failed.push(violation.to_string()),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failed.push(format!("seed {seed}: panic: {text}"));
            }
        }
    }
    println!("{operations} operations in {} simulated seconds, {total:?}", simulated / 1_000);
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
    (total, operations)
}

#[test]
fn acknowledged_writes_survive_message_loss_and_reorder() {
    let faults = Faults { loss: 0.1, duplication: 0.1, delay_max: Duration::from_millis(300), ..Faults::NONE };
    let (counts, _) = run_all(30, &Config { faults, ..Config::calm() });
    assert!(counts.losses > 0 && counts.duplicates > 0);
}

#[test]
fn acknowledged_writes_survive_crashes_of_single_osds() {
    let faults = Faults { crashes_per_second: 0.3, ..Faults::NONE };
    let config =
        Config { faults, duration: Duration::from_secs(20), pause: Duration::from_millis(100), ..Config::calm() };
    let (counts, _) = run_all(30, &config);
    assert!(counts.crashes > 0 && counts.lost_transactions > 0);
}

#[test]
fn acknowledged_writes_survive_everything_at_once() {
    let (counts, _) = run_all(100, &Config::storm());
    let FaultCounts { losses, duplicates, crashes, lost_transactions, power_losses, partitions, remaps, .. } = counts;
    for count in [losses, duplicates, crashes, lost_transactions, power_losses, partitions, remaps] {
        assert!(count > 0, "a fault never struck: {counts:?}");
    }
}

#[test]
fn rotten_objects_are_found_on_read_and_repaired_from_a_peer() {
    let (counts, _) = run_all(30, &Config::rot());
    assert!(counts.rots > 0);
}
