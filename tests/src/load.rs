//! Clients that work on the same keys and counters while the cluster is being broken, and write down what happened.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_client::{OperateError, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::mon::Subject;
use holdfast_wire::{ObjectOp, OpResult};
use http::StatusCode;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::content::Content;
use crate::history::{History, digest};
use crate::linear::Seen;
use crate::s3::{S3, S3Error};

/// Keys that are worked on at one time: few, so that clients meet on them.
const KEYS: u64 = 48;
/// After an operation without a good answer: a gateway that is away refuses in microseconds.
const PAUSE: Duration = Duration::from_millis(50);
/// So long the gateway waits for what it is sent, at least, before it says that it came too late.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Counters that are worked on.
const COUNTERS: u64 = 8;
/// The row of a counter.
const COUNTER_ROW: &[u8] = b"count";

/// The load and its record.
#[derive(Clone)]
pub struct Load {
    s3: S3,
    bucket: String,
    /// What happened to the keys.
    pub history: Arc<History>,
    /// By slot: how often its key was replaced, because too much about it was unknown.
    generations: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    /// The longest time that an operation with a good answer took, in milliseconds.
    pub slowest_ms: Arc<AtomicU64>,
    /// Operations with a good answer.
    pub answered: Arc<AtomicU64>,
    /// PUTs that were acknowledged.
    pub stored: Arc<AtomicU64>,
    /// Until then a PUT may be refused for want of room.
    pub full_until: Arc<Mutex<Option<Instant>>>,
    /// Of PUTs begun until then the gateway may say that their bodies came too slowly: packets were lost lately.
    pub lossy_until: Arc<Mutex<Option<Instant>>>,
    /// PUTs of which it said so.
    pub too_slow: Arc<AtomicU64>,
}

