//! Measures one cluster of real processes, and the device and the loopback beneath it.
//!
//! What a figure means, how it is taken and how another system is put beside it is said in `docs/measuring.md`.
//!
//! Invariants:
//! - Load is closed-loop: each client has one op outstanding. Latency is counted from before an op is begun.
//! - A cell ends after a time and after a count, whichever comes first; nothing runs without a bound.
//! - An op that fails is counted as an error and never as an op; a cell without ops fails the run.
//! - CPU of daemons is what the kernel charged to their processes between the first op's begin and the last one's end.
//! - A run has a fresh cluster: runs are independent, and the disk holds no more than one run wrote.

pub mod cells;
pub mod device;
pub mod load;
pub mod loopback;
pub mod objects;
pub mod processes;
pub mod record;
pub mod report;
pub mod run;
pub mod s3;
pub mod sigv4;
