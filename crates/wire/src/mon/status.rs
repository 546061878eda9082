//! What `status`, `health`, `df` and the lists show.

use holdfast_types::{Epoch, LogVersion, MonId, OsdId, PgId, PoolId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use super::StoreUsage;
use crate::scrub::{PgScrub, ScrubStatus};

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    #[n(0)]
    Ok,
    /// Redundancy or comfort is reduced.
    #[n(1)]
    Warning,
    /// Data or service is unavailable or at risk.
    #[n(2)]
    Error,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct HealthCheck {
    /// Stable name in upper snake case, such as `OSD_DOWN`.
    #[n(0)]
    pub code: String,
    /// How bad.
    #[n(1)]
    pub severity: Severity,
    /// One line.
    #[n(2)]
    pub summary: String,
    /// One line for each thing concerned; bounded.
    #[n(3)]
    pub detail: Vec<String>,
    /// What it means for the user.
    #[n(4)]
    pub impact: String,
    /// The next command or act.
    #[n(5)]
    pub fix: String,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct StatusReport {
    /// Cluster id.
    #[n(0)]
    pub cluster: String,
    /// Map.
    #[n(1)]
    pub epoch: Epoch,
    /// The worst severity of `checks`.
    #[n(2)]
    pub health: Severity,
    /// What is not as it should be.
    #[n(3)]
    pub checks: Vec<HealthCheck>,
    /// Monitors of the map.
    #[n(4)]
    pub mons: u32,
    /// Monitors that take part in the quorum now.
    #[n(5)]
    pub mons_in_quorum: Vec<MonId>,
    /// The leader.
    #[n(6)]
    pub leader: MonId,
    /// OSDs of the map.
    #[n(7)]
    pub osds: u32,
    /// Of these, up.
    #[n(8)]
    pub osds_up: u32,
    /// Of these, in.
    #[n(9)]
    pub osds_in: u32,
    /// Registered services.
    #[n(10)]
    pub services: Vec<String>,
    /// Pools.
    #[n(11)]
    pub pools: u32,
    /// Placement groups.
    #[n(12)]
    pub pgs: u32,
    /// Placement groups by state, such as `active+clean`: count. `unknown`: no report from the present primary.
    #[n(13)]
    pub pg_states: std::collections::BTreeMap<String, u32>,
    /// Objects.
    #[n(14)]
    pub objects: u64,
    /// Copies of objects that should exist and do not.
    #[n(15)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(16)]
    pub objects_unfound: u64,
    /// Space over all OSDs.
    #[n(17)]
    pub usage: StoreUsage,
    /// Scrubs; `None` from a monitor that does not count them.
    #[n(18)]
    pub scrub: Option<ScrubStatus>,
}

/// A line of `osd tree`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct OsdTreeNode {
    /// CRUSH id: OSDs ≥ 0, buckets < 0.
    #[n(0)]
    pub id: i32,
    /// Depth, for indentation.
    #[n(1)]
    pub depth: u32,
    /// Device class.
    #[n(2)]
    pub class: Option<String>,
    /// CRUSH weight, 1.0 is 1 TiB.
    #[n(3)]
    pub weight: f64,
    /// CRUSH type.
    #[n(4)]
    pub kind: String,
    /// Name.
    #[n(5)]
    pub name: String,
    /// `up`, `down`, or empty for buckets.
    #[n(6)]
    pub status: String,
    /// Reweight 0 to 1, of OSDs.
    #[n(7)]
    pub reweight: Option<f64>,
    /// Address, of OSDs.
    #[n(8)]
    pub address: Option<String>,
}

/// A line of `osd df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct OsdDfRow {
    /// Which.
    #[n(0)]
    pub osd: OsdId,
    /// Device class.
    #[n(1)]
    pub class: Option<String>,
    /// Up.
    #[n(2)]
    pub up: bool,
    /// In.
    #[n(3)]
    pub in_cluster: bool,
    /// CRUSH weight.
    #[n(4)]
    pub weight: f64,
    /// Reweight.
    #[n(5)]
    pub reweight: f64,
    /// Space, as last reported by this run; `None`: no report.
    #[n(6)]
    pub usage: Option<StoreUsage>,
    /// Placement groups whose acting set has it.
    #[n(7)]
    pub pgs: u32,
}

/// The answer to `df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct DfReport {
    /// Over all OSDs.
    #[n(0)]
    pub usage: StoreUsage,
    /// One line for each pool.
    #[n(1)]
    pub pools: Vec<DfPoolRow>,
}

/// A line of `df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct DfPoolRow {
    /// Name.
    #[n(0)]
    pub name: String,
    /// Id.
    #[n(1)]
    pub id: PoolId,
    /// Objects.
    #[n(2)]
    pub objects: u64,
    /// User bytes, once.
    #[n(3)]
    pub stored_bytes: u64,
    /// What can still be written, by the fullest OSD.
    #[n(4)]
    pub available_bytes: u64,
}

/// A line of `pool ls`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PoolRow {
    /// Id.
    #[n(0)]
    pub id: PoolId,
    /// Name.
    #[n(1)]
    pub name: String,
    /// Copies.
    #[n(2)]
    pub size: u32,
    /// Fewest copies to serve with.
    #[n(3)]
    pub min_size: u32,
    /// Placement groups, chosen by the cluster.
    #[n(4)]
    pub pg_num: u32,
    /// What it is for.
    #[n(5)]
    pub application: String,
    /// Failure domain of its rule.
    #[n(6)]
    pub failure_domain: String,
}

/// A line of `pg ls`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgRow {
    /// Which.
    #[n(0)]
    pub pg: PgId,
    /// Such as `active+clean`, or `unknown`.
    #[n(1)]
    pub state: String,
    /// Up set, of the map.
    #[n(2)]
    pub up: Vec<OsdId>,
    /// Acting set, of the map.
    #[n(3)]
    pub acting: Vec<OsdId>,
    /// Objects.
    #[n(4)]
    pub objects: u64,
    /// Bytes, once.
    #[n(5)]
    pub bytes: u64,
    /// Copies that should exist and do not.
    #[n(6)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(7)]
    pub objects_unfound: u64,
    /// Head of the log.
    #[n(8)]
    pub last_update: LogVersion,
    /// OSDs that must come back before it can go on.
    #[n(9)]
    pub blocked_by: Vec<OsdId>,
    /// Its scrubs, as last reported.
    #[n(10)]
    pub scrub: Option<PgScrub>,
}
