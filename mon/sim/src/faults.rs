//! What goes wrong in a run: network, processes, disks, clocks, membership, each kind counted.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::AsyncRuntime;

use crate::disk::Crash;
use crate::net::Net;
use crate::runtime::{self, NodeId, SimRuntime, WORLD};
use crate::world;

/// A kind of fault that a run can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Partition,
    OneWay,
    Isolation,
    LeaderAlone,
    Lossy,
    Slow,
    Duplicates,
    Resets,
    Kill,
    KillAtIo,
    PowerCut,
    PowerCutAtIo,
    PowerCutAll,
    PowerCutAfterVote,
    Pause,
    DiskLost,
    DiskLostThenAlone,
    DiskFails,
    DiskSlow,
    DiskStuck,
    WallJump,
    Skew,
    Members,
    Snapshot,
    HandOver,
}

impl Fault {
    /// All kinds.
    pub(crate) const ALL: [Fault; 25] = [
        Fault::Partition,
        Fault::OneWay,
        Fault::Isolation,
        Fault::LeaderAlone,
        Fault::Lossy,
        Fault::Slow,
        Fault::Duplicates,
        Fault::Resets,
        Fault::Kill,
        Fault::KillAtIo,
        Fault::PowerCut,
        Fault::PowerCutAtIo,
        Fault::PowerCutAll,
        Fault::PowerCutAfterVote,
        Fault::Pause,
        Fault::DiskLost,
        Fault::DiskLostThenAlone,
        Fault::DiskFails,
        Fault::DiskSlow,
        Fault::DiskStuck,
        Fault::WallJump,
        Fault::Skew,
        Fault::Members,
        Fault::Snapshot,
        Fault::HandOver,
    ];
}

/// The counts that a campaign must not find at zero.
pub(crate) const COUNTED: [&str; 33] = [
    "partition",
    "one-way-partition",
    "isolation",
    "leader-alone",
    "message-blocked",
    "message-lost",
    "message-late",
    "message-duplicated",
    "connection-reset",
    "kill",
    "kill-at-io",
    "power-cut",
    "power-cut-at-io",
    "power-cut-all",
    "power-cut-after-vote",
    "unsynced-writes-lost",
    "pause",
    "disk-lost",
    "told-to-form",
    "told-to-form-while-joining",
    "alone-while-joining",
    "joined-again",
    "fsync-error",
    "stopped-by-its-disk",
    "disk-slow",
    "disk-stuck",
    "wall-jump",
    "clock-skew",
    "member-removed",
    "member-added",
    "snapshot",
    "hand-over",
    "requests-resent",
];

fn below(limit: u64) -> u64 {
    runtime::random() % limit.max(1)
}

fn any_monitor() -> NodeId {
    1 + usize::try_from(below(world::monitors() as u64)).unwrap_or(0)
}

fn some_time(min_ms: u64, max_ms: u64) -> Duration {
    Duration::from_millis(min_ms + below(max_ms - min_ms))
}

/// Undoes `work` after `after`, unless all is healed by then anyway.
fn later(after: Duration, work: impl FnOnce() + Send + 'static) {
    runtime::spawn_on(WORLD, async move {
        SimRuntime::sleep(after).await;
        work();
    });
}

/// Makes things go wrong until `until`, in true nanoseconds; a fault every `pace_ms` on average.
pub(crate) async fn torment(kinds: Vec<Fault>, until: u64, pace_ms: u64) {
    if kinds.contains(&Fault::Skew) {
        for node in 1..=world::monitors() {
            world::set_rate(node, 950_000 + below(100_001));
        }
    }
    while runtime::true_nanos() < until {
        SimRuntime::sleep(some_time(pace_ms / 10, 2 * pace_ms)).await;
        if kinds.is_empty() {
            continue;
        }
        let kind = kinds[usize::try_from(below(kinds.len() as u64)).unwrap_or(0)];
        let left = until.saturating_sub(runtime::true_nanos());
        if left > 0 {
            strike(kind).await;
        }
    }
}

