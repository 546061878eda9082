//! What must not impress a daemon: noise on its port, frames that are cut off, a configuration with a mistake.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_devcluster::DaemonName;
use holdfast_tests::content::Content;
use holdfast_tests::world::{World, binary, dose, seed};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A daemon ends a connection that makes no sense, or none at all, within this.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Sends bytes and waits until the other side closes.
async fn send_noise(address: std::net::SocketAddr, noise: &[u8], cut_off: bool) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // The daemon may have closed before all was sent: that is what is wanted.
    let _ = stream.write_all(noise).await;
    if cut_off {
        let _ = stream.shutdown().await;
    }
    let mut sink = Vec::new();
    let closed = tokio::time::timeout(CLOSE_LIMIT, stream.read_to_end(&mut sink)).await;
    ensure!(closed.is_ok(), "the connection is still open {CLOSE_LIMIT:?} after {} bytes of noise", noise.len());
    Ok(())
}

/// The first bytes of a daemon's own frames: what it says when it is connected to, or nothing.
fn samples(random: &mut SmallRng) -> Vec<u8> {
    let length = random.random_range(1..5000);
    let mut bytes = vec![0u8; length];
    random.fill_bytes(&mut bytes);
    match random.random_range(0..4) {
        0 => bytes.fill(0),
        1 => bytes.fill(0xff),
        2 => {
            let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            bytes = text.to_vec();
        }
        _ => {}
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_a_daemons_port_ends_the_connection_with_a_logged_reason_and_nothing_else() -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed());
    let world = World::start(1, 3).await?;
    let s3 = world.s3_with("noise").await?;
    for daemon in [DaemonName::mon(0), DaemonName::osd(0)] {
        let address = world.cluster.layout().place(daemon)?.address;
        let before = world.cluster.process(daemon).context("it runs")?;
        let logged = world.log_of(daemon)?.len();
        for round in 0..dose(20, 500) {
            let noise = samples(&mut random);
            send_noise(address, &noise, round % 2 == 0).await.with_context(|| daemon.to_string())?;
        }
        ensure!(world.cluster.process(daemon) == Some(before), "{daemon} is not the process that it was");
        let log = world.log_of(daemon)?;
        let said = log.get(logged..).unwrap_or_default().trim();
        ensure!(!said.is_empty(), "{daemon} logged nothing of the noise");
        println!("   {daemon} said: {}", said.lines().next().unwrap_or_default());
    }
    let content = Content { seed: 1, bytes: 100_000 };
    s3.put("noise", "after", content).await?;
    ensure!(s3.compare("noise", "after", content).await?, "the cluster does not serve as before");
    world.end().await
}

#[test]
fn a_wrong_key_in_a_configuration_is_named_with_its_line() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("osd.toml");
    let text = "cluster = \"00112233-4455-6677-8899-aabbccddeeff\"\nmonitors = [\"127.0.0.1:1\"]\ndata = \"x\"\n\
                listen = \"127.0.0.1:0\"\n\nlocaton = [\"host=a\"]\n";
    std::fs::write(&path, text)?;
    for role in ["osd", "s3", "mon"] {
        let output =
            Command::new(binary()).args([role, "--config"]).arg(&path).stdin(Stdio::null()).output().context("run")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{role} started with a wrong key");
        ensure!(error.contains("osd.toml, line "), "{role} does not say where: {error}");
        if role == "osd" {
            ensure!(error.contains("line 6: unknown field `locaton`"), "{error}");
        }
    }
    Ok(())
}
