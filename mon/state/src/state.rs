//! The replicated state and its one transition.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_map::{
    BLOCKLIST_MAX, BlocklistEntry, ClusterMap, FullRatios, Increment, MapDecodeError, SERVICES_MAX, ServiceInfo,
    UPMAP_ITEMS_MAX,
};
use holdfast_types::{ClientId, ClusterId, Epoch, Incarnation, OsdId, PoolId, RequestId};
use holdfast_wire::mon::{KeyInfo, MapUpdate, MonCommand, MonError, MonReply, PoolRow};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::answered::{ANSWERED_BYTES_MAX, Answered, Known};
use crate::command::{Change, Command, MapMark, Outcome, seal, unseal};
use crate::config::{ConfigStore, HISTORY_BYTES_MAX, OPTIONS_BYTES_MAX};
use crate::keys::{KEYS_BYTES_MAX, KeyStore};
use crate::leader::Scene;
use crate::maps::{INCREMENT_BYTES_MAX, Maps, PastMap};
use crate::notes::OsdNotes;
use crate::{hierarchy, osds, pools, scrubs};

/// The largest [`State::encode`]: it travels to a monitor that is behind in one message. Each part is bounded in bytes;
/// the rest is for the newest map and the oldest one that is kept.
pub const STATE_BYTES_MAX: usize = 60 << 20;
/// A full map of 10,000 OSDs, 100,000 fenced sessions and 10,000 services.
const FULL_MAP_BYTES: usize = 9 << 20;
const _: () = assert!(
    2 * FULL_MAP_BYTES
        + INCREMENT_BYTES_MAX
        + KEYS_BYTES_MAX
        + OPTIONS_BYTES_MAX
        + HISTORY_BYTES_MAX
        + ANSWERED_BYTES_MAX
        <= STATE_BYTES_MAX,
    "the state fits a message"
);

/// The option that stops the balancer, with the value `off`.
const BALANCER_OPTION: &str = "balancer";

/// The option that keeps the leader from splitting pools, with the value `off`.
const SPLIT_OPTION: &str = "pg_split";

/// The option with the bytes in all pools below which none is split: what there is does not yet say what is to come.
const SPLIT_BYTES_OPTION: &str = "pg_split_bytes_min";

/// Refuses values of the monitors' own options that would mean something else than they seem to.
fn check_option(name: &str, value: Option<&str>) -> Result<(), MonError> {
    let (is_valid, wanted) = match (name, value) {
        (SPLIT_OPTION, Some(value)) => (matches!(value, "on" | "off"), "on or off"),
        (SPLIT_BYTES_OPTION, Some(value)) => (value.parse::<u64>().is_ok(), "a number of bytes, without a unit"),
        _ => return Ok(()),
    };
    if is_valid {
        return Ok(());
    }
    Err(MonError::Invalid {
        reason: format!("{:?} is no value of {name}: it takes {wanted}", value.unwrap_or_default()),
    })
}

/// Bytes that are no state of this build.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not the encoding of a state.
    #[error("the monitor state cannot be decoded")]
    Malformed(#[from] minicbor::decode::Error),
    /// A map in it is damaged.
    #[error("a map of the monitor state cannot be decoded")]
    Map(#[from] MapDecodeError),
    /// Its maps do not follow each other.
    #[error("the increments of the monitor state have a gap at {epoch}")]
    Gap {
        /// Where.
        epoch: Epoch,
    },
}

/// The maps of two monitors are not the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the newest map here, {} with checksum {:#010x}, is not what the monitor that leads had or followed: {} with checksum {:#010x}",
    ours.epoch, ours.checksum, theirs.epoch, theirs.checksum
)]
pub struct Diverged {
    /// The newest map here.
    pub ours: MapMark,
    /// The newest map of the proposer of a command.
    pub theirs: MapMark,
}

