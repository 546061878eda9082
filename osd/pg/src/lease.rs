//! Read leases: a primary that was replaced without knowing it shows nobody what is old.
//!
//! Leases are given between OSDs, not placement groups: each heartbeat that an OSD answers is a lease for the asker, for
//! all placement groups that it leads and in which the answerer is an acting member. So they cost no message of their own,
//! and need no monitor.
//!
//! | who | does what |
//! |---|---|
//! | grantor | notes `granted[asker] = now + LEASE_GRANTED` *before* any of its shards looks at the heartbeat; then each shard adds its epoch to the answer: it names the newest |
//! | asker | notes `held[grantor] = (time of asking + LEASE, epoch of the answer)` |
//! | primary | answers what shows an object while for each other acting member's present run it holds a lease that names no newer epoch than its own map, and that has not ended when the answer leaves |
//! | | executes a write only while it holds them, too: what it wrote after its replacement would be taken back, and the bytes before it with that |
//! | any copy | when its primary is replaced, keeps what that one's lease still has |
//! | new primary | hears of it with each notice, and lets nobody write before the leases of all primaries before it have ended |
//!
//! A former primary is not waited for when the map says that its process has ended (`dead_epoch`, a newer run), or when it
//! has answered in the present interval: it follows then. So nobody waits after a crash or a stop of a process, and after
//! silence only for what the lease still has: [`LEASE`] is shorter than the silence after which an OSD is reported.
//!
//! **Why that is safe.** An answer that names epoch `e` says that no shard of the grantor was beyond `e` when it passed. If
//! a placement group's copy there is in a newer interval, then either that was so before the heartbeat came by, `e` is
//! newer than the old primary's map, and the lease is of no use to it; or it came to be so afterwards, and what the copy
//! kept of the old primary's lease includes this one. An OSD that has just started does not know what it granted before:
//! for [`LEASE_GRANTED`] after its start it says so, and counts for all primaries of intervals in which it was a member.
//!
//! Invariants: H1 the end of a lease that a primary goes by is never later than what each acting member would tell a
//! successor; H2 nothing that shows an object leaves after the lease under which it was read; H3 a primary goes active for
//! writes only when no lease of an earlier primary can be in use. "No need to wait" is stored nowhere.
//! (Ceph: `dev/osd_internals/stale_read`; there per placement group, by messages of their own.)

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, Incarnation, OsdId, Timestamp};
use holdfast_wire::peer::{HeldLease, Notice};

use crate::intervals;
use crate::mutants::{Mutant, on};
use crate::peering::Phase;
use crate::pg::{Pg, Role, Step};

/// How long a lease holds for who asked, from the moment of asking: 0.8 of the silence after which an OSD is reported.
/// So it has ended when a silent primary is replaced.
pub const LEASE: Duration = Duration::from_secs(4);
/// How long it holds for who granted it: the clocks of any two hosts may differ in rate by less than a fifth. A clock that is
/// set right by slewing runs up to a twelfth too fast or too slow (chrony's default), so two differ by up to 13/11.
pub const LEASE_GRANTED: Duration = Duration::from_millis(4_800);
/// What waits for a lease looks again after this long: heartbeats come each second, and at once to a new peer.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A lease that this OSD has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// To whom.
    pub to: OsdId,
    /// To which of its runs.
    pub incarnation: Incarnation,
    /// Its end on this OSD's clock.
    pub until: Timestamp,
}

/// What one OSD knows of leases that primaries before the present one may still go by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    leases: Vec<Granted>,
    /// Until then it may have granted more than it knows of.
    forgotten_until: Timestamp,
}

impl Known {
    fn add(&mut self, lease: Granted) {
        let same = |known: &&mut Granted| known.to == lease.to && known.incarnation == lease.incarnation;
        match self.leases.iter_mut().find(same) {
            Some(known) => known.until = known.until.max(lease.until),
            None => self.leases.push(lease),
        }
    }

    /// As told by a notice that came just now: the time that was left when it was sent counts from here.
    fn told(notice: &Notice, now: Timestamp) -> Known {
        // No lease has more left than it had at first, whatever is said.
        let left = |ms| Duration::from_millis(ms).min(LEASE_GRANTED);
        let leases = notice.leases.iter().flatten().map(|lease| Granted {
            to: lease.primary,
            incarnation: lease.incarnation,
            until: now + left(lease.left_ms),
        });
        let forgotten = notice.leases_forgotten_ms.map_or(Duration::ZERO, left);
        Known { leases: leases.collect(), forgotten_until: now + forgotten }
    }
}

/// Notices' word on leases, by who said it.
pub(crate) type Told = BTreeMap<OsdId, Known>;

