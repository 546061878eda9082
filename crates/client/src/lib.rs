//! The one library to the cluster: follows the maps, finds the OSD for an object, repeats what was lost, stripes what is
//! large.
//!
//! A user sees pools, objects and ops. Never an epoch, never an OSD: maps move, daemons die and come back, and ops go
//! on until they are done or their deadline has passed.
//!
//! - [`Client`] → [`Pool`] → [`Pool::operate`]: op vectors on one object, atomic and exactly-once. A repeated request
//!   keeps its id, so that it is executed at most once however often it is sent.
//! - [`Striper`]: values of any size as immutable objects of 4 MiB.
//! - [`Client::fence`]: takes over from another client, which gets nothing done any more.
//! - [`Client::mon_command`]: commands and questions to the monitors.
//!
//! Decisions are in [`core`], which does no IO; the rest performs them. In flight at one time are at most
//! [`ClientConfig::ops_in_flight_max`] small ops and [`ClientConfig::bytes_in_flight_max`] bytes of large ones: whoever
//! wants more waits. A placement group that does not answer keeps a quarter of that at most, and not for long.

mod budget;
mod client;
mod config;
pub mod core;
mod error;
mod fence;
mod follower;
mod osds;
mod pool;
mod striper;

pub use client::{Client, OpOptions};
pub use config::{ClientConfig, ClientIdentity};
pub use core::Outcome as OperateReply;
pub use error::{Cause, ClientError, OperateError};
pub use holdfast_net::mon_session::MonSessionError;
pub use pool::Pool;
pub use striper::{BlobName, InvalidBlobName, STRIPE_BYTES, StripeWriter, Striper};
