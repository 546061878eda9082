//! Writes the documents S3 answers.

use std::fmt::Write as _;

/// The namespace of S3 documents.
pub const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// The first line of every document.
pub const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// Builds one document.
#[derive(Debug)]
pub struct XmlWriter {
    out: String,
}

impl XmlWriter {
    /// A document with its declaration.
    pub fn document() -> XmlWriter {
        XmlWriter { out: DECLARATION.to_owned() }
    }

    /// A document without: the declaration was sent already.
    pub fn fragment() -> XmlWriter {
        XmlWriter { out: String::new() }
    }

    /// `<name xmlns=…>`.
    pub fn root(&mut self, name: &str) {
        let _ = write!(self.out, "<{name} xmlns=\"{NAMESPACE}\">");
    }

    /// `<name>`.
    pub fn open(&mut self, name: &str) {
        let _ = write!(self.out, "<{name}>");
    }

    /// `</name>`.
    pub fn close(&mut self, name: &str) {
        let _ = write!(self.out, "</{name}>");
    }

    /// `<name>text</name>`, escaped.
    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        escape_into(&mut self.out, text);
        self.close(name);
    }

    /// `<name>number</name>`.
    pub fn number(&mut self, name: &str, number: u64) {
        let _ = write!(self.out, "<{name}>{number}</{name}>");
    }

    /// `<name>true</name>` or `false`.
    pub fn boolean(&mut self, name: &str, value: bool) {
        let _ = write!(self.out, "<{name}>{value}</{name}>");
    }

    /// Text that needs no escaping by construction.
    pub fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// The document.
    pub fn finish(self) -> String {
        self.out
    }
}

/// Escapes text so that any parser gives it back; control characters become references as AWS writes them, though XML
/// 1.0 has no way to hold them (clients that care ask for `encoding-type=url`).
fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' => out.push(c),
            c if (c as u32) < 0x20 || c == '\u{7f}' || c == '\u{fffe}' || c == '\u{ffff}' => {
                let _ = write!(out, "&#x{:x};", c as u32);
            }
            c => out.push(c),
        }
    }
}

/// Whether XML 1.0 can hold the text.
pub fn representable(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\t' | '\n' | '\r') || ((c as u32) >= 0x20 && c != '\u{fffe}' && c != '\u{ffff}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let mut xml = XmlWriter::fragment();
        xml.text("Key", "a<b>&\"\u{1}\r\n+%é");
        assert_eq!(xml.finish(), "<Key>a&lt;b&gt;&amp;&quot;&#x1;&#xd;\n+%é</Key>");
    }
}
