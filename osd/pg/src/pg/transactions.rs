//! Transactions on their way to the disk, and what waits for them.

use holdfast_types::LogVersion;
use holdfast_wire::RefusedReason;

use super::{AfterDurable, PendingTxn, Pg, Role, Step};
use crate::api::{Output, Slot, StoreOp, TxnId};

impl Pg {
    pub(crate) fn submit(&mut self, ops: Vec<StoreOp>, then: Option<AfterDurable>, step: &mut Step<'_>) {
        for op in &ops {
            if let StoreOp::Object { key, .. } = op
                && step.touched.last() != Some(key)
            {
                step.touched.push(key.clone());
            }
        }
        let txn = TxnId(self.next_txn);
        self.next_txn += 1;
        self.push_pending(txn);
        then.into_iter().for_each(|then| self.when_last_is_durable(then));
        step.submitted = true;
        step.out.push(Output::Submit { txn, ops });
    }

    /// Waits for a transaction to be durable.
    pub(crate) fn push_pending(&mut self, txn: TxnId) {
        self.pending.push_back(PendingTxn { txn, interval: self.interval_number, then: Vec::new() });
    }

    /// Has `then` done when the transaction that was just submitted is durable.
    pub(crate) fn when_last_is_durable(&mut self, then: AfterDurable) {
        if let Some(last) = self.pending.back_mut() {
            last.then.push(then);
        }
    }

    pub(super) fn on_durable(&mut self, txn: TxnId, step: &mut Step<'_>) {
        while self.pending.front().is_some_and(|front| front.txn <= txn) {
            let Some(front) = self.pending.pop_front() else { break };
            for then in front.then {
                match then {
                    AfterDurable::Gone => {
                        // Nobody will hear of a newer map here: what waits for one is answered, too.
                        self.clients.refuse_all(RefusedReason::WrongPrimary, self.map.epoch, step.out);
                        self.clients.refuse_early(RefusedReason::WrongPrimary, self.map.epoch, step.out);
                        step.out.push(Output::Gone);
                    }
                    AfterDurable::Repaired => step.out.push(Output::CopyRepaired),
                    _ if front.interval != self.interval_number => {}
                    AfterDurable::Send(to, activation, body) => self.send_in(activation, [to], *body, step),
                    AfterDurable::Activated(head) => self.activation_durable(head),
                    AfterDurable::Logged(version) => self.on_logged(version, step),
                    AfterDurable::OwnActivation => self.own_activation_durable(step),
                    AfterDurable::Fetched(key) => self.fetched_durably(&key, step),
                }
            }
        }
    }

    pub(super) fn on_logged(&mut self, version: LogVersion, step: &mut Step<'_>) {
        match &self.role {
            Role::Follower(_) => self.follower_logged(version, step),
            Role::Active(_) => self.active_logged(version, step),
            Role::Peering(_) | Role::Removing | Role::Stopped => {}
        }
    }

    pub(super) fn on_reserved(&mut self, slot: Slot, step: &mut Step<'_>) {
        match (&mut self.role, slot) {
            (Role::Active(_), Slot::Outgoing) => self.outgoing_reserved(step),
            (Role::Follower(_), Slot::Incoming) => self.incoming_reserved(step),
            (Role::Active(_), Slot::ScrubOutgoing) => self.scrub_outgoing_reserved(),
            (Role::Follower(_), Slot::ScrubIncoming) => self.scrub_incoming_reserved(step),
            // The wish has been taken back meanwhile; so has the slot.
            _ => {}
        }
    }

    pub(super) fn on_reserve_refused(&mut self, slot: Slot, step: &mut Step<'_>) {
        match (&mut self.role, slot) {
            (Role::Active(_), Slot::Outgoing) => self.outgoing_refused(step),
            (Role::Follower(_), Slot::Incoming) => self.incoming_refused(step),
            (Role::Active(_), Slot::ScrubOutgoing) => self.scrub_outgoing_refused(step),
            (Role::Follower(_), Slot::ScrubIncoming) => self.scrub_incoming_refused(),
            _ => {}
        }
    }
}
