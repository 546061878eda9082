//! A caller's side of the monitor service: finds the leader, repeats what was not answered, follows the maps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_types::{ClientId, ClusterId, Epoch, Incarnation, RequestId};
use holdfast_wire::mon::{MapUpdate, MonCommand, MonError, MonReply, MonRequest, Subscribe};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::mon_api::{MESSAGE_BYTES_MAX, MonitorClient, stamp};

/// How long a command is tried when the caller names no deadline: several elections.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest attempt at one monitor. A commit takes milliseconds; a monitor that takes longer has no quorum or is gone.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// An attempt of the first round; doubles up to [`ATTEMPT_TIMEOUT`]. A monitor that has stopped without closing its
/// connections must not cost a report that another one waits for: a resend carries the same id, so asking too soon is
/// never wrong.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Connecting to one monitor.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after the first round over all monitors without an answer; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause between rounds: shorter than an election, so that a new leader is found at once.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// A monitor that does not answer pings for this long has lost the subscription.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The monitors could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MonSessionError {
    /// No monitor answered in time. The command may have taken effect.
    #[error("no monitor of {monitors} answered within {after:?}; last: {last}")]
    Timeout {
        /// Their addresses.
        monitors: String,
        /// How long they were tried.
        after: Duration,
        /// The last thing that went wrong.
        last: String,
    },
    /// The monitors belong to another cluster, or speak another version.
    #[error("the monitor at {address} refuses this caller: {reason}")]
    Refused {
        /// Which.
        address: String,
        /// Its words.
        reason: String,
    },
    /// There is no monitor address that can be used.
    #[error("no usable monitor address: {detail}")]
    NoAddress {
        /// What is wrong with them.
        detail: String,
    },
}

struct Inner {
    cluster: ClusterId,
    client: ClientId,
    incarnation: Incarnation,
    next_tid: AtomicU64,
    addresses: Mutex<Vec<String>>,
    /// Index of the monitor that answered last, or of the one after that when it answers no more.
    preferred: AtomicUsize,
    channels: Mutex<BTreeMap<String, MonitorClient<Channel>>>,
}

/// A session with the monitors; clones share it.
#[derive(Clone)]
pub struct MonSession {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for MonSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MonSession").field("cluster", &self.inner.cluster).finish_non_exhaustive()
    }
}

