//! Requests of 4 KiB with small answers over loopback: operations per second and CPU time for each.
//!
//! `cargo run --release -p holdfast-net --example net_bench [IN_FLIGHT] [SECONDS]`. Asker and answerer share the process
//! and the runtime, so the CPU time is that of both sides together.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_net::{
    Connection, Endpoint, Handler, Listener, LocalIdentity, Message, NetConfig, NoHandler, Peer, PeerIdentity,
    PeerMode, Permit, Target,
};
use holdfast_types::{ClientId, ClusterId, Incarnation, OsdId};
use tokio_util::sync::CancellationToken;

struct Answer;

impl Handler for Answer {
    fn on_message(&self, from: &Arc<Connection>, message: Message, _: Permit) {
        let answer = Message::new(17, Bytes::from_static(&[0; 40]), Vec::new());
        if from.try_reply(message.request_id, answer).is_err() {
            eprintln!("an answer was lost");
        }
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn endpoint(identity: PeerIdentity) -> Arc<Endpoint> {
    let (cluster, incarnation) = (ClusterId([1; 16]), Incarnation(1));
    let local = LocalIdentity { cluster, identity, incarnation, features: 0, features_required: 0 };
    Endpoint::new(local, NetConfig::default(), CancellationToken::new())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let in_flight = arguments.next().transpose()?.unwrap_or(16);
    let seconds = arguments.next().transpose()?.unwrap_or(3);
    let server = endpoint(PeerIdentity::Osd(OsdId(0)));
    let listener = Listener::bind(&server, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Arc::new(Answer)).await?;
    let target = Target { address: listener.local_address().to_string(), identity: None, incarnation: None };
    let client = endpoint(PeerIdentity::Client(ClientId(1)));
    let peer = Peer::new(&client, target, PeerMode::OnDemand, Arc::new(NoHandler));
    peer.connection().await?;

    for bytes in [4 << 10, 4 << 20] {
        let payload = Bytes::from(vec![7u8; bytes]);
        let done = Arc::new(AtomicU64::new(0));
        let (start, cpu_start) = (Instant::now(), cpu());
        let end = start + Duration::from_secs(seconds);
        let tasks: Vec<_> = (0..in_flight)
            .map(|_| {
                let (peer, payload, done) = (peer.clone(), payload.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    while Instant::now() < end {
                        let request = Message::new(16, Bytes::from_static(&[0; 120]), vec![payload.clone()]);
                        peer.request(request, end + Duration::from_secs(5)).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), holdfast_net::NetError>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), (cpu() - cpu_start).as_secs_f64());
        let count = done.load(Ordering::Relaxed) as f64;
        println!(
            "{bytes:>8} bytes, {in_flight} in flight: {:.0} op/s, {:.2} GB/s, {:.2} us CPU per op (both sides)",
            count / wall,
            count * bytes as f64 / wall / 1e9,
            cpu * 1e6 / count,
        );
    }
    server.shutdown().await;
    Ok(())
}
