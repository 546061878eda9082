//! Seeded bugs: each takes one rule of the protocols away, to prove that the tests would notice. Never in a real build.

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A batch does not assert the version of its group (K2).
    BatchIgnoresVersion,
    /// A batch with an unknown outcome is sent again as a new one (K3).
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

/// Whether a rule is broken: no.
#[cfg(not(test))]
pub(crate) const fn breaks(_: Sabotage) -> bool {
    false
}
