//! One seed: a cluster is formed, tormented while clients use it, healed, and looked at.

use std::sync::Arc;
use std::time::Duration;

use holdfast_mon::host::LogLimits;
use holdfast_types::{DiskUuid, Incarnation, OsdId};
use holdfast_wire::mon::{LocationStep, MonCommand, MonReply};
use openraft::AsyncRuntime;
use parking_lot::Mutex;

use crate::check::History;
use crate::checker::{Checker, Violation};
use crate::client::{Client, Shared};
use crate::faults::{self, Fault};
use crate::runtime::{self, SimRuntime, WORLD};
use crate::world::{self, Counts};

/// A cluster that nobody disturbs serves within this: an election, and a first commit.
const FORMED_WITHIN: Duration = Duration::from_secs(10);
/// After the last fault, all must be well within this: leftover late messages (2 s), an election with the skewest clocks,
/// whoever lost its disk let in, logs and snapshots brought to those behind, one client's last resend.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// Three or five; `None`: the seed decides.
    pub monitors: Option<usize>,
    /// How long things go wrong.
    pub storm: Duration,
    /// Without any faults.
    pub calm: bool,
    /// Says on standard error what happens.
    pub traced: bool,
    /// What this one would say is not reported: to prove that it is needed. The run is the same with it and without.
    pub off: Option<Checker>,
}

impl Default for Config {
    fn default() -> Config {
        Config { monitors: None, storm: Duration::from_secs(60), calm: false, traced: false, off: None }
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Over all that was decided and applied; the same for the same seed.
    pub hash: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Tasks polled.
    pub polls: u64,
    /// What happened, by kind.
    pub counts: Counts,
    /// Promises that were broken, in the order in which that was noticed.
    pub violations: Vec<Violation>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, config: &Config) -> Report {
    // Choices that shape the run are drawn before it, so that they do not depend on what happens in it.
    let mut shape = Shape::of(seed, config);
    let limits = LogLimits { snapshot_every: 10 + shape.draw(60), kept: shape.draw(20) };
    let monitors = shape.monitors;
    play(seed, config, monitors, limits, scene(shape, config.clone()))
}

/// Plays a scene in a world of its own.
fn play(
    seed: u64,
    config: &Config,
    monitors: usize,
    limits: LogLimits,
    scene: impl Future<Output = ()> + Send + 'static,
) -> Report {
    world::make(monitors, limits, config.traced);
    let ended = runtime::run(seed, monitors, scene);
    let (counts, mut violations) = world::unmake();
    let simulated = Duration::from_nanos(ended.nanos);
    violations.extend(ended.panics.into_iter().map(|panic| Violation {
        checker: Checker::Assertions,
        text: format!("node {} panicked: {}", panic.node, panic.text),
        at: Duration::from_nanos(panic.nanos),
    }));
    violations.sort_by_key(|violation| violation.at);
    violations.extend(ended.stuck.map(|text| Violation { checker: Checker::T0, text, at: simulated }));
    violations.retain(|violation| config.off != Some(violation.checker));
    Report { seed, hash: ended.hash, simulated, polls: ended.polls, counts, violations }
}

/// What the seed decides beforehand.
#[derive(Debug, Clone)]
struct Shape {
    state: u64,
    monitors: usize,
    kinds: Vec<Fault>,
    pace_ms: u64,
    clients: u64,
    pause_ms: u64,
}

impl Shape {
    fn of(seed: u64, config: &Config) -> Shape {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6d6f_6e73;
        let mut shape = Shape { state, monitors: 3, kinds: Vec::new(), pace_ms: 0, clients: 0, pause_ms: 0 };
        shape.monitors = config.monitors.unwrap_or(if shape.draw(3) == 0 { 5 } else { 3 });
        // A few kinds at a time go deeper than all at once; now and then all.
        let share = [15, 30, 30, 60, 100][usize::try_from(shape.draw(5)).unwrap_or(0)];
        if !config.calm {
            shape.kinds = Fault::ALL.into_iter().filter(|_| shape.draw(100) < share).collect();
        }
        shape.pace_ms = 150 + shape.draw(2_000);
        shape.clients = 2 + shape.draw(3);
        shape.pause_ms = 50 + shape.draw(700);
        shape
    }

