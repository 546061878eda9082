//! Why something is not as it should be, who stands in the way, and what to do: `pg query`, `explain`, `balancer status`.

use holdfast_types::{Epoch, OsdId, PgId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use super::PgRow;

/// What is to be explained.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Subject {
    /// A placement group.
    #[n(0)]
    Pg(#[n(0)] PgId),
    /// An object, by the name of its pool and its own.
    #[n(1)]
    Object {
        /// Pool.
        #[n(0)]
        pool: String,
        /// Object.
        #[cbor(n(1), with = "minicbor::bytes")]
        name: Vec<u8>,
    },
    /// An OSD.
    #[n(2)]
    Osd(#[n(0)] OsdId),
}

/// The answer to `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Explanation {
    /// What is explained, such as `pg 1.3`.
    #[n(0)]
    pub subject: String,
    /// Its state, in words as `pg ls` and `osd df` use them.
    #[n(1)]
    pub state: String,
    /// Whether all is as it should be; then there are no causes.
    #[n(2)]
    pub ok: bool,
    /// What is so, one line each: where it is, since when, by whose word.
    #[n(3)]
    pub facts: Vec<String>,
    /// Why it is not as it should be, the most pressing first.
    #[n(4)]
    pub causes: Vec<Cause>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Cause {
    /// Stable name in upper snake case, such as `MEMBER_DOWN`.
    #[n(0)]
    pub code: String,
    /// What is wrong.
    #[n(1)]
    pub cause: String,
    /// Who stands in the way: OSDs such as `osd.3`; empty when nobody does.
    #[n(2)]
    pub blocked_by: Vec<String>,
    /// The next command or act.
    #[n(3)]
    pub next: String,
}

/// The answer to `pg query`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgDetail {
    /// As `pg ls` shows it.
    #[n(0)]
    pub row: PgRow,
    /// Its pool's name.
    #[n(1)]
    pub pool: String,
    /// Copies that the pool asks for.
    #[n(2)]
    pub size: u32,
    /// Fewest with which it serves.
    #[n(3)]
    pub min_size: u32,
    /// Where placement wants it, up or not.
    #[n(4)]
    pub placed: Vec<OsdId>,
    /// Members that the balancer put in the place of others: (what CRUSH chose, what stands there).
    #[n(5)]
    pub exchanged: Vec<(OsdId, OsdId)>,
    /// The temporary acting set, if one was asked for.
    #[n(6)]
    pub temporary: Option<Vec<OsdId>>,
    /// Who reported, if the report counts now.
    #[n(7)]
    pub reported_by: Option<OsdId>,
    /// How old that report is, in milliseconds.
    #[n(8)]
    pub report_age_ms: Option<u64>,
    /// For how long the reporter has been saying the same state, in milliseconds, as far as this leader knows.
    #[n(9)]
    pub state_for_ms: Option<u64>,
    /// The reporter's map.
    #[n(10)]
    pub epoch: Option<Epoch>,
    /// First epoch of its interval.
    #[n(11)]
    pub interval_start: Option<Epoch>,
    /// Maps before this one are no longer needed for it.
    #[n(12)]
    pub last_epoch_clean: Option<Epoch>,
    /// What stands in its way.
    #[n(13)]
    pub explanation: Explanation,
}

/// The answer to `balancer status`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct BalancerReport {
    /// Whether it may move data; `config set balancer off` stops it.
    #[n(0)]
    pub enabled: bool,
    /// What it does or waits for.
    #[n(1)]
    pub state: String,
    /// The largest part by which an OSD holds more or less than it should, in thousandths, when it last looked.
    #[n(2)]
    pub deviation_permille: Option<u32>,
    /// Placement groups of which a member was exchanged.
    #[n(3)]
    pub exchanged: u32,
}
