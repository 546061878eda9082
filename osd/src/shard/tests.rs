//! Tests of one shard, without a cluster around it.

use std::path::Path;
use std::sync::mpsc;

use holdfast_net::{Endpoint, Handler, Listener, LocalIdentity, Message, NetConfig, NoHandler, Peer, PeerMode, Target};
use holdfast_store::{Identity, Options, StoreConfig, Transaction, TxOp};
use holdfast_types::{ClusterId, DiskUuid};
use holdfast_wire::frame::PeerIdentity;
use holdfast_wire::{decode, encode};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);

fn endpoint(osd: u32) -> Arc<Endpoint> {
    let identity = PeerIdentity::Osd(OsdId(osd));
    let (incarnation, features, features_required) = (Incarnation(1), 0, 0);
    let local = LocalIdentity { cluster: CLUSTER, identity, incarnation, features, features_required };
    Endpoint::new(local, NetConfig::default(), CancellationToken::new())
}

pub(super) fn shared(directory: &Path, shards: &Shards, stall_grace: Duration) -> Arc<Shared> {
    shared_with(directory, shards, stall_grace, tokio::sync::mpsc::unbounded_channel().0)
}

pub(super) fn shared_with(
    directory: &Path,
    shards: &Shards,
    stall_grace: Duration,
    fatal: tokio::sync::mpsc::UnboundedSender<Fatal>,
) -> Arc<Shared> {
    let options = Options { segment_bytes: 4 << 20, ..Options::default() };
    let config = StoreConfig { memory_target: 16 << 20, options, ..StoreConfig::in_directory(directory) };
    let identity = Identity { cluster: CLUSTER, disk: DiskUuid([1; 16]), osd: OsdId(0) };
    Arc::new(Shared {
        osd: OsdId(0),
        incarnation: Incarnation(1),
        store: Store::format(&config, identity, 64 << 20).expect("a store"),
        shards: shards.clone(),
        peers: Arc::new(Peers::new(OsdId(0), endpoint(0))),
        wishes: Arc::default(),
        slots: Slots::default(),
        limits: Limits::default(),
        counters: Arc::default(),
        lost_before: None,
        lost_now: false,
        lost_copies: BTreeSet::new(),
        stall_grace,
        fatal,
        space: PeerSpace::default(),
        leases: Arc::new(Leases::new(now())),
        report_due: Arc::default(),
    })
}

/// Lets a shard handle what waits for it, up to a stop.
fn run(index: usize, shared: &Arc<Shared>, inbox: &Inbox) {
    let step = MapStep::new(Arc::new(ClusterMap::empty(CLUSTER)));
    Shard::new(index, shared.clone(), step, BTreeMap::new(), BTreeSet::new()).run(inbox);
}

/// Gives each heartbeat to the test.
struct Arriving(mpsc::Sender<Question>);

impl Handler for Arriving {
    fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit) {
        let heartbeat = decode(message.kind, &message.body, &message.payload()).expect("a heartbeat");
        let (connection, request_id) = (from.clone(), message.request_id);
        let epoch = Epoch::ZERO;
        self.0.send(Question { connection, request_id, heartbeat, permit, epoch }).expect("the test listens");
    }
}

/// A peer that asks, and what it asks.
struct Asker {
    _listener: Listener,
    peer: Peer,
    questions: mpsc::Receiver<Question>,
}

impl Asker {
    async fn new() -> Asker {
        let (arriving, questions) = mpsc::channel();
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(&endpoint(0), any_port, Arc::new(Arriving(arriving))).await.expect("a port");
        let address = listener.local_address().to_string();
        let target = Target { address, identity: None, incarnation: None };
        let peer = Peer::new(&endpoint(1), target, PeerMode::OnDemand, Arc::new(NoHandler));
        Asker { _listener: listener, peer, questions }
    }

