//! Scrubs that people ask for: wishes in the map.
//!
//! A wish reaches the primary with the map, whoever that is and however often monitors and primaries change meanwhile. It
//! stays until a primary reports that it was fulfilled. Its name is the epoch that brought it: a report about an earlier
//! one does not end it.

use holdfast_map::{ClusterMap, ScrubKind, ScrubWish};
use holdfast_types::{Epoch, PgId};
use holdfast_wire::mon::MonError;
use holdfast_wire::scrub::ScrubTarget;

/// Most wishes at a time: they travel with every full map.
const WISHES_MAX: usize = 16_384;

/// Takes wishes into the map that is being made. One that is there already, as thorough or more so, stays as it is.
pub(crate) fn wish(map: &mut ClusterMap, target: ScrubTarget, kind: ScrubKind) -> Result<(), MonError> {
    let pgs: Vec<PgId> = match target {
        ScrubTarget::Pg(pg) => {
            if map.pools.get(&pg.pool).is_none_or(|pool| pg.seed >= pool.pg_num) {
                return Err(MonError::NotFound { what: "placement group".into(), name: pg.to_string() });
            }
            vec![pg]
        }
        ScrubTarget::Osd(osd) => {
            if !map.osds.contains_key(&osd) {
                return Err(MonError::NotFound { what: "OSD".into(), name: osd.to_string() });
            }
            let all = map.members_of_all().into_iter();
            all.filter(|(_, members)| members.acting.contains(&osd)).map(|(pg, _)| pg).collect()
        }
    };
    let new: Vec<PgId> =
        pgs.into_iter().filter(|pg| map.scrub_wishes.get(pg).is_none_or(|wish| wish.kind < kind)).collect();
    let added = new.iter().filter(|pg| !map.scrub_wishes.contains_key(*pg)).count();
    if map.scrub_wishes.len() + added > WISHES_MAX {
        let waiting = map.scrub_wishes.len();
        let reason = format!("{waiting} placement groups wait to be scrubbed already; ask again when they are done");
        return Err(MonError::Invalid { reason });
    }
    let epoch = map.epoch;
    map.scrub_wishes.extend(new.into_iter().map(|pg| (pg, ScrubWish { kind, epoch })));
    Ok(())
}

/// Ends wishes that were fulfilled, unless a later one has taken their place.
pub(crate) fn served(map: &mut ClusterMap, served: &[(PgId, Epoch)]) {
    for (pg, epoch) in served {
        if map.scrub_wishes.get(pg).is_some_and(|wish| wish.epoch <= *epoch) {
            map.scrub_wishes.remove(pg);
        }
    }
}

/// Ends the wishes for placement groups that are no more.
pub(crate) fn prune(map: &mut ClusterMap) {
    let pools = &map.pools;
    map.scrub_wishes.retain(|pg, _| pools.get(&pg.pool).is_some_and(|pool| pg.seed < pool.pg_num));
}