/// All that the monitors agree on.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    map: Arc<ClusterMap>,
    /// Of `map`.
    checksum: u32,
    maps: Maps,
    notes: OsdNotes,
    keys: KeyStore,
    config: ConfigStore,
    answered: Answered,
}

/// How a [`State`] lies in a snapshot.
#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredState {
    #[n(0)]
    map: ByteVec,
    #[n(1)]
    base: ByteVec,
    #[n(2)]
    increments: Vec<ByteVec>,
    #[n(3)]
    notes: OsdNotes,
    #[n(4)]
    keys: KeyStore,
    #[n(5)]
    config: ConfigStore,
    #[n(6)]
    answered: Answered,
}

/// What one change answers, before the epoch is known.
enum Answer {
    Done,
    OsdId(OsdId),
    Pool(PoolId),
    Key(KeyInfo),
}

/// Whether an op was applied by this command or is a resend.
enum Pending {
    Before(MonReply),
    /// As the op at this place of the same command.
    Again(usize),
    Now(Option<RequestId>, Result<Answer, MonError>),
}

impl Answer {
    fn into_reply(self, epoch: Epoch) -> MonReply {
        match self {
            Answer::Done => MonReply::Done { epoch },
            Answer::OsdId(osd) => MonReply::OsdId(osd),
            Answer::Pool(id) => MonReply::Pool { id, epoch },
            Answer::Key(key) => MonReply::Key(key),
        }
    }
}

impl State {
    /// Before the first command.
    #[must_use]
    pub fn new(cluster: ClusterId) -> State {
        let map = ClusterMap::empty(cluster);
        State {
            maps: Maps::new(map.clone()),
            checksum: map.checksum(),
            map: Arc::new(map),
            notes: OsdNotes::new(),
            keys: KeyStore::default(),
            config: ConfigStore::default(),
            answered: Answered::default(),
        }
    }

    /// Whether this is the state that the proposer of a command had, or one that followed, as far as the newest map tells. To be
    /// called when all commands before this one were applied: the proposer had applied no others, so its map is never newer.
    ///
    /// # Errors
    /// [`Diverged`]: of this monitor and the proposer one must apply nothing more.
    pub fn check(&self, command: &Command) -> Result<(), Diverged> {
        let ours = self.mark();
        match command.seen {
            Some(theirs) if theirs.epoch > ours.epoch || (theirs.epoch == ours.epoch && theirs != ours) => {
                Err(Diverged { ours, theirs })
            }
            _ => Ok(()),
        }
    }

    /// What a proposer says of its newest map.
    #[must_use]
    pub fn mark(&self) -> MapMark {
        MapMark { epoch: self.map.epoch, checksum: self.checksum }
    }

