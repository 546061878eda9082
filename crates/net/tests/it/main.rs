//! The public interface over real sockets: one binary, so that what the tests share is all in use.
#![allow(clippy::unwrap_used)]

mod common;
mod faults;
mod requests;
