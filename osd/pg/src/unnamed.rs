//! Objects of which this primary cannot tell the version: the own copy is unreadable down to its attributes, and the log
//! does not tell of it any more. A lack needs a version, so peers are asked for it first. What none of them can tell is
//! missing in the version [`UNNAMED`], durably, as any object is that nobody can give: backfill goes past it and leaves the
//! target without it, who leads later goes on to ask, and a removal of it that is taken back makes it missing again.
//!
//! What the own row says of an object, and what happens to it here:
//!
//! | own row | event | what follows |
//! |---|---|---|
//! | none | the copy cannot be read; the log, the store or what a peer lacks tells the version | missing in that version: recovery fetches it |
//! | none | nothing tells it | a peer is asked; whatever is asked of the object waits for the answer |
//! | none, or `UNNAMED` | a peer tells a version that the log may have forgotten | missing in that version |
//! | none, or `UNNAMED` | a peer says that there is no such object | the next one is asked; when all say so ([`Heard::is_none`]), what is left of the own copy is removed, and the row, unless somebody who is down may have it |
//! | none, or `UNNAMED` | a peer cannot tell, or tells a version that the log would know of | the next one is asked |
//! | none | nobody is left to be asked | `UNNAMED`, and unfound: `have` is `UNNAMED`, too, for the copy here has followed the log |
//! | `UNNAMED` | nobody is left to be asked | unfound: asked for again as other unfound objects are, and by every later primary |
//! | none, or `have` is `UNNAMED` | the copy can be read again | whole: the row is deleted |
//! | any | backfill was told `UNNAMED` (here is the target) | `UNNAMED`, `have` zero: what is here may be an older version, or one that was deleted |
//! | `UNNAMED` | the object is removed | the row is deleted; the entry says that it had the version `UNNAMED` |
//! | any | that entry turns out divergent | `UNNAMED`, `have` zero, wherever it was carried out (`merge`) |
//! | `UNNAMED` | the log that is taken, the own one further back, what a peer lacks, or a scrub names a version | missing in that version |
//! | `UNNAMED` | the own log further back says that it was deleted | what is here is removed, and the row |
//! | `UNNAMED` | the primary sends the object in any version | whole |
//! | `UNNAMED` | the primary says that there is none ([`PushWhat::Remove`]) | what is here is removed, and the row |
//!
//! And what is done for a peer that lacks an object in the version `UNNAMED`:
//!
//! | the own copy | what follows |
//! |---|---|
//! | missing, too | it is found first |
//! | whole | that version is what the peer lacks; it is sent |
//! | absent | the others are asked, too; when all say that there is no such object, the peer is told so |
//! | unreadable | as above: another peer is asked |
//!
//! One that cannot read its copy and cannot tell more (`have` is `UNNAMED`, or it is the own copy) is no witness that there
//! is an object when two that follow the log have none: it may be what is left of one that was removed. Against one alone
//! it is: where one who follows the log has none and one cannot read what it has, and nobody else can be asked (there are two
//! copies, or the others were filled since and know no more), the object stays unfound, its placement group not clean, and
//! `holdfast explain pg` names it, until somebody can read it or a client removes it.
//!
//! Asked are only those that follow the log for this object (covered by their cursor, not missing there): what another has
//! may be older. Then those whose copy has followed the log until it could not be read (`have` is `UNNAMED`): that may have
//! been for a moment only. Last, strays that have left off following it only after what is forgotten of it here; of them
//! counts a version only, not that they have none. One that does not answer is not asked of others for a while, and may have
//! the object until it does.
//!
//! Invariants: U1 while a version is not known, nothing but a removal is executed on the object, and the placement group is
//! not clean; U2 an answer counts only for the question that it names, in the activation in which that was asked; U3 what is
//! here of an object is never taken for the version that is not known unless it has followed the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_types::{LogVersion, OsdId, Timestamp};
#[cfg(doc)]
use holdfast_wire::peer::PushWhat;
use holdfast_wire::peer::{EntryKind, ObjectPiece, PeerBody, PiecePosition, Pull};
use holdfast_wire::{Blob, Effect};