    /// Applies one committed command: at most one new map.
    pub fn apply(&mut self, _index: u64, command: &Command) -> Outcome {
        let newest = self.map.epoch;
        let mut draft = ClusterMap::clone(&self.map);
        draft.epoch = newest.next();
        let mut trim = None;
        let mut answers = Vec::with_capacity(command.ops.len());
        let mut first = BTreeMap::new();
        let mut runs = BTreeMap::<ClientId, Incarnation>::new();
        for (place, op) in command.ops.iter().enumerate() {
            if let Some(place) = op.id.and_then(|id| first.get(&id).copied()) {
                answers.push(Pending::Again(place));
                continue;
            }
            first.extend(op.id.map(|id| (id, place)));
            let known = op.id.map(|id| {
                let run = runs.entry(id.client).or_insert(id.incarnation);
                *run = id.incarnation.max(*run);
                // What this command holds of a later run is not yet remembered.
                (id, if id.incarnation < *run { Known::Past } else { self.answered.look_up(id) })
            });
            match known {
                None | Some((_, Known::New)) => {}
                Some((_, Known::Answered(reply))) => {
                    answers.push(Pending::Before(reply));
                    continue;
                }
                Some((id, Known::Past)) => {
                    let reason =
                        format!("request {id} comes late: its sender has moved on, and it may have been applied");
                    answers.push(Pending::Before(MonReply::Failed(MonError::Stale { reason })));
                    continue;
                }
            }
            let answer = match &op.change {
                Change::TrimMaps(epoch) => {
                    trim = Some(*epoch);
                    Ok(Answer::Done)
                }
                change => self.change(&mut draft, command.at_unix_ms, change),
            };
            answers.push(Pending::Now(op.id, answer));
        }
        if osds::placement_differs(&self.map, &draft) {
            draft.prune_upmap();
        }
        osds::prune_pg_temp(&mut draft);
        scrubs::prune(&mut draft);
        self.publish(draft);
        if let Some(epoch) = trim {
            self.maps.trim(epoch.min(newest), &self.map);
        }
        let epoch = self.map.epoch;
        let mut replies: Vec<MonReply> = Vec::with_capacity(answers.len());
        for answer in answers {
            let (id, reply) = match answer {
                Pending::Before(reply) => (None, reply),
                Pending::Again(place) => (None, replies.get(place).cloned().unwrap_or(MonReply::Done { epoch })),
                Pending::Now(id, Ok(answer)) => (id, answer.into_reply(epoch)),
                Pending::Now(id, Err(error)) => (id, MonReply::Failed(error)),
            };
            if let Some(id) = id {
                self.answered.put(id, reply.clone());
            }
            replies.push(reply);
        }
        Outcome { epoch, replies }
    }

    /// Makes `draft` the newest map, unless only its number differs.
    fn publish(&mut self, mut draft: ClusterMap) {
        let next = draft.epoch;
        draft.epoch = self.map.epoch;
        if draft == *self.map {
            return;
        }
        draft.epoch = next;
        let increment = Increment::between(&self.map, &draft);
        self.checksum = increment.checksum;
        self.maps.push(&increment, &draft);
        self.map = Arc::new(draft);
    }

    fn change(&mut self, map: &mut ClusterMap, at_ms: u64, change: &Change) -> Result<Answer, MonError> {
        match change {
            Change::Request(command) => self.request(map, at_ms, command),
            Change::MarkDown { osd, incarnation, dead } => {
                osds::mark_down(map, &mut self.notes, at_ms, *osd, *incarnation, *dead)?;
                Ok(Answer::Done)
            }
            Change::MarkOut(osd) => {
                osds::set_out(map, &mut self.notes, *osd, false)?;
                Ok(Answer::Done)
            }
            Change::Flags(flags) => {
                map.flags = *flags;
                Ok(Answer::Done)
            }
            Change::Space(levels) => {
                map.space.clone_from(levels);
                Ok(Answer::Done)
            }
            Change::Split { pool, pg_num, judged_at } => {
                // One of an earlier build may have booted since the leader looked. Asked of the map only, of which all
                // monitors have the same: a note may be missing where an earlier build took part of the log in.
                if judged_at.is_none_or(|epoch| osds::none_has_booted_after(map, epoch)) {
                    map.split_pool(*pool, *pg_num);
                }
                Ok(Answer::Done)
            }
            Change::Spread { pool, placed } => {
                map.spread_pool(*pool, *placed);
                Ok(Answer::Done)
            }
            Change::Upmap(changes) => {
                // What does not keep the rule is dropped before the map is published.
                for (pg, items) in changes {
                    if items.is_empty() || items.len() > UPMAP_ITEMS_MAX {
                        map.upmap.remove(pg);
                    } else {
                        map.upmap.insert(*pg, items.clone());
                    }
                }
                Ok(Answer::Done)
            }
            Change::ServiceGone { name, incarnation } => {
                if map.services.get(name).is_some_and(|service| service.incarnation == *incarnation) {
                    map.services.remove(name);
                }
                Ok(Answer::Done)
            }
            Change::Mons(mons) => {
                map.mons.clone_from(mons);
                Ok(Answer::Done)
            }
            Change::TrimMaps(_) => Ok(Answer::Done),
            Change::ScrubsServed(served) => {
                scrubs::served(map, served);
                Ok(Answer::Done)
            }
        }
    }

