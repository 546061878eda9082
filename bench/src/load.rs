//! The closed loop: so many clients, each with one op outstanding, until a time or a count is reached.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Latencies kept of one client. 16 clients at 100,000 ops per second for a minute stay far below; what comes after
/// is counted and not sampled.
const SAMPLES_MAX: usize = 1 << 20;

/// When a cell ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// No op begins after this time.
    pub time: Duration,
    /// No more ops than this begin.
    pub ops_max: u64,
}

/// What a client does next: the number of the client, and how many ops it has begun before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Which client, from 0.
    pub client: u64,
    /// Which of its ops, from 0.
    pub step: u64,
    /// How many clients there are.
    pub clients: u64,
}

impl Turn {
    /// An object of its own: clients walk through `objects` without meeting before all are used.
    #[must_use]
    pub fn own_object(self, objects: u64) -> u64 {
        (self.client + self.clients * self.step) % objects.max(1)
    }

    /// Any object: the same sequence in every run, another for each client.
    #[must_use]
    pub fn any_object(self, objects: u64) -> u64 {
        // splitmix64, by S. Vigna (public domain): a full mixing of a counter.
        let mut x = (self.client << 32 | self.step).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % objects.max(1)
    }
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Ops that succeeded.
    pub ops: u64,
    /// Ops that failed.
    pub errors: u64,
    /// What the first failure said.
    pub first_error: Option<String>,
    /// From the begin of the first op to the end of the last one, in seconds.
    pub seconds: f64,
    /// Latencies of the ops that succeeded, in milliseconds, sorted.
    pub latencies_ms: Vec<f32>,
}

impl Outcome {
    /// The latency that `share` (0 to 1) of the ops stay below or at, in milliseconds; 0 without ops.
    #[must_use]
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let last = self.latencies_ms.len().saturating_sub(1);
        // The cast keeps the whole part of a figure between 0 and `last`.
        let index = (self.latencies_ms.len() as f64 * share.clamp(0.0, 1.0)) as usize;
        self.latencies_ms.get(index.min(last)).map_or(0.0, |latency| f64::from(*latency))
    }

    /// Adds the ops of a client.
    fn absorb(&mut self, other: Outcome) {
        self.ops += other.ops;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies_ms.extend(other.latencies_ms);
    }
}

/// One client's way to do an op.
pub trait Worker: Send + 'static {
    /// Does one op to its end.
    ///
    /// # Errors
    /// What went wrong, for people to read.
    fn op(&mut self, turn: Turn) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Runs the workers side by side until the bounds are reached.
///
/// # Errors
/// When a worker panicked.
pub async fn run<W: Worker>(workers: Vec<W>, bounds: Bounds) -> anyhow::Result<Outcome> {
    let begun = Arc::new(AtomicU64::new(0));
    let clients = workers.len() as u64;
    let start = Instant::now();
    let tasks: Vec<_> = workers
        .into_iter()
        .enumerate()
        .map(|(client, worker)| {
            let turn = Turn { client: client as u64, step: 0, clients };
            tokio::spawn(one(worker, turn, start, bounds, Arc::clone(&begun)))
        })
        .collect();
    let mut outcome = Outcome::default();
    for task in tasks {
        outcome.absorb(task.await?);
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.latencies_ms.sort_unstable_by(f32::total_cmp);
    Ok(outcome)
}

async fn one<W: Worker>(
    mut worker: W,
    mut turn: Turn,
    start: Instant,
    bounds: Bounds,
    begun: Arc<AtomicU64>,
) -> Outcome {
    let mut outcome = Outcome::default();
    loop {
        let before = Instant::now();
        if before.duration_since(start) >= bounds.time || begun.fetch_add(1, Ordering::Relaxed) >= bounds.ops_max {
            return outcome;
        }
        match worker.op(turn).await {
            Ok(()) => {
                outcome.ops += 1;
                if outcome.latencies_ms.len() < SAMPLES_MAX {
                    outcome.latencies_ms.push(before.elapsed().as_secs_f32() * 1e3);
                }
            }
            Err(error) => {
                outcome.errors += 1;
                outcome.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        turn.step += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    struct Counting {
        seen: Arc<Mutex<BTreeSet<u64>>>,
        fail: bool,
    }

    impl Worker for Counting {
        async fn op(&mut self, turn: Turn) -> anyhow::Result<()> {
            self.seen.lock().expect("not poisoned").insert(turn.own_object(1000));
            anyhow::ensure!(!self.fail, "object {} refused", turn.own_object(1000));
            Ok(())
        }
    }

    async fn count(clients: usize, ops_max: u64, fail: bool) -> (Outcome, BTreeSet<u64>) {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let workers = (0..clients).map(|_| Counting { seen: Arc::clone(&seen), fail }).collect();
        let bounds = Bounds { time: Duration::from_secs(60), ops_max };
        let outcome = run(workers, bounds).await.expect("no worker panics");
        let seen = seen.lock().expect("not poisoned").clone();
        (outcome, seen)
    }

    #[tokio::test]
    async fn a_load_ends_at_its_count_and_every_op_is_counted_once() {
        let (outcome, _) = count(16, 100, false).await;
        assert_eq!((outcome.ops, outcome.errors, outcome.latencies_ms.len()), (100, 0, 100));
    }

    #[tokio::test]
    async fn failed_ops_are_errors_and_no_ops() {
        let (outcome, _) = count(4, 10, true).await;
        assert_eq!((outcome.ops, outcome.errors), (0, 10));
        assert!(outcome.first_error.expect("kept").contains("refused"));
        assert!(outcome.latencies_ms.is_empty());
    }

    #[tokio::test]
    async fn clients_walk_objects_of_their_own() {
        let (outcome, seen) = count(1, 1000, false).await;
        assert_eq!((outcome.ops, seen.len()), (1000, 1000));
    }

    #[test]
    fn any_object_reaches_all_and_repeats_itself() {
        let turn = |step| Turn { client: 3, step, clients: 16 };
        let seen: BTreeSet<u64> = (0..1000).map(|step| turn(step).any_object(16)).collect();
        assert_eq!(seen.len(), 16);
        assert_eq!(turn(7).any_object(300), turn(7).any_object(300));
    }

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let outcome = Outcome { latencies_ms: (1..=100u16).map(f32::from).collect(), ..Outcome::default() };
        assert_eq!(
            (outcome.percentile_ms(0.5), outcome.percentile_ms(0.99), outcome.percentile_ms(1.0)),
            (51.0, 100.0, 100.0)
        );
        assert_eq!(Outcome::default().percentile_ms(0.5), 0.0);
    }
}
