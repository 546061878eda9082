//! The world: the heap of events, the network, and what strikes when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_mon_state::leader::ProbeResult;
use holdfast_pg::Slot;
use holdfast_types::{Epoch, Incarnation, ObjectName, OsdId, PgId, Timestamp};
use holdfast_wire::mon::MonCommand;
use holdfast_wire::peer::PeerMessage;
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest, RefusedReason};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::check;
use crate::checker::Checker;
use crate::client::{Client, Names, Operation, Promised, WhenFull};
use crate::config::{Config, Faults};
use crate::cuts::Cut;
use crate::faults::{FAULT_TICK, FaultCounts, FaultKind, LATE};
use crate::fence::Fencing;
use crate::front::{self, Front, FrontEvent};
use crate::health::Health;
use crate::holdings::Holdings;
use crate::leases::Acknowledged;
use crate::monitor::Monitor;
use crate::node::{Node, RATE, Undone};
use crate::rifts::Rift;
use crate::strikes::Dealt;
use crate::watch::Beat;

/// Far more events than any run needs: one that makes more goes in circles.
const EVENTS_MAX: u64 = 5_000_000;
/// Far more events than any moment needs.
const AT_ONCE_MAX: u64 = 100_000;
/// In such a time.
const MAPS_WINDOW: Duration = Duration::from_secs(10);
/// Several times the maps that the worst storm needs.
const MAPS_MAX: u64 = 300;
/// And so many more for each placement group: what goes round in a circle makes hundreds within a second.
const MAPS_PER_PG: u64 = 10;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Over all events: equal for equal seeds.
    pub hash: u64,
    /// Client operations answered.
    pub operations: u64,
    /// Events.
    pub events: u64,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
    /// Epoch of the last map.
    pub epochs: u64,
    /// Segments that the stores cleaned.
    pub cleaned: u64,
    /// Read leases granted.
    pub leases_granted: u64,
    /// What struck.
    pub faults: FaultCounts,
    /// Copies that scrubs found bad and had repaired.
    pub copies_scrubbed: u64,
    /// Most maps within ten seconds.
    pub maps_most: u64,
    /// Whether something could not be read for want of any copy that could have been kept: see `overwhelmed`.
    pub overwhelmed: bool,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {violation}")]
pub struct Violation {
    /// The seed that shows it.
    pub seed: u64,
    /// What is wrong; begins with the id of the invariant.
    pub violation: String,
    /// All checkers that noticed something in this run, in their order.
    pub noticed: Vec<Checker>,
}

