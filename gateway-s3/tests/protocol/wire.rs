//! What needs a real connection: Expect, keep-alive after errors, shutdown, garbage.

use std::sync::Arc;
use std::time::Duration;

use holdfast_gateway_s3::server::accept;
use http::HeaderMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{World, headers, pattern};

struct Served {
    world: Arc<World>,
    address: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn serve() -> Served {
    let world = Arc::new(World::with_bucket().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let task = tokio::spawn(accept(world.gateway.clone(), listener, stop.clone()));
    Served { world, address, stop, task }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    fn head(&self, method: &str, target: &str, extra: &[(&str, &str)], literal: &str) -> String {
        let mut signed = headers(&[("host", self.address.as_str())]);
        for (name, value) in extra.iter().filter(|(name, _)| name.starts_with("x-amz-")) {
            signed.insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        let all: HeaderMap = self.world.signer().sign_literal(method, target, signed, literal).headers;
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        for (name, value) in &all {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        for (name, value) in extra.iter().filter(|(name, _)| !name.starts_with("x-amz-")) {
            text += &format!("{name}: {value}\r\n");
        }
        text + "\r\n"
    }
}

/// Reads one reply: head and, by its Content-Length, body.
async fn read_reply(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut data = Vec::new();
    let end = loop {
        if let Some(at) = data.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut buffer = [0; 4096];
        let n = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "the connection ended early: {}", String::from_utf8_lossy(&data));
        data.extend_from_slice(&buffer[..n]);
    };
    let head = String::from_utf8(data[..end].to_vec()).unwrap();
    let length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = data[end..].to_vec();
    if !head.starts_with("HTTP/1.1 100") {
        while body.len() < length.unwrap_or(0) {
            let mut buffer = [0; 65536];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0);
            body.extend_from_slice(&buffer[..n]);
        }
    }
    (head, body)
}

/// Trap 7: errors that need no body come instead of `100 Continue`.
/// botocore keeps a final status that came in place of `100 Continue` for all later replies on that connection.
#[tokio::test]
async fn a_connection_ends_with_a_reply_that_came_in_place_of_100_continue() {
    let served = serve().await;
    let mut stream = served.connect().await;
    let expecting = [("Content-Length", "0"), ("Expect", "100-continue")];
    let empty = served.head("PUT", "/bkt/empty", &expecting, "UNSIGNED-PAYLOAD");
    stream.write_all(empty.as_bytes()).await.unwrap();
    let (head, _) = read_reply(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "it is closed");
}

#[tokio::test]
async fn continue_is_sent_only_after_all_checks_that_need_no_body() {
    let served = serve().await;
    let expect = [("expect", "100-continue"), ("content-length", "5")];
    for (target, status) in [("/none/k", "404"), ("/bkt/k?partNumber=1&uploadId=x", "404")] {
        let mut stream = served.connect().await;
        stream.write_all(served.head("PUT", target, &expect, "UNSIGNED-PAYLOAD").as_bytes()).await.unwrap();
        let (head, _) = read_reply(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    }
    let mut stream = served.connect().await;
    stream.write_all(served.head("PUT", "/bkt/k", &expect, "UNSIGNED-PAYLOAD").as_bytes()).await.unwrap();
    let (head, _) = read_reply(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let (head, _) = read_reply(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(served.world.get("/bkt/k").await.ok().text(), "hello");
}

#[tokio::test]
async fn a_connection_lives_on_after_an_early_error() {
    let served = serve().await;
    let mut stream = served.connect().await;
    let body = pattern(1 << 20);
    for _ in 0..3 {
        let length = body.len().to_string();
        let head = served.head("PUT", "/none/k", &[("content-length", &length)], "UNSIGNED-PAYLOAD");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let (head, text) = read_reply(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        assert!(String::from_utf8(text).unwrap().contains("NoSuchBucket"));
    }
    let (head, text) = {
        stream.write_all(served.head("GET", "/bkt/none", &[], "UNSIGNED-PAYLOAD").as_bytes()).await.unwrap();
        read_reply(&mut stream).await
    };
    let id = head.lines().find_map(|line| line.strip_prefix("x-amz-request-id: ")).unwrap().to_owned();
    assert!(String::from_utf8(text).unwrap().contains(&format!("<RequestId>{id}</RequestId>")));
}

#[tokio::test]
async fn head_keeps_the_length_and_sends_no_body() {
    let served = serve().await;
    served.world.put("/bkt/k", &pattern(50_000)).await.ok();
    let mut stream = served.connect().await;
    for _ in 0..2 {
        stream.write_all(served.head("HEAD", "/bkt/k", &[], "UNSIGNED-PAYLOAD").as_bytes()).await.unwrap();
        let mut data = vec![0; 4096];
        let n = stream.read(&mut data).await.unwrap();
        let text = String::from_utf8(data[..n].to_vec()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("content-length: 50000") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn health_answers_without_a_signature() {
    let served = serve().await;
    let mut stream = served.connect().await;
    stream.write_all(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(read_reply(&mut stream).await.0.starts_with("HTTP/1.1 200"));
    served.world.memory.unavailable.store(true, std::sync::atomic::Ordering::SeqCst);
    stream.write_all(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(read_reply(&mut stream).await.0.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn garbage_closes_the_connection_and_shutdown_lets_requests_finish() {
    let served = serve().await;
    let mut garbage = served.connect().await;
    garbage.write_all(b"\x16\x03\x01garbage\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), garbage.read_to_end(&mut rest)).await.unwrap();

    let mut stream = served.connect().await;
    let extra = [("content-length", "5"), ("expect", "100-continue")];
    stream.write_all(served.head("PUT", "/bkt/k", &extra, "UNSIGNED-PAYLOAD").as_bytes()).await.unwrap();
    assert!(read_reply(&mut stream).await.0.starts_with("HTTP/1.1 100"), "the body is being read");
    stream.write_all(b"he").await.unwrap();
    served.stop.cancel();
    stream.write_all(b"llo").await.unwrap();
    assert!(read_reply(&mut stream).await.0.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(Duration::from_secs(10), served.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(&served.address).await.is_err());
}
