//! Logs, metrics and the admin endpoint: what every daemon shows of itself.
//!
//! Nothing here changes what a daemon does. Everything is bounded: the admin endpoint serves a fixed number of requests
//! at once, metric labels are chosen by code and never by users, log lines go to stderr and nowhere else.

mod admin;
mod logging;
mod metrics;

pub use admin::{Admin, serve};
pub use logging::{InitError, LogFormat, init, init_from_env};
pub use metrics::{LATENCY_BUCKETS, Metrics, latency_histogram};
