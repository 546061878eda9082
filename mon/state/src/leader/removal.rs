//! Whether an OSD may be forgotten.
//!
//! A placement group stops waiting for an OSD that is in no map any more (`holdfast_pg`, intervals): to forget one is to
//! give up what only its disk has. So it is refused until it is known of every placement group that nothing is only
//! there: it serves, nothing of it is unfound, and no copy is being made that might turn out to need that disk. An
//! operator whose disk is gone for good says so with [`MonCommand::OsdLost`](holdfast_wire::mon::MonCommand::OsdLost).

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, OsdId, Timestamp};
use holdfast_wire::mon::MonError;

use super::explain::names;
use super::stats::{PgView, Stats};

/// Why the placement group may need an OSD that does not serve.
fn need(view: &PgView<'_>, osd: OsdId) -> Option<&'static str> {
    let Some(report) = view.report else { return Some("it has not been reported by its present primary") };
    let short = u64::from(view.pool.size()).saturating_sub(view.acting.len() as u64);
    let lacking = report.copies_missing > report.objects.saturating_mul(short);
    let copies = report.state.recovering || report.state.backfilling || view.state.remapped || lacking;
    if report.blocked_by.contains(&osd) {
        Some("it waits for that OSD")
    } else if !view.state.active {
        Some("it does not serve")
    } else if report.objects_unfound > 0 {
        Some("objects of it are unfound")
    } else if copies && !view.state.clean {
        Some("copies of it are being made")
    } else {
        None
    }
}

/// Whether nothing is on this OSD only, as far as all placement groups' reports tell.
pub(super) fn may_remove(map: &ClusterMap, stats: &Stats, now: Timestamp, osd: OsdId) -> Result<(), MonError> {
    let served = map.osds.get(&osd).is_some_and(|info| info.up_from > Epoch::ZERO);
    if !served {
        return Ok(()); // it holds nothing, or is known to nobody
    }
    let views = stats.views(map, now);
    let needs: Vec<String> =
        views.iter().filter_map(|view| Some(format!("pg {}: {}", view.pg, need(view, osd)?))).collect();
    if needs.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "{osd} may have what no other has ({}): bring it back, or wait until these are clean; if its disk is gone for \
         good, `holdfast osd lost {osd} --confirm {osd}` gives up what only it has",
        names(needs)
    );
    Err(MonError::Unsafe { reason })
}
