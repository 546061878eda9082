//! What three OSDs make of one placement group.
#![allow(clippy::unwrap_used)]

mod forgetful;
mod lease;
mod short;
mod world;
