//! The consensus module on real disks, over an in-process network that can be cut.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use holdfast_mon::raft::{Consensus, ConsensusError, Machine, Seat, StartError, Transport, TransportError};
use holdfast_types::{ClusterId, MonId};
use parking_lot::Mutex;
use tokio::time::timeout;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

/// Remembers all commands, in order, and counts the snapshots that it was given.
#[derive(Default)]
struct Ledger(Mutex<Vec<Vec<u8>>>, AtomicUsize);

impl Machine for Ledger {
    fn apply(&self, _: u64, command: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let mut ledger = self.0.lock();
        if !command.is_empty() {
            ledger.push(command.to_vec());
        }
        Ok(ledger.len().to_be_bytes().to_vec())
    }

    fn no_op(&self) -> Vec<u8> {
        Vec::new()
    }

    fn snapshot(&self) -> Vec<u8> {
        let ledger: Vec<minicbor::bytes::ByteVec> = self.0.lock().iter().cloned().map(Into::into).collect();
        minicbor::to_vec(ledger).unwrap()
    }

    fn restore(&self, state: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let ledger: Vec<minicbor::bytes::ByteVec> = minicbor::decode(state)?;
        self.1.fetch_add(1, Ordering::Relaxed);
        *self.0.lock() = ledger.into_iter().map(Into::into).collect();
        Ok(())
    }
}

type Directory = Arc<Mutex<BTreeMap<MonId, Weak<Consensus<Ledger>>>>>;

/// One monitor's way to the others; `cut` names those that nobody reaches and that reach nobody.
struct Wires {
    from: MonId,
    reachable: Directory,
    cut: Arc<Mutex<BTreeSet<MonId>>>,
}

impl Transport for Wires {
    async fn call(&self, to: MonId, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, TransportError> {
        let unreachable = || TransportError { to, reason: "cut".into() };
        let whole = || {
            let cut = self.cut.lock();
            !cut.contains(&self.from) && !cut.contains(&to)
        };
        let peer = self.reachable.lock().get(&to).and_then(Weak::upgrade).ok_or_else(unreachable)?;
        if !whole() {
            return Err(unreachable());
        }
        let reply = peer.answer_peer(&request).await;
        if whole() { Ok(reply) } else { Err(unreachable()) }
    }
}

struct Quorum {
    disks: tempfile::TempDir,
    members: BTreeMap<MonId, String>,
    reachable: Directory,
    cut: Arc<Mutex<BTreeSet<MonId>>>,
    mons: BTreeMap<MonId, (Arc<Consensus<Ledger>>, Arc<Ledger>)>,
}

impl Quorum {
    async fn start(count: u64) -> Quorum {
        let members = (0..count).map(|id| (MonId(id), format!("mon-{id}"))).collect();
        let mut quorum = Quorum {
            disks: tempfile::tempdir().unwrap(),
            members,
            reachable: Directory::default(),
            cut: Arc::default(),
            mons: BTreeMap::new(),
        };
        for id in 0..count {
            quorum.try_boot(MonId(id), true).await.unwrap();
        }
        quorum.all_vote().await;
        quorum
    }

    /// Who was not needed to form the cluster joins it.
    async fn all_vote(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.mons.values().all(|(mon, _)| mon.votes()) {
            assert!(Instant::now() < deadline, "somebody does not vote");
            tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
        }
    }

    fn disk(&self, id: MonId) -> PathBuf {
        self.disks.path().join(id.to_string())
    }

    async fn boot(&mut self, id: MonId) {
        self.try_boot(id, false).await.unwrap();
    }

    async fn try_boot(&mut self, id: MonId, bootstrap: bool) -> Result<(), StartError> {
        let ledger = Arc::new(Ledger::default());
        let wires = Wires { from: id, reachable: Arc::clone(&self.reachable), cut: Arc::clone(&self.cut) };
        let seat = Seat { id, cluster: CLUSTER, members: &self.members, directory: &self.disk(id), bootstrap };
        let mon = Arc::new(Consensus::start(seat, Arc::clone(&ledger), Arc::new(wires)).await?);
        self.reachable.lock().insert(id, Arc::downgrade(&mon));
        self.mons.insert(id, (mon, ledger));
        Ok(())
    }

    /// Stops a monitor and empties its directory, as a changed disk or a missing mount would.
    async fn wipe(&mut self, id: MonId) {
        self.stop(id).await;
        std::fs::remove_dir_all(self.disk(id)).unwrap();
    }

