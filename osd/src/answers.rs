//! Answers on their way out: held for the end of a turn, and what happens when a connection has no room for one.

use std::sync::Arc;

use holdfast_net::{Connection, Message, NetError};
use holdfast_wire::frame::GoodbyeReason;
use holdfast_wire::{ClientOutcome, ClientReply, Kind, Payload, RefusedReason, encode};
use minicbor::Encode;
use tracing::warn;

use crate::peers::Held;

/// Sends an answer. A connection that cannot take it is closed, if it is not already: whoever waits for the answer then
/// knows at once and asks again over a new one, where it would wait on this one to its deadline.
pub(crate) fn respond<T: Encode<Payload>>(
    connection: &Arc<Connection>,
    request_id: u64,
    kind: Kind,
    message: &T,
    held: &mut Held,
) {
    match hold(connection, request_id, kind, message, held) {
        Ok(()) | Err(NetError::Closed(_)) => {}
        Err(error) => give_up(connection, &error),
    }
}

/// Answers a client. When its connection has no room for the answer (it asked for much at once, and takes it slowly), it
/// gets a "busy", which it answers by a pause: it is executed at most once however often it is sent. Closing would make it
/// send all that it has outstanding at once, to meet the same end.
pub(crate) fn respond_client(connection: &Arc<Connection>, request_id: u64, reply: &ClientReply, held: &mut Held) {
    match hold(connection, request_id, Kind::ClientReply, reply, held) {
        Err(NetError::QueueFull) => {
            let busy = ClientOutcome::Refused(RefusedReason::Busy);
            let busy = ClientReply { id: reply.id, epoch: reply.epoch, outcome: busy };
            respond(connection, request_id, Kind::ClientReply, &busy, held);
        }
        Ok(()) | Err(NetError::Closed(_)) => {}
        Err(error) => give_up(connection, &error),
    }
}

fn give_up(connection: &Connection, error: &NetError) {
    warn!(%error, peer = %connection.peer(), "connection closed: it does not take an answer");
    connection.close(GoodbyeReason::Shutdown);
}

/// Holds an answer for the end of the turn; what is held is written before, when it fills the queue.
fn hold<T: Encode<Payload>>(
    connection: &Arc<Connection>,
    request_id: u64,
    kind: Kind,
    message: &T,
    held: &mut Held,
) -> Result<(), NetError> {
    let encoded = encode(message);
    let message = Message::new(kind as u16, encoded.body, encoded.payload);
    let result = match connection.hold_reply(request_id, message.clone()) {
        Err(NetError::QueueFull) => {
            connection.flush();
            connection.hold_reply(request_id, message)
        }
        result => result,
    };
    if result.is_ok() {
        held.add(connection);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use holdfast_net::{Endpoint, Handler, Listener, LocalIdentity, NetConfig, Permit};
    use holdfast_types::{ClientId, ClusterId, Epoch, Incarnation, LogVersion, OsdId, RequestId};
    use holdfast_wire::frame::{FrameDecoder, Hello, Label, Limits, PeerIdentity, Step, encode_frame};
    use holdfast_wire::{Blob, OpResult, decode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);
    /// More than the buffers of a socket take.
    const ANSWERS: u64 = 64;
    const ANSWER_BYTES: usize = 1 << 20;

    struct Connected(mpsc::UnboundedSender<Arc<Connection>>);

    impl Handler for Connected {
        fn on_connected(&self, connection: &Arc<Connection>) {
            let _ = self.0.send(connection.clone());
        }
        fn on_message(&self, _: &Arc<Connection>, _: Message, _: Permit) {}
    }

    fn answer(tid: u64) -> ClientReply {
        let id = RequestId { client: ClientId(1), incarnation: Incarnation(3), tid };
        let data = Blob(Bytes::from(vec![u8::try_from(tid).expect("few"); ANSWER_BYTES]));
        let version = LogVersion { epoch: Epoch(1), counter: tid };
        ClientReply {
            id,
            epoch: Epoch(1),
            outcome: ClientOutcome::Done { version, results: vec![OpResult::Data(data)] },
        }
    }

    fn hello() -> Vec<u8> {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            cluster: CLUSTER,
            sender: PeerIdentity::Client(ClientId(1)),
            incarnation: Incarnation(3),
            expected: None,
            expected_incarnation: None,
            features: 0,
            features_required: 0,
        };
        let body = minicbor::to_vec(&hello).expect("it encodes");
        encode_frame(Label { kind: 1, ..Label::default() }, &body, &[]).expect("it is small")
    }

    #[tokio::test]
    async fn who_takes_no_answers_is_told_to_pause_and_keeps_its_connection() {
        let identity = PeerIdentity::Osd(OsdId(0));
        let local = LocalIdentity {
            cluster: CLUSTER,
            identity,
            incarnation: Incarnation(1),
            features: 0,
            features_required: 0,
        };
        let config = NetConfig { outgoing_bytes_max: 3 * ANSWER_BYTES, ..NetConfig::default() };
        let server = Endpoint::new(local, config, CancellationToken::new());
        let (connected, mut connections) = mpsc::unbounded_channel();
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(&server, any_port, Arc::new(Connected(connected))).await.expect("a port");
        let mut client = TcpStream::connect(listener.local_address()).await.expect("connected");
        client.write_all(&hello()).await.expect("written");
        let connection = connections.recv().await.expect("a connection");

        let mut held = Held::default();
        for tid in 1..=ANSWERS {
            respond_client(&connection, tid, &answer(tid), &mut held);
        }
        held.flush();
        assert!(!connection.is_closed());

        let mut decoder = FrameDecoder::new(Limits::ESTABLISHED);
        let (mut done, mut busy) = (0, 0);
        while done + busy < ANSWERS {
            match decoder.next().expect("good frames") {
                Step::Frame(frame) if frame.header.kind == Kind::ClientReply as u16 => {
                    let reply: ClientReply = decode(frame.header.kind, &frame.body, &frame.payload).expect("a reply");
                    match reply.outcome {
                        ClientOutcome::Done { .. } => {
                            assert!(reply.outcome == answer(reply.id.tid).outcome);
                            done += 1;
                        }
                        ClientOutcome::Refused(RefusedReason::Busy) => busy += 1,
                        other => panic!("{other:?}"),
                    }
                }
                Step::Frame(_) | Step::Header(_) => {}
                Step::Incomplete => {
                    let mut space = decoder.space();
                    let read = tokio::time::timeout(Duration::from_secs(60), client.read_buf(&mut space));
                    assert!(read.await.expect("in time").expect("read") > 0, "the connection ended");
                }
            }
        }
        assert!(done > 0 && busy > 0, "{done} answers, {busy} times busy");
        server.shutdown().await;
    }
}
