//! The client: performs what [`crate::core`] decides.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_map::BlocklistEntry;
use holdfast_net::mon_session::MonSession;
use holdfast_net::{Endpoint, LocalIdentity, Message, NetError, PeerIdentity};
use holdfast_types::{ClusterId, Epoch, ObjectName, PoolId, RequestId, Timestamp};
use holdfast_wire::mon::{MonCommand, MonReply};
use holdfast_wire::{ClientReply, Kind, ObjectOp, decode};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::{Budget, LATE_AFTER};
use crate::config::ClientConfig;
use crate::core::{Action, Input, MapView, Op, Outcome, Session, Target};
use crate::error::{Cause, ClientError, OperateError};
use crate::follower::Follower;
use crate::osds::Osds;
use crate::pool::Pool;

/// Longest time that a command waits for the map that shows its effect.
const EFFECT_WAIT: Duration = Duration::from_secs(5);

/// What may differ from op to op.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpOptions {
    /// How long to try; `None`: [`ClientConfig::op_timeout`].
    pub timeout: Option<Duration>,
    /// Follows the op through all daemons; 0: none.
    pub trace_id: u64,
    /// Whether this serves to free space, and is to be let in on a full cluster: it deletes something, and brings no bytes
    /// of objects and few of rows. What only deletes need not say so.
    pub frees_space: bool,
}

/// A client of one cluster; clones share it. When the last one is dropped, its connections end.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    endpoint: Arc<Endpoint>,
    mons: MonSession,
    follower: Arc<Follower>,
    osds: Arc<Osds>,
    session: Mutex<Session>,
    budget: Budget,
    clock: Clock,
    shutdown: CancellationToken,
    _end: DropGuard,
}

