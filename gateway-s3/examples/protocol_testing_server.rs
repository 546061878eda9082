//! Serves the S3 protocol over memory, to try real clients against the protocol code. It keeps nothing and is no
//! storage: everything is gone when it ends. `cargo run --example protocol_testing_server -- 127.0.0.1:9000`.

use std::sync::Arc;

use holdfast_gateway_s3::clock::SystemClock;
use holdfast_gateway_s3::testing::memory::Memory;
use holdfast_gateway_s3::{Gateway, GatewayConfig, serve};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("protocol test server on {}", listener.local_addr()?);
    let backend = Memory::new().backend();
    let config = GatewayConfig { base_domains: vec!["localhost".to_owned()], ..GatewayConfig::default() };
    let gateway = Gateway::new(config, backend, Arc::new(SystemClock));
    gateway.prepare().await?;
    serve(gateway, listener, CancellationToken::new()).await;
    Ok(())
}
