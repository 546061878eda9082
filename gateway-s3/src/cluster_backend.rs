//! The real storage: rows in KV groups, blobs as objects, keys from the monitors.
//!
//! Pools: `s3-index` for rows, `s3-data` for blobs (names can be chosen). One stripe of a blob is one object, written
//! whole in one op, so that its bytes travel from the request's buffer to the socket without a copy.
//!
//! What an error says about the effect is kept: [`BackendError::Unavailable`] of a write means "perhaps", everything else
//! means "no". Nobody may undo what perhaps happened: a blob of an unknown outcome stays with its intent row, and the
//! collector decides.

mod blobs;
mod keys;
mod tables;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{Client, ClientError, Pool};
use holdfast_kvgroup as kv;
use holdfast_wire::mon::{MonCommand, MonError, MonReply};
use holdfast_wire::pools::{S3_DATA_POOL, S3_INDEX_POOL, StandardPool};

use crate::backend::{Backend, BackendError, Keys};
use crate::runtime::Runtime;

pub use blobs::DataObjects;

/// How long an answer of the monitors about a key counts as new, as a rule.
pub const KEYS_FRESH: Duration = keys::FRESH;

/// Which pools a gateway uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    /// Of rows.
    pub index: String,
    /// Of blobs.
    pub data: String,
    /// Copies in those that this gateway has to make; `None`: three.
    pub copies: Option<u32>,
}

impl Default for Pools {
    fn default() -> Pools {
        Pools { index: S3_INDEX_POOL.name.to_owned(), data: S3_DATA_POOL.name.to_owned(), copies: None }
    }
}

/// Why the storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The cluster.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A pool made now would keep fewer copies, until a person sets more (`holdfast pool set`).
    #[error(
        "pool {pool} is not made yet: the cluster has {osds} storage daemons, and its {copies} copies need as many; for \
         fewer copies set `pool_size` in this gateway's file, or `holdfast pool create`"
    )]
    TooFewOsds {
        /// Its name.
        pool: String,
        /// How many there are.
        osds: u32,
        /// Copies that it is to have.
        copies: u32,
    },
    /// The monitors answered something else.
    #[error("the monitors' answer about pool {pool} makes no sense")]
    Unexpected {
        /// Its name.
        pool: String,
    },
}

/// The storage of the usual pools; they are made if they are not there.
///
/// # Errors
/// [`ConnectError`]; it can be tried again.
pub async fn connect(client: Client) -> Result<Arc<Backend>, ConnectError> {
    connect_with(client, &Pools::default(), KEYS_FRESH).await
}

/// [`connect`], with other pools, and answers about keys that count as new for `keys_fresh`.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_with(client: Client, pools: &Pools, keys_fresh: Duration) -> Result<Arc<Backend>, ConnectError> {
    let (index, data) = tokio::try_join!(
        pool(&client, pools, &pools.index, &S3_INDEX_POOL),
        pool(&client, pools, &pools.data, &S3_DATA_POOL)
    )?;
    let keys = keys::ClusterKeys::new(client.cluster(), client);
    let keys = Arc::new(keys::KeyCache::new(keys, keys_fresh));
    Ok(Arc::new(over(index, kv::Config::default(), data, keys, Runtime::default())))
}

/// The storage over any objects: rows in KV groups of `index`, stripes as objects of `data`.
pub fn over(
    index: impl kv::Objects,
    config: kv::Config,
    data: impl DataObjects,
    keys: Arc<dyn Keys>,
    runtime: Runtime,
) -> Backend {
    Backend {
        tables: Arc::new(tables::KvTables::new(index, config)),
        blobs: Arc::new(blobs::ObjectBlobs::new(data, runtime)),
        keys,
    }
}

/// Copies of a pool that a gateway makes.
const COPIES: u32 = 3;

/// The pool, made if it is not there.
async fn pool(client: &Client, pools: &Pools, name: &str, standard: &StandardPool) -> Result<Pool, ConnectError> {
    match client.pool(name).await {
        Err(ClientError::PoolNotFound { .. }) => {}
        found => return Ok(found?),
    }
    // A pool keeps the number of copies that its maker asks for: those of the daemons that have come so far would do for
    // the first minute only.
    let copies = pools.copies.unwrap_or(COPIES);
    match client.mon_command(MonCommand::Status).await? {
        MonReply::Status(status) if status.osds >= copies => {}
        MonReply::Status(status) => {
            return Err(ConnectError::TooFewOsds { pool: name.to_owned(), osds: status.osds, copies });
        }
        _ => return Err(ConnectError::Unexpected { pool: name.to_owned() }),
    }
    match client.mon_command(standard.create_as(name, Some(copies))).await {
        // Somebody else made it, and perhaps otherwise: it is the pool of that name.
        Ok(MonReply::Pool { .. }) | Err(ClientError::Mon(MonError::Exists { .. })) => {}
        Ok(_) => return Err(ConnectError::Unexpected { pool: name.to_owned() }),
        Err(error) => return Err(error.into()),
    }
    tracing::info!(pool = name, "pool made");
    Ok(client.pool(name).await?)
}

fn unavailable(error: impl Error + Send + Sync + 'static) -> BackendError {
    BackendError::Unavailable(Box::new(error))
}

fn failed(error: impl Error + Send + Sync + 'static) -> BackendError {
    BackendError::Failed(Box::new(error))
}
