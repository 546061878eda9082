//! Clients: each sends one request after the other, resends what is not answered, and writes down what it saw.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterMap, Increment};
use holdfast_types::{ClientId, Epoch, Incarnation, RequestId};
use holdfast_wire::mon::{MapUpdate, MonCommand, MonError, MonReply, MonRequest};
use openraft::AsyncRuntime;
use parking_lot::Mutex;

use crate::check::{Asked, History, Op};
use crate::checker::Checker;
use crate::net::exchange;
use crate::runtime::{self, NodeId, SimRuntime, WORLD};
use crate::world;

/// How long one try waits.
const TRY_TIMEOUT: Duration = Duration::from_millis(2_500);
/// The same in haste ([`world::is_haste`]).
const HASTY_TIMEOUT: Duration = Duration::from_millis(40);
/// A client that got no answer in this long asks something else; what came of its request stays unknown.
const GIVE_UP: Duration = Duration::from_secs(12);
/// A monitor that has heard of no majority for so long says nothing about maps: 4 s, looked at once a second in
/// subscriptions, on clocks that run 5 % slow, and the time that a question is under way.
const MAP_AGE_MAX: Duration = Duration::from_secs(8);

/// What several clients write to.
pub(crate) type Shared = Arc<Mutex<History>>;

pub(crate) struct Client {
    number: u64,
    incarnation: u64,
    tid: u64,
    /// Counts what it has asked for in all of its runs: what it writes is written once.
    asked: u64,
    leader: Option<NodeId>,
    history: Shared,
    /// The map that it follows.
    map: Option<ClusterMap>,
    pools: BTreeSet<String>,
}

impl Client {
    pub(crate) fn new(number: u64, history: Shared) -> Client {
        Client { number, incarnation: 1, tid: 0, asked: 0, leader: None, history, map: None, pools: BTreeSet::new() }
    }

    /// Asks until `until`, in true nanoseconds.
    pub(crate) async fn run(mut self, until: u64, pause_ms: u64) -> Client {
        while runtime::true_nanos() < until {
            self.once().await;
            let pause_ms = if world::is_haste() { 5 } else { pause_ms.max(1) };
            SimRuntime::sleep(Duration::from_millis(runtime::random() % pause_ms)).await;
        }
        self
    }

    async fn once(&mut self) {
        self.asked += 1;
        match runtime::random() % 100 {
            0..45 => {
                let value = format!("{}.{}", self.number, self.asked);
                self.set(value).await;
            }
            45..70 => {
                self.read().await;
            }
            70..80 => self.pool().await,
            80..84 => self.key().await,
            84..86 => {
                let client = ClientId(1_000 + runtime::random() % 200);
                let fence = MonCommand::BlocklistAdd { client, incarnation: Incarnation(self.asked) };
                self.ask(fence).await;
            }
            _ => self.maps().await,
        }
    }

    /// Appends to the list that the changes of options make.
    pub(crate) async fn set(&mut self, value: String) -> bool {
        let name = format!("sim.{}", runtime::random() % 4);
        let asked = Asked::Append(value.clone());
        let (invoked, answer) = self.timed(MonCommand::ConfigSet { name, value: Some(value) }).await;
        let done = matches!(answer, Some(MonReply::Done { .. }));
        if let Some(MonReply::Failed(error)) = &answer {
            world::violation(Checker::Q18, format!("an option is refused: {error}"));
        }
        self.note(asked, invoked, done);
        done
    }

    /// Reads that list.
    pub(crate) async fn read(&mut self) -> Option<Vec<String>> {
        let (invoked, answer) = self.timed(MonCommand::ConfigLog).await;
        let Some(MonReply::ConfigHistory(changes)) = answer else { return None };
        let list: Vec<String> = changes.into_iter().filter_map(|change| change.new).collect();
        self.note(Asked::Read(list.clone()), invoked, true);
        Some(list)
    }

    fn note(&self, asked: Asked, invoked: u64, done: bool) {
        let returned = done.then(runtime::true_nanos);
        self.history.lock().ops.push(Op { client: self.number, asked, invoked, returned });
    }

    async fn pool(&mut self) {
        if self.pools.len() > 3 || (!self.pools.is_empty() && runtime::random().is_multiple_of(3)) {
            let Some(name) = self.pools.first().cloned() else { return };
            let answer = self.ask(MonCommand::PoolDelete { name: name.clone(), confirm: name.clone() }).await;
            if let Some(MonReply::Failed(error)) = answer {
                let text = format!("the pool {name} of client {} cannot be deleted: {error}", self.number);
                world::violation(Checker::Q18, text);
            }
            self.pools.remove(&name);
            return;
        }
        let name = format!("pool-{}-{}", self.number, self.asked);
        let create = MonCommand::PoolCreate {
            name: name.clone(),
            size: Some(1),
            min_size: Some(1),
            application: "sim".to_owned(),
            failure_domain: Some("osd".to_owned()),
            share_percent: None,
        };
        match self.ask(create).await {
            Some(MonReply::Pool { .. }) => {
                self.pools.insert(name);
            }
            Some(other) => {
                world::violation(Checker::Q18, format!("no pool {name} for client {}: {other:?}", self.number));
            }
            None => {}
        }
    }