async fn strike(kind: Fault) {
    let node = any_monitor();
    world::trace(|| format!("fault: {kind:?}, perhaps at {node}"));
    match kind {
        Fault::Partition => {
            let side: BTreeSet<NodeId> = (0..=world::monitors()).filter(|_| below(2) == 0).collect();
            let pairs = (0..=world::monitors()).flat_map(|a| (0..=world::monitors()).map(move |b| (a, b)));
            let cut: Vec<_> = pairs.filter(|(a, b)| side.contains(a) != side.contains(b)).collect();
            world::count("partition");
            block(cut, some_time(200, 9_000));
        }
        Fault::OneWay => {
            let other = usize::try_from(below(world::monitors() as u64 + 1)).unwrap_or(0);
            if other != node {
                world::count("one-way-partition");
                block(vec![(node, other)], some_time(200, 9_000));
            }
        }
        Fault::Isolation => {
            // The one that leads, if it is known: then its past is what others must not believe in.
            let node = world::leader().map_or(node, |(leader, _)| leader);
            // Clients still reach it in half of the cases.
            let first = usize::from(below(2) == 0);
            let cut = (first..=world::monitors()).filter(|other| *other != node);
            world::count("isolation");
            block(cut.flat_map(|other| [(node, other), (other, node)]).collect(), some_time(500, 9_000));
        }
        Fault::LeaderAlone => leave_alone().await,
        Fault::Lossy => bad_net(|net| net.loss = 20 + below(280)),
        Fault::Slow => bad_net(|net| {
            net.late = 100 + below(900);
            net.late_micros_max = 2_000 + below(900_000);
        }),
        Fault::Duplicates => bad_net(|net| net.duplicates = 50 + below(450)),
        Fault::Resets => bad_net(|net| net.resets = 10 + below(200)),
        Fault::Kill => end(node, Crash::Kill, "kill"),
        Fault::PowerCut => end(node, Crash::PowerCut, "power-cut"),
        Fault::PowerCutAll => cut_all(None, None),
        Fault::PowerCutAfterVote => cut_after_vote(world::leader().map_or(node, |(leader, _)| leader)).await,
        Fault::KillAtIo | Fault::PowerCutAtIo => {
            let crash = if kind == Fault::KillAtIo { Crash::Kill } else { Crash::PowerCut };
            if runtime::is_alive(node) {
                let ios = u32::try_from(below(60)).unwrap_or(0);
                world::disk(node).lock().crash_in = Some((ios, crash));
            }
        }
        Fault::Pause => {
            if runtime::is_alive(node) {
                let node = if below(2) == 0 { world::leader().map_or(node, |(leader, _)| leader) } else { node };
                world::count("pause");
                runtime::pause(node, true);
                later(some_time(100, 7_000), move || runtime::pause(node, false));
            }
        }
        Fault::DiskLost => lose_disk(node).await,
        Fault::DiskLostThenAlone => lose_disk_then_alone(node).await,
        Fault::DiskFails => {
            world::disk(node).lock().failing = true;
            later(some_time(50, 1_000), move || {
                if runtime::is_alive(node) {
                    world::disk(node).lock().failing = false;
                }
            });
        }
        Fault::DiskSlow => {
            world::count("disk-slow");
            world::disk(node).lock().slowness = u32::try_from(2 + below(99)).unwrap_or(2);
            later(some_time(500, 6_000), move || world::disk(node).lock().slowness = 0);
        }
        Fault::DiskStuck => {
            world::count("disk-stuck");
            let end = runtime::true_nanos() + u64::try_from(some_time(200, 5_000).as_nanos()).unwrap_or(0);
            world::disk(node).lock().stuck_until = end;
        }
        Fault::WallJump => {
            world::count("wall-jump");
            world::jump_wall(node, i64::try_from(below(7_200_000)).unwrap_or(0) - 3_600_000);
        }
        Fault::Skew => {
            world::count("clock-skew");
            world::set_rate(node, 950_000 + below(100_001));
            end(node, Crash::Kill, "kill");
        }
        Fault::Members => change_members(node).await,
        Fault::Snapshot => {
            if let Some(member) = world::member(node) {
                world::count("snapshot");
                runtime::spawn_on(node, async move { member.snapshot_now().await });
            }
        }
        Fault::HandOver => {
            if let Some((leader, member)) = world::leader() {
                world::count("hand-over");
                runtime::spawn_on(leader, async move { member.hand_over().await });
            }
        }
    }
}

