//! Front ends that are S3 gateways: production code from the request to the op on one object, but for sockets.
//!
//! Each process runs a gateway (`holdfast_gateway_s3`), a few clients that call it ([`customer`]) and its collector. It is
//! killed between any two of its ops on objects, in the middle of uploads and commits, and comes back with nothing remembered.
//! Bodies are some hundred bytes, and the sizes from which on they are blobs, stripes and parts are as small.
//!
//! What must be true: what clients were answered of each key and of listings has one order (OB1), every object that is
//! shown can be read and has the bytes of one write; at rest, and when the collector has run, each blob belongs to an object
//! and no other is left (OB2).

mod customer;
mod register;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::{OperateError, OperateReply};
use holdfast_gateway_s3::backend::{KeyInfo, ScanLimit, ScanRange};
use holdfast_gateway_s3::clock::Clock;
use holdfast_gateway_s3::cluster_backend::{self, DataObjects};
use holdfast_gateway_s3::row::{BucketRow, DataRow, GLOBAL_TABLE, Row as _, space};
use holdfast_gateway_s3::testing::caller::etag;
use holdfast_gateway_s3::{
    Backend, Gateway, GatewayConfig, Keys, Runtime, Sizes, Surroundings, backend::BackendError, error::Code, gc,
};
use holdfast_kvgroup as kv;
use holdfast_kvgroup::testing::actors::Scene as _;
use holdfast_types::ObjectName;
use holdfast_wire::ObjectOp;

use self::customer::{Customer, Upload};
use self::register::{History, WriteId};
use super::FrontSettings;
use super::desk::{SimObjects, Who};
use crate::faults::FaultKind;
use crate::world::World;

/// Keys that clients work on.
const KEYS: usize = 7;
/// Clients of each gateway.
const CUSTOMERS: u32 = 2;
/// Age of garbage that is deleted: longer than anything that was sent may be on its way, or a reader may take.
const GRACE: Duration = Duration::from_secs(45);
/// 2026-01-01, when the world begins.
const EPOCH_MS: u64 = 1_767_225_600_000;

const SIZES: Sizes = Sizes { inline_bytes_max: 64, part_inline_bytes_max: 32, stripe_bytes: 256, part_bytes_min: 48 };

/// What clients of all gateways share, and what there is to check.
#[derive(Default)]
pub(crate) struct Shop {
    /// Whether the bucket is made.
    open: bool,
    history: History,
    /// The bytes of each write, where they are known before.
    contents: BTreeMap<WriteId, Bytes>,
    /// Of each copy its source, and when it was begun.
    copies: BTreeMap<WriteId, (usize, u64)>,
    writes: WriteId,
    /// Uploads in progress.
    uploads: BTreeMap<u64, Upload>,
    last_upload: u64,
    /// What struck, and what was reached.
    counts: BTreeMap<FaultKind, u64>,
    /// What the last visitor found: the objects that blobs are in.
    found: Option<BTreeSet<ObjectName>>,
}

impl Shop {
    /// What clients asked for.
    pub fn operations(&self) -> u64 {
        self.history.events.len() as u64
    }

    fn count(&mut self, kind: FaultKind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// From now on the bytes of a write are known.
    fn knows(&mut self, write: WriteId, content: Bytes) {
        self.history.sums.insert(write, etag(&content));
        self.contents.insert(write, content);
    }

    /// Bytes with this sum that somebody wrote.
    fn with_sum(&self, sum: &str) -> Option<Bytes> {
        let (write, _) = self.history.sums.iter().find(|(_, of)| *of == sum)?;
        self.contents.get(write).cloned()
    }
}

/// Groups of a few keys, which may have some garbage.
fn tables(in_background: bool) -> kv::Config {
    kv::Config {
        row_overhead: 100,
        weight_split: 2_500,
        weight_max: 40_000,
        page_rows: 3,
        help_after: Duration::from_millis(30),
        drop_patience: Duration::from_millis(200),
        cached_groups: 6,
        split_in_background: in_background,
        ..kv::Config::default()
    }
}

impl DataObjects for SimObjects {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<OperateReply, OperateError> {
        self.execute(object, ops, false).await
    }

