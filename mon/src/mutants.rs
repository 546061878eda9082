//! Seeded bugs, to prove that the simulator's checkers bite.
//!
//! Without the feature `mutants` nothing of this is in the code: `on` is the constant `false`. With it, a test chooses one
//! bug for the whole process; `holdfast-mon-sim mutants` runs the simulator with each of them.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mutant {
    /// Entries are acknowledged before they are durable.
    AnswerBeforeSync = 1,
    /// A vote is given before it is durable.
    VoteNotSynced,
    /// Truncating a conflicting tail removes one entry more.
    TruncateOneTooMany,
    /// An installed snapshot brings the state, but not who the voters are.
    SnapshotWithoutMembership,
    /// A question is answered by whoever believes that it leads.
    ReadWithoutBarrier,
    /// A question is answered under the leader's lease, which a follower that restarts forgets.
    LeaseRead,
    /// A monitor without memory votes at once.
    VoteWithoutMemory,
    /// A resend is applied a second time.
    ResendAppliedTwice,
    /// A leader that restarts leads on in its term.
    LeaderRestored,
    /// A monitor that waits to be let in forms the cluster at its next start, when it is told to and reaches nobody.
    FormsAfterAll,
    /// A monitor that waits to be let in takes the mark of that off its disk when it starts again, though it waits on.
    MarkForgotten,
    /// Nobody lets a monitor without memory in.
    NeverLetIn,
    /// A monitor that is no voter any more ends.
    EndsWhenRemoved,
    /// Maps are handed out however long nothing was heard of the quorum.
    OldMapsHandedOut,
    /// A change of an option that the log has refused is acknowledged.
    RefusedIsDone,
    /// What another monitor has to commit is proposed again at once, without end.
    RefusalRetried,
    /// Who does not lead takes for granted that somebody else does.
    LeaderPresumed,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 17] = [
        Mutant::AnswerBeforeSync,
        Mutant::VoteNotSynced,
        Mutant::TruncateOneTooMany,
        Mutant::SnapshotWithoutMembership,
        Mutant::ReadWithoutBarrier,
        Mutant::LeaseRead,
        Mutant::VoteWithoutMemory,
        Mutant::ResendAppliedTwice,
        Mutant::LeaderRestored,
        Mutant::FormsAfterAll,
        Mutant::MarkForgotten,
        Mutant::NeverLetIn,
        Mutant::EndsWhenRemoved,
        Mutant::OldMapsHandedOut,
        Mutant::RefusedIsDone,
        Mutant::RefusalRetried,
        Mutant::LeaderPresumed,
    ];

    /// What it breaks, for the table in the docs.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Mutant::AnswerBeforeSync => "entries are acknowledged before they are durable",
            Mutant::VoteNotSynced => "a vote is given before it is durable",
            Mutant::TruncateOneTooMany => "truncating a conflicting tail removes one entry more",
            Mutant::SnapshotWithoutMembership => "an installed snapshot does not bring the membership",
            Mutant::ReadWithoutBarrier => "a question is answered by whoever believes that it leads",
            Mutant::LeaseRead => "a question is answered under a lease that a follower forgets when it restarts",
            Mutant::VoteWithoutMemory => "a monitor that lost its disk votes at once",
            Mutant::ResendAppliedTwice => "a resent request is committed under a new id",
            Mutant::LeaderRestored => "a leader that restarts leads on in its term",
            Mutant::FormsAfterAll => "a monitor without memory forgets at its next start that it has none",
            Mutant::MarkForgotten => "a monitor that waits to be let in unmarks its disk at its next start",
            Mutant::NeverLetIn => "nobody lets a monitor without memory in",
            Mutant::EndsWhenRemoved => "a monitor that is no voter any more ends",
            Mutant::OldMapsHandedOut => "maps are handed out however long nothing was heard of the quorum",
            Mutant::RefusedIsDone => "a change of an option that the log has refused is acknowledged",
            Mutant::RefusalRetried => "what another monitor has to commit is proposed again at once, without end",
            Mutant::LeaderPresumed => "who does not lead takes for granted that somebody else does",
        }
    }
}

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Chooses the bug of this process; `None`: none.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(0, |mutant| mutant as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether this bug was chosen.
#[cfg(feature = "mutants")]
pub(crate) fn on(mutant: Mutant) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Never: bugs are not in this build.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn on(_mutant: Mutant) -> bool {
    false
}