impl Violation {
    pub(crate) fn new(seed: u64, violations: Vec<String>) -> Violation {
        let noticed: BTreeSet<Checker> = violations.iter().map(|violation| Checker::of(violation)).collect();
        let violation = violations.into_iter().next().unwrap_or_default();
        Violation { seed, violation, noticed: noticed.into_iter().collect() }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Peer {
        to: OsdId,
        run: Incarnation,
        from: OsdId,
        from_run: Incarnation,
        message: Box<PeerMessage>,
        /// Whether it has arrived before.
        again: bool,
    },
    Request {
        to: OsdId,
        client: usize,
        request: Box<ClientRequest>,
    },
    Reply {
        client: usize,
        reply: Box<ClientReply>,
    },
    Commit {
        osd: OsdId,
        generation: u64,
    },
    Maintain {
        osd: OsdId,
        generation: u64,
    },
    Wake {
        osd: OsdId,
        run: Incarnation,
        pg: PgId,
        at: Timestamp,
    },
    Reserved {
        osd: OsdId,
        run: Incarnation,
        pg: PgId,
        slot: Slot,
    },
    MapArrives {
        osd: OsdId,
    },
    ClientMap {
        client: usize,
    },
    /// A command of this OSD's run reaches the monitors.
    Command {
        osd: OsdId,
        command: Box<MonCommand>,
    },
    BeatTick {
        osd: OsdId,
        run: Incarnation,
    },
    EarlyTick {
        osd: OsdId,
        run: Incarnation,
    },
    /// A process goes on with what it had still to do when it stopped.
    Perform {
        osd: OsdId,
    },
    Beat(Beat),
    Report {
        osd: OsdId,
        run: Incarnation,
        repeats: bool,
    },
    Refused {
        reporter: OsdId,
        run: Incarnation,
        target: OsdId,
        target_run: Incarnation,
    },
    MonTick,
    MonitorsBack,
    Probed {
        osd: OsdId,
        run: Incarnation,
        result: ProbeResult,
    },
    Boot {
        osd: OsdId,
        run: Incarnation,
    },
    EndRun {
        osd: OsdId,
        run: Incarnation,
    },
    Restart {
        osd: OsdId,
    },
    Reconnect {
        osd: OsdId,
    },
    RoomBack {
        osd: OsdId,
    },
    BlocksBack {
        osd: OsdId,
    },
    OneWayHealed,
    RiftHealed {
        number: u64,
    },
    /// The power of an OSD fails whose disk has acknowledged syncs that it did not do.
    PowerFails {
        osd: OsdId,
        generation: u64,
    },
    CutAll {
        away: OsdId,
        kind: FaultKind,
    },
    ClientTick {
        client: usize,
    },
    FenceTick,
    Front(FrontEvent),
    /// The network of the OSD that flaps fails once more.
    Flap,
    FaultTick,
}

struct Scheduled {
    at: Timestamp,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub(crate) struct World {
    pub config: Config,
    pub faults: Faults,
    pub rng: SmallRng,
    pub now: Timestamp,
    events: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    handled: u64,
    /// Events since time has passed.
    at_once: u64,
    hash: u64,
    pub messages: u64,
    /// Messages that arrive once more with the next map of their receiver, and since when they are kept.
    pub kept: VecDeque<(Timestamp, Event)>,
    pub monitor: Monitor,
    pub nodes: Vec<Node>,
    /// OSDs whose network does not work: one at a time.
    pub cut_off: BTreeMap<OsdId, Cut>,
    /// From whom to whom nothing gets through, though it does the other way.
    pub one_way: BTreeSet<(OsdId, OsdId)>,
    /// OSDs that a command put out of the cluster.
    pub put_out: BTreeSet<OsdId>,
    /// OSDs that reach each other, whatever else is cut off.
    pub island: BTreeSet<OsdId>,
    /// The primary whose network falls apart, if there is one.
    pub rift: Option<Rift>,
    pub rifts: u64,
    /// When all OSDs lost power at an activation or an acknowledgement last.
    pub last_cut: Timestamp,
    /// When they did at an activation.
    pub last_activation_cut: Timestamp,
    /// The newest version of each object that an OSD has acknowledged, and which.
    pub acknowledged: BTreeMap<ObjectName, Acknowledged>,
    /// What became of each copy, in a world whose sectors go bad.
    pub holdings: Option<Holdings>,
    pub leases_granted: u64,
    /// What was said of the cluster's state.
    pub health: Health,
    /// By OSD and placement group the last epoch that was looked at, and where its interval began.
    pub beginnings: BTreeMap<(OsdId, PgId), (Epoch, Epoch)>,
    /// OSDs whose next commit is under way.
    pub syncing: BTreeSet<OsdId>,
    /// The OSD whose disk rots, if one does.
    pub rot_victim: OsdId,
    /// What its disk lies about next.
    pub lie_due: Option<FaultKind>,
    /// Whether it has acknowledged syncs that it did not do since it was to.
    pub syncs_dropped: bool,
    pub clients: Vec<Client>,
    pub history: Vec<Operation>,
    /// The sessions that fence each other, if there are any.
    pub fencing: Option<Fencing>,
    /// Processes that keep tables in the cluster, if there are any.
    pub front: Option<Front>,
    /// OSDs that do not come back.
    pub gone: BTreeSet<OsdId>,
    pub counts: FaultCounts,
    pub dealt: Dealt,
    pub cleaned: u64,
    pub copies_scrubbed: u64,
    pub violation: Option<String>,
    pub working: bool,
    pub monitors_gone_until: Timestamp,
    /// Since when maps are counted, and the epoch then.
    maps_counted: (Timestamp, Epoch),
    maps_most: u64,
    /// OSDs that the leader is looking at.
    pub probing: BTreeSet<(OsdId, Incarnation)>,
}

/// Runs one seed.
///
/// # Errors
/// The first [`Violation`].
pub fn run(seed: u64, config: &Config) -> Result<Report, Violation> {
    let ran = World::new(seed, *config).map_err(|error| vec![error]).and_then(|mut world| world.run());
    ran.map_err(|violations| Violation::new(seed, violations))
}

impl World {
    pub(crate) fn new(seed: u64, config: Config) -> Result<World, String> {
        // The first is the slowest. No two differ by more than what `LEASE_GRANTED` allows for, and these nearly by that.
        let rates = [914, 1_096, RATE, 960, 1_040];
        let rate = |id: u32| if config.skewed_clocks { rates[id as usize % rates.len()] } else { RATE };
        let nodes: Result<Vec<Node>, String> =
            (0..config.osds).map(|id| Node::new(OsdId(id), config.limits, config.segments, rate(id))).collect();
        let monitor = Monitor::new(&config)?;
        let names = Arc::new(Names::new(&config, monitor.map()));
        let when_full = match config.faults.cramps_per_second > 0.0 {
            _ if config.fills => WhenFull::GiveUp,
            true => WhenFull::SendAgain,
            false => WhenFull::Never,
        };
        Ok(World {
            config,
            faults: config.faults.of_run(seed),
            rng: SmallRng::seed_from_u64(seed),
            now: Timestamp::ZERO,
            events: BinaryHeap::new(),
            scheduled: 0,
            handled: 0,
            at_once: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            messages: 0,
            kept: VecDeque::new(),
            monitor,
            nodes: nodes?,
            cut_off: BTreeMap::new(),
            one_way: BTreeSet::new(),
            island: BTreeSet::new(),
            rift: None,
            rifts: 0,
            put_out: BTreeSet::new(),
            last_cut: Timestamp::ZERO,
            last_activation_cut: Timestamp::ZERO,
            acknowledged: BTreeMap::new(),
            holdings: (config.faults.bad_sectors_per_second > 0.0).then(Holdings::default),
            leases_granted: 0,
            health: Health::default(),
            beginnings: BTreeMap::new(),
            syncing: BTreeSet::new(),
            rot_victim: OsdId(u32::try_from(seed % u64::from(config.osds)).unwrap_or(0)),
            lie_due: None,
            syncs_dropped: false,
            clients: (0..config.clients)
                .map(|id| {
                    Client::new(u64::from(id) + 1, Arc::clone(&names), when_full, id + config.readers >= config.clients)
                })
                .collect(),
            history: Vec::new(),
            fencing: (config.faults.fences_per_second > 0.0)
                .then(|| Fencing::new(config.clients, names.volumes.clone())),
            front: config.front.map(|settings| Front::new(settings, seed)),
            gone: BTreeSet::new(),
            counts: FaultCounts::default(),
            dealt: Dealt::default(),
            cleaned: 0,
            copies_scrubbed: 0,
            violation: None,
            working: true,
            monitors_gone_until: Timestamp::ZERO,
            maps_counted: (Timestamp::ZERO, Epoch::ZERO),
            maps_most: 0,
            probing: BTreeSet::new(),
        })
    }