fn left_ms(until: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Until when this OSD may have granted what it does not know of.
fn forgotten_until(step: &Step<'_>) -> Timestamp {
    if on(Mutant::LeaseForgotten) { Timestamp::ZERO } else { step.store.leases_forgotten_until() }
}

/// Whether the process that held a lease is known to have ended.
fn has_ended(map: &ClusterMap, lease: &Granted) -> bool {
    let Some(info) = map.osds.get(&lease.to) else { return false };
    info.incarnation > lease.incarnation || (info.incarnation == lease.incarnation && info.dead_epoch > Epoch::ZERO)
}

impl Pg {
    /// Until when an answer that shows an object may leave (H1, H2).
    pub(crate) fn readable_until(&self, step: &Step<'_>) -> Timestamp {
        if on(Mutant::LeaseIgnored) {
            return Timestamp::from_nanos(u64::MAX);
        }
        let others = self.members.acting.iter().filter(|osd| **osd != self.whoami);
        let lease = |osd: &OsdId| {
            let run = self.map.osds.get(osd).map(|info| info.incarnation);
            run.map_or(Timestamp::ZERO, |run| step.store.lease_from(*osd, run, self.map.epoch))
        };
        if on(Mutant::LeaseOfOneEnough) {
            return others.map(lease).max().unwrap_or(Timestamp::from_nanos(u64::MAX));
        }
        others.map(lease).min().unwrap_or(Timestamp::from_nanos(u64::MAX))
    }

    /// An interval has ended: keeps what its primary may still go by. `last`: that primary; `None` when not known.
    pub(crate) fn keep_leases(&mut self, last: Option<OsdId>, step: &Step<'_>) {
        self.leases.leases.retain(|lease| lease.until > step.now);
        for lease in step.store.leases_granted() {
            let concerns = last.is_none_or(|last| last == lease.to) && lease.to != self.whoami;
            if concerns && lease.until > step.now {
                self.leases.add(lease);
            }
        }
    }

    /// For a notice.
    pub(crate) fn leases_left(&self, step: &Step<'_>) -> (Option<Vec<HeldLease>>, Option<u64>) {
        let left = self.leases.leases.iter().filter(|lease| lease.until > step.now).map(|lease| HeldLease {
            primary: lease.to,
            incarnation: lease.incarnation,
            left_ms: left_ms(lease.until, step.now),
        });
        let left: Vec<HeldLease> = left.collect();
        let forgotten = forgotten_until(step);
        ((!left.is_empty()).then_some(left), (forgotten > step.now).then(|| left_ms(forgotten, step.now)))
    }

    /// Takes what a notice says.
    pub(crate) fn leases_told(&mut self, from: OsdId, notice: &Notice, step: &Step<'_>) {
        if let Role::Peering(peering) = &mut self.role {
            peering.told.insert(from, Known::told(notice, step.now));
        }
    }

    /// Whether this primary waits until a lease of an earlier one has ended.
    #[must_use]
    pub fn waits_for_lease(&self) -> bool {
        matches!(&self.role, Role::Peering(peering) if matches!(peering.phase(), Phase::WaitLease { .. }))
    }

    /// H3: until when a primary before this one may still answer reads; `None` when none can.
    pub(crate) fn leases_end(&self, step: &Step<'_>) -> Option<Timestamp> {
        let Role::Peering(peering) = &self.role else { return None };
        if on(Mutant::LeaseNotWaitedFor) {
            return None;
        }
        let answered = |osd: OsdId| osd == self.whoami || peering.has_answered(osd);
        let own = Known { forgotten_until: forgotten_until(step), ..self.leases.clone() };
        let mut end = Timestamp::ZERO;
        for (osd, known) in peering.told.iter().chain([(&self.whoami, &own)]) {
            let open = known.leases.iter().filter(|lease| !answered(lease.to) && !has_ended(&self.map, lease));
            end = open.map(|lease| lease.until).fold(end, Timestamp::max);
            if known.forgotten_until > step.now && self.may_have_granted_to_an_absent(*osd, answered) {
                end = end.max(known.forgotten_until);
            }
        }
        (end > step.now).then_some(end)
    }

    /// Whether `osd` was a member under a primary that may still run and has not answered. Whoever led before the last
    /// activation is of no concern: that one has waited for all of its leases.
    fn may_have_granted_to_an_absent(&self, osd: OsdId, answered: impl Fn(OsdId) -> bool) -> bool {
        intervals::needed(&self.history).filter(|past| past.acting.contains(&osd)).any(|past| {
            let Some(primary) = past.acting.first().filter(|primary| !answered(**primary)) else { return false };
            // A run that began after the interval is not the one that led it.
            let info = self.map.osds.get(primary);
            info.is_none_or(|info| info.up_from <= past.last && info.dead_epoch == Epoch::ZERO)
        })
    }
}
