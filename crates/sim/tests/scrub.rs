//! Copies that rot while nobody reads them, under crashes and lost messages: within a week of the calendar none is left.
#![allow(clippy::unwrap_used)]

use holdfast_sim::{Config, run};

#[test]
fn rot_that_nobody_reads_is_gone_within_a_week_whatever_else_happens() {
    let (mut rots, mut repaired, mut crashes) = (0, 0, 0);
    for seed in 0..40 {
        let report = run(seed, &Config::scrub()).unwrap_or_else(|violation| panic!("{violation}"));
        rots += report.faults.rots;
        crashes += report.faults.crashes;
        repaired += report.copies_scrubbed;
    }
    assert!(rots > 0 && crashes > 0 && repaired > 0, "{rots} rots, {crashes} crashes, {repaired} repaired by scrubs");
}