    /// Runs to the end; gives all that the checkers noticed there, or what ended the run before.
    pub(crate) fn run(&mut self) -> Result<Report, Vec<String>> {
        match self.run_phases() {
            // The run cannot go on; whoever looks for this does not.
            Err(violation) if self.is_off(&violation) => return Ok(self.sum_up()),
            ran => ran.map_err(|violation| vec![violation])?,
        }
        let mut violations: Vec<String> = self.check_copies().err().into_iter().collect();
        violations.extend(self.monitor.check_replay().err());
        violations.extend(self.check_fronts());
        violations.retain(|violation| !self.is_off(violation));
        let excused =
            |operation: &Operation| self.holdings.as_ref().is_some_and(|holdings| holdings.excuses(operation));
        violations.extend(check::check(&self.history, excused, self.config.off));
        if violations.is_empty() { Ok(self.sum_up()) } else { Err(violations) }
    }

    /// Whether the checker that found this does not look.
    pub(crate) fn is_off(&self, violation: &str) -> bool {
        self.config.off == Some(Checker::of(violation))
    }

    fn sum_up(&self) -> Report {
        let is_forgotten = |operation: &&Operation| {
            matches!(operation.answer, Some((_, ClientOutcome::Refused(RefusedReason::Forgotten))))
        };
        let mut faults = self.counts.clone();
        faults.add(FaultKind::RequestForgotten, self.history.iter().filter(is_forgotten).count() as u64);
        Report {
            hash: self.hash,
            operations: self.history.len() as u64 + self.front.as_ref().map_or(0, Front::operations),
            events: self.handled,
            simulated_ms: self.now.as_nanos() / 1_000_000,
            epochs: self.monitor.map().epoch.0,
            cleaned: self.cleaned,
            leases_granted: self.leases_granted,
            faults,
            copies_scrubbed: self.copies_scrubbed,
            maps_most: self.maps_most,
            overwhelmed: self.holdings.as_ref().is_some_and(Holdings::excused),
        }
    }

