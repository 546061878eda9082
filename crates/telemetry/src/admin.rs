//! The admin endpoint of a daemon: `/livez`, `/readyz`, `/status`, `/metrics` over HTTP.
//!
//! It serves at most [`REQUESTS_AT_ONCE`] requests at once and refuses the rest: a scraper gone wild costs nothing.
//! It takes no commands.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Requests served at once; each holds at most one encoded page (some hundred KiB).
const REQUESTS_AT_ONCE: usize = 8;

type StatusSource = Arc<dyn Fn() -> String + Send + Sync>;

/// What the endpoint shows. Clones share it.
#[derive(Clone)]
pub struct Admin {
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    status: StatusSource,
    slots: Arc<Semaphore>,
}

impl Admin {
    /// Shows these metrics, and as `/status` the JSON text that `status` gives.
    #[must_use]
    pub fn new(metrics: Metrics, status: impl Fn() -> String + Send + Sync + 'static) -> Admin {
        Admin {
            metrics,
            ready: Arc::new(AtomicBool::new(false)),
            status: Arc::new(status),
            slots: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
        }
    }

    /// Says whether the daemon serves; `/readyz` answers 503 until it does.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}

/// Serves the endpoint until `shutdown` is done.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    admin: Admin,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(admin)).with_graceful_shutdown(shutdown).await
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(admin.clone(), bounded))
        .with_state(admin)
}

async fn bounded(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Ok(_slot) = admin.slots.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many admin requests at once\n").into_response();
    };
    next.run(request).await
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.ready.load(Ordering::Acquire) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], (admin.status)()).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the endpoint listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn readiness_metrics_and_status_are_what_the_daemon_says() {
        let admin = Admin::new(Metrics::new("osd"), || "{\"pgs\":3}".to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(admin.clone(), listener, async move {
            let _ = stopped.await;
        }));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        admin.set_ready(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/status").await.ends_with("{\"pgs\":3}"));
        assert!(get(address, "/metrics").await.contains("holdfast_build_info"));
        assert!(get(address, "/shutdown").await.starts_with("HTTP/1.1 404"));

        stop.send(()).expect("the server runs");
        server.await.expect("no panic").expect("a clean end");
    }
}
