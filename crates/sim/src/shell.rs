//! What the daemon's shell does, as events: inputs to placement groups, their outputs to store, network and monitors, maps,
//! and the start and end of runs.

use std::sync::Arc;
use std::time::Duration;

use holdfast_osd::parts::{MapStep, Standing, leave_known};
use holdfast_pg::{Input, Outbox, Output, ReplyTo, Slot, answer_without_copy};
use holdfast_store::SubmitError;
use holdfast_types::{Epoch, Incarnation, OsdId, PgId};
use holdfast_wire::mon::{MonCommand, PgTempWish};
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::{ClientRequest, Kind};
use rand::Rng;

use crate::config::REPLAY_MAX;
use crate::faults::FaultKind;
use crate::monitor::Monitor;
use crate::node::Undone;
use crate::world::{Event, World};

/// Every so many messages one is sent through the codec.
const CODEC_EVERY: u64 = 16;
/// Time between two power cuts at an activation, so that something happens meanwhile.
const ACTIVATION_CUT_GAP: Duration = Duration::from_secs(25);
/// Messages that are kept to be replayed with the next map.
const KEPT_MAX: usize = 512;
/// Probability that one of them arrives with a map, and that it is kept on.
const REPLAYED: f64 = 0.5;
/// Messages and requests that wait for a map.
const EARLY_MAX: usize = 1024;
/// Pause before the monitors are told of a run again, when no map showed it.
const BOOT_REPEAT: Duration = Duration::from_millis(500);
/// Pause before the next run after one whose store did not take a write.
const RETRY: Duration = Duration::from_millis(200);

/// Whether a message is of those by which placement groups learn who has what and go active.
fn is_of_peering(body: &PeerBody) -> bool {
    matches!(
        body,
        PeerBody::QueryInfo
            | PeerBody::Notice(_)
            | PeerBody::QueryLog { .. }
            | PeerBody::Log(_)
            | PeerBody::Activate(_)
            | PeerBody::ActivateAck(_)
            | PeerBody::NotActivated { .. }
            | PeerBody::RemovePg
            | PeerBody::History(_)
    )
}

impl World {
    // ---- inputs ----

    pub(crate) fn peer(&mut self, to: OsdId, from: OsdId, from_run: Incarnation, message: PeerMessage) {
        let cut = self.faults.cuts_after_activation;
        let used =
            message.pg.seed < self.config.pgs_used && self.now.since(self.last_activation_cut) >= ACTIVATION_CUT_GAP;
        if cut > 0.0 && used && matches!(message.body, PeerBody::ActivateAck(_)) && self.rng.random_bool(cut) {
            (self.last_cut, self.last_activation_cut) = (self.now, self.now);
            let after = Duration::from_millis(self.rng.random_range(0..400));
            // More often than not the primary: it may be the only one that has what is newest.
            let away = if self.rng.random_bool(0.6) { to } else { from };
            self.schedule(after, Event::CutAll { away, kind: FaultKind::ActivationCut });
        }
        if let PeerBody::RepOpAck { full, .. } = &message.body {
            self.node(to).space.note(from, full.unwrap_or(false));
        }
        let pg = message.pg;
        if !self.node(to).pgs.contains_key(&pg) {
            let epoch = self.node(to).epoch();
            if message.epoch > epoch {
                self.schedule(Duration::from_millis(1), Event::MapArrives { osd: to });
                if self.node(to).early.len() < EARLY_MAX {
                    self.node(to).early.push((from, from_run, message));
                }
                return;
            }
            let pools = &self.node(to).step.map.pools;
            if pools.get(&pg.pool).is_none_or(|pool| pg.seed >= pool.pg_num) {
                return;
            }
            // "No copy" would be taken for the word of one that never had one, or gave it up when it was not needed.
            if !self.node(to).is_member(pg) && !self.node(to).may_have_lost(pg) {
                if let Some(answer) = answer_without_copy(&message, epoch) {
                    self.send(to, from, &answer);
                }
                return;
            }
            self.create(to, pg);
        }
        self.step(to, pg, Input::Peer { from, incarnation: from_run, message });
    }