    /// Faults under load, healing, settling.
    fn run_phases(&mut self) -> Result<(), String> {
        for osd in 0..self.config.osds {
            self.schedule(Duration::ZERO, Event::Restart { osd: OsdId(osd) });
        }
        for client in 0..self.clients.len() {
            self.schedule(Duration::from_millis(1), Event::ClientTick { client });
        }
        if self.config.skewed_clocks {
            let wrong = self.nodes.iter().filter(|node| node.clock_rate != RATE).count();
            self.counts.add(FaultKind::ClockSkewed, wrong as u64);
        }
        if self.fencing.is_some() {
            self.schedule(Duration::from_millis(1), Event::FenceTick);
        }
        self.counts.add(FaultKind::NetworkRough, u64::from(self.faults.is_roughest()));
        self.begin_fronts();
        self.schedule(FAULT_TICK, Event::FaultTick);
        if self.config.flaps {
            self.schedule(Duration::from_secs(3), Event::Flap);
        }
        self.schedule(Duration::from_millis(200), Event::MonTick);
        let end = self.now + self.config.duration;
        self.run_until(end)?;
        self.heal();
        if self.config.fills {
            // Deleting is all that it takes to be writable again.
            for tid in self.clients[0].remove_all(self.now, &mut self.history) {
                self.send_request(0, tid);
            }
        }
        self.settle()?;
        let full = self.clients.iter().map(|client| client.refused_full).sum();
        self.counts.add(FaultKind::ClusterFull, full);
        if self.config.fills {
            // The monitors hear of the room with the next reports.
            self.run_until(self.now + Duration::from_secs(10))?;
            let before: u64 = self.clients.iter().map(|client| client.refused_full).sum();
            for tid in self.clients[0].write_all(self.now, &mut self.history) {
                self.send_request(0, tid);
            }
            self.settle()?;
            if self.clients.iter().map(|client| client.refused_full).sum::<u64>() > before {
                let violation = format!("L2: a write was refused after everything was deleted: {}", self.explain());
                if !self.is_off(&violation) {
                    return Err(violation);
                }
            }
        }
        if self.config.leave > 0 {
            self.lose_for_good()?;
        }
        self.finish_fronts()?;
        if let Err(violation) = self.scrub_all()
            && !self.is_off(&violation)
        {
            return Err(violation);
        }
        let tids = self.clients[0].read_all(self.now, &mut self.history);
        for tid in tids {
            self.send_request(0, tid);
        }
        self.settle()?;
        match self.check_status_at_rest() {
            Err(violation) if self.is_off(&violation) => Ok(()),
            said => said,
        }
    }

