//! The checkers by name: each looks for one broken promise of docs/invariants.md, and says so in what it finds.

use std::fmt;
use std::time::Duration;

/// What looks for broken promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// A monitor without memory knows that it has none until it is let in.
    Q2,
    /// A monitor ends for no other reason than its disk.
    Q4,
    /// A map is the same for all who hold it, and nobody hands out one that has long been replaced.
    Q5,
    /// The command at an index is the same at all monitors, and what was acknowledged is not lost.
    Q16,
    /// Questions are linearizable.
    Q17,
    /// A request takes effect once.
    Q18,
    /// In the end all monitors run, vote and hold the same.
    L1,
    /// A run ends.
    T0,
    /// Assertions of the production code.
    Assertions,
}

impl Checker {
    /// All of them. Each is to be proved needed.
    pub const ALL: [Checker; 9] = [
        Checker::Q2,
        Checker::Q4,
        Checker::Q5,
        Checker::Q16,
        Checker::Q17,
        Checker::Q18,
        Checker::L1,
        Checker::T0,
        Checker::Assertions,
    ];
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checker::Assertions => f.write_str("assertions"),
            named => write!(f, "{named:?}"),
        }
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Who noticed it.
    pub checker: Checker,
    /// What is wrong.
    pub text: String,
    /// When it was noticed: true time since the run began.
    pub at: Duration,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (at {:.3?})", self.checker, self.text, self.at)
    }
}
