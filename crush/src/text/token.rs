//! Splits the text into words and braces, each with its place.

/// A place in the text, both counted from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A word or a brace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) place: Place,
}

/// All tokens, comments left out, and the place of the end.
pub(super) fn tokens(text: &str) -> (Vec<Token<'_>>, Place) {
    let mut tokens = Vec::new();
    let mut end = Place { line: 1, column: 1 };
    for (index, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        split_line(line, index + 1, &mut tokens);
        end = Place { line: index + 1, column: line.chars().count() + 1 };
    }
    (tokens, end)
}

fn split_line<'a>(line: &'a str, number: usize, tokens: &mut Vec<Token<'a>>) {
    let mut start: Option<(usize, usize)> = None;
    for (column, (at, char)) in line.char_indices().enumerate() {
        let brace = matches!(char, '{' | '}' | '[' | ']');
        if (char.is_whitespace() || brace)
            && let Some((from, column)) = start.take()
        {
            push(tokens, &line[from..at], number, column);
        }
        if brace {
            push(tokens, &line[at..at + 1], number, column + 1);
        } else if !char.is_whitespace() && start.is_none() {
            start = Some((at, column + 1));
        }
    }
    if let Some((from, column)) = start {
        push(tokens, &line[from..], number, column);
    }
}

fn push<'a>(tokens: &mut Vec<Token<'a>>, text: &'a str, line: usize, column: usize) {
    tokens.push(Token { text, place: Place { line, column } });
}
