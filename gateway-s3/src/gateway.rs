//! The gateway's shared parts: configuration, storage, memory budgets, and a short memory of buckets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::backend::{Backend, BackendError, TableId};
use crate::blob::{INLINE_BYTES_MAX, PART_INLINE_BYTES_MAX, STRIPE_BYTES};
use crate::budget::{Budget, COPIES_MAX, RESERVED_BYTES};
use crate::clock::Clock;
use crate::error::{Code, S3Result};
use crate::ops::complete::PART_BYTES_MIN;
use crate::row::{BucketRow, GLOBAL_TABLE, Row as _, route, row_key, space};
use crate::runtime::Runtime;

/// How long a bucket's row is remembered. A stale one does no harm: its table is gone, which is noticed.
const BUCKET_CACHE_MS: u64 = 10_000;
/// Most buckets remembered.
const BUCKET_CACHE_MAX: usize = 10_000;

/// Where the lines are drawn between what lives in a row, a stripe, several. Others than these are for tests: small ones
/// reach every path with few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Largest object that lives in a row.
    pub inline_bytes_max: u64,
    /// Largest part that lives in a row.
    pub part_inline_bytes_max: u64,
    /// Bytes of a stripe: one object of the pool.
    pub stripe_bytes: u32,
    /// Smallest part but the last.
    pub part_bytes_min: u64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            inline_bytes_max: INLINE_BYTES_MAX,
            part_inline_bytes_max: PART_INLINE_BYTES_MAX,
            stripe_bytes: STRIPE_BYTES,
            part_bytes_min: PART_BYTES_MIN,
        }
    }
}

/// How a gateway behaves.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The region that signatures must be made for.
    pub region: String,
    /// Domains under which `bucket.domain` names a bucket (virtual-host style), without port.
    pub base_domains: Vec<String>,
    /// Bytes of request bodies in memory, over all requests.
    pub receive_budget_bytes: usize,
    /// Bytes of replies in memory, over all requests; 16 KiB for each connection come on top when that is used up.
    pub send_budget_bytes: usize,
    /// Bytes of request documents (XML) in memory, with what is made of them, over all requests.
    pub document_budget_bytes: usize,
    /// Bytes of listings in memory, over all requests.
    pub listing_budget_bytes: usize,
    /// Connections served at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Time for a client to send a request's head.
    pub header_timeout: Duration,
    /// How long requests in progress may go on after shutdown was asked for.
    pub drain_timeout: Duration,
    /// After this long without a result, a slow operation's reply starts with white space, and gets more as often.
    pub keep_alive_every: Duration,
    /// Age at which blobs that nothing refers to are deleted: longer than any reader may take to start on them.
    pub gc_min_age: Duration,
    /// Pause between rounds of the collector; `None` means that none runs.
    pub gc_every: Option<Duration>,
    /// What is small and what is large.
    pub sizes: Sizes,
}

impl Default for GatewayConfig {
    fn default() -> GatewayConfig {
        GatewayConfig {
            region: "us-east-1".to_owned(),
            base_domains: Vec::new(),
            receive_budget_bytes: 80 << 20,
            send_budget_bytes: 48 << 20,
            document_budget_bytes: 32 << 20,
            listing_budget_bytes: 24 << 20,
            connections_max: 1024,
            header_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(20),
            keep_alive_every: Duration::from_secs(5),
            gc_min_age: Duration::from_secs(15 * 60),
            gc_every: Some(Duration::from_secs(60)),
            sizes: Sizes::default(),
        }
    }
}

impl GatewayConfig {
    pub(crate) fn gc_min_age_ms(&self) -> u64 {
        u64::try_from(self.gc_min_age.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A bucket as requests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Its name.
    pub name: String,
    /// Its row.
    pub row: BucketRow,
}

impl Bucket {
    /// The table of its rows.
    pub fn table(&self) -> TableId {
        self.row.table
    }
}

/// A gateway over some storage.
pub struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) backend: Backend,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Runtime,
    pub(crate) receive_budget: Budget,
    pub(crate) send_budget: Budget,
    pub(crate) send_reserve: Budget,
    pub(crate) document_budget: Budget,
    pub(crate) listing_budget: Budget,
    pub(crate) copies: Semaphore,
    /// Told when a request was refused because the cluster is full.
    pub(crate) refused_for_room: Notify,
    buckets: Mutex<HashMap<String, (Arc<Bucket>, u64)>>,
}

impl Gateway {
    /// A gateway; [`Gateway::prepare`] must succeed before it can serve.
    pub fn new(config: GatewayConfig, backend: Backend, clock: Arc<dyn Clock>) -> Arc<Gateway> {
        Gateway::within(config, backend, clock, Runtime::default())
    }

    /// [`Gateway::new`], in another world.
    pub fn within(config: GatewayConfig, backend: Backend, clock: Arc<dyn Clock>, runtime: Runtime) -> Arc<Gateway> {
        let budget = |bytes| Budget::new(bytes, runtime.clone());
        Arc::new(Gateway {
            receive_budget: budget(config.receive_budget_bytes),
            send_budget: budget(config.send_budget_bytes),
            send_reserve: budget(config.connections_max.saturating_mul(RESERVED_BYTES)),
            document_budget: budget(config.document_budget_bytes),
            listing_budget: budget(config.listing_budget_bytes),
            copies: Semaphore::new(COPIES_MAX),
            refused_for_room: Notify::new(),
            buckets: Mutex::new(HashMap::new()),
            config,
            backend,
            clock,
            runtime,
        })
    }

    /// Makes the table of buckets if it is not there.
    pub async fn prepare(&self) -> Result<(), BackendError> {
        self.backend.tables.create_table(GLOBAL_TABLE).await
    }

    /// Finds a bucket.
    pub(crate) async fn bucket(&self, name: &str) -> S3Result<Arc<Bucket>> {
        let now_ms = self.clock.now_ms();
        if let Some((bucket, until_ms)) = self.buckets.lock().get(name)
            && *until_ms > now_ms
        {
            return Ok(bucket.clone());
        }
        let bucket = self.bucket_fresh(name).await?.ok_or(Code::NoSuchBucket)?;
        let mut buckets = self.buckets.lock();
        if buckets.len() >= BUCKET_CACHE_MAX {
            buckets.clear();
        }
        buckets.insert(name.to_owned(), (bucket.clone(), now_ms.saturating_add(BUCKET_CACHE_MS)));
        Ok(bucket)
    }

    /// Finds a bucket, past the cache.
    pub(crate) async fn bucket_fresh(&self, name: &str) -> S3Result<Option<Arc<Bucket>>> {
        let route = route(name);
        let key = row_key(space::BUCKETS, &route, &[]);
        let rows = self.backend.tables.get(GLOBAL_TABLE, &route, vec![key]).await?;
        let Some(value) = rows.into_iter().next().flatten() else { return Ok(None) };
        Ok(Some(Arc::new(Bucket { name: name.to_owned(), row: BucketRow::from_bytes(&value)? })))
    }

    /// Forgets a bucket that turned out to be gone.
    pub(crate) fn forget_bucket(&self, name: &str) {
        self.buckets.lock().remove(name);
    }
}
