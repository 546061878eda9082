//! The cluster maps and their increments; object → placement group → up and acting set.
//!
//! Pure: a map never judges that an OSD is down, it records what the monitors committed. Two holders of the same
//! epoch hold the same bytes: [`ClusterMap::encode_full`] is canonical and its checksum ([`ClusterMap::checksum`])
//! travels with every [`Increment`]. Format: `docs/formats/map.md`.

mod cluster;
mod encoding;
mod increment;
mod pg_count;
mod placement;

pub use cluster::{
    BLOCKLIST_MAX, BlocklistEntry, ClusterFlags, ClusterMap, OSD_ID_MAX, OsdInfo, PG_TEMP_MEMBERS_MAX, Pool, PoolKind,
    SERVICES_MAX, ScrubKind, ScrubWish, ServiceInfo,
};
pub use encoding::MapDecodeError;
pub use increment::{ApplyError, Increment};
pub use pg_count::{PG_COPIES_PER_OSD_TARGET, PG_NUM_MAX, pg_num_for};
pub use placement::{PgMembers, object_hash};
