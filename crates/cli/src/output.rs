//! Tables for people, JSON for programs. No colour.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::args::Format;
use crate::failure::{Exit, Failure};

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table: a line of titles, then rows. Columns are as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// As printed, with a line end after each line.
    pub fn text(&self) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let width =
            |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for line in lines {
            let mut shown = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                let width = *width;
                match align {
                    Align::Left => shown.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => shown.push_str(&format!("{cell:>width$}  ")),
                }
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints `value` as JSON, or the text that `text` makes.
pub fn print(format: Format, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let output = match format {
        Format::Text => text(),
        Format::Json => {
            let json = serde_json::to_string_pretty(value);
            json.map_err(|error| Failure::new(Exit::Error, "cannot write the result as JSON").because(&error))? + "\n"
        }
    };
    write(&output)
}

/// Writes to stdout. A reader that went away (`| head`) is no error.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Error, "cannot write to the standard output").because(&error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["a".to_owned(), "1000".to_owned()]);
        table.row(vec!["longer".to_owned(), "7".to_owned()]);
        assert_eq!(table.text(), "NAME    SIZE\na       1000\nlonger     7\n");
    }
}
