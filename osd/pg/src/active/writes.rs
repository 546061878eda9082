//! Writes on their way: logged here, sent to the members, committed when all have them.

use std::time::Duration;

use holdfast_types::{LogVersion, OsdId};
use holdfast_wire::ClientOutcome;
use holdfast_wire::peer::{EntryKind, LogEntry, PeerBody, RepOp, StoredResults};

use super::{Held, InFlight, Peer};
use crate::clients::Queued;
use crate::exec::Executed;
use crate::follower::entry_ops;
use crate::key::ObjectKey;
use crate::mutants::{Mutant, on};
use crate::pg::{AfterDurable, Pg, Role, Step, TICK};
use crate::rows;

/// A write that a peer has not acknowledged is sent again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// Writes sent again at a time; the rest follows when these are acknowledged.
const RESEND_WRITES_MAX: usize = 32;

impl Pg {
    pub(super) fn write(&mut self, key: &ObjectKey, queued: Queued, done: Executed, step: &mut Step<'_>) {
        let previous = self.holding.log.head();
        let version = LogVersion { epoch: self.map.epoch, counter: previous.counter + 1 };
        let request = &queued.request;
        let entry = LogEntry {
            version,
            prior_version: done.prior,
            object: request.object.clone(),
            kind: if done.exists { EntryKind::Modify } else { EntryKind::Delete },
            request: request.id,
            lowest_outstanding_tid: request.lowest_outstanding_tid,
            results: StoredResults::keep(&done.results),
            objects_delta: done.objects_delta,
            bytes_delta: done.bytes_delta,
        };
        let trim_to = self.trim_bound();
        self.forget_damage(key, &done.effects);
        self.scrub_saw_write(key, step.now);
        let mut ops = Vec::with_capacity(done.effects.len() + 4);
        let mut was_missing = entry.kind == EntryKind::Delete && self.holding.missing.remove(key).is_some();
        if was_missing {
            ops.push(rows::delete_missing(key)); // nothing of it is needed any more
        }
        entry_ops(key, &entry, &done.effects, &mut ops);
        self.holding.objects += entry.objects_delta;
        self.holding.bytes += entry.bytes_delta;
        self.holding.log.append(entry.clone());
        self.trim_log(trim_to, &mut ops);
        ops.push(rows::put_info(&self.holding.info()));

        let outcome = ClientOutcome::Done { version, results: done.results };
        let Some(active) = self.active() else { return };
        active.recount.follow(key, entry.objects_delta, entry.bytes_delta);
        if entry.kind == EntryKind::Delete {
            // What is gone need not be copied any more: a delete does not wait for a copy for which there is no room.
            active.recovery.cancel(key);
            for peer in active.peers.values_mut() {
                was_missing |= peer.missing.remove(key).is_some();
            }
            if was_missing {
                active.lack_deleted = version;
            }
            if let Some(backfill) = &mut active.backfill {
                backfill.saw_deletion(key);
            }
        }
        let committed_to = active.committed_to;
        active.uncommitted.insert(key.clone(), version);
        let (filled, unfilled): (Vec<_>, Vec<_>) =
            active.peers.iter().partition(|(osd, peer)| active.takes_effects(**osd, peer, key));
        let osds = |peers: Vec<(&OsdId, &Peer)>| peers.into_iter().map(|(osd, _)| *osd).collect::<Vec<OsdId>>();
        let (filled, unfilled) = (osds(filled), osds(unfilled));
        let rep_op = |entry, effects| PeerBody::RepOp(RepOp { previous, entry, effects, committed_to, trim_to });
        let without_effects = (!unfilled.is_empty()).then(|| rep_op(entry.clone(), None));
        let with_effects = (!filled.is_empty()).then(|| rep_op(entry, Some(done.effects.clone())));
        let own = Held { queued, outcome, logged: true };
        active.held += 1;
        active.held_bytes += own.bytes();
        active.in_flight.push_back(InFlight {
            version,
            previous,
            key: key.clone(),
            effects: done.effects,
            carried_out_by: filled.iter().copied().collect(),
            answers: vec![own],
            sent: step.now,
        });
        for (osds, body) in [(filled, with_effects), (unfilled, without_effects)] {
            if let Some(body) = body {
                self.send_each(osds, body, step);
            }
        }
        self.submit(ops, Some(AfterDurable::Logged(version)), step);
        self.tick_within(TICK, step);
    }