    /// Sends a heartbeat; gives what arrived, and the stamp of the answer to come.
    async fn ask(&self, stamp: u64) -> (Question, JoinHandle<u64>) {
        let heartbeat = Heartbeat { from: OsdId(1), incarnation: Incarnation(1), epoch: Epoch(0), stamp };
        let encoded = encode(&heartbeat);
        let message = Message::new(Kind::Heartbeat as u16, encoded.body, encoded.payload);
        let peer = self.peer.clone();
        let answered = tokio::spawn(async move {
            let deadline = std::time::Instant::now() + Duration::from_secs(120);
            let answer = peer.request(message, deadline).await.expect("an answer");
            let reply: HeartbeatReply = decode(answer.kind, &answer.body, &answer.payload()).expect("a reply");
            reply.stamp
        });
        loop {
            match self.questions.try_recv() {
                Ok(question) => return (question, answered),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

#[tokio::test]
async fn a_heartbeat_passes_all_that_waits_for_a_shard_but_none_that_is_stuck() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shards, inboxes) = Shards::new(3);
    let shared = shared(directory.path(), &shards, STALL_GRACE);
    let asker = Asker::new().await;
    // What waits: were the question behind it, the shards would be gone by then.
    for index in 0..3 {
        shards.send_to(index, Event::Asked);
        shards.send_to(index, Event::Stop);
    }
    let (question, answered) = asker.ask(7).await;
    shards.ask(0, question);
    run(0, &shared, &inboxes[0]);
    run(1, &shared, &inboxes[1]);
    let stuck = inboxes[2].questions.try_recv().expect("the last shard has it, and nobody has answered");
    assert_eq!(stuck.heartbeat.stamp, 7);
    tokio::task::yield_now().await;
    assert!(!answered.is_finished());
    shards.ask(2, stuck);
    run(2, &shared, &inboxes[2]);
    assert_eq!(answered.await.expect("answered"), 7);
}

#[tokio::test]
async fn a_heartbeat_is_answered_between_two_placement_groups_that_take_a_map() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shards, inboxes) = Shards::new(1);
    let shared = shared(directory.path(), &shards, STALL_GRACE);
    let map = |epoch| {
        let mut map = ClusterMap::empty(CLUSTER);
        map.epoch = Epoch(epoch);
        Arc::new(map)
    };
    let pg = PgId { pool: holdfast_types::PoolId(1), seed: 0 };
    let copy = Pg::create(pg, OsdId(0), Incarnation(1), map(1), shared.limits);
    let pgs = BTreeMap::from([(pg, copy)]);
    let mut shard = Shard::new(0, shared, MapStep::new(map(1)), pgs, BTreeSet::new());
    let asker = Asker::new().await;
    let (question, answered) = asker.ask(7).await;
    shards.ask(0, question);
    shard.handle(Event::Map(MapStep::new(map(2))), Some(&inboxes[0]));
    assert!(inboxes[0].questions.try_recv().is_err(), "it was not left for later");
    assert_eq!(answered.await.expect("answered"), 7);
}

#[tokio::test]
async fn no_heartbeat_is_answered_while_the_device_hangs() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shards, inboxes) = Shards::new(1);
    let shared = shared(directory.path(), &shards, Duration::ZERO);
    let asker = Asker::new().await;
    let (free, freed) = mpsc::channel::<()>();
    let (reached, is_reached) = mpsc::channel();
    let hang = move |_: Result<(), Arc<_>>| {
        let _ = reached.send(());
        let _ = freed.recv();
    };
    let create = TxOp::CreateCollection { c: collection_of(PgId { pool: holdfast_types::PoolId(1), seed: 0 }) };
    shared.store.submit(Transaction { ops: vec![create] }, hang).expect("submitted");
    is_reached.recv().expect("the commit thread hangs");
    let (question, unanswered) = asker.ask(1).await;
    shards.ask(0, question);
    shards.send_to(0, Event::Stop);
    run(0, &shared, &inboxes[0]);

    drop(free);
    while shared.store.stalled_for() > Duration::ZERO {
        std::thread::yield_now();
    }
    let (question, answered) = asker.ask(2).await;
    shards.ask(0, question);
    shards.send_to(0, Event::Stop);
    run(0, &shared, &inboxes[0]);
    assert_eq!(answered.await.expect("answered"), 2);
    // One connection keeps order: an answer to the first would have come before.
    assert!(!unanswered.is_finished());
    unanswered.abort();
}

