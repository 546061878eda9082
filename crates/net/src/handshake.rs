//! The first frames of a connection: who is there, and may it be?

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use holdfast_types::Incarnation;
use holdfast_wire::Kind;
use holdfast_wire::frame::{
    Frame, FrameDecoder, FrameError, Goodbye, GoodbyeReason, Hello, Label, Limits, PeerIdentity, Step, encode_frame,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::endpoint::Endpoint;

/// Kind number of [`Hello`].
pub(crate) const KIND_HELLO: u16 = Kind::Hello as u16;
/// Kind number of [`Goodbye`].
pub(crate) const KIND_GOODBYE: u16 = Kind::Goodbye as u16;

/// The oldest protocol version that this build speaks.
pub(crate) const PROTOCOL_VERSION_MIN: u16 = 1;
/// The newest protocol version that this build speaks.
pub(crate) const PROTOCOL_VERSION_MAX: u16 = 1;

/// How a peer proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Not at all: it is on this host, and claims to be this.
    PlaintextLoopback,
    /// Not at all: the operator trusts the network.
    PlaintextNetwork,
}

/// An identity that went through the handshake. Nothing else makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated<T> {
    identity: T,
    incarnation: Incarnation,
    method: AuthMethod,
}

impl<T> Authenticated<T> {
    /// Which run of the peer.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How it proved it.
    #[must_use]
    pub fn method(&self) -> AuthMethod {
        self.method
    }
}

impl<T> Deref for Authenticated<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.identity
    }
}

impl<T: fmt::Display> fmt::Display for Authenticated<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

/// Whom the connecting side expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Expected {
    pub(crate) identity: Option<PeerIdentity>,
    pub(crate) incarnation: Option<Incarnation>,
}

/// What the handshake gives.
pub(crate) struct Established {
    pub(crate) decoder: FrameDecoder,
    pub(crate) peer: Authenticated<PeerIdentity>,
    pub(crate) version: u16,
    pub(crate) features: u64,
}

#[derive(Debug)]
pub(crate) enum HandshakeError {
    Io(Arc<io::Error>),
    EndOfStream,
    /// Sent to the peer.
    Unacceptable(GoodbyeReason),
    /// Sent by the peer.
    Rejected(GoodbyeReason),
    /// The peer's first frame is none, or no hello.
    NoHello(Option<FrameError>),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        HandshakeError::Io(Arc::new(error))
    }
}

/// The connecting side: speaks first.
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    endpoint: &Endpoint,
    stream: &mut S,
    remote: SocketAddr,
    expected: Expected,
) -> Result<Established, HandshakeError> {
    let method = match auth_method(endpoint, remote) {
        Ok(method) => method,
        Err(reason) => return Err(refuse(stream, reason).await),
    };
    write_hello(endpoint, stream, expected).await?;
    let mut decoder = FrameDecoder::new(Limits::HANDSHAKE);
    let hello = match read_hello(stream, &mut decoder).await {
        Err(HandshakeError::NoHello(error)) => {
            refuse(stream, GoodbyeReason::NoHello).await;
            return Err(HandshakeError::NoHello(error));
        }
        other => other?,
    };
    let agreed = check(endpoint, &hello, method).and_then(|agreed| {
        // It is the peer that knows who it is; this repeats its check so that a confused peer cannot pass.
        match expected {
            Expected { identity: Some(identity), .. } if identity != hello.sender => {
                Err(GoodbyeReason::WrongPeer { ours: endpoint.local().identity })
            }
            Expected { incarnation: Some(incarnation), .. } if incarnation != hello.incarnation => {
                Err(GoodbyeReason::WrongIncarnation { ours: hello.incarnation })
            }
            _ => Ok(agreed),
        }
    });
    finish(stream, decoder, agreed).await
}

/// The accepting side: checks, then answers.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    endpoint: &Endpoint,
    stream: &mut S,
    remote: SocketAddr,
) -> Result<Established, HandshakeError> {
    let method = match auth_method(endpoint, remote) {
        Ok(method) => method,
        Err(reason) => return Err(refuse(stream, reason).await),
    };
    let mut decoder = FrameDecoder::new(Limits::HANDSHAKE);
    let hello = match read_hello(stream, &mut decoder).await {
        Err(HandshakeError::NoHello(error)) => {
            refuse(stream, GoodbyeReason::NoHello).await;
            return Err(HandshakeError::NoHello(error));
        }
        other => other?,
    };
    let agreed = check(endpoint, &hello, method);
    if agreed.is_ok() {
        write_hello(endpoint, stream, Expected { identity: Some(hello.sender), incarnation: None }).await?;
    }
    finish(stream, decoder, agreed).await
}

struct Agreed {
    peer: Authenticated<PeerIdentity>,
    version: u16,
    features: u64,
}

