//! A cluster made of fakes: a monitor that serves the maps it is given, OSDs that keep objects in memory. The network
//! between them and the client is the real one.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use holdfast_client::{Client, ClientConfig, Pool as ClientPool};
use holdfast_map::{ClusterMap, Increment, OsdInfo, Pool, PoolKind};
use holdfast_net::mon_api::{Monitor, MonitorServer, RaftBytes};
use holdfast_net::*;
use holdfast_types::*;
use holdfast_wire::mon::*;
use holdfast_wire::*;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub const CLUSTER: ClusterId = ClusterId([5; 16]);
pub const POOL: &str = "p";

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("within 120 s")
}

pub fn name(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

/// Serves a chain of maps.
pub struct FakeMon {
    myself: Weak<FakeMon>,
    maps: Mutex<Vec<ClusterMap>>,
    newest: watch::Sender<Epoch>,
    /// Damages the checksum in every increment that is sent.
    pub diverge: AtomicBool,
    /// Sends nothing by subscription.
    pub silent: AtomicBool,
    /// Redirects every command.
    pub leader: Mutex<Option<String>>,
    pub full_maps_asked: AtomicU32,
    pub commands: Mutex<Vec<MonRequest>>,
}

impl FakeMon {
    pub async fn start(maps: Vec<ClusterMap>) -> (Arc<FakeMon>, String) {
        let newest = watch::Sender::new(maps.last().map_or(Epoch::ZERO, |map| map.epoch));
        let mon = Arc::new_cyclic(|myself| FakeMon {
            myself: myself.clone(),
            maps: Mutex::new(maps),
            newest,
            diverge: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            leader: Mutex::new(None),
            full_maps_asked: AtomicU32::new(0),
            commands: Mutex::default(),
        });
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let service = MonitorServer::from_arc(Arc::clone(&mon));
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(socket)));
        (mon, address)
    }

    /// Commits the next map.
    pub fn publish(&self, change: impl FnOnce(&mut ClusterMap)) -> Epoch {
        let mut maps = self.maps.lock().unwrap();
        let mut next = maps.last().unwrap().clone();
        next.epoch = next.epoch.next();
        change(&mut next);
        let epoch = next.epoch;
        maps.push(next);
        drop(maps);
        self.newest.send_replace(epoch);
        epoch
    }

    pub fn map(&self) -> ClusterMap {
        self.maps.lock().unwrap().last().unwrap().clone()
    }

    pub fn maps(&self) -> Vec<ClusterMap> {
        self.maps.lock().unwrap().clone()
    }

    fn after(&self, after: Epoch) -> MapUpdate {
        let maps = self.maps.lock().unwrap();
        let increments = maps.windows(2).filter(|pair| pair[1].epoch > after).map(|pair| {
            let mut increment = Increment::between(&pair[0], &pair[1]);
            increment.checksum ^= u32::from(self.diverge.load(Ordering::Relaxed));
            increment.encode().into()
        });
        MapUpdate { full: None, increments: increments.collect() }
    }
}

#[tonic::async_trait]
impl Monitor for FakeMon {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<MapUpdate, Status>> + Send>>;

    async fn execute(&self, request: Request<MonRequest>) -> Result<Response<MonReply>, Status> {
        let request = request.into_inner();
        self.commands.lock().unwrap().push(request.clone());
        let leader = self.leader.lock().unwrap().clone();
        let reply = match request.command {
            MonCommand::GetMaps { after } => MonReply::Maps(self.after(after)),
            MonCommand::GetFullMap { epoch } => {
                self.full_maps_asked.fetch_add(1, Ordering::Relaxed);
                let maps = self.maps.lock().unwrap();
                let map = maps.iter().find(|map| map.epoch == epoch).unwrap();
                MonReply::Maps(MapUpdate { full: Some(map.encode_full().into()), increments: Vec::new() })
            }
            _ if leader.is_some() => MonReply::Failed(MonError::NotLeader { leader }),
            MonCommand::PoolCreate { name, .. } => {
                let mut id = PoolId(0);
                let epoch = self.publish(|map| {
                    id = map.next_pool;
                    map.next_pool = PoolId(id.0 + 1);
                    map.pools.insert(id, pool(&name));
                });
                MonReply::Pool { id, epoch }
            }
            _ => MonReply::Failed(MonError::Invalid { reason: "a fake".into() }),
        };
        Ok(Response::new(reply))
    }

