//! A deep scrub of everything, and what the cluster says of copies that are bad.
//!
//! Each OSD counts what it found bad on its own disk, from the start of its process on (`OSD_CHECKSUM_ERRORS`,
//! `OSD_COPIES_LOST`). What no scrub could repair is in the status, too (`OSD_SCRUB_ERRORS`). That a scrub has removed a copy
//! that should not exist is in the primary's log alone, which has a line for each wrong copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use holdfast_devcluster::{DaemonName, Role};
use holdfast_types::{Epoch, OsdId};
use holdfast_wire::mon::{HealthCheck, MonCommand, MonReply, PgRow};
use holdfast_wire::scrub::{PgScrub, ScrubKind, ScrubTarget};

use crate::field::{Field, OSDS};

/// All copies have been compared within this: an OSD has one placement group scrubbed at a time, at 60 MB/s or less, and one
/// whose scrub had to end is tried again after five minutes.
const SCRUB_LIMIT: Duration = Duration::from_secs(900);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Placement groups that are named when the time is over.
const NAMED_MAX: usize = 5;
/// Of the line that a primary logs for each wrong copy that a scrub finds.
const WRONG_COPY: &str = "scrub found a wrong copy";
/// Of the line of an OSD whose index cannot be read where a scrub needs it.
const UNLISTED: &str = "a scrub cannot list the objects here";

/// What an OSD has found bad on its disk since its process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damage {
    /// Copies of objects that could not be used.
    pub copies_bad: u64,
    /// Of these, written anew.
    pub copies_repaired: u64,
    /// Copies of placement groups that were given up as a whole.
    pub pgs_lost: u64,
}

