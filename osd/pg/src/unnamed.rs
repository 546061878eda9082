//! Objects of which this primary cannot tell the version: the own copy is unreadable down to its attributes, and the log
//! does not tell of it any more. A lack needs a version, so peers are asked for it first.
//!
//! | a peer says | what follows |
//! |---|---|
//! | a version that the log may have forgotten | the object is missing here in that version: recovery fetches it |
//! | that there is no such object | the next peer is asked; when all say so, what is left of the own copy is removed |
//! | that it cannot tell, or a version that the log would know of | the next peer is asked |
//! | nobody is left to be asked | `unknown`: clients are answered as for an unfound object, all are asked again now and then |
//!
//! Asked are only those that follow the log for this object (covered by their cursor, not missing there): what a stray has
//! may be older.
//!
//! Invariants: U1 while a version is not known, nothing but a removal is executed on the object, and the placement group is
//! not clean; U2 an answer counts only for the question that it names, in the activation in which that was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::peer::{EntryKind, ObjectPiece, PeerBody, PiecePosition, Pull};
use holdfast_wire::{Blob, Effect};

use crate::api::{Output, StoreOp};
use crate::exec;
use crate::key::ObjectKey;
use crate::missing::Lack;
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Step, TICK};

/// A question that is not answered is asked again after this long.
const RESEND: Duration = Duration::from_secs(1);

/// What came of noting that the own copy of an object cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It is missing here, and will be fetched.
    Lacking,
    /// A peer is asked for its version.
    Asked,
    /// Its version is not known, and nobody can be asked.
    Unknown,
    /// The log says that it was deleted.
    Deleted,
}

#[derive(Debug)]
struct Question {
    /// Tells the answers of several questions about one object apart.
    number: u64,
    to: OsdId,
    sent: Timestamp,
    asked: BTreeSet<OsdId>,
    /// Whether all that have answered so far say that there is no such object.
    all_absent: bool,
}

impl Question {
    fn pull(&self, key: &ObjectKey) -> PeerBody {
        let position = PiecePosition { bytes: self.number, row: None };
        PeerBody::Pull(Pull { object: key.name(), version: LogVersion::ZERO, position })
    }
}

/// See the module document.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    asking: BTreeMap<ObjectKey, Question>,
    unknown: BTreeSet<ObjectKey>,
    last_question: u64,
}

impl Unnamed {
    pub fn is_empty(&self) -> bool {
        self.asking.is_empty() && self.unknown.is_empty()
    }

    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.is_asking(key) || self.is_unknown(key)
    }

    pub fn is_asking(&self, key: &ObjectKey) -> bool {
        self.asking.contains_key(key)
    }

    pub fn is_unknown(&self, key: &ObjectKey) -> bool {
        self.unknown.contains(key)
    }

    /// Whether an answer is waited for.
    pub fn is_busy(&self) -> bool {
        !self.asking.is_empty()
    }

    pub fn unknown(&self) -> usize {
        self.unknown.len()
    }

    /// The object is deleted, or its version is known.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.asking.remove(key);
        self.unknown.remove(key);
    }
}

impl Pg {
    fn unnamed(&mut self) -> Option<&mut Unnamed> {
        self.active().map(|active| &mut active.recovery.unnamed)
    }