    fn others(&self, id: MonId) -> [MonId; 2] {
        let mut others = self.members.keys().copied().filter(|other| *other != id);
        [others.next().unwrap(), others.next().unwrap()]
    }

    /// A monitor that was started again knows the last leader, `gone`, until there is another one.
    async fn no_leader_is_seen_by(&self, id: MonId, gone: MonId, within: Duration) {
        let mut leadership = self.mons[&id].0.leadership();
        let seen = timeout(within, leadership.wait_for(|now| now.leader.is_some_and(|leader| leader != gone))).await;
        assert!(seen.is_err(), "{id} sees a leader: {seen:?}");
    }

    async fn stop(&mut self, id: MonId) {
        self.reachable.lock().remove(&id);
        let (mon, _) = self.mons.remove(&id).unwrap();
        mon.shutdown().await;
    }

    /// Stops all: a process that ends while a database is open may end badly.
    async fn end(mut self) {
        for id in self.mons.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    /// The leader that `id` sees, once there is one other than `not`.
    async fn leader_seen_by(&self, id: MonId, not: Option<MonId>) -> MonId {
        let mut leadership = self.mons[&id].0.leadership();
        let now = timeout(PATIENCE, leadership.wait_for(|now| now.leader.is_some() && now.leader != not)).await;
        let leader = now.unwrap().unwrap().leader;
        leader.unwrap()
    }

    /// Commits a command through whoever leads, as seen by `at`; answers the leader.
    async fn propose(&self, at: MonId, command: &[u8]) -> MonId {
        let deadline = Instant::now() + PATIENCE;
        let mut leader = self.leader_seen_by(at, None).await;
        loop {
            match timeout(PATIENCE, self.mons[&leader].0.propose(command.to_vec())).await.expect("in time") {
                Ok(_) => return leader,
                Err(ConsensusError::NotLeader { .. }) => leader = self.leader_seen_by(at, None).await,
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "no leader serves");
            tokio::task::yield_now().await;
        }
    }

    async fn holds(&self, id: MonId, commands: &[&[u8]]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.mons[&id].1.0.lock().clone();
            if now == commands {
                return;
            }
            assert!(Instant::now() < deadline, "{id} holds {now:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_monitor_leads_at_once_and_keeps_all_over_a_restart() {
    let mut quorum = Quorum::start(1).await;
    let begun = Instant::now();
    assert_eq!(quorum.leader_seen_by(MonId(0), None).await, MonId(0));
    quorum.propose(MonId(0), b"one").await;
    println!("first commit after {:?}", begun.elapsed());
    quorum.stop(MonId(0)).await;
    let begun = Instant::now();
    quorum.boot(MonId(0)).await;
    quorum.leader_seen_by(MonId(0), None).await;
    quorum.propose(MonId(0), b"two").await;
    println!("first commit after a restart: {:?}", begun.elapsed());
    quorum.holds(MonId(0), &[b"one", b"two"]).await;
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_at_once_and_nothing_committed_is_lost() {
    let mut quorum = Quorum::start(3).await;
    let first = quorum.propose(MonId(0), b"one").await;
    quorum.cut.lock().insert(first);
    let begun = Instant::now();
    let survivor = *quorum.members.keys().find(|id| **id != first).unwrap();
    quorum.leader_seen_by(survivor, Some(first)).await;
    let second = quorum.propose(survivor, b"two").await;
    println!("new leader commits after {:?}", begun.elapsed());
    // Two seconds where a processor is free (the end-to-end tests measure it); this is for any machine.
    assert!(begun.elapsed() < Duration::from_secs(15));
    // The old leader still believes in itself, but can neither commit nor confirm a read.
    let lost = timeout(Duration::from_millis(500), quorum.mons[&first].0.propose(b"lost".to_vec())).await;
    assert!(!matches!(lost, Ok(Ok(_))), "a minority committed");
    let stale = timeout(Duration::from_millis(500), quorum.mons[&first].0.read_barrier()).await;
    assert!(!matches!(stale, Ok(Ok(()))), "a minority confirmed a read");
    // It comes back and forgets what was never committed.
    quorum.stop(first).await;
    quorum.cut.lock().clear();
    quorum.boot(first).await;
    quorum.holds(first, &[b"one", b"two"]).await;
    quorum.mons[&second].0.read_barrier().await.unwrap();
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_monitors_restart_with_everything_that_was_answered() {
    let mut quorum = Quorum::start(3).await;
    let commands: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n]).collect();
    for command in &commands {
        quorum.propose(MonId(0), command).await;
    }
    quorum.mons[&MonId(1)].0.snapshot_now().await;
    for id in 0..3 {
        quorum.stop(MonId(id)).await;
    }
    for id in 0..3 {
        quorum.boot(MonId(id)).await;
    }
    quorum.leader_seen_by(MonId(0), None).await;
    let commands: Vec<&[u8]> = commands.iter().map(Vec::as_slice).collect();
    for id in 0..3 {
        quorum.holds(MonId(id), &commands).await;
    }
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_was_away_for_long_catches_up_by_a_snapshot() {
    let mut quorum = Quorum::start(3).await;
    let leader = quorum.propose(MonId(0), b"first").await;
    let away = *quorum.members.keys().find(|id| **id != leader).unwrap();
    quorum.stop(away).await;
    // More than a snapshot covers and the log keeps behind it.
    let mon = Arc::clone(&quorum.mons[&leader].0);
    for round in 0..30u8 {
        let proposals = (0..100u8).map(|n| mon.propose(vec![round, n]));
        for done in futures::future::join_all(proposals).await {
            done.unwrap();
        }
    }
    let ledger = quorum.mons[&leader].1.0.lock().clone();
    assert_eq!(ledger.len(), 3_001);
    let deadline = Instant::now() + PATIENCE;
    while mon.purged() < Some(1_000) {
        assert!(Instant::now() < deadline, "the log is never cut: {:?}", mon.purged());
        tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
    }
    quorum.boot(away).await;
    let commands: Vec<&[u8]> = ledger.iter().map(Vec::as_slice).collect();
    quorum.holds(away, &commands).await;
    assert!(quorum.mons[&away].1.1.load(Ordering::Relaxed) > 0, "it was not a snapshot that brought it");
    // It keeps what it was brought.
    quorum.stop(away).await;
    quorum.boot(away).await;
    quorum.holds(away, &commands).await;
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_opens_as_nobody_else() {
    let mut quorum = Quorum::start(1).await;
    quorum.stop(MonId(0)).await;
    let other = BTreeMap::from([(MonId(1), String::new())]);
    let wires = Wires { from: MonId(1), reachable: Directory::default(), cut: Arc::default() };
    let (id, directory) = (MonId(1), quorum.disk(MonId(0)));
    let seat = Seat { id, cluster: CLUSTER, members: &other, directory: &directory, bootstrap: false };
    let error = <Consensus<Ledger>>::start(seat, Arc::new(Ledger::default()), Arc::new(wires)).await.err().unwrap();
    assert!(error.to_string().contains("belongs to mon.0"), "{error}");
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_without_memory_elects_nobody_who_lacks_what_was_committed() {
    let mut quorum = Quorum::start(3).await;
    let leader = quorum.propose(MonId(0), b"one").await;
    let [wiped, behind] = quorum.others(leader);
    quorum.stop(behind).await;
    quorum.propose(leader, b"acknowledged by two").await;
    quorum.stop(leader).await;
    quorum.wipe(wiped).await;
    // One that lacks the entry and one that has forgotten it are a majority by number.
    quorum.boot(behind).await;
    quorum.boot(wiped).await;
    quorum.no_leader_is_seen_by(behind, leader, Duration::from_secs(4)).await;
    quorum.boot(leader).await;
    for id in [leader, wiped, behind] {
        quorum.holds(id, &[b"one", b"acknowledged by two"]).await;
    }
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_without_memory_is_let_in_by_the_others_and_votes_again() {
    let mut quorum = Quorum::start(3).await;
    let leader = quorum.propose(MonId(0), b"one").await;
    let [wiped, other] = quorum.others(leader);
    quorum.holds(wiped, &[b"one"]).await;
    quorum.wipe(wiped).await;
    quorum.propose(leader, b"two").await;
    quorum.boot(wiped).await;
    quorum.holds(wiped, &[b"one", b"two"]).await;
    // It counts again: with another one gone, the two that are left elect and commit.
    quorum.stop(other).await;
    quorum.propose(leader, b"three").await;
    quorum.boot(other).await;
    quorum.holds(other, &[b"one", b"two", b"three"]).await;
    quorum.stop(leader).await;
    let begun = Instant::now();
    quorum.leader_seen_by(wiped, Some(leader)).await;
    quorum.propose(wiped, b"four").await;
    println!("elected with the vote of the one that was wiped after {:?}", begun.elapsed());
    // And remembers: the next start is an ordinary one.
    quorum.stop(wiped).await;
    quorum.boot(wiped).await;
    quorum.holds(wiped, &[b"one", b"two", b"three", b"four"]).await;
    quorum.end().await;
}

/// `--bootstrap` in a unit file is given at each start.
#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_lost_its_directory_joins_although_it_is_told_to_form_a_cluster() {
    let mut quorum = Quorum::start(3).await;
    quorum.propose(MonId(0), b"one").await;
    let leader = quorum.leader_seen_by(MonId(0), None).await;
    let [lost, lagging] = quorum.others(leader);
    for id in [leader, lost, lagging] {
        quorum.holds(id, &[b"one"]).await;
    }
    quorum.cut.lock().insert(lagging);
    quorum.propose(leader, b"two").await;
    quorum.stop(leader).await;
    quorum.wipe(lost).await;
    quorum.cut.lock().clear();
    quorum.try_boot(lost, true).await.unwrap();
    // With the vote of the one that has forgotten, the one that lags would lead without the second command.
    quorum.no_leader_is_seen_by(lagging, leader, Duration::from_secs(3)).await;
    quorum.try_boot(leader, true).await.unwrap();
    quorum.propose(lagging, b"three").await;
    for id in [leader, lost, lagging] {
        quorum.holds(id, &[b"one", b"two", b"three"]).await;
    }
    quorum.end().await;
}

/// What it heard at its first start, nobody needs to tell it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_waits_to_be_let_in_does_not_form_a_cluster_at_its_next_start() {
    let mut quorum = Quorum::start(3).await;
    quorum.propose(MonId(0), b"one").await;
    let leader = quorum.leader_seen_by(MonId(0), None).await;
    let [lost, lagging] = quorum.others(leader);
    for id in [leader, lost, lagging] {
        quorum.holds(id, &[b"one"]).await;
    }
    quorum.stop(lagging).await;
    quorum.propose(leader, b"two").await;
    quorum.wipe(lost).await;
    // It hears of the cluster, but one monitor alone lets nobody in.
    quorum.try_boot(lost, true).await.unwrap();
    assert!(!quorum.mons[&lost].0.votes());
    // The power fails everywhere. It is back first, and reaches nobody; then comes the one that lags.
    quorum.stop(leader).await;
    quorum.stop(lost).await;
    quorum.try_boot(lost, true).await.unwrap();
    assert!(!quorum.mons[&lost].0.votes(), "it has forgotten that it has no memory");
    quorum.try_boot(lagging, true).await.unwrap();
    quorum.no_leader_is_seen_by(lagging, leader, Duration::from_secs(3)).await;
    quorum.try_boot(leader, true).await.unwrap();
    quorum.propose(lagging, b"three").await;
    for id in [leader, lost, lagging] {
        quorum.holds(id, &[b"one", b"two", b"three"]).await;
    }
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_comes_late_to_the_forming_of_its_cluster_votes_in_the_end() {
    let mut quorum = Quorum::start(3).await;
    let leader = quorum.leader_seen_by(MonId(0), None).await;
    let [late, _] = quorum.others(leader);
    quorum.wipe(late).await; // as if it had not begun
    quorum.propose(leader, b"one").await;
    quorum.try_boot(late, true).await.unwrap();
    quorum.holds(late, &[b"one"]).await;
    quorum.all_vote().await;
    // Its vote is needed now.
    quorum.stop(leader).await;
    quorum.leader_seen_by(late, Some(leader)).await;
    quorum.propose(late, b"two").await;
    quorum.holds(late, &[b"one", b"two"]).await;
    quorum.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_with_empty_directories_never_form_a_new_cluster_by_themselves() {
    let mut quorum = Quorum::start(3).await;
    let kept = quorum.propose(MonId(0), b"one").await;
    for id in quorum.others(kept) {
        quorum.wipe(id).await;
    }
    quorum.stop(kept).await;
    for id in quorum.others(kept) {
        quorum.boot(id).await;
    }
    let [first, second] = quorum.others(kept);
    quorum.no_leader_is_seen_by(first, kept, Duration::from_secs(3)).await;
    quorum.boot(kept).await;
    quorum.no_leader_is_seen_by(second, kept, Duration::from_secs(3)).await;
    let lost = timeout(Duration::from_millis(500), quorum.mons[&kept].0.propose(b"lost".to_vec())).await;
    assert!(!matches!(lost, Ok(Ok(_))), "one monitor with memory is no majority");

    let mut alone = Quorum::start(1).await;
    alone.wipe(MonId(0)).await;
    let refused = alone.try_boot(MonId(0), false).await;
    let said = refused.expect_err("it has nothing to serve").to_string();
    assert!(said.contains("--bootstrap"), "{said}");
    quorum.end().await;
}
