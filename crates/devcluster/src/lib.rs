//! A whole cluster on one machine, in one directory: its layout, its credentials, its configuration files, and its
//! daemons as real `holdfast` processes under a supervisor.
//!
//! `holdfast dev up` and the end-to-end tests use the same code. This crate talks to daemons only as anybody else can:
//! by configuration file, signal, exit status and the monitors' service.
//!
//! Invariants:
//! - One directory is one cluster: [`ClusterDir::lock`] refuses a second start while the first one lives.
//! - Ports, cluster id and credentials are drawn once and kept, so a restart has the same addresses and keys.
//! - A process is only ever signalled after its identity (pid, start time, boot) was checked.
//! - A supervised daemon ends when its supervisor does, however that ended: it watches its standard input.
//! - Whoever waits for readiness waits for the daemon's own word (one line on its standard output), never for a time.

mod bootstrap;
mod cluster;
mod config_files;
mod credentials;
mod daemon;
mod directory;
mod error;
mod layout;
mod ports;
mod process;
mod supervisor;

pub use bootstrap::{DATA_POOL, INDEX_POOL, bootstrap, monitor_session};
pub use cluster::{DevCluster, Settings};
pub use config_files::write_config_files;
pub use credentials::Credentials;
pub use daemon::{DaemonName, Launcher, READY_MARK, Role, SUPERVISED_ENV};
pub use directory::{ClusterDir, DirLock};
pub use error::DevError;
pub use layout::{Host, Hosts, Layout, OSDS_MAX, OsdPlace, Place, Wishes};
pub use process::ProcessIdentity;
pub use supervisor::{DaemonState, Restart, Supervisor};
