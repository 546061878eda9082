//! What the comparison of a chunk means: which copies are marked, which objects are recorded as inconsistent, whether the
//! counts are right.

use std::collections::BTreeMap;

use holdfast_map::ScrubKind;
use holdfast_types::{LogVersion, ObjectName, OsdId};
use holdfast_wire::peer::{BackfillCursor, EntryKind, MissingItem};
use holdfast_wire::scrub::{BadCopy, CopyFault, Inconsistency, ScrubCopy, ScrubMap, ScrubMarks};

use super::NAMED_MAX;
use super::compare::{Expected, Judgement, Verdict, judge};
use super::primary::Pass;
use crate::key::ObjectKey;
use crate::pg::{Pg, Step};
use crate::rows;
use crate::split;

/// What the comparison of a chunk found.
#[derive(Default)]
pub(super) struct Findings {
    pub marks: BTreeMap<OsdId, ScrubMarks>,
    pub inconsistent: Vec<Inconsistency>,
}

impl Pg {
    /// What the log says of each object, and what the copies say.
    pub(super) fn judge_chunk(
        &self,
        pass: &mut Pass,
        maps: &BTreeMap<OsdId, ScrubMap>,
        upto: &BackfillCursor,
    ) -> Findings {
        let nobody: BTreeMap<OsdId, Option<ScrubCopy>> = maps.keys().map(|osd| (*osd, None)).collect();
        let mut objects = BTreeMap::<ObjectKey, BTreeMap<OsdId, Option<ScrubCopy>>>::new();
        for (osd, map) in maps {
            for item in &map.items {
                let Some(key) = ObjectKey::from_bytes(&item.key) else { continue };
                if key.as_bytes() > pass.after.as_slice() && upto.covers(key.as_bytes()) {
                    objects.entry(key).or_insert_with(|| nobody.clone()).insert(*osd, Some(item.copy));
                }
            }
        }
        let mut expected = BTreeMap::new();
        // Both parts of a split keep the whole log: of the objects that are elsewhere now it says nothing here.
        let is_here = split::has(&self.map, self.id);
        for entry in self.holding.log.entries().filter(|entry| is_here(&entry.object)) {
            let key = ObjectKey::of(&entry.object);
            if key.as_bytes() > pass.after.as_slice() && upto.covers(key.as_bytes()) {
                let says = match entry.kind {
                    EntryKind::Modify => Expected::Version(entry.version),
                    EntryKind::Delete => Expected::Deleted,
                };
                expected.insert(key, says); // the last one counts
            }
        }
        // What the log says that there is, and nobody has.
        for (key, _) in expected.iter().filter(|(_, says)| matches!(says, Expected::Version(_))) {
            objects.entry(key.clone()).or_insert_with(|| nobody.clone());
        }
        let mut found = Findings::default();
        let asked = pass.kind == ScrubKind::Repair;
        for (key, copies) in objects {
            let name = key.name();
            let says = expected.get(&key).copied().unwrap_or(Expected::Unknown);
            let judgement = judge(&copies, says, asked);
            if let (Verdict::Whole, Some(Some(ScrubCopy::Whole(summary)))) = (judgement.verdict, copies.values().next())
            {
                pass.bytes = pass.bytes.saturating_add(summary.size);
            }
            for bad in &judgement.bad {
                tracing::warn!(pg = %self.id, object = ?key, osd = %bad.osd, fault = bad.fault.describe(),
                    verdict = ?judgement.verdict, "scrub found a wrong copy");
            }
            self.take_judgement(pass, name, judgement, &mut found);
        }
        found
    }

    fn take_judgement(&self, pass: &mut Pass, object: ObjectName, judgement: Judgement, found: &mut Findings) {
        let Judgement { verdict, bad } = judgement;
        pass.faults += bad.len() as u64;
        // More than a few wrong copies are no accident of one disk: a person is to look first.
        let allowed = pass.kind == ScrubKind::Repair || pass.faults <= self.limits.scrub.repairs_max;
        let version = match verdict {
            Verdict::Whole => {
                pass.verified += 1;
                return;
            }
            Verdict::Replace(version) if allowed => Some(version),
            Verdict::Remove if allowed => None,
            Verdict::Replace(_) | Verdict::Remove | Verdict::Unclear => {
                let deep = bad.iter().all(|copy| matches!(copy.fault, CopyFault::Data | CopyFault::Unreadable));
                found.inconsistent.push(Inconsistency { object, deep, copies: bad });
                return;
            }
        };
        pass.verified += 1;
        for BadCopy { osd, .. } in bad {
            let marks = found.marks.entry(osd).or_default();
            match version {
                Some(need) => {
                    let item = MissingItem { object: object.clone(), need, have: LogVersion::ZERO };
                    marks.missing.push(item);
                }
                None => marks.remove.push(object.clone()),
            }
        }
    }

    /// Takes what is inconsistent in the chunk into the record, in the place of what was.
    pub(super) fn record_findings(
        &mut self,
        pass: &mut Pass,
        upto: &BackfillCursor,
        inconsistent: Vec<Inconsistency>,
        step: &mut Step<'_>,
    ) {
        let record = &mut self.scrub.record;
        let before = (record.inconsistent.clone(), record.inconsistent_more);
        let (after, deep) = (pass.after.as_slice(), pass.kind.is_deep());
        record.inconsistent.retain(|known| {
            let key = ObjectKey::of(&known.object);
            let looked_at = key.as_bytes() > after && upto.covers(key.as_bytes());
            // Without reading bytes nobody can say that they are right.
            !looked_at || (known.deep && !deep)
        });
        for found in inconsistent {
            let key = ObjectKey::of(&found.object);
            let at = record.inconsistent.partition_point(|known| ObjectKey::of(&known.object) < key);
            if record.inconsistent.get(at).is_some_and(|known| known.object == found.object) {
                continue;
            }
            if record.inconsistent.len() >= NAMED_MAX {
                pass.unnamed += 1;
                record.inconsistent_more = record.inconsistent_more.max(pass.unnamed);
            } else {
                record.inconsistent.insert(at, found);
            }
        }
        if before != (record.inconsistent.clone(), record.inconsistent_more) {
            self.keep_scrub_record(step);
        }
    }

    /// Counts of objects and bytes are derived from the log; when nothing was written during the pass, and all copies were
    /// the same, what was seen is right.
    pub(super) fn check_counts(&mut self, pass: &Pass, step: &mut Step<'_>) {
        if pass.faults > 0 || pass.head != Some(self.holding.log.head()) {
            return;
        }
        let seen = (i64::try_from(pass.verified).unwrap_or(i64::MAX), i64::try_from(pass.bytes).unwrap_or(i64::MAX));
        let kept = (self.holding.objects, self.holding.bytes);
        if seen != kept {
            if !self.holding.guessed {
                tracing::warn!(pg = %self.id, osd = %self.whoami, ?seen, ?kept, "counts of objects and bytes were wrong");
            }
            (self.holding.objects, self.holding.bytes) = seen;
            self.holding.guessed = false;
            self.submit(vec![rows::put_info(&self.holding.info())], None, step);
        }
    }
}
