//! The world: the heap of events, the network, and what strikes when.

mod scrub;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_pg::{Input, Outbox, Output, ReplyTo, Slot, answer_without_copy};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::peer::PeerMessage;
use holdfast_wire::{ClientReply, ClientRequest, Kind};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::check;
use crate::client::{Client, Operation};
use crate::config::{Config, Faults};
use crate::monitor::{Monitor, members};
use crate::node::Node;

/// How long a client waits for an answer before it sends again.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Longest time that a healed cluster may take to be clean and to have answered everything.
const SETTLE_MAX: Duration = Duration::from_secs(300);
/// How often faults are drawn.
const FAULT_TICK: Duration = Duration::from_millis(100);
/// Every so many messages one is sent through the codec.
const CODEC_EVERY: u64 = 16;

/// How often each fault has struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Messages lost.
    pub losses: u64,
    /// Messages that came twice.
    pub duplicates: u64,
    /// OSDs killed.
    pub crashes: u64,
    /// Transactions lost in crashes.
    pub lost_transactions: u64,
    /// Power losses of all OSDs.
    pub power_losses: u64,
    /// OSDs cut off.
    pub partitions: u64,
    /// Placement changes.
    pub remaps: u64,
    /// OSDs that maps did not reach for a while.
    pub map_lags: u64,
    /// Maps that an OSD has never seen.
    pub skipped_maps: u64,
    /// Objects spoilt.
    pub rots: u64,
    /// Those of them of which nothing can be read.
    pub whole_rots: u64,
    /// OSDs that had no room for a while.
    pub fills: u64,
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    /// Reads that showed a replaced value; only partitions can cause them, until leases exist.
    pub stale_reads: u64,
    /// What struck.
    pub faults: FaultCounts,
    /// Copies that scrubs found bad and had repaired.
    pub copies_scrubbed: u64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {violation}\n  replay: cargo xtask sim --from {seed} --seeds 1")]
pub struct Violation {
    /// The seed that shows it.
    pub seed: u64,
    /// What is wrong; begins with the id of the invariant.
    pub violation: String,
}

#[derive(Debug)]
enum Event {
    Peer { to: OsdId, run: Incarnation, from: OsdId, from_run: Incarnation, message: Box<PeerMessage> },
    Request { to: OsdId, client: usize, request: Box<ClientRequest> },
    Reply { client: usize, reply: Box<ClientReply> },
    Sync { osd: OsdId, run: Incarnation },
    Wake { osd: OsdId, run: Incarnation, pg: PgId, at: Timestamp },
    Reserved { osd: OsdId, run: Incarnation, pg: PgId, slot: Slot },
    MapArrives { osd: OsdId },
    ClientMap { client: usize },
    UpThru { osd: OsdId, run: Incarnation, at_least: Epoch },
    PgTemp { osd: OsdId, run: Incarnation, pg: PgId, want: Vec<OsdId> },
    MarkDown { osd: OsdId, run: Incarnation },
    Boot { osd: OsdId, run: Incarnation },
    Restart { osd: OsdId },
    Reconnect { osd: OsdId },
    ClientTick { client: usize },
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

/// One of an OSD's recovery budgets: one placement group at a time.
#[derive(Debug, Default)]
struct SlotQueue {
    holder: Option<PgId>,
    waiting: VecDeque<PgId>,
}

struct World {
    config: Config,
    faults: Faults,
    rng: SmallRng,
    now: Timestamp,
    events: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    handled: u64,
    hash: u64,
    messages: u64,
    monitor: Monitor,
    nodes: Vec<Node>,
    cut_off: BTreeSet<OsdId>,
    syncing: BTreeSet<OsdId>,
    slots: BTreeMap<(OsdId, Slot), SlotQueue>,
    clients: Vec<Client>,
    history: Vec<Operation>,
    counts: FaultCounts,
    violation: Option<String>,
    working: bool,
    copies_scrubbed: u64,
}

/// Runs one seed.
///
/// # Errors
/// The first [`Violation`].
pub fn run(seed: u64, config: &Config) -> Result<Report, Violation> {
    World::new(seed, *config).run().map_err(|violation| Violation { seed, violation })
}

impl World {
    fn new(seed: u64, config: Config) -> World {
        let monitor = Monitor::new(&config);
        World {
            config,
            faults: config.faults,
            rng: SmallRng::seed_from_u64(seed),
            now: Timestamp::ZERO,
            events: BinaryHeap::new(),
            scheduled: 0,
            handled: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            messages: 0,
            monitor,
            nodes: (0..config.osds).map(|id| Node::new(OsdId(id), config.limits)).collect(),
            cut_off: BTreeSet::new(),
            syncing: BTreeSet::new(),
            slots: BTreeMap::new(),
            clients: (0..config.clients).map(|id| Client::new(u64::from(id) + 1)).collect(),
            history: Vec::new(),
            counts: FaultCounts::default(),
            violation: None,
            working: true,
            copies_scrubbed: 0,
        }
    }

