//! Changes of OSDs: who has which id, who is up, who is in.
//!
//! Invariant: an OSD id stands for one disk as it was formatted once, for ever. Placement groups remember past members
//! by id and take the word of an id that is up for the copy that it had then; under a reused id, or from a store that
//! was made anew, a blank disk would speak for writes that it never had.

use holdfast_map::{ClusterMap, OSD_ID_MAX, OsdInfo, PG_TEMP_MEMBERS_MAX};
use holdfast_types::{DiskUuid, Epoch, Incarnation, OsdId};
use holdfast_wire::mon::{LocationStep, MonError, PgTempWish};

use crate::hierarchy;
use crate::leader::failures::may_lose;
use crate::notes::{DownReason, OsdNote, OsdNotes, OutReason};

/// An id that a disk asks for may leave a gap of at most this many: ids are not given again, so a slip must not use
/// them up.
const WANTED_GAP_MAX: u32 = 1_024;
/// Full reweight.
const REWEIGHT_ONE: u32 = 0x1_0000;

fn no_such_osd(osd: OsdId) -> MonError {
    MonError::NotFound { what: "OSD".into(), name: osd.to_string() }
}

fn stale(reason: String) -> MonError {
    MonError::Stale { reason }
}

/// The OSD, if it runs as `incarnation` and the map has it up.
fn running(map: &mut ClusterMap, osd: OsdId, incarnation: Incarnation) -> Result<&mut OsdInfo, MonError> {
    let info = map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?;
    if info.incarnation != incarnation {
        return Err(stale(format!("{osd} has booted again since")));
    }
    if !info.up {
        return Err(stale(format!("{osd} is marked down")));
    }
    Ok(info)
}

/// What a disk says of itself.
pub(crate) struct Registration<'a> {
    pub(crate) disk: DiskUuid,
    pub(crate) location: &'a [LocationStep],
    pub(crate) class: Option<&'a str>,
    pub(crate) capacity_bytes: u64,
    pub(crate) wanted: Option<OsdId>,
    /// Whether its store is yet to be made.
    pub(crate) blank: bool,
}

pub(crate) fn register(map: &mut ClusterMap, notes: &mut OsdNotes, disk: &Registration<'_>) -> Result<OsdId, MonError> {
    let known = map.osds.iter().find(|(_, info)| info.disk == disk.disk).map(|(id, _)| *id);
    let weight = hierarchy::crush_weight(disk.capacity_bytes);
    if let Some(osd) = known {
        let has_served = map.osds.get(&osd).is_some_and(|info| info.up_from > Epoch::ZERO);
        if disk.blank && has_served {
            return Err(MonError::Exists { what: "disk".into(), name: format!("{} ({osd})", disk.disk) });
        }
        hierarchy::place(&mut map.crush, osd, disk.location, disk.class, weight)?;
        return Ok(osd);
    }
    let never_given = |id: &OsdId| *id >= map.next_osd && !map.osds.contains_key(id);
    let highest = map.osds.keys().next_back().map_or(0, |osd| osd.0).max(map.next_osd.0);
    let wanted_max = OSD_ID_MAX.min(highest.saturating_add(WANTED_GAP_MAX));
    let wanted = disk.wanted.filter(|wanted| wanted.0 <= wanted_max && never_given(wanted));
    let Some(osd) = wanted.or_else(|| (map.next_osd.0..=OSD_ID_MAX).map(OsdId).find(never_given)) else {
        return Err(MonError::Invalid { reason: format!("all {OSD_ID_MAX} OSD ids were given") });
    };
    hierarchy::place(&mut map.crush, osd, disk.location, disk.class, weight)?;
    let info = OsdInfo {
        disk: disk.disk,
        incarnation: Incarnation(0),
        address: String::new(),
        up: false,
        in_cluster: false,
        reweight: REWEIGHT_ONE,
        up_from: Epoch::ZERO,
        up_thru: Epoch::ZERO,
        down_at: Epoch::ZERO,
        dead_epoch: Epoch::ZERO,
        formatted_at: map.epoch,
    };
    map.osds.insert(osd, info);
    notes.insert(osd, OsdNote::of_new_disk());
    Ok(osd)
}

/// A process that starts to serve an OSD.
pub(crate) struct Boot<'a> {
    pub(crate) osd: OsdId,
    pub(crate) disk: DiskUuid,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: &'a str,
    pub(crate) can_split: bool,
}

