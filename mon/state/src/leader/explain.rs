//! `pg query` and `explain`: the cause, who stands in the way, the next command.
//!
//! Made from what the monitors know: the map, the notes on OSDs, and what primaries report. What only a primary knows,
//! such as which object of a placement group is missing where, is not in it, but for the names of some that are unfound.

use std::time::Duration;

use holdfast_map::{ClusterMap, SpaceLevel};
use holdfast_types::{ObjectName, OsdId, PgId, Timestamp};
use holdfast_wire::mon::{Cause, Explanation, MonError, PgDetail, PgReport, Subject};

use super::health::{fate_words, held_words, silence_words};
use super::out::Limits;
use super::stats::{PgView, REPORT_STALE};
use super::{Leader, Scene, reports};
use crate::notes::{DownReason, OsdNote};
use crate::words::{millis, rfc3339, span};

/// Most names in one line.
const NAMES_MAX: usize = 10;

pub(super) fn names<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match all.len().checked_sub(NAMES_MAX) {
        _ if all.is_empty() => "none".to_owned(),
        None | Some(0) => all.join(", "),
        Some(more) => format!("{} and {more} more", all[..NAMES_MAX].join(", ")),
    }
}

/// A question and the answers at hand.
pub(super) struct Explainer<'a> {
    pub(super) leader: &'a Leader,
    pub(super) now: Timestamp,
    pub(super) scene: &'a Scene,
}

