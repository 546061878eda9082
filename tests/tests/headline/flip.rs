//! A bit flips in a file of one OSD, whichever file it is, under load; the others are whole.
//!
//! A bit counts as met when the OSD cannot start with it, or has found bad copies since it flipped; what was not met until
//! the last one, a deep scrub of everything looks for. Bits in free space, in old versions of the index, or in a log for
//! people are never met.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_devcluster::{DaemonName, ProcessIdentity};
use holdfast_tests::fabric::Fabric;
use holdfast_tests::field::{Field, Ground, OSDS};
use holdfast_tests::load::Load;
use holdfast_tests::running::Running;
use holdfast_tests::scrub::{Damage, damage_of, deep_scrub, unexplained};
use holdfast_tests::watch::NOTICE_LIMIT;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::SeekFrom;

use crate::{BUCKET, CLEAN_LIMIT};

/// The load goes on for this long before a bit flips, and before anything else is done about it.
const BETWEEN: Duration = Duration::from_millis(1500);
/// An OSD that cannot be started again is tried for this long.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Client number of reads in between.
const READER: u64 = 900;
/// Of so many bits one must have been met. Some half of them fall in data that are in use; of fewer than these, all may miss.
const BITS_TELLING: u64 = 8;

/// A bit and where it was.
#[derive(Debug)]
struct Flip {
    file: PathBuf,
    offset: u64,
    before: u8,
    after: u8,
}

impl std::fmt::Display for Flip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        write!(f, "byte {} of {name} {:#04x} became {:#04x}", self.offset, self.before, self.after)
    }
}

/// What the victim has told of its disk, over all its processes: each counts from zero.
#[derive(Debug, Default)]
struct Told {
    process: Option<ProcessIdentity>,
    by_process: Damage,
    in_all: Damage,
}

impl Told {
    /// Looks when all is clean: then what the status says is of the present process. Whether there is more than before.
    async fn look(&mut self, field: &Field, victim: DaemonName) -> anyhow::Result<bool> {
        let process = field.cluster.process(victim);
        if process != self.process {
            *self = Told { process, by_process: Damage::default(), in_all: self.in_all };
        }
        let report = field.cluster.status().await?;
        let now = damage_of(&report.checks)?.get(&victim).copied().unwrap_or_default();
        let news = now.since(self.by_process);
        self.by_process = self.by_process.most(now);
        self.in_all.add(news);
        Ok(news != Damage::default())
    }

    /// Looks before the process is killed, and forgets what it counted. One that came since the last look may not have told
    /// anything yet.
    async fn last_look(&mut self, field: &Field, victim: DaemonName) -> anyhow::Result<bool> {
        if field.cluster.process(victim) == self.process { self.look(field, victim).await } else { Ok(false) }
    }
}

/// What came of one flip.
struct Outcome {
    /// Whether the OSD could be started with it.
    starts: bool,
    /// Whether it was met before the next one.
    met: bool,
    words: String,
}

/// So many flips in files of the same OSD, then everything is checked.
pub async fn run(fabric: Arc<Fabric>, rounds: u64, seed: u64) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut field = Field::start(fabric, Ground::Plain).await?;
    field.s3().create_bucket(BUCKET).await.context("the bucket cannot be made")?;
    field.wait_clean(CLEAN_LIMIT).await?;
    let mut running = Running::start(&field, BUCKET, seed).await?;
    let victim = DaemonName::osd(random.random_range(0..OSDS));
    let mut told = Told::default();
    told.look(&field, victim).await?;
    let (started, mut refused, mut met_at_once) = (Instant::now(), 0, 0);
    for round in 1..=rounds {
        let outcome = {
            let load = running.load.clone();
            let round = one(&mut field, &load, victim, &mut told, &mut random);
            tokio::select! {
                outcome = round => outcome,
                finding = running.finding() => Err(finding),
            }
        };
        match outcome.with_context(|| format!("flip {round}")) {
            Ok(Outcome { starts, met, words }) => {
                let seen = if met { "met" } else { "not met yet" };
                println!("   {:6.1?} flip {round} of {rounds} on {victim}: {words}; {seen}", started.elapsed());
                refused += u64::from(!starts);
                met_at_once += u64::from(met);
            }
            Err(error) => {
                running.load.history.judge().into_iter().for_each(|finding| println!("   {finding}"));
                return Err(error);
            }
        }
    }
    running.stop().await?;
    field.wait_clean(CLEAN_LIMIT).await.context("after the last flip")?;
    let in_rounds = told.in_all;
    told.look(&field, victim).await?;
    // Before the scrub: reads shall meet what it would repair.
    let summary = running.check_all(&field, &mut random, CLEAN_LIMIT).await?;
    told.look(&field, victim).await?;
    let mut findings = running.load.history.judge();
    match deep_scrub(&field).await {
        Ok(scrubbed) => println!("   {scrubbed}"),
        Err(error) => findings.push(format!("{error:#}")),
    }
    // What cannot be repaired is never clean again.
    let clean = field.wait_clean(CLEAN_LIMIT).await.context("after the deep scrub");
    findings.extend(clean.err().map(|error| format!("{error:#}")));
    told.look(&field, victim).await?;
    println!("   {victim} has found {} in all", told.in_all);
    findings.extend(unexplained(&field, &BTreeSet::from([victim])).await?);
    running.unwatch().await?;
    findings.extend(running.watch.record.lock().findings.clone());
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    // Each spoils a copy or a whole placement group's, or in the index several: never count more bits than are left.
    let late = told.in_all.since(in_rounds);
    let met = rounds.min(met_at_once + late.copies_bad + u64::from(late.pgs_lost > 0));
    println!("   {met_at_once} of {rounds} bits were met before the next one flipped, {} later", met - met_at_once);
    ensure!(met > 0 || rounds < BITS_TELLING, "none of {rounds} bits was met: no test");
    field.end().await?;
    println!(
        "headline flip, real processes: {rounds} bits flipped in files of {victim}, {met} of which were met, {refused} kept \
         it from starting; {} acknowledged writes, 0 lost or wrong",
        summary.acknowledged
    );
    Ok(())
}