pub(crate) fn boot(map: &mut ClusterMap, notes: &mut OsdNotes, at_ms: u64, boot: &Boot<'_>) -> Result<(), MonError> {
    let epoch = map.epoch;
    let info = map.osds.get_mut(&boot.osd).ok_or_else(|| no_such_osd(boot.osd))?;
    if info.disk != boot.disk {
        let reason = format!("{} belongs to disk {}, not to {}: register first", boot.osd, info.disk, boot.disk);
        return Err(MonError::Invalid { reason });
    }
    if boot.incarnation == Incarnation(0) || boot.address.is_empty() || boot.address.len() > 256 {
        return Err(MonError::Invalid { reason: "a boot needs an incarnation and an address".into() });
    }
    if info.up && info.incarnation == boot.incarnation && info.address == boot.address {
        notes.entry(boot.osd).or_default().note_boot(boot.can_split);
        return Ok(());
    }
    let (ran, runs) = (info.incarnation, boot.incarnation);
    if runs < ran || (runs == ran && !info.up && info.up_from > Epoch::ZERO) {
        // A boot that was long under way: that run has ended, or was marked down and has to come back as a new one.
        return Err(stale(format!("{} was up as run {ran} already, this is run {runs}", boot.osd)));
    }
    let note = notes.entry(boot.osd).or_default();
    if let Some(held) = note.held(at_ms) {
        let reason = format!(
            "{} went silent more than {} times in 10 minutes; its boots are held off for {} s more: mend its network \
             or its disk, then wait or run `holdfast osd release {}`",
            boot.osd,
            crate::notes::FLAPS_MAX,
            held.left_ms.div_ceil(1000),
            boot.osd
        );
        return Err(MonError::Unsafe { reason });
    }
    if info.up {
        info.down_at = epoch; // a reboot that nobody noticed still makes a new interval
    }
    note.note_boot(boot.can_split);
    info.incarnation = boot.incarnation;
    boot.address.clone_into(&mut info.address);
    info.up = true;
    info.up_from = epoch;
    info.dead_epoch = Epoch::ZERO; // it tells of this run
    if !info.in_cluster && matches!(note.out, Some(OutReason::New | OutReason::Automatic)) {
        info.in_cluster = true;
        note.out = None;
    }
    Ok(())
}

/// Whether every OSD of this map last booted by `epoch`, if it ever did.
pub(crate) fn none_has_booted_after(map: &ClusterMap, epoch: Epoch) -> bool {
    map.osds.values().all(|info| info.up_from <= epoch)
}

pub(crate) fn stopping(
    map: &mut ClusterMap,
    notes: &mut OsdNotes,
    at_ms: u64,
    osd: OsdId,
    incarnation: Incarnation,
) -> Result<(), MonError> {
    let epoch = map.epoch;
    let info = running(map, osd, incarnation)?;
    info.up = false;
    info.down_at = epoch;
    // It gave up its leases before it said so.
    info.dead_epoch = epoch;
    notes.entry(osd).or_default().note_down(at_ms, DownReason::Stopped);
    Ok(())
}

pub(crate) fn mark_down(
    map: &mut ClusterMap,
    notes: &mut OsdNotes,
    at_ms: u64,
    osd: OsdId,
    incarnation: Incarnation,
    dead: bool,
) -> Result<(), MonError> {
    let epoch = map.epoch;
    running(map, osd, incarnation)?;
    // Here, with the markdowns of the same moment counted: all who are silent are reported within milliseconds.
    if !dead && !may_lose(map, osd) {
        let reason =
            format!("with {osd} too, so many OSDs would be down for silence that it is more likely the network");
        return Err(MonError::Unsafe { reason });
    }
    let info = running(map, osd, incarnation)?;
    info.up = false;
    info.down_at = epoch;
    if dead {
        info.dead_epoch = epoch;
    }
    let reason = if dead { DownReason::Ended } else { DownReason::Silent };
    notes.entry(osd).or_default().note_down(at_ms, reason);
    Ok(())
}

/// Lets a flapping OSD boot again at once.
pub(crate) fn release(map: &ClusterMap, notes: &mut OsdNotes, at_ms: u64, osd: OsdId) -> Result<(), MonError> {
    if !map.osds.contains_key(&osd) {
        return Err(no_such_osd(osd));
    }
    if let Some(note) = notes.get_mut(&osd) {
        note.release(at_ms);
    }
    Ok(())
}

/// An operator's markdown: one that lives boots again at once.
pub(crate) fn down(map: &mut ClusterMap, notes: &mut OsdNotes, at_ms: u64, osd: OsdId) -> Result<(), MonError> {
    let epoch = map.epoch;
    let info = map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?;
    if info.up {
        info.up = false;
        info.down_at = epoch;
        notes.entry(osd).or_default().note_down(at_ms, DownReason::Operator);
    }
    Ok(())
}

pub(crate) fn set_in(map: &mut ClusterMap, notes: &mut OsdNotes, osd: OsdId) -> Result<(), MonError> {
    let info = map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?;
    info.in_cluster = true;
    notes.entry(osd).or_default().out = None;
    Ok(())
}

pub(crate) fn set_out(
    map: &mut ClusterMap,
    notes: &mut OsdNotes,
    osd: OsdId,
    by_operator: bool,
) -> Result<(), MonError> {
    let info = map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?;
    if !by_operator && (info.up || !info.in_cluster) {
        return Err(stale(format!("{osd} is up or out already")));
    }
    info.in_cluster = false;
    notes.entry(osd).or_default().out = Some(if by_operator { OutReason::Operator } else { OutReason::Automatic });
    Ok(())
}