    fn request(&mut self, map: &mut ClusterMap, at_ms: u64, command: &MonCommand) -> Result<Answer, MonError> {
        let notes = &mut self.notes;
        match command {
            MonCommand::OsdRegister { disk, location, class, capacity_bytes, wanted, blank } => {
                let disk = osds::Registration {
                    disk: *disk,
                    location,
                    class: class.as_deref(),
                    capacity_bytes: *capacity_bytes,
                    wanted: *wanted,
                    blank: blank.unwrap_or(false),
                };
                return Ok(Answer::OsdId(osds::register(map, notes, &disk)?));
            }
            MonCommand::OsdBoot { osd, disk, incarnation, address, can_split } => {
                let can_split = can_split.unwrap_or(false);
                let boot = osds::Boot { osd: *osd, disk: *disk, incarnation: *incarnation, address, can_split };
                osds::boot(map, notes, at_ms, &boot)?;
            }
            MonCommand::OsdStopping { osd, incarnation } => osds::stopping(map, notes, at_ms, *osd, *incarnation)?,
            MonCommand::UpThru { osd, incarnation, at_least } => {
                osds::up_thru(map, self.map.epoch, *osd, *incarnation, *at_least)?;
            }
            MonCommand::PgTemp { osd, incarnation, wishes } => osds::pg_temp(map, *osd, *incarnation, wishes)?,
            MonCommand::ServiceRegister { name, kind, address, incarnation } => {
                let service = ServiceInfo { kind: kind.clone(), address: address.clone(), incarnation: *incarnation };
                register_service(map, name, service)?;
            }
            MonCommand::PoolCreate { name, size, min_size, application, failure_domain, share_percent } => {
                let pool = pools::NewPool {
                    name,
                    size: *size,
                    min_size: *min_size,
                    application,
                    failure_domain: failure_domain.as_deref(),
                    share_percent: *share_percent,
                };
                return Ok(Answer::Pool(pools::create(map, &pool)?));
            }
            MonCommand::PoolSet { name, size, min_size, failure_domain } => {
                let wanted =
                    pools::Wanted { size: *size, min_size: *min_size, failure_domain: failure_domain.as_deref() };
                pools::set(map, name, &wanted)?;
            }
            MonCommand::PoolDelete { name, confirm } => pools::delete(map, name, confirm)?,
            MonCommand::OsdOut(osd) => osds::set_out(map, notes, *osd, true)?,
            MonCommand::OsdIn(osd) => osds::set_in(map, notes, *osd)?,
            MonCommand::OsdDown(osd) => osds::down(map, notes, at_ms, *osd)?,
            MonCommand::OsdReweight { osd, weight } => osds::reweight(map, *osd, *weight)?,
            MonCommand::OsdRemove(osd) => osds::remove(map, notes, *osd)?,
            MonCommand::OsdLost { osd, confirm } => osds::lose(map, notes, *osd, confirm)?,
            MonCommand::OsdRelease(osd) => osds::release(map, notes, at_ms, *osd)?,
            MonCommand::FullRatios { near_full, backfill_full, full, failsafe } => {
                let then = map.ratios;
                let ratios = FullRatios {
                    near_full: near_full.unwrap_or(then.near_full),
                    backfill_full: backfill_full.unwrap_or(then.backfill_full),
                    full: full.unwrap_or(then.full),
                    failsafe: failsafe.unwrap_or(then.failsafe),
                };
                if !ratios.is_valid() {
                    let reason = format!(
                        "nearfull, backfillfull, full and failsafe must rise, up to 1; they would be {}, {}, {} and {} \
                         thousandths",
                        ratios.near_full, ratios.backfill_full, ratios.full, ratios.failsafe
                    );
                    return Err(MonError::Invalid { reason });
                }
                map.ratios = ratios;
                // A level that was reached by the old ratio ends well below where it begins: it must be judged anew, not
                // as the past of the new one. The flags stay until all have been.
                let up: Vec<OsdId> = map.osds.iter().filter(|(_, info)| info.up).map(|(osd, _)| *osd).collect();
                map.space.retain(|osd, _| up.binary_search(osd).is_err());
            }
            MonCommand::Scrub { target, kind } => scrubs::wish(map, *target, *kind)?,
            MonCommand::BlocklistAdd { client, incarnation } => {
                if !map.is_blocklisted(*client, *incarnation) {
                    // It holds for the earlier runs, too: their own entries say nothing more.
                    map.blocklist.retain(|entry| entry.client != *client);
                    if map.blocklist.len() >= BLOCKLIST_MAX {
                        let reason =
                            format!("{BLOCKLIST_MAX} sessions are fenced already; remove fences that are over");
                        return Err(MonError::Invalid { reason });
                    }
                    map.blocklist.insert(BlocklistEntry { client: *client, incarnation: *incarnation });
                }
            }
            MonCommand::BlocklistRemove { client, incarnation } => {
                if !map.blocklist.remove(&BlocklistEntry { client: *client, incarnation: *incarnation }) {
                    let name = format!("{client}, runs up to {incarnation}");
                    return Err(MonError::NotFound { what: "fence".to_owned(), name });
                }
            }
            MonCommand::KeyNew { name, access_key: Some(access_key), secret_key: Some(secret) } => {
                return Ok(Answer::Key(self.keys.add(name, access_key, secret)?));
            }
            MonCommand::KeyRemove { name } => self.keys.remove(name)?,
            MonCommand::ConfigSet { name, value } => {
                check_option(name, value.as_deref())?;
                self.config.set(at_ms, name, value.as_deref())?;
            }
            MonCommand::ConfigRollback { version } => self.config.rollback(at_ms, *version)?,
            MonCommand::KeyNew { .. }
            | MonCommand::OsdFailure { .. }
            | MonCommand::OsdAlive { .. }
            | MonCommand::Report(_)
            | MonCommand::KeyList
            | MonCommand::KeyLookup { .. }
            | MonCommand::ConfigDump
            | MonCommand::ConfigLog
            | MonCommand::Status
            | MonCommand::OsdTree
            | MonCommand::OsdDf
            | MonCommand::Df
            | MonCommand::PoolList
            | MonCommand::PgList
            | MonCommand::PgQuery(_)
            | MonCommand::Explain(_)
            | MonCommand::BalancerStatus
            | MonCommand::GetMaps { .. }
            | MonCommand::GetFullMap { .. } => {
                return Err(MonError::Invalid { reason: "this changes nothing and is not for the log".into() });
            }
        }
        Ok(Answer::Done)
    }