async fn finish<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut decoder: FrameDecoder,
    agreed: Result<Agreed, GoodbyeReason>,
) -> Result<Established, HandshakeError> {
    match agreed {
        Ok(Agreed { peer, version, features }) => {
            decoder.set_limits(Limits::ESTABLISHED);
            Ok(Established { decoder, peer, version, features })
        }
        Err(reason) => Err(refuse(stream, reason).await),
    }
}

/// The one place where an identity becomes [`Authenticated`].
fn check(endpoint: &Endpoint, hello: &Hello, method: AuthMethod) -> Result<Agreed, GoodbyeReason> {
    let local = endpoint.local();
    if hello.cluster != local.cluster {
        return Err(GoodbyeReason::WrongCluster { ours: local.cluster });
    }
    let version = hello.version_max.min(PROTOCOL_VERSION_MAX);
    if version < hello.version_min || version < PROTOCOL_VERSION_MIN {
        return Err(GoodbyeReason::Version { min: PROTOCOL_VERSION_MIN, max: PROTOCOL_VERSION_MAX });
    }
    if hello.expected.is_some_and(|expected| expected != local.identity) {
        return Err(GoodbyeReason::WrongPeer { ours: local.identity });
    }
    if hello.expected_incarnation.is_some_and(|expected| expected != local.incarnation) {
        return Err(GoodbyeReason::WrongIncarnation { ours: local.incarnation });
    }
    let missing = local.features_required & !hello.features;
    if missing != 0 {
        return Err(GoodbyeReason::MissingFeatures { missing });
    }
    endpoint.admit(hello.sender, hello.incarnation)?;
    Ok(Agreed {
        peer: Authenticated { identity: hello.sender, incarnation: hello.incarnation, method },
        version,
        features: hello.features & local.features,
    })
}

fn auth_method(endpoint: &Endpoint, remote: SocketAddr) -> Result<AuthMethod, GoodbyeReason> {
    if remote.ip().to_canonical().is_loopback() {
        Ok(AuthMethod::PlaintextLoopback)
    } else if endpoint.config().plaintext_between_hosts {
        Ok(AuthMethod::PlaintextNetwork)
    } else {
        Err(GoodbyeReason::PlaintextRefused)
    }
}

async fn write_hello(
    endpoint: &Endpoint,
    stream: &mut (impl AsyncWrite + Unpin),
    expected: Expected,
) -> Result<(), HandshakeError> {
    let local = endpoint.local();
    let hello = Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION_MAX,
        cluster: local.cluster,
        sender: local.identity,
        incarnation: local.incarnation,
        expected: expected.identity,
        expected_incarnation: expected.incarnation,
        features: local.features,
        features_required: local.features_required,
    };
    let body = minicbor::to_vec(&hello).expect("encoding to memory cannot fail");
    let label = Label { kind: KIND_HELLO, ..Label::default() };
    let frame = encode_frame(label, &body, &[]).expect("a hello is far below the limits");
    Ok(stream.write_all(&frame).await?)
}

async fn read_hello(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
) -> Result<Hello, HandshakeError> {
    let frame = loop {
        match decoder.next().map_err(|error| HandshakeError::NoHello(Some(error)))? {
            Step::Frame(frame) => break frame,
            Step::Header(_) => {}
            Step::Incomplete => {
                if stream.read_buf(&mut decoder.space()).await? == 0 {
                    return Err(HandshakeError::EndOfStream);
                }
            }
        }
    };
    match frame.header.kind {
        KIND_HELLO => minicbor::decode(&frame.body).map_err(|_| HandshakeError::NoHello(None)),
        KIND_GOODBYE => match decode_goodbye(&frame) {
            Some(reason) => Err(HandshakeError::Rejected(reason)),
            None => Err(HandshakeError::NoHello(None)),
        },
        _ => Err(HandshakeError::NoHello(None)),
    }
}

/// The reason of a goodbye; `None` when it is of a kind that this build does not know.
pub(crate) fn decode_goodbye(frame: &Frame) -> Option<GoodbyeReason> {
    minicbor::decode::<Goodbye>(&frame.body).ok().map(|goodbye| goodbye.reason)
}

/// A goodbye as it stands in the stream.
pub(crate) fn encode_goodbye(reason: &GoodbyeReason) -> Vec<u8> {
    let goodbye = Goodbye { reason: reason.clone() };
    let body = minicbor::to_vec(&goodbye).expect("encoding to memory cannot fail");
    let label = Label { kind: KIND_GOODBYE, ..Label::default() };
    encode_frame(label, &body, &[]).expect("a goodbye is far below the limits")
}

/// Says goodbye and waits a little for the peer to take it: closing over unread bytes resets the connection, which can
/// discard the goodbye on the peer's side.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, reason: GoodbyeReason) -> HandshakeError {
    if stream.write_all(&encode_goodbye(&reason)).await.is_ok() && stream.shutdown().await.is_ok() {
        crate::io::drain(stream).await;
    }
    HandshakeError::Unacceptable(reason)
}
