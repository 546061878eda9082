//! The proof that the checkers bite: each seeded bug of placement groups, tables and S3 gateways must be caught within a budget of
//! seeds; and that each checker is needed: without it, at least one of them gets through.

use std::fmt;
use std::fmt::Write as _;

use holdfast_pg::mutants::silence_assertions;

use crate::campaign::campaign;
use crate::checker::Checker;
use crate::config::Config;
use crate::rule::Rule;

/// How one mutant was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// In which world.
    pub world: &'static str,
    /// The checker that complained first.
    pub first: Checker,
    /// All that complained in the same run.
    pub noticed: Vec<Checker>,
    /// The first seed that shows it; seeds count from 0 in each world.
    pub seed: u64,
    /// Seeds needed, all that were run before included.
    pub seeds: u64,
    /// What was said.
    pub text: String,
}

/// What came of one mutant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The rule that was broken.
    pub mutant: Rule,
    /// `None` if it got away.
    pub catch: Option<Catch>,
    /// What happens when the checker that was first does not look.
    pub without: Without,
}

/// What happens when the checker that was first does not look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// Another one notices it.
    Caught(Catch),
    /// The mutant gets through.
    Missed,
    /// Nobody has tried: another mutant had already shown that the checker is needed, or none was first.
    Untried,
}

/// Seeds of each world that one mutant may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// With all checkers.
    pub first: u64,
    /// Without the one that complained first; the seed that showed it is always among them.
    pub without: u64,
}

/// What came of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hunt {
    /// What each mutant may take.
    pub budget: Budget,
    /// The only world that was run, if there was but one.
    pub world: Option<String>,
    /// By mutant.
    pub rows: Vec<Row>,
}

impl Hunt {
    /// Those that no checker noticed.
    #[must_use]
    pub fn escaped(&self) -> Vec<Rule> {
        self.rows.iter().filter(|row| row.catch.is_none()).map(|row| row.mutant).collect()
    }

    /// Those that get through when this checker does not look, and are caught otherwise.
    #[must_use]
    pub fn only_seen_by(&self, checker: Checker) -> Vec<Rule> {
        let first = |row: &Row| row.catch.as_ref().is_some_and(|catch| catch.first == checker);
        let only = |row: &&Row| row.without == Without::Missed && first(row);
        self.rows.iter().filter(only).map(|row| row.mutant).collect()
    }

    /// Checkers without which no mutant gets through.
    #[must_use]
    pub fn needless(&self) -> Vec<Checker> {
        Checker::PROVED.into_iter().filter(|checker| self.only_seen_by(*checker).is_empty()).collect()
    }
}

/// Seeds of each world in the first round; each later round has as many as all before it.
const FIRST_ROUND: u64 = 4;

/// Runs some seeds of world after world, then more of each, until a checker complains; `off` does not look.
fn chase(mutant: Rule, world: Option<&str>, budget: u64, threads: usize, off: Option<Checker>) -> Option<Catch> {
    Rule::choose(Some(mutant));
    silence_assertions(off == Some(Checker::Assertions));
    let shows = |(name, config): &(&str, Config)| {
        *name != "calm" && mutant.concerns(config) && world.is_none_or(|world| world == *name)
    };
    let worlds: Vec<_> = Config::worlds().into_iter().filter(shows).collect();
    let catch = chase_in(&worlds, budget, threads, off);
    Rule::choose(None);
    silence_assertions(false);
    catch
}

