//! Placement groups of several copies that hear each other at once: damage, want of room, changes of
//! the one who leads.
#![allow(clippy::unwrap_used)]

mod going_back;
mod group;
mod moves;
mod queues;
mod repair;
mod room;
mod slots;
mod unnamed;
