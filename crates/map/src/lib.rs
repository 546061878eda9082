//! The cluster maps and their increments; object → placement group → up and acting set.
//!
//! Pure: a map never judges that an OSD is down, it records what the monitors committed. Two holders of the same
//! epoch hold the same bytes: [`ClusterMap::encode_full`] is canonical and its checksum ([`ClusterMap::checksum`])
//! travels with every [`Increment`]. Format: `docs/formats/map.md`.

mod balance;
mod cluster;
mod encoding;
mod increment;
mod pg_count;
mod placement;
mod rule;
mod space;
mod split;

pub use balance::{BalanceLimits, BalancePlan, balance};
pub use cluster::{
    BLOCKLIST_MAX, BlocklistEntry, ClusterFlags, ClusterMap, OSD_ID_MAX, OsdInfo, PG_TEMP_MEMBERS_MAX, Pool, PoolKind,
    SERVICES_MAX, ScrubKind, ScrubWish, ServiceInfo, UPMAP_ITEMS_MAX, UpmapItem,
};
pub use encoding::MapDecodeError;
pub use increment::{ApplyError, Increment};
pub use pg_count::{PG_COPIES_PER_OSD_TARGET, PG_NUM_MAX, pg_num_for};
pub use placement::{PgMembers, object_hash};
pub use rule::RuleShape;
pub use space::{FullRatios, HYSTERESIS_PERMILLE, SpaceLevel};
pub use split::{split_from, split_into};
