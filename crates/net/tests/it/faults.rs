//! Peers that die, lie, stall or talk nonsense.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::common::*;
use futures::future::join_all;
use holdfast_net::*;
use holdfast_types::{ClusterId, Incarnation};
use holdfast_wire::frame::{Hello, Label, encode_frame};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[tokio::test]
async fn a_lost_connection_fails_all_its_requests_at_once() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let peer = peer(&client(), listener.local_address());
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let peer = peer.clone();
            tokio::spawn(async move { peer.request(message(40, "never answered"), soon()).await })
        })
        .collect();
    for _ in 0..49 {
        events.message().await;
    }
    let (connection, _, _permit) = events.message().await;
    connection.close(GoodbyeReason::Shutdown);
    for answer in within(join_all(asking)).await {
        match answer.unwrap() {
            Err(NetError::Closed(reason)) => {
                assert!(matches!(*reason, CloseReason::Remote(GoodbyeReason::Shutdown)), "{reason}");
            }
            other => panic!("expected the connection's end, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_without_goodbye_suggests_death() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    drop(Raw::established(listener.local_address()).await);
    let reason = events.closed().await;
    assert!(reason.suggests_death(), "{reason}");
}

#[tokio::test]
async fn a_refused_connection_is_reported_at_once() {
    let server = endpoint(osd(1), 1);
    let address = Listener::bind(&server, ANY_PORT, Arc::new(NoHandler)).await.unwrap().local_address();
    server.shutdown().await; // the port is free, and nobody listens
    let (recorder, mut events) = Recorder::new();
    let target = Target { address: address.to_string(), identity: Some(osd(1)), incarnation: None };
    let peer = Peer::new(&client(), target, PeerMode::KeepConnected, recorder);
    assert!(events.unreachable().await.is_refused());
    match within(peer.connection()).await {
        Err(NetError::Connect(error)) => assert!(error.is_refused(), "{error}"),
        other => panic!("expected a refused connection, got {other:?}"),
    }
}

#[tokio::test]
async fn a_peer_is_found_again_after_its_restart() {
    let first = endpoint(osd(1), 1);
    let listener = Listener::bind(&first, ANY_PORT, Arc::new(Echo)).await.unwrap();
    let address = listener.local_address();
    let peer = peer(&client(), address);
    peer.request(message(40, "a"), soon()).await.unwrap();
    let mut state = peer.state();
    first.shutdown().await;
    drop(listener);
    within(state.wait_for(|state| matches!(state.status, PeerStatus::Disconnected(_)))).await.unwrap();
    assert!(matches!(peer.request(message(40, "b"), soon()).await, Err(NetError::Connect(_))));

    let second = endpoint(osd(1), 2);
    let _listener = Listener::bind(&second, address, Arc::new(Echo)).await.unwrap();
    let answer = within(async {
        loop {
            if let Ok(answer) = peer.request(message(40, "c"), soon()).await {
                return answer;
            }
        }
    });
    assert_eq!(&answer.await.body[..], b"c");
    assert_eq!(peer.connected().unwrap().peer().incarnation(), Incarnation(2));
}

#[tokio::test]
async fn a_stale_incarnation_is_refused_and_its_connections_are_closed() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let address = listener.local_address();
    let old = peer(&endpoint(osd(2), 7), address);
    let connection = old.connection().await.unwrap();
    events.connected().await;

    // A new run connects: the old run's connection is closed, and it does not come in again.
    let _new = peer(&endpoint(osd(2), 8), address).connection().await.unwrap();
    let known = Incarnation(8);
    let reason = within(connection.closed()).await;
    assert!(matches!(*reason, CloseReason::Remote(GoodbyeReason::StaleIncarnation { known: k }) if k == known));
    match old.connection().await {
        Err(NetError::Connect(error)) => assert!(
            matches!(*error, ConnectError::Rejected { reason: GoodbyeReason::StaleIncarnation { known: k }, .. } if k == known),
            "{error}"
        ),
        other => panic!("expected a refusal, got {other:?}"),
    }
    // The same from hearsay.
    server.learn_incarnation(osd(3), Incarnation(5));
    assert!(peer(&endpoint(osd(3), 4), address).connection().await.is_err());
    assert!(peer(&endpoint(osd(3), 5), address).connection().await.is_ok());
}

#[tokio::test]
async fn each_mismatch_in_a_hello_is_answered_with_its_reason() {
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, Arc::new(NoHandler)).await.unwrap();
    let cases: [(Hello, GoodbyeReason); 5] = [
        (Hello { cluster: ClusterId([8; 16]), ..hello() }, GoodbyeReason::WrongCluster { ours: CLUSTER }),
        (Hello { version_min: 2, version_max: 9, ..hello() }, GoodbyeReason::Version { min: 1, max: 1 }),
        (Hello { expected: Some(osd(4)), ..hello() }, GoodbyeReason::WrongPeer { ours: osd(1) }),
        (
            Hello { expected_incarnation: Some(Incarnation(2)), ..hello() },
            GoodbyeReason::WrongIncarnation { ours: Incarnation(1) },
        ),
        (Hello { features: 0b110, ..hello() }, GoodbyeReason::MissingFeatures { missing: 1 }),
    ];
    for (hello, reason) in cases {
        let mut raw = Raw::connect(listener.local_address()).await;
        raw.write(&hello_frame(&hello)).await;
        assert_eq!(raw.goodbye().await, reason);
        assert_eq!(raw.frame().await, None, "the connection is closed");
    }
    let later = Hello { version_max: 9, ..hello() };
    let mut raw = Raw::connect(listener.local_address()).await;
    raw.write(&hello_frame(&later)).await;
    assert_eq!(raw.frame().await.unwrap().header.kind, 1, "a later version that speaks ours too is welcome");
}

