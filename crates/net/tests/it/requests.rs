//! Requests, back-pressure and limits between two endpoints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use futures::future::join_all;
use holdfast_net::*;
use holdfast_types::ClientId;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interleaved_requests_each_get_their_own_answer() {
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, Arc::new(Echo)).await.unwrap();
    let peer = peer(&client(), listener.local_address());
    let answers = join_all((0..500u32).map(|number| {
        let peer = peer.clone();
        async move {
            let chunk = |length: u32| Bytes::from(vec![number as u8; length as usize]);
            let payload = vec![chunk(number * 37), Bytes::new(), chunk(number % 7 * 30_000)];
            let sent =
                Message::new(40, Bytes::copy_from_slice(&number.to_le_bytes()), payload).traced(u64::from(number));
            let answer = peer.request(sent.clone(), soon()).await.unwrap();
            assert_eq!(answer.body, sent.body);
            assert_eq!(answer.payload()[..], sent.payload.concat()[..]);
            assert_eq!((answer.kind, answer.trace_id), (40, u64::from(number)));
        }
    }));
    assert_eq!(within(answers).await.len(), 500);
}

/// A thread without a runtime: whatever the socket does not take at once, the connection's task must take over.
#[tokio::test]
async fn what_a_thread_holds_and_flushes_arrives_whole_and_in_order() {
    const COUNT: usize = 3000;
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let peer = peer(&client(), listener.local_address());
    let connection = peer.connection().await.unwrap();
    let payload = |number: usize| Bytes::from(vec![number as u8; number % 11 * 3000]);
    let sender = std::thread::spawn(move || {
        for number in 0..COUNT {
            let body = Bytes::copy_from_slice(&number.to_le_bytes());
            let message = Message::new(40, body, vec![payload(number)]).prepare().unwrap();
            while let Err(error) = connection.hold_send(message.clone()) {
                assert!(matches!(error, NetError::QueueFull), "{error}");
                connection.flush();
                std::thread::yield_now();
            }
            // Turns of one message and of many.
            if number % 7 == 0 || number % 64 > 40 {
                connection.flush();
            }
        }
        connection.flush();
    });
    for number in 0..COUNT {
        let (_, message, permit) = events.message().await;
        assert_eq!(message.body[..], number.to_le_bytes());
        assert_eq!(message.payload(), payload(number));
        drop(permit);
    }
    sender.join().unwrap();
}

#[tokio::test]
async fn both_sides_of_one_connection_may_ask() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let connecting = endpoint(osd(2), 5);
    let target = Target { address: listener.local_address().to_string(), identity: Some(osd(1)), incarnation: None };
    let peer = Peer::new(&connecting, target, PeerMode::KeepConnected, Arc::new(Echo));
    let accepted = events.connected().await;
    assert_eq!(**accepted.peer(), osd(2));
    assert_eq!(accepted.peer().incarnation().0, 5);
    assert_eq!(accepted.peer().method(), AuthMethod::PlaintextLoopback);
    let answer = accepted.request(message(40, "from the accepting side"), soon()).await.unwrap();
    assert_eq!(&answer.body[..], b"from the accepting side");
    peer.send(message(41, "one way")).await.unwrap();
    let (_, message, _) = events.message().await;
    assert_eq!((message.kind, message.request_id, &message.body[..]), (41, 0, &b"one way"[..]));
}

#[tokio::test]
async fn a_slow_handler_stops_the_sender_instead_of_growing_memory() {
    const BYTES: usize = 64 << 10;
    const COUNT: usize = 1000;
    let (recorder, mut events) = Recorder::new();
    // Room for 4 messages and their overhead, not for 5.
    let config = NetConfig { inbound_bytes_max: BYTES * 4 + BYTES / 2, ..NetConfig::default() };
    let server = endpoint_with(identity(osd(1), 1), config);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let sending = NetConfig { outgoing_bytes_max: BYTES * 2, ..NetConfig::default() };
    let peer = peer(&endpoint_with(identity(osd(2), 1), sending), listener.local_address());

    let chunk = Bytes::from(vec![1; BYTES]);
    let connection = peer.connection().await.unwrap();
    let mut queued = 0;
    while connection.try_send(Message::new(40, Bytes::new(), vec![chunk.clone()])).is_ok() {
        queued += 1;
        assert!(queued <= 2, "the outgoing queue takes two and no more before anything is written");
    }
    let sender = tokio::spawn(async move {
        for _ in queued..COUNT {
            peer.send(Message::new(40, Bytes::new(), vec![chunk.clone()])).await.unwrap();
        }
    });
    let mut held = Vec::new();
    for received in 0..COUNT {
        let (_, message, permit) = events.message().await;
        assert_eq!(message.payload().len(), BYTES);
        held.push(permit);
        assert!(held.len() <= 4, "at most 4 messages are charged at one time");
        if held.len() == 4 {
            // The sockets hold a few MiB, the queues a few messages: the sender cannot be done.
            assert!(received > COUNT - 600 || !sender.is_finished());
            let beyond = events.try_next().is_some_and(|event| matches!(event, Event::Message(..)));
            assert!(!beyond, "nothing is handed on beyond the limit");
            held.clear();
        }
    }
    within(sender).await.unwrap();
}

