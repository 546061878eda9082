//! Making, changing and deleting pools.

use holdfast_map::{ClusterMap, Pool, PoolKind, pg_num_for};
use holdfast_types::PoolId;
use holdfast_wire::mon::MonError;

use crate::hierarchy;

/// Copies of a pool whose maker does not say.
const SIZE_DEFAULT: u32 = 3;
/// Most copies.
const SIZE_MAX: u32 = 16;
/// Longest name of a pool or an application, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most pools: each costs placement groups on every OSD.
const POOLS_MAX: usize = 1_000;

/// A pool to be made. What is `None`, the cluster chooses.
pub(crate) struct NewPool<'a> {
    pub(crate) name: &'a str,
    pub(crate) size: Option<u32>,
    pub(crate) min_size: Option<u32>,
    pub(crate) application: &'a str,
    pub(crate) failure_domain: Option<&'a str>,
    pub(crate) share_percent: Option<u32>,
}

/// What a pool is to be from now on. What is `None` stays.
pub(crate) struct Wanted<'a> {
    pub(crate) size: Option<u32>,
    pub(crate) min_size: Option<u32>,
    pub(crate) failure_domain: Option<&'a str>,
}

fn check_sizes(size: u32, min_size: u32) -> Result<(), MonError> {
    if size == 0 || size > SIZE_MAX || min_size == 0 || min_size > size {
        return Err(invalid(format!(
            "size {size} with min_size {min_size}: size is 1 to {SIZE_MAX}, min_size 1 to size"
        )));
    }
    Ok(())
}

fn invalid(reason: impl Into<String>) -> MonError {
    MonError::Invalid { reason: reason.into() }
}

pub(crate) fn create(map: &mut ClusterMap, new: &NewPool<'_>) -> Result<PoolId, MonError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if new.name.is_empty() || new.name.len() > NAME_BYTES_MAX || !new.name.chars().all(allowed) {
        return Err(invalid(format!("{:?} is no pool name: use letters, digits, '_', '-' and '.'", new.name)));
    }
    if new.application.len() > NAME_BYTES_MAX || new.share_percent.is_some_and(|percent| percent > 100) {
        return Err(invalid("the application's name is too long or the share is above 100 %"));
    }
    if let Some((id, pool)) = map.pool_by_name(new.name) {
        let same = new.size.is_none_or(|size| size == pool.size())
            && new.min_size.is_none_or(|min_size| min_size == pool.min_size())
            && new.failure_domain.is_none_or(|kind| kind == hierarchy::domain_of_rule(&map.crush, pool.rule))
            && new.application == pool.application;
        return if same { Ok(id) } else { Err(MonError::Exists { what: "pool".into(), name: new.name.into() }) };
    }
    if map.pools.len() >= POOLS_MAX {
        return Err(invalid(format!("there are {POOLS_MAX} pools already; delete one first")));
    }
    let osds = hierarchy::domains(&map.crush, "osd");
    let hosts = hierarchy::domains(&map.crush, "host");
    let size = match (new.size, new.failure_domain) {
        (Some(size), _) => size,
        (None, Some(kind)) => SIZE_DEFAULT.min(hierarchy::domains(&map.crush, kind)).max(1),
        (None, None) => SIZE_DEFAULT.min(osds).max(1),
    };
    let min_size = new.min_size.unwrap_or(size / 2 + 1);
    check_sizes(size, min_size)?;
    let domain = new.failure_domain.unwrap_or(if hosts >= size { "host" } else { "osd" });
    let rule = hierarchy::rule_for(&mut map.crush, domain)?;
    let pool = Pool {
        name: new.name.to_owned(),
        kind: PoolKind::Replicated { size, min_size },
        pg_num: pg_num_for(count(map.osds.len()), size, share(map, new.share_percent)),
        rule,
        created: map.epoch,
        application: new.application.to_owned(),
    };
    let id = map.next_pool;
    map.next_pool = PoolId(id.0 + 1);
    map.pools.insert(id, pool);
    Ok(id)
}

/// Changes a pool. With more copies than before, `min_size` stays unless it is named, too: raised at the same moment, it
/// would keep all that has only the old copies from being served until the new ones are made.
pub(crate) fn set(map: &mut ClusterMap, name: &str, wanted: &Wanted<'_>) -> Result<(), MonError> {
    let Some((id, pool)) = map.pool_by_name(name) else {
        return Err(MonError::NotFound { what: "pool".into(), name: name.to_owned() });
    };
    let size = wanted.size.unwrap_or(pool.size());
    let kept = if pool.min_size() <= size { pool.min_size() } else { size / 2 + 1 };
    let min_size = wanted.min_size.unwrap_or(kept);
    check_sizes(size, min_size)?;
    let rule = match wanted.failure_domain {
        Some(kind) => Some(hierarchy::rule_for(&mut map.crush, kind)?),
        None => None,
    };
    if let Some(pool) = map.pools.get_mut(&id) {
        pool.kind = PoolKind::Replicated { size, min_size };
        pool.rule = rule.unwrap_or(pool.rule);
    }
    Ok(())
}

/// The part of all data that the pool is expected to hold: as its maker says, else as much as each other pool.
fn share(map: &ClusterMap, percent: Option<u32>) -> f64 {
    match percent {
        Some(percent) => f64::from(percent) / 100.0,
        None => (1.0 / f64::from(count(map.pools.len() + 1))).min(0.5),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(crate) fn delete(map: &mut ClusterMap, name: &str, confirm: &str) -> Result<(), MonError> {
    let Some((id, _)) = map.pool_by_name(name) else {
        return Err(MonError::NotFound { what: "pool".into(), name: name.to_owned() });
    };
    if confirm != name {
        let reason = format!("this deletes all data of pool {name}; confirm by repeating its name");
        return Err(MonError::Unsafe { reason });
    }
    map.pools.remove(&id);
    map.pg_temp.retain(|pg, _| pg.pool != id);
    map.placed_as.remove(&id);
    Ok(())
}
