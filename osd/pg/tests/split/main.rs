//! Splits of copies in any state: what was acknowledged stays, where it belongs, once.
#![allow(clippy::unwrap_used)]

mod pieces;
mod under_load;
mod world;