    async fn is_short_of_room(&self) -> Result<bool, BackendError> {
        Ok(false)
    }
}

impl Surroundings for SimObjects {
    fn spawn(&self, work: Pin<Box<dyn Future<Output = ()> + Send>>) {
        kv::Objects::spawn(self, work);
    }

    fn pause(&self, length: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let objects = self.clone();
        Box::pin(async move { kv::Objects::pause(&objects, length).await })
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now())
    }

    fn fresh_id(&self) -> [u8; 16] {
        kv::Objects::fresh_id(self)
    }
}

/// The clock on the wall of one gateway.
struct WallClock(SimObjects);

impl Clock for WallClock {
    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.0.now() / 1_000_000 + self.0.who.process as u64 * 150
    }
}

/// One user.
struct OneKey;

#[async_trait::async_trait]
impl Keys for OneKey {
    async fn secret_for(&self, _access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
        let info = KeyInfo {
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            owner: "o".to_owned(),
            name: "n".to_owned(),
        };
        Ok(Some(info))
    }
}

fn gateway(objects: &SimObjects) -> (Arc<Gateway>, Backend) {
    let runtime = Runtime::within(Arc::new(objects.clone()));
    let config = tables(objects.random(2) == 0);
    let backend = cluster_backend::over(objects.clone(), config, objects.clone(), Arc::new(OneKey), runtime.clone());
    let config = GatewayConfig { gc_every: None, gc_min_age: GRACE, sizes: SIZES, ..GatewayConfig::default() };
    let clock = Arc::new(WallClock(objects.clone()));
    (Gateway::within(config, backend.clone(), clock, runtime), backend)
}

/// One run of a front end.
pub(crate) async fn process(objects: SimObjects, settings: FrontSettings) {
    let (gateway, _) = gateway(&objects);
    while gateway.prepare().await.is_err() {
        kv::Objects::pause(&objects, Duration::from_millis(200)).await;
    }
    let first = Customer::new(&objects, &gateway);
    while objects.who.process == 0 && !objects.desk.lock().shop.open {
        if first.makes_bucket().await {
            objects.desk.lock().shop.open = true;
        }
    }
    while !objects.desk.lock().shop.open {
        kv::Objects::pause(&objects, Duration::from_millis(100)).await;
    }
    for _ in 0..CUSTOMERS {
        let customer = Customer::new(&objects, &gateway);
        kv::Objects::spawn(&objects, async move { customer.works(settings.rest_ms).await });
    }
    while objects.desk.lock().working {
        kv::Objects::pause(&objects, Duration::from_millis(u64::from(500 + objects.random(5_000)))).await;
        collects(&objects, &gateway).await;
    }
}

/// A round of the collector. Gives whether it was complete and found nothing to do.
async fn collects(objects: &SimObjects, gateway: &Gateway) -> bool {
    match gc::round(gateway).await {
        Ok(round) => {
            let mut desk = objects.desk.lock();
            *desk.shop.counts.entry(FaultKind::BlobCollected).or_default() += round.blobs;
            round.rows == 0
        }
        Err(error) if error.code == Code::InternalError => {
            objects.desk.lock().wrong(format!("OB2: the collector cannot go on: {error}"));
            false
        }
        Err(_) => false,
    }
}

/// Ends what was begun, has all garbage collected, and looks at everything.
pub(crate) async fn last_visit(objects: SimObjects) {
    let (gateway, backend) = gateway(&objects);
    let customer = Customer::new(&objects, &gateway);
    customer.ends_uploads().await;
    kv::Objects::pause(&objects, GRACE + Duration::from_secs(1)).await;
    while !collects(&objects, &gateway).await {
        kv::Objects::pause(&objects, Duration::from_secs(1)).await;
    }
    customer.reads_all().await;
    match referred(&backend).await {
        Ok(found) => objects.desk.lock().shop.found = Some(found),
        Err(what) => objects.desk.lock().wrong(format!("OB2: {what}")),
    }
}

