//! The gateway over an in-memory backend, asked as a client asks: signed requests in, replies out.
#![allow(clippy::unwrap_used)]

mod auth;
mod bad_input;
mod collector;
mod faults;
mod listing;
mod multipart;
mod objects;
mod slow_clients;
mod support;
mod wire;