    pub(crate) fn request(&mut self, to: OsdId, client: usize, request: ClientRequest) {
        if request.epoch > self.node(to).epoch() {
            self.schedule(Duration::from_millis(1), Event::MapArrives { osd: to });
            if self.node(to).waiting.len() < EARLY_MAX {
                self.node(to).waiting.push((client, request));
            }
            return;
        }
        let pg = request.pg;
        if self.node(to).pgs.contains_key(&pg) {
            self.step(to, pg, Input::Client { reply_to: ReplyTo(client as u64), request });
        }
    }

    fn create(&mut self, osd: OsdId, pg: PgId) {
        self.node(osd).create(pg);
        self.step(osd, pg, Input::Tick);
    }

    pub(crate) fn step(&mut self, osd: OsdId, pg: PgId, input: Input) {
        let now = self.now;
        if !self.node(osd).running || self.node(osd).stopped.contains(&pg) {
            return;
        }
        if self.node(osd).paused_until > now {
            // It has stopped in the middle of what an earlier step of this same moment had to do: first that, then this.
            self.node(osd).unperformed.push_back((pg, Undone::Step(Box::new(input))));
            return self.schedule(Duration::ZERO, Event::Perform { osd });
        }
        if self.config.trace {
            match &input {
                Input::Map { map, members } => self.trace(&format!("{osd} {pg} <- map {} {members:?}", map.epoch)),
                input => self.trace(&format!("{osd} {pg} <- {input:?}")),
            }
        }
        let waited = self.node(osd).waits_for_lease(pg);
        let lacked = self.lacked(osd, pg);
        let outbox = self.node(osd).step_pg(now, pg, input);
        let waits = !waited && self.node(osd).waits_for_lease(pg);
        self.counts.add(FaultKind::LeaseWaitedOut, u64::from(waits));
        self.judge_answers(osd, pg, &lacked, &outbox);
        self.perform(osd, pg, outbox);
    }

    // ---- outputs ----