use crate::api::{Output, StoreOp};
use crate::exec;
use crate::key::ObjectKey;
use crate::missing::{Lack, UNNAMED};
use crate::mutants::{Mutant, on};
use crate::pg::{Pg, Role, Step, TICK};
use crate::recovery::ASK_STRAY_MAX;
use crate::rows;

/// A question that is not answered is asked again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// For so long it is not asked of other objects either: with many of them, what else is missing would never get its turn.
const STRAY_SILENCE: Duration = Duration::from_secs(60);

/// What came of noting that the own copy of an object cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It is missing here, and will be fetched.
    Lacking,
    /// A peer is asked for its version.
    Asked,
    /// Its version is not known, and nobody is left to be asked: it is missing here, and unfound.
    Unknown,
    /// The log says that it was deleted, or nobody has it, and nothing is left of it here.
    Deleted,
}

#[derive(Debug)]
struct Question {
    /// Tells the answers of several questions about one object apart.
    number: u64,
    to: OsdId,
    sent: Timestamp,
    times: u32,
    asked: BTreeSet<OsdId>,
    heard: Heard,
    /// The end of what is forgotten of the log, when it was asked: what follows is not told of by a stray that was chosen
    /// by it, for there the log may have gone on otherwise.
    tail: LogVersion,
}

/// What those who were asked have said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Heard {
    /// How many that follow the log say that there is no such object.
    absent: usize,
    /// Whether one that follows the log cannot tell, or tells what cannot be.
    in_doubt: bool,
    /// Whether one that cannot read its own copy still cannot.
    unread: bool,
}

impl Heard {
    /// Whether there is no such object: all that follow the log have none. Who cannot read what it has, here or elsewhere,
    /// is outvoted by two.
    fn is_none(self, absent_here: bool, unread_here: bool) -> bool {
        let votes = self.absent + usize::from(absent_here);
        !self.in_doubt && votes > usize::from(self.unread || unread_here)
    }
}

impl Question {
    fn pull(&self, key: &ObjectKey) -> PeerBody {
        let position = PiecePosition { bytes: self.number, row: None };
        PeerBody::Pull(Pull { object: key.name(), version: LogVersion::ZERO, position })
    }
}

/// The questions that are under way; see the module document.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    asking: BTreeMap<ObjectKey, Question>,
    last_question: u64,
    /// When strays were given up that did not answer and have not been heard since.
    silent: BTreeMap<OsdId, Timestamp>,
}

impl Unnamed {
    pub fn is_asking(&self, key: &ObjectKey) -> bool {
        self.asking.contains_key(key)
    }

    /// Whether an answer is waited for.
    pub fn is_busy(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Of how many objects.
    pub fn asking(&self) -> usize {
        self.asking.len()
    }

    /// The objects of which one has been asked, and now another is.
    pub fn asked_of(&self, from: OsdId) -> impl Iterator<Item = &ObjectKey> {
        self.asking.iter().filter(move |(_, question)| question.asked.contains(&from)).map(|(key, _)| key)
    }

    /// Strays that have not been heard since they did not answer.
    pub fn silent(&self) -> impl Iterator<Item = OsdId> {
        self.silent.keys().copied()
    }

    /// The object is deleted, or its version is known.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.asking.remove(key);
    }

    /// Whether a stray did not answer lately, whatever it was asked for.
    pub fn is_silent(&self, stray: OsdId, now: Timestamp) -> bool {
        self.silent.get(&stray).is_some_and(|at| now.since(*at) < STRAY_SILENCE)
    }

    /// A stray was heard. Whether it had been silent.
    pub fn note_heard(&mut self, stray: OsdId) -> bool {
        self.silent.remove(&stray).is_some()
    }

    /// A stray that did not answer is given up for a while.
    pub fn note_silence(&mut self, stray: OsdId, now: Timestamp) {
        self.silent.insert(stray, now);
    }
}

impl Pg {
    fn unnamed(&mut self) -> Option<&mut Unnamed> {
        self.active().map(|active| &mut active.recovery.unnamed)
    }

