//! The checkers by name: every violation begins with the id of the one that found it (docs/invariants.md).

use std::fmt;

/// What looks for broken promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// Reads show what some write made.
    D1,
    /// Operations on one object have one order that agrees with real time.
    D2,
    /// No answer shows what had been replaced when it left.
    H2,
    /// No write is acknowledged in an interval of which the maps say that there are none.
    P2,
    /// What was acknowledged took effect exactly once.
    E1,
    /// All members hold the same.
    S2,
    /// In the end everything is answered and clean.
    L1,
    /// Who deletes may write again.
    L2,
    /// A run ends.
    T0,
    /// What rots unread is found and mended.
    N8,
    /// Logs and what is remembered of requests are bounded.
    M1,
    /// A fenced session changes nothing after the barrier.
    X1,
    /// What front ends see of a table's rows and listings has one order.
    KV1,
    /// At rest a table is whole, and nothing else is left of it.
    KV2,
    /// What S3 clients see of keys and listings has one order, and every object shown is whole.
    OB1,
    /// At rest each blob belongs to one object, and no other is left.
    OB2,
    /// Who says that a placement group is clean speaks the truth.
    TH1,
    /// What the monitors say of the cluster is what they were told, and in the end that all is well.
    TH2,
    /// Assertions of the production code.
    Assertions,
    /// The parts by themselves: codec, replay of the monitors' log, opening of stores.
    Parts,
}

/// The id that a violation begins with.
pub(crate) fn id_of(violation: &str) -> &str {
    // Violations of one object name it first.
    let text = violation.split_once(": ").filter(|(first, _)| first.contains('-')).map_or(violation, |(_, rest)| rest);
    text.split(": ").next().unwrap_or_default()
}

impl Checker {
    /// Those that are to be proved needed, one by one. [`Checker::Parts`] is attacked by the unit tests of those parts.
    pub const PROVED: [Checker; 19] = [
        Checker::D1,
        Checker::D2,
        Checker::H2,
        Checker::P2,
        Checker::E1,
        Checker::S2,
        Checker::L1,
        Checker::L2,
        Checker::T0,
        Checker::N8,
        Checker::M1,
        Checker::X1,
        Checker::KV1,
        Checker::KV2,
        Checker::OB1,
        Checker::OB2,
        Checker::TH1,
        Checker::TH2,
        Checker::Assertions,
    ];

    /// The one that found a violation.
    #[must_use]
    pub fn of(violation: &str) -> Checker {
        match id_of(violation) {
            "D1" => Checker::D1,
            "D2" => Checker::D2,
            "H2" => Checker::H2,
            "P2" => Checker::P2,
            "E1" => Checker::E1,
            "S2" => Checker::S2,
            "L1" => Checker::L1,
            "L2" => Checker::L2,
            "T0" => Checker::T0,
            "N8" => Checker::N8,
            "M1" => Checker::M1,
            "X1" => Checker::X1,
            "KV1" => Checker::KV1,
            "KV2" => Checker::KV2,
            "OB1" => Checker::OB1,
            "OB2" => Checker::OB2,
            "TH1" => Checker::TH1,
            "TH2" => Checker::TH2,
            "panic" => Checker::Assertions,
            _ => Checker::Parts,
        }
    }
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checker::Assertions => f.write_str("assertions"),
            Checker::Parts => f.write_str("parts"),
            named => write!(f, "{named:?}"),
        }
    }
}