    /// SplitMix64.
    fn draw(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }
}

async fn scene(shape: Shape, config: Config) {
    let history: Shared = Arc::new(Mutex::new(History::default()));
    for node in 1..=shape.monitors {
        world::boot(node, true);
    }
    let mut founder = Client::new(0, Arc::clone(&history));
    if SimRuntime::timeout(FORMED_WITHIN, found(&mut founder)).await.is_err() {
        world::violation(Checker::L1, format!("no cluster was formed within {FORMED_WITHIN:?}"));
        return;
    }
    world::is_formed();
    let until = runtime::true_nanos() + nanos(config.storm);
    let clients: Vec<_> = (1..=shape.clients)
        .map(|number| {
            let client = Client::new(number, Arc::clone(&history));
            SimRuntime::spawn(client.run(until, shape.pause_ms))
        })
        .collect();
    faults::torment(shape.kinds.clone(), until, shape.pace_ms).await;
    let mut asked = Vec::new();
    faults::heal();
    for client in clients {
        asked.push(client.await);
    }
    // What a fault undoes after itself may have come in between.
    faults::heal();
    if asked.iter().any(Result::is_err) {
        return; // a client panicked, which is told elsewhere
    }
    let settled = SimRuntime::timeout(SETTLED_WITHIN, settle(&mut founder)).await;
    if settled.is_err() {
        let missing = unsettled().unwrap_or_default();
        world::violation(Checker::L1, format!("not well {SETTLED_WITHIN:?} after the last fault: {missing}"));
    }
    let history = history.lock();
    world::count_many("operations", history.ops.len() as u64);
    world::count_many("leaders", world::leaders());
    history.violations().into_iter().for_each(|(checker, text)| world::violation(checker, text));
}

/// The first commits, and a few OSDs for the leader to care about.
async fn found(founder: &mut Client) {
    founder.set("0.first".to_owned()).await;
    for number in 0..3u8 {
        let disk = DiskUuid([number + 1; 16]);
        let location = vec![LocationStep { kind: "host".to_owned(), name: format!("host-{number}") }];
        let register = MonCommand::OsdRegister {
            disk,
            location,
            class: None,
            capacity_bytes: 1 << 40,
            wanted: Some(OsdId(u32::from(number))),
            blank: None,
        };
        if let Some(MonReply::OsdId(osd)) = founder.ask(register).await {
            let address = format!("osd-{number}:0");
            let boot = MonCommand::OsdBoot { osd, disk, incarnation: Incarnation(1), address, can_split: Some(true) };
            founder.ask(boot).await;
        }
    }
}

/// Waits until all serve again and hold the same.
async fn settle(founder: &mut Client) {
    let whole = world::members();
    while !faults::restore_members(&whole, Duration::from_secs(4)).await {
        SimRuntime::sleep(Duration::from_millis(100)).await;
    }
    while !founder.set("0.last".to_owned()).await || founder.read().await.is_none() {
        SimRuntime::sleep(Duration::from_millis(100)).await;
    }
    while unsettled().is_some() {
        SimRuntime::sleep(Duration::from_millis(50)).await;
    }
}

/// What is missing for all to be well.
fn unsettled() -> Option<String> {
    let mut states = Vec::new();
    for node in 1..=world::monitors() {
        if !world::remembers(node) {
            return Some(format!("monitor {node}, which lost its disk, does not vote"));
        }
        match world::member(node) {
            Some(member) => states.push(member.snapshot()),
            None => return Some(format!("monitor {node} does not run")),
        }
    }
    if world::leader().is_none() {
        return Some("nobody leads".to_owned());
    }
    if states.windows(2).any(|pair| pair[0] != pair[1]) {
        return Some("the monitors do not hold the same state".to_owned());
    }
    None
}

/// Whether node 0 is where this file's tasks run.
const _: () = assert!(WORLD == 0, "clients and faults are on the world's node");

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks every promise of a run that ends, an assertion last.
    async fn break_all() {
        for checker in Checker::ALL {
            if !matches!(checker, Checker::T0 | Checker::Assertions) {
                world::violation(checker, "it is broken".to_owned());
            }
        }
        SimRuntime::sleep(Duration::from_millis(1)).await;
        panic!("an assertion does not hold");
    }

    fn noticed(off: Option<Checker>, scene: impl Future<Output = ()> + Send + 'static) -> Vec<Checker> {
        let config = Config { off, ..Config::default() };
        let limits = LogLimits { snapshot_every: 10, kept: 5 };
        let report = play(0, &config, 3, limits, scene);
        report.violations.into_iter().map(|violation| violation.checker).collect()
    }

    #[test]
    fn each_checker_reports_what_it_notices_unless_it_is_not_to_look() {
        let all: Vec<Checker> = Checker::ALL.into_iter().filter(|checker| *checker != Checker::T0).collect();
        assert_eq!(noticed(None, break_all()), all);
        for off in Checker::ALL {
            let others: Vec<Checker> = all.iter().copied().filter(|checker| *checker != off).collect();
            assert_eq!(noticed(Some(off), break_all()), others);
        }
        assert_eq!(noticed(None, std::future::pending()), vec![Checker::T0]);
        assert_eq!(noticed(Some(Checker::T0), std::future::pending()), Vec::<Checker>::new());
    }
}