pub(crate) fn reweight(map: &mut ClusterMap, osd: OsdId, weight: u32) -> Result<(), MonError> {
    if weight > REWEIGHT_ONE {
        return Err(MonError::Invalid { reason: "a reweight is between 0 and 1".into() });
    }
    map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?.reweight = weight;
    Ok(())
}

/// Gives up what only this OSD has: it is forgotten, and nobody waits for it any more.
pub(crate) fn lose(map: &mut ClusterMap, notes: &mut OsdNotes, osd: OsdId, confirm: &str) -> Result<(), MonError> {
    if confirm != osd.to_string() {
        let reason = format!("{osd} must be named a second time: what only it has is lost with it");
        return Err(MonError::Unsafe { reason });
    }
    let info = map.osds.get_mut(&osd).ok_or_else(|| no_such_osd(osd))?;
    if info.up {
        return Err(MonError::Unsafe { reason: format!("{osd} is up: its disk is not lost") });
    }
    info.in_cluster = false;
    remove(map, notes, osd)
}

/// Forgets one that nothing needs, as the leader has made sure.
pub(crate) fn remove(map: &mut ClusterMap, notes: &mut OsdNotes, osd: OsdId) -> Result<(), MonError> {
    let info = map.osds.get(&osd).ok_or_else(|| no_such_osd(osd))?;
    if info.up || info.in_cluster {
        let reason = format!("{osd} is still up or in: stop it and mark it out first");
        return Err(MonError::Unsafe { reason });
    }
    hierarchy::remove(&mut map.crush, osd)?;
    map.osds.remove(&osd);
    map.space.remove(&osd);
    map.next_osd = map.next_osd.max(OsdId(osd.0.saturating_add(1)));
    notes.remove(&osd);
    Ok(())
}

/// `newest` is the epoch of the newest committed map: nobody can have gone active in a later one.
pub(crate) fn up_thru(
    map: &mut ClusterMap,
    newest: Epoch,
    osd: OsdId,
    incarnation: Incarnation,
    at_least: Epoch,
) -> Result<(), MonError> {
    if at_least > newest {
        return Err(MonError::Invalid { reason: format!("there is no map {at_least} yet") });
    }
    let info = running(map, osd, incarnation)?;
    info.up_thru = info.up_thru.max(at_least);
    Ok(())
}

/// What primaries wish for the acting sets of their placement groups.
pub(crate) fn pg_temp(
    map: &mut ClusterMap,
    osd: OsdId,
    incarnation: Incarnation,
    wishes: &[PgTempWish],
) -> Result<(), MonError> {
    running(map, osd, incarnation)?;
    for wish in wishes {
        if map.pools.get(&wish.pg.pool).is_none_or(|pool| wish.pg.seed >= pool.pg_num) {
            return Err(MonError::NotFound { what: "placement group".into(), name: wish.pg.to_string() });
        }
        let several = |member: &OsdId| wish.acting.iter().filter(|other| *other == member).count() > 1;
        if let Some(member) = wish.acting.iter().find(|member| several(member)) {
            return Err(MonError::Invalid { reason: format!("{member} is named twice for {}", wish.pg) });
        }
        if wish.acting.len() > PG_TEMP_MEMBERS_MAX {
            return Err(MonError::Invalid { reason: format!("{} members for {}", wish.acting.len(), wish.pg) });
        }
        if let Some(unknown) = wish.acting.iter().find(|member| !map.osds.contains_key(*member)) {
            return Err(no_such_osd(*unknown));
        }
    }
    for wish in wishes {
        // One of a primary that is none any more, or of an interval that is over, would cost the present one its peering.
        let present = map.members(wish.pg).acting;
        if present.first() != Some(&osd) || wish.seen.as_ref().is_some_and(|seen| *seen != present) {
            continue;
        }
        if wish.acting.is_empty() {
            map.pg_temp.remove(&wish.pg);
        } else {
            map.pg_temp.insert(wish.pg, wish.acting.clone());
        }
    }
    Ok(())
}

/// Whether CRUSH, or what stands in its place, may place something elsewhere in `new` than in `old`.
pub(crate) fn placement_differs(old: &ClusterMap, new: &ClusterMap) -> bool {
    let weights = |map: &ClusterMap| -> Vec<(OsdId, u32)> {
        let inside = map.osds.iter().filter(|(_, info)| info.in_cluster);
        inside.map(|(osd, info)| (*osd, info.reweight)).collect()
    };
    old.upmap != new.upmap
        || old.pools != new.pools
        || old.placed_as != new.placed_as
        || old.crush != new.crush
        || weights(old) != weights(new)
}

/// Drops temporaries that have become what placement says anyway, that nobody is left of, or that have no pool.
pub(crate) fn prune_pg_temp(map: &mut ClusterMap) {
    let idle: Vec<_> = map
        .pg_temp
        .iter()
        .filter(|(pg, acting)| {
            let exists = map.pools.get(&pg.pool).is_some_and(|pool| pg.seed < pool.pg_num);
            !exists || !acting.iter().any(|osd| map.is_up(*osd)) || map.members(**pg).up == **acting
        })
        .map(|(pg, _)| *pg)
        .collect();
    for pg in idle {
        map.pg_temp.remove(&pg);
    }
}
