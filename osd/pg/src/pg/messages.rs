//! Messages between members: which are heard and when, and how they are sent.

use std::sync::Arc;

use holdfast_types::{Incarnation, OsdId};
use holdfast_wire::peer::{ObjectPiece, PeerBody, PeerMessage, Push, PushWhat, RepOp};
use holdfast_wire::{ClientOutcome, ClientReply};

use super::{AfterDurable, EPOCHS_AHEAD_MAX, PendingTxn, Pg, Role, Said, Step};
use crate::api::{Outbox, Output, ReplyTo};
use crate::exec::effects_bytes;
use crate::mutants::{Mutant, on};

/// Bytes of objects that a placement group keeps of messages that came too early, of one message at least: what waits for a
/// map or for an earlier write is no longer counted by the connection that brought it.
pub(crate) const EARLY_BYTES_MAX: usize = 4 << 20;

/// Bytes of objects and rows that a message brings.
pub(crate) fn data_bytes(body: &PeerBody) -> usize {
    let of_piece = |piece: &ObjectPiece| {
        let rows = piece.rows.iter().map(|row| row.key.len() + row.value.len());
        piece.data.len() + rows.sum::<usize>()
    };
    match body {
        PeerBody::RepOp(op) => write_bytes(op),
        PeerBody::Push(Push { what: PushWhat::Piece(piece), .. }) | PeerBody::PullReply(piece) => of_piece(piece),
        _ => 0,
    }
}

/// Bytes of objects and rows that a write brings.
pub(crate) fn write_bytes(op: &RepOp) -> usize {
    let (inline, payload) = op.effects.as_deref().map_or((0, 0), effects_bytes);
    inline + payload
}

impl Pg {
    pub(super) fn on_peer(&mut self, from: OsdId, incarnation: Incarnation, message: PeerMessage, step: &mut Step<'_>) {
        if message.pg != self.id {
            return;
        }
        if message.epoch.0 > self.map.epoch.0.saturating_add(EPOCHS_AHEAD_MAX) {
            tracing::warn!(pg = %self.id, %from, epoch = %message.epoch, "message of a map far ahead dropped");
            return;
        }
        if message.epoch > self.map.epoch {
            step.out.push(Output::NeedMap { at_least: message.epoch });
            let bytes = data_bytes(&message.body);
            let held: usize = self.early.iter().map(|(.., message)| data_bytes(&message.body)).sum();
            if bytes > 0 && held > 0 && held.saturating_add(bytes) > EARLY_BYTES_MAX {
                return; // its sender repeats it
            }
            if self.early.len() >= self.limits.early_messages_max {
                self.early.pop_front(); // as above
            }
            self.early.push_back((from, incarnation, message));
            return;
        }
        if self.is_current(from, incarnation, &message) {
            self.dispatch(from, message, step);
        }
    }

    /// F1 and F3: whether sender and receiver are in the same interval, and the sender in its present run.
    pub(super) fn is_current(&self, from: OsdId, incarnation: Incarnation, message: &PeerMessage) -> bool {
        let sender = self.map.osds.get(&from).is_some_and(|info| info.up && info.incarnation == incarnation);
        let in_interval = message.epoch >= self.interval.first || on(Mutant::StaleIntervalAccepted);
        let current = sender && in_interval && self.is_alive();
        if !current {
            tracing::debug!(pg = %self.id, epoch = %message.epoch, %from, "message of another interval or run dropped");
        }
        current
    }

    pub(super) fn deliver_early(&mut self, step: &mut Step<'_>) {
        for (from, incarnation, message) in std::mem::take(&mut self.early) {
            self.on_peer(from, incarnation, message, step);
        }
        for queued in self.clients.take_early(self.map.epoch) {
            self.on_client(queued, step);
        }
    }

    pub(super) fn deliver_inbox(&mut self, step: &mut Step<'_>) {
        while !step.submitted {
            let Some((from, message)) = self.inbox.pop_front() else { return };
            self.dispatch(from, message, step);
        }
    }

    /// Keeps a message until the store shows what this step does.
    pub(crate) fn defer(&mut self, from: OsdId, message: PeerMessage) {
        self.inbox.push_back((from, message));
    }

    pub(super) fn dispatch(&mut self, from: OsdId, message: PeerMessage, step: &mut Step<'_>) {
        let from_primary = self.members.primary() == Some(from);
        let reads_store = matches!(
            message.body,
            PeerBody::Pull(_)
                | PeerBody::BackfillScan(_)
                | PeerBody::BackfillDigest(_)
                | PeerBody::PushAck(_)
                | PeerBody::QueryLog { whole_after: Some(_), .. }
        );
        if reads_store && step.submitted {
            self.defer(from, message);
            return;
        }
        let said = Said { start: message.interval_start, activation: message.activation };
        match (message.body, &self.role) {
            (body, Role::Follower(_)) if from_primary => self.follow(from, body, said, step),
            (body, Role::Peering(_)) => self.peering_heard(from, body, said, step),
            (body, Role::Active(_)) => self.active_heard(from, body, said, step),
            (_, Role::Follower(_) | Role::Removing | Role::Stopped) => {}
        }
    }

    pub(crate) fn send(&self, to: OsdId, body: PeerBody, step: &mut Step<'_>) {
        self.send_each(std::iter::once(to), body, step);
    }

    /// Sends the same to several: encoded once.
    pub(crate) fn send_each(&self, to: impl IntoIterator<Item = OsdId>, body: PeerBody, step: &mut Step<'_>) {
        self.send_in(self.activation(), to, body, step);
    }

    pub(super) fn send_in(
        &self,
        activation: Option<u64>,
        to: impl IntoIterator<Item = OsdId>,
        body: PeerBody,
        step: &mut Step<'_>,
    ) {
        let (pg, epoch, interval_start) = (self.id, self.map.epoch, self.interval.first);
        let message = Arc::new(PeerMessage { pg, epoch, interval_start, body, activation });
        step.out.extend(to.into_iter().map(|to| Output::Send { to, message: message.clone() }));
    }

    /// The activation that this copy is in.
    pub(super) fn activation(&self) -> Option<u64> {
        match &self.role {
            Role::Peering(peering) if peering.is_activating() => Some(self.activations),
            Role::Active(_) => Some(self.activations),
            Role::Follower(follower) => follower.activation(),
            Role::Peering(_) | Role::Removing | Role::Stopped => None,
        }
    }

    /// Sends when all that was submitted so far is durable: nobody may act on what a crash can take back.
    pub(crate) fn send_when_durable(&mut self, to: OsdId, body: PeerBody, step: &mut Step<'_>) {
        let interval = self.interval_number;
        let activation = self.activation();
        match self.pending.back_mut().filter(|_| !on(Mutant::AckActivationBeforeDurable)) {
            Some(last) if last.interval == interval => {
                last.then.push(AfterDurable::Send(to, activation, Box::new(body)));
            }
            Some(last) => {
                // The last transaction belongs to an older interval; what hangs on it must be of this one.
                let txn = last.txn;
                let then = vec![AfterDurable::Send(to, activation, Box::new(body))];
                self.pending.push_back(PendingTxn { txn, interval, then });
            }
            None => self.send(to, body, step),
        }
    }

    pub(crate) fn reply(
        &self,
        reply_to: ReplyTo,
        id: holdfast_types::RequestId,
        outcome: ClientOutcome,
        out: &mut Outbox,
    ) {
        let reply = ClientReply { id, epoch: self.map.epoch, outcome };
        out.push(Output::Reply { reply_to, reply, valid_until: None });
    }
}
