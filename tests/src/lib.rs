//! What the end-to-end tests share: a cluster of real processes, a small S3 client of its own, and the ledger of what
//! was acknowledged.
//!
//! The client is deliberately not the gateway's code and no SDK: it signs by the published rules, never retries, and tells
//! "refused" from "perhaps done", which is the difference that a checker lives from.

pub mod content;
pub mod fabric;
pub mod field;
pub mod history;
pub mod keys;
pub mod ledger;
pub mod linear;
pub mod load;
pub mod powerfs;
pub mod running;
pub mod s3;
pub mod scrub;
pub mod stalls;
pub mod watch;
pub mod world;
