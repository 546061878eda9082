//! The storage daemon among real monitors, OSDs and clients: one binary, so that what the tests share is all in use.

mod cluster;
mod common;
mod fence;
mod full;
mod garbage;
mod growth;
mod lost;
mod lost_store;
mod rot;
mod scrub;
