//! `explain osd`: whether it serves and holds data, and why not.

use std::time::Duration;

use holdfast_types::{OsdId, PgId};
use holdfast_wire::mon::{Cause, Explanation, MonError};

use super::explain::{Explainer, names, strings};
use super::health::fate_words;
use super::out::Limits;
use super::stats::{PgView, REPORT_STALE};
use crate::notes::OutReason;
use crate::words::span;

impl Explainer<'_> {
    pub(super) fn osd(&self, osd: OsdId) -> Result<Explanation, MonError> {
        let map = self.map();
        let Some(info) = map.osds.get(&osd) else {
            return Err(MonError::NotFound { what: "OSD".into(), name: osd.to_string() });
        };
        let views = self.leader.stats.views(map, self.now);
        let (up, inside) = (if info.up { "up" } else { "down" }, if info.in_cluster { "in" } else { "out" });
        let location = map.crush.location_of(osd);
        let place = location.iter().map(|(kind, name)| format!("{kind} {name}")).collect::<Vec<_>>().join(", ");
        let mut facts = vec![
            format!("disk {}, on {}", info.disk, if place.is_empty() { "no host" } else { &place }),
            format!("last listened on {} as run {}, since map {}", info.address, info.incarnation, info.up_from),
        ];
        if let Some(ago) = self.heard(osd) {
            facts.push(format!("reported {} ago", span(ago)));
        }
        if let Some(usage) = self.leader.stats.usage(map, osd).filter(|usage| usage.total_bytes > 0) {
            let permille = u128::from(usage.used_bytes) * 1_000 / u128::from(usage.total_bytes);
            facts.push(format!("{}.{} % of its room is used", permille / 10, permille % 10));
        }
        let serves: Vec<&PgView<'_>> = views.iter().filter(|view| view.acting.contains(&osd)).collect();
        let unclean = serves.iter().filter(|view| !view.state.clean).map(|view| view.pg);
        let unclean: Vec<PgId> = unclean.collect();
        facts.push(format!("serves {} placement groups, {} of them not clean", serves.len(), unclean.len()));
        let mut causes = Vec::new();
        if info.up {
            self.up_but(osd, &mut causes);
        } else {
            self.down(osd, &views, &mut causes);
        }
        self.out(osd, &mut causes);
        self.device(osd, &mut causes);
        let ok = causes.is_empty();
        Ok(Explanation { subject: osd.to_string(), state: format!("{up}, {inside}"), ok, facts, causes })
    }

    /// What is wrong with one that the map has up.
    fn up_but(&self, osd: OsdId, causes: &mut Vec<Cause>) {
        let silent_to = self.leader.failures.silent_to(self.now, self.map(), osd);
        let quiet = self.heard(osd).is_none_or(|ago| ago >= Duration::from_secs(10));
        if quiet || !silent_to.is_empty() {
            let cause = match (self.heard(osd), silent_to.is_empty()) {
                (Some(ago), true) => format!("it has told the monitors nothing for {}", span(ago)),
                (None, true) => "it has told the monitors nothing since it is up or this monitor leads".to_owned(),
                (_, false) => format!("{} hear nothing of it", names(&silent_to)),
            };
            causes.push(Cause {
                code: "SILENT".into(),
                cause,
                blocked_by: Vec::new(),
                next: format!("look whether its process hangs, and at the network of {}", self.host(osd)),
            });
        }
        let unclean = |view: &PgView<'_>| view.acting.first() == Some(&osd) && view.report.is_none();
        let views = self.leader.stats.views(self.map(), self.now);
        let unknown: Vec<PgId> = views.iter().filter(|view| unclean(view)).map(|view| view.pg).collect();
        let fresh = self.heard(osd).is_some_and(|ago| ago < REPORT_STALE);
        if !unknown.is_empty() && fresh {
            causes.push(Cause {
                code: "NOT_REPORTED".into(),
                cause: format!("as a primary it has not reported pg {} in their present interval", names(&unknown)),
                blocked_by: Vec::new(),
                next: "wait some seconds; if it stays, read its log".into(),
            });
        }
    }

    fn down(&self, osd: OsdId, views: &[PgView<'_>], causes: &mut Vec<Cause>) {
        let map = self.map();
        let never = map.osds.get(&osd).is_some_and(|info| info.up_from.0 == 0);
        let note = self.scene.notes.get(&osd);
        let held = note.is_some_and(|note| note.held(self.scene.at_unix_ms).is_some());
        let (code, cause) = match (never, held) {
            (true, _) => ("NEVER_BOOTED", "its disk is registered, and it has not been up yet".to_owned()),
            (false, true) => ("FLAPPING", format!("it {}", self.down_words(osd))),
            (false, false) => ("DOWN", format!("it {}", self.down_words(osd))),
        };
        let limits = Limits::of(map, &self.leader.stats, self.now);
        let fate = self.leader.fate(self.now, &limits, osd).filter(|_| !self.is_out(osd));
        let cause = match fate {
            Some(fate) => format!("{cause}; {}", fate_words(Some(fate))),
            None => cause,
        };
        causes.push(Cause { code: code.into(), cause, blocked_by: Vec::new(), next: self.how_to_bring_back(&[osd]) });
        let waits = |view: &&PgView<'_>| view.report.is_some_and(|report| report.blocked_by.contains(&osd));
        let waiting: Vec<PgId> = views.iter().filter(waits).map(|view| view.pg).collect();
        if !waiting.is_empty() {
            causes.push(Cause {
                code: "WAITED_FOR".into(),
                cause: format!("pg {} cannot serve until it is back", names(&waiting)),
                blocked_by: strings([osd]),
                next: self.how_to_bring_back(&[osd]),
            });
        }
    }

    fn is_out(&self, osd: OsdId) -> bool {
        self.map().osds.get(&osd).is_some_and(|info| !info.in_cluster)
    }

    fn out(&self, osd: OsdId, causes: &mut Vec<Cause>) {
        let map = self.map();
        let mark_in = format!("`holdfast osd in {osd}`");
        if self.is_out(osd) {
            let down = !map.is_up(osd);
            let (cause, next) = match self.scene.notes.get(&osd).and_then(|note| note.out()) {
                Some(OutReason::New) => ("it comes in when it boots for the first time", "start it".to_owned()),
                Some(OutReason::Automatic) if down => {
                    let cause = "it was down for long: its data was given to others; it comes back in when it boots";
                    (
                        cause,
                        "start it; marking it in alone would move its data back to a disk that does not serve".into(),
                    )
                }
                Some(OutReason::Automatic) => {
                    ("it was down for long: its data was given to others; it comes back in when it boots", mark_in)
                }
                Some(OutReason::Operator) => ("an operator marked it out; only an operator takes that back", mark_in),
                None => ("it is out", mark_in),
            };
            causes.push(Cause { code: "OUT".into(), cause: cause.into(), blocked_by: Vec::new(), next });
        } else if map.crush.device_weight(osd) == 0 {
            let cause = "it stands in no bucket of the CRUSH hierarchy, or weighs nothing there: it gets no data";
            let next = "restart it: at its start it takes its place; `holdfast osd tree`".to_owned();
            causes.push(Cause { code: "NO_WEIGHT".into(), cause: cause.into(), blocked_by: Vec::new(), next });
        } else if map.osds.get(&osd).is_some_and(|info| info.reweight == 0) {
            let next = format!("`holdfast osd reweight {osd} 1`");
            let cause = "its reweight is 0: it gets no data".to_owned();
            causes.push(Cause { code: "NO_WEIGHT".into(), cause, blocked_by: Vec::new(), next });
        }
    }

    fn device(&self, osd: OsdId, causes: &mut Vec<Cause>) {
        let map = self.map();
        if let Some(level) = map.space_level(osd) {
            causes.push(Cause {
                code: "FULL".into(),
                cause: format!("it is {}", level.name()),
                blocked_by: Vec::new(),
                next: "delete data, or add disks; the balancer evens out what it can: `holdfast balancer status`"
                    .into(),
            });
        }
        let (found, repaired) = self.leader.stats.damage(osd);
        if found > 0 {
            causes.push(Cause {
                code: "CHECKSUM_ERRORS".into(),
                cause: format!("it returned {found} damaged blocks since its start; {repaired} were repaired"),
                blocked_by: Vec::new(),
                next: "check the device's health log; replace it if this goes on".into(),
            });
        }
        let lost = self.leader.stats.copies_lost(osd);
        if lost > 0 {
            causes.push(Cause {
                code: "COPIES_LOST".into(),
                cause: format!("it gave up {lost} copies of placement groups since its start; they are filled anew"),
                blocked_by: Vec::new(),
                next: "read its log and check the device".into(),
            });
        }
    }
}
