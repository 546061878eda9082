//! A listing holds exactly what was committed before it began and not deleted, plus possibly what changed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use futures::future::try_join_all;
use holdfast_tests::content::Content;
use holdfast_tests::s3::S3;
use holdfast_tests::world::{World, dose, seed};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const BUCKET: &str = "listings";
const WRITERS: u64 = 4;
/// Keys of one writer; with four writers more than one page.
const KEYS: u64 = 400;

/// A key as its writer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Whether the object is there; `None` while an operation is under way.
    present: Option<bool>,
    /// Operations begun.
    changes: u64,
}

type Keys = Arc<Mutex<BTreeMap<String, Known>>>;

async fn write(s3: S3, keys: Keys, writer: u64, seed: u64, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed ^ writer);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{:03}-{writer}", random.random_range(0..KEYS));
        let put = random.random_bool(0.6);
        {
            let mut keys = keys.lock();
            let known = keys.entry(key.clone()).or_insert(Known { present: None, changes: 0 });
            (known.present, known.changes) = (None, known.changes + 1);
        }
        if put {
            s3.put(BUCKET, &key, Content { seed: 1, bytes: 100 }).await?;
        } else {
            s3.delete(BUCKET, &key).await?;
        }
        if let Some(known) = keys.lock().get_mut(&key) {
            known.present = Some(put);
        }
    }
    Ok(())
}

fn judge(before: &BTreeMap<String, Known>, after: &BTreeMap<String, Known>, listed: &BTreeSet<String>) -> Vec<String> {
    let all = after.keys().chain(listed).collect::<BTreeSet<_>>();
    all.into_iter()
        .filter_map(|key| {
            let (known, later) = (before.get(key), after.get(key));
            let expected = match known {
                _ if known != later => return None,
                None => false,
                Some(known) => known.present?,
            };
            (expected != listed.contains(key)).then(|| format!("{key}: {known:?}, listed: {}", !expected))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_exact_while_four_writers_run() -> anyhow::Result<()> {
    let seed = seed();
    let world = World::start(1, 3).await?;
    let s3 = world.s3_with(BUCKET).await?;
    let keys = Keys::default();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|id| tokio::spawn(write(s3.clone(), keys.clone(), id, seed, stop.clone()))).collect();
    let (mut unchanged, listings) = (0, dose(300, 10_000));
    for _ in 0..listings {
        let before = keys.lock().clone();
        let listed = s3.list(BUCKET, "").await?;
        let after = keys.lock().clone();
        let wrong = judge(&before, &after, &listed);
        ensure!(wrong.is_empty(), "a listing of {} keys is wrong: {wrong:?}", listed.len());
        unchanged += after.iter().filter(|(key, known)| before.get(*key) == Some(known)).count();
    }
    stop.store(true, Ordering::Relaxed);
    for writer in try_join_all(writers).await? {
        writer?;
    }
    let changes: u64 = keys.lock().values().map(|known| known.changes).sum();
    println!("   {listings} listings during {changes} changes; {unchanged} keys had to be as they were");
    world.end().await
}