fn block(pairs: Vec<(NodeId, NodeId)>, during: Duration) {
    world::net(|net| net.blocked.extend(pairs.iter().copied()));
    later(during, move || {
        world::net(|net| {
            pairs.iter().for_each(|pair| {
                net.blocked.remove(pair);
            })
        });
    });
}

fn bad_net(change: impl FnOnce(&mut Net)) {
    world::net(change);
    later(some_time(500, 8_000), || {
        world::net(|net| *net = Net { blocked: std::mem::take(&mut net.blocked), ..Net::default() });
    });
}

fn end(node: NodeId, crash: Crash, kind: &'static str) {
    if runtime::is_alive(node) {
        world::count(kind);
        world::kill(node, crash);
        // One in four comes back at once and may be hit again.
        let after = if below(4) == 0 { some_time(1, 30) } else { some_time(100, 6_000) };
        world::boot_in(node, after);
    }
}

/// The power of all fails; `first` is back before the others, `told` to form the cluster or not.
fn cut_all(first: Option<NodeId>, told: Option<bool>) {
    world::count("power-cut-all");
    for node in 1..=world::monitors() {
        world::kill(node, Crash::PowerCut);
        match first {
            Some(first) if first == node => world::boot_told(node, some_time(1, 20), told),
            Some(_) => world::boot_in(node, some_time(500, 4_000)),
            None => world::boot_in(node, some_time(10, 2_000)),
        }
    }
}

/// The others lose the leader and start again at once: they remember no lease that they granted it. Clients reach all, and
/// ask all the time: what the others acknowledge, the old leader must not deny.
async fn leave_alone() {
    let Some((leader, _)) = world::leader() else { return };
    let others: Vec<NodeId> = (1..=world::monitors()).filter(|other| *other != leader).collect();
    world::count("leader-alone");
    world::set_haste(true);
    SimRuntime::sleep(Duration::from_millis(100)).await; // what was asked with patience is answered
    block(ways(&[leader], &others), some_time(600, 3_000));
    for node in others {
        if runtime::is_alive(node) {
            world::kill(node, Crash::Kill);
            world::boot_in(node, Duration::from_millis(1));
        }
    }
    SimRuntime::sleep(Duration::from_millis(800)).await;
    world::set_haste(false);
}