    pub(crate) fn run_until(&mut self, end: Timestamp) -> Result<(), String> {
        while let Some(Reverse(next)) = self.events.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(next)) = self.events.pop() else { break };
            self.at_once = if next.at > self.now { 0 } else { self.at_once + 1 };
            self.now = next.at;
            self.handled += 1;
            if self.handled > EVENTS_MAX || self.at_once > AT_ONCE_MAX {
                return Err(format!(
                    "T0: {} events, {} of them at {}, and no end",
                    self.handled, self.at_once, self.now
                ));
            }
            self.mix(next.at.as_nanos() ^ next.number.rotate_left(32));
            self.handle(next.event);
            if let Some(violation) = self.violation.take()
                && !self.is_off(&violation)
            {
                return Err(violation);
            }
        }
        self.now = end;
        Ok(())
    }

    /// One line of the event log; for replays only.
    pub(crate) fn trace(&self, line: &str) {
        eprintln!("{} {line}", self.now);
    }

    pub(crate) fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        let at = self.now + after;
        self.events.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    /// Takes away what is on its way; gives how much that was.
    pub(crate) fn lose_in_flight(&mut self, is_lost: impl Fn(&Event) -> bool) -> usize {
        let before = self.events.len();
        self.events.retain(|Reverse(scheduled)| !is_lost(&scheduled.event));
        before - self.events.len()
    }

    /// Has what is so with its time happen now, in the order in which it was scheduled.
    pub(crate) fn hasten(&mut self, is_so: impl Fn(&Event, Timestamp) -> bool) {
        let now = self.now;
        let mut events = std::mem::take(&mut self.events).into_vec();
        let so = events.iter_mut().map(|Reverse(scheduled)| scheduled).filter(|one| is_so(&one.event, one.at));
        so.for_each(|scheduled| scheduled.at = scheduled.at.min(now));
        self.events = events.into();
    }

    pub(crate) fn node(&mut self, osd: OsdId) -> &mut Node {
        &mut self.nodes[osd.0 as usize]
    }

    pub(crate) fn is_run(&self, osd: OsdId, run: Incarnation) -> bool {
        self.nodes.get(osd.0 as usize).is_some_and(|node| node.running && node.incarnation == run)
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let max = u64::try_from(self.faults.delay_max.as_micros()).unwrap_or(u64::MAX).max(60);
        // Most messages are quick, some are very late.
        let cap = if self.rng.random_bool(0.8) { (max / 10).max(60) } else { max };
        Duration::from_micros(self.rng.random_range(50..cap.max(51)))
    }

    /// The delays with which a message arrives: none when it is lost, two when it is doubled.
    pub(crate) fn arrivals(&mut self) -> Vec<Duration> {
        if self.rng.random_bool(self.faults.loss) {
            self.counts.add(FaultKind::MessageLost, 1);
            return Vec::new();
        }
        let delay = self.delay();
        self.counts.add(FaultKind::MessageLate, u64::from(delay > LATE));
        let mut arrivals = vec![delay];
        if self.rng.random_bool(self.faults.duplication) {
            self.counts.add(FaultKind::MessageDoubled, 1);
            let late = self.delay() * 20;
            arrivals.push(late);
        }
        arrivals
    }

    // ---- events ----

