//! P2 from outside: a write is acknowledged only in an interval of which the maps say that there may be writes.
//!
//! Whoever serves later goes by the maps alone: an interval that ends before its primary has told the monitors that it goes
//! active (`up_thru`) is one without writes, and nobody waits for its members. What is acknowledged in such an interval is
//! lost when these fail together, which is too rare to wait for. So each acknowledgement is held against the maps when it
//! leaves: against the true beginning of the interval, not the one that the primary believes in.

use holdfast_osd::parts::MapStep;
use holdfast_types::{Epoch, Incarnation, OsdId, PgId};
use holdfast_wire::{ClientOutcome, ClientReply};

use crate::world::World;

/// What is the same in all maps of an interval.
#[derive(PartialEq, Eq)]
struct Members {
    up: Vec<(OsdId, Option<Incarnation>)>,
    acting: Vec<(OsdId, Option<Incarnation>)>,
    pool: Option<(u32, u32, u32)>,
}

impl Members {
    fn of(step: &MapStep, pg: PgId) -> Members {
        let members = step.members_of(pg);
        let run = |osd: &OsdId| (*osd, step.map.osds.get(osd).map(|info| info.incarnation));
        let pool = step.map.pools.get(&pg.pool).map(|pool| (pool.size(), pool.min_size(), pool.pg_num));
        Members { up: members.up.iter().map(run).collect(), acting: members.acting.iter().map(run).collect(), pool }
    }
}

impl World {
    /// Says so when a write is acknowledged in an interval of which the maps say that there are none.
    pub(crate) fn untold(&mut self, osd: OsdId, pg: PgId, client: usize, reply: &ClientReply) -> Option<String> {
        let ClientOutcome::Done { .. } = &reply.outcome else { return None };
        let (_, act) = self.clients.get(client)?.asked(reply.id.tid, &self.history)?;
        let epoch = Some(reply.epoch).filter(|_| act.changes())?; // when it was made, however late it leaves
        let first = self.beginning(osd, pg, epoch)?;
        let up_thru = self.monitor.step(epoch)?.map.osds.get(&osd)?.up_thru;
        (up_thru < first).then(|| {
            format!("{} is acknowledged in an interval that began at {first}; the map {epoch} tells of writes up to {up_thru}", reply.id)
        })
    }

    /// The first epoch of the interval that this one is in.
    pub(crate) fn beginning(&mut self, osd: OsdId, pg: PgId, epoch: Epoch) -> Option<Epoch> {
        let known = self.beginnings.get(&(osd, pg)).copied();
        let members = Members::of(self.monitor.step(epoch)?, pg);
        let mut first = epoch;
        while let Some(before) = first.0.checked_sub(1).map(Epoch) {
            if let Some((_, beginning)) = known.filter(|(seen, _)| *seen == first) {
                first = beginning;
                break;
            }
            if self.monitor.step(before).is_none_or(|step| Members::of(step, pg) != members) {
                break;
            }
            first = before;
        }
        self.beginnings.insert((osd, pg), (epoch, first));
        Some(first)
    }
}
