//! Copies that rot while nobody reads them, while the process over them is killed and messages are lost: within a week of the
//! calendar none is left.
#![allow(clippy::unwrap_used)]

use holdfast_sim::{Config, campaign_of_all_faults};

#[test]
fn rot_that_nobody_reads_is_gone_within_a_week_whatever_else_happens() {
    let summary = campaign_of_all_faults(0, 20, &Config::scrub(), 2, 3);
    let texts: Vec<String> = summary.violations.iter().map(ToString::to_string).collect();
    assert!(texts.is_empty(), "{}", texts.join("\n"));
    assert_eq!(summary.unseen(), [], "planned, but never struck: {summary}");
    assert!(summary.copies_scrubbed > 0, "{summary}");
}
