//! The rules that can be broken on purpose, of all parts.

use std::fmt;

use holdfast_gateway_s3::sabotage as commits;
use holdfast_kvgroup::sabotage::{self, Sabotage};
use holdfast_mon_state::sabotage as judgement;
use holdfast_pg::mutants::{self, Mutant};

use crate::config::Config;
use crate::front::FrontWork;

/// A rule of some part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Of placement groups, and of what surrounds them in an OSD.
    Group(Mutant),
    /// Of tables.
    Table(Sabotage),
    /// Of S3 gateways.
    Commit(commits::Sabotage),
    /// Of what the monitors say.
    Judgement(judgement::Sabotage),
}

impl Rule {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Rule> {
        let of_groups = Mutant::ALL.into_iter().map(Rule::Group);
        let of_tables = Sabotage::ALL.into_iter().map(Rule::Table);
        let of_commits = commits::Sabotage::ALL.into_iter().map(Rule::Commit);
        let of_judgement = judgement::Sabotage::ALL.into_iter().map(Rule::Judgement);
        of_groups.chain(of_tables).chain(of_commits).chain(of_judgement)
    }

    /// What is wrong when it is broken.
    #[must_use]
    pub fn breaks(self) -> &'static str {
        match self {
            Rule::Group(mutant) => mutant.breaks(),
            Rule::Table(sabotage) => sabotage.breaks(),
            Rule::Commit(sabotage) => sabotage.breaks(),
            Rule::Judgement(sabotage) => sabotage.breaks(),
        }
    }

    /// Whether this world can show it.
    #[must_use]
    pub fn concerns(self, world: &Config) -> bool {
        match self {
            Rule::Group(_) | Rule::Judgement(_) => true,
            Rule::Table(_) => world.front.is_some(),
            Rule::Commit(_) => world.front.is_some_and(|front| front.work == FrontWork::Gateways),
        }
    }

    /// The world that is looked into first: what it does has been seen to show this one.
    #[must_use]
    pub fn home(self) -> &'static str {
        use Mutant as M;
        match self {
            Rule::Group(mutant) => match mutant {
                M::AckActivationBeforeDurable | M::DupsUntrimmed => "brink",
                M::FenceIgnored | M::BarrierSkipped => "fence",
                M::DeletesRefusedWhenFull | M::RoomToldLate => "full",
                M::StaleActivationAccepted => "gaps",
                M::UnloggedForgotten | M::AnswerNotJudged | M::ShortUpSetAsked => "leases",
                M::SkipUpThru | M::StaleIntervalAccepted | M::OldPushTaken | M::LateBackfillTaken => "loss",
                M::AckBeforeReplicas
                | M::IncompleteChosen
                | M::PastForgotten
                | M::UncommittedRead
                | M::PriorSetIgnored => "pairs",
                M::AckBeforeDurable | M::AdoptedDeletesForgotten => "power",
                M::LeaseIgnored | M::LeaseNotWaitedFor | M::LeaseForgotten | M::LeaseOfOneEnough => "rifts",
                M::WritesNotResent | M::CleanWhileMending => "rot",
                M::TrimPastMembers | M::ScrubMarksNothing | M::ScrubBelievesFirst => "scrub",
                _ => "storm",
            },
            Rule::Table(_) => "tables",
            Rule::Commit(_) => "objects",
            Rule::Judgement(_) => "storm",
        }
    }

    /// Breaks a rule in the whole process.
    pub fn choose(rule: Option<Rule>) {
        mutants::choose(match rule {
            Some(Rule::Group(mutant)) => Some(mutant),
            _ => None,
        });
        sabotage::choose(match rule {
            Some(Rule::Table(sabotage)) => Some(sabotage),
            _ => None,
        });
        commits::choose(match rule {
            Some(Rule::Commit(sabotage)) => Some(sabotage),
            _ => None,
        });
        judgement::choose(match rule {
            Some(Rule::Judgement(sabotage)) => Some(sabotage),
            _ => None,
        });
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Group(mutant) => mutant.fmt(f),
            Rule::Table(sabotage) => sabotage.fmt(f),
            Rule::Commit(sabotage) => sabotage.fmt(f),
            Rule::Judgement(sabotage) => sabotage.fmt(f),
        }
    }
}
