//! Seeded protocol bugs, for the proof that the simulator's checkers bite.
//!
//! Without the feature `mutants` nothing of this is in the code: `on` is the constant `false`. With it, a test chooses one
//! bug for the whole process; `cargo xtask mutants` runs the simulator with each of them and writes `docs/mutants-table.md`.

/// A rule of the protocol that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "`breaks` says what each of them does")]
pub enum Mutant {
    AckBeforeReplicas = 1,
    AckBeforeDurable,
    AckActivationBeforeDurable,
    DedupOff,
    UnloggedForgotten,
    SkipUpThru,
    StaleIntervalAccepted,
    StaleActivationAccepted,
    ShortestLogChosen,
    IncompleteChosen,
    DivergentKept,
    AdoptedDeletesForgotten,
    AdoptedChangesForgotten,
    MissingIgnored,
    CursorEarly,
    BatchNotWritten,
    TrimPastMembers,
    ActivateBeforeMembers,
    PastForgotten,
    MinSizeIgnored,
    UncommittedRead,
    WriteGapIgnored,
    OldPushTaken,
    LateBackfillTaken,
    PriorSetIgnored,
    WritesNotResent,
    QuestionsNotResent,
    DupsUntrimmed,
    LogUntrimmed,
    ConditionIgnored,
    TailKept,
    CounterAnswersBefore,
    DeletesRefusedWhenFull,
    ScrubMarksNothing,
    ScrubBelievesFirst,
    CleanTooEarly,
    StrayKept,
    FenceIgnored,
    BarrierSkipped,
    WokenForEver,
    LeaseIgnored,
    LeaseNotWaitedFor,
    LeaseForgotten,
    LeaseOfOneEnough,
    AnswerNotJudged,
    ShortUpSetAsked,
    TailTooFar,
    DeletedRowsKept,
    RoomToldLate,
    CleanWhileMending,
    CleanToldEarly,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 51] = [
        Mutant::AckBeforeReplicas,
        Mutant::AckBeforeDurable,
        Mutant::AckActivationBeforeDurable,
        Mutant::DedupOff,
        Mutant::UnloggedForgotten,
        Mutant::SkipUpThru,
        Mutant::StaleIntervalAccepted,
        Mutant::StaleActivationAccepted,
        Mutant::ShortestLogChosen,
        Mutant::IncompleteChosen,
        Mutant::DivergentKept,
        Mutant::AdoptedDeletesForgotten,
        Mutant::AdoptedChangesForgotten,
        Mutant::MissingIgnored,
        Mutant::CursorEarly,
        Mutant::BatchNotWritten,
        Mutant::TrimPastMembers,
        Mutant::ActivateBeforeMembers,
        Mutant::PastForgotten,
        Mutant::MinSizeIgnored,
        Mutant::UncommittedRead,
        Mutant::WriteGapIgnored,
        Mutant::OldPushTaken,
        Mutant::LateBackfillTaken,
        Mutant::PriorSetIgnored,
        Mutant::WritesNotResent,
        Mutant::QuestionsNotResent,
        Mutant::DupsUntrimmed,
        Mutant::LogUntrimmed,
        Mutant::ConditionIgnored,
        Mutant::TailKept,
        Mutant::CounterAnswersBefore,
        Mutant::DeletesRefusedWhenFull,
        Mutant::ScrubMarksNothing,
        Mutant::ScrubBelievesFirst,
        Mutant::CleanTooEarly,
        Mutant::StrayKept,
        Mutant::FenceIgnored,
        Mutant::BarrierSkipped,
        Mutant::WokenForEver,
        Mutant::LeaseIgnored,
        Mutant::LeaseNotWaitedFor,
        Mutant::LeaseForgotten,
        Mutant::LeaseOfOneEnough,
        Mutant::AnswerNotJudged,
        Mutant::ShortUpSetAsked,
        Mutant::TailTooFar,
        Mutant::DeletedRowsKept,
        Mutant::RoomToldLate,
        Mutant::CleanWhileMending,
        Mutant::CleanToldEarly,
    ];

    /// What is wrong with it, in words.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Mutant::AckBeforeReplicas => "a write is answered when it is durable on the primary alone",
            Mutant::AckBeforeDurable => "a member acknowledges a write before it is durable",
            Mutant::AckActivationBeforeDurable => "answers to the primary do not wait for what they tell to be durable",
            Mutant::DedupOff => "a request that was executed is executed again when it comes again",
            Mutant::UnloggedForgotten => "answers without a log entry are not remembered",
            Mutant::SkipUpThru => "a primary goes active before the map shows its up_thru",
            Mutant::StaleIntervalAccepted => "messages of older intervals are accepted",
            Mutant::StaleActivationAccepted => "messages of an older activation of the interval are accepted",
            Mutant::ShortestLogChosen => "the log that ends first is the authoritative one",
            Mutant::IncompleteChosen => {
                "a copy that is being filled may have the authoritative log, and counts as a whole one"
            }
            Mutant::DivergentKept => "what a divergent entry did to its object is kept",
            Mutant::AdoptedDeletesForgotten => "deletes that a copy has missed are not carried out",
            Mutant::AdoptedChangesForgotten => "objects that changed while a copy was away are not missing there",
            Mutant::MissingIgnored => "an object that is missing on the primary is read and written all the same",
            Mutant::CursorEarly => "the backfill cursor moves before its batch is durable on the target",
            Mutant::BatchNotWritten => "writes to objects of the batch that are filled already do not reach the target",
            Mutant::TrimPastMembers => "the log is trimmed up to its head, whatever members have of it",
            Mutant::ActivateBeforeMembers => "a primary goes active before the members have taken its log",
            Mutant::PastForgotten => "intervals that have ended are not remembered",
            Mutant::MinSizeIgnored => "a placement group serves with fewer than min_size members",
            Mutant::UncommittedRead => "a read shows what is not durable everywhere",
            Mutant::WriteGapIgnored => "a member takes a write whose predecessor it lacks",
            Mutant::OldPushTaken => "a member takes a pushed object whatever its version",
            Mutant::LateBackfillTaken => "a member takes what backfill sent, however late it comes",
            Mutant::PriorSetIgnored => "nobody is waited for of an interval that all members have left",
            Mutant::WritesNotResent => "a write that was lost on the way is not sent again",
            Mutant::QuestionsNotResent => "a question of peering that was lost on the way is not asked again",
            Mutant::DupsUntrimmed => "twice as much is remembered of requests beyond the log as there may be",
            Mutant::LogUntrimmed => "the log is never trimmed",
            Mutant::ConditionIgnored => "a write that is conditional on a version is done whatever the version is",
            Mutant::TailKept => "what replaces a longer object keeps its end",
            Mutant::CounterAnswersBefore => "an addition answers what the counter was before",
            Mutant::DeletesRefusedWhenFull => "a full cluster refuses deletions, too",
            Mutant::ScrubMarksNothing => "copies that a scrub has found bad are not marked for repair",
            Mutant::ScrubBelievesFirst => "the copy on the first member is right, whatever the others have",
            Mutant::CleanTooEarly => "a placement group says that it is clean though other members lack objects",
            Mutant::StrayKept => "a copy that is needed no more is kept for ever",
            Mutant::FenceIgnored => "requests of a fenced session are served",
            Mutant::BarrierSkipped => {
                "who fences a session does not wait until every OSD acts by the map that fences it"
            }
            Mutant::WokenForEver => "a placement group wants to be woken at once, though there is nothing to do",
            Mutant::LeaseIgnored => "a primary reads without a lease",
            Mutant::LeaseNotWaitedFor => "a primary does not wait for the leases of its predecessors",
            Mutant::LeaseForgotten => "who has just started does not say that it may have granted leases",
            Mutant::LeaseOfOneEnough => "a primary goes by the lease of one acting member alone",
            Mutant::AnswerNotJudged => "an answer leaves though its lease has ended since it was read",
            Mutant::ShortUpSetAsked => "a primary asks back to an up set that has fewer members than the acting set",
            Mutant::TailTooFar => "a trimmed log says that it begins after its first entry",
            Mutant::DeletedRowsKept => "members other than the primary keep rows that a write deletes",
            Mutant::RoomToldLate => "an OSD tells the monitors half a minute late that it has room again",
            Mutant::CleanToldEarly => "an OSD tells the monitors that what it leads is clean as soon as it is served",
            Mutant::CleanWhileMending => {
                "a placement group says that it is clean while its primary fetches an object anew"
            }
        }
    }
}

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks one rule, or none, from now on, in the whole process.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(0, |mutant| mutant as u8), std::sync::atomic::Ordering::SeqCst);
}

#[cfg(feature = "mutants")]
static SILENT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Turns the assertions of [`crate::Pg::step`] off, or on again, in the whole process: for the proof that they are needed.
#[cfg(feature = "mutants")]
pub fn silence_assertions(silent: bool) {
    SILENT.store(silent, std::sync::atomic::Ordering::SeqCst);
}

/// Whether the assertions are off.
#[cfg(feature = "mutants")]
pub(crate) fn assertions_are_silent() -> bool {
    SILENT.load(std::sync::atomic::Ordering::Relaxed)
}

/// Whether the assertions are off: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn assertions_are_silent() -> bool {
    false
}

/// Whether this rule is broken.
#[cfg(feature = "mutants")]
#[must_use]
pub fn on(mutant: Mutant) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Whether this rule is broken: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn on(_mutant: Mutant) -> bool {
    false
}
