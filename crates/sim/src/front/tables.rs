//! What front ends do with a table, and what must be true of it in the end: every route's rows and listings have one order
//! (KV1); at rest the groups tile the key space, none is in the middle of anything, and nothing else is left of it (KV2).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_kvgroup::testing::actors::{Actor, Scene as _, table_id};
use holdfast_kvgroup::testing::{linearizable, shape};
use holdfast_kvgroup::{Affinity, Config, KvError, Objects as _, Tables};
use holdfast_osd::parts::{Leases, Local, PeerSpace};
use holdfast_pg::LocalObjects as _;
use holdfast_types::{ObjectName, Timestamp};

use super::desk::{SimObjects, Who};
use super::executor::Work;
use super::{FrontSettings, FrontWork, gateways};
use crate::faults::FaultKind;
use crate::world::World;

/// All objects of tables are named so.
const PREFIX: &[u8] = b"kv/";
/// For what was sent before the end, and has not arrived yet.
const LATE: Duration = Duration::from_secs(3);

/// Groups of about seven rows; nobody is patient with others for long.
fn config(in_background: bool) -> Config {
    Config {
        row_overhead: 100,
        weight_split: 800,
        weight_max: 3_000,
        page_rows: 2,
        help_after: Duration::from_millis(30),
        drop_patience: Duration::from_millis(200),
        cached_groups: 6,
        split_in_background: in_background,
        ..Config::default()
    }
}

/// One run of a front end.
pub(crate) async fn process(objects: SimObjects, settings: FrontSettings, drops: bool) {
    let tables = Tables::new(objects.clone(), config(objects.random(2) == 0));
    if objects.who.process == 0 {
        while !objects.desk.lock().created {
            objects.desk.lock().creations += 1;
            match tables.create(&table_id(), Affinity::S3).await {
                Ok(_) => objects.desk.lock().created = true,
                Err(KvError::Unanswered | KvError::ClusterFull) => {}
                Err(error) => objects.wrong(format!("a table cannot be made: {error:?}")),
            }
        }
    }
    while !objects.desk.lock().created {
        objects.pause(Duration::from_millis(100)).await;
    }
    let actor = Actor::new(objects.clone(), tables, drops);
    while objects.desk.lock().working {
        actor.work().await;
        let rest = u64::from(objects.random(u32::try_from(settings.rest_ms * 2).unwrap_or(u32::MAX).max(1)));
        objects.pause(Duration::from_millis(rest)).await;
    }
}

/// Reads and writes everything once more, and looks at the table's objects.
async fn last_visit(objects: SimObjects) {
    let actor = Actor::new(objects.clone(), Tables::new(objects.clone(), config(false)), false);
    actor.visit_all().await;
    let found = shape::check(&objects, &table_id()).await;
    objects.desk.lock().found = Some(found);
}

impl World {
    /// When all is quiet and whole: one more visit.
    pub(crate) fn finish_fronts(&mut self) -> Result<(), String> {
        if self.front.is_none() {
            return Ok(());
        }
        self.run_until(self.now + LATE)?;
        if let Some(mut front) = self.front.take() {
            let who = front.running(0).unwrap_or(Who { process: 0, run: 0 });
            let objects = SimObjects { desk: Arc::clone(&front.desk), who };
            let visit: Work = match front.settings.work {
                FrontWork::Tables => Box::pin(last_visit(objects)),
                FrontWork::Gateways => Box::pin(gateways::last_visit(objects)),
            };
            front.executor.spawn(0, visit);
            self.front_goes_on(&mut front);
            self.front = Some(front);
        }
        self.settle()
    }

    /// What the checkers of front ends say after the last visit.
    pub(crate) fn check_fronts(&mut self) -> Vec<String> {
        match self.front.as_ref().map(|front| front.settings.work) {
            None => Vec::new(),
            Some(FrontWork::Tables) => self.check_tables(),
            Some(FrontWork::Gateways) => self.check_gateways(),
        }
    }

    fn check_tables(&mut self) -> Vec<String> {
        let Some(desk) = self.front.as_ref().map(|front| Arc::clone(&front.desk)) else { return Vec::new() };
        let desk = desk.lock();
        let mut violations = Vec::new();
        if let Err(what) = linearizable::check(&desk.history.events) {
            violations.push(format!("KV1: {what}"));
        }
        match &desk.found {
            Some(Ok(found)) => {
                self.counts.add(FaultKind::GroupSplit, (found.len() as u64).saturating_sub(2));
                self.counts.add(FaultKind::TableDropped, u64::from(desk.history.drops() > 0));
                let left = self.leftovers(found);
                if left.len() >= desk.creations.max(1) {
                    violations.push(format!("KV2: objects are left over that no table knows: {left:?}"));
                }
            }
            Some(Err(what)) => violations.push(format!("KV2: {what}")),
            None => violations.push("KV2: the last visit did not come to its end".to_owned()),
        }
        violations
    }

    /// Objects of tables that are on some disk and belong to none.
    fn leftovers(&self, found: &BTreeSet<ObjectName>) -> BTreeSet<ObjectName> {
        let mut left = self.objects_on_disks();
        left.retain(|name| name.as_bytes().starts_with(PREFIX) && !found.contains(name));
        left
    }

    /// All objects that are on some disk.
    pub(super) fn objects_on_disks(&self) -> BTreeSet<ObjectName> {
        let (space, leases) = (PeerSpace::default(), Leases::new(Timestamp::ZERO));
        let mut left = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| node.disk.is_open()) {
            for pg in node.disk.pgs() {
                let view = Local::new(node.disk.engine(), pg, &space, &leases);
                let keys = view.list_objects(None, usize::MAX).unwrap_or_default();
                left.extend(keys.into_iter().map(|key| key.name()));
            }
        }
        left
    }
}
