//! Who is alive: heartbeats among OSDs, reports to the monitors, what the leader makes of them. The tables and the judgement
//! are production code (`HeartbeatTable` of the daemon, `Leader` of the monitors); messages and looks at addresses are events.

use std::time::Duration;

use holdfast_mon_state::Change;
use holdfast_mon_state::leader::{Due, ProbeResult, Verdict as LeaderVerdict};
use holdfast_osd::parts::{HEARTBEAT_INTERVAL, Verdict, has_room, usage};
use holdfast_pg::mutants::{Mutant, on};
use holdfast_types::{Epoch, Incarnation, OsdId, Timestamp};
use holdfast_wire::mon::{FailureKind, MonCommand, OsdReport};
use rand::Rng;

use crate::faults::FaultKind;
use crate::world::{Event, World};

/// How often the leader looks for things to do.
const MON_TICK: Duration = Duration::from_millis(200);
/// A report goes out at least this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Changes gather for this long.
const REPORT_GATHER: Duration = Duration::from_millis(30);
/// Entries of a log beyond twice the limit at which writes are refused: those that were let in together.
const LOG_SLACK: usize = 64;
/// What a look at an address that does not answer takes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A heartbeat, or the answer to one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat {
    pub from: OsdId,
    pub from_run: Incarnation,
    pub to: OsdId,
    pub to_run: Incarnation,
    pub epoch: Epoch,
    /// When it was asked, by the asker's clock.
    pub asked: Timestamp,
    /// In an answer: whether the sender has no room.
    pub full: Option<bool>,
}

impl World {
    // ---- OSDs ----

    /// The first heartbeat and the first report of a run.
    pub(crate) fn begin_watching(&mut self, osd: OsdId, run: Incarnation) {
        let phase = Duration::from_millis(self.rng.random_range(0..1_000));
        self.schedule(phase, Event::BeatTick { osd, run });
        self.schedule(Duration::ZERO, Event::EarlyTick { osd, run });
        self.schedule(Duration::from_millis(5), Event::Report { osd, run, repeats: true });
    }

    pub(crate) fn beat_tick(&mut self, osd: OsdId, run: Incarnation) {
        if !self.is_run(osd, run) {
            return;
        }
        self.schedule(HEARTBEAT_INTERVAL, Event::BeatTick { osd, run });
        let now = self.now;
        let node = self.node(osd);
        let (local, peers) = (node.clock(now), node.up_peers());
        node.heartbeats.watch(local, &peers);
        let verdicts = node.heartbeats.overdue(local);
        for (to, to_run) in peers {
            self.ask(osd, to, to_run);
        }
        for verdict in verdicts {
            self.report_verdict(osd, verdict);
        }
    }

    /// Sends a heartbeat.
    pub(crate) fn ask(&mut self, osd: OsdId, to: OsdId, to_run: Incarnation) {
        let now = self.now;
        let node = self.node(osd);
        let (run, epoch, asked) = (node.incarnation, node.epoch(), node.clock(now));
        if self.is_refused(osd, to) {
            let refused = Event::Refused { reporter: osd, run, target: to, target_run: to_run };
            self.schedule(Duration::from_millis(1), refused);
        } else {
            self.beat(Beat { from: osd, from_run: run, to, to_run, epoch, asked, full: None });
        }
    }

    /// Whether the machine of an OSD answers that nothing listens there.
    fn is_refused(&self, from: OsdId, to: OsdId) -> bool {
        let reachable = self.is_connected(from) && self.is_connected(to);
        let node = self.nodes.get(to.0 as usize);
        reachable && node.is_some_and(|node| node.powered && !node.running)
    }

    fn beat(&mut self, beat: Beat) {
        if self.beat_reaches(beat.from, beat.to) {
            for after in self.arrivals() {
                self.schedule(after, Event::Beat(beat));
            }
        }
    }

