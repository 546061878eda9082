//! The S3 gateway: signatures, buckets, objects, multipart uploads and listings over rows and blobs in the cluster.
//!
//! A gateway keeps nothing that a restart loses: the row of an object *is* the object, one batch makes it visible, and any
//! number of gateways may serve the same buckets.
//!
//! A PUT: [`server`] takes the request line as it is → [`sigv4`] verifies the signature → [`router`] names the operation →
//! `authorize` decides → `ops::object` checks bucket, conditions and headers before a byte of the body is read →
//! `body` takes the framing off and checks length and signatures → `blob` stores stripes while `checksum` hashes them →
//! `objects` makes the object visible in one conditional batch and hands what it replaces to [`gc`].
//!
//! Design: index row = object (`docs/adr/`), traps of other servers as tests (`tests/protocol`).

mod authorize;
pub mod backend;
mod blob;
mod body;
mod budget;
pub mod checksum;
pub mod clock;
pub mod cluster_backend;
pub mod conditional;
pub mod daemon;
mod described;
pub mod error;
mod gateway;
pub mod gc;
mod listing;
mod objects;
mod ops;
mod paced;
pub mod range;
mod reply;
pub mod request;
pub mod router;
pub mod row;
pub mod runtime;
#[cfg(feature = "mutants")]
pub mod sabotage;
#[cfg(not(feature = "mutants"))]
mod sabotage;
pub mod server;
pub mod sigv4;
pub mod testing;
pub mod xml;

pub use backend::{Backend, Blobs, Keys, Tables};
pub use daemon::{DaemonError, S3Config, S3Handle, run, start};
pub use gateway::{Gateway, GatewayConfig, Sizes};
pub use runtime::{Runtime, Surroundings};
pub use server::serve;