/// One flip, until all is clean again.
async fn one(
    field: &mut Field,
    load: &Load,
    victim: DaemonName,
    told: &mut Told,
    random: &mut SmallRng,
) -> anyhow::Result<Outcome> {
    tokio::time::sleep(BETWEEN).await;
    let flip = flip(&field.data_of(victim)?, random)?;
    let restart = random.random_bool(0.5);
    let mut words = flip.to_string();
    tokio::time::sleep(BETWEEN).await;
    let (mut starts, mut met) = (true, false);
    if restart {
        met = told.last_look(field, victim).await?;
        field.kill(victim).await?;
        let since = Instant::now();
        let revived = tokio::time::timeout(START_LIMIT, field.revive(victim)).await;
        starts = matches!(revived, Ok(Ok(())));
        if starts {
            words.push_str(&format!("; started anew, serves after {:.2?}", since.elapsed()));
        } else {
            // It must not serve what it cannot trust; everyone else has everything. Then a person mends it.
            field.kill(victim).await?;
            let others = u32::try_from(OSDS)? - 1;
            let down = field.cluster.wait_status("the OSD shown down", NOTICE_LIMIT, |report| report.osds_up == others);
            down.await?;
            load.read_all(READER).await.with_context(|| format!("without {victim}"))?;
            flip.undo()?;
            field
                .revive(victim)
                .await
                .with_context(|| format!("{victim} does not start although {flip} was undone"))?;
            words.push_str("; it did not start with that, and did when it was undone");
        }
    }
    let since = Instant::now();
    field.wait_clean(CLEAN_LIMIT).await.with_context(|| words.clone())?;
    words.push_str(&format!("; clean after {:.2?}", since.elapsed()));
    met |= told.look(field, victim).await? || !starts;
    Ok(Outcome { starts, met, words })
}

/// Flips a bit in a file of a directory: as often as not in the largest one, else in any.
fn flip(dir: &Path, random: &mut SmallRng) -> anyhow::Result<Flip> {
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    ensure!(!files.is_empty(), "{} has no files", dir.display());
    let largest = files.iter().max_by_key(|file| file.metadata().map_or(0, |meta| meta.len())).cloned();
    for _ in 0..100_000 {
        let any = files[random.random_range(0..files.len())].clone();
        let path = largest.clone().filter(|_| random.random_bool(0.5)).unwrap_or(any);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue, // removed meanwhile
            outcome => outcome?,
        };
        let Some(offset) = place(&file, random)? else { continue };
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)?;
        // Zeros of a large file may be room that is being written to right now.
        if byte[0] == 0 && largest.as_ref() == Some(&path) {
            continue;
        }
        let after = byte[0] ^ (1 << random.random_range(0..8));
        file.write_all_at(&[after], offset)?;
        return Ok(Flip { file: path, offset, before: byte[0], after });
    }
    anyhow::bail!("{} holds nothing but zeros", dir.display())
}

/// A byte of a file that is no hole.
fn place(file: &File, random: &mut SmallRng) -> anyhow::Result<Option<u64>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    while let Ok(from) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(from))?;
        extents.push((from, at));
    }
    let total: u64 = extents.iter().map(|(from, to)| to - from).sum();
    if total == 0 {
        return Ok(None);
    }
    let mut nth = random.random_range(0..total);
    for (from, to) in extents {
        if nth < to - from {
            return Ok(Some(from + nth));
        }
        nth -= to - from;
    }
    Ok(None)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

impl Flip {
    fn undo(&self) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).open(&self.file)?;
        Ok(file.write_all_at(&[self.before], self.offset)?)
    }
}