    /// Notes that the own copy of an object cannot be used, and has it fetched, or its version asked for.
    pub(crate) fn mark_own_missing(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> Noted {
        let stored = exec::stored_version(step.store, key).unwrap_or(LogVersion::ZERO);
        let Role::Active(active) = &self.role else { return Noted::Unknown };
        let needed = active.peers.values().find_map(|peer| peer.missing.get(key)).map(|lack| lack.need);
        match self.holding.log.newest_of(&key.name()) {
            Some(entry) if entry.kind == EntryKind::Delete => return Noted::Deleted, // nobody is to have it
            Some(entry) => self.lack_own(key, entry.version, step),
            None if stored != LogVersion::ZERO => self.lack_own(key, stored, step),
            None => match needed {
                Some(need) => self.lack_own(key, need, step),
                None => return self.ask_version(key, step),
            },
        }
        Noted::Lacking
    }

    fn lack_own(&mut self, key: &ObjectKey, need: LogVersion, step: &mut Step<'_>) {
        let mut ops: Vec<StoreOp> = Vec::new();
        self.put_lack(key, Lack { need, have: LogVersion::ZERO }, &mut ops);
        self.submit(ops, None, step);
        let Some(active) = self.active() else { return };
        active.clean &= on(Mutant::CleanWhileMending);
        active.recovery.unnamed.forget(key);
        active.recovery.hurry(key);
        step.report = true;
        // Clients that wait for it are tried again when it is here; recovery may begin in this step.
        step.rerun = true;
    }

    fn ask_version(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> Noted {
        let Some(active) = self.active() else { return Noted::Unknown };
        active.clean = false;
        let unnamed = &mut active.recovery.unnamed;
        if unnamed.is_asking(key) {
            return Noted::Asked;
        }
        unnamed.unknown.remove(key);
        self.ask_next(key, BTreeSet::new(), true, step)
    }

    /// Asks the next peer that follows the log for the object.
    fn ask_next(
        &mut self,
        key: &ObjectKey,
        mut asked: BTreeSet<OsdId>,
        all_absent: bool,
        step: &mut Step<'_>,
    ) -> Noted {
        step.report = true;
        self.tick_within(TICK, step);
        let Some(active) = self.active() else { return Noted::Unknown };
        let follows =
            active.peers.iter().filter(|(_, peer)| peer.cursor.covers(key.as_bytes()) && !peer.missing.contains(key));
        let next = follows.map(|(osd, _)| *osd).find(|osd| !asked.contains(osd));
        let unnamed = &mut active.recovery.unnamed;
        if let Some(to) = next {
            asked.insert(to);
            unnamed.last_question += 1;
            let question = Question { number: unnamed.last_question, to, sent: step.now, asked, all_absent };
            let pull = question.pull(key);
            unnamed.asking.insert(key.clone(), question);
            self.send(to, pull, step);
            return Noted::Asked;
        }
        if asked.is_empty() || !all_absent {
            unnamed.unknown.insert(key.clone());
            self.clients.wake(key);
            step.rerun = true;
            return Noted::Unknown;
        }
        // Every copy that follows the log lacks it: there is no such object, whatever the index here says.
        tracing::warn!(pg = %self.id, object = ?key, "unreadable, and nowhere else: what is left of it is removed");
        let mended = self.mend(key);
        self.submit(vec![StoreOp::Object { key: key.clone(), effect: Effect::Remove }], mended, step);
        self.clients.wake(key);
        step.rerun = true;
        Noted::Asked
    }

    /// Whether a piece or a failed pull answers a question for a version.
    pub(crate) fn answers_question(&self, from: OsdId, object: &ObjectKey, position: &PiecePosition) -> bool {
        let Role::Active(active) = &self.role else { return false };
        let question = active.recovery.unnamed.asking.get(object);
        question.is_some_and(|question| question.to == from && question.number == position.bytes)
    }

    /// A peer answers the question for a version: [`LogVersion::ZERO`] when there is no such object, `None` when it
    /// cannot tell.
    pub(crate) fn version_told(&mut self, key: &ObjectKey, version: Option<LogVersion>, step: &mut Step<'_>) {
        let Some(question) = self.unnamed().and_then(|unnamed| unnamed.asking.remove(key)) else { return };
        if self.is_readable_again(key, step) {
            return;
        }
        let tail = self.holding.log.tail();
        match version {
            _ if self.holding.log.newest_of(&key.name()).is_some() => {
                self.mark_own_missing(key, step);
            }
            // A version after the tail would be in the log.
            Some(version) if version != LogVersion::ZERO && version <= tail => self.lack_own(key, version, step),
            told => {
                let absent = told == Some(LogVersion::ZERO);
                self.ask_next(key, question.asked, question.all_absent && absent, step);
            }
        }
    }

    /// Whether the own copy can be read after all: then nothing is wrong with it.
    fn is_readable_again(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> bool {
        let readable = matches!(exec::stored_version(step.store, key), Ok(version) if version != LogVersion::ZERO);
        if readable {
            if self.mend(key).is_some() {
                step.out.push(Output::CopyRepaired);
            }
            if let Some(unnamed) = self.unnamed() {
                unnamed.forget(key);
            }
            self.clients.wake(key);
            step.rerun = true;
        }
        readable
    }

    pub(crate) fn resend_questions(&mut self, step: &mut Step<'_>) {
        let Some(unnamed) = self.unnamed() else { return };
        let mut late = Vec::new();
        for (key, question) in &mut unnamed.asking {
            if step.now.since(question.sent) >= RESEND {
                question.sent = step.now;
                late.push((question.to, question.pull(key)));
            }
        }
        for (to, pull) in late {
            self.send(to, pull, step);
        }
    }

    /// Who could not tell may be able to now.
    pub(crate) fn ask_again_for_unknown(&mut self, step: &mut Step<'_>) {
        let unknown = self.unnamed().map(|unnamed| std::mem::take(&mut unnamed.unknown)).unwrap_or_default();
        for key in unknown {
            if !self.is_readable_again(&key, step) {
                self.mark_own_missing(&key, step);
            }
        }
    }

    /// The asked side: tells the version of the own copy.
    pub(crate) fn tell_version(&mut self, from: OsdId, pull: Pull, step: &mut Step<'_>) {
        let key = ObjectKey::of(&pull.object);
        let follows = self.holding.last_backfill.covers(key.as_bytes()) && !self.holding.missing.contains(&key);
        let stored = step.store.stat(&key).and_then(|size| match size {
            Some(size) => Ok(Some((size, exec::stored_version(step.store, &key)?))),
            None => Ok(None),
        });
        let (size, version) = match stored {
            Ok(None) => (0, LogVersion::ZERO),
            Ok(Some((size, version))) if version != LogVersion::ZERO => (size, version),
            Ok(Some(_)) => return self.cannot_tell(from, pull, step),
            Err(error) => {
                self.note_damage(&key, &error, step);
                return self.cannot_tell(from, pull, step);
            }
        };
        if !follows {
            return self.cannot_tell(from, pull, step);
        }
        let next = (version != LogVersion::ZERO).then(PiecePosition::default);
        let (data, rows, attrs) = (Blob::default(), Vec::new(), Vec::new());
        let piece =
            ObjectPiece { object: pull.object, version, position: pull.position, next, size, data, rows, attrs };
        self.send_when_durable(from, PeerBody::PullReply(piece), step);
    }

    fn cannot_tell(&mut self, from: OsdId, pull: Pull, step: &mut Step<'_>) {
        self.send_when_durable(from, PeerBody::PullFailed(pull), step);
    }
}
