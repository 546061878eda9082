//! The three roles, started in this process: the only place that knows how each daemon's library is called.

use std::future::Future;
use std::num::NonZero;
use std::pin::Pin;

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

/// Starts a monitor. It is ready when it listens: whether there is a quorum depends on the others.
pub async fn start_mon(file: MonFile, stop: CancellationToken) -> Result<Role, Failure> {
    let name = file.id.to_string();
    let admin = admin::start(file.admin, "mon", name.clone(), stop.clone()).await?;
    let config = MonConfig {
        id: file.id,
        cluster: file.cluster,
        data: file.data,
        listen: Listen::Address(file.listen),
        members: file.monitors,
    };
    let handle = holdfast_mon::run(config, stop.clone()).await.map_err(|error| cannot_start(&name, &error))?;
    let end = async move {
        stop.cancelled().await;
        handle.shutdown().await;
        Ok(())
    };
    Ok(Role { admin, ready: Box::pin(std::future::ready(())), end: Box::pin(end) })
}

/// Starts a storage daemon. It is ready when the map shows it up.
pub async fn start_osd(file: OsdFile, stop: CancellationToken) -> Result<Role, Failure> {
    let name = file.id.map_or_else(|| "osd".to_owned(), |id| id.to_string());
    let admin = admin::start(file.admin, "osd", name.clone(), stop.clone()).await?;
    let listener = std::net::TcpListener::bind(file.listen)
        .map_err(|error| Failure::new(Exit::Error, format!("cannot listen on {}", file.listen)).because(&error))?;
    let shards = file.shards.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
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
        segment_bytes: file.segment.0,
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

/// Starts a gateway. It is ready when it serves.
pub async fn start_s3(_file: S3File, _stop: CancellationToken) -> Result<Role, Failure> {
    Err(Failure::new(Exit::Error, "this build has no gateway yet"))
}

fn cannot_start(name: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Error, format!("cannot start {name}")).because(error)
}