/// All ways between two sides.
fn ways(from: &[NodeId], to: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

/// The others fall into two sides that do not reach each other. The one between them reaches the first side only, votes for
/// one there, and loses power with its answer under way; when it is back, it reaches the second side only, where somebody
/// asks for its vote in the same term. What is committed there must hold when all reach each other again.
async fn cut_after_vote(between: NodeId) {
    let mut others: Vec<NodeId> = (1..=world::monitors()).filter(|node| *node != between).collect();
    // Within a term the higher one takes over: it asks first in most cases.
    if below(4) > 0 {
        others.reverse();
    }
    let (one, other) = others.split_at(others.len() / 2);
    let away = ways(other, &[between]);
    block(ways(one, other), some_time(4_000, 8_000));
    block(away.clone(), Duration::from_secs(4));
    world::kill(between, Crash::PowerCut);
    world::disk(between).lock().cut_after_vote = true;
    // Until those that it led, if it did, want to be led again.
    world::boot_in(between, some_time(500, 1_500));
    for _ in 0..4_000 {
        SimRuntime::sleep(Duration::from_millis(1)).await;
        if !world::disk(between).lock().cut_after_vote {
            break;
        }
    }
    SimRuntime::sleep(Duration::from_millis(3)).await; // the vote gets out, the power fails
    world::net(|net| {
        away.iter().for_each(|way| {
            net.blocked.remove(way);
        })
    });
    block(ways(one, &[between]), some_time(300, 4_000));
    SimRuntime::sleep(some_time(300, 3_000)).await;
}

/// One monitor at a time may lose its disk: when all others remember and vote. Tells whether this one did; its machine
/// is without power then.
fn take_disk(node: NodeId) -> bool {
    if world::is_reshaped() || (1..=world::monitors()).any(|other| !world::remembers(other)) {
        return false;
    }
    world::count("disk-lost");
    world::kill(node, Crash::PowerCut);
    world::disk(node).lock().wipe();
    runtime::spawn_on(WORLD, async move {
        while !world::remembers(node) {
            SimRuntime::sleep(Duration::from_millis(50)).await;
        }
        world::count("joined-again");
    });
    true
}

async fn lose_disk(node: NodeId) {
    if !take_disk(node) {
        return;
    }
    world::boot_in(node, some_time(50, 3_000));
    if below(3) == 0 {
        // What it has heard by then must be enough, whomever it reaches when it is back.
        SimRuntime::sleep(some_time(100, 4_000)).await;
        if !world::remembers(node) {
            cut_all(Some(node), None);
        }
    }
}

/// A follower loses its disk and learns at its next start that it has no memory: nobody tells it to form a cluster, or
/// others than the leader say that there is one. Before the leader hears of it, it starts once more, is told to form the
/// cluster in most cases, and reaches nobody. What it learnt the first time must be enough.
async fn lose_disk_then_alone(node: NodeId) {
    let Some((leader, _)) = world::leader() else { return };
    let node = if node == leader { 1 + node % world::monitors() } else { node };
    let others: Vec<NodeId> = (1..=world::monitors()).filter(|other| *other != node).collect();
    if !take_disk(node) {
        return;
    }
    let hears_of_it = below(2) == 0;
    let unreached = if hears_of_it { vec![leader] } else { others.clone() };
    block(ways(&unreached, &[node]), Duration::from_secs(10));
    world::boot_told(node, some_time(10, 300), Some(hears_of_it));
    for _ in 0..600 {
        if world::is_silent(node) {
            break;
        }
        SimRuntime::sleep(Duration::from_millis(10)).await;
    }
    SimRuntime::sleep(some_time(1, 500)).await;
    if !world::is_silent(node) {
        return; // another leads by now, and has let it in
    }
    world::count("alone-while-joining");
    let told = Some(below(4) > 0);
    if below(2) == 0 {
        cut_all(Some(node), told);
    } else {
        block(ways(&others, &[node]), some_time(3_000, 9_000));
        world::kill(node, if below(2) == 0 { Crash::Kill } else { Crash::PowerCut });
        world::boot_told(node, some_time(1, 500), told);
    }
}

/// Takes a voter away and gives it its seat back later.
async fn change_members(node: NodeId) {
    // With three voters, two must remain that remember.
    if (1..=world::monitors()).any(|other| !world::remembers(other)) {
        return;
    }
    let Some((leader, member)) = world::leader() else { return };
    let mut voters = world::members();
    let id = holdfast_types::MonId(node as u64);
    let whole = voters.clone();
    voters.remove(&id);
    world::set_reshaped(true);
    runtime::spawn_on(leader, async move {
        let removed = SimRuntime::timeout(Duration::from_secs(4), member.change_voters(&voters)).await;
        if matches!(removed, Ok(Ok(()))) {
            world::count("member-removed");
        }
    });
    SimRuntime::sleep(some_time(200, 3_000)).await;
    if restore_members(&whole, Duration::from_secs(4)).await {
        world::count("member-added");
    }
}

/// Gives all monitors their seats. Tells whether that was done.
pub(crate) async fn restore_members(
    whole: &std::collections::BTreeMap<holdfast_types::MonId, String>,
    within: Duration,
) -> bool {
    let Some((leader, member)) = world::leader() else { return false };
    let whole = whole.clone();
    let (tx, rx) = tokio::sync::oneshot::channel();
    runtime::spawn_on(leader, async move {
        let _ = tx.send(SimRuntime::timeout(within, member.change_voters(&whole)).await);
    });
    let done = matches!(rx.await, Ok(Ok(Ok(()))));
    if done {
        world::set_reshaped(false);
    }
    done
}

/// Ends all faults: whole network, all processes up and running, disks good.
pub(crate) fn heal() {
    world::net(|net| *net = Net::default());
    for node in 1..=world::monitors() {
        world::disk(node).lock().mend();
        runtime::pause(node, false);
        if !runtime::is_alive(node) {
            world::boot_in(node, Duration::from_millis(10));
        }
    }
}
