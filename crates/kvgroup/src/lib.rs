//! Ordered, transactional rows kept in objects: *tables* of rows, cut into *groups* that split as they grow.
//!
//! A **table** (one S3 bucket, say) is an ordered set of rows `(space, key) → value`. A **group** is one object that
//! holds all rows, of all spaces, whose key lies in the group's range; the table's **root** object maps range starts
//! to groups. Rows of one [route](Affinity) are always in the same group, so a conditional [batch](Table::batch) over
//! them is one op vector on one object: atomic, one round trip, one sync. So is a get, and a page of a scan.
//!
//! There is no server of this: it is client-side access to rows kept in the OSDs. Invariants:
//! - KG1: at any moment exactly one object holds the truth of a row: the group that covers its key and is not being
//!   built. Splits keep it (`split` module, ADR 0002), under any number of concurrent and stopped helpers.
//! - KG2: every op vector on a group asserts the version of the group's record, so that it acts on the range and state
//!   that it was chosen for, or not at all – however late it arrives.
//! - KG3: a batch is sent once. A reply that says "not this version" means that nothing happened, and only then is it
//!   sent again; silence is [`BatchError::OutcomeUnknown`].
//! - KG4: groups are cut only between routes.
//!
//! What rows mean is not known here. The pure half is `key`, `header`, `batch`, `weight`, `cache`; the shell around
//! it `shell`, `locate`, `split`, `lifecycle`, `table`. Formats: `docs/formats/kvgroup.md`.

mod batch;
mod cache;
mod cluster;
mod error;
mod header;
mod key;
mod lifecycle;
mod locate;
mod objects;
#[cfg(not(feature = "mutants"))]
mod sabotage;
#[cfg(feature = "mutants")]
pub mod sabotage;
mod shell;
mod split;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod weight;

#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod interleavings;

pub use batch::{BATCH_BYTES_MAX, BATCH_ROWS_MAX, Condition, Mutation, Require, VALUE_BYTES_MAX};
pub use error::{BatchError, DropError, InvalidRequest, KvError, ObjectsError};
pub use header::{GroupId, TABLE_ID_BYTES_MAX, TableId};
pub use key::{Affinity, KEY_BYTES_MAX, RowKey, SPACE_RESERVED};
pub use lifecycle::Created;
pub use objects::{Objects, Operated};
pub use table::{BatchReply, Page, PageLimit, Table, Tables};
pub use weight::Config;