impl Explainer<'_> {
    pub(super) fn explain(&self, subject: &Subject) -> Result<Explanation, MonError> {
        match subject {
            Subject::Pg(pg) => self.pg(*pg),
            Subject::Osd(osd) => self.osd(*osd),
            Subject::Object { pool, name } => self.object(pool, name),
        }
    }

    pub(super) fn map(&self) -> &ClusterMap {
        &self.scene.map
    }

    fn view(&self, pg: PgId) -> Result<PgView<'_>, MonError> {
        let view = self.leader.stats.view(self.map(), self.now, pg);
        view.ok_or_else(|| MonError::NotFound { what: "placement group".into(), name: pg.to_string() })
    }

    fn object(&self, pool: &str, name: &[u8]) -> Result<Explanation, MonError> {
        let map = self.map();
        let Some((id, _)) = map.pool_by_name(pool) else {
            return Err(MonError::NotFound { what: "pool".into(), name: pool.to_owned() });
        };
        let object = ObjectName::new(name).map_err(|error| MonError::Invalid { reason: error.to_string() })?;
        let pg = map.pg_of(id, &object);
        let pg = pg.ok_or_else(|| MonError::NotFound { what: "pool".into(), name: pool.to_owned() })?;
        let mut explanation = self.pg(pg)?;
        explanation.facts.insert(0, format!("it lies in pg {pg}; what follows is said of all objects there"));
        explanation.subject = format!("object {} of pool {pool}", name.escape_ascii());
        Ok(explanation)
    }

    /// All that is known of one placement group.
    pub(super) fn query(&self, pg: PgId) -> Result<PgDetail, MonError> {
        let view = self.view(pg)?;
        let map = self.map();
        let source = view.report.and_then(|_| self.leader.stats.source(pg));
        Ok(PgDetail {
            row: reports::pg_row(&view),
            pool: view.pool.name.clone(),
            size: view.pool.size(),
            min_size: view.pool.min_size(),
            placed: map.placed(pg),
            exchanged: map.upmap.get(&pg).into_iter().flatten().map(|item| (item.from, item.to)).collect(),
            temporary: map.pg_temp.get(&pg).cloned(),
            reported_by: source.map(|source| source.osd),
            report_age_ms: source.map(|source| millis(self.now.since(source.at))),
            state_for_ms: source.map(|source| millis(self.now.since(source.state_since))),
            epoch: view.report.map(|report| report.epoch),
            interval_start: view.report.map(|report| report.interval_start),
            last_epoch_clean: view.report.map(|report| report.last_epoch_clean),
            explanation: self.pg(pg)?,
        })
    }

    fn pg(&self, pg: PgId) -> Result<Explanation, MonError> {
        let view = self.view(pg)?;
        let map = self.map();
        let (pool, placed) = (view.pool, map.placed(pg));
        let mut facts = vec![
            format!(
                "pool {} keeps {} copies apart by {} and serves with {}",
                pool.name,
                pool.size(),
                crate::hierarchy::domain_of_rule(&map.crush, pool.rule),
                pool.min_size()
            ),
            format!("placement wants it on {}; {} of these are up", names(&placed), view.up.len()),
            format!("it is served by {}", names(view.acting)),
        ];
        if let Some(items) = map.upmap.get(&pg) {
            let exchanges = items.iter().map(|item| format!("{} in the place of {}", item.to, item.from));
            facts.push(format!("the balancer has put {}", names(exchanges)));
        }
        if let (Some(report), Some(source)) = (view.report, self.leader.stats.source(pg)) {
            facts.push(format!(
                "{} reported it {} ago: {} for {} now, {} objects, {} copies missing",
                source.osd,
                span(self.now.since(source.at)),
                report.state.describe(),
                span(self.now.since(source.state_since)),
                report.objects,
                report.copies_missing
            ));
        }
        let outgrown = super::growth::outgrown(self.scene, &self.leader.stats.views(map, self.now));
        if let Some((_, wanted)) = outgrown.into_iter().find(|(pool, _)| *pool == pg.pool)
            && let Some((held, next)) = super::growth::held_back(self.scene)
        {
            facts.push(format!(
                "pool {} has {} placement groups, should have {wanted}, and is not split: {held}; {next}",
                pool.name, pool.pg_num
            ));
        }
        let mut causes = Vec::new();
        self.lack_of_members(&view, &placed, &mut causes);
        self.silent_members(&view, &mut causes);
        self.primary_not_heard(&view, &mut causes);
        self.primary_says(&view, &mut causes);
        self.copies_on_the_way(&view, &mut causes);
        self.inconsistent(&view, &mut causes);
        if map.flags.full {
            let full = map.space.iter().filter(|(_, level)| **level >= SpaceLevel::Full).map(|(osd, _)| *osd);
            let full: Vec<OsdId> = full.collect();
            causes.push(Cause {
                code: "CLUSTER_FULL".into(),
                cause: format!("writes that need space are refused: {} full", names(&full)),
                blocked_by: strings(&full),
                next: "delete data, or add disks; `holdfast osd df` shows the fullest".into(),
            });
        }
        let ok = causes.is_empty() && view.report.is_some() && view.state.active && view.state.clean;
        if !ok && causes.is_empty() {
            causes.push(Cause {
                code: "NOT_COUNTED".into(),
                cause: "its copies have not been counted in this interval yet".into(),
                blocked_by: strings(view.acting.first()),
                next: format!("wait; if it stays, read the log of {}", names(view.acting.first())),
            });
        }
        Ok(Explanation { subject: format!("pg {pg}"), state: view.describe(), ok, facts, causes })
    }

    fn lack_of_members(&self, view: &PgView<'_>, placed: &[OsdId], causes: &mut Vec<Cause>) {
        let map = self.map();
        let (size, min_size) = (view.pool.size() as usize, view.pool.min_size() as usize);
        // Who is to serve for a time may be the only one with a complete copy, and down.
        let temporary = map.pg_temp.get(&view.pg).into_iter().flatten().filter(|osd| !placed.contains(osd));
        let down: Vec<OsdId> = placed.iter().chain(temporary).copied().filter(|osd| !map.is_up(*osd)).collect();
        let filled: Vec<OsdId> =
            placed.iter().copied().filter(|osd| map.is_up(*osd) && !view.acting.contains(osd)).collect();
        let short = view.acting.len() < min_size;
        if short && !filled.is_empty() {
            let full: Vec<OsdId> = filled.iter().copied().filter(|osd| map.takes_no_backfill(*osd)).collect();
            let enough = view.acting.len() + filled.len() - full.len() >= min_size;
            let (why, next) = if enough {
                (String::new(), "wait until these are filled; if it stays, `holdfast explain osd` of each of them")
            } else {
                (format!("; {} too full to take copies", names(&full)), "delete data, or add disks: `holdfast osd df`")
            };
            causes.push(Cause {
                code: "TOO_FEW_COMPLETE".into(),
                cause: format!(
                    "{} of its OSDs have a complete copy and {min_size} must: reads and writes wait until {} have one{why}",
                    view.acting.len(),
                    names(&filled)
                ),
                blocked_by: strings(&filled),
                next: next.into(),
            });
        } else if short {
            causes.push(Cause {
                code: "TOO_FEW_UP".into(),
                cause: format!(
                    "{} of its OSDs serve and {min_size} must: reads and writes wait; {}",
                    view.acting.len(),
                    self.why_down(&down)
                ),
                blocked_by: strings(&down),
                next: self.how_to_bring_back(&down),
            });
        }
        let told = short && filled.is_empty();
        if !told && !down.is_empty() && view.acting.len() < size {
            causes.push(Cause {
                code: "MEMBER_DOWN".into(),
                cause: format!("a copy is missing: {}", self.why_down(&down)),
                blocked_by: strings(&down),
                next: self.how_to_bring_back(&down),
            });
        }
        if placed.len() < size {
            let level = crate::hierarchy::domain_of_rule(&map.crush, view.pool.rule);
            causes.push(Cause {
                code: "TOO_FEW_PLACES".into(),
                cause: format!(
                    "the pool keeps {size} copies apart by {level}, and there are places for {} only",
                    placed.len()
                ),
                blocked_by: Vec::new(),
                next: format!("add a {level} with OSDs, or mark OSDs that are out in: `holdfast osd tree`"),
            });
        }
    }

    fn why_down(&self, down: &[OsdId]) -> String {
        if down.is_empty() {
            return "none of them is known to be down".to_owned();
        }
        let limits = Limits::of(self.map(), &self.leader.stats, self.now);
        let why = |osd: &OsdId| match self.leader.fate(self.now, &limits, *osd) {
            Some(fate) => format!("{osd} {} ({})", self.down_words(*osd), fate_words(Some(fate))),
            None => format!("{osd} {}", self.down_words(*osd)),
        };
        names(down.iter().map(why))
    }

    pub(super) fn down_words(&self, osd: OsdId) -> String {
        let note = self.scene.notes.get(&osd);
        if let Some(held) = note.and_then(|note| note.held(self.scene.at_unix_ms)) {
            return format!("is held down: it {}", held_words(&held));
        }
        match note.and_then(OsdNote::down) {
            Some((DownReason::Silent, at)) => format!("fell silent and was marked down at {}", rfc3339(at)),
            Some((DownReason::Ended, at)) => format!("ended: its port refuses connections since {}", rfc3339(at)),
            Some((DownReason::Stopped, at)) => format!("was stopped in order at {}", rfc3339(at)),
            Some((DownReason::Operator, at)) => format!("was marked down by an operator at {}", rfc3339(at)),
            None => "is down".to_owned(),
        }
    }

    pub(super) fn how_to_bring_back(&self, down: &[OsdId]) -> String {
        let held =
            |osd: &&OsdId| self.scene.notes.get(*osd).is_some_and(|note| note.held(self.scene.at_unix_ms).is_some());
        match (down.iter().find(held), down.first()) {
            (Some(osd), _) => format!("mend its network or disk, then `holdfast osd release {osd}`"),
            (None, Some(osd)) => format!(
                "start `holdfast osd` for {osd} on {} and read its log; `holdfast explain osd {}`",
                self.host(*osd),
                osd.0
            ),
            (None, None) => "`holdfast osd tree` shows who is down".to_owned(),
        }
    }

    pub(super) fn host(&self, osd: OsdId) -> String {
        self.map().crush.failure_domain_of(osd, "host").unwrap_or_else(|| "its host".to_owned())
    }

    /// What waits for a member that hangs waits without a change of its state.
    fn silent_members(&self, view: &PgView<'_>, causes: &mut Vec<Cause>) {
        let suspects = self.leader.suspects(self.now, self.map());
        for suspect in suspects.iter().filter(|suspect| view.acting.contains(&suspect.osd)) {
            let osd = suspect.osd;
            causes.push(Cause {
                code: "MEMBER_SILENT".into(),
                cause: format!(
                    "its member {osd} is up as far as the map says; {}: requests may wait for it",
                    silence_words(&suspect.silent_to, suspect.silence)
                ),
                blocked_by: strings([osd]),
                next: format!("`holdfast explain osd {}`; `holdfast osd down {osd}` if it is really gone", osd.0),
            });
        }
    }

    /// Copies that differ, as scrubs have found.
    fn inconsistent(&self, view: &PgView<'_>, causes: &mut Vec<Cause>) {
        let scrub = view.last.and_then(|report| report.scrub.as_ref());
        let Some(scrub) = scrub.filter(|scrub| scrub.objects_inconsistent > 0) else { return };
        causes.push(Cause {
            code: "INCONSISTENT".into(),
            cause: format!(
                "copies of {} of its objects differ or cannot be read: {}",
                scrub.objects_inconsistent,
                names(&scrub.examples)
            ),
            blocked_by: Vec::new(),
            next: format!(
                "check the devices, then `holdfast pg repair {}` for what can be told to be wrong; write or delete the rest",
                view.pg
            ),
        });
    }

    fn primary_not_heard(&self, view: &PgView<'_>, causes: &mut Vec<Cause>) {
        let (None, Some(primary)) = (view.report, view.acting.first().copied()) else { return };
        let heard = self.heard(primary);
        let cause = match heard {
            Some(ago) if ago >= REPORT_STALE => {
                format!("its primary {primary} has told the monitors nothing for {}", span(ago))
            }
            Some(_) => format!("its primary {primary} has not reported it in its present interval yet"),
            None => format!("its primary {primary} has not reported since this monitor leads, or since it is up"),
        };
        causes.push(Cause {
            code: "NOT_REPORTED".into(),
            cause,
            blocked_by: strings([primary]),
            next: format!("wait some seconds; then `holdfast explain osd {}`, and its log", primary.0),
        });
    }

    /// How long ago the present run of an OSD reported.
    pub(super) fn heard(&self, osd: OsdId) -> Option<Duration> {
        let incarnation = self.map().osds.get(&osd)?.incarnation;
        self.leader.stats.last_report(osd, incarnation).map(|at| self.now.since(at))
    }

    fn primary_says(&self, view: &PgView<'_>, causes: &mut Vec<Cause>) {
        let Some(report) = view.report else { return };
        let primary = || strings(view.acting.first());
        if let (true, Some(object)) = (report.state.down, report.unfound.first()) {
            let down: Vec<OsdId> = report.blocked_by.clone();
            causes.push(Cause {
                code: "WAITS_FOR_READABLE_COPY".into(),
                cause: format!(
                    "no OSD that was heard can give object {object} as its log says; {} may have it, or the version that was \
                     acknowledged; {}. It is waited for, for a minute, before the others go on without this object",
                    names(&down),
                    self.why_down(&down)
                ),
                blocked_by: strings(&down),
                next: self.how_to_bring_back(&down),
            });
        } else if report.state.down && !report.blocked_by.is_empty() {
            let down: Vec<OsdId> = report.blocked_by.clone();
            causes.push(Cause {
                code: "WAITS_FOR_PAST_MEMBERS".into(),
                cause: format!(
                    "{} may have taken writes that no OSD that is up has seen: without them it would serve old data; {}",
                    names(&down),
                    self.why_down(&down)
                ),
                blocked_by: strings(&down),
                next: format!(
                    "{}; if a disk is gone for good, `holdfast osd lost` gives up what only it has",
                    self.how_to_bring_back(&down)
                ),
            });
        } else if report.state.incomplete {
            causes.push(Cause {
                code: "NO_COMPLETE_COPY".into(),
                cause: "no OSD that is up has a complete copy of it".into(),
                blocked_by: Vec::new(),
                next: "bring back the OSDs that served it last; do not remove any (`holdfast osd tree`)".into(),
            });
        } else if report.state.peering && !view.state.active {
            let (cause, blocked_by) = if report.blocked_by.is_empty() {
                (format!("its members agree on what was written; {} leads them", names(primary())), primary())
            } else {
                (format!("it waits for an answer of {}", names(&report.blocked_by)), strings(&report.blocked_by))
            };
            let next = format!(
                "wait; it takes less than a second: if it stays, `holdfast pg query {}` and the log of {}",
                view.pg,
                names(&blocked_by)
            );
            causes.push(Cause { code: "PEERING".into(), cause, blocked_by, next });
        }
        if report.objects_unfound > 0 {
            self.unfound(report, causes);
        }
    }

    fn unfound(&self, report: &PgReport, causes: &mut Vec<Cause>) {
        let absent = &report.blocked_by;
        let down: Vec<OsdId> = absent.iter().copied().filter(|osd| !self.map().is_up(*osd)).collect();
        let more = report.objects_unfound.saturating_sub(report.unfound.len() as u64);
        let examples = match (report.unfound.is_empty(), more) {
            (true, _) => String::new(),
            (false, 0) => format!(": {}", report.unfound.join(", ")),
            (false, more) => format!(": {} and {more} more", report.unfound.join(", ")),
        };
        let next = if absent.is_empty() {
            "all that may have them were asked: who reads them is told that they cannot be read; a disk that is put back may \
             have them, else give them up by deleting what they are part of"
                .to_owned()
        } else if down.is_empty() {
            format!("wait until {} answered; if it stays, `holdfast explain osd` and its log", names(absent))
        } else {
            format!(
                "{}; remove none of {}: one of them may have these objects",
                self.how_to_bring_back(&down),
                names(absent)
            )
        };
        causes.push(Cause {
            code: "OBJECTS_UNFOUND".into(),
            cause: format!(
                "nobody who was asked can give {} of its objects in their newest version{examples}",
                report.objects_unfound
            ),
            blocked_by: strings(absent),
            next,
        });
    }

    fn copies_on_the_way(&self, view: &PgView<'_>, causes: &mut Vec<Cause>) {
        let Some(report) = view.report.filter(|_| view.state.active && !view.state.clean) else { return };
        let map = self.map();
        let moving: Vec<OsdId> = view.up.iter().copied().filter(|osd| !view.acting.contains(osd)).collect();
        let behind = report.copies_missing > 0 || !moving.is_empty() || report.state.backfilling;
        if !behind {
            return;
        }
        let full: Vec<OsdId> = view.up.iter().copied().filter(|osd| map.takes_no_backfill(*osd)).collect();
        let works = report.state.recovering || report.state.backfilling;
        // What is unfound is missing everywhere, and no turn of its own helps it.
        let only_unfound = report.copies_missing <= report.objects_unfound.saturating_mul(report.acting.len() as u64);
        if report.objects_unfound > 0 && only_unfound && moving.is_empty() && !works {
            return;
        }
        let to = if moving.is_empty() { String::new() } else { format!(", to {}", names(&moving)) };
        let (code, cause, blocked_by, next) = if !full.is_empty() && !works {
            let cause = format!("{} too full to take copies", names(&full));
            ("TARGET_TOO_FULL", cause, strings(&full), "delete data, or add disks: `holdfast osd df`".to_owned())
        } else if works {
            let kind = if report.state.backfilling { "by comparing all objects" } else { "by the log" };
            let cause = format!("{} copies are being made {kind}{to}", report.copies_missing);
            ("COPYING", cause, Vec::new(), "wait; it ends by itself".to_owned())
        } else {
            let cause = format!("{} copies are to be made{to}: it waits for its turn", report.copies_missing);
            let next = "wait; each OSD fills a few placement groups at a time (`holdfast pg ls --unclean`)".to_owned();
            ("WAITS_ITS_TURN", cause, strings(view.acting.first()), next)
        };
        causes.push(Cause { code: code.into(), cause, blocked_by, next });
    }
}

pub(super) fn strings<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}
