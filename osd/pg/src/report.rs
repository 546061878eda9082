//! What the primary tells the monitors, and what must always hold.

use std::collections::BTreeSet;

use holdfast_types::{Epoch, OsdId};
use holdfast_wire::mon::{PgReport, PgState};

use crate::peering::Phase;
use crate::pg::{Pg, Role};

/// A clean placement group needs no maps older than this many epochs: members store their history at least every 64.
const MAPS_KEPT: u64 = 128;

/// Unfound objects that are named.
const EXAMPLES_MAX: usize = 5;

impl Pg {
    /// The state of the placement group as seen here. Only the primary's report counts.
    #[must_use]
    pub fn report(&self) -> PgReport {
        let size = self.interval.size as usize;
        let mut state = PgState {
            undersized: self.members.acting.len() < size,
            remapped: self.members.up != self.members.acting,
            ..PgState::default()
        };
        let objects = u64::try_from(self.holding.objects).unwrap_or(0);
        let mut blocked_by: Vec<OsdId> = Vec::new();
        let mut copies_missing = objects * size.saturating_sub(self.members.acting.len()) as u64;
        let (mut objects_unfound, mut unfound) = (0, Vec::new());
        match &self.role {
            Role::Peering(peering) => {
                state.peering = true;
                match peering.phase() {
                    Phase::Down { blocked_by: osds, ungivable } => {
                        state.down = true;
                        blocked_by.extend(osds);
                        unfound.extend(ungivable.iter().map(ToString::to_string));
                    }
                    Phase::Incomplete => state.incomplete = true,
                    Phase::GetLog { from } => blocked_by.push(*from),
                    Phase::GetMissing { waiting } | Phase::Activating { waiting, .. } => blocked_by.extend(waiting),
                    Phase::GetInfo | Phase::WaitActing { .. } | Phase::WaitUpThru | Phase::WaitLease { .. } => {}
                }
            }
            Role::Active(active) => {
                state.active = active.writeable;
                state.clean = active.clean;
                state.backfilling = active.backfill.is_some();
                state.recovering = !state.backfilling && active.recovery.is_transferring();
                objects_unfound = active.recovery.unfound().count() as u64;
                if objects_unfound > 0 {
                    blocked_by.extend(self.absent().collect::<BTreeSet<OsdId>>());
                }
                let keys = active.recovery.unfound().take(EXAMPLES_MAX);
                unfound.extend(keys.map(|key| key.name().as_bytes().escape_ascii().to_string()));
                copies_missing += self.holding.missing.len() as u64;
                copies_missing += active.peers.values().map(|peer| peer.missing.len() as u64).sum::<u64>();
            }
            Role::Follower(_) | Role::Removing | Role::Stopped => {}
        }
        state.inconsistent = self.scrub.record.inconsistent_count() > 0;
        state.degraded = copies_missing > 0 || (state.undersized && objects > 0);
        let settled = if state.clean { Epoch(self.map.epoch.0.saturating_sub(MAPS_KEPT)) } else { Epoch::ZERO };
        PgReport {
            pg: self.id,
            epoch: self.map.epoch,
            interval_start: self.interval.first,
            state,
            up: self.members.up.clone(),
            acting: self.members.acting.clone(),
            objects,
            bytes: u64::try_from(self.holding.bytes).unwrap_or(0),
            copies_missing,
            objects_unfound,
            last_update: self.holding.log.head(),
            last_epoch_clean: self.history.last_epoch_clean.max(settled),
            blocked_by,
            scrub: self.scrub.report(),
            unfound,
        }
    }

    /// How many entries the log has, and how many older ones are remembered for their answers.
    #[must_use]
    pub fn log_sizes(&self) -> (usize, usize) {
        (self.holding.log.len(), self.holding.log.dups().count())
    }

    /// What must hold after every step; cheap enough for production (docs/invariants.md).
    pub(crate) fn check_invariants(&self) {
        self.holding.log.check();
        if let Role::Active(active) = &self.role {
            assert!(active.committed_to <= self.holding.log.head(), "W2: committed beyond the log");
            assert!(self.is_primary(), "P0: only the primary is active");
            assert!(
                !active.writeable || self.interval.has_enough_acting(),
                "P2: active for writes with too few members"
            );
            assert!(
                !active.clean || (self.holding.missing.is_empty() && self.holding.last_backfill.is_complete()),
                "S1: clean although something is missing"
            );
        }
    }
}
