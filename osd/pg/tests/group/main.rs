//! Placement groups of several copies that hear each other at once: damage, and want of room.
#![allow(clippy::unwrap_used)]

mod group;
mod repair;
mod room;