    pub(crate) fn perform(&mut self, osd: OsdId, pg: PgId, outbox: Outbox) {
        let run = self.node(osd).incarnation;
        let now = self.now;
        if self.node(osd).paused_until > now {
            self.node(osd).unperformed.push_back((pg, Undone::Outputs(outbox)));
            return self.schedule(Duration::ZERO, Event::Perform { osd });
        }
        let mut outbox = outbox.into_iter();
        while let Some(output) = outbox.next() {
            if !self.is_run(osd, run) || self.node(osd).stopped.contains(&pg) {
                return;
            }
            if self.stops_before(osd, &output) {
                let rest = std::iter::once(output).chain(outbox).collect();
                self.node(osd).unperformed.push_front((pg, Undone::Outputs(rest)));
                return self.schedule(Duration::ZERO, Event::Perform { osd });
            }
            if self.config.trace {
                self.trace(&format!("{osd} {pg} -> {output:?}"));
            }
            match output {
                Output::Submit { txn, ops } => {
                    let changes = self.changes(osd, pg, &ops);
                    match self.node(osd).disk.submit(run, pg, txn, ops) {
                        Ok(()) => {
                            self.changed(osd, changes);
                            self.schedule_commit(osd);
                        }
                        Err(error) => {
                            self.node(osd).stopped.insert(pg);
                            self.not_taken(osd, &error);
                        }
                    }
                }
                Output::Split { txn, mut ops, mut children } => {
                    leave_known(self.node(osd).disk.engine(), &mut ops, &mut children);
                    let changes = self.changes(osd, pg, &ops);
                    match self.node(osd).disk.submit(run, pg, txn, ops) {
                        Ok(()) => {
                            self.changed(osd, changes);
                            self.schedule_commit(osd);
                            self.counts.add(FaultKind::CopySplit, 1);
                            for child in children {
                                let child_id = child.id();
                                self.node(osd).pgs.insert(child_id, child);
                                self.step(osd, child_id, Input::Tick);
                            }
                        }
                        Err(error) => {
                            self.node(osd).stopped.insert(pg);
                            self.not_taken(osd, &error);
                        }
                    }
                }
                Output::Send { to, message } => self.send(osd, to, &message),
                Output::Reply { reply_to, reply, valid_until } => {
                    self.reply_leaves(osd, pg, reply_to, reply, valid_until);
                }
                Output::AskUpThru { at_least } => {
                    self.tell_monitors(osd, MonCommand::UpThru { osd, incarnation: run, at_least });
                }
                Output::AskPgTemp { want } => {
                    let seen = self.node(osd).pgs.get(&pg).map(|core| core.acting().to_vec());
                    let wishes = vec![PgTempWish { pg, acting: want, seen }];
                    self.tell_monitors(osd, MonCommand::PgTemp { osd, incarnation: run, wishes });
                }
                Output::NeedMap { .. } => {
                    let after = self.delay();
                    self.schedule(after, Event::MapArrives { osd });
                }
                Output::Wake { at } => {
                    self.node(osd).wakes.insert(pg, at);
                    let after = self.node(osd).until(at).since(self.now);
                    self.schedule(after, Event::Wake { osd, run, pg, at });
                }
                Output::Reserve(slot) => {
                    if self.node(osd).slots.reserve(slot, pg) {
                        self.schedule(Duration::ZERO, Event::Reserved { osd, run, pg, slot });
                    }
                }
                Output::Release(slot) => self.release(osd, pg, slot),
                Output::CopyDamaged => {
                    self.counts.add(FaultKind::CopyDamaged, 1);
                    self.node(osd).copies_damaged += 1;
                }
                Output::CopyRepaired => {
                    self.node(osd).copies_repaired += 1;
                    self.report_soon(osd);
                }
                Output::ReportChanged => self.report_soon(osd),
                Output::Gone => {
                    self.node(osd).pgs.remove(&pg);
                    self.node(osd).wakes.remove(&pg);
                    self.release(osd, pg, Slot::Incoming);
                    self.release(osd, pg, Slot::Outgoing);
                    self.release(osd, pg, Slot::ScrubIncoming);
                    self.release(osd, pg, Slot::ScrubOutgoing);
                    // The map may have brought it back while it was being removed.
                    if self.node(osd).is_member(pg) {
                        self.create(osd, pg);
                    }
                }
            }
        }
    }

    pub(crate) fn tell_monitors(&mut self, osd: OsdId, command: MonCommand) {
        let after = self.delay();
        self.schedule(after, Event::Command { osd, command: Box::new(command) });
    }

    fn send(&mut self, from: OsdId, to: OsdId, message: &PeerMessage) {
        if !self.reaches(from, to) || to.0 as usize >= self.nodes.len() {
            return;
        }
        self.messages += 1;
        if self.messages.is_multiple_of(CODEC_EVERY) {
            let encoded = holdfast_wire::encode(message);
            let payload = encoded.payload.concat().into();
            match holdfast_wire::decode::<PeerMessage>(Kind::Peer as u16, &encoded.body, &payload) {
                Ok(decoded) if decoded == *message => {}
                other => self.violation = Some(format!("F0: {message:?} is decoded as {other:?}")),
            }
        }
        let (run, from_run) = (self.node(to).incarnation, self.node(from).incarnation);
        let (arrivals, mut late) = (self.arrivals(), None);
        if self.faults.replays > 0.0 && self.rng.random_bool(self.faults.replays) {
            // What is said while placement groups peer does most harm when they peer anew.
            if is_of_peering(&message.body) || self.rng.random_bool(0.5) {
                let message = Box::new(message.clone());
                if self.kept.len() >= KEPT_MAX {
                    self.kept.pop_front();
                }
                self.kept.push_back((self.now, Event::Peer { to, run, from, from_run, message, again: true }));
            } else {
                let most = u64::try_from(REPLAY_MAX.as_millis()).unwrap_or(u64::MAX);
                late = Some(Duration::from_millis(self.rng.random_range(100..most)));
            }
        }
        for (after, again) in arrivals.into_iter().map(|after| (after, false)).chain(late.map(|after| (after, true))) {
            let message = Box::new(message.clone());
            self.schedule(after, Event::Peer { to, run, from, from_run, message, again });
        }
    }

