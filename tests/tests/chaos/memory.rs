//! The most memory that daemons ever had, of those processes that are there at the end of a run.

use anyhow::Context as _;
use holdfast_devcluster::{DaemonName, Role};
use holdfast_tests::field::Field;

/// Of an OSD. `holdfast-devcluster` gives it 64 MiB for caches and memtables. Beside these, limits of the product allow 80
/// MiB of commits and requests that wait, logs and dups of 5 MiB for each of some hundred copies of placement groups, and 20
/// transfers of 4 MiB in three placement groups each way: 1.1 GiB. What the allocator keeps may double that; more grows.
const OSD_LIMIT_BYTES: u64 = 5 << 29;
/// Of a monitor. It has no target: its state is at most 60 MiB (`STATE_BYTES_MAX`), of which a snapshot may be made, sent
/// and taken over at one time, beside 32 maps and what RocksDB holds. The maps of five OSDs are far below that.
const MON_LIMIT_BYTES: u64 = 1 << 30;

/// Prints the largest of each kind; those that had more than they may.
pub fn findings(field: &Field) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    for (role, limit_bytes) in [(Role::Osd, OSD_LIMIT_BYTES), (Role::Mon, MON_LIMIT_BYTES)] {
        let mut largest: Option<(u64, DaemonName)> = None;
        for daemon in field.cluster.layout().daemons().into_iter().filter(|daemon| daemon.role == role) {
            let process = field.cluster.process(daemon).with_context(|| format!("{daemon} has no process"))?;
            let (_, bytes) = process.resident_bytes().with_context(|| format!("{daemon} has ended"))?;
            if bytes > limit_bytes {
                findings.push(format!("{daemon} had {} MiB of memory, more than {}", bytes >> 20, limit_bytes >> 20));
            }
            largest = largest.max(Some((bytes, daemon)));
        }
        if let Some((bytes, daemon)) = largest {
            println!("   {daemon} had the most memory of its kind: {} MiB (limit {})", bytes >> 20, limit_bytes >> 20);
        }
    }
    Ok(findings)
}