    async fn subscribe(&self, request: Request<Subscribe>) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut after = request.into_inner().after;
        let (sender, updates) = mpsc::channel(4);
        let mut newest = WatchStream::new(self.newest.subscribe());
        let this = self.myself.clone();
        tokio::spawn(async move {
            while newest.next().await.is_some() {
                let Some(mon) = this.upgrade() else { return };
                if mon.silent.load(Ordering::Relaxed) {
                    continue;
                }
                let update = mon.after(after);
                after = mon.map().epoch;
                if sender.send(Ok(update)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(updates))))
    }

    async fn raft(&self, _: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        Err(Status::unimplemented("a fake"))
    }
}

fn pool(name: &str) -> Pool {
    Pool {
        name: name.into(),
        kind: PoolKind::Replicated { size: 3, min_size: 2 },
        pg_num: 16,
        rule: 0,
        created: Epoch(1),
        application: String::new(),
    }
}

/// What a fake OSD does with a request.
pub enum Reaction {
    /// Executes it, once for each id.
    Execute,
    /// Answers this without executing it.
    Refuse(RefusedReason, Epoch),
    /// Says nothing.
    Ignore,
    /// Closes the connection.
    Hangup,
}

pub type Objects = Arc<Mutex<BTreeMap<ObjectName, Bytes>>>;

/// An OSD in memory.
pub struct FakeOsd {
    pub id: OsdId,
    pub address: String,
    pub reactions: Arc<Mutex<VecDeque<Reaction>>>,
    pub received: mpsc::UnboundedReceiver<ClientRequest>,
    endpoint: Arc<Endpoint>,
    _listener: Listener,
}

impl FakeOsd {
    /// `objects` is shared by all OSDs of a cluster: as if replication were instant. `answered` likewise.
    pub async fn start(id: u32, shared: &SharedState) -> FakeOsd {
        let id = OsdId(id);
        let local = LocalIdentity {
            cluster: CLUSTER,
            identity: PeerIdentity::Osd(id),
            incarnation: Incarnation(1),
            features: 0,
            features_required: 0,
        };
        let endpoint = Endpoint::new(local, NetConfig::default(), CancellationToken::new());
        let (sender, received) = mpsc::unbounded_channel();
        let reactions: Arc<Mutex<VecDeque<Reaction>>> = Arc::default();
        let handler = OsdHandler { shared: shared.clone(), reactions: Arc::clone(&reactions), sender };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(&endpoint, any, Arc::new(handler)).await.unwrap();
        let address = listener.local_address().to_string();
        FakeOsd { id, address, reactions, received, endpoint, _listener: listener }
    }

    /// The next requests are met so; those after them are executed.
    pub fn react(&self, reactions: impl IntoIterator<Item = Reaction>) {
        self.reactions.lock().unwrap().extend(reactions);
    }

    pub async fn request(&mut self) -> ClientRequest {
        within(self.received.recv()).await.unwrap()
    }

    pub async fn stop(&self) {
        self.endpoint.shutdown().await;
    }
}

#[derive(Clone, Default)]
pub struct SharedState {
    pub objects: Objects,
    pub answered: Arc<Mutex<BTreeMap<RequestId, ClientOutcome>>>,
    pub executed: Arc<AtomicU32>,
}

struct OsdHandler {
    shared: SharedState,
    reactions: Arc<Mutex<VecDeque<Reaction>>>,
    sender: mpsc::UnboundedSender<ClientRequest>,
}

impl Handler for OsdHandler {
    fn on_message(&self, from: &Arc<Connection>, message: Message, _: Permit) {
        assert_eq!(message.kind, Kind::ClientRequest as u16);
        let request: ClientRequest = decode(message.kind, &message.body, &message.payload()).unwrap();
        let reaction = self.reactions.lock().unwrap().pop_front().unwrap_or(Reaction::Execute);
        let mut epoch = request.epoch;
        let outcome = match reaction {
            Reaction::Ignore => None,
            Reaction::Hangup => {
                from.close(GoodbyeReason::Idle);
                None
            }
            Reaction::Refuse(reason, at) => {
                epoch = at;
                Some(ClientOutcome::Refused(reason))
            }
            Reaction::Execute => Some(self.shared.execute(&request)),
        };
        if let Some(outcome) = outcome {
            let encoded = encode(&ClientReply { id: request.id, epoch, outcome });
            let reply = Message::new(Kind::ClientReply as u16, encoded.body, encoded.payload);
            from.try_reply(message.request_id, reply).unwrap();
        }
        let _ = self.sender.send(request);
    }
}

