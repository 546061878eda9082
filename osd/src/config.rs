//! What a storage daemon is told at start.

use std::path::PathBuf;

use holdfast_types::{ClusterId, OsdId};
use holdfast_wire::mon::LocationStep;

/// Settings of one storage daemon.
#[derive(Debug, Clone)]
pub struct OsdConfig {
    /// The cluster; a disk or peer of another one is refused.
    pub cluster: ClusterId,
    /// Directory of the daemon: identity, number of its last run, index, and the device file unless `device` is given
    /// (`docs/formats/osd-directory.md`).
    pub data_dir: PathBuf,
    /// A block device or file for the segments; `None`: `data_dir/block`, a sparse file of `capacity_bytes`.
    pub device: Option<PathBuf>,
    /// Size of a device file that is made at first start, in bytes.
    pub capacity_bytes: u64,
    /// Addresses of monitors, `host:port`; one that answers is enough.
    pub monitors: Vec<String>,
    /// Address for others to reach this daemon, `host:port`; `None`: what the listener is bound to.
    pub advertise: Option<String>,
    /// Where the daemon stands, from host upwards.
    pub location: Vec<LocationStep>,
    /// Device class for CRUSH rules, such as `ssd`.
    pub class: Option<String>,
    /// The id that a new disk would like.
    pub wanted_id: Option<OsdId>,
    /// Bytes that caches, queues and recovery may use together.
    pub memory_target: u64,
    /// Size of a segment of the store at first start, in bytes (4 to 256 MiB).
    pub segment_bytes: u32,
    /// Threads that own placement groups.
    pub shards: usize,
}