/// A request of a client may end only by what another daemon says: that must get through however much clients wait for.
#[tokio::test]
async fn requests_that_wait_never_keep_a_daemon_from_being_heard() {
    const BYTES: usize = 4000;
    let (recorder, mut events) = Recorder::new();
    let config = NetConfig { inbound_bytes_total_max: 3 * BYTES, ..NetConfig::default() };
    let server = endpoint_with(identity(osd(1), 1), config);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let mut clients = Vec::new();
    let mut held = Vec::new();
    for id in 1..=3 {
        let peer = peer(&endpoint(PeerIdentity::Client(ClientId(id)), 1), listener.local_address());
        peer.send(Message::new(40, Bytes::new(), vec![Bytes::from(vec![1; BYTES])])).await.unwrap();
        clients.push(peer);
        if id < 3 {
            held.push(events.message().await);
        }
    }
    // The third client's message needs more than is left; the daemon's goes past it.
    let daemon = peer(&endpoint(osd(2), 1), listener.local_address());
    daemon.send(message(41, "what they wait for")).await.unwrap();
    let (_, heard, permit) = events.message().await;
    assert_eq!(heard.kind, 41);
    drop((permit, held));
    assert_eq!(events.message().await.1.kind, 40);
}

#[tokio::test]
async fn a_message_larger_than_the_inbound_limit_passes_alone() {
    let config = NetConfig {
        inbound_bytes_max: 1000,
        inbound_bytes_total_max: 1000,
        outgoing_bytes_max: 1000,
        ..NetConfig::default()
    };
    let server = endpoint_with(identity(osd(1), 1), config.clone());
    let listener = Listener::bind(&server, ANY_PORT, Arc::new(Echo)).await.unwrap();
    let peer = peer(&endpoint_with(identity(osd(2), 1), config), listener.local_address());
    let ask = || peer.request(message(40, vec![2; 100_000]), soon());
    let (first, second) = tokio::join!(ask(), ask());
    assert_eq!((first.unwrap().body.len(), second.unwrap().body.len()), (100_000, 100_000));
}

#[tokio::test]
async fn a_payload_of_33_mib_passes_and_one_byte_more_is_never_sent() {
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, Arc::new(Echo)).await.unwrap();
    let peer = peer(&client(), listener.local_address());
    let mut payload = vec![Bytes::from(vec![3; 1 << 20]); 33];
    let answer = peer.request(Message::new(40, Bytes::new(), payload.clone()), soon()).await.unwrap();
    assert_eq!(answer.payload().len(), 33 << 20);
    payload.push(Bytes::from_static(b"x"));
    let refused = peer.request(Message::new(40, Bytes::new(), payload), soon()).await;
    assert!(matches!(refused, Err(NetError::TooLarge(_))));
    assert!(peer.connected().is_some(), "a refused message costs no connection");
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_a_late_answer_harms_nobody() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let peer = peer(&client(), listener.local_address());
    let deadline = Instant::now() + Duration::from_millis(20);
    let timed_out = peer.request(message(40, "a"), deadline).await;
    assert!(matches!(timed_out, Err(NetError::Timeout)));
    let (connection, late, _) = events.message().await;
    let asking = tokio::spawn(async move { peer.request(message(40, "b"), soon()).await });
    let (_, next, _) = events.message().await;
    connection.reply(late.request_id, message(40, "late")).await.unwrap();
    connection.reply(next.request_id, message(40, "right")).await.unwrap();
    assert_eq!(&within(asking).await.unwrap().unwrap().body[..], b"right");
}

#[tokio::test]
async fn what_is_queued_at_a_graceful_shutdown_still_arrives() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let leaving = client();
    let peer = peer(&leaving, listener.local_address());
    for number in 0..100u8 {
        peer.send(message(40, vec![number; 10_000])).await.unwrap();
    }
    within(leaving.shutdown()).await;
    for number in 0..100u8 {
        assert_eq!(events.message().await.1.body[0], number);
    }
    assert!(matches!(events.closed().await, CloseReason::Remote(GoodbyeReason::Shutdown)));
    assert!(matches!(peer.request(message(40, "x"), soon()).await, Err(NetError::GivenUp)));
}

#[tokio::test]
async fn a_heartbeat_of_a_daemon_is_heard_when_all_credit_is_given_away() {
    const BYTES: usize = 4000;
    let heartbeat = holdfast_wire::Kind::Heartbeat as u16;
    let (recorder, mut events) = Recorder::new();
    let config = NetConfig { inbound_bytes_total_max: BYTES, ..NetConfig::default() };
    let server = endpoint_with(identity(osd(1), 1), config);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let busy = peer(&endpoint(osd(2), 1), listener.local_address());
    busy.send(Message::new(40, Bytes::new(), vec![Bytes::from(vec![1; BYTES])])).await.unwrap();
    let held = events.message().await;
    let pulse = peer(&endpoint(osd(3), 1), listener.local_address());
    pulse.send(message(heartbeat, "alive?")).await.unwrap();
    let (_, heard, permit) = events.message().await;
    assert_eq!((heard.kind, permit.bytes()), (heartbeat, 0));
    // Neither a large one nor another kind passes for one.
    pulse.send(message(heartbeat, vec![2; 2000])).await.unwrap();
    drop(held);
    let (_, heard, permit) = events.message().await;
    assert!(heard.kind == heartbeat && permit.bytes() >= 2000);
}