    /// Whether a message is of another interval than its receiver is in, or of a run that is over.
    pub(crate) fn is_stale(&mut self, to: OsdId, from: OsdId, from_run: Incarnation, message: &PeerMessage) -> bool {
        let epoch = self.node(to).epoch();
        let begun = self.beginning(to, message.pg, epoch);
        self.node(from).incarnation != from_run || begun.is_some_and(|begun| message.interval_start < begun)
    }

    /// A map has reached an OSD: some of what was kept of messages to it arrives now, when placement groups peer anew, and some
    /// of that arrives once more later.
    fn replay_kept(&mut self, osd: OsdId) {
        let (now, kept) = (self.now, std::mem::take(&mut self.kept));
        for (since, event) in kept.into_iter().filter(|(since, _)| now.since(*since) < REPLAY_MAX) {
            let Event::Peer { to, run, from, from_run, message, again } = event else { continue };
            let arrives = to == osd && self.rng.random_bool(REPLAYED);
            if arrives {
                // Half of it before there can be a true answer to what is asked in the new interval.
                let latest = if self.rng.random_bool(0.5) { 2_000 } else { 60_000 };
                let after = Duration::from_micros(self.rng.random_range(100..latest));
                self.schedule(after, Event::Peer { to, run, from, from_run, message: message.clone(), again });
            }
            if !arrives || self.rng.random_bool(REPLAYED) {
                self.kept.push_back((since, Event::Peer { to, run, from, from_run, message, again }));
            }
        }
    }

    // ---- slots ----

    pub(crate) fn reserved(&mut self, osd: OsdId, pg: PgId, slot: Slot) {
        if self.node(osd).pgs.contains_key(&pg) {
            self.step(osd, pg, Input::Reserved(slot));
        } else {
            self.release(osd, pg, slot);
        }
    }

    fn release(&mut self, osd: OsdId, pg: PgId, slot: Slot) {
        let run = self.node(osd).incarnation;
        if let Some(next) = self.node(osd).slots.release(slot, pg) {
            self.schedule(Duration::ZERO, Event::Reserved { osd, run, pg: next, slot });
        }
    }

    // ---- disk ----

    pub(crate) fn schedule_commit(&mut self, osd: OsdId) {
        let generation = self.node(osd).generation;
        if self.syncing.insert(osd) {
            let after = self.sync_time();
            self.schedule(after, Event::Commit { osd, generation });
        }
    }

    /// Most syncs are quick; some are so slow that much is lost when the power fails.
    fn sync_time(&mut self) -> Duration {
        let slow = self.working && self.rng.random_bool(self.config.faults.slow_sync);
        self.counts.add(FaultKind::SyncSlow, u64::from(slow));
        let max = if slow { 400_000 } else { 4_000 };
        Duration::from_micros(self.rng.random_range(100..max))
    }

    pub(crate) fn commit(&mut self, osd: OsdId, generation: u64) {
        if self.node(osd).generation != generation {
            return;
        }
        let stuck = self.node(osd).stuck_until.since(self.now);
        if !stuck.is_zero() {
            self.counts.add(FaultKind::DiskStuck, 1);
            return self.schedule(stuck, Event::Commit { osd, generation });
        }
        self.syncing.remove(&osd);
        let run = self.node(osd).incarnation;
        self.lie(osd);
        let durable = match self.node(osd).disk.commit(run) {
            Ok(durable) => durable,
            Err(error) => return self.violation = Some(format!("N2: {osd} cannot commit: {error}")),
        };
        self.note_durable(osd);
        if self.node(osd).disk.wants_maintenance() {
            let after = self.sync_time();
            self.schedule(after, Event::Maintain { osd, generation });
        }
        for (pg, txn) in durable {
            if self.is_run(osd, run) {
                self.step(osd, pg, Input::Durable(txn));
            }
        }
    }

