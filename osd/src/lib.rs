//! The storage daemon: drives many placement groups over one store, and is their network, clock and disk.
//!
//! It alters a placement group only through `Pg::step`. Threads: one **shard** thread owns each placement group (and
//! answers heartbeats, so that a stuck shard is noticed by its peers); the store's commit thread reports durability
//! back to the shard; everything else (connections, monitors, timers) is tokio. Shards never wait for the network.
//!
//! One run of a daemon has one incarnation, greater than all before it, whatever the clock does. When the monitors marked
//! a living daemon down, or the store had no room for what was let in, the run ends and the next one starts with a new
//! incarnation over the same store: coming back is one path, whatever the cause. A store that cannot be trusted is given
//! up and filled anew from the other copies; what it held is remembered to be lost (`lost`).

mod answers;
mod awaited;
mod barrier;
mod config;
mod copies;
mod counters;
mod daemon;
mod handler;
mod heartbeat;
mod identity;
mod leases;
mod local;
mod lost;
mod maps;
mod monitors;
mod peers;
mod report;
mod run;
mod shard;
mod slots;
mod space;
mod standing;
mod twice;

pub use config::OsdConfig;
pub use daemon::{OsdError, OsdHandle, start};

/// What of the daemon needs no thread, no socket and no clock: the simulator drives these same parts.
pub mod parts {
    pub use crate::awaited::{leave_known, split_pairs};
    pub use crate::copies::{CaughtUp, TakenUp, may_be_part_of, needed_maps, take_up};
    pub use crate::heartbeat::{HEARTBEAT_GRACE, HEARTBEAT_INTERVAL, HeartbeatTable, Verdict};
    pub use crate::leases::{EARLY_HEARTBEAT, EarlyBeats, Leases};
    pub use crate::local::{
        Local, OWN as OWN_COLLECTION, collection_of, map_transactions, own_collection, pg_of, stored_maps,
        to_transaction,
    };
    pub use crate::shard::MapStep;
    pub use crate::slots::Slots;
    pub use crate::space::{PeerSpace, has_room, usage};
    pub use crate::standing::Standing;
}

/// An error with its causes, for a log line or a message that crosses a thread.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