    pub(crate) fn beat_arrives(&mut self, beat: Beat) {
        let Beat { from, from_run, to, to_run, epoch, asked, full } = beat;
        if !self.is_run(to, to_run) || !self.beat_reaches(from, to) {
            return;
        }
        let now = self.now;
        if let Some(full) = full {
            let node = self.node(to);
            node.space.note(from, full);
            node.leases.got(from, from_run, epoch, asked);
            let verdict = node.heartbeats.answered(node.clock(now), from, from_run);
            self.leases_granted += 1;
            if let Some(verdict) = verdict {
                self.report_verdict(to, verdict);
            }
            // Who is ahead of the other shares its maps.
            let behind = if epoch > self.node(to).epoch() { to } else { from };
            if epoch != self.node(to).epoch() {
                let after = self.delay();
                self.schedule(after, Event::MapArrives { osd: behind });
            }
        } else {
            let node = self.node(to);
            node.leases.grant(node.clock(now), from, from_run);
            let full = Some(!has_room(node.disk.engine(), 0));
            let epoch = node.epoch();
            self.beat(Beat { from: to, from_run: to_run, to: from, to_run: from_run, epoch, asked, full });
        }
    }

    fn report_verdict(&mut self, reporter: OsdId, verdict: Verdict) {
        let command = match verdict {
            Verdict::Silent { osd, incarnation, silence } => {
                let for_ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
                MonCommand::OsdFailure { reporter, target: osd, incarnation, kind: FailureKind::Silent { for_ms } }
            }
            Verdict::Alive { osd } => MonCommand::OsdAlive { reporter, target: osd },
        };
        self.tell_monitors(reporter, command);
    }

    /// A process that ends closes its connections; who connects again is refused, as long as its machine lives.
    pub(crate) fn process_ended(&mut self, target: OsdId, target_run: Incarnation) {
        let others: Vec<(OsdId, Incarnation)> =
            self.nodes.iter().filter(|node| node.running).map(|node| (node.id, node.incarnation)).collect();
        for (reporter, run) in others {
            let after = Duration::from_millis(self.rng.random_range(1..200));
            self.schedule(after, Event::Refused { reporter, run, target, target_run });
        }
    }

    pub(crate) fn refused(&mut self, reporter: OsdId, run: Incarnation, target: OsdId, target_run: Incarnation) {
        if !self.is_run(reporter, run) || !self.is_refused(reporter, target) {
            return;
        }
        let shown = self.node(reporter).step.map.osds.get(&target).map(|info| (info.up, info.incarnation));
        if shown == Some((true, target_run)) {
            let kind = FailureKind::Refused;
            let command = MonCommand::OsdFailure { reporter, target, incarnation: target_run, kind };
            self.tell_monitors(reporter, command);
        }
    }

    /// Tells the monitors what this OSD leads and how full it is.
    pub(crate) fn report(&mut self, osd: OsdId, run: Incarnation, repeats: bool) {
        if !self.is_run(osd, run) {
            return;
        }
        if repeats {
            self.schedule(REPORT_INTERVAL, Event::Report { osd, run, repeats });
        } else {
            self.node(osd).report_due = false;
        }
        self.check_bounds(osd);
        let now = self.now;
        let node = self.node(osd);
        let mut usage = usage(node.disk.engine());
        if on(Mutant::RoomToldLate) {
            let fullest = node.fullest.filter(|(since, fullest)| {
                now.since(*since) < Duration::from_secs(30) && fullest.used_bytes > usage.used_bytes
            });
            usage = node.fullest.insert(fullest.unwrap_or((now, usage))).1;
        }
        let mut pgs: Vec<_> = node.pgs.values().filter(|pg| pg.is_primary()).map(holdfast_pg::Pg::report).collect();
        if on(Mutant::CleanToldEarly) {
            pgs.iter_mut().for_each(|pg| pg.state.clean |= pg.state.active);
        }
        let report = OsdReport {
            osd,
            incarnation: run,
            epoch: node.epoch(),
            usage,
            pgs,
            checksum_errors: node.copies_damaged,
            repaired: node.copies_repaired,
            copies_lost: Some(node.copies_lost).filter(|lost| *lost > 0),
        };
        self.check_clean(osd, &report.pgs);
        self.tell_monitors(osd, MonCommand::Report(report));
    }