    /// Makes a key, which nobody else names: a refusal means that it was made before.
    async fn key(&mut self) {
        let name = format!("key-{}-{}", self.number, self.asked);
        let make = MonCommand::KeyNew { name: name.clone(), access_key: None, secret_key: None };
        match self.ask(make).await {
            Some(MonReply::Key(_)) | None => {}
            Some(other) => world::violation(Checker::Q18, format!("no key {name}: {other:?}")),
        }
    }

    /// Follows the maps, at any monitor.
    async fn maps(&mut self) {
        let to = 1 + usize::try_from(runtime::random()).unwrap_or(0) % world::monitors();
        let after = self.map.as_ref().map_or(Epoch::ZERO, |map| map.epoch);
        let asked_at = runtime::true_nanos();
        let old = u64::try_from(MAP_AGE_MAX.as_nanos()).unwrap_or(u64::MAX);
        let Some(Ok(MonReply::Maps(update))) = self.try_once(to, MonCommand::GetMaps { after }).await else { return };
        world::count("maps-fetched");
        match follow(self.map.take(), &update) {
            Ok(map) => {
                let must_have = world::epoch_at(asked_at.saturating_sub(old));
                // A leader of five that has lost the majority may keep one follower with it, which does not know.
                if map.epoch < must_have && world::monitors() == 3 {
                    let epoch = map.epoch;
                    let text =
                        format!("monitor {to} still hands out epoch {epoch} when {must_have} is {MAP_AGE_MAX:?} old");
                    world::violation(Checker::Q5, text);
                }
                world::check_map("a client", &map);
                self.map = (map.epoch > Epoch::ZERO).then_some(map);
            }
            Err(error) => {
                let text = format!("the maps of monitor {to} after {after} do not follow: {error}");
                world::violation(Checker::Q5, text);
            }
        }
    }

    async fn timed(&mut self, command: MonCommand) -> (u64, Option<MonReply>) {
        let invoked = runtime::true_nanos();
        (invoked, self.ask(command).await)
    }

    /// Asks until there is an answer, or it takes too long.
    pub(crate) async fn ask(&mut self, command: MonCommand) -> Option<MonReply> {
        self.tid += 1;
        world::count("requests");
        let answer = SimRuntime::timeout(GIVE_UP, self.insist(command)).await.ok();
        if answer.is_none() {
            world::count("requests-given-up");
            // What is still under way must not be taken for an answer to a later one.
            self.incarnation += 1;
            self.tid = 0;
        }
        answer
    }

    async fn insist(&mut self, command: MonCommand) -> MonReply {
        let mut first = true;
        loop {
            let any = 1 + usize::try_from(runtime::random()).unwrap_or(0) % world::monitors();
            let to = self.leader.filter(|_| !world::is_haste()).unwrap_or(any);
            if !std::mem::take(&mut first) {
                world::count("requests-resent");
            }
            let answer = self.try_once(to, command.clone()).await;
            world::trace(|| format!("client {} asks {to} {}: {command:?}: {}", self.number, self.tid, brief(&answer)));
            match answer {
                Some(Ok(MonReply::Failed(MonError::NotLeader { leader })) | Err(MonError::NotLeader { leader })) => {
                    self.leader = leader.and_then(|address| world::node_at(&address));
                }
                Some(Ok(MonReply::Failed(MonError::Unavailable)) | Err(MonError::Unavailable)) | None => {
                    self.leader = None;
                }
                Some(Ok(reply)) => return reply,
                Some(Err(error)) => return MonReply::Failed(error),
            }
            let pause_ms = if world::is_haste() { 1 } else { 20 + runtime::random() % 200 };
            SimRuntime::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    async fn try_once(&self, to: NodeId, command: MonCommand) -> Option<Result<MonReply, MonError>> {
        let id = RequestId { client: ClientId(self.number), incarnation: Incarnation(self.incarnation), tid: self.tid };
        let request = MonRequest { id, command };
        let asked = exchange(WORLD, to, move |member| {
            let request = request.clone();
            async move { member.execute(request).await }
        });
        let patience = if world::is_haste() { HASTY_TIMEOUT } else { TRY_TIMEOUT };
        SimRuntime::timeout(patience, asked).await.ok()?.ok()
    }
}

fn brief(answer: &Option<Result<MonReply, MonError>>) -> String {
    let mut text = format!("{answer:?}");
    if let Some((end, _)) = text.char_indices().nth(120) {
        text.truncate(end);
    }
    text
}

/// The map that comes of `update`.
fn follow(held: Option<ClusterMap>, update: &MapUpdate) -> Result<ClusterMap, String> {
    let mut map = match (&update.full, held) {
        (Some(full), _) => ClusterMap::decode_full(full).map_err(|error| error.to_string())?,
        (None, Some(held)) => held,
        (None, None) => ClusterMap::empty(world::CLUSTER),
    };
    for bytes in &update.increments {
        let increment = Increment::decode(bytes).map_err(|error| error.to_string())?;
        map = map.apply(&increment).map_err(|error| error.to_string())?;
    }
    Ok(map)
}