#[test]
fn garbage_closes_the_one_connection_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, listener) = runtime.block_on(async {
        let server = endpoint(osd(1), 1);
        let listener = Listener::bind(&server, ANY_PORT, Arc::new(Echo)).await.unwrap();
        (server, listener)
    });
    let address = listener.local_address();
    let frame = encode_frame(Label { kind: 40, request_id: 1, ..Label::default() }, &[1; 300], &[]).unwrap();
    let strategy = (any::<bool>(), prop::collection::vec(any::<u8>(), 1..600), any::<prop::sample::Index>(), 0u8..3);
    let mut runner = TestRunner::new(Config::with_cases(60));
    let outcome = runner.run(&strategy, |(after_hello, garbage, at, mode)| {
        runtime.block_on(async {
            let mut raw = match after_hello {
                true => Raw::established(address).await,
                false => Raw::connect(address).await,
            };
            let mut bytes = frame.clone();
            match mode {
                0 => bytes = garbage,
                1 => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << (at % 8);
                }
                _ => bytes.truncate(1 + at.index(bytes.len() - 1)),
            }
            raw.write(&bytes).await;
            // The end of our direction: what the server still waits for never comes.
            tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.ok();
            while let Some(frame) = raw.frame().await {
                assert_eq!(frame.header.kind, 2, "nothing but a goodbye answers garbage");
            }
        });
        Ok(())
    });
    outcome.unwrap();
    runtime.block_on(async {
        let peer = peer(&client(), address);
        assert_eq!(&peer.request(message(40, "still here"), soon()).await.unwrap().body[..], b"still here");
        server.shutdown().await;
    });
}

#[tokio::test]
async fn a_valid_frame_cut_short_closes_its_connection_with_a_reason() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let frame = encode_frame(Label { kind: 40, request_id: 1, ..Label::default() }, &[1; 100], &[]).unwrap();
    for length in 1..frame.len() {
        let mut raw = Raw::established(listener.local_address()).await;
        raw.write(&frame[..length]).await;
        tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
        assert_eq!(raw.frame().await, None, "nothing answers {length} bytes of {}", frame.len());
        // Misbehaviour: this reason is logged as a warning.
        let reason = events.closed().await;
        assert!(matches!(reason, CloseReason::EndOfStream { mid_frame: true }), "{length} bytes: {reason}");
    }
    let peer = peer(&client(), listener.local_address());
    assert!(peer.connection().await.is_ok(), "others are let in");
}

#[tokio::test]
async fn a_damaged_frame_is_told_to_its_sender() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let mut raw = Raw::established(listener.local_address()).await;
    let mut frame = encode_frame(Label { kind: 40, ..Label::default() }, b"body", &[]).unwrap();
    *frame.last_mut().unwrap() ^= 1;
    raw.write(&frame).await;
    assert!(matches!(raw.goodbye().await, GoodbyeReason::BadFrame { .. }));
    assert!(matches!(events.closed().await, CloseReason::BadFrame(_)));
}