    /// The OSD whose process must run for this.
    pub(crate) fn process_of(event: &Event) -> Option<OsdId> {
        match event {
            Event::Peer { to, .. } | Event::Request { to, .. } => Some(*to),
            Event::Commit { osd, .. }
            | Event::Maintain { osd, .. }
            | Event::Wake { osd, .. }
            | Event::Reserved { osd, .. }
            | Event::MapArrives { osd }
            | Event::BeatTick { osd, .. }
            | Event::EarlyTick { osd, .. }
            | Event::Perform { osd, .. }
            | Event::Report { osd, .. }
            | Event::Boot { osd, .. } => Some(*osd),
            Event::Beat(beat) => Some(beat.to),
            Event::Refused { reporter, .. } => Some(*reporter),
            _ => None,
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some(osd) = World::process_of(&event) {
            let rest = self.node(osd).paused_until.since(self.now);
            if !rest.is_zero() {
                return self.schedule(rest, event);
            }
            while let Some((pg, undone)) = self.node(osd).unperformed.pop_front() {
                match undone {
                    Undone::Outputs(outbox) => self.perform(osd, pg, outbox),
                    Undone::Step(input) => self.step(osd, pg, *input),
                }
                if !self.node(osd).paused_until.since(self.now).is_zero() {
                    return self.handle(event); // it has stopped once more
                }
            }
        }
        match event {
            Event::Peer { to, run, from, from_run, message, again } => {
                if self.is_run(to, run) && self.reaches(from, to) {
                    let stale = again && self.is_stale(to, from, from_run, &message);
                    self.counts.add(FaultKind::MessageReplayed, u64::from(stale));
                    self.peer(to, from, from_run, *message);
                }
            }
            Event::Request { to, client, request } => {
                if self.node(to).running && self.serves(to) {
                    self.rift_is_asked(to, &request);
                    self.request(to, client, *request);
                }
            }
            Event::Reply { client, reply } => self.replied(client, *reply),
            Event::Commit { osd, generation } => self.commit(osd, generation),
            Event::Maintain { osd, generation } => self.maintain(osd, generation),
            Event::Wake { osd, run, pg, at } => {
                if self.is_run(osd, run) && self.node(osd).wakes.get(&pg) == Some(&at) {
                    self.node(osd).wakes.remove(&pg);
                    self.step(osd, pg, holdfast_pg::Input::Tick);
                }
            }
            Event::Reserved { osd, run, pg, slot } => {
                if self.is_run(osd, run) {
                    self.reserved(osd, pg, slot);
                }
            }
            Event::MapArrives { osd } => self.map_arrives(osd),
            Event::ClientMap { client } => {
                let newest = self.monitor.map().epoch;
                let before = std::mem::replace(&mut self.clients[client].epoch, newest);
                if newest > before && client < self.config.prompt as usize {
                    for tid in self.clients[client].late(self.now, Duration::ZERO) {
                        self.send_request(client, tid);
                    }
                }
            }
            Event::Command { osd, command } => {
                if self.monitors_hear_it(osd) {
                    self.monitors_hear(*command);
                }
            }
            Event::BeatTick { osd, run } => self.beat_tick(osd, run),
            Event::EarlyTick { osd, run } => self.early_tick(osd, run),
            Event::Perform { .. } => {} // done above
            Event::Beat(beat) => self.beat_arrives(beat),
            Event::Report { osd, run, repeats } => self.report(osd, run, repeats),
            Event::Refused { reporter, run, target, target_run } => self.refused(reporter, run, target, target_run),
            Event::MonTick => self.mon_tick(),
            Event::MonitorsBack => self.publish(),
            Event::Probed { osd, run, result } => self.probed(osd, run, result),
            Event::Boot { osd, run } => self.boot(osd, run),
            Event::EndRun { osd, run } => self.end_run(osd, run),
            Event::Restart { osd } => self.restart(osd),
            Event::Reconnect { osd } => {
                self.cut_off.remove(&osd);
                self.schedule(Duration::from_millis(5), Event::MapArrives { osd });
            }
            Event::ClientTick { client } => self.client_tick(client),
            Event::RoomBack { osd } => self.room_back(osd),
            Event::BlocksBack { osd } => self.blocks_back(osd),
            Event::OneWayHealed => self.one_way.clear(),
            Event::RiftHealed { number } => self.heal_rift(number),
            Event::PowerFails { osd, generation } => self.power_fails(osd, generation),
            Event::CutAll { away, kind } => self.cut_all(away, kind),
            Event::FenceTick => self.fence_tick(),
            Event::Front(event) => self.front_event(event),
            Event::Flap => self.flap(),
            Event::FaultTick => self.fault_tick(),
        }
    }

    // ---- monitors ----

    pub(crate) fn command(&mut self, command: MonCommand) {
        self.propose(holdfast_mon_state::Change::Request(command));
    }

    /// Has a change committed; a new map is on its way to everybody.
    pub(crate) fn propose(&mut self, change: holdfast_mon_state::Change) {
        let before = self.monitor.map().epoch;
        if let Err(violation) = self.monitor.commit(self.now, vec![change]) {
            self.violation = Some(violation);
        } else if self.monitor.map().epoch > before {
            self.count_maps();
            self.rift_sees_map();
            self.publish();
        }
    }

    /// T0: members do not ask for one acting set and then for another, again and again.
    fn count_maps(&mut self) {
        let epoch = self.monitor.map().epoch;
        if self.now.since(self.maps_counted.0) >= MAPS_WINDOW {
            self.maps_counted = (self.now, epoch);
        }
        let maps = epoch.0 - self.maps_counted.1.0;
        self.maps_most = self.maps_most.max(maps);
        // Each placement group that was split off moves, and asks for itself.
        if maps > MAPS_MAX && maps > MAPS_MAX + MAPS_PER_PG * self.monitor.pgs().len() as u64 {
            self.violation = Some(format!("T0: {maps} maps within {MAPS_WINDOW:?}, and no end"));
        }
    }

    fn publish(&mut self) {
        let epoch = self.monitor.map().epoch.0;
        self.mix(epoch);
        self.note_map();
        for osd in 0..self.nodes.len() {
            let after = self.delay();
            self.schedule(after, Event::MapArrives { osd: OsdId(osd as u32) });
        }
        for client in 0..self.config.prompt as usize {
            let after = self.delay();
            self.schedule(after, Event::ClientMap { client });
        }
        self.front_published();
    }

    // ---- clients ----

    fn client_tick(&mut self, client: usize) {
        let (low, high) = (Duration::from_millis(1), self.config.pause * 2);
        let pause = self.rng.random_range(low.as_micros() as u64..=high.as_micros().max(1_001) as u64);
        self.schedule(Duration::from_micros(pause), Event::ClientTick { client });
        let now = self.now;
        let late = self.clients[client].late(now, self.config.patience);
        let lag = self.faults.client_map_lag;
        let learns = !late.is_empty() && (lag == 0.0 || !self.rng.random_bool(lag));
        if learns {
            let newest = self.monitor.map().epoch;
            self.clients[client].epoch = newest;
        }
        for tid in late {
            self.send_request(client, tid);
        }
        let depth = if self.clients[client].reads_only() { self.config.reader_depth } else { self.config.depth };
        if self.working && self.clients[client].outstanding() < depth as usize {
            let tid = self.clients[client].start(&self.config, now, &mut self.rng, &mut self.history);
            self.send_request(client, tid);
        }
    }

    fn send_request(&mut self, client: usize, tid: u64) {
        let now = self.now;
        let Some(mut request) = self.clients[client].request(tid, now) else { return };
        let Some(step) = self.monitor.step(request.epoch).cloned() else { return };
        let Some(pg) = step.map.pg_of(crate::monitor::POOL, &request.object) else { return };
        request.pg = pg;
        let Some(to) = step.members_of(pg).primary() else { return };
        for after in self.arrivals() {
            self.schedule(after, Event::Request { to, client, request: Box::new(request.clone()) });
        }
    }

    fn replied(&mut self, client: usize, reply: ClientReply) {
        self.mix(reply.id.tid ^ reply.epoch.0 << 32);
        if let Some((process, sending)) = front::addressee(client) {
            let reply = Box::new(reply);
            return self.front_event(FrontEvent::Replied { process, sending, reply });
        }
        if client == self.clients.len() {
            return self.session_replied(&reply);
        }
        let (tid, now) = (reply.id.tid, self.now);
        let again = match reply.outcome {
            // In a rift, those that only read take it for word of who is still the one to ask.
            ClientOutcome::Refused(RefusedReason::Busy) => self.rift.is_none() || !self.clients[client].reads_only(),
            ClientOutcome::Refused(_) => true,
            ClientOutcome::Done { .. } | ClientOutcome::Failed { .. } => false,
        };
        let promised = Promised {
            dups_max: self.config.limits.dups_max,
            map: self.monitor.map(),
            splits: self.config.faults.splits_per_second > 0.0 || self.config.split_bytes_min.is_some(),
            is_shared: self.front.is_some() || self.fencing.is_some(),
        };
        if let Err(violation) = self.clients[client].answered(reply, now, &promised, &mut self.history) {
            self.violation = Some(format!("L1: {violation}"));
        } else if again {
            let after = self.delay();
            self.schedule(after, Event::ClientMap { client });
            let _ = tid; // it is sent again when its time is over
        }
    }
}