impl Damage {
    /// What has come since `before`.
    #[must_use]
    pub fn since(self, before: Damage) -> Damage {
        Damage {
            copies_bad: self.copies_bad.saturating_sub(before.copies_bad),
            copies_repaired: self.copies_repaired.saturating_sub(before.copies_repaired),
            pgs_lost: self.pgs_lost.saturating_sub(before.pgs_lost),
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn most(self, other: Damage) -> Damage {
        Damage {
            copies_bad: self.copies_bad.max(other.copies_bad),
            copies_repaired: self.copies_repaired.max(other.copies_repaired),
            pgs_lost: self.pgs_lost.max(other.pgs_lost),
        }
    }

    /// Counts further damage.
    pub fn add(&mut self, other: Damage) {
        self.copies_bad += other.copies_bad;
        self.copies_repaired += other.copies_repaired;
        self.pgs_lost += other.pgs_lost;
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { copies_bad, copies_repaired, pgs_lost } = self;
        write!(
            f,
            "{copies_bad} bad copies of objects, {copies_repaired} of them written anew, {pgs_lost} copies of placement \
             groups given up"
        )
    }
}

/// What the checks of a status say of each OSD; those that are not in it have found nothing.
///
/// # Errors
/// With a line that cannot be read.
pub fn damage_of(checks: &[HealthCheck]) -> anyhow::Result<BTreeMap<DaemonName, Damage>> {
    let mut damage = BTreeMap::<DaemonName, Damage>::new();
    for line in lines(checks, "OSD_CHECKSUM_ERRORS") {
        let (osd, words) = named(line)?;
        let (bad, repaired) = words.split_once(", ").with_context(|| format!("one number only: {line}"))?;
        let of_osd = damage.entry(osd).or_default();
        of_osd.copies_bad = number(bad)?;
        of_osd.copies_repaired = number(repaired)?;
    }
    for line in lines(checks, "OSD_COPIES_LOST") {
        let (osd, words) = named(line)?;
        damage.entry(osd).or_default().pgs_lost = number(words)?;
    }
    Ok(damage)
}

fn lines<'a>(checks: &'a [HealthCheck], code: &'static str) -> impl Iterator<Item = &'a str> {
    let of_code = checks.iter().filter(move |check| check.code == code);
    of_code.flat_map(|check| check.detail.iter().map(String::as_str))
}

/// The OSD that a line begins with, and the rest of it.
fn named(line: &str) -> anyhow::Result<(DaemonName, &str)> {
    let parts = line.split_once(": ").and_then(|(name, words)| Some((osd_named(name)?, words)));
    parts.with_context(|| format!("no OSD is named: {line}"))
}

fn osd_named(name: &str) -> Option<DaemonName> {
    Some(DaemonName::osd(name.strip_prefix("osd.")?.parse().ok()?))
}

fn number(words: &str) -> anyhow::Result<u64> {
    let first = words.split(' ').next().unwrap_or_default();
    first.parse::<u64>().with_context(|| format!("no number: {words}"))
}

/// What a scrub of everything has done.
#[derive(Debug, Clone, Copy)]
pub struct Scrubbed {
    /// Placement groups.
    pub pgs: usize,
    /// Objects that are whole on all members now.
    pub objects: u64,
    /// Copies that it has had repaired, or removed because they should not exist.
    pub repaired: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Scrubbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scrubbed { pgs, objects, repaired, took } = self;
        write!(
            f,
            "a deep scrub of {pgs} placement groups took {took:.1?}: {objects} objects are whole, {repaired} copies were \
             repaired"
        )
    }
}

/// Has all placement groups scrubbed deeply and waits until each was. What was repaired may still be on its way.
///
/// # Errors
/// With those that were not scrubbed in time.
pub async fn deep_scrub(field: &Field) -> anyhow::Result<Scrubbed> {
    let since = Instant::now();
    let repaired_before = sum(&field.pgs().await?, |scrub| scrub.copies_repaired);
    let mut asked = None;
    for osd in 0..u32::try_from(OSDS)? {
        let wish = MonCommand::Scrub { target: ScrubTarget::Osd(OsdId(osd)), kind: ScrubKind::Deep };
        match field.cluster.ask(wish).await? {
            // What each OSD adds is in a later map.
            MonReply::Done { epoch } => asked = asked.or(Some(epoch)),
            other => bail!("a deep scrub is answered with {other:?}"),
        }
    }
    let asked = asked.context("there are no OSDs")?;
    loop {
        let rows = field.pgs().await?;
        let waiting: Vec<&PgRow> = rows.iter().filter(|row| !is_scrubbed(row, asked)).collect();
        if waiting.is_empty() && !rows.is_empty() {
            return Ok(Scrubbed {
                pgs: rows.len(),
                objects: sum(&rows, |scrub| scrub.objects_verified),
                repaired: sum(&rows, |scrub| scrub.copies_repaired).saturating_sub(repaired_before),
                took: since.elapsed(),
            });
        }
        if since.elapsed() >= SCRUB_LIMIT {
            let line = |row: &&PgRow| format!("{} {} on {:?}: {:?}", row.pg, row.state, row.acting, row.scrub);
            let some: Vec<String> = waiting.iter().take(NAMED_MAX).map(line).collect();
            let unlisted: BTreeSet<DaemonName> = log_lines(field, UNLISTED)?.into_iter().map(|(osd, _)| osd).collect();
            bail!(
                "{} of {} placement groups were not scrubbed deeply within {SCRUB_LIMIT:?} (OSDs whose objects could not be \
                 listed: {unlisted:?}), such as\n{}",
                waiting.len(),
                rows.len(),
                some.join("\n")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn sum(rows: &[PgRow], of: fn(&PgScrub) -> u64) -> u64 {
    rows.iter().filter_map(|row| row.scrub.as_ref()).map(of).sum()
}

/// Whether a wish of this map, or of a later one, was fulfilled.
fn is_scrubbed(row: &PgRow, asked: Epoch) -> bool {
    row.scrub.as_ref().is_some_and(|scrub| scrub.served >= asked && scrub.running.is_none())
}

/// What is wrong with copies, as status and logs have it, and cannot come of the bits that were flipped on these OSDs.
///
/// # Errors
/// When the monitors do not answer, or what they say cannot be read.
pub async fn unexplained(field: &Field, flipped: &BTreeSet<DaemonName>) -> anyhow::Result<Vec<String>> {
    let report = field.cluster.status().await?;
    let mut findings = Vec::new();
    for (osd, damage) in damage_of(&report.checks)?.into_iter().filter(|(osd, _)| !flipped.contains(osd)) {
        findings.push(format!("no bit of {osd} was flipped, and it has found {damage}"));
    }
    // Bits flip on one OSD at a time: of each object there are good copies.
    findings.extend(lines(&report.checks, "OSD_SCRUB_ERRORS").map(|line| format!("not repaired by a scrub: {line}")));
    for (primary, line) in log_lines(field, WRONG_COPY)? {
        if blamed(&line).is_none_or(|osd| !flipped.contains(&osd)) {
            findings.push(format!("no bit was flipped there, says {primary}: {line}"));
        }
    }
    Ok(findings)
}

/// Whose copy a line with [`WRONG_COPY`] is about.
fn blamed(line: &str) -> Option<DaemonName> {
    line.split_ascii_whitespace().find_map(|word| osd_named(word.strip_prefix("osd=")?))
}

/// The lines of all OSDs' logs that have these words, each with whose log it is.
fn log_lines(field: &Field, words: &str) -> anyhow::Result<Vec<(DaemonName, String)>> {
    let mut found = Vec::new();
    for daemon in field.cluster.layout().daemons().into_iter().filter(|daemon| daemon.role == Role::Osd) {
        let log = std::fs::read(field.cluster.dir().log_of(daemon)).with_context(|| format!("the log of {daemon}"))?;
        let log = String::from_utf8_lossy(&log);
        found.extend(log.lines().filter(|line| line.contains(words)).map(|line| (daemon, line.to_owned())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::mon::Severity;

    fn check(code: &str, detail: &[&str]) -> HealthCheck {
        HealthCheck {
            code: code.to_owned(),
            severity: Severity::Warning,
            summary: String::new(),
            detail: detail.iter().map(|line| (*line).to_owned()).collect(),
            impact: String::new(),
            fix: String::new(),
        }
    }

    #[test]
    fn damage_is_read_as_the_status_has_it_and_a_line_that_cannot_be_read_is_an_error() {
        let found = check("OSD_CHECKSUM_ERRORS", &["osd.1: 3 damaged blocks, 2 repaired from a copy"]);
        let lost = [
            "osd.1: 1 copy of placement groups since its start",
            "osd.4: 7 copies of placement groups since its start",
        ];
        let checks = [found, check("OSD_COPIES_LOST", &lost), check("OSD_DOWN", &["osd.2 on host2 is down"])];
        let damage = damage_of(&checks).expect("it can be read");
        let whole = Damage { copies_bad: 3, copies_repaired: 2, pgs_lost: 1 };
        let given_up = Damage { pgs_lost: 7, ..Damage::default() };
        assert_eq!(damage, BTreeMap::from([(DaemonName::osd(1), whole), (DaemonName::osd(4), given_up)]));
        assert_eq!(whole.since(given_up), Damage { pgs_lost: 0, ..whole });
        for unreadable in ["all is lost", "mon.1: 3 damaged blocks, 2 repaired", "osd.1: 3 damaged blocks"] {
            assert!(damage_of(&[check("OSD_CHECKSUM_ERRORS", &[unreadable])]).is_err(), "{unreadable}");
        }
    }

    #[test]
    fn a_wrong_copy_is_its_owners_and_not_of_whoever_logs_it() {
        let line = "2026-01-01T00:00:00Z  WARN holdfast_pg::scrub::findings: scrub found a wrong copy pg=1.3 \
                    object=ObjectKey(a osd.4 b) osd=osd.2 fault=\"cannot be read\" verdict=Replace(3.7)";
        assert_eq!(blamed(line), Some(DaemonName::osd(2)));
        assert_eq!(blamed("scrub found a wrong copy"), None);
    }
}