    /// Up to where the log may be trimmed now; the present tail when there is not enough to be worth it.
    pub(super) fn trim_bound(&self) -> LogVersion {
        let log = &self.holding.log;
        let Role::Active(active) = &self.role else { return log.tail() };
        let whole = self.holding.missing.is_empty() && active.all_copied();
        if on(Mutant::LogUntrimmed) {
            return log.tail();
        }
        let keep = if whole { self.limits.log_entries_min } else { self.limits.log_entries_max };
        if log.len() <= keep + self.limits.log_trim_batch && log.bytes() <= self.limits.log_bytes_max {
            return log.tail();
        }
        let Some(candidate) = log.trim_candidate(keep, self.limits.log_bytes_max) else { return log.tail() };
        // Entries of objects that are missing somewhere may go, too: every member has its missing set apart from its log,
        // and one object that cannot be made whole must not keep the log for ever.
        if on(Mutant::TrimPastMembers) { log.head() } else { candidate.min(active.committed_to).max(log.tail()) }
    }

    pub(crate) fn active_logged(&mut self, version: LogVersion, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        active.local_durable = active.local_durable.max(version);
        self.commit(step);
    }

    pub(super) fn acknowledged(&mut self, from: OsdId, version: LogVersion, step: &mut Step<'_>) {
        let head = self.holding.log.head();
        let Some(peer) = self.active().and_then(|active| active.peers.get_mut(&from)) else { return };
        if version > peer.acked && version <= head {
            peer.acked = version;
            self.commit(step);
        }
    }

    /// Answers what is now durable on all members.
    pub(super) fn commit(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let counted = active.peers.values().filter(|_| !on(Mutant::AckBeforeReplicas));
        let acked = counted.map(|peer| peer.acked).fold(active.local_durable, LogVersion::min);
        if acked <= active.committed_to {
            return;
        }
        assert!(acked <= active.local_durable, "W1: committed beyond what is durable here");
        active.committed_to = acked;
        let mut answers = Vec::new();
        let mut settled = Vec::new();
        while active.in_flight.front().is_some_and(|write| write.version <= acked) {
            let Some(write) = active.in_flight.pop_front() else { break };
            if active.uncommitted.get(&write.key) == Some(&write.version) {
                active.uncommitted.remove(&write.key);
                settled.push(write.key);
            }
            answers.extend(write.answers);
        }
        for held in &answers {
            active.held = active.held.saturating_sub(1);
            active.held_bytes = active.held_bytes.saturating_sub(held.bytes());
            active.unlogged.remove(&held.queued.request.id);
        }
        for held in answers {
            self.answer(held, step);
        }
        for key in settled {
            self.clients.wake(&key);
        }
    }

    pub(super) fn resend_writes(&mut self, step: &mut Step<'_>) {
        let Role::Active(active) = &mut self.role else { return };
        let Some(front) = active.in_flight.front_mut().filter(|write| step.now.since(write.sent) >= RESEND) else {
            return;
        };
        front.sent = step.now;
        let mut messages = Vec::new();
        for (osd, peer) in &active.peers {
            let late = active.in_flight.iter().filter(|write| write.version > peer.acked);
            for write in late.take(RESEND_WRITES_MAX) {
                let Some(entry) = self.holding.log.entry(write.version) else { continue };
                let effects = write.carried_out_by.contains(osd).then(|| write.effects.clone());
                let rep_op = RepOp {
                    previous: write.previous,
                    entry: entry.clone(),
                    effects,
                    committed_to: active.committed_to,
                    trim_to: self.holding.log.tail(),
                };
                messages.push((*osd, rep_op));
            }
        }
        for (osd, rep_op) in messages {
            self.send(osd, PeerBody::RepOp(rep_op), step);
        }
    }
}
