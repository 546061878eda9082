//! Load, counters and watch on a [`Field`], while they run, and what is checked when they have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::{select_all, try_join_all};
use holdfast_client::{Client, ClientConfig};
use holdfast_devcluster::{DaemonName, INDEX_POOL, monitor_session};
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::task::JoinHandle;

use crate::fabric::Fabric;
use crate::field::{CLIENT, Field, OSDS};
use crate::history::Summary;
use crate::keys::Keys;
use crate::load::{Counters, Load};
use crate::watch::Watch;

/// Clients of the gateway, and clients that count by the native library.
const CLIENTS: u64 = 6;
const COUNTING: u64 = 3;
/// Writes and additions that must have been acknowledged at all. A small dose on a busy machine has a few hundred.
const ENOUGH: u64 = 30;
/// Client number of the last reads.
const LAST_READER: u64 = 1000;

/// Runs on threads whose sockets are on the client's host.
///
/// # Errors
/// As the work, and when this thread cannot be moved there.
///
/// # Panics
/// When another thread cannot.
pub fn on_client<T>(fabric: &Arc<Fabric>, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    fabric.move_thread_to(CLIENT)?;
    let shared = fabric.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(move || shared.move_thread_to(CLIENT).expect("the first thread could"))
        .build()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

/// Load, counters and watch, while they run.
pub struct Running {
    /// Keys, and what happened to them.
    pub load: Load,
    /// Counters, and what was added.
    pub counters: Counters,
    /// Keys that the monitors make and remove.
    pub keys: Keys,
    /// What compares the status with the facts.
    pub watch: Watch,
    workers: Vec<JoinHandle<anyhow::Result<()>>>,
    watching: JoinHandle<()>,
}

impl Running {
    /// Starts them, on a bucket that is there.
    ///
    /// # Errors
    /// When a client cannot connect.
    pub async fn start(field: &Field, bucket: &str, seed: u64) -> anyhow::Result<Running> {
        let layout = field.cluster.layout();
        let client = Client::connect(ClientConfig::new(layout.cluster, layout.monitors())).await?;
        // Counters are rows: they live where rows may.
        let counters = Counters::new(client.pool(INDEX_POOL).await?);
        let load = Load::new(field.s3(), bucket);
        let mut workers = Vec::new();
        for id in 0..CLIENTS {
            workers.push(tokio::spawn(load.clone().client(id, seed)));
        }
        for id in 0..COUNTING {
            workers.push(tokio::spawn(counters.clone().client(seed.wrapping_add(id))));
        }
        let keys = Keys::new(monitor_session(layout)?);
        workers.push(tokio::spawn(keys.clone().client()));
        let watch = Watch::new(monitor_session(layout)?, field.away.clone(), Counters::subjects(INDEX_POOL));
        let watching = tokio::spawn(watch.clone().run());
        Ok(Running { load, counters, keys, watch, workers, watching })
    }

    /// Waits for a worker to end, which it does only with a finding.
    pub async fn finding(&mut self) -> anyhow::Error {
        let (early, _, _) = select_all(&mut self.workers).await;
        match early {
            Ok(Err(finding)) => finding,
            Ok(Ok(())) => anyhow::anyhow!("a client ended before it was told to"),
            Err(error) => error.into(),
        }
    }

    /// Ends load and counters; the watch goes on until [`Running::unwatch`].
    ///
    /// # Errors
    /// With a finding of one of them.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.load.stop();
        self.counters.stop();
        self.keys.stop();
        for outcome in try_join_all(self.workers.drain(..)).await? {
            outcome?;
        }
        Ok(())
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn unwatch(&mut self) -> anyhow::Result<()> {
        self.watch.stop();
        Ok((&mut self.watching).await?)
    }

    /// After load and counters have ended and all is clean: reads everything, and once more with one OSD away, of which
    /// clean said that it is not needed. What is wrong with the histories is for [`crate::history::History::judge`].
    ///
    /// # Errors
    /// When an answer does not come, something is not there, or a counter is not exact.
    pub async fn check_all(&self, field: &Field, random: &mut SmallRng, clean: Duration) -> anyhow::Result<Summary> {
        let keys = self.load.read_all(LAST_READER).await.context("after it all")?;
        let (added, uncertain) = self.counters.check().await.context("after it all")?;
        let commands = self.keys.check().await.context("after it all")?;
        let away = DaemonName::osd(random.random_range(0..OSDS));
        field.kill(away).await?;
        self.load.read_all(LAST_READER + 1).await.with_context(|| format!("without {away}"))?;
        field.revive(away).await?;
        field.wait_clean(clean).await.with_context(|| format!("after {away} was away"))?;
        let summary = self.load.history.summary();
        println!(
            "   {} writes acknowledged and {} of unknown outcome, {} reads, {keys} keys; counters: {added} additions \
             acknowledged, {uncertain} unknown; {commands} commands acknowledged by the monitors; slowest answer {} ms; {} PUTs \
             refused because their bodies came too slowly after a loss",
            summary.acknowledged,
            summary.unknown,
            summary.reads,
            self.load.slowest_ms.load(Ordering::Relaxed),
            self.load.too_slow.load(Ordering::Relaxed)
        );
        ensure!(summary.acknowledged > ENOUGH && added > ENOUGH, "hardly anything was acknowledged: no test");
        Ok(summary)
    }
}