impl MonSession {
    /// A session for the caller `client`, run `incarnation`, over monitors at `addresses` (`host:port`). Connects when
    /// first used.
    ///
    /// # Errors
    /// [`MonSessionError::NoAddress`] when an address is malformed or there is none.
    pub fn new(
        cluster: ClusterId,
        addresses: &[String],
        client: ClientId,
        incarnation: Incarnation,
    ) -> Result<MonSession, MonSessionError> {
        if addresses.is_empty() {
            return Err(MonSessionError::NoAddress { detail: "the list is empty".to_owned() });
        }
        for address in addresses {
            endpoint(address).map_err(|detail| MonSessionError::NoAddress { detail })?;
        }
        let inner = Inner {
            cluster,
            client,
            incarnation,
            next_tid: AtomicU64::new(1),
            addresses: Mutex::new(addresses.to_vec()),
            preferred: AtomicUsize::new(0),
            channels: Mutex::default(),
        };
        Ok(MonSession { inner: Arc::new(inner) })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Takes over the addresses of a newer map; malformed ones are left out, and an empty list changes nothing.
    pub fn learn_addresses(&self, addresses: impl IntoIterator<Item = String>) {
        let usable: Vec<String> = addresses.into_iter().filter(|address| endpoint(address).is_ok()).collect();
        let mut present = self.inner.addresses.lock();
        if usable.is_empty() || *present == usable {
            return;
        }
        self.inner.channels.lock().retain(|address, _| usable.contains(address));
        *present = usable;
    }

    /// Has a command executed once, trying all monitors for [`COMMAND_TIMEOUT`].
    ///
    /// # Errors
    /// [`MonSessionError`]. What the monitors themselves refuse is [`MonReply::Failed`].
    pub async fn execute(&self, command: MonCommand) -> Result<MonReply, MonSessionError> {
        self.execute_within(command, COMMAND_TIMEOUT).await
    }

    /// Like [`MonSession::execute`], with another time limit.
    ///
    /// # Errors
    /// [`MonSessionError`].
    pub async fn execute_within(&self, command: MonCommand, limit: Duration) -> Result<MonReply, MonSessionError> {
        let tid = self.inner.next_tid.fetch_add(1, Ordering::Relaxed);
        let id = RequestId { client: self.inner.client, incarnation: self.inner.incarnation, tid };
        let request = MonRequest { id, command };
        let started = Instant::now();
        let (mut pause, mut patience) = (PAUSE_MIN, PATIENCE_MIN);
        let mut last = "none was reachable".to_owned();
        loop {
            match self.round(&request, started + limit, patience, &mut last).await? {
                Some(reply) => return Ok(reply),
                None if started.elapsed() + pause < limit => tokio::time::sleep(pause).await,
                None => {
                    let monitors = self.inner.addresses.lock().join(", ");
                    return Err(MonSessionError::Timeout { monitors, after: limit, last });
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
            patience = (patience * 2).min(ATTEMPT_TIMEOUT);
        }
    }

    /// Asks each monitor once, following hints to the leader first; not to one that gave no answer in this round.
    async fn round(
        &self,
        request: &MonRequest,
        deadline: Instant,
        patience: Duration,
        last: &mut String,
    ) -> Result<Option<MonReply>, MonSessionError> {
        let addresses = self.inner.addresses.lock().clone();
        let first = self.inner.preferred.load(Ordering::Relaxed);
        let mut queue: Vec<String> =
            (0..addresses.len()).map(|offset| addresses[(first + offset) % addresses.len()].clone()).collect();
        queue.reverse();
        // Each monitor is asked at most twice in a round: by turn, and by a hint.
        let mut attempts = addresses.len() * 2;
        let mut silent: Vec<String> = Vec::new();
        while let Some(address) = queue.pop() {
            if attempts == 0 || Instant::now() >= deadline {
                return Ok(None);
            }
            attempts -= 1;
            match self.attempt(&address, request, deadline, patience).await {
                Ok(MonReply::Failed(MonError::NotLeader { leader })) => {
                    *last = format!("{address} does not lead");
                    if let Some(leader) = leader.filter(|leader| *leader != address && !silent.contains(leader)) {
                        queue.retain(|other| *other != leader);
                        queue.push(leader);
                    }
                }
                Ok(MonReply::Failed(MonError::Unavailable)) => *last = format!("{address} has no quorum"),
                Ok(reply) => {
                    if let Some(index) = addresses.iter().position(|known| *known == address) {
                        self.inner.preferred.store(index, Ordering::Relaxed);
                    }
                    return Ok(Some(reply));
                }
                Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument) => {
                    return Err(MonSessionError::Refused { address, reason: status.message().to_owned() });
                }
                Err(status) => {
                    *last = format!("{address}: {}", describe(&status));
                    self.pass_over(&addresses, &address);
                    silent.push(address);
                }
            }
        }
        Ok(None)
    }

    /// The next command begins with another monitor than this one, which gave no answer.
    fn pass_over(&self, addresses: &[String], silent: &str) {
        let Some(index) = addresses.iter().position(|known| known == silent) else { return };
        let next = (index + 1) % addresses.len();
        // Only if nobody has found a better one meanwhile.
        let _ = self.inner.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn attempt(
        &self,
        address: &str,
        request: &MonRequest,
        deadline: Instant,
        patience: Duration,
    ) -> Result<MonReply, Status> {
        let mut client = self.channel(address)?;
        let mut call = Request::new(request.clone());
        stamp(&mut call, self.inner.cluster);
        let wait = patience.min(deadline.saturating_duration_since(Instant::now()));
        let answer = tokio::time::timeout(wait, client.execute(call)).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))).map(tonic::Response::into_inner)
    }

    fn channel(&self, address: &str) -> Result<MonitorClient<Channel>, Status> {
        let mut channels = self.inner.channels.lock();
        if let Some(client) = channels.get(address) {
            return Ok(client.clone());
        }
        let channel = endpoint(address).map_err(Status::unavailable)?.connect_lazy();
        let client = MonitorClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        channels.insert(address.to_owned(), client.clone());
        Ok(client)
    }

    /// Sends every map after `held()` to `updates`, from whichever monitor is there, until the receiver is dropped.
    /// `held` is asked at each (re)subscription.
    pub async fn follow(&self, held: impl Fn() -> Epoch, updates: mpsc::Sender<MapUpdate>) {
        let mut pause = PAUSE_MIN;
        let mut turn = self.inner.preferred.load(Ordering::Relaxed);
        while !updates.is_closed() {
            let addresses = self.inner.addresses.lock().clone();
            let address = &addresses[turn % addresses.len()];
            turn += 1;
            match self.follow_one(address, held(), &updates).await {
                Ok(true) => pause = PAUSE_MIN,
                Ok(false) => {}
                Err(status) => tracing::debug!(%address, error = %describe(&status), "map subscription ended"),
            }
            tokio::select! {
                () = updates.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One subscription; whether it brought anything.
    async fn follow_one(&self, address: &str, after: Epoch, updates: &mpsc::Sender<MapUpdate>) -> Result<bool, Status> {
        let mut client = self.channel(address)?;
        let mut call = Request::new(Subscribe { after });
        stamp(&mut call, self.inner.cluster);
        let mut stream = tokio::time::timeout(ATTEMPT_TIMEOUT, client.subscribe(call))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))??
            .into_inner();
        let mut any = false;
        loop {
            let update = tokio::select! {
                () = updates.closed() => return Ok(any),
                update = stream.message() => update?,
            };
            let Some(update) = update else { return Ok(any) };
            any = true;
            if updates.send(update).await.is_err() {
                return Ok(any);
            }
        }
    }
}

fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| format!("{address}: {error}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}
