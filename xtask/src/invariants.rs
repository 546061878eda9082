//! `docs/invariants.md` is held to what it claims: each id is given once, each row says who checks it and what attacks it,
//! and the files, tests and functions that it names are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::files;
use crate::run::root;

/// Cells of a row: id, invariant, checker, tests.
const CELLS: usize = 4;
/// What stands in the last cell of a row that nothing attacks: shown, and no error.
const NO_TEST: &str = "none yet";

/// Checks the list; fails with everything that is wrong.
pub fn check() -> anyhow::Result<()> {
    println!("\n== invariants");
    let text = fs::read_to_string(root().join("docs/invariants.md")).context("read docs/invariants.md")?;
    let rows = rows(&text);
    ensure!(rows.len() > 50, "docs/invariants.md: only {} rows are read", rows.len());
    let wrong = [wrong_ids(&rows), wrong_cells(&rows), missing(&text, &Sources::read()?)].concat();
    if wrong.is_empty() {
        println!("   {} invariants, each with an id and a checker", rows.len());
        let bare = rows.iter().filter(|cells| cells.last() == Some(&NO_TEST)).filter_map(|cells| cells.first());
        bare.for_each(|id| println!("   {id} has no test yet"));
        return Ok(());
    }
    bail!("docs/invariants.md:\n  {}", wrong.join("\n  "))
}

/// The cells of each row of an invariant: those that begin with an id.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter_map(|line| cells(line.trim_end()));
    rows.filter(|cells| cells.first().is_some_and(|id| !ids(id).is_empty())).collect()
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The ids that a first cell gives: `W1`, or all of `C1–C3`.
fn ids(cell: &str) -> Vec<String> {
    let single = |id: &str| {
        let number = id.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
        let letters = id.strip_suffix(number)?;
        let number: u32 = number.parse().ok()?;
        (!letters.is_empty()).then(|| (letters.to_owned(), number))
    };
    let (first, last) = cell.split_once('–').unwrap_or((cell, cell));
    match (single(first), single(last)) {
        (Some((letters, from)), Some((same, to))) if letters == same => {
            (from..=to).map(|number| format!("{letters}{number}")).collect()
        }
        _ => Vec::new(),
    }
}

fn wrong_ids(rows: &[Vec<&str>]) -> Vec<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for id in rows.iter().filter_map(|cells| cells.first()).flat_map(|cell| ids(cell)) {
        *seen.entry(id).or_default() += 1;
    }
    let twice = seen.into_iter().filter(|(_, times)| *times > 1);
    twice.map(|(id, times)| format!("{id} is given {times} times")).collect()
}

fn wrong_cells(rows: &[Vec<&str>]) -> Vec<String> {
    let is_wrong = |cells: &&Vec<&str>| cells.len() != CELLS || cells.iter().any(|cell| cell.is_empty());
    let told = |cells: &Vec<&str>| format!("{}: a row is id, invariant, checker, tests, none empty", cells.join(" | "));
    rows.iter().filter(is_wrong).map(told).collect()
}

/// The source, as far as a document can name parts of it.
#[derive(Default)]
struct Sources {
    /// Paths from the root.
    files: Vec<String>,
    /// Functions, types, modules, fields.
    names: BTreeSet<String>,
}

impl Sources {
    fn read() -> anyhow::Result<Sources> {
        let mut sources = Sources::default();
        files::visit(&root(), &mut |path| {
            sources.files.push(path.strip_prefix(root()).unwrap_or(path).display().to_string());
            sources.add(&fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?);
            Ok(())
        })?;
        Ok(sources)
    }

    /// Takes in what a file defines: what stands after a keyword, or before a colon.
    fn add(&mut self, text: &str) {
        const KEYWORDS: [&str; 7] = ["fn", "struct", "enum", "trait", "mod", "const", "type"];
        for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let defined = words.windows(2).filter(|pair| KEYWORDS.contains(&pair[0])).map(|pair| pair[1].to_owned());
            self.names.extend(defined);
            let field = line.split_once(": ").and_then(|(before, _)| before.split_whitespace().last());
            self.names.extend(field.map(str::to_owned));
        }
    }

    fn has_file(&self, path: &str) -> bool {
        self.files.iter().any(|file| file == path || file.ends_with(&format!("/{path}")))
    }
}

/// Files, tests and functions that the text names and that are not there.
fn missing(text: &str, sources: &Sources) -> Vec<String> {
    let quoted: BTreeSet<&str> = text.split('`').skip(1).step_by(2).collect();
    let is_there = |word: &str| {
        let is_file = Path::new(word).extension().is_some_and(|end| end == "rs");
        let is_name = word.contains("::") || word.matches('_').count() > 2;
        match word.rsplit("::").next() {
            _ if is_file => sources.has_file(word),
            Some(name) if is_name => sources.names.contains(name),
            _ => true,
        }
    };
    quoted.into_iter().filter(|word| !is_there(word)).map(|word| format!("there is no {word}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_list_is_said() {
        let text = "| id | what | checker | tests |\n|---|---|---|---|\n| C1–C3 | a | `x` | t |\n| C2 | b | `A::y` | `a/b.rs` |\n\
                    | D1 | c | | t |\n| D2 | two in one | x |\n| D3 | d | x | `each_thing_is_done` |\n";
        let rows = rows(text);
        assert_eq!(rows.len(), 5);
        assert_eq!(wrong_ids(&rows), ["C2 is given 2 times"]);
        assert_eq!(wrong_cells(&rows).len(), 2);
        let mut sources = Sources { files: vec!["c/a/d.rs".to_owned()], ..Sources::default() };
        let all = ["there is no A::y", "there is no a/b.rs", "there is no each_thing_is_done"];
        assert_eq!(missing(text, &sources), all);
        sources.files.push("c/a/b.rs".to_owned());
        sources.add("    // fn y\n    pub(crate) y: u32,\n    async fn each_thing_is_done() {\n");
        assert_eq!(missing(text, &sources), Vec::<String>::new());
    }

    #[test]
    fn a_range_gives_all_its_ids() {
        assert_eq!(ids("C1–C3"), ["C1", "C2", "C3"]);
        assert_eq!(ids("W10"), ["W10"]);
        assert_eq!(ids("id"), Vec::<String>::new());
        assert_eq!(ids("---"), Vec::<String>::new());
    }
}
