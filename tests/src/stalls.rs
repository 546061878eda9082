//! How long writes stall after a fault, as the clients see it: the longest write that was under way when the fault came
//! or was begun after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;

use crate::content::Content;
use crate::s3::S3;

/// Writers; each waits for its answer before its next write, so a stall is met by all that hit what is stuck.
const WRITERS: u64 = 8;
/// Keys of one writer: over many placement groups, and none that was not used before.
const KEYS: u64 = 40;
/// Bytes of a write: beyond what is kept in the index row, so that data and index are both written.
const BYTES: u64 = 20_000;

/// A writer's writes: when each was called and when it was answered.
type Writes = Vec<(Instant, Instant)>;

/// The writers of a measurement.
pub struct Probe {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<anyhow::Result<Writes>>>,
}

impl Probe {
    /// Starts writing.
    #[must_use]
    pub fn start(s3: &S3, bucket: &str) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS).map(|writer| {
            let (s3, bucket, stop) = (s3.clone(), bucket.to_owned(), stop.clone());
            tokio::spawn(async move {
                let mut writes = Writes::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = writes.len() as u64;
                    let key = format!("stall/{writer}/{}", number % KEYS);
                    let content = Content { seed: writer << 32 | number, bytes: BYTES };
                    let called = Instant::now();
                    let outcome = s3.put(&bucket, &key, content).await;
                    outcome.with_context(|| format!("PUT {key} after {:?}", called.elapsed()))?;
                    writes.push((called, Instant::now()));
                }
                Ok(writes)
            })
        });
        let writers = writers.collect();
        Probe { stop, writers }
    }

    /// Ends the writers; the longest write that ended after `fault`, and how many there were.
    ///
    /// # Errors
    /// When a write failed, or none came after the fault.
    pub async fn longest_since(self, fault: Instant) -> anyhow::Result<(Duration, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for writes in try_join_all(self.writers).await? {
            let since = writes?.into_iter().filter(|(_, answered)| *answered >= fault);
            // What was under way before the fault had its time until then to itself.
            took.extend(since.map(|(called, answered)| answered - called.max(fault)));
        }
        ensure!(!took.is_empty(), "nothing was written after the fault");
        Ok((took.iter().max().copied().unwrap_or_default(), took.len()))
    }
}

/// Stalls after one kind of fault.
#[derive(Debug, Clone)]
pub struct Stalls {
    /// After what.
    pub after: &'static str,
    /// Longest that 99 of 100 may be.
    pub limit: Duration,
    /// Each.
    pub stalls: Vec<Duration>,
}

impl Stalls {
    /// None yet.
    #[must_use]
    pub fn new(after: &'static str, limit: Duration) -> Stalls {
        Stalls { after, limit, stalls: Vec::new() }
    }

    /// The stall that so many of a hundred do not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.stalls.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// One line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "write stall after {}: median {:.2?}, p99 {:.2?} of {} (limit {:?})",
            self.after,
            self.percentile(50),
            self.percentile(99),
            self.stalls.len(),
            self.limit
        )
    }

    /// Whether 99 of 100 are within the limit.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.percentile(99) <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let mut stalls = Stalls::new("a test", Duration::from_secs(100));
        assert_eq!(stalls.percentile(99), Duration::ZERO);
        stalls.stalls = (1..=200).rev().map(Duration::from_secs).collect();
        assert_eq!(stalls.percentile(50), Duration::from_secs(100));
        assert_eq!(stalls.percentile(99), Duration::from_secs(198));
        assert!(!stalls.is_within());
        stalls.stalls.truncate(1);
        assert_eq!(stalls.percentile(50), Duration::from_secs(200));
    }
}
