//! The S3 load against the gateway's own protocol code, over memory: the signatures are accepted, what is written is
//! read, and a refusal is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_bench::load::{Bounds, Outcome, run};
use holdfast_bench::objects::Op;
use holdfast_bench::s3::{S3Connection, S3Worker, fill, make_bucket};
use holdfast_gateway_s3::clock::SystemClock;
use holdfast_gateway_s3::testing::memory::Memory;
use holdfast_gateway_s3::{Gateway, GatewayConfig, serve};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "of the bench's own test";

/// A gateway that ends with the guard, and its endpoint.
async fn gateway() -> (String, DropGuard) {
    let memory = Memory::new();
    memory.add_key(ACCESS_KEY, SECRET_KEY);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let gateway = Gateway::new(GatewayConfig::default(), memory.backend(), Arc::new(SystemClock));
    gateway.prepare().await.expect("the tables are made");
    tokio::spawn(serve(gateway, listener, stop.clone()));
    (endpoint, stop.drop_guard())
}

async fn load(connection: &S3Connection, op: Op, body: &Bytes) -> Outcome {
    let worker = |_| S3Worker { connection: connection.another(), op, body: body.clone(), objects: 4 };
    let bounds = Bounds { time: Duration::from_secs(60), ops_max: 20 };
    run((0..4).map(worker).collect(), bounds).await.expect("no worker panics")
}

#[tokio::test]
async fn what_is_put_is_got_over_kept_connections() {
    let (endpoint, _running) = gateway().await;
    let mut connection = S3Connection::new(&endpoint, "us-east-1", ACCESS_KEY, SECRET_KEY).expect("an endpoint");
    make_bucket(&mut connection).await.expect("made");
    // Below and above what a gateway keeps in its index row, and larger than one read of a socket.
    for bytes in [4096, 1 << 20] {
        let body = Bytes::from(vec![7; bytes]);
        fill(&mut connection, &body, 4).await.expect("filled");
        for op in [Op::Write, Op::Read] {
            let outcome = load(&connection, op, &body).await;
            assert_eq!((outcome.ops, outcome.errors, &outcome.first_error), (20, 0, &None));
        }
    }
}

#[tokio::test]
async fn a_refused_op_is_an_error_with_the_reason_of_the_server() {
    let (endpoint, _running) = gateway().await;
    let connection = S3Connection::new(&endpoint, "us-east-1", ACCESS_KEY, "another secret").expect("an endpoint");
    let outcome = load(&connection, Op::Write, &Bytes::from_static(&[1; 4096])).await;
    assert_eq!((outcome.ops, outcome.errors), (0, 20));
    let reason = outcome.first_error.expect("kept");
    assert!(reason.contains("403") && reason.contains("SignatureDoesNotMatch"), "{reason}");
}

#[tokio::test]
async fn an_object_that_is_not_there_is_an_error() {
    let (endpoint, _running) = gateway().await;
    let mut connection = S3Connection::new(&endpoint, "us-east-1", ACCESS_KEY, SECRET_KEY).expect("an endpoint");
    make_bucket(&mut connection).await.expect("made");
    let outcome = load(&connection, Op::Read, &Bytes::from_static(&[1; 4096])).await;
    assert_eq!((outcome.ops, outcome.errors), (0, 20));
}
