//! Endpoints, handlers and raw streams for the tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_net::*;
use holdfast_types::{ClientId, ClusterId, Incarnation, OsdId};
use holdfast_wire::frame::{Frame, FrameDecoder, Goodbye, Hello, Label, Limits, Step, encode_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub fn osd(id: u32) -> PeerIdentity {
    PeerIdentity::Osd(OsdId(id))
}

pub fn identity(identity: PeerIdentity, incarnation: u64) -> LocalIdentity {
    let incarnation = Incarnation(incarnation);
    LocalIdentity { cluster: CLUSTER, identity, incarnation, features: 0b111, features_required: 0b001 }
}

pub fn endpoint_with(local: LocalIdentity, config: NetConfig) -> Arc<Endpoint> {
    Endpoint::new(local, config, CancellationToken::new())
}

pub fn endpoint(who: PeerIdentity, incarnation: u64) -> Arc<Endpoint> {
    endpoint_with(identity(who, incarnation), NetConfig::default())
}

pub fn client() -> Arc<Endpoint> {
    endpoint(PeerIdentity::Client(ClientId(1)), 1)
}

pub fn peer(endpoint: &Arc<Endpoint>, address: SocketAddr) -> Peer {
    let target = Target { address: address.to_string(), identity: None, incarnation: None };
    Peer::new(endpoint, target, PeerMode::OnDemand, Arc::new(NoHandler))
}

pub fn message(kind: u16, body: impl Into<Bytes>) -> Message {
    Message::new(kind, body.into(), Vec::new())
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Answers each request with its own body and payload, from a task of its own: so in any order.
pub struct Echo;

impl Handler for Echo {
    fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit) {
        let from = Arc::clone(from);
        tokio::spawn(async move {
            if message.body.first().is_some_and(|byte| byte % 2 == 1) {
                tokio::task::yield_now().await;
            }
            let _ = from.reply(message.request_id, message).await;
            drop(permit);
        });
    }
}

#[derive(Debug)]
pub enum Event {
    Connected(Arc<Connection>),
    Message(Arc<Connection>, Message, Permit),
    Closed(CloseReason),
    Unreachable(ConnectError),
}

/// Tells a test of everything.
pub struct Recorder(pub mpsc::UnboundedSender<Event>);

impl Recorder {
    pub fn new() -> (Arc<Recorder>, Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Arc::new(Recorder(sender)), Events(receiver))
    }
}

impl Handler for Recorder {
    fn on_connected(&self, connection: &Arc<Connection>) {
        let _ = self.0.send(Event::Connected(Arc::clone(connection)));
    }
    fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit) {
        let _ = self.0.send(Event::Message(Arc::clone(from), message, permit));
    }
    fn on_closed(&self, _: &Arc<Connection>, reason: &CloseReason) {
        let _ = self.0.send(Event::Closed(reason.clone()));
    }
    fn on_unreachable(&self, _: &Target, error: &ConnectError) {
        let _ = self.0.send(Event::Unreachable(error.clone()));
    }
}

pub struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    pub async fn next(&mut self) -> Event {
        within(self.0.recv()).await.expect("the handler lives")
    }
    pub async fn connected(&mut self) -> Arc<Connection> {
        loop {
            if let Event::Connected(connection) = self.next().await {
                return connection;
            }
        }
    }
    pub async fn message(&mut self) -> (Arc<Connection>, Message, Permit) {
        loop {
            if let Event::Message(from, message, permit) = self.next().await {
                return (from, message, permit);
            }
        }
    }
    pub async fn closed(&mut self) -> CloseReason {
        loop {
            if let Event::Closed(reason) = self.next().await {
                return reason;
            }
        }
    }
    pub async fn unreachable(&mut self) -> ConnectError {
        loop {
            if let Event::Unreachable(error) = self.next().await {
                return error;
            }
        }
    }
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}

/// A test that waits longer than this hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("within 30 s")
}

/// A peer that writes bytes instead of frames.
pub struct Raw {
    pub stream: TcpStream,
    pub decoder: FrameDecoder,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).await.unwrap();
        Raw { stream, decoder: FrameDecoder::new(Limits::ESTABLISHED) }
    }

    /// Connects and goes through the handshake.
    pub async fn established(address: SocketAddr) -> Raw {
        let mut raw = Raw::connect(address).await;
        raw.write(&hello_frame(&hello())).await;
        assert_eq!(raw.frame().await.expect("an answer").header.kind, 1, "a hello");
        raw
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        // The other side may have closed already; what it said is read below.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next().expect("the other side sends good frames") {
                Step::Frame(frame) => return Some(frame),
                Step::Header(_) => {}
                Step::Incomplete => {
                    if within(self.stream.read_buf(&mut self.decoder.space())).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    /// The reason of the goodbye that must come next.
    pub async fn goodbye(&mut self) -> GoodbyeReason {
        let frame = self.frame().await.expect("a goodbye");
        assert_eq!(frame.header.kind, 2, "a goodbye");
        minicbor::decode::<Goodbye>(&frame.body).unwrap().reason
    }
}

pub fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        cluster: CLUSTER,
        sender: osd(9),
        incarnation: Incarnation(3),
        expected: None,
        expected_incarnation: None,
        features: 0b111,
        features_required: 0,
    }
}

pub fn hello_frame(hello: &Hello) -> Vec<u8> {
    encode_frame(Label { kind: 1, ..Label::default() }, &minicbor::to_vec(hello).unwrap(), &[]).unwrap()
}
