//! Splits of copies in any state: what was acknowledged stays, where it belongs, once.
#![allow(clippy::unwrap_used)]

mod under_load;
mod world;