    fn run(mut self) -> Result<Report, String> {
        for osd in 0..self.config.osds {
            self.schedule(Duration::ZERO, Event::MapArrives { osd: OsdId(osd) });
        }
        for client in 0..self.clients.len() {
            self.schedule(Duration::from_millis(1), Event::ClientTick { client });
        }
        self.schedule(FAULT_TICK, Event::FaultTick);
        let end = self.now + self.config.duration;
        self.run_until(end)?;
        self.heal();
        self.settle()?;
        let tids = self.clients[0].read_all(&self.config, self.now, &mut self.history);
        for tid in tids {
            self.send_request(0, tid);
        }
        self.settle()?;
        self.scrub_all()?;
        self.check_copies()?;
        let partitioned = self.counts.partitions + self.counts.map_lags > 0;
        let checked = check::check(&self.history, partitioned)?;
        Ok(Report {
            hash: self.hash,
            operations: self.history.len() as u64,
            events: self.handled,
            simulated_ms: self.now.as_nanos() / 1_000_000,
            epochs: self.monitor.newest().epoch.0,
            stale_reads: checked.stale_reads,
            faults: self.counts,
            copies_scrubbed: self.copies_scrubbed,
        })
    }

    fn run_until(&mut self, end: Timestamp) -> Result<(), String> {
        while let Some(Reverse(next)) = self.events.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(next)) = self.events.pop() else { break };
            self.now = next.at;
            self.handled += 1;
            self.mix(next.at.as_nanos() ^ next.number.rotate_left(32));
            self.handle(next.event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.now = end;
        Ok(())
    }

