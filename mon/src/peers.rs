//! The way to the other monitors: consensus messages over the gRPC service.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_net::mon_api::{MESSAGE_BYTES_MAX, MonitorClient, RaftBytes, stamp};
use holdfast_types::{ClusterId, MonId};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::config::RunError;
use crate::raft::{Transport, TransportError};

/// Connecting; shorter than an election, so that one dead peer does not delay a vote.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// A connection on which pings stay unanswered this long is given up.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Connections to all other monitors, made when first used.
pub(crate) struct Peers {
    cluster: ClusterId,
    clients: BTreeMap<MonId, MonitorClient<Channel>>,
}

impl Peers {
    pub(crate) fn new(cluster: ClusterId, own: MonId, members: &BTreeMap<MonId, String>) -> Result<Peers, RunError> {
        let mut clients = BTreeMap::new();
        for (id, address) in members.iter().filter(|(id, _)| **id != own) {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| RunError::Config {
                reason: format!("the address {address:?} of {id} cannot be used: {error}"),
            })?;
            let channel = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .connect_lazy();
            let client = MonitorClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            clients.insert(*id, client);
        }
        Ok(Peers { cluster, clients })
    }
}

impl Transport for Peers {
    async fn call(&self, to: MonId, request: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        let failed = |reason: String| TransportError { to, reason };
        let mut client =
            self.clients.get(&to).cloned().ok_or_else(|| failed("it is not a configured monitor".into()))?;
        let mut call = Request::new(RaftBytes { bytes: request.into() });
        stamp(&mut call, self.cluster);
        match tokio::time::timeout(timeout, client.raft(call)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().bytes.into()),
            Ok(Err(status)) => Err(failed(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => Err(failed(format!("no answer within {timeout:?}"))),
        }
    }
}