    /// The newest map.
    #[must_use]
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// What a holder of `after` needs to reach the newest map, as much of it as one answer carries; empty when it has
    /// the newest.
    #[must_use]
    pub fn maps_since(&self, after: Epoch) -> MapUpdate {
        self.maps.since(after, &self.map)
    }

    /// The map of exactly this epoch, if it is kept.
    #[must_use]
    pub fn map_at(&self, epoch: Epoch) -> Option<PastMap> {
        if epoch == self.map.epoch { Some(PastMap::of(ClusterMap::clone(&self.map))) } else { self.maps.at(epoch) }
    }

    /// What a leader decides from at this moment of the wall clock.
    #[must_use]
    pub fn scene(&self, at_unix_ms: u64) -> Scene {
        Scene {
            at_unix_ms,
            map: Arc::clone(&self.map),
            oldest_epoch: self.oldest_epoch(),
            notes: self.notes.clone(),
            split_on: self.config.values().get(SPLIT_OPTION).is_none_or(|value| value != "off"),
            split_bytes_min: self.config.values().get(SPLIT_BYTES_OPTION).and_then(|value| value.parse().ok()),
            balancer_on: self.config.values().get(BALANCER_OPTION).is_none_or(|value| value != "off"),
        }
    }

    /// The oldest epoch whose map is kept.
    #[must_use]
    pub fn oldest_epoch(&self) -> Epoch {
        self.maps.base().epoch
    }

