//! One run: monitors on simulated machines, the network between them, what is counted and what was seen.
//!
//! The world belongs to the thread that runs it. Monitors are nodes 1 to n (monitor *i* is node *i*); clients, faults and
//! checkers are on node 0, which never fails.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_mon::host::LogLimits;
use holdfast_mon::member::Member;
use holdfast_mon::raft::Seat;
use holdfast_mon_state::Command;
use holdfast_types::{ClusterId, Epoch, MonId};
use openraft::AsyncRuntime;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::checker::{Checker, Violation};
use crate::disk::{Crash, Disk};
use crate::host::Sim;
use crate::net::{Net, Wire};
use crate::runtime::{self, NodeId, SimRuntime, WORLD};

/// The simulated cluster.
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);

thread_local! {
    static THE_WORLD: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

/// What happened in a run, by kind.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

#[derive(Default)]
struct Machine {
    member: Option<Arc<Member<Sim>>>,
    /// Counts boots.
    boots: u64,
    /// Its wall clock is off by this.
    wall_shift_ms: i64,
    /// Its clock gains this many millionths over 1,000,000 at the next boot.
    rate: u64,
    /// A boot is due.
    booting: bool,
    /// It is told to form a cluster that there is already, and has heard of none yet.
    forming: bool,
}

/// A run.
pub(crate) struct World {
    pub(crate) monitors: usize,
    disks: Vec<Arc<Mutex<Disk>>>,
    limits: LogLimits,
    traced: bool,
    seen: Mutex<Seen>,
}

struct Seen {
    machines: Vec<Machine>,
    net: Net,
    counts: Counts,
    violations: Vec<Violation>,
    /// Hash of the command at each index.
    commands: Vec<Option<u64>>,
    /// Hash of the map of each epoch.
    maps: BTreeMap<Epoch, u64>,
    /// Terms and who led them: the library lets a higher node take over within a term.
    leaders: BTreeSet<(u64, NodeId)>,
    /// Newest epoch that any monitor has applied, and since when, in true nanoseconds.
    epochs: Vec<(u64, Epoch)>,
    /// Whether some monitors may have lost their seats.
    reshaped: bool,
    /// See [`is_haste`].
    haste: bool,
    /// Whether there is a cluster with more than its first entry.
    formed: bool,
}

/// Makes the world of this thread.
pub(crate) fn make(monitors: usize, limits: LogLimits, traced: bool) {
    let seen = Seen {
        machines: (0..=monitors).map(|_| Machine { rate: 1_000_000, ..Machine::default() }).collect(),
        net: Net::default(),
        counts: Counts::new(),
        violations: Vec::new(),
        commands: Vec::new(),
        maps: BTreeMap::new(),
        leaders: BTreeSet::new(),
        epochs: Vec::new(),
        reshaped: false,
        haste: false,
        formed: false,
    };
    let disks = (0..=monitors).map(|_| Arc::default()).collect();
    let world = World { monitors, disks, limits, traced, seen: Mutex::new(seen) };
    THE_WORLD.with(|the_world| *the_world.borrow_mut() = Some(Arc::new(world)));
}

/// Ends the world; gives what was counted and what was wrong.
pub(crate) fn unmake() -> (Counts, Vec<Violation>) {
    let world = THE_WORLD.with(|the_world| the_world.borrow_mut().take()).expect("there is a world");
    let mut seen = world.seen.lock();
    let members: Vec<_> = seen.machines.iter_mut().filter_map(|machine| machine.member.take()).collect();
    let result = (std::mem::take(&mut seen.counts), std::mem::take(&mut seen.violations));
    drop(seen);
    drop(members);
    result
}

fn world() -> Arc<World> {
    THE_WORLD.with(|the_world| the_world.borrow().clone()).expect("there is a world")
}

fn seen<T>(work: impl FnOnce(&mut Seen) -> T) -> T {
    work(&mut world().seen.lock())
}

/// Says on standard error what happens, if that was asked for.
pub(crate) fn trace(text: impl FnOnce() -> String) {
    if world().traced {
        eprintln!("{:9.3} s  {}", Duration::from_nanos(runtime::true_nanos()).as_secs_f64(), text());
    }
}

/// Counts something that happened.
pub(crate) fn count(kind: &'static str) {
    seen(|seen| *seen.counts.entry(kind).or_default() += 1);
}

/// Adds to a count.
pub(crate) fn count_many(kind: &'static str, more: u64) {
    seen(|seen| *seen.counts.entry(kind).or_default() += more);
}

/// Says that a promise was broken, and who noticed it.
pub(crate) fn violation(checker: Checker, text: String) {
    let at = Duration::from_nanos(runtime::true_nanos());
    trace(|| format!("{checker}: {text}"));
    seen(|seen| seen.violations.push(Violation { checker, text, at }));
}

/// The network.
pub(crate) fn net<T>(work: impl FnOnce(&mut Net) -> T) -> T {
    seen(|seen| work(&mut seen.net))
}

/// A monitor's disk.
pub(crate) fn disk(node: NodeId) -> Arc<Mutex<Disk>> {
    Arc::clone(&world().disks[node])
}

/// How many monitors there are.
pub(crate) fn monitors() -> usize {
    world().monitors
}

/// How long the logs get.
pub(crate) fn log_limits() -> LogLimits {
    world().limits
}

/// How far a wall clock is off.
pub(crate) fn wall_shift_ms(node: NodeId) -> i64 {
    seen(|seen| seen.machines[node].wall_shift_ms)
}

/// Moves a wall clock.
pub(crate) fn jump_wall(node: NodeId, ms: i64) {
    seen(|seen| seen.machines[node].wall_shift_ms = ms);
}

/// The clock of a machine runs at this rate from its next boot on.
pub(crate) fn set_rate(node: NodeId, rate: u64) {
    seen(|seen| seen.machines[node].rate = rate);
}

/// How long the disk takes before and after the effect of a piece of work.
pub(crate) fn disk_delays(node: NodeId) -> (Duration, Duration) {
    let disk = disk(node);
    let disk = disk.lock();
    let micros = 50 + runtime::random() % 400;
    let micros = micros * u64::from(disk.slowness.max(1));
    let stuck = disk.stuck_until.saturating_sub(runtime::true_nanos());
    (Duration::from_nanos(stuck + micros * 500), Duration::from_micros(micros / 2))
}

/// The monitor of a node, while it runs.
pub(crate) fn member(node: NodeId) -> Option<Arc<Member<Sim>>> {
    seen(|seen| seen.machines[node].member.clone())
}

/// All monitors with their addresses.
pub(crate) fn members() -> BTreeMap<MonId, String> {
    (1..=monitors()).map(|node| (MonId(node as u64), address(node))).collect()
}

/// Where a monitor listens.
pub(crate) fn address(node: NodeId) -> String {
    format!("mon-{node}:0")
}

/// Which monitor listens there.
pub(crate) fn node_at(address: &str) -> Option<NodeId> {
    address.strip_prefix("mon-")?.strip_suffix(":0")?.parse().ok()
}

/// Starts a monitor's process, told to form a cluster or not: in a unit file that may stand for good.
pub(crate) fn boot(node: NodeId, bootstrap: bool) {
    trace(|| format!("monitor {node} starts{}", if bootstrap { ", told to form the cluster" } else { "" }));
    let (is_blank, is_marked) = {
        let disk = disk(node);
        let mut disk = disk.lock();
        disk.crashed = None;
        (disk.is_blank(), disk.is_marked())
    };
    let rate = seen(|seen| {
        let machine = &mut seen.machines[node];
        machine.boots += 1;
        machine.booting = false;
        machine.forming = bootstrap && seen.formed && is_blank && !is_marked;
        if seen.formed && bootstrap && is_blank {
            *seen.counts.entry("told-to-form").or_default() += 1;
            if is_marked {
                *seen.counts.entry("told-to-form-while-joining").or_default() += 1;
            }
        }
        machine.rate
    });
    runtime::start(node, rate);
    runtime::spawn_on(node, process(node, bootstrap, is_marked));
}

/// There is a cluster now.
pub(crate) fn is_formed() {
    seen(|seen| seen.formed = true);
}

/// Whoever reaches none of the others forms the cluster once more, and its vote may elect one that lags: that is known
/// (ADR 0007), so such a monitor loses its disk again before it says anything. Tells whether this was one.
fn take_back_forming(node: NodeId) -> bool {
    let was_forming = seen(|seen| std::mem::take(&mut seen.machines[node].forming));
    let disk = disk(node);
    let mut disk = disk.lock();
    let forms = was_forming && !disk.is_marked();
    if forms {
        disk.wipe();
    }
    forms
}

async fn process(node: NodeId, bootstrap: bool, was_marked: bool) {
    let members = members();
    let directory = PathBuf::from(node.to_string());
    let id = MonId(node as u64);
    let seat = Seat { id, cluster: CLUSTER, members: &members, directory: &directory, bootstrap };
    let started = Member::<Sim>::start(seat, Arc::new(Wire { from: node }), CancellationToken::new()).await;
    if was_marked && started.is_ok() && !disk(node).lock().is_marked() {
        violation(Checker::Q2, format!("monitor {node} has forgotten at its start that it waits to be let in"));
    }
    if started.is_ok() && take_back_forming(node) {
        count("formed-alone");
        runtime::spawn_on(WORLD, async move {
            kill(node, Crash::PowerCut);
            boot_in(node, Duration::from_millis(500));
        });
        return;
    }
    let reason = match started {
        Ok(member) => {
            let member = Arc::new(member);
            seen(|seen| seen.machines[node].member = Some(Arc::clone(&member)));
            runtime::spawn_on(node, watch_leadership(node, Arc::clone(&member)));
            runtime::spawn_on(node, watch_maps(Arc::clone(&member)));
            member.stopped().await
        }
        Err(error) => format!("it does not start: {error}: {:?}", std::error::Error::source(&error)),
    };
    let excused = {
        let disk = disk(node);
        let disk = disk.lock();
        disk.hurt || disk.crashed.is_some()
    };
    if excused {
        count("stopped-by-its-disk");
    } else {
        violation(Checker::Q4, format!("monitor {node} ended: {reason}"));
    }
    runtime::spawn_on(WORLD, async move {
        kill(node, Crash::Kill);
        boot_in(node, Duration::from_millis(500));
    });
}

/// Starts a monitor after a while, unless somebody else is about to; every second start is one with `--bootstrap`.
pub(crate) fn boot_in(node: NodeId, after: Duration) {
    boot_told(node, after, None);
}

/// Like [`boot_in`]; with `--bootstrap` or without, if that is given.
pub(crate) fn boot_told(node: NodeId, after: Duration, bootstrap: Option<bool>) {
    let first = seen(|seen| !std::mem::replace(&mut seen.machines[node].booting, true));
    if first {
        runtime::spawn_on(WORLD, async move {
            SimRuntime::sleep(after).await;
            if !runtime::is_alive(node) {
                disk(node).lock().failing = false;
                boot(node, bootstrap.unwrap_or_else(|| runtime::random().is_multiple_of(2)));
            }
        });
    }
}

/// Ends a monitor's process at whatever it is doing.
pub(crate) fn kill(node: NodeId, crash: Crash) {
    trace(|| format!("monitor {node} ends: {crash:?}"));
    runtime::kill(node);
    let member = seen(|seen| seen.machines[node].member.take());
    drop(member);
    let lost = crash == Crash::PowerCut && disk(node).lock().power_cut();
    take_back_forming(node);
    if lost {
        count("unsynced-writes-lost");
    }
}

/// The power of a monitor fails within some milliseconds, in which what it says may get out.
pub(crate) fn cut_soon(node: NodeId) {
    let boots = seen(|seen| seen.machines[node].boots);
    runtime::spawn_on(WORLD, async move {
        SimRuntime::sleep(Duration::from_micros(runtime::random() % 3_000)).await;
        if runtime::is_alive(node) && seen(|seen| seen.machines[node].boots) == boots {
            count("power-cut-after-vote");
            kill(node, Crash::PowerCut);
            boot_in(node, Duration::from_millis(1 + runtime::random() % 30));
        }
    });
}

/// A process has died at an IO; what is left of it is cleared away.
pub(crate) fn crashed_at_io(node: NodeId) {
    let crash = Crash::Kill;
    runtime::spawn_on(WORLD, async move {
        let crash = disk(node).lock().crashed.unwrap_or(crash);
        count(match crash {
            Crash::Kill => "kill-at-io",
            Crash::PowerCut => "power-cut-at-io",
        });
        kill(node, crash);
        boot_in(node, Duration::from_millis(20 + runtime::random() % 3_000));
    });
}

/// Whether this monitor may vote: its disk has its memory.
pub(crate) fn remembers(node: NodeId) -> bool {
    !seen(|seen| seen.machines[node].forming) && !disk(node).lock().is_joining()
}

/// Whether this monitor runs, knows that it began without memory, and has not been let in.
pub(crate) fn is_silent(node: NodeId) -> bool {
    let disk = disk(node);
    let disk = disk.lock();
    member(node).is_some() && disk.is_marked() && disk.is_blank()
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn spoken(command: &[u8]) -> String {
    match Command::decode(command) {
        Ok(command) => command.ops.iter().map(|op| format!("{:?} {:?}; ", op.id, op.change)).collect(),
        Err(error) => error.to_string(),
    }
}

/// A monitor has applied a command.
pub(crate) fn applied(node: NodeId, index: u64, command: &[u8], epoch: Epoch) {
    let hash = hash(command);
    runtime::fold(hash ^ index);
    let now = runtime::true_nanos();
    trace(|| format!("monitor {node} applies {index}: {}", spoken(command)));
    let other = seen(|seen| {
        *seen.counts.entry("commands-applied").or_default() += 1;
        if seen.epochs.last().is_none_or(|(_, last)| *last < epoch) {
            seen.epochs.push((now, epoch));
        }
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if seen.commands.len() <= at {
            seen.commands.resize(at + 1, None);
        }
        match seen.commands[at] {
            Some(before) => before != hash,
            None => {
                seen.commands[at] = Some(hash);
                false
            }
        }
    });
    if other {
        let text = format!("monitor {node} applies another command at {index} than was applied there before");
        violation(Checker::Q16, text);
    }
}

/// The newest epoch that any monitor had applied at a time.
pub(crate) fn epoch_at(nanos: u64) -> Epoch {
    seen(|seen| {
        let until = seen.epochs.partition_point(|(at, _)| *at <= nanos);
        until.checked_sub(1).map_or(Epoch::ZERO, |last| seen.epochs[last].1)
    })
}

/// A map that somebody holds: the same for all.
pub(crate) fn check_map(who: &str, map: &ClusterMap) {
    let hash = hash(&map.encode_full());
    let epoch = map.epoch;
    let wrong = seen(|seen| *seen.maps.entry(epoch).or_insert(hash) != hash);
    if wrong {
        violation(Checker::Q5, format!("{who} has another map of epoch {epoch}"));
    }
}

async fn watch_leadership(node: NodeId, member: Arc<Member<Sim>>) {
    let mut leadership = member.leadership();
    drop(member);
    loop {
        let now = *leadership.borrow_and_update();
        trace(|| format!("monitor {node}: term {}, leader {:?}", now.term, now.leader));
        if now.is_self {
            seen(|seen| seen.leaders.insert((now.term, node)));
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_maps(member: Arc<Member<Sim>>) {
    let mut maps = member.maps();
    let mut last = Epoch::ZERO;
    let who = format!("monitor {}", member.id());
    loop {
        let newest = Arc::clone(&maps.borrow_and_update());
        if newest.epoch < last {
            violation(Checker::Q5, format!("{who} went back from epoch {last} to {}", newest.epoch));
        }
        let since = member.maps_after(last);
        since.iter().for_each(|map| check_map(&who, map));
        // What a snapshot brought is not among them.
        if since.last().is_none_or(|map| map.epoch < newest.epoch) {
            check_map(&who, &newest);
        }
        last = newest.epoch;
        if maps.changed().await.is_err() {
            return;
        }
    }
}

/// How often a monitor came to lead.
pub(crate) fn leaders() -> u64 {
    seen(|seen| seen.leaders.len() as u64)
}

/// Whether some monitors may have lost their seats.
pub(crate) fn is_reshaped() -> bool {
    seen(|seen| seen.reshaped)
}

/// See [`is_reshaped`].
pub(crate) fn set_reshaped(reshaped: bool) {
    seen(|seen| seen.reshaped = reshaped);
}

/// Which node leads, as the monitor that leads the newest term says.
pub(crate) fn leader() -> Option<(NodeId, Arc<Member<Sim>>)> {
    let members: Vec<_> = (1..=monitors()).filter_map(|node| Some((node, member(node)?))).collect();
    let leading = members.into_iter().filter_map(|(node, member)| {
        let leadership = *member.leadership().borrow();
        leadership.is_self.then_some((leadership.term, node, member))
    });
    leading.max_by_key(|(term, ..)| *term).map(|(_, node, member)| (node, member))
}

/// Whether clients ask at once and all over again, whomever they find: for moments in which two monitors might lead.
pub(crate) fn is_haste() -> bool {
    seen(|seen| seen.haste)
}

/// See [`is_haste`].
pub(crate) fn set_haste(haste: bool) {
    seen(|seen| seen.haste = haste);
}