impl Client {
    /// Connects to the cluster: returns when the first map is there.
    ///
    /// # Errors
    /// [`ClientError::Session`] and [`ClientError::NoMap`], after [`ClientConfig::mon_timeout`] at the latest.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let identity = config.identity;
        let mons = MonSession::new(config.cluster, &config.monitors, identity.client, identity.incarnation)?;
        let shutdown = CancellationToken::new();
        let local = LocalIdentity {
            cluster: config.cluster,
            identity: PeerIdentity::Client(identity.client),
            incarnation: identity.incarnation,
            features: 0,
            features_required: 0,
        };
        let endpoint = Endpoint::new(local, config.net.clone(), shutdown.clone());
        let osds = Arc::new(Osds::new(Arc::clone(&endpoint), config.connections_per_osd));
        let follower = Arc::new(Follower::new(mons.clone(), config.cluster));
        let following = shutdown.clone().run_until_cancelled_owned(Arc::clone(&follower).run(Arc::clone(&osds)));
        tokio::spawn(following);
        let shared = Shared {
            session: Mutex::new(Session::new(identity.client, identity.incarnation)),
            budget: Budget::new(config.ops_in_flight_max, config.bytes_in_flight_max),
            clock: Clock(Instant::now()),
            _end: shutdown.clone().drop_guard(),
            config,
            endpoint,
            mons,
            follower,
            osds,
            shutdown,
        };
        let client = Client { shared: Arc::new(shared) };
        client.first_map().await?;
        Ok(client)
    }

    async fn first_map(&self) -> Result<(), ClientError> {
        let limit = self.shared.config.mon_timeout;
        let follower = &self.shared.follower;
        let first = Epoch::ZERO.next();
        // The subscription brings it, as a rule; the question tells why if it cannot.
        let question = async {
            match follower.refresh(limit).await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        tokio::select! {
            biased;
            () = follower.reach(first) => Ok(()),
            error = question => Err(error.into()),
            () = tokio::time::sleep(limit) => Err(ClientError::NoMap { after: limit }),
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.shared.config.cluster
    }

    /// The pool of that name.
    ///
    /// # Errors
    /// [`ClientError::PoolNotFound`] when the monitors know no such pool; [`ClientError::Session`] when the map at hand
    /// does not have it and no monitor answers.
    pub async fn pool(&self, name: &str) -> Result<Pool, ClientError> {
        let find = || {
            let view = self.shared.follower.view();
            view.map().pool_by_name(name).map(|(id, _)| Pool::new(self.clone(), id, name))
        };
        if let Some(pool) = find() {
            return Ok(pool);
        }
        self.shared.follower.refresh(self.shared.config.mon_timeout).await?;
        find().ok_or_else(|| ClientError::PoolNotFound { name: name.to_owned() })
    }

    /// Has the monitors execute a command, once. Returns when this client's map shows the effect, so that a pool that was
    /// made can be used.
    ///
    /// # Errors
    /// [`ClientError::Mon`] when they refuse, [`ClientError::Session`] when they do not answer.
    pub async fn mon_command(&self, command: MonCommand) -> Result<MonReply, ClientError> {
        let reply = self.shared.mons.execute_within(command, self.shared.config.mon_timeout).await?;
        match &reply {
            MonReply::Failed(error) => return Err(error.clone().into()),
            MonReply::Done { epoch } | MonReply::Pool { epoch, .. } => {
                let _ = tokio::time::timeout(EFFECT_WAIT, self.shared.follower.reach(*epoch)).await;
            }
            _ => {}
        }
        Ok(reply)
    }

    /// What the newest map at hand says of fences, in order.
    #[must_use]
    pub fn blocklist(&self) -> Vec<BlocklistEntry> {
        self.shared.follower.view().map().blocklist.iter().copied().collect()
    }

    pub(crate) fn follower(&self) -> &Follower {
        &self.shared.follower
    }

    pub(crate) fn osds(&self) -> &Osds {
        &self.shared.osds
    }

    /// Ends all connections. Ops in flight fail with [`OperateError::ShutDown`].
    pub async fn shutdown(&self) {
        self.shared.shutdown.cancel();
        self.shared.endpoint.shutdown().await;
    }

    /// See [`Pool::operate`].
    pub(crate) async fn operate(
        &self,
        pool: PoolId,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
        options: OpOptions,
    ) -> Result<Outcome, OperateError> {
        let shared = &*self.shared;
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => Err(OperateError::ShutDown),
            outcome = shared.operate(pool, object, ops, options) => outcome,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("identity", &self.shared.config.identity).finish_non_exhaustive()
    }
}

impl Shared {
    async fn operate(
        &self,
        pool: PoolId,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
        options: OpOptions,
    ) -> Result<Outcome, OperateError> {
        let timeout = options.timeout.unwrap_or(self.config.op_timeout);
        let started = self.clock.now();
        let pg = self.follower.view().map().pg_of(pool, object);
        let mut share = tokio::time::timeout(timeout, self.budget.take(pg, &ops))
            .await
            .map_err(|_| OperateError::Timeout { after: timeout, last_cause: Cause::NotSent })?;
        let outstanding = Outstanding { session: &self.session, id: self.session.lock().begin() };
        let op = Op::new(outstanding.id, pool, object.clone(), ops, started, started + timeout)
            .freeing_space(options.frees_space);
        let mut performed = pin!(self.perform(op, options.trace_id));
        tokio::select! {
            biased;
            outcome = &mut performed => return outcome,
            () = tokio::time::sleep(LATE_AFTER) => share.late(),
        }
        performed.await
    }

    async fn perform(&self, mut op: Op, trace_id: u64) -> Result<Outcome, OperateError> {
        let mut maps = self.follower.maps();
        let mut action = self.wake(&mut op, &mut maps);
        loop {
            action = match action {
                Action::Finish(outcome) => return outcome,
                Action::Send(target) => self.send(&mut op, &target, &mut maps, trace_id).await,
                Action::Wait { until, map } => {
                    if let Some(epoch) = map {
                        self.follower.want(epoch);
                    }
                    self.until(until, &mut maps).await;
                    self.wake(&mut op, &mut maps)
                }
                // Only `send` has something to await. Should the core ever think otherwise, the op is told of a loss.
                Action::Await => self.step(&mut op, &mut maps, Input::Lost(Cause::NotSent)),
            };
        }
    }

    /// Sends, and waits for what becomes of it.
    async fn send(
        &self,
        op: &mut Op,
        target: &Target,
        maps: &mut watch::Receiver<Arc<MapView>>,
        trace_id: u64,
    ) -> Action {
        let encoded = op.message(self.session.lock().lowest_outstanding_tid());
        let bytes = encoded.body.len() + encoded.payload.iter().map(bytes::Bytes::len).sum::<usize>();
        let message = Message::new(Kind::ClientRequest as u16, encoded.body, encoded.payload).traced(trace_id);
        let peer = self.osds.peer(target);
        let mut answer = pin!(peer.request(message, self.clock.instant(op.deadline())));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return match self.read(op.id(), answer) {
                        Err(NetError::TooLarge(_)) => Action::Finish(Err(OperateError::TooLarge { bytes })),
                        Err(error) => self.step(op, maps, Input::Lost(cause_of(&error))),
                        Ok(Some(reply)) => self.step(op, maps, Input::Reply(reply)),
                        Ok(None) => self.step(op, maps, Input::Lost(Cause::BadReply)),
                    };
                }
                changed = maps.changed() => {
                    debug_assert!(changed.is_ok(), "the follower lives as long as the client");
                    match self.wake(op, maps) {
                        Action::Await => {}
                        other => return other, // the answer, if it still comes, is dropped
                    }
                }
            }
        }
    }

    /// The reply in an answer; `None` when it is none.
    fn read(&self, id: RequestId, answer: Result<Message, NetError>) -> Result<Option<ClientReply>, NetError> {
        let answer = answer.inspect_err(|error| tracing::debug!(%id, %error, "request lost"))?;
        if answer.kind != Kind::ClientReply as u16 {
            tracing::warn!(%id, kind = answer.kind, "the answer to a request is no reply");
            return Ok(None);
        }
        match decode(answer.kind, &answer.body, &answer.payload()) {
            Ok(reply) => Ok(Some(reply)),
            Err(error) => {
                tracing::warn!(%id, %error, "the reply cannot be read");
                Ok(None)
            }
        }
    }

    fn wake(&self, op: &mut Op, maps: &mut watch::Receiver<Arc<MapView>>) -> Action {
        self.step(op, maps, Input::Wake)
    }

    fn step(&self, op: &mut Op, maps: &mut watch::Receiver<Arc<MapView>>, input: Input) -> Action {
        let view = Arc::clone(&maps.borrow_and_update());
        op.step(self.clock.now(), &view, input)
    }

    /// Waits for this time or the next map.
    async fn until(&self, until: Timestamp, maps: &mut watch::Receiver<Arc<MapView>>) {
        tokio::select! {
            _ = maps.changed() => {}
            () = tokio::time::sleep_until(self.clock.instant(until).into()) => {}
        }
    }
}

fn cause_of(error: &NetError) -> Cause {
    match error {
        NetError::Connect(_) => Cause::Unreachable,
        NetError::Closed(_) | NetError::GivenUp => Cause::Disconnected,
        NetError::Timeout => Cause::NoAnswer,
        NetError::TooLarge(_) | NetError::QueueFull => Cause::NotSent,
    }
}

/// The core's time.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }

    fn instant(self, at: Timestamp) -> Instant {
        self.0 + at.since(Timestamp::ZERO)
    }
}

/// A request that counts as outstanding until this is dropped.
struct Outstanding<'a> {
    session: &'a Mutex<Session>,
    id: RequestId,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.session.lock().end(self.id);
    }
}
