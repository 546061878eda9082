//! The admin endpoint of a daemon that runs in this process.

use std::net::SocketAddr;

use holdfast_telemetry::{Admin, Metrics};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};

/// Starts the endpoint, not ready yet.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(
    address: Option<SocketAddr>,
    role: &'static str,
    name: String,
    stop: CancellationToken,
) -> Result<Admin, Failure> {
    let status = json!({ "role": role, "name": name, "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION") });
    let status = status.to_string();
    let admin = Admin::new(Metrics::new(role), move || status.clone());
    if let Some(address) = address {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(Exit::Error, format!("cannot listen on {address} for the admin endpoint")).because(&error)
        })?;
        let served = holdfast_telemetry::serve(admin.clone(), listener, stop.cancelled_owned());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%error, "the admin endpoint ended");
            }
        });
    }
    Ok(admin)
}