    /// Answers a question that needs nothing but this state, or `None` when it needs more.
    #[must_use]
    pub fn answer(&self, question: &MonCommand) -> Option<MonReply> {
        match question {
            MonCommand::KeyList => Some(MonReply::Keys(self.keys.list())),
            MonCommand::KeyLookup { access_key } => Some(match self.keys.lookup(access_key) {
                Some(key) => MonReply::Key(key),
                None => not_found("access key", access_key),
            }),
            MonCommand::ConfigDump => Some(MonReply::Config(self.config.values().clone())),
            MonCommand::ConfigLog => Some(MonReply::ConfigHistory(self.config.history().cloned().collect())),
            MonCommand::PoolList => Some(MonReply::Pools(self.pool_rows())),
            MonCommand::GetMaps { after } => Some(MonReply::Maps(self.maps_since(*after))),
            _ => None,
        }
    }

    fn pool_rows(&self) -> Vec<PoolRow> {
        let row = |(id, pool): (&PoolId, &holdfast_map::Pool)| PoolRow {
            id: *id,
            name: pool.name.clone(),
            size: pool.size(),
            min_size: pool.min_size(),
            pg_num: pool.pg_num,
            application: pool.application.clone(),
            failure_domain: hierarchy::domain_of_rule(&self.map.crush, pool.rule),
        };
        self.map.pools.iter().map(row).collect()
    }

    /// The bytes of a snapshot.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal(&StoredState {
            map: self.map.encode_full().into(),
            base: self.maps.base().encode_full().into(),
            increments: self.maps.increments().map(|encoded| encoded.clone().into()).collect(),
            notes: self.notes.clone(),
            keys: self.keys.clone(),
            config: self.config.clone(),
            answered: self.answered.clone(),
        })
    }

    /// Reads what [`State::encode`] wrote.
    ///
    /// # Errors
    /// [`RestoreError`]; the bytes may come from a disk or a peer.
    pub fn decode(bytes: &[u8]) -> Result<State, RestoreError> {
        let StoredState { map, base, increments, notes, keys, config, answered } = unseal(bytes)?;
        let map = ClusterMap::decode_full(&map)?;
        let base = ClusterMap::decode_full(&base)?;
        let mut epoch = base.epoch;
        let mut maps = Maps::new(base);
        for encoded in increments {
            let increment = Increment::decode(&encoded)?;
            if increment.epoch != epoch.next() || increment.cluster != map.cluster {
                return Err(RestoreError::Gap { epoch });
            }
            epoch = increment.epoch;
            maps.push_encoded(epoch, encoded.into());
        }
        if epoch != map.epoch {
            return Err(RestoreError::Gap { epoch });
        }
        Ok(State { checksum: map.checksum(), map: Arc::new(map), maps, notes, keys, config, answered })
    }
}

fn not_found(what: &str, name: &str) -> MonReply {
    MonReply::Failed(MonError::NotFound { what: what.to_owned(), name: name.to_owned() })
}

fn register_service(map: &mut ClusterMap, name: &str, service: ServiceInfo) -> Result<(), MonError> {
    let texts = [name, &service.kind, &service.address];
    if texts.iter().any(|text| text.is_empty() || text.len() > 256) {
        return Err(MonError::Invalid { reason: "a service needs a name, a kind and an address".into() });
    }
    if map.services.len() >= SERVICES_MAX && !map.services.contains_key(name) {
        return Err(MonError::Invalid { reason: format!("{SERVICES_MAX} services are registered already") });
    }
    map.services.insert(name.to_owned(), service);
    Ok(())
}