    /// M1: logs and what is remembered of requests are bounded.
    fn check_bounds(&mut self, osd: OsdId) {
        let limits = self.config.limits;
        let entries_max = 2 * limits.log_entries_max + LOG_SLACK;
        // Trimming drops a few more than it adds, so a log that was just trimmed may be above the bound by what it held.
        let dups_max = limits.dups_max + 2 * entries_max;
        for (pg, core) in &self.node(osd).pgs {
            let (entries, dups) = core.log_sizes();
            if entries > entries_max || dups > dups_max {
                self.violation = Some(format!("M1: {osd} holds {entries} entries and {dups} dups of {pg}"));
                return;
            }
        }
    }

    pub(crate) fn report_soon(&mut self, osd: OsdId) {
        if !std::mem::replace(&mut self.node(osd).report_due, true) {
            let run = self.node(osd).incarnation;
            self.schedule(REPORT_GATHER, Event::Report { osd, run, repeats: false });
        }
    }

    // ---- monitors ----

    /// What reaches the monitors, sorted as their service sorts it.
    pub(crate) fn monitors_hear(&mut self, command: MonCommand) {
        if self.monitors_are_gone() {
            return;
        }
        let now = self.now;
        match command {
            MonCommand::Report(report) => {
                self.note_report(&report);
                self.monitor.report(now, report);
            }
            MonCommand::OsdAlive { reporter, target } => self.monitor.alive(reporter, target),
            MonCommand::OsdFailure { reporter, target, incarnation, kind } => {
                match self.monitor.failure(now, reporter, target, incarnation, kind) {
                    LeaderVerdict::Wait | LeaderVerdict::Stale => {}
                    LeaderVerdict::Probe => self.probe(target, incarnation),
                    LeaderVerdict::Propose(change) => self.propose(change),
                }
            }
            command => self.propose(Change::Request(command)),
        }
    }

    pub(crate) fn monitors_are_gone(&self) -> bool {
        self.monitors_gone_until > self.now
    }

    pub(crate) fn mon_tick(&mut self) {
        self.schedule(MON_TICK, Event::MonTick);
        if self.monitors_are_gone() {
            return;
        }
        for due in self.monitor.due(self.now) {
            match due {
                Due::Propose(change) => {
                    let kind = World::decision(&change);
                    let before = self.monitor.map().epoch;
                    self.propose(change);
                    // The end of a hold-off is no matter of maps.
                    let done = self.monitor.map().epoch > before || kind == Some(FaultKind::HoldOffCutShort);
                    if let Some(kind) = kind.filter(|_| done) {
                        self.counts.add(kind, 1);
                    }
                }
                Due::Probe { osd, incarnation, .. } => self.probe(osd, incarnation),
            }
        }
        self.ask_status();
    }

    /// The leader connects to an OSD's address.
    fn probe(&mut self, osd: OsdId, run: Incarnation) {
        if !self.probing.insert((osd, run)) {
            return;
        }
        let node = &self.nodes[osd.0 as usize];
        let silent = !self.is_connected_to_monitors(osd) || !node.powered;
        let (after, result) = match (silent, node.running) {
            (true, _) => (PROBE_TIMEOUT, ProbeResult::NoAnswer),
            (false, true) => (self.delay(), ProbeResult::Connected),
            (false, false) => (self.delay(), ProbeResult::Refused),
        };
        self.schedule(after, Event::Probed { osd, run, result });
    }

    pub(crate) fn probed(&mut self, osd: OsdId, run: Incarnation, result: ProbeResult) {
        self.probing.remove(&(osd, run));
        if !self.monitors_are_gone()
            && let Some(change) = self.monitor.probed(self.now, osd, run, result)
        {
            self.propose(change);
        }
    }

    /// Another monitor leads: what the old leader kept in memory is gone, what was committed is not.
    pub(crate) fn change_leader(&mut self) {
        self.counts.add(FaultKind::MonitorChanged, 1);
        self.probing.clear();
        if let Err(violation) = self.monitor.change_leader(self.now) {
            self.violation = Some(violation);
        }
        self.forget_reports();
    }

    /// The monitors have no majority for a while: nothing is committed and nobody is answered.
    pub(crate) fn lose_monitors(&mut self) {
        self.counts.add(FaultKind::MonitorsGone, 1);
        let length = Duration::from_millis(self.rng.random_range(500..12_000));
        self.monitors_gone_until = self.now + length;
        self.schedule(length, Event::MonitorsBack);
    }
}
