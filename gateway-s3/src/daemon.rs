//! The gateway as a daemon: joins the cluster, serves, and tells the monitors that it is there.
//!
//! A gateway that is started before the cluster waits for it. It has no state of its own: stopping it in any way and
//! starting it anywhere else loses nothing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_client::{Client, ClientConfig, ClientError};
use holdfast_types::{ClusterId, Incarnation};
use holdfast_wire::mon::MonCommand;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backend::BackendError;
use crate::clock::SystemClock;
use crate::cluster_backend::{ConnectError, KEYS_FRESH, Pools, connect_with};
use crate::gateway::{Gateway, GatewayConfig};
use crate::server::serve;

/// How often the monitors are told; a third of their lease, so that two messages may be lost.
const REGISTER_EVERY: Duration = Duration::from_secs(10);
/// Pause before the cluster is tried again at start.
const START_PAUSE: Duration = Duration::from_millis(200);

/// What a gateway daemon is made from.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Some monitors, as `host:port`.
    pub monitors: Vec<String>,
    /// How clients reach it, as `host:port`; the listener's address without.
    pub advertise: Option<String>,
    /// The name under which it registers; drawn from the address without.
    pub name: Option<String>,
    /// Its pools.
    pub pools: Pools,
    /// How long a key that the monitors confirmed is used without asking again.
    pub keys_fresh: Duration,
    /// How it behaves: region, domains, limits.
    pub gateway: GatewayConfig,
}

impl S3Config {
    /// A gateway of a cluster, with the usual rest.
    #[must_use]
    pub fn new(cluster: ClusterId, monitors: Vec<String>) -> S3Config {
        S3Config {
            cluster,
            monitors,
            advertise: None,
            name: None,
            pools: Pools::default(),
            keys_fresh: KEYS_FRESH,
            gateway: GatewayConfig::default(),
        }
    }
}

/// Why a gateway does not serve.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The listener cannot be used.
    #[error("the listening socket cannot be used")]
    Listener(#[source] std::io::Error),
    /// The cluster refuses this gateway, for good.
    #[error("the cluster cannot be joined")]
    Refused(#[source] ClientError),
    /// It was told to stop before it served.
    #[error("stopped before it served")]
    Stopped,
    /// A task of it panicked; the log says where.
    #[error("the gateway broke off")]
    BrokeOff,
}

/// A gateway that serves.
pub struct S3Handle {
    address: SocketAddr,
    gateway: Arc<Gateway>,
    served: JoinHandle<()>,
    stop: CancellationToken,
}

impl fmt::Debug for S3Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Handle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl S3Handle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The gateway itself.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Asks it to end: requests in progress are finished.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`DaemonError::BrokeOff`].
    pub async fn join(self) -> Result<(), DaemonError> {
        self.served.await.map_err(|_| DaemonError::BrokeOff)
    }
}

/// Starts a gateway on a bound listener; returns when it serves. Until then it tries the cluster again and again.
///
/// # Errors
/// [`DaemonError`]: what trying again does not mend.
pub async fn start(
    config: S3Config,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> Result<S3Handle, DaemonError> {
    let stop = shutdown.child_token();
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    let listener = listener.map_err(DaemonError::Listener)?;
    let address = listener.local_addr().map_err(DaemonError::Listener)?;
    let joined = stop.clone().run_until_cancelled_owned(join_cluster(config.clone())).await;
    let (client, gateway) = joined.ok_or(DaemonError::Stopped)??;
    let advertised = config.advertise.unwrap_or_else(|| address.to_string());
    let name = config.name.unwrap_or_else(|| format!("s3.{advertised}"));
    tokio::spawn(stop.clone().run_until_cancelled_owned(register(client.clone(), name, advertised)));
    let serving = serve(gateway.clone(), listener, stop.clone());
    let served = tokio::spawn(async move {
        serving.await;
        client.shutdown().await;
    });
    Ok(S3Handle { address, gateway, served, stop })
}

/// [`start`], and serving until `shutdown`.
///
/// # Errors
/// [`DaemonError`].
pub async fn run(
    config: S3Config,
    listener: std::net::TcpListener,
    shutdown: CancellationToken,
) -> Result<(), DaemonError> {
    match start(config, listener, shutdown).await {
        Ok(handle) => handle.join().await,
        Err(DaemonError::Stopped) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn join_cluster(config: S3Config) -> Result<(Client, Arc<Gateway>), DaemonError> {
    let client = loop {
        match Client::connect(ClientConfig::new(config.cluster, config.monitors.clone())).await {
            Ok(client) => break client,
            Err(error) if is_final(&error) => return Err(DaemonError::Refused(error)),
            Err(error) => tracing::warn!(%error, "waiting for the monitors"),
        }
        tokio::time::sleep(START_PAUSE).await;
    };
    let backend = loop {
        match connect_with(client.clone(), &config.pools, config.keys_fresh).await {
            Ok(backend) => break backend,
            Err(ConnectError::Client(error)) if is_final(&error) => return Err(DaemonError::Refused(error)),
            Err(error) => tracing::warn!(%error, "waiting for the pools"),
        }
        tokio::time::sleep(START_PAUSE).await;
    };
    let gateway = Gateway::new(config.gateway, backend.as_ref().clone(), Arc::new(SystemClock));
    loop {
        match gateway.prepare().await {
            Ok(()) => return Ok((client, gateway)),
            Err(error @ BackendError::Unavailable(_)) => tracing::warn!(%error, "waiting for the storage daemons"),
            Err(error) => tracing::error!(%error, "the table of buckets cannot be made; trying again"),
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

/// Whether trying again cannot help: an address that is none, another cluster, a refusal.
fn is_final(error: &ClientError) -> bool {
    use holdfast_client::MonSessionError as Session;
    match error {
        ClientError::Session(Session::Refused { .. } | Session::NoAddress { .. }) => true,
        ClientError::Mon(error) => matches!(error, holdfast_wire::mon::MonError::Invalid { .. }),
        _ => false,
    }
}

/// Tells the monitors of this gateway, again and again.
async fn register(client: Client, name: String, address: String) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let incarnation = Incarnation(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let mut known = true;
    loop {
        let command = MonCommand::ServiceRegister {
            name: name.clone(),
            kind: "s3".to_owned(),
            address: address.clone(),
            incarnation,
        };
        match client.mon_command(command).await {
            Ok(_) => known = true,
            Err(error) if known => {
                known = false;
                tracing::warn!(%error, "the monitors were not told of this gateway; it serves all the same");
            }
            Err(_) => {}
        }
        tokio::time::sleep(REGISTER_EVERY).await;
    }
}
