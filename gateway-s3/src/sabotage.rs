//! Seeded bugs: each takes one rule of the commit logic away, to prove that the simulator would notice. Never in a real build.

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Sabotage {
    /// An object is committed while its last stripes are still on their way.
    CommitBeforeBlob = 1,
    /// No intent says that a blob is being written.
    IntentForgotten,
    /// The blob of what is replaced is deleted before the commit.
    OldBlobDeletedFirst,
    /// What is deleted leaves no garbage row.
    DeleteLeavesBlob,
    /// Garbage is deleted at once.
    GraceIgnored,
    /// The collector deletes the blob of an old intent and leaves the intent.
    IntentNotCondemned,
    /// A blob is deleted though its commit may have happened.
    UnknownIsFailed,
    /// Parts may be added while an upload is being completed.
    FreezeForgotten,
}

/// What breaks them all, in turn.
#[cfg(feature = "mutants")]
impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 8] = [
        Sabotage::CommitBeforeBlob,
        Sabotage::IntentForgotten,
        Sabotage::OldBlobDeletedFirst,
        Sabotage::DeleteLeavesBlob,
        Sabotage::GraceIgnored,
        Sabotage::IntentNotCondemned,
        Sabotage::UnknownIsFailed,
        Sabotage::FreezeForgotten,
    ];

    /// What is wrong then.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Sabotage::CommitBeforeBlob => "an S3 object is committed before its last stripes are durable",
            Sabotage::IntentForgotten => "no intent row protects a blob that is being written",
            Sabotage::OldBlobDeletedFirst => "the blob of what a PUT replaces is deleted before the commit",
            Sabotage::DeleteLeavesBlob => "a DELETE makes no garbage of the object's blob",
            Sabotage::GraceIgnored => "the collector deletes garbage of any age",
            Sabotage::IntentNotCondemned => "the collector deletes a blob whose upload may still commit",
            Sabotage::UnknownIsFailed => "a blob is deleted though its commit may have happened",
            Sabotage::FreezeForgotten => "parts may be replaced while their upload is completed",
        }
    }
}

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks a rule in the whole process.
#[cfg(feature = "mutants")]
pub fn choose(sabotage: Option<Sabotage>) {
    CHOSEN.store(sabotage.map_or(0, |sabotage| sabotage as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether a rule is broken.
#[cfg(feature = "mutants")]
pub(crate) fn breaks(sabotage: Sabotage) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == sabotage as u8
}

/// Whether a rule is broken: no.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn breaks(_: Sabotage) -> bool {
    false
}
