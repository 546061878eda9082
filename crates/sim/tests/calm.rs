//! Runs without faults: what must work before anything is attacked.
#![allow(clippy::unwrap_used)]

use holdfast_sim::{Config, run};

#[test]
fn the_same_seed_gives_the_same_run_in_every_world() {
    for (name, config) in Config::worlds() {
        assert_eq!(run(7, &config).unwrap(), run(7, &config).unwrap(), "{name}");
    }
    assert_eq!(run(1, &Config::calm()).unwrap(), run(1, &Config::calm()).unwrap());
    assert_ne!(run(1, &Config::calm()).unwrap().hash, run(2, &Config::calm()).unwrap().hash);
}

#[test]
fn a_cluster_without_faults_serves_and_is_clean() {
    for seed in 0..10 {
        let report = run(seed, &Config::calm()).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(report.operations > 200, "only {} operations", report.operations);
        assert!(report.leases_granted > 0);
    }
}