impl SharedState {
    fn execute(&self, request: &ClientRequest) -> ClientOutcome {
        let mut answered = self.answered.lock().unwrap();
        answered.entry(request.id).or_insert_with(|| self.execute_once(request)).clone()
    }

    fn execute_once(&self, request: &ClientRequest) -> ClientOutcome {
        let count = self.executed.fetch_add(1, Ordering::Relaxed);
        let mut objects = self.objects.lock().unwrap();
        let version = LogVersion { epoch: request.epoch, counter: u64::from(count) + 1 };
        let mut results = Vec::new();
        for (index, op) in (0u32..).zip(&request.ops) {
            let present = objects.get(&request.object).cloned();
            let missing = || ClientOutcome::Failed { index, error: OpError::NotFound };
            results.push(match op {
                ObjectOp::WriteFull { data } => {
                    objects.insert(request.object.clone(), data.0.clone());
                    OpResult::Done
                }
                ObjectOp::Remove if present.is_none() => return missing(),
                ObjectOp::Remove => {
                    objects.remove(&request.object);
                    OpResult::Done
                }
                ObjectOp::Read { offset, length } => {
                    let Some(bytes) = present else { return missing() };
                    let start = (*offset as usize).min(bytes.len());
                    let end = (start + *length as usize).min(bytes.len());
                    OpResult::Data(bytes.slice(start..end).into())
                }
                ObjectOp::Stat => {
                    let Some(bytes) = present else { return missing() };
                    OpResult::Stat(ObjectStat { size: bytes.len() as u64, version })
                }
                other => panic!("the fake does not know {other:?}"),
            });
        }
        ClientOutcome::Done { version, results }
    }
}

/// One monitor, three OSDs, one pool, one client.
pub struct Cluster {
    pub mon: Arc<FakeMon>,
    pub mon_address: String,
    pub osds: Vec<FakeOsd>,
    pub shared: SharedState,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let shared = SharedState::default();
        let mut osds = Vec::new();
        for id in 0..3 {
            osds.push(FakeOsd::start(id, &shared).await);
        }
        let empty = ClusterMap::empty(CLUSTER);
        let (mon, mon_address) = FakeMon::start(vec![empty]).await;
        let address = mon_address.clone();
        mon.publish(|map| {
            map.mons.insert(MonId(0), address);
            for osd in &osds {
                let host = format!("n{}", osd.id.0);
                map.crush.insert_device(osd.id, 0x10000, None, &[("host", &host), ("root", "default")]).unwrap();
                map.osds.insert(osd.id, info(osd));
            }
            map.pools.insert(PoolId(1), pool(POOL));
            map.next_pool = PoolId(2);
        });
        Cluster { mon, mon_address, osds, shared }
    }

    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(CLUSTER, vec![self.mon_address.clone()]);
        config.op_timeout = Duration::from_secs(90);
        config.mon_timeout = Duration::from_secs(60);
        config
    }

    pub async fn client(&self) -> Client {
        within(Client::connect(self.config())).await.unwrap()
    }

    pub async fn pool(&self) -> ClientPool {
        within(self.client().await.pool(POOL)).await.unwrap()
    }

    /// The acting set of an object in the newest map.
    pub fn acting(&self, object: &ObjectName) -> Vec<usize> {
        let map = self.mon.map();
        let pg = map.pg_of(PoolId(1), object).unwrap();
        map.members(pg).acting.iter().map(|osd| osd.0 as usize).collect()
    }

    pub fn mark_down(&self, osd: usize) -> Epoch {
        self.mon.publish(|map| map.osds.get_mut(&OsdId(osd as u32)).unwrap().up = false)
    }
}

fn info(osd: &FakeOsd) -> OsdInfo {
    OsdInfo {
        disk: DiskUuid([osd.id.0 as u8; 16]),
        incarnation: Incarnation(1),
        address: osd.address.clone(),
        up: true,
        in_cluster: true,
        reweight: 0x10000,
        up_from: Epoch(1),
        up_thru: Epoch(1),
        down_at: Epoch::ZERO,
        dead_epoch: Epoch::ZERO,
        formatted_at: Epoch::ZERO,
    }
}