/// The objects of all blobs that objects refer to, when nothing else refers to any.
async fn referred(backend: &Backend) -> Result<BTreeSet<ObjectName>, String> {
    let told = |error: &dyn std::error::Error| format!("rows cannot be read: {error}");
    let mut found = BTreeSet::new();
    let limit = ScanLimit { rows: 10_000, bytes: 64 << 20 };
    let rows = async |table, space| -> Result<Vec<(Vec<u8>, Bytes)>, String> {
        let (mut all, mut start) = (Vec::new(), Vec::new());
        loop {
            let range = ScanRange { space, start, end: None };
            let page = backend.tables.scan(table, range, limit).await.map_err(|error| told(&error))?;
            all.extend(page.rows);
            match page.next {
                Some(next) => start = next,
                None => return Ok(all),
            }
        }
    };
    for (_, bucket) in rows(GLOBAL_TABLE, space::BUCKETS).await? {
        let table = BucketRow::from_bytes(&bucket).map_err(|error| told(&error))?.table;
        for (space, what) in [(space::GC, "garbage rows"), (space::UPLOADS, "uploads"), (space::PARTS, "parts")] {
            let left = rows(table, space).await?;
            if !left.is_empty() {
                return Err(format!("{} {what} are left", left.len()));
            }
        }
        for (_, value) in rows(table, space::EXTERNAL).await? {
            for blob in DataRow::from_bytes(&value).map_err(|error| told(&error))?.payload.blobs() {
                for stripe in 0..blob.stripes() {
                    let name = holdfast_client::BlobName::new(blob.id.to_string()).map_err(|error| told(&error))?;
                    if !found.insert(name.stripe(stripe)) {
                        return Err(format!("blob {} belongs to two objects", blob.id));
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Whether an object is a stripe of a blob: `<32 hex digits>.<8 hex digits>`.
fn is_stripe(name: &ObjectName) -> bool {
    let bytes = name.as_bytes();
    bytes.len() == 41 && bytes[32] == b'.' && bytes.iter().enumerate().all(|(at, b)| at == 32 || b.is_ascii_hexdigit())
}

impl World {
    /// What the checkers of objects say after the last visit.
    pub(crate) fn check_gateways(&mut self) -> Vec<String> {
        let Some(desk) = self.front.as_ref().map(|front| Arc::clone(&front.desk)) else { return Vec::new() };
        let desk = desk.lock();
        let shop = &desk.shop;
        let mut violations = Vec::new();
        for (kind, times) in &shop.counts {
            self.counts.add(*kind, *times);
        }
        self.counts.add(FaultKind::WriteUnknown, shop.history.unknown() as u64);
        if let Err(what) = register::check(&shop.history, KEYS) {
            violations.push(format!("OB1: {what}"));
        }
        match &shop.found {
            Some(found) => {
                let there: BTreeSet<ObjectName> = self.objects_on_disks().into_iter().filter(is_stripe).collect();
                let (leaked, lost): (Vec<_>, Vec<_>) =
                    (there.difference(found).collect(), found.difference(&there).collect());
                if !leaked.is_empty() {
                    violations.push(format!(
                        "OB2: {} of {} stripes belong to nothing: {leaked:?}",
                        leaked.len(),
                        there.len()
                    ));
                }
                if !lost.is_empty() {
                    violations.push(format!("OB2: stripes of objects are not there: {lost:?}"));
                }
            }
            None => violations.push("OB2: the last visit did not come to its end".to_owned()),
        }
        violations
    }
}

/// Which run of which process, for whoever takes over from it.
pub(crate) type Owner = Who;