fn quick() -> NetConfig {
    let short = Duration::from_millis(30);
    NetConfig { handshake_timeout: short, stall_timeout: short, idle_timeout: short, ..NetConfig::default() }
}

/// Whatever arrives in the middle of a frame for some milliseconds is too slow.
fn hasty() -> NetConfig {
    NetConfig { pace_window: Duration::from_millis(20), pace_bytes: u64::MAX, ..NetConfig::default() }
}

#[tokio::test]
async fn a_connection_that_hardly_goes_on_gives_way_to_a_new_one() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint_with(identity(osd(1), 1), hasty());
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let mut slow = Raw::established(listener.local_address()).await;
    let frame =
        encode_frame(Label { kind: 40, ..Label::default() }, b"body", &[Bytes::from(vec![7; 4 << 20])]).unwrap();
    let trickle = async {
        for byte in &frame {
            slow.write(std::slice::from_ref(byte)).await;
        }
        panic!("the whole frame was taken, byte by byte");
    };
    tokio::select! {
        () = trickle => {}
        reason = events.closed() => assert!(matches!(reason, CloseReason::Slow { .. }), "{reason}"),
    }
}

#[tokio::test]
async fn frames_that_come_one_by_one_are_never_too_slow() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint_with(identity(osd(1), 1), hasty());
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let mut calm = Raw::established(listener.local_address()).await;
    let frame = encode_frame(Label { kind: 40, ..Label::default() }, b"body", &[]).unwrap();
    let since = std::time::Instant::now();
    while since.elapsed() < 10 * hasty().pace_window {
        calm.write(&frame).await;
        events.message().await;
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_closed_in_each_phase() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint_with(identity(osd(1), 1), quick());
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let address = listener.local_address();

    let mut silent = Raw::connect(address).await;
    assert_eq!(silent.goodbye().await, GoodbyeReason::NoHello);

    let mut idle = Raw::established(address).await;
    assert_eq!(idle.goodbye().await, GoodbyeReason::Idle);
    assert!(matches!(events.closed().await, CloseReason::Local(GoodbyeReason::Idle)));

    let (recorder, mut events) = Recorder::new();
    let patient = NetConfig { idle_timeout: Duration::from_secs(300), ..quick() };
    let server = endpoint_with(identity(osd(1), 1), patient);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let mut stalled = Raw::established(listener.local_address()).await;
    let frame = encode_frame(Label { kind: 40, ..Label::default() }, b"body", &[]).unwrap();
    stalled.write(&frame[..frame.len() - 1]).await;
    assert!(matches!(stalled.goodbye().await, GoodbyeReason::BadFrame { .. }));
    assert!(matches!(events.closed().await, CloseReason::Stalled));
}

#[tokio::test]
async fn what_is_only_sent_keeps_a_connection_from_being_idle() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let sending = endpoint_with(identity(osd(2), 1), quick());
    let peer = peer(&sending, listener.local_address());
    let connection = peer.connection().await.unwrap();
    let since = std::time::Instant::now();
    while since.elapsed() < 10 * quick().idle_timeout {
        assert!(connection.send(message(40, "one way")).await.is_ok(), "closed after {:?}", since.elapsed());
        events.message().await;
    }
}

#[tokio::test]
async fn an_unanswered_request_keeps_a_connection_from_being_idle() {
    let (recorder, mut events) = Recorder::new();
    let server = endpoint(osd(1), 1);
    let listener = Listener::bind(&server, ANY_PORT, recorder).await.unwrap();
    let waiting = endpoint_with(identity(osd(2), 1), quick());
    let peer = peer(&waiting, listener.local_address());
    // Ten times the idle timeout passes before the deadline, which is what must end the request.
    let deadline = std::time::Instant::now() + Duration::from_millis(300);
    assert!(matches!(peer.request(message(40, "slow"), deadline).await, Err(NetError::Timeout)));
    let _request = events.message().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_turned_away() {
    let server = endpoint_with(identity(osd(1), 1), NetConfig { connections_max: 1, ..NetConfig::default() });
    let listener = Listener::bind(&server, ANY_PORT, Arc::new(NoHandler)).await.unwrap();
    let first = Raw::established(listener.local_address()).await;
    let mut second = Raw::connect(listener.local_address()).await;
    assert_eq!(second.goodbye().await, GoodbyeReason::TooManyConnections { limit: 1 });
    drop(first);
    // The slot comes back.
    let peer = peer(&client(), listener.local_address());
    within(async { while peer.connection().await.is_err() {} }).await;
}