impl Load {
    /// A load on a bucket that is there.
    #[must_use]
    pub fn new(s3: S3, bucket: &str) -> Load {
        Load {
            s3,
            bucket: bucket.to_owned(),
            history: Arc::default(),
            generations: Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect()),
            stop: Arc::default(),
            slowest_ms: Arc::default(),
            answered: Arc::default(),
            stored: Arc::default(),
            full_until: Arc::default(),
            lossy_until: Arc::default(),
            too_slow: Arc::default(),
        }
    }

    /// Ends the clients after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn key(&self, slot: usize) -> String {
        let Some(generation) = self.generations.get(slot) else { return format!("{slot}") };
        let name = |generation: u64| format!("shared/{slot:02}.{generation}");
        let at = generation.load(Ordering::Relaxed);
        if !self.history.is_retired(&name(at)) {
            return name(at);
        }
        let _ = generation.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
        name(generation.load(Ordering::Relaxed))
    }

    /// One client, until it is told to stop. Ends early with what cannot be.
    ///
    /// # Errors
    /// With the finding.
    pub async fn client(self, id: u64, seed: u64) -> anyhow::Result<()> {
        let mut random = SmallRng::seed_from_u64(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        while !self.stop.load(Ordering::Relaxed) {
            let slot = random.random_range(0..usize::try_from(KEYS)?);
            let key = self.key(slot);
            let called = Instant::now();
            let answered = match random.random_range(0..100) {
                0..40 => self.put(id, &key, content(&mut random)).await?,
                40..52 => self.delete(id, &key).await?,
                52..58 => self.list(id).await?,
                _ => self.get(id, &key).await?,
            };
            if answered {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(called.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.slowest_ms.fetch_max(took, Ordering::Relaxed);
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn put(&self, id: u64, key: &str, content: Content) -> anyhow::Result<bool> {
        let held = Some(digest(&content.whole()));
        self.history.will_write(key, held);
        let called = Instant::now();
        let outcome = self.s3.put(&self.bucket, key, content).await;
        let stored = self.written(id, key, called, held, outcome).context("a PUT was refused")?;
        self.stored.fetch_add(u64::from(stored), Ordering::Relaxed);
        Ok(stored)
    }

    async fn delete(&self, id: u64, key: &str) -> anyhow::Result<bool> {
        let called = Instant::now();
        let outcome = self.s3.delete(&self.bucket, key).await;
        self.written(id, key, called, None, outcome).context("a DELETE was refused")
    }

    fn written(
        &self,
        id: u64,
        key: &str,
        called: Instant,
        held: Option<u64>,
        outcome: Result<(), S3Error>,
    ) -> anyhow::Result<bool> {
        match outcome {
            Ok(()) => self.history.wrote(id, key, called, held, true),
            Err(S3Error::Unknown(_)) => {
                self.history.wrote(id, key, called, held, false);
                return Ok(false);
            }
            // Nothing has happened: who reads what was to be written has found a fault.
            Err(S3Error::Refused { status, .. })
                if status == StatusCode::INSUFFICIENT_STORAGE
                    && self.full_until.lock().is_some_and(|until| called < until) =>
            {
                return Ok(false);
            }
            // As little: the body was not there in time.
            Err(S3Error::Refused { code, .. })
                if code == "RequestTimeout"
                    && held.is_some()
                    && called.elapsed() >= BODY_PATIENCE
                    && self.lossy_until.lock().is_some_and(|until| called < until) =>
            {
                self.too_slow.fetch_add(1, Ordering::Relaxed);
                return Ok(false);
            }
            Err(refused @ S3Error::Refused { .. }) => return Err(refused.into()),
        }
        Ok(true)
    }

    async fn get(&self, id: u64, key: &str) -> anyhow::Result<bool> {
        let called = Instant::now();
        match self.s3.get(&self.bucket, key).await {
            Ok(read) => {
                let seen = Seen::Held(read.as_deref().map(digest));
                self.history.read(id, key, called, seen).map_err(anyhow::Error::msg)?;
                Ok(true)
            }
            Err(S3Error::Unknown(_)) => Ok(false),
            Err(refused) => Err(refused).context("a GET was refused"),
        }
    }

    /// A listing is a look at every key: who is there and who is not.
    async fn list(&self, id: u64) -> anyhow::Result<bool> {
        let known = self.history.keys();
        let called = Instant::now();
        match self.s3.list(&self.bucket, "shared/").await {
            Ok(listed) => self.listed(id, &known, called, &listed).map(|()| true),
            Err(S3Error::Unknown(_)) => Ok(false),
            Err(refused) => Err(refused).context("a listing was refused"),
        }
    }

    fn listed(&self, id: u64, known: &[String], called: Instant, listed: &BTreeSet<String>) -> anyhow::Result<()> {
        for key in known {
            let seen = if listed.contains(key) { Seen::Something } else { Seen::Held(None) };
            self.history.read(id, key, called, seen).map_err(anyhow::Error::msg)?;
        }
        // A key may be new since `known` was taken; but nobody lists what was never written.
        let written: BTreeSet<String> = self.history.keys().into_iter().collect();
        match listed.difference(&written).next() {
            Some(never) => anyhow::bail!("{never} is listed and was never written"),
            None => Ok(()),
        }
    }

    /// Reads every key and lists them all; every answer must come. How many keys.
    ///
    /// # Errors
    /// When an answer does not come, or is impossible by itself.
    pub async fn read_all(&self, id: u64) -> anyhow::Result<usize> {
        let keys = self.history.keys();
        for key in &keys {
            let called = Instant::now();
            let read = self.s3.get(&self.bucket, key).await.with_context(|| format!("{key} cannot be read"))?;
            let seen = Seen::Held(read.as_deref().map(digest));
            self.history.read(id, key, called, seen).map_err(anyhow::Error::msg)?;
        }
        let called = Instant::now();
        let listed = self.s3.list(&self.bucket, "shared/").await.context("the listing")?;
        self.listed(id, &keys, called, &listed)?;
        Ok(keys.len())
    }
}

/// Mostly small: what was replaced is collected after a quarter of an hour, and must not fill the disks until then.
fn content(random: &mut SmallRng) -> Content {
    let bytes = match random.random_range(0..100) {
        0..60 => random.random_range(0..16_384),
        60..80 => random.random_range(16_000..40_000),
        80..99 => random.random_range(40_000..200_000),
        _ => random.random_range(300_000..5_000_000),
    };
    Content { seed: random.random(), bytes }
}

/// Counters in the cluster: every addition that was acknowledged counts once, one of unknown outcome once or never.
#[derive(Clone)]
pub struct Counters {
    pool: Pool,
    record: Arc<Mutex<Vec<CounterRecord>>>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Default)]
struct CounterRecord {
    /// (called, answered, value)
    acknowledged: Vec<(Instant, Instant, i64)>,
    unknown: u64,
}

impl Counters {
    /// Counters as rows of objects of a pool.
    #[must_use]
    pub fn new(pool: Pool) -> Counters {
        let record = (0..COUNTERS).map(|_| CounterRecord::default()).collect();
        Counters { pool, record: Arc::new(Mutex::new(record)), stop: Arc::default() }
    }

    /// Ends the clients after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The counters' objects in their pool, for who wants them explained.
    #[must_use]
    pub fn subjects(pool: &str) -> Vec<Subject> {
        let name = |counter| Counters::name(counter).into_bytes();
        let subject = |counter| Subject::Object { pool: pool.to_owned(), name: name(counter) };
        (0..usize::try_from(COUNTERS).unwrap_or(0)).map(subject).collect()
    }

    fn name(counter: usize) -> String {
        format!("chaos-counter-{counter}")
    }

    fn object(counter: usize) -> anyhow::Result<ObjectName> {
        Ok(ObjectName::new(Counters::name(counter))?)
    }

    /// One client that adds, until it is told to stop.
    ///
    /// # Errors
    /// When an addition is answered with what makes no sense.
    pub async fn client(self, seed: u64) -> anyhow::Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        while !self.stop.load(Ordering::Relaxed) {
            let counter = random.random_range(0..usize::try_from(COUNTERS)?);
            let add = vec![ObjectOp::AddRow { key: COUNTER_ROW.to_vec(), delta: 1 }];
            let called = Instant::now();
            let outcome = self.pool.operate(&Counters::object(counter)?, add).await;
            let answered = Instant::now();
            {
                let mut record = self.record.lock();
                let record = record.get_mut(counter).context("no such counter")?;
                match outcome.as_ref().map(|outcome| outcome.results.as_slice()) {
                    Ok([OpResult::Counter(value)]) => record.acknowledged.push((called, answered, *value)),
                    Ok(other) => anyhow::bail!("an addition was answered with {other:?}"),
                    Err(OperateError::Timeout { .. }) => record.unknown += 1,
                    // It says for certain that nothing was done; counting it as unknown would only weaken the check.
                    Err(_) => {}
                }
            }
            if outcome.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Compares the counters with what was answered: additions acknowledged, and those of unknown outcome.
    ///
    /// # Errors
    /// With the first counter that counted something twice, or not at all.
    pub async fn check(&self) -> anyhow::Result<(u64, u64)> {
        let records = self.record.lock().clone();
        let (mut acknowledged, mut unknown) = (0, 0);
        for (counter, record) in records.iter().enumerate() {
            let get = ObjectOp::GetRows { keys: vec![COUNTER_ROW.to_vec().into()] };
            let outcome = self.pool.operate(&Counters::object(counter)?, vec![get]).await;
            let value = match outcome.as_ref().map(|outcome| outcome.results.as_slice()) {
                Ok([OpResult::RowValues(values)]) => {
                    let bytes = values.first().cloned().flatten().map(|blob| blob.as_ref().try_into());
                    bytes.transpose().context("a counter is not eight bytes long")?.map_or(0, i64::from_le_bytes)
                }
                Err(OperateError::NotFound { .. }) => 0,
                other => anyhow::bail!("counter {counter} cannot be read: {other:?}"),
            };
            judge_counter(record, value).map_err(|finding| anyhow::anyhow!("counter {counter}: {finding}"))?;
            acknowledged += record.acknowledged.len() as u64;
            unknown += record.unknown;
        }
        Ok((acknowledged, unknown))
    }
}

fn judge_counter(record: &CounterRecord, value: i64) -> Result<(), String> {
    let acknowledged = i64::try_from(record.acknowledged.len()).unwrap_or(i64::MAX);
    let most = acknowledged.saturating_add_unsigned(record.unknown);
    if !(acknowledged..=most).contains(&value) {
        return Err(format!(
            "holds {value} after {acknowledged} acknowledged and {} unknown additions",
            record.unknown
        ));
    }
    let values: BTreeSet<i64> = record.acknowledged.iter().map(|(_, _, value)| *value).collect();
    if values.len() != record.acknowledged.len() {
        return Err("two additions were answered with the same value".to_owned());
    }
    if let Some(beyond) = values.last().filter(|last| **last > value) {
        return Err(format!("holds {value}, and an addition was answered with {beyond}"));
    }
    let mut by_call = record.acknowledged.clone();
    by_call.sort_unstable_by_key(|(called, ..)| *called);
    let mut by_answer = record.acknowledged.clone();
    by_answer.sort_unstable_by_key(|(_, answered, _)| *answered);
    let mut done = by_answer.iter().peekable();
    let mut newest = 0;
    for (called, _, value) in by_call {
        while let Some((_, _, earlier)) = done.next_if(|(_, answered, _)| *answered < called) {
            newest = newest.max(*earlier);
        }
        if value <= newest {
            return Err(format!("an addition was answered with {value} after another had been with {newest}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(values: &[(u64, u64, i64)], unknown: u64) -> CounterRecord {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let acknowledged =
            values.iter().map(|(called, answered, value)| (at(*called), at(*answered), *value)).collect();
        CounterRecord { acknowledged, unknown }
    }

    #[test]
    fn a_counter_that_counts_twice_or_forgets_is_found() {
        assert_eq!(judge_counter(&record(&[(0, 1, 1), (2, 3, 2)], 0), 2), Ok(()));
        assert_eq!(judge_counter(&record(&[(0, 1, 1), (2, 3, 3)], 1), 3), Ok(()), "the unknown one counted");
        assert_eq!(judge_counter(&record(&[(0, 9, 2), (1, 8, 1)], 0), 2), Ok(()), "at the same time, in any order");
        assert!(judge_counter(&record(&[(0, 1, 1), (2, 3, 3)], 0), 3).is_err(), "one counted twice");
        assert!(judge_counter(&record(&[(0, 1, 1), (2, 3, 2)], 0), 1).is_err(), "one was forgotten");
        assert!(judge_counter(&record(&[(0, 1, 1), (2, 3, 1)], 1), 2).is_err(), "the same value twice");
        assert!(judge_counter(&record(&[(0, 1, 2), (2, 3, 1)], 0), 2).is_err(), "time went backwards");
        assert!(judge_counter(&record(&[(0, 1, 5)], 2), 3).is_err(), "more than there is");
    }
}
