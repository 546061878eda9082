//! What a run is made of.

use std::time::Duration;

use holdfast_pg::{Limits, ScrubLimits};

/// Which faults strike, and how hard. Probabilities are per message, rates per simulated second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Probability that a message between OSDs, or with a client, is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplication: f64,
    /// Longest delay; messages overtake each other.
    pub delay_max: Duration,
    /// OSD processes killed per second; each loses a suffix of what was not synced, and comes back.
    pub crashes_per_second: f64,
    /// All OSDs lose power at once, per second.
    pub power_losses_per_second: f64,
    /// OSDs cut off from all others, from monitors and clients, per second.
    pub partitions_per_second: f64,
    /// Placement changes (an OSD goes out or comes in) per second.
    pub remaps_per_second: f64,
    /// OSDs, per second, that maps do not reach for a while. Afterwards most of them take the newest map as a whole, and
    /// never see those in between.
    pub map_lags_per_second: f64,
    /// Objects whose bytes rot on one OSD, per second.
    pub rots_per_second: f64,
    /// OSDs, per second, that have no room for a while: for no bytes of objects, or for no copy at all.
    pub fills_per_second: f64,
    /// Probability that a sync takes a hundred times longer.
    pub slow_sync: f64,
}

impl Faults {
    /// None at all; messages still take time.
    pub const NONE: Faults = Faults {
        loss: 0.0,
        duplication: 0.0,
        delay_max: Duration::from_millis(2),
        crashes_per_second: 0.0,
        power_losses_per_second: 0.0,
        partitions_per_second: 0.0,
        remaps_per_second: 0.0,
        map_lags_per_second: 0.0,
        rots_per_second: 0.0,
        fills_per_second: 0.0,
        slow_sync: 0.0,
    };
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// OSDs in the cluster.
    pub osds: u32,
    /// Placement groups of the one pool.
    pub pg_num: u32,
    /// Copies.
    pub size: u32,
    /// Copies needed to serve.
    pub min_size: u32,
    /// Clients.
    pub clients: u32,
    /// Requests that each client has under way at most.
    pub depth: u32,
    /// Objects of each kind.
    pub objects: u32,
    /// How long clients work under faults.
    pub duration: Duration,
    /// Mean pause between two requests of a client.
    pub pause: Duration,
    /// What strikes.
    pub faults: Faults,
    /// Bounds of the placement groups; tiny ones reach more states.
    pub limits: Limits,
    /// How long a day of the calendar lasts, by which copies are scrubbed; `None`: the time of day is never told.
    pub day: Option<Duration>,
    /// Whether every input and output is printed to standard error.
    pub trace: bool,
}

impl Config {
    /// Three OSDs, no faults.
    #[must_use]
    pub fn calm() -> Config {
        Config {
            osds: 3,
            pg_num: 2,
            size: 3,
            min_size: 2,
            clients: 3,
            depth: 3,
            objects: 4,
            duration: Duration::from_secs(5),
            pause: Duration::from_millis(30),
            faults: Faults::NONE,
            limits: Limits { piece_bytes: 64, ..Limits::default() },
            day: None,
            trace: false,
        }
    }

    /// Days fly, so that copies are scrubbed all the time, while objects rot, members crash and messages are lost.
    #[must_use]
    pub fn scrub() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            rots_per_second: 2.0,
            crashes_per_second: 0.05,
            loss: 0.02,
            duplication: 0.02,
            slow_sync: 0.1,
            delay_max: Duration::from_millis(20),
            ..Faults::NONE
        };
        let scrub = ScrubLimits { chunk_objects: 3, piece_bytes: 48, repairs_max: 1_000, ..storm.limits.scrub };
        let limits = Limits { scrub, ..storm.limits };
        Config { osds: 4, faults, limits, day: Some(Duration::from_millis(500)), ..storm }
    }

    /// Objects rot while messages are lost. Alone with that: rot under a write of which no other copy exists yet, which then
    /// stays unfound, is a double fault.
    #[must_use]
    pub fn rot() -> Config {
        let storm = Config::storm();
        let faults = Faults { loss: 0.02, duplication: 0.02, rots_per_second: 4.0, ..Faults::NONE };
        // So many objects that about half are older than the log when they rot; so many requests that rot is soon met.
        let (duration, pause) = (Duration::from_secs(20), Duration::from_millis(25));
        Config { faults, objects: 16, duration, pause, ..storm }
    }

    /// All OSDs lose power at once, again and again, while most syncs are slow: what was acknowledged too soon is lost.
    #[must_use]
    pub fn power() -> Config {
        let storm = Config::storm();
        let faults = Faults { power_losses_per_second: 0.4, slow_sync: 0.5, ..Faults::NONE };
        let (duration, pause) = (Duration::from_secs(30), Duration::from_millis(20));
        Config { osds: 3, pg_num: 2, faults, duration, pause, ..storm }
    }

    /// Maps reach OSDs late or never, one by one, while members crash and placement changes: each OSD has its own idea of
    /// when an interval began.
    #[must_use]
    pub fn gaps() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            map_lags_per_second: 0.5,
            remaps_per_second: 0.1,
            crashes_per_second: 0.15,
            power_losses_per_second: 0.02,
            partitions_per_second: 0.0,
            ..storm.faults
        };
        Config { faults, pause: Duration::from_millis(60), ..storm }
    }

    /// The storm, with OSDs that have no room for a while: copies are begun, refused, and begun anew.
    #[must_use]
    pub fn full() -> Config {
        let storm = Config::storm();
        let faults = Faults { fills_per_second: 0.4, remaps_per_second: 0.1, ..storm.faults };
        Config { faults, ..storm }
    }

    /// Everything else that can strike does; knobs are tiny, so that trimming, backfill and forgetting happen all the time.
    #[must_use]
    pub fn storm() -> Config {
        Config {
            osds: 5,
            pg_num: 3,
            duration: Duration::from_secs(40),
            pause: Duration::from_millis(150),
            faults: Faults {
                loss: 0.02,
                duplication: 0.02,
                delay_max: Duration::from_millis(40),
                crashes_per_second: 0.10,
                power_losses_per_second: 0.01,
                partitions_per_second: 0.04,
                remaps_per_second: 0.05,
                map_lags_per_second: 0.0,
                rots_per_second: 0.0,
                fills_per_second: 0.0,
                slow_sync: 0.1,
            },
            limits: Limits {
                log_entries_min: 12,
                log_entries_max: 24,
                log_trim_batch: 4,
                dups_max: 400,
                backfill_batch: 3,
                effects_bytes_max: 1 << 20,
                transfers_max: 2,
                piece_bytes: 48,
                ..Limits::default()
            },
            ..Config::calm()
        }
    }
}
