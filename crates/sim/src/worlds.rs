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
            resets_per_second: 0.5,
            served_cuts_per_second: 0.0,
            one_way_cuts_per_second: 0.0,
            pauses_at_answers_per_second: 0.0,
            ..leases.faults
        };
        Config { duration: Duration::from_secs(50), faults, ..leases }
    }
}
