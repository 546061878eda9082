//! The text form of a map: what `crushtool -d` prints and `crushtool -c` reads.

mod parse;
mod print;
mod token;

pub use parse::{ParseError, ParseErrorKind};
