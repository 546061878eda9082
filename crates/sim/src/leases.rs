//! Read leases: the tables are production code (`holdfast_osd::parts::Leases`), heartbeats carry them (`watch`). Here are the
//! extra heartbeats, the answers that leave under a lease, and the strict check of them.
//!
//! The check is stricter than linearizability asks: when an answer leaves that shows an object, no newer version of the
//! object may have been acknowledged anywhere, however long ago the question was asked.

use std::time::Duration;

use holdfast_osd::parts::EARLY_HEARTBEAT;
use holdfast_pg::{Output, ReplyTo};
use holdfast_types::{Incarnation, LogVersion, OsdId, PgId, Timestamp};
use holdfast_wire::{ClientOutcome, ClientReply, OpError, RefusedReason};
use rand::Rng;

use crate::client::Act;
use crate::faults::FaultKind;
use crate::world::{Event, World};

/// Time between two power cuts at an acknowledgement: whoever stays away is back by then.
const ACKNOWLEDGEMENT_CUT_GAP: Duration = Duration::from_secs(12);

/// The newest change of an object that anybody has acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub version: LogVersion,
    pub by: OsdId,
    removed: bool,
}

impl World {
    /// Heartbeats to those of whom no lease is held.
    pub(crate) fn early_tick(&mut self, osd: OsdId, run: Incarnation) {
        if !self.is_run(osd, run) {
            return;
        }
        self.schedule(EARLY_HEARTBEAT, Event::EarlyTick { osd, run });
        let now = self.now;
        let node = self.node(osd);
        let (local, peers) = (node.clock(now), node.up_peers());
        for to in node.early_beats.due(local, &peers, &node.leases) {
            if let Some(to_run) = peers.get(&to) {
                self.ask(osd, to, *to_run);
            }
        }
    }

    /// Whether the process is stopped just now, before this answer leaves, and what follows it waits, too.
    pub(crate) fn stops_before(&mut self, osd: OsdId, output: &Output) -> bool {
        let judged = matches!(output, Output::Reply { valid_until: Some(_), .. });
        if !judged || !std::mem::take(&mut self.node(osd).pauses_at_answer) {
            return false;
        }
        if !self.deals(format!("{osd} is paused before an answer")) {
            return false;
        }
        self.counts.add(FaultKind::PausedAnswering, 1);
        self.pause_now(osd);
        true
    }

    /// What the daemon does with an answer: it is judged just before it leaves.
    pub(crate) fn reply_leaves(
        &mut self,
        osd: OsdId,
        pg: PgId,
        reply_to: ReplyTo,
        mut reply: ClientReply,
        valid_until: Option<Timestamp>,
    ) {
        let now = self.now;
        let local = self.node(osd).clock(now);
        if valid_until.is_some_and(|until| local >= until) {
            self.counts.add(FaultKind::AnswerTooLate, 1);
            reply.outcome = ClientOutcome::Refused(RefusedReason::Busy);
        }
        let client = usize::try_from(reply_to.0).unwrap_or(usize::MAX);
        self.note_told(client, &reply);
        if let Some(violation) = self.strictly_stale(osd, client, &reply) {
            self.violation = Some(format!("H2: {osd} {pg}: {violation}"));
        }
        if let Some(violation) = self.untold(osd, pg, client, &reply) {
            let violation = format!("P2: {osd} {pg}: {violation}");
            if !self.is_off(&violation) {
                self.violation = Some(violation);
            }
        }
        self.cut_at_acknowledgement(osd, client, &reply);
        self.rift_sees_reply(osd, pg, client, &reply);
        if self.serves(osd) {
            for after in self.arrivals() {
                self.schedule(after, Event::Reply { client, reply: Box::new(reply.clone()) });
            }
        }
    }

    /// Notes what an answer acknowledges; says so when it shows what was replaced.
    fn strictly_stale(&mut self, osd: OsdId, client: usize, reply: &ClientReply) -> Option<String> {
        let (object, act) = self.clients.get(client)?.asked(reply.id.tid, &self.history)?;
        let version = match &reply.outcome {
            ClientOutcome::Done { version, .. } => version,
            ClientOutcome::Failed { error: OpError::NotFound, .. } if !act.changes() => {
                let newest = self.acknowledged.get(&object).filter(|newest| !newest.removed)?;
                // A removal whose answer has not come yet, or that is forgotten, may have been executed after that.
                let removing = self.clients.iter().any(|client| client.may_have_removed(&object, &self.history));
                let text = || {
                    let Acknowledged { version, by, .. } = newest;
                    format!("{} does not find {object}; {by} has acknowledged {version}", reply.id)
                };
                return (!removing).then(text);
            }
            ClientOutcome::Failed { .. } | ClientOutcome::Refused(_) => return None,
        };
        match act {
            Act::Write { .. } | Act::Remove | Act::Increment | Act::Append => {
                let said = Acknowledged { version: *version, by: osd, removed: act == Act::Remove };
                let newest = self.acknowledged.entry(object).or_insert(said);
                if newest.version < said.version {
                    *newest = said;
                }
                None
            }
            Act::Read | Act::ReadCounter | Act::ReadList => {
                let newest = self.acknowledged.get(&object).filter(|newest| newest.version > *version)?;
                let Acknowledged { version: newer, by, .. } = newest;
                Some(format!("{} shows {object} at {version}; {by} has acknowledged {newer}", reply.id))
            }
        }
    }

    /// Now and then all machines lose power just when a write is acknowledged, and mostly who acknowledged it stays away:
    /// whatever of it others do not have durable is lost.
    fn cut_at_acknowledgement(&mut self, osd: OsdId, client: usize, reply: &ClientReply) {
        let cut = self.faults.cuts_after_ack;
        if cut == 0.0 || !self.working || self.now.since(self.last_cut) < ACKNOWLEDGEMENT_CUT_GAP {
            return;
        }
        let asked = self.clients.get(client).and_then(|client| client.asked(reply.id.tid, &self.history));
        let changes = asked.is_some_and(|(_, act)| act.changes());
        if !changes || !matches!(reply.outcome, ClientOutcome::Done { .. }) || !self.rng.random_bool(cut) {
            return;
        }
        self.last_cut = self.now;
        let after = Duration::from_micros(self.rng.random_range(0..2_000));
        let away = if self.rng.random_bool(0.8) { osd } else { OsdId(self.rng.random_range(0..self.config.osds)) };
        self.schedule(after, Event::CutAll { away, kind: FaultKind::AcknowledgementCut });
    }

    /// The process does nothing for a while, up to three times as long as its peers are patient.
    pub(crate) fn pause_now(&mut self, osd: OsdId) {
        let length = Duration::from_millis(self.rng.random_range(100..15_000));
        let until = self.now + length;
        self.node(osd).paused_until = until;
    }
}