    pub(crate) fn maintain(&mut self, osd: OsdId, generation: u64) {
        if self.node(osd).generation != generation {
            return;
        }
        self.lie(osd);
        match self.node(osd).disk.maintain() {
            Ok(freed) => self.cleaned += freed,
            Err(error) => self.violation = Some(format!("N2: {osd} cannot maintain its store: {error}")),
        }
        if self.node(osd).disk.has_waiting() {
            self.schedule_commit(osd);
        }
    }

    /// The store refused what was let in. Where that is no error of the store, the run ends and the next one peers anew.
    fn not_taken(&mut self, osd: OsdId, error: &SubmitError) {
        let run = self.node(osd).incarnation;
        if matches!(error, SubmitError::CorruptObject { .. } | SubmitError::NoSpace { .. }) {
            self.counts.add(FaultKind::StoreRefused, 1);
            self.schedule(Duration::ZERO, Event::EndRun { osd, run });
        } else {
            self.violation = Some(format!("N2: the store of {osd} refused a transaction: {error}"));
        }
    }

    // ---- maps ----

    pub(crate) fn map_arrives(&mut self, osd: OsdId) {
        if !self.node(osd).running || !self.hears_monitors(osd) || self.monitors_are_gone() {
            return; // they come with the monitors, or with the connection
        }
        let late = self.node(osd).lags_until.since(self.now);
        if !late.is_zero() {
            self.schedule(late, Event::MapArrives { osd });
            return;
        }
        let run = self.node(osd).incarnation;
        while self.is_run(osd, run) {
            let (nodes, monitor) = (&mut self.nodes, &self.monitor);
            let before = nodes[osd.0 as usize].epoch();
            let Some(step) = nodes[osd.0 as usize].next_map(monitor) else { break };
            if before > Epoch::ZERO {
                self.counts.add(FaultKind::MapSkipped, step.map.epoch.0 - before.next().0);
            }
            self.feed(osd, &step, true);
            if !self.is_run(osd, run) {
                return;
            }
            let node = self.node(osd);
            node.standing = node.standing.by(&step.map, osd, run);
            if node.standing == Standing::Over {
                // Marked down while it runs: it joins as a new run, over the same open store.
                self.stop(osd);
                self.schedule(Duration::ZERO, Event::Restart { osd });
            }
        }
    }

    /// One map, to everything on the node.
    fn feed(&mut self, osd: OsdId, step: &Arc<MapStep>, keep: bool) {
        if keep {
            if let Err(error) = self.node(osd).disk.keep_map(&step.map) {
                self.not_taken(osd, &error);
            }
            self.schedule_commit(osd);
            self.replay_kept(osd);
        }
        let node = self.node(osd);
        node.step = step.clone();
        let epoch = step.map.epoch;
        let behind: Vec<PgId> = node.pgs.iter().filter(|(_, core)| core.epoch() < epoch).map(|(pg, _)| *pg).collect();
        for pg in behind {
            self.step(osd, pg, Input::Map { map: step.map.clone(), members: step.members_of(pg) });
        }
        for pg in self.node(osd).missing_pgs() {
            self.create(osd, pg);
        }
        for (client, request) in std::mem::take(&mut self.node(osd).waiting) {
            self.request(osd, client, request);
        }
        for (from, run, message) in std::mem::take(&mut self.node(osd).early) {
            self.peer(osd, from, run, message);
        }
    }

    // ---- runs ----

    pub(crate) fn stop(&mut self, osd: OsdId) {
        let node = self.node(osd);
        node.running = false;
        node.standing = Standing::Unseen;
        node.unperformed.clear();
    }

    pub(crate) fn end_run(&mut self, osd: OsdId, run: Incarnation) {
        if self.is_run(osd, run) {
            self.tell_monitors(osd, MonCommand::OsdStopping { osd, incarnation: run });
            self.stop(osd);
            self.schedule(RETRY, Event::Restart { osd });
        }
    }

