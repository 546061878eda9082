//! Worlds of one theme each, made of the others; `config` has those.

use std::time::Duration;

use crate::config::{Config, Faults};

impl Config {
    /// Of an OSD's network one side does not work while the others do: heartbeats, monitors or clients. Connections break with
    /// all that is on its way. Whoever was replaced, or does not know that it was not, must show nothing old.
    #[must_use]
    pub fn severed() -> Config {
        let leases = Config::leases();
        let faults = Faults {
            side_cuts_per_second: 0.25,
            group_partitions_per_second: 0.06,
            resets_per_second: 0.5,
            served_cuts_per_second: 0.0,
            one_way_cuts_per_second: 0.0,
            pauses_at_answers_per_second: 0.0,
            ..leases.faults
        };
        Config { duration: Duration::from_secs(50), faults, ..leases }
    }
    /// An operator changes weights and pools while members die and come back: placement groups of one pool come and go, move
    /// and peer, and what clients have in another one stays.
    #[must_use]
    pub fn shifts() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            reweights_per_second: 0.2,
            pool_changes_per_second: 0.25,
            remaps_per_second: 0.05,
            kills_per_second: 0.1,
            power_cuts_per_second: 0.08,
            downtime_max: Duration::from_secs(5),
            map_lags_per_second: 0.1,
            ..storm.faults
        };
        Config { faults, ..storm }
    }

    /// One disk says that it did what it did not: it drops writes and syncs, writes and reads at another place; its process is
    /// killed now and then. Days fly, so that copies are scrubbed. No other OSD fails: two faults at once may take the last copy.
    #[must_use]
    pub fn lies() -> Config {
        let scrub = Config::scrub();
        let faults = Faults { flips_per_second: 0.0, lies_per_second: 1.5, kills_per_second: 0.1, ..scrub.faults };
        Config { faults, ..scrub }
    }
}
