//! Seeded bugs: each takes one rule of the leader's judgement away, to prove that the simulator would notice. Never in a real
//! build.

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Sabotage {
    /// The last report of a placement group counts, whoever made it and when.
    OldReportsCount = 1,
}

/// What breaks them all, in turn.
#[cfg(feature = "mutants")]
impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 1] = [Sabotage::OldReportsCount];

    /// What is wrong then.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Sabotage::OldReportsCount => {
                "monitors believe the last report of a placement group, whoever made it and when"
            }
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
