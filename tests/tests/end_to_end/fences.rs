//! A client process that was stopped, is fenced meanwhile, and goes on: it writes nothing.
//!
//! The client is this program once more ([`writer_process`]): it writes one object after the other, as fast as it can, with
//! the client library. It is stopped (SIGSTOP) with writes in flight, so that some of their frames lie in sockets.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use holdfast_client::{Client, ClientConfig, ClientIdentity, OperateError, Pool};
use holdfast_devcluster::{DaemonName, ProcessIdentity};
use holdfast_tests::world::{CLEAN_LIMIT, World, dose};
use holdfast_types::{ClientId, ClusterId, Incarnation, ObjectName};
use holdfast_wire::mon::MonCommand;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

const POOL: &str = "volumes";
const OBJECTS: usize = 32;
/// Where the writer finds the cluster: its id, its own client id, and the monitors, by spaces.
const WRITER: &str = "HOLDFAST_FENCE_WRITER";
/// What the writer says when all objects have been written once.
const UNDER_WAY: &str = "under way";
/// Longest time until a fence holds: an OSD that is stopped must be marked down before.
const FENCE_LIMIT: Duration = Duration::from_secs(60);

fn object(index: usize) -> ObjectName {
    ObjectName::new(format!("block-{index}")).expect("a good name")
}

/// Numbers each write of each object, so that two are never the same.
async fn write_until_refused(pool: &Pool, index: usize, first: &tokio::sync::Semaphore) -> OperateError {
    for round in 0_u64.. {
        let content = format!("{index}/{round} ").repeat(300);
        if let Err(error) = pool.write_full(&object(index), content).await {
            return error;
        }
        if round == 0 {
            first.add_permits(1);
        }
    }
    unreachable!("2^64 writes")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of the test below, which starts it as a process of its own"]
async fn writer_process() -> anyhow::Result<()> {
    let place = std::env::var(WRITER).context("only for the test beside this one")?;
    let mut words = place.split(' ');
    let cluster: ClusterId = words.next().context("no cluster")?.parse()?;
    let client: ClientId = words.next().context("no client")?.parse()?;
    let identity = ClientIdentity { client, incarnation: Incarnation(1) };
    let config = ClientConfig { identity, ..ClientConfig::new(cluster, words.map(str::to_owned).collect()) };
    let client = Client::connect(config).await?;
    let pool = client.pool(POOL).await?;
    let first = tokio::sync::Semaphore::new(0);
    let writers = join_all((0..OBJECTS).map(|index| write_until_refused(&pool, index, &first)));
    let told = async {
        let _all = first.acquire_many(u32::try_from(OBJECTS)?).await?;
        println!("{UNDER_WAY}");
        anyhow::Ok(())
    };
    let (errors, told) = tokio::join!(writers, told);
    told?;
    for error in errors {
        println!("refused: {error:?}");
    }
    Ok(())
}

async fn read_all(pool: &Pool) -> anyhow::Result<BTreeMap<usize, Bytes>> {
    let read = (0..OBJECTS)
        .map(|index| async move { pool.read(&object(index), 0, 1 << 20).await.map(|bytes| (index, bytes)) });
    Ok(try_join_all(read).await?.into_iter().collect())
}

fn start_writer(world: &World, client: ClientId) -> anyhow::Result<(Child, ProcessIdentity)> {
    let layout = world.cluster.layout();
    let place = format!("{} {} {}", layout.cluster, client.0, layout.monitors().join(" "));
    let child = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "--nocapture", "fences::writer_process"])
        .env(WRITER, place)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let identity = ProcessIdentity::of(child.id().context("it ended at once")?)?;
    Ok((child, identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_stopped_past_its_fence_writes_nothing() -> anyhow::Result<()> {
    let world = World::start(3, 3).await?;
    let layout = world.cluster.layout();
    let client = Client::connect(ClientConfig::new(layout.cluster, layout.monitors())).await?;
    let command = MonCommand::PoolCreate {
        name: POOL.to_owned(),
        size: Some(3),
        min_size: Some(2),
        application: "test".to_owned(),
        failure_domain: None,
        share_percent: None,
    };
    client.mon_command(command).await?;
    let pool = client.pool(POOL).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;

    for round in 0..dose(4, 40) {
        let id = ClientId(1000 + round);
        let (mut child, writer) = start_writer(&world, id)?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        loop {
            match lines.next_line().await? {
                Some(line) if line.contains(UNDER_WAY) => break,
                Some(_) => {}
                None => bail!("the writer ended"),
            }
        }
        writer.signal(Signal::STOP)?;
        // Each second time an OSD is stopped, too: it cannot confirm, may have taken writes, and comes back with old maps.
        let silent = (round % 2 == 1).then(|| DaemonName::osd((round / 2) % 3));
        if let Some(osd) = silent {
            world.cluster.pause(osd)?;
        }
        client.fence(id, Incarnation(1), FENCE_LIMIT).await?;
        let at_the_fence = read_all(&pool).await?;
        // What the one who took over writes must stay, too.
        pool.write_full(&object(0), format!("taken over {round}")).await?;
        writer.signal(Signal::CONT)?;
        if let Some(osd) = silent {
            world.cluster.resume(osd)?;
        }
        let mut said = String::new();
        lines.into_inner().read_to_string(&mut said).await?;
        ensure!(child.wait().await?.success(), "the writer failed: {said}");
        let refused = said.matches("refused: Fenced").count();
        ensure!(
            refused == OBJECTS,
            "round {round}: {refused} of {OBJECTS} writers were told that they are fenced: {said}"
        );
        world.cluster.wait_clean(CLEAN_LIMIT).await?;
        let mut after = read_all(&pool).await?;
        ensure!(after.insert(0, at_the_fence[&0].clone()) == Some(format!("taken over {round}").into()));
        for (index, now) in &after {
            ensure!(*now == at_the_fence[index], "round {round}: block {index} was written after the fence held");
        }
    }
    client.shutdown().await;
    world.end().await
}