    pub(crate) fn restart(&mut self, osd: OsdId) {
        if self.node(osd).running || self.gone.contains(&osd) {
            return;
        }
        if !self.is_connected_to_monitors(osd) || self.monitors_are_gone() {
            // Without the monitors' maps no copy can be taken up.
            self.schedule(BOOT_REPEAT, Event::Restart { osd });
            return;
        }
        if let Err(violation) = self.start(osd) {
            self.violation = Some(violation);
        }
    }

    fn start(&mut self, osd: OsdId) -> Result<(), String> {
        if std::mem::take(&mut self.node(osd).disk_failed) {
            self.counts.add(FaultKind::DiskGivenUp, 1);
            self.node(osd).give_up_disk()?;
        }
        let was_open = self.node(osd).disk.is_open();
        match self.node(osd).disk.open() {
            Ok(lost) => {
                self.counts.add(FaultKind::TransactionLost, lost);
                if !was_open {
                    self.note_found(osd);
                }
            }
            Err(error) if error.copy_is_lost() && self.node(osd).disk.flips > 0 => {
                self.counts.add(FaultKind::DiskGivenUp, 1);
                self.node(osd).give_up_disk()?;
            }
            Err(error) => return Err(format!("N1: {osd} cannot open its store: {error}")),
        }
        let run = Incarnation(self.node(osd).incarnation.0 + 1);
        let now = self.now;
        let (nodes, monitor) = (&mut self.nodes, &self.monitor);
        let Some(node) = nodes.get_mut(osd.0 as usize) else { return Ok(()) };
        let (steps, kept) = node.begin(run, monitor, now)?;
        for step in steps {
            if self.is_run(osd, run) {
                self.feed(osd, &step, step.map.epoch > kept);
            }
        }
        let after = self.delay();
        self.schedule(after, Event::Boot { osd, run });
        self.begin_watching(osd, run);
        self.note(format!("{osd} starts as {run}"));
        Ok(())
    }

    pub(crate) fn boot(&mut self, osd: OsdId, run: Incarnation) {
        let shown = self.node(osd).step.map.osds.get(&osd).is_some_and(|info| info.incarnation == run);
        if self.is_run(osd, run) && !shown {
            self.schedule(BOOT_REPEAT, Event::Boot { osd, run });
            if self.monitors_hear_it(osd) {
                self.monitors_hear(Monitor::boot(osd, run));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_run_that_came_up_and_went_down_unseen_joins_as_a_new_one() {
        let mut world = World::new(1, Config::calm()).expect("a world");
        for osd in (0..world.config.osds).map(OsdId) {
            world.schedule(Duration::ZERO, Event::Restart { osd });
        }
        let run_for = |world: &mut World, time: Duration| world.run_until(world.now + time).expect("no violation");
        run_for(&mut world, Duration::from_secs(2));
        let victim = OsdId(1);
        let first = world.node(victim).incarnation;
        world.end_run(victim, first);
        // The next run boots, and takes no map.
        world.node(victim).lags_until = world.now + Duration::from_secs(4);
        run_for(&mut world, Duration::from_secs(2));
        let unseen = world.node(victim).incarnation;
        let shown = |world: &World| world.monitor.map().osds.get(&victim).map(|info| (info.up, info.incarnation));
        assert_eq!(shown(&world), Some((true, unseen)), "it is up");
        assert!(!world.node(victim).is_up(), "and has not seen it");
        // The first map that it takes is one in which it is down.
        world.node(victim).skips = true;
        world.command(MonCommand::OsdDown(victim));
        assert_eq!(shown(&world), Some((false, unseen)));
        run_for(&mut world, Duration::from_secs(4));
        let next = world.node(victim).incarnation;
        assert!(next > unseen && world.node(victim).is_up(), "{next} after {unseen}");
        assert_eq!(shown(&world), Some((true, next)));
    }
}
