//! Between the monitors and everyone else: commands, reports, map subscription, and what `status` and its kin answer.
//!
//! Carried over gRPC (`net::mon_api`) as CBOR in an envelope whose first byte is the version. Report types derive
//! `serde::Serialize`: their JSON is what `holdfast … -o json` prints, and its field names are stable.

mod command;
mod explain;
mod reply;
mod report;
mod status;

pub use command::{FailureKind, LocationStep, MonCommand, MonRequest, PgTempWish, Secret, Subscribe};
pub use explain::{BalancerReport, Cause, Explanation, PgDetail, Subject};
pub use reply::{ConfigChange, KeyInfo, MapUpdate, MonError, MonReply};
pub use report::{OsdReport, PgReport, PgState, StoreUsage};
pub use status::{DfPoolRow, DfReport, HealthCheck, OsdDfRow, OsdTreeNode, PgRow, PoolRow, Severity, StatusReport};
