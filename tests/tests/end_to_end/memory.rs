//! The gateway's memory does not follow the size of objects.

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use holdfast_devcluster::DaemonName;
use holdfast_tests::content::Content;
use holdfast_tests::world::{World, dose};

const BUCKET: &str = "memory";
const CLIENTS: u64 = 16;
const LIMIT_MIB: u64 = 256;

/// The most memory that the process ever had.
fn peak_mib(pid: impl std::fmt::Display) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_memory_is_bounded_while_sixteen_clients_move_large_objects() -> anyhow::Result<()> {
    // The gateway's memory does not depend on the number of copies; the full dose keeps one, for the disk's sake.
    let world = World::start(1, u32::try_from(dose(3, 1))?).await?;
    let s3 = world.s3_with(BUCKET).await?;
    let bytes = dose(32, 1024) << 20;
    let gateway = world.cluster.process(DaemonName::s3()).context("the gateway runs")?;
    let contents: Vec<_> =
        (0..CLIENTS).map(|client| (format!("large-{client}"), Content { seed: client, bytes })).collect();
    try_join_all(contents.iter().map(|(key, content)| s3.put(BUCKET, key, *content))).await?;
    let after_upload = peak_mib(gateway.pid)?;
    let same = try_join_all(contents.iter().map(|(key, content)| s3.compare(BUCKET, key, *content))).await?;
    let peak = peak_mib(gateway.pid)?;
    ensure!(same.iter().all(|same| *same), "what was downloaded is not what was uploaded: {same:?}");
    println!(
        "   {CLIENTS} clients with {} MiB each: at most {after_upload} MiB while uploading, {peak} MiB in all",
        bytes >> 20
    );
    ensure!(peak <= LIMIT_MIB, "the gateway took {peak} MiB, more than {LIMIT_MIB}");
    for daemon in world.cluster.layout().daemons() {
        if let Some(process) = world.cluster.process(daemon) {
            println!("   {daemon}: at most {} MiB", peak_mib(process.pid)?);
        }
    }
    world.end().await
}