    /// Notes that the own copy of an object cannot be used, and has it fetched, or its version asked for.
    pub(crate) fn mark_own_missing(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> Noted {
        let own = self.holding.missing.get(key);
        let Role::Active(active) = &self.role else { return Noted::Unknown };
        // What is here of what is missing may be older. And a disk that has dropped a write shows an older one, too.
        let stored = own.is_none().then(|| exec::stored_version(step.store, key).unwrap_or(LogVersion::ZERO));
        let lacked = active.peers.values().filter_map(|peer| peer.missing.get(key)).map(|lack| lack.need);
        let told = lacked.chain(own.map(|lack| lack.need)).filter(|need| *need != UNNAMED);
        let told = told.chain(stored.filter(|stored| *stored != LogVersion::ZERO)).max();
        match self.holding.log.newest_of(&key.name()) {
            Some(entry) if entry.kind == EntryKind::Delete => return Noted::Deleted, // nobody is to have it
            Some(entry) => self.lack_own(key, entry.version, step),
            None => match told {
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
        active.recovery.may_be_found(key);
        active.recovery.hurry(key);
        step.report = true;
        // Clients that wait for it are tried again when it is here; recovery may begin in this step.
        step.rerun = true;
    }

    /// Looks for an object that is missing here in a version that is not known.
    pub(crate) fn find_unnamed(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        if !self.is_readable_again(key, step) && self.mark_own_missing(key, step) == Noted::Deleted {
            // A divergent removal of it was taken back by a merge that did not look so far back in the log.
            let remove = StoreOp::Object { key: key.clone(), effect: Effect::Remove };
            self.forget_lack(key, vec![remove], step);
        }
    }

    fn ask_version(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> Noted {
        let is_lacked = self.holding.missing.is_unnamed(key);
        let Some(active) = self.active() else { return Noted::Unknown };
        active.clean = false;
        if active.recovery.unnamed.is_asking(key) {
            return Noted::Asked;
        }
        if is_lacked && active.recovery.is_unfound(key) {
            return Noted::Unknown; // all have been asked; it is looked for again in a while
        }
        self.ask_next(key, BTreeSet::new(), Heard::default(), step)
    }

    /// Asks the next one that may tell of the object.
    fn ask_next(&mut self, key: &ObjectKey, asked: BTreeSet<OsdId>, heard: Heard, step: &mut Step<'_>) -> Noted {
        step.report = true;
        self.tick_within(TICK, step);
        let Some(active) = self.active() else { return Noted::Unknown };
        let covering = active.peers.iter().filter(|(_, peer)| peer.cursor.covers(key.as_bytes()));
        let covering = covering.map(|(osd, peer)| (*osd, peer.missing.get(key)));
        let follows = covering.clone().filter(|(_, lack)| lack.is_none());
        let unread = covering.filter(|(_, lack)| lack.is_some_and(|lack| lack.is_unread()));
        let next = follows.chain(unread).map(|(osd, _)| osd).find(|osd| !asked.contains(osd));
        let next = next.or_else(|| self.strays_up_to_date(step.now).find(|osd| !asked.contains(osd)));
        if let Some(to) = next {
            self.ask(key, to, asked, heard, step);
            return Noted::Asked;
        }
        let is_whole = !self.holding.missing.contains(key) && !step.touched.contains(key);
        let absent_here = is_whole && matches!(step.store.stat(key), Ok(None));
        let unread_here = !absent_here && self.holding.missing.get(key).is_none_or(|lack| lack.is_unread());
        // What is here is not removed while somebody who is not there may know better.
        let is_asked_again = matches!(&self.role, Role::Active(active) if active.recovery.will_be_asked_once_more(key));
        let may_be_known = is_asked_again || self.absent_may_have();
        if heard.is_none(absent_here, unread_here) && (absent_here || !may_be_known) {
            self.is_no_object(key, absent_here, step);
            return if absent_here { Noted::Deleted } else { Noted::Asked };
        }
        self.lack_unnamed(key, absent_here, step);
        Noted::Unknown
    }

    /// Strays that answer whose log ends after what is forgotten of the log here. Up to there both are the same: of two branches of
    /// the log only the later one goes on, and all its entries are later than those of the other. So a version of an
    /// object from before, which the log here does not tell of, is the newest there is.
    fn strays_up_to_date(&self, now: Timestamp) -> impl Iterator<Item = OsdId> {
        let tail = self.holding.log.tail();
        let active = match &self.role {
            Role::Active(active) => Some(active),
            _ => None,
        };
        active.into_iter().flat_map(move |active| {
            let answers = move |osd: &OsdId| !active.recovery.unnamed.is_silent(*osd, now);
            active.strays.iter().filter(move |(_, head)| **head >= tail).map(|(osd, _)| *osd).filter(answers)
        })
    }

    fn ask(&mut self, key: &ObjectKey, to: OsdId, mut asked: BTreeSet<OsdId>, heard: Heard, step: &mut Step<'_>) {
        let (activations, tail) = (self.activations, self.holding.log.tail());
        let Some(unnamed) = self.unnamed() else { return };
        asked.insert(to);
        unnamed.last_question += 1;
        // Strays are in no activation: the number tells them apart, too (U2).
        let number = (activations << 32) | unnamed.last_question;
        let question = Question { number, to, sent: step.now, times: 1, asked, heard, tail };
        let pull = question.pull(key);
        unnamed.asking.insert(key.clone(), question);
        self.send(to, pull, step);
    }

    /// Nobody can tell the version: the object is unfound until somebody can.
    fn lack_unnamed(&mut self, key: &ObjectKey, absent_here: bool, step: &mut Step<'_>) {
        if !self.holding.missing.contains(key) {
            tracing::warn!(pg = %self.id, object = ?key, "unreadable, and nobody can tell which version it has");
            let have = if absent_here { LogVersion::ZERO } else { UNNAMED };
            let mut ops = Vec::new();
            self.put_lack(key, Lack { need: UNNAMED, have }, &mut ops);
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
        }
        let Some(active) = self.active() else { return };
        active.recovery.is_not_found(key);
        self.clients.wake(key);
        step.rerun = true;
    }

    /// Every copy that follows the log lacks the object: there is none, whatever the index here, or a row, says.
    fn is_no_object(&mut self, key: &ObjectKey, absent_here: bool, step: &mut Step<'_>) {
        let mut ops = Vec::new();
        if !absent_here {
            tracing::warn!(pg = %self.id, object = ?key, "unreadable, and nowhere else: what is left of it is removed");
            ops.push(StoreOp::Object { key: key.clone(), effect: Effect::Remove });
        }
        self.forget_lack(key, ops, step);
        if absent_here {
            // (Else in a later step, when the store shows that it is gone here: its lack there has it asked for again.)
            self.tell_that_there_is_none(key, step);
        }
    }

    /// Tells peers that lack an object in a version that is not known that there is no such object.
    fn tell_that_there_is_none(&mut self, key: &ObjectKey, step: &mut Step<'_>) {
        let Role::Active(active) = &self.role else { return };
        if active.is_uncommitted(key) {
            return;
        }
        let told = |osd: OsdId| active.backfill.as_ref().is_some_and(|backfill| backfill.tells_lack(osd, key));
        let lack = active.peers.iter().filter(|(_, peer)| peer.missing.is_unnamed(key)).map(|(osd, _)| *osd);
        let lack = lack.filter(|osd| !told(*osd) && !active.recovery.is_pushing_to(key, *osd));
        for osd in lack.collect::<Vec<OsdId>>() {
            self.push_object(osd, key, None, false, step);
        }
    }

    /// A peer lacks an object, which is not missing here, in a version that is not known.
    pub(crate) fn push_unnamed(&mut self, to: OsdId, key: &ObjectKey, step: &mut Step<'_>) {
        if step.touched.contains(key) {
            step.rerun = true;
            return;
        }
        match exec::stored_version(step.store, key) {
            Ok(need) if need != LogVersion::ZERO => {
                if let Some(peer) = self.active().and_then(|active| active.peers.get_mut(&to)) {
                    peer.missing.insert(key.clone(), Lack { need, have: LogVersion::ZERO });
                }
                return self.push_object(to, key, Some(need), false, step);
            }
            Ok(_) => {}
            Err(error) => self.note_damage(key, &error, step),
        }
        if self.mark_own_missing(key, step) == Noted::Deleted {
            self.tell_that_there_is_none(key, step);
        }
    }

    /// Nothing of the object is missing here any more, whatever `ops` leave of it.
    fn forget_lack(&mut self, key: &ObjectKey, mut ops: Vec<StoreOp>, step: &mut Step<'_>) {
        if self.holding.missing.remove(key).is_some() {
            ops.push(rows::delete_missing(key));
        }
        let mended = self.mend(key);
        if ops.is_empty() {
            step.out.extend(mended.map(|_| Output::CopyRepaired));
        } else {
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, mended, step);
        }
        if let Some(active) = self.active() {
            active.recovery.unnamed.forget(key);
            active.recovery.may_be_found(key);
        }
        self.clients.wake(key);
        step.report = true;
        step.rerun = true;
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
        if self.holding.missing.get(key).is_some_and(|lack| !lack.is_unnamed()) {
            return; // something else has told it meanwhile
        }
        let Question { to, asked, mut heard, tail, .. } = question;
        match version {
            _ if self.holding.log.newest_of(&key.name()).is_some() => {
                self.mark_own_missing(key, step);
            }
            // A version after the tail would be in the log.
            Some(version) if version > UNNAMED && version <= tail => self.lack_own(key, version, step),
            told => {
                let Role::Active(active) = &self.role else { return };
                // (A stray that has none says nothing: it may have removed what was never acknowledged to be removed.)
                if let Some(peer) = active.peers.get(&to) {
                    match told {
                        Some(LogVersion::ZERO) => heard.absent += 1,
                        None if peer.missing.get(key).is_some_and(|lack| lack.is_unread()) => heard.unread = true,
                        _ => heard.in_doubt = true,
                    }
                }
                self.ask_next(key, asked, heard, step);
            }
        }
    }

    /// Whether the own copy can be read after all, and has followed the log: then nothing is wrong with it.
    fn is_readable_again(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> bool {
        let own = self.holding.missing.get(key);
        if own.is_some_and(|lack| !lack.is_unread()) {
            return false; // U3
        }
        let Ok(version) = exec::stored_version(step.store, key) else { return false };
        // (A version after the tail would be in the log, and what the log names is not missing in a version unknown.)
        if version == LogVersion::ZERO || own.is_some() && version > self.holding.log.tail() {
            return false;
        }
        self.forget_lack(key, Vec::new(), step);
        true
    }

    pub(crate) fn resend_questions(&mut self, step: &mut Step<'_>) {
        let Some(active) = self.active() else { return };
        let (mut late, mut gone) = (Vec::new(), Vec::new());
        for (key, question) in &mut active.recovery.unnamed.asking {
            let answers = active.peers.contains_key(&question.to)
                || active.strays.contains_key(&question.to) && question.times < ASK_STRAY_MAX;
            let is_late = step.now.since(question.sent) >= RESEND;
            if is_late && !answers {
                gone.push((question.to, key.clone()));
            } else if is_late {
                question.sent = step.now;
                question.times += 1;
                late.push((question.to, question.pull(key)));
            }
        }
        let (silent, strays) = (&mut active.recovery.unnamed.silent, &active.strays);
        silent.extend(gone.iter().filter(|(osd, _)| strays.contains_key(osd)).map(|(stray, _)| (*stray, step.now)));
        for (to, pull) in late {
            self.send(to, pull, step);
        }
        for (_, key) in gone {
            self.version_told(&key, None, step);
        }
    }

    /// The asked side: tells the version of the own copy.
    pub(crate) fn tell_version(&mut self, from: OsdId, pull: Pull, step: &mut Step<'_>) {
        let key = ObjectKey::of(&pull.object);
        let lack = self.holding.missing.get(&key);
        let follows = self.holding.last_backfill.covers(key.as_bytes()) && lack.is_none_or(|lack| lack.is_unread());
        if !follows {
            return self.cannot_tell(from, pull, step); // U3
        }
        let stored = step.store.stat(&key).and_then(|size| match size {
            Some(size) => Ok(Some((size, exec::stored_version(step.store, &key)?))),
            None => Ok(None),
        });
        let (size, version) = match stored {
            // It was here, and cannot have been deleted: that would have ended its lack.
            Ok(None) if lack.is_some() => return self.cannot_tell(from, pull, step),
            Ok(None) => (0, LogVersion::ZERO),
            Ok(Some((size, version))) if version != LogVersion::ZERO => (size, version),
            Ok(Some(_)) => return self.cannot_tell(from, pull, step),
            Err(error) => {
                self.note_damage(&key, &error, step);
                return self.cannot_tell(from, pull, step);
            }
        };
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