    /// One line of the event log; for replays only.
    fn trace(&self, line: &str) {
        eprintln!("{} {line}", self.now);
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        let at = self.now + after;
        self.events.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    fn node(&mut self, osd: OsdId) -> &mut Node {
        &mut self.nodes[osd.0 as usize]
    }

    fn is_run(&self, osd: OsdId, run: Incarnation) -> bool {
        self.nodes.get(osd.0 as usize).is_some_and(|node| node.running && node.incarnation == run)
    }

    fn delay(&mut self) -> Duration {
        let max = u64::try_from(self.faults.delay_max.as_micros()).unwrap_or(u64::MAX).max(60);
        // Most messages are quick, some are very late.
        let cap = if self.rng.random_bool(0.8) { (max / 10).max(60) } else { max };
        Duration::from_micros(self.rng.random_range(50..cap.max(51)))
    }

    /// The delays with which a message arrives: none when it is lost, two when it is doubled.
    fn arrivals(&mut self) -> Vec<Duration> {
        if self.rng.random_bool(self.faults.loss) {
            self.counts.losses += 1;
            return Vec::new();
        }
        let mut arrivals = vec![self.delay()];
        if self.rng.random_bool(self.faults.duplication) {
            self.counts.duplicates += 1;
            let late = self.delay() * 20;
            arrivals.push(late);
        }
        arrivals
    }

    // ---- events ----

    fn handle(&mut self, event: Event) {
        match event {
            Event::Peer { to, run, from, from_run, message } => {
                if self.is_run(to, run) && !self.cut_off.contains(&to) && !self.cut_off.contains(&from) {
                    self.peer(to, from, from_run, *message);
                }
            }
            Event::Request { to, client, request } => {
                if !self.cut_off.contains(&to) {
                    self.request(to, client, *request);
                }
            }
            Event::Reply { client, reply } => self.replied(client, *reply),
            Event::Sync { osd, run } => self.sync(osd, run),
            Event::Wake { osd, run, pg, at } => {
                if self.is_run(osd, run) && self.node(osd).wakes.get(&pg) == Some(&at) {
                    self.node(osd).wakes.remove(&pg);
                    self.step(osd, pg, Input::Tick);
                }
            }
            Event::Reserved { osd, run, pg, slot } => {
                if self.is_run(osd, run) {
                    self.step(osd, pg, Input::Reserved(slot));
                }
            }
            Event::MapArrives { osd } => self.map_arrives(osd),
            Event::ClientMap { client } => {
                let newest = self.monitor.newest().epoch;
                self.clients[client].epoch = newest;
            }
            Event::UpThru { osd, run, at_least } => {
                if !self.cut_off.contains(&osd) && self.monitor.up_thru(osd, run, at_least) {
                    self.publish();
                }
            }
            Event::PgTemp { osd, run, pg, want } => {
                if !self.cut_off.contains(&osd) && self.monitor.pg_temp(osd, run, pg, want) {
                    self.publish();
                }
            }
            Event::MarkDown { osd, run } => {
                let same = self.monitor.newest().osds.get(&osd).is_some_and(|info| info.incarnation == run);
                let dead = !self.is_run(osd, run) || self.cut_off.contains(&osd);
                if same && dead && self.monitor.is_up(osd) {
                    self.monitor.mark_down(osd);
                    self.publish();
                }
            }
            Event::Boot { osd, run } => {
                if self.is_run(osd, run) {
                    if self.cut_off.contains(&osd) {
                        self.schedule(Duration::from_millis(500), Event::Boot { osd, run });
                    } else {
                        self.monitor.boot(osd, run);
                        self.publish();
                    }
                }
            }
            Event::Restart { osd } => self.restart(osd),
            Event::Reconnect { osd } => {
                self.cut_off.remove(&osd);
                self.schedule(Duration::from_millis(5), Event::MapArrives { osd });
            }
            Event::ClientTick { client } => self.client_tick(client),
            Event::FaultTick => self.fault_tick(),
        }
    }

    fn peer(&mut self, to: OsdId, from: OsdId, from_run: Incarnation, message: PeerMessage) {
        let pg = message.pg;
        if self.node(to).pgs.contains_key(&pg) {
            self.step(to, pg, Input::Peer { from, incarnation: from_run, message });
            return;
        }
        // The shell's part: get the map first, then either the placement group exists, or there is no copy.
        if message.epoch > self.node(to).epoch {
            self.schedule(Duration::from_millis(1), Event::MapArrives { osd: to });
            return;
        }
        let epoch = self.node(to).epoch;
        if let Some(answer) = answer_without_copy(&message, epoch) {
            self.send(to, from, answer);
        }
    }

    fn step(&mut self, osd: OsdId, pg: PgId, input: Input) {
        let now = self.now;
        if self.config.trace {
            match &input {
                Input::Map { map, members } => self.trace(&format!("{osd} {pg} <- map {} {members:?}", map.epoch)),
                input => self.trace(&format!("{osd} {pg} <- {input:?}")),
            }
        }
        let outbox = self.node(osd).step(now, pg, input);
        self.perform(osd, pg, outbox);
    }

    fn perform(&mut self, osd: OsdId, pg: PgId, outbox: Outbox) {
        let run = self.node(osd).incarnation;
        for output in outbox {
            if self.config.trace {
                self.trace(&format!("{osd} {pg} -> {output:?}"));
            }
            match output {
                Output::Submit { txn, ops } => {
                    if !self.node(osd).disk.submit(pg, txn, ops) {
                        self.violation = Some(format!("R5: {osd} {pg} changes an object that cannot be read"));
                    }
                    if self.syncing.insert(osd) {
                        let after = self.sync_time();
                        self.schedule(after, Event::Sync { osd, run });
                    }
                }
                Output::Send { to, message } => self.send(osd, to, Arc::unwrap_or_clone(message)),
                Output::Reply { reply_to, reply } => {
                    let client = usize::try_from(reply_to.0).unwrap_or(usize::MAX);
                    if !self.cut_off.contains(&osd) {
                        for after in self.arrivals() {
                            self.schedule(after, Event::Reply { client, reply: Box::new(reply.clone()) });
                        }
                    }
                }
                Output::AskUpThru { at_least } => {
                    let after = self.delay();
                    self.schedule(after, Event::UpThru { osd, run, at_least });
                }
                Output::AskPgTemp { want } => {
                    let after = self.delay();
                    self.schedule(after, Event::PgTemp { osd, run, pg, want });
                }
                Output::NeedMap { .. } => {
                    let after = self.delay();
                    self.schedule(after, Event::MapArrives { osd });
                }
                Output::Wake { at } => {
                    self.node(osd).wakes.insert(pg, at);
                    self.schedule(at.since(self.now), Event::Wake { osd, run, pg, at });
                }
                Output::Reserve(slot) => self.reserve(osd, pg, slot),
                Output::Release(slot) => self.release(osd, pg, slot),
                Output::ReportChanged | Output::CopyDamaged | Output::CopyRepaired => {}
                Output::Gone => {
                    self.node(osd).pgs.remove(&pg);
                    self.node(osd).wakes.remove(&pg);
                    // The map may have brought it back while it was being removed.
                    let (node, monitor) = (&mut self.nodes[osd.0 as usize], &self.monitor);
                    if node.begin_anew(pg, monitor) {
                        self.step(osd, pg, Input::Tick);
                    }
                }
            }
        }
    }

    fn send(&mut self, from: OsdId, to: OsdId, message: PeerMessage) {
        if self.cut_off.contains(&from) || self.cut_off.contains(&to) || to.0 as usize >= self.nodes.len() {
            return;
        }
        self.messages += 1;
        if self.messages.is_multiple_of(CODEC_EVERY) {
            let encoded = holdfast_wire::encode(&message);
            let payload = encoded.payload.concat().into();
            match holdfast_wire::decode::<PeerMessage>(Kind::Peer as u16, &encoded.body, &payload) {
                Ok(decoded) if decoded == message => {}
                other => self.violation = Some(format!("F0: {message:?} is decoded as {other:?}")),
            }
        }
        let (run, from_run) = (self.node(to).incarnation, self.node(from).incarnation);
        for after in self.arrivals() {
            let message = Box::new(message.clone());
            self.schedule(after, Event::Peer { to, run, from, from_run, message });
        }
    }

    fn sync(&mut self, osd: OsdId, run: Incarnation) {
        if !self.is_run(osd, run) {
            return;
        }
        let waiting = self.node(osd).disk.unsynced();
        let count = self.rng.random_range(1..=waiting.max(1));
        let durable = self.node(osd).disk.sync(count);
        if self.node(osd).disk.unsynced() > 0 {
            let after = self.sync_time();
            self.schedule(after, Event::Sync { osd, run });
        } else {
            self.syncing.remove(&osd);
        }
        for (pg, txn) in durable {
            self.step(osd, pg, Input::Durable(txn));
        }
    }

    /// Most syncs are quick; some are so slow that much is lost when the power fails.
    fn sync_time(&mut self) -> Duration {
        let slow = self.working && self.rng.random_bool(self.config.faults.slow_sync);
        let max = if slow { 400_000 } else { 4_000 };
        Duration::from_micros(self.rng.random_range(100..max))
    }

    // ---- slots ----

    fn reserve(&mut self, osd: OsdId, pg: PgId, slot: Slot) {
        let run = self.node(osd).incarnation;
        let queue = self.slots.entry((osd, slot)).or_default();
        if queue.holder.is_none() {
            queue.holder = Some(pg);
            self.schedule(Duration::ZERO, Event::Reserved { osd, run, pg, slot });
        } else {
            queue.waiting.push_back(pg);
        }
    }

    fn release(&mut self, osd: OsdId, pg: PgId, slot: Slot) {
        let run = self.node(osd).incarnation;
        let queue = self.slots.entry((osd, slot)).or_default();
        queue.waiting.retain(|waiting| *waiting != pg);
        if queue.holder == Some(pg) {
            queue.holder = queue.waiting.pop_front();
            if let Some(pg) = queue.holder {
                self.schedule(Duration::ZERO, Event::Reserved { osd, run, pg, slot });
            }
        }
    }

    // ---- maps ----

    fn publish(&mut self) {
        let epoch = self.monitor.newest().epoch.0;
        self.mix(epoch);
        for osd in 0..self.nodes.len() {
            let after = self.delay();
            self.schedule(after, Event::MapArrives { osd: OsdId(osd as u32) });
        }
    }

    fn map_arrives(&mut self, osd: OsdId) {
        if !self.node(osd).running || self.cut_off.contains(&osd) {
            return;
        }
        let late = self.node(osd).lags_until.since(self.now);
        if !late.is_zero() {
            self.schedule(late, Event::MapArrives { osd });
            return;
        }
        loop {
            let node = &mut self.nodes[osd.0 as usize];
            let before = node.epoch;
            let Some(inputs) = node.next_map(&self.monitor) else { break };
            if before > Epoch(0) {
                self.counts.skipped_maps += node.epoch.0 - before.next().0;
            }
            for (pg, input) in inputs {
                self.step(osd, pg, input.unwrap_or(Input::Tick));
            }
        }
        let (run, newest) = (self.node(osd).incarnation, self.monitor.newest());
        let ousted = newest.osds.get(&osd).is_some_and(|info| !info.up && info.incarnation == run);
        if ousted {
            // Marked down while it runs: everything submitted is made durable, then it joins as a new run.
            let waiting = self.node(osd).disk.unsynced();
            self.node(osd).disk.sync(waiting);
            self.come_back(osd);
        }
    }

    // ---- faults ----

    fn fault_tick(&mut self) {
        if !self.working {
            return;
        }
        self.schedule(FAULT_TICK, Event::FaultTick);
        self.tell_time();
        let faults = self.faults;
        let mut strikes = |rate: f64| self.rng.random_bool((rate * FAULT_TICK.as_secs_f64()).clamp(0.0, 1.0));
        let (crash, power) = (strikes(faults.crashes_per_second), strikes(faults.power_losses_per_second));
        let (cut, remap) = (strikes(faults.partitions_per_second), strikes(faults.remaps_per_second));
        let rot = strikes(faults.rots_per_second);
        // Not drawn where it cannot strike: the seeds of the older worlds stay what they were.
        let lag = faults.map_lags_per_second > 0.0 && strikes(faults.map_lags_per_second);
        let fill = faults.fills_per_second > 0.0 && strikes(faults.fills_per_second);
        let victim = OsdId(self.rng.random_range(0..self.config.osds));
        if power {
            self.counts.power_losses += 1;
            for osd in 0..self.config.osds {
                self.crash(OsdId(osd));
            }
        } else if crash && !self.is_double_fault(victim) {
            self.crash(victim);
        }
        if cut && self.cut_off.is_empty() {
            self.counts.partitions += 1;
            self.cut_off.insert(victim);
            let run = self.node(victim).incarnation;
            let (seen, healed) = (self.rng.random_range(300..2_500), self.rng.random_range(100..9_000));
            self.schedule(Duration::from_millis(seen), Event::MarkDown { osd: victim, run });
            self.schedule(Duration::from_millis(healed), Event::Reconnect { osd: victim });
        }
        if remap {
            let inside = self.monitor.newest().osds.values().filter(|info| info.in_cluster).count();
            let is_in = self.monitor.newest().osds.get(&victim).is_some_and(|info| info.in_cluster);
            if !is_in || inside > self.config.size as usize {
                self.counts.remaps += 1;
                self.monitor.toggle_in(victim);
                self.publish();
            }
        }
        if rot {
            self.rot(victim);
        }
        let now = self.now;
        if fill && self.node(victim).tight_until <= now {
            self.counts.fills += 1;
            let (length, full) = (self.rng.random_range(100..8_000), self.rng.random_bool(0.5));
            let node = self.node(victim);
            (node.tight_until, node.full) = (now + Duration::from_millis(length), full);
        }
        if lag && self.node(victim).lags_until <= now {
            self.counts.map_lags += 1;
            let (length, skips) = (self.rng.random_range(100..4_000), self.rng.random_bool(0.8));
            let until = now + Duration::from_millis(length);
            let node = self.node(victim);
            node.lags_until = until;
            node.skips |= skips;
            self.schedule(Duration::from_millis(length), Event::MapArrives { osd: victim });
        }
    }

    /// Spoils an object, but never the last good copy.
    fn rot(&mut self, victim: OsdId) {
        let all_well =
            self.nodes.iter().all(|node| node.running)
                && self.nodes.iter().flat_map(|node| node.disk.collections()).all(|(_, collection)| {
                    collection.objects.values().all(|object| !object.rotten && !object.unreadable)
                });
        let pick = self.rng.random_range(0..1_000_000);
        let whole = self.rng.random_bool(0.5);
        if all_well && self.all_clean() && self.node(victim).disk.rot(pick, whole) {
            self.counts.rots += 1;
            self.counts.whole_rots += u64::from(whole);
        }
    }

    fn crash(&mut self, osd: OsdId) {
        if !self.node(osd).running {
            return;
        }
        self.counts.crashes += 1;
        let run = self.node(osd).incarnation;
        let unsynced = self.node(osd).disk.unsynced();
        let survivors = self.rng.random_range(0..=unsynced);
        self.counts.lost_transactions += (unsynced - survivors) as u64;
        if self.config.trace {
            self.trace(&format!("{osd} crashes, {survivors} of {unsynced} transactions survive"));
        }
        self.stop(osd);
        self.node(osd).disk.crash(survivors);
        let (seen, back) = (self.rng.random_range(100..2_000), self.rng.random_range(200..8_000));
        self.schedule(Duration::from_millis(seen), Event::MarkDown { osd, run });
        self.schedule(Duration::from_millis(back), Event::Restart { osd });
    }

    fn stop(&mut self, osd: OsdId) {
        self.node(osd).running = false;
        self.syncing.remove(&osd);
        self.slots.remove(&(osd, Slot::Outgoing));
        self.slots.remove(&(osd, Slot::Incoming));
        self.slots.remove(&(osd, Slot::ScrubOutgoing));
        self.slots.remove(&(osd, Slot::ScrubIncoming));
    }

    fn restart(&mut self, osd: OsdId) {
        if !self.node(osd).running {
            self.come_back(osd);
        }
    }

    fn come_back(&mut self, osd: OsdId) {
        self.stop(osd);
        let run = Incarnation(self.node(osd).incarnation.0 + 1);
        let node = &mut self.nodes[osd.0 as usize];
        if let Err(error) = node.restart(run, &self.monitor) {
            self.violation = Some(format!("R0: {error}"));
            return;
        }
        for (pg, input) in self.nodes[osd.0 as usize].catch_up(&self.monitor) {
            self.step(osd, pg, input);
        }
        let after = self.delay();
        self.schedule(after, Event::Boot { osd, run });
        self.schedule(after, Event::MapArrives { osd });
    }

    // ---- clients ----

    fn client_tick(&mut self, client: usize) {
        let (low, high) = (Duration::from_millis(1), self.config.pause * 2);
        let pause = self.rng.random_range(low.as_micros() as u64..=high.as_micros().max(1_001) as u64);
        self.schedule(Duration::from_micros(pause), Event::ClientTick { client });
        let now = self.now;
        let late = self.clients[client].late(now, PATIENCE);
        if !late.is_empty() {
            let newest = self.monitor.newest().epoch;
            self.clients[client].epoch = newest;
        }
        for tid in late {
            self.send_request(client, tid);
        }
        if self.working && self.clients[client].outstanding() < self.config.depth as usize {
            let tid = self.clients[client].start(&self.config, now, &mut self.rng, &mut self.history);
            self.send_request(client, tid);
        }
    }

    fn send_request(&mut self, client: usize, tid: u64) {
        let now = self.now;
        let Some(mut request) = self.clients[client].request(tid, now) else { return };
        let Some(map) = self.monitor.map(request.epoch).cloned() else { return };
        let Some(pg) = map.pg_of(crate::monitor::POOL, &request.object) else { return };
        request.pg = pg;
        let Some(to) = members(&map, pg).primary() else { return };
        for after in self.arrivals() {
            self.schedule(after, Event::Request { to, client, request: Box::new(request.clone()) });
        }
    }

    fn request(&mut self, to: OsdId, client: usize, request: ClientRequest) {
        if !self.node(to).running {
            return;
        }
        let pg = request.pg;
        if self.node(to).pgs.contains_key(&pg) {
            self.step(to, pg, Input::Client { reply_to: ReplyTo(client as u64), request });
        }
    }

    fn replied(&mut self, client: usize, reply: ClientReply) {
        self.mix(reply.id.tid ^ reply.epoch.0 << 32);
        let (tid, now) = (reply.id.tid, self.now);
        let again = matches!(reply.outcome, holdfast_wire::ClientOutcome::Refused(_));
        if let Err(violation) = self.clients[client].answered(reply, now, &mut self.history) {
            self.violation = Some(format!("L1: {violation}"));
        } else if again {
            let after = self.delay();
            self.schedule(after, Event::ClientMap { client });
            let _ = tid; // it is sent again when its time is over
        }
    }

    // ---- the end ----

    fn heal(&mut self) {
        self.working = false;
        self.faults = Faults { delay_max: Duration::from_millis(2), ..Faults::NONE };
        self.cut_off.clear();
        for node in &mut self.nodes {
            (node.lags_until, node.tight_until) = (Timestamp::ZERO, Timestamp::ZERO);
        }
        for osd in 0..self.config.osds {
            self.restart(OsdId(osd));
            self.schedule(Duration::from_millis(5), Event::MapArrives { osd: OsdId(osd) });
        }
        self.monitor.set_all_in();
        self.publish();
    }

    fn all_clean(&self) -> bool {
        let map = self.monitor.newest();
        self.monitor.pgs().into_iter().all(|pg| {
            let members = members(map, pg);
            let primary = members.primary().and_then(|osd| self.nodes.get(osd.0 as usize));
            let core = primary.filter(|node| node.running).and_then(|node| node.pgs.get(&pg));
            core.is_some_and(|core| core.report().state.clean && core.epoch() == map.epoch)
        })
    }

    fn settle(&mut self) -> Result<(), String> {
        let end = self.now + SETTLE_MAX;
        while self.now < end {
            let next = self.now + Duration::from_millis(500);
            self.run_until(next)?;
            let answered = self.clients.iter().all(|client| client.outstanding() == 0);
            if answered && self.all_clean() && self.strays().is_empty() {
                return Ok(());
            }
        }
        Err(format!("L1: not settled after {SETTLE_MAX:?}: {}", self.explain()))
    }

    fn strays(&self) -> Vec<String> {
        let map = self.monitor.newest();
        let mut strays = Vec::new();
        for node in &self.nodes {
            for (pg, _) in node.disk.collections() {
                let members = members(map, *pg);
                if !members.up.contains(&node.id) && !members.acting.contains(&node.id) {
                    strays.push(format!("{} holds a stray copy of {pg}", node.id));
                }
            }
        }
        strays
    }

    fn explain(&self) -> String {
        let mut lines = self.strays();
        for client in &self.clients {
            if client.outstanding() > 0 {
                lines.push(format!("{} has {} requests without answer", client.id, client.outstanding()));
            }
        }
        for node in &self.nodes {
            lines.extend(node.pgs.values().map(|pg| format!("{}: {:?}", node.id, pg.report())));
        }
        lines.join("\n  ")
    }

    /// All members hold the same objects, and no one else holds any.
    fn check_copies(&self) -> Result<(), String> {
        let map = self.monitor.newest();
        for pg in self.monitor.pgs() {
            let mut first: Option<(OsdId, &holdfast_pg::memory::MemoryCollection)> = None;
            for osd in members(map, pg).acting {
                let collection = self.nodes.get(osd.0 as usize).and_then(|node| node.disk.collection(pg));
                let Some(collection) = collection else { return Err(format!("S2: {osd} has no copy of {pg}")) };
                if let Some((other, reference)) = first {
                    compare(reference, collection)
                        .map_err(|what| format!("S2: {pg} differs between {other} and {osd}: {what}"))?;
                } else {
                    first = Some((osd, collection));
                }
            }
        }
        Ok(())
    }
}

fn compare(
    one: &holdfast_pg::memory::MemoryCollection,
    other: &holdfast_pg::memory::MemoryCollection,
) -> Result<(), String> {
    if !one.objects.keys().eq(other.objects.keys()) {
        return Err(format!("{:?} and {:?}", one.objects.keys(), other.objects.keys()));
    }
    for (key, object) in &one.objects {
        let same = other.objects.get(key).is_some_and(|other| {
            (&object.data, &object.attrs, &object.rows) == (&other.data, &other.attrs, &other.rows)
        });
        if !same {
            return Err(format!("{key:?}: {object:?} and {:?}", other.objects.get(key)));
        }
    }
    Ok(())
}