fn chase_in(worlds: &[(&'static str, Config)], budget: u64, threads: usize, off: Option<Checker>) -> Option<Catch> {
    let (mut seeds, mut from, mut round) = (0, 0, FIRST_ROUND.min(budget));
    while round > 0 {
        for (world, config) in worlds {
            let summary = campaign(from, round, &Config { off, ..*config }, threads, 1);
            if let Some(violation) = summary.violations.first() {
                let (first, noticed) = (Checker::of(&violation.violation), violation.noticed.clone());
                let (seed, text) = (violation.seed, violation.violation.clone());
                seeds += seed - from + 1;
                return Some(Catch { world, first, noticed, seed, seeds, text });
            }
            seeds += round;
        }
        from += round;
        round = from.min(budget.saturating_sub(from));
    }
    None
}

/// Runs the simulator with each mutant in turn until a checker complains; then once more without that one. All other
/// checkers need not be turned off: the first run has shown that the mutant is caught without them. `brief` leaves out the
/// second run where another mutant has shown that the checker is needed. `tell` hears of each mutant when it is done.
/// Looked into first is the mutant's home, then, if it is not seen there, every world. Without a checker only the world
/// that showed it is run. With `world` nothing else is run: to try a mutant where it was seen before.
#[must_use]
pub fn hunt(
    budget: Budget,
    threads: usize,
    only: Option<&str>,
    world: Option<&str>,
    brief: bool,
    mut tell: impl FnMut(&Hunt, &Row),
) -> Hunt {
    let mut hunt = Hunt { budget, world: world.map(str::to_owned), rows: Vec::new() };
    let wanted = |mutant: &Rule| only.is_none_or(|only| only.split(',').any(|name| format!("{mutant:?}") == name));
    for mutant in Rule::all().filter(wanted) {
        let at_home = chase(mutant, Some(world.unwrap_or(mutant.home())), budget.first, threads, None);
        let elsewhere = || world.is_none().then(|| chase(mutant, None, budget.first, threads, None)).flatten();
        let catch = at_home.or_else(elsewhere);
        let without = match &catch {
            Some(catch) if !brief || hunt.only_seen_by(catch.first).is_empty() => {
                let budget = budget.without.max(catch.seed.saturating_add(1));
                let then = chase(mutant, Some(catch.world), budget, threads, Some(catch.first));
                then.map_or(Without::Missed, Without::Caught)
            }
            Some(_) | None => Without::Untried,
        };
        let row = Row { mutant, catch, without };
        hunt.rows.push(row.clone());
        tell(&hunt, &row);
    }
    hunt
}

/// Breaks the rule of this name in the whole process. Gives whether there is one.
#[must_use]
pub fn break_rule(name: &str) -> bool {
    let rule = Rule::all().find(|rule| format!("{rule:?}") == name);
    Rule::choose(rule);
    rule.is_some()
}

/// `WordsLikeThis` as `words-like-this`.
fn spoken(mutant: Rule) -> String {
    let mut out = String::new();
    for letter in format!("{mutant:?}").chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

fn listed<T>(items: &[T], mut show: impl FnMut(&T) -> String) -> String {
    items.iter().map(&mut show).collect::<Vec<_>>().join(", ")
}

/// The tables of `docs/mutants-table.md`.
impl fmt::Display for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut table, mut needed) = (String::new(), String::new());
        for Row { mutant, catch, without } in &self.rows {
            let (name, breaks) = (spoken(*mutant), mutant.breaks());
            let Some(Catch { world, first, noticed, seed, seeds, .. }) = catch else {
                writeln!(table, "| `{name}` | {breaks} | **not caught** | | | |")?;
                continue;
            };
            let noticed = listed(noticed, Checker::to_string);
            let without = match without {
                Without::Caught(catch) => {
                    let noticed = listed(&catch.noticed, Checker::to_string);
                    format!("{first}: {noticed} ({} seeds, {})", catch.seeds, catch.world)
                }
                Without::Missed => format!("{first}: **gets through**"),
                Without::Untried => String::new(),
            };
            writeln!(table, "| `{name}` | {breaks} | {noticed} | {world}, seed {seed} | {seeds} | {without} |")?;
        }
        for checker in Checker::PROVED {
            let only = self.only_seen_by(checker);
            let only = listed(&only, |mutant| format!("`{}`", spoken(*mutant)));
            writeln!(needed, "| {checker} | {} |", if only.is_empty() { "none" } else { &only })?;
        }
        let caught = self.rows.len() - self.escaped().len();
        let world = self.world.as_deref().unwrap_or("the one in which an earlier hunt had seen the mutant, then all");
        write!(
            f,
            "# Mutants: what caught them\n\n\
             Generated by `cargo xtask mutants`; do not edit. [mutants.md](mutants.md) says what the columns mean, and how they came\n\
             about. Run were seeds from 0 on, up to seed {} of each world: {world}. The last column is what happens in the\n\
             world that showed the mutant when the checker that complained first does not look, up to seed {} or the one that\n\
             showed it; where it is empty, a mutant above it has shown that this checker is needed.\n\n\
             {caught} of {} are caught.\n\n\
             | mutant | what it breaks | noticed by | first seen in | seeds needed | without |\n\
             |---|---|---|---|---|---|\n{table}\n\
             ## What each checker is needed for\n\n\
             Mutants that get through when that checker alone does not look.\n\n\
             | checker | mutants |\n|---|---|\n{needed}",
            self.budget.first.saturating_sub(1),
            self.budget.without.saturating_sub(1),
            self.rows.len(),
        )
    }
}