#[tokio::test]
async fn what_placement_groups_cannot_serve_leaves_memory_for_what_others_can() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shards, _inboxes) = Shards::new(1);
    let shared = shared(directory.path(), &shards, STALL_GRACE);
    let mut map = ClusterMap::empty(CLUSTER);
    map.epoch = Epoch(1);
    // Of three copies only this one is there.
    let pool = holdfast_map::Pool {
        name: "p".to_owned(),
        kind: holdfast_map::PoolKind::Replicated { size: 3, min_size: 2 },
        pg_num: 16,
        rule: 0,
        created: Epoch(1),
        application: "test".to_owned(),
    };
    map.pools.insert(holdfast_types::PoolId(1), pool);
    map.next_pool = holdfast_types::PoolId(2);
    let info = holdfast_map::OsdInfo {
        disk: DiskUuid([1; 16]),
        incarnation: Incarnation(1),
        address: "nowhere:1".to_owned(),
        up: true,
        in_cluster: true,
        reweight: 0x1_0000,
        up_from: Epoch(1),
        up_thru: Epoch::ZERO,
        down_at: Epoch::ZERO,
        dead_epoch: Epoch::ZERO,
        formatted_at: Epoch::ZERO,
    };
    map.osds.insert(OsdId(0), info);
    map.crush.insert_device(OsdId(0), 0x1_0000, None, &[("host", "h"), ("root", "default")]).expect("a place");
    let step = MapStep::new(Arc::new(map));
    let mut shard = Shard::new(0, shared.clone(), step.clone(), BTreeMap::new(), BTreeSet::new());
    shard.advance_map(&step, None);
    assert_eq!(shard.pgs.len(), 16);
    let max = shared.limits.client_bytes_waiting_max;
    for tid in 1..=200 {
        let object = holdfast_types::ObjectName::new(format!("o-{tid}")).expect("a name");
        let pg = step.map.pg_of(holdfast_types::PoolId(1), &object).expect("a pool");
        let data = bytes::Bytes::from(vec![0; 1 << 20]).into();
        let id = holdfast_types::RequestId { client: holdfast_types::ClientId(tid), incarnation: Incarnation(1), tid };
        let ops = vec![holdfast_wire::ObjectOp::WriteFull { data }];
        let request =
            ClientRequest { id, epoch: Epoch(1), pg, object, ops, lowest_outstanding_tid: tid, frees_space: None };
        shard.step_pg(pg, Input::Client { reply_to: ReplyTo(tid), request });
        assert!(shared.space.client_bytes_waiting() <= max, "{tid}");
    }
    assert!(shared.space.client_bytes_waiting() > max / 2);
    assert!(max + (16 << 20) <= NetConfig::default().inbound_bytes_max as u64, "one client's other requests");
    for pg in step.members.keys() {
        shard.step_pg(*pg, Input::ClientsGone((1..=200).map(ReplyTo).collect()));
    }
    assert_eq!(shared.space.client_bytes_waiting(), 0);
}

#[test]
fn who_waits_for_the_shards_waits_for_those_that_live() {
    let (shards, mut inboxes) = Shards::new(2);
    drop(inboxes.pop());
    let inbox = inboxes.pop().expect("two were made");
    let waiting = std::thread::spawn(move || shards.wait());
    let event = inbox.events.recv().expect("sent");
    assert!(matches!(event, Event::Reached(_)) && !waiting.is_finished());
    drop(event);
    waiting.join().expect("ended");
}
