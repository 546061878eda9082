//! (under construction)

pub mod frame;
