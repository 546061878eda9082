//! The configuration files of the daemons, written for people to read and to copy from.
//!
//! They are plain text here on purpose: this crate writes what a person could have written, the binary reads it with
//! the same strictness. A test of the binary reads back every file that this module writes.

use std::fmt::Write as _;
use std::path::Path;

use crate::daemon::{DaemonName, Role};
use crate::directory::ClusterDir;
use crate::error::DevError;
use crate::layout::Layout;

/// Memory of one OSD: many of them share a laptop.
const OSD_MEMORY: &str = "64 MiB";
/// Segments of the OSDs' device files: small, so that cleaning can be watched.
const OSD_SEGMENT: &str = "16 MiB";

/// Writes one file for each daemon, and the one for clients.
///
/// # Errors
/// [`DevError::File`].
pub fn write_config_files(dir: &ClusterDir, layout: &Layout) -> Result<(), DevError> {
    for daemon in layout.daemons() {
        let text = match daemon.role {
            Role::Mon => mon(dir, layout, daemon)?,
            Role::Osd => osd(dir, layout, daemon)?,
            Role::S3 => s3(layout),
        };
        dir.write_whole(&dir.config_of(daemon), &text, 0o644)?;
    }
    let text = format!(
        "# Where the cluster's monitors are. HOLDFAST_CONFIG names this file.\ncluster = \"{}\"\nmonitors = {}\n",
        layout.cluster,
        list(&layout.monitors())
    );
    dir.write_whole(&dir.client_config(), &text, 0o644)
}

fn mon(dir: &ClusterDir, layout: &Layout, daemon: DaemonName) -> Result<String, DevError> {
    let place = layout.place(daemon)?;
    let mut text = format!(
        "# A monitor: holdfast mon --config {}\n# At the very first start of a new cluster, and only then, with --bootstrap.\nid = {}\ncluster = \"{}\"\ndata = {}\nlisten = \"{}\"\nadmin = \"{}\"\n\n\
         # All monitors at first start; afterwards the cluster map says who they are.\n[monitors]\n",
        dir.config_of(daemon).display(),
        daemon.id,
        layout.cluster,
        quoted(&data(dir, daemon)),
        place.address,
        place.admin,
    );
    for (id, mon) in layout.mons.iter().enumerate() {
        let _ = writeln!(text, "{id} = \"{}\"", mon.address);
    }
    Ok(text)
}

fn osd(dir: &ClusterDir, layout: &Layout, daemon: DaemonName) -> Result<String, DevError> {
    let place = layout.place(daemon)?;
    let index = usize::try_from(daemon.id).unwrap_or(usize::MAX);
    let osd = layout.osds.get(index).ok_or(DevError::NoDaemon { daemon })?;
    let capacity_bytes = osd.capacity_bytes;
    Ok(format!(
        "# A storage daemon: holdfast osd --config {}\n# The id that a new disk would like; afterwards the disk knows it.\nid = {}\n\
         cluster = \"{}\"\nmonitors = {}\ndata = {}\nlisten = \"{}\"\nadmin = \"{}\"\n\n\
         # Where it stands, from host upwards: no two copies share a host where there are enough hosts.\n\
         location = [\"host={}\"]\nclass = \"ssd\"\n\n# Size of the sparse device file, its segments, and the memory of caches and queues.\n\
         capacity = {capacity_bytes}\nsegment = \"{OSD_SEGMENT}\"\nmemory_target = \"{OSD_MEMORY}\"\n",
        dir.config_of(daemon).display(),
        daemon.id,
        layout.cluster,
        list(&layout.monitors()),
        quoted(&data(dir, daemon)),
        place.address,
        place.admin,
        osd.host.clone().unwrap_or_else(host_name),
    ))
}

fn s3(layout: &Layout) -> String {
    format!(
        "# An S3 gateway: holdfast s3 --config FILE. It keeps no state.\ncluster = \"{}\"\nmonitors = {}\nlisten = \"{}\"\n\
         admin = \"{}\"\nregion = \"{}\"\n\n# With a domain here, bucket.DOMAIN is the bucket (virtual-host style).\n\
         domains = [\"localhost\"]\n",
        layout.cluster,
        list(&layout.monitors()),
        layout.s3.address,
        layout.s3.admin,
        layout.region,
    )
}

fn data(dir: &ClusterDir, daemon: DaemonName) -> std::path::PathBuf {
    dir.data_of(daemon).unwrap_or_else(|| dir.root().to_path_buf())
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// The machine's name, with what a CRUSH bucket's name cannot have replaced.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || "-_.".contains(character) { character } else { '-' })
        .collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
