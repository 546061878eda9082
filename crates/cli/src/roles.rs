//! The three roles, started in this process: the only place that knows how each daemon's library is called.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::pin::Pin;

use holdfast_gateway_s3::cluster_backend::{KEYS_FRESH, Pools};
use holdfast_gateway_s3::{GatewayConfig, S3Config};
use holdfast_mon::{Listen, MonConfig};
use holdfast_osd::OsdConfig;
use holdfast_telemetry::Admin;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config::{MonFile, OsdFile, S3File};
use crate::failure::{Exit, Failure};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A daemon that was started. It ends when its stop token is cancelled, or by itself with a failure.
pub struct Role {
    /// Its admin endpoint, for readiness.
    pub admin: Admin,
    /// Done when it serves.
    pub ready: Boxed<()>,
    /// Done when it has ended.
    pub end: Boxed<Result<(), Failure>>,
}

/// Starts a monitor; with `bootstrap`, one of a cluster that is being formed. It is ready when it listens: whether there
/// is a quorum depends on the others.
pub async fn start_mon(file: MonFile, bootstrap: bool, stop: CancellationToken) -> Result<Role, Failure> {
    let name = file.id.to_string();
    let admin = admin::start(file.admin, "mon", name.clone(), stop.clone()).await?;
    let config = MonConfig {
        id: file.id,
        cluster: file.cluster,
        data: file.data,
        listen: Listen::Address(file.listen),
        members: file.monitors,
        bootstrap,
    };
    let handle = holdfast_mon::run(config, stop).await.map_err(|error| cannot_start(&name, &error))?;
    let end = async move {
        handle.join().await.map_err(|error| Failure::new(Exit::Error, format!("{name} had to end")).because(&error))
    };
    Ok(Role { admin, ready: Box::pin(std::future::ready(())), end: Box::pin(end) })
}

/// Starts a storage daemon. It is ready when the map shows it up.
pub async fn start_osd(file: OsdFile, stop: CancellationToken) -> Result<Role, Failure> {
    let name = file.id.map_or_else(|| "osd".to_owned(), |id| id.to_string());
    let admin = admin::start(file.admin, "osd", name.clone(), stop.clone()).await?;
    let listener = listen(file.listen)?;
    let shards = file.shards.unwrap_or_else(default_shards);
    let segment_bytes = u32::try_from(file.segment.0).map_err(|_| {
        Failure::usage("a segment cannot be 4 GiB or more").next("segment = \"64 MiB\" suits most disks")
    })?;
    let config = OsdConfig {
        cluster: file.cluster,
        data_dir: file.data,
        device: file.device,
        capacity_bytes: file.capacity.0,
        monitors: file.monitors,
        advertise: file.advertise,
        location: file.location.into_iter().map(|step| step.0).collect(),
        class: file.class,
        wanted_id: file.id,
        memory_target: file.memory_target.0,
        segment_bytes,
        shards: shards.max(1),
    };
    let osd = holdfast_osd::start(config, listener, stop).await.map_err(|error| cannot_start(&name, &error))?;
    let up = osd.wait_up();
    let ready = async move {
        if !up.await {
            // It ended before; `end` says why.
            std::future::pending::<()>().await;
        }
    };
    let end = async move {
        osd.join().await.map_err(|error| Failure::new(Exit::Error, format!("{name} had to end")).because(&error))
    };
    Ok(Role { admin, ready: Box::pin(ready), end: Box::pin(end) })
}

/// Half the cores, the other half being the store's, the network's and the other daemons' of the host. One thread that
/// is busy answers several requests in a turn; eight keep up with any disk of today.
fn default_shards() -> usize {
    (std::thread::available_parallelism().map_or(1, NonZero::get) / 2).clamp(1, 8)
}

/// Starts a gateway; returns when it serves.
pub async fn start_s3(file: S3File, stop: CancellationToken) -> Result<Role, Failure> {
    let name = file.name.clone().unwrap_or_else(|| "the gateway".to_owned());
    let admin = admin::start(file.admin, "s3", file.listen.to_string(), stop.clone()).await?;
    let listener = listen(file.listen)?;
    let gateway = GatewayConfig { region: file.region, base_domains: file.domains, ..GatewayConfig::default() };
    let config = S3Config {
        cluster: file.cluster,
        monitors: file.monitors,
        advertise: file.advertise,
        name: file.name,
        pools: Pools { index: file.index_pool, data: file.data_pool, copies: file.pool_size },
        keys_fresh: KEYS_FRESH,
        gateway,
    };
    let handle =
        holdfast_gateway_s3::start(config, listener, stop).await.map_err(|error| cannot_start(&name, &error))?;
    let end = async move {
        handle.join().await.map_err(|error| Failure::new(Exit::Error, format!("{name} had to end")).because(&error))
    };
    Ok(Role { admin, ready: Box::pin(std::future::ready(())), end: Box::pin(end) })
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .map_err(|error| Failure::new(Exit::Error, format!("cannot listen on {address}")).because(&error))
}

fn cannot_start(name: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Error, format!("cannot start {name}")).because(error)
}
