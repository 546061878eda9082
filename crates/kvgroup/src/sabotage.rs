//! Seeded bugs: each takes one rule of the protocols away, to prove that the tests would notice. Never in a real build.
//!
//! The tests here break rules of their own thread; with the feature `mutants` the simulator breaks one for its whole process.

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Sabotage {
    /// A batch does not assert the version of its group (KG2).
    BatchIgnoresVersion = 1,
    /// A batch with an unknown outcome is sent again as a new one (KG3).
    BatchResent,
    /// A frozen group takes writes.
    FrozenTakesWrites,
    /// Rows are copied to a group without asserting that it is still being built.
    CopyIgnoresVersion,
    /// Only the first page of each space is copied.
    CopyStopsEarly,
    /// Only the first space is copied.
    CopyForgetsSpaces,
    /// The new group is opened before the old one is cut.
    OpenBeforeCut,
    /// A group being built serves whoever finds it.
    BuildingServes,
    /// The root row is put after the cut, by nobody.
    RootRowForgotten,
    /// A page does not end at its group's end.
    ScanSkipsNextGroup,
    /// A group frozen for a drop is thawed before the drop is decided.
    ThawUndecided,
    /// A group is frozen for a drop without asserting that it is empty.
    DropIgnoresRows,
    /// The root is dropped whatever became of the attempt.
    DropIgnoresRootVersion,
}

/// What breaks them all, in turn.
#[cfg(any(test, feature = "mutants"))]
impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 13] = [
        Sabotage::BatchIgnoresVersion,
        Sabotage::BatchResent,
        Sabotage::FrozenTakesWrites,
        Sabotage::CopyIgnoresVersion,
        Sabotage::CopyStopsEarly,
        Sabotage::CopyForgetsSpaces,
        Sabotage::OpenBeforeCut,
        Sabotage::BuildingServes,
        Sabotage::RootRowForgotten,
        Sabotage::ScanSkipsNextGroup,
        Sabotage::ThawUndecided,
        Sabotage::DropIgnoresRows,
        Sabotage::DropIgnoresRootVersion,
    ];

    /// What is wrong then.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Sabotage::BatchIgnoresVersion => "a batch does not assert the version of its group",
            Sabotage::BatchResent => "a batch with an unknown outcome is sent again as a new one",
            Sabotage::FrozenTakesWrites => "a group that is being split takes writes",
            Sabotage::CopyIgnoresVersion => "rows are copied to a group that may be open already",
            Sabotage::CopyStopsEarly => "a split copies the first page of each space only",
            Sabotage::CopyForgetsSpaces => "a split copies the first space only",
            Sabotage::OpenBeforeCut => "the new group of a split serves before the old one is cut",
            Sabotage::BuildingServes => "a group that is being built serves whoever finds it",
            Sabotage::RootRowForgotten => "the root does not learn of the new group of a split",
            Sabotage::ScanSkipsNextGroup => "a listing ends at the end of its group",
            Sabotage::ThawUndecided => "a group frozen for a drop is thawed before the drop is decided",
            Sabotage::DropIgnoresRows => "a table with rows is dropped",
            Sabotage::DropIgnoresRootVersion => "a drop is committed whatever became of the attempt",
        }
    }
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule on this thread.
#[cfg(test)]
pub(crate) fn set(sabotage: Option<Sabotage>) {
    BROKEN.set(sabotage);
}

/// Whether a rule is broken.
#[cfg(test)]
pub(crate) fn breaks(sabotage: Sabotage) -> bool {
    BROKEN.get() == Some(sabotage)
}

#[cfg(all(feature = "mutants", not(test)))]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks a rule in the whole process.
#[cfg(all(feature = "mutants", not(test)))]
pub fn choose(sabotage: Option<Sabotage>) {
    CHOSEN.store(sabotage.map_or(0, |sabotage| sabotage as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether a rule is broken.
#[cfg(all(feature = "mutants", not(test)))]
pub(crate) fn breaks(sabotage: Sabotage) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == sabotage as u8
}

/// Whether a rule is broken: no.
#[cfg(not(any(test, feature = "mutants")))]
pub(crate) const fn breaks(_: Sabotage) -> bool {
    false
}
