//! What the simulation must always do, on a few seeds; `cargo xtask sim-monitors` runs many.
#![allow(missing_docs)]

use std::time::Duration;

use holdfast_mon_sim::{Config, Violation, run};

fn short() -> Config {
    Config { storm: Duration::from_secs(15), ..Config::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2] {
        let (first, second) = (run(seed, &short()), run(seed, &short()));
        assert_eq!(first.hash, second.hash);
        assert_eq!(first.counts, second.counts);
        assert_ne!(first.hash, run(seed + 100, &short()).hash);
    }
}

#[test]
fn a_cluster_that_nobody_disturbs_serves_and_settles() {
    for monitors in [3, 5] {
        let report = run(7, &Config { monitors: Some(monitors), calm: true, ..short() });
        assert_eq!(report.violations, Vec::<Violation>::new());
        assert!(report.counts["operations"] > 20, "{:?}", report.counts);
    }
}

/// Each was the first to show a bug that has been mended since (`docs/monitor-simulator.md`).
#[test]
fn seeds_that_once_failed_pass() {
    for seed in [9, 36, 47, 62, 93] {
        let report = run(seed, &Config::default());
        assert_eq!(report.violations, Vec::<Violation>::new(), "seed {seed}");
    }
}
