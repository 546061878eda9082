//! When the balancer moves data: only when all is well, a little at a time.
//!
//! | what holds | then |
//! |---|---|
//! | the option `balancer` is `off` | nothing |
//! | some placement group is not `active+clean`, or not known to be | wait: no copy is moved while another is missing |
//! | all have been for [`SETTLE`] (at once after moves of its own), and a plan lowers the tension | propose it; its moves make placement groups unclean until they are done |
//! | all are, and no plan does | rest for [`REST`] |
//!
//! So at most one plan is under way, and it exchanges at most [`MOVES_MAX`] members.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_map::{BalanceLimits, balance};
use holdfast_types::{PgId, Timestamp};
use holdfast_wire::mon::BalancerReport;

use super::Scene;
use super::stats::Stats;
use crate::Change;

/// How long it rests when there was nothing to gain: sizes change slowly.
const REST: Duration = Duration::from_secs(30);
/// How long all must have been clean before it moves anything: OSDs often come and go several at a time.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it looks whether all is well.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most members exchanged at once, and at least so many: else a large cluster would take days.
const MOVES_MAX: usize = 32;
/// See [`MOVES_MAX`].
const MOVES_MIN: usize = 2;
/// From one OSD, and to one OSD: each recovers one placement group at a time anyway.
const MOVES_PER_OSD: usize = 2;

/// What it did last, for people.
#[derive(Debug, Clone, Default)]
enum Last {
    #[default]
    NotYet,
    Waits {
        unclean: usize,
    },
    Settles,
    Moved {
        moves: usize,
    },
    Even,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Balancer {
    next: Timestamp,
    /// All must stay clean until then.
    settled_at: Timestamp,
    /// What is unclean may be its own work.
    at_work: bool,
    last: Last,
    deviation_permille: Option<u32>,
}

impl Balancer {
    pub(super) fn due(&mut self, now: Timestamp, scene: &Scene, stats: &Stats) -> Option<Change> {
        if !scene.balancer_on || now < self.next {
            return None;
        }
        let map = &*scene.map;
        let views = stats.views(map, now);
        let clean = views.iter().filter(|view| view.report.is_some() && view.state.active && view.state.clean).count();
        if clean < views.len() || views.is_empty() {
            self.next = now + LOOK_EVERY;
            self.last = Last::Waits { unclean: views.len() - clean };
            if !self.at_work {
                self.settled_at = now + SETTLE;
            }
            return None;
        }
        if now < self.settled_at {
            self.next = self.settled_at;
            self.last = Last::Settles;
            return None;
        }
        let sizes: BTreeMap<PgId, u64> = views.iter().filter_map(|view| Some((view.pg, view.report?.bytes))).collect();
        let inside = map.osds.values().filter(|info| info.up && info.in_cluster).count();
        let limits = BalanceLimits { moves: (inside / 2).clamp(MOVES_MIN, MOVES_MAX), moves_per_osd: MOVES_PER_OSD };
        let plan = balance(map, &sizes, limits);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small part; `as` saturates")]
        let permille = (plan.deviation_before * 1_000.0) as u32;
        self.deviation_permille = Some(permille);
        self.at_work = !plan.upmap.is_empty();
        if plan.upmap.is_empty() {
            self.next = now + REST;
            self.last = Last::Even;
            return None;
        }
        self.next = now + LOOK_EVERY;
        self.last = Last::Moved { moves: plan.moves };
        Some(Change::Upmap(plan.upmap))
    }

    pub(super) fn report(&self, scene: &Scene) -> BalancerReport {
        let state = match self.last {
            _ if !scene.balancer_on => "off: `holdfast config rm balancer` lets it work".to_owned(),
            Last::NotYet => "has not looked yet".to_owned(),
            Last::Waits { unclean: 0 } => "there is nothing to balance".to_owned(),
            Last::Waits { unclean } => format!("waits until {unclean} placement groups are active+clean"),
            Last::Settles => format!("waits until all has been clean for {} s", SETTLE.as_secs()),
            Last::Moved { moves } => format!("moves {moves} copies of placement groups"),
            Last::Even => "rests: no move would gain enough".to_owned(),
        };
        BalancerReport {
            enabled: scene.balancer_on,
            state,
            deviation_permille: self.deviation_permille,
            exchanged: u32::try_from(scene.map.upmap.len()).unwrap_or(u32::MAX),
        }
    }
}
