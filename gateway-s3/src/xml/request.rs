//! Reads the documents clients send: a small tree, then the three shapes S3 needs.
//!
//! Unknown elements are skipped, as AWS does; a DTD, an unknown entity, too deep nesting or too many elements are
//! [`Code::MalformedXML`].

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::error::{Code, S3Error, S3Result};

/// Deepest nesting. S3's own documents of this gateway have 4 levels.
const DEPTH_MAX: usize = 12;
/// Most elements: 10,000 parts with 8 elements each, and some.
const ELEMENTS_MAX: usize = 100_000;

/// One element.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Element {
    /// Name without namespace prefix.
    pub name: String,
    /// All its own text.
    pub text: String,
    /// Its elements in order.
    pub children: Vec<Element>,
}

impl Element {
    fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// Reads a document into a tree.
pub fn parse(body: &[u8]) -> S3Result<Element> {
    tree(body).ok_or_else(|| Code::MalformedXML.into())
}

fn tree(body: &[u8]) -> Option<Element> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut stack: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                elements += 1;
                if stack.len() >= DEPTH_MAX || elements > ELEMENTS_MAX || root.is_some() {
                    return None;
                }
                let name = start.local_name();
                let name: &str = name.as_ref();
                stack.push(Element { name: name.to_owned(), ..Element::default() });
            }
            Event::End(_) => {
                let done = stack.pop()?;
                match stack.last_mut() {
                    Some(parent) => parent.children.push(done),
                    None => root = Some(done),
                }
            }
            Event::Text(text) => {
                let text = text.xml10_content();
                match stack.last_mut() {
                    Some(element) => element.text.push_str(&text),
                    None if text.trim().is_empty() => {}
                    None => return None,
                }
            }
            Event::CData(text) => stack.last_mut()?.text.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => {
                let c = match reference.resolve_char_ref().ok()? {
                    Some(c) => c,
                    None => match &*reference.xml10_content() {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        "quot" => '"',
                        "apos" => '\'',
                        _ => return None,
                    },
                };
                stack.last_mut()?.text.push(c);
            }
            Event::DocType(_) => return None,
            Event::Eof => return if stack.is_empty() { root } else { None },
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

/// One object of a DeleteObjects request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteEntry {
    /// The key.
    pub key: String,
    /// The version, if one was named.
    pub version: Option<String>,
    /// Delete only if the object has this ETag.
    pub etag: Option<String>,
}

/// A DeleteObjects request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRequest {
    /// Report only failures.
    pub quiet: bool,
    /// At most 1,000.
    pub objects: Vec<DeleteEntry>,
}

/// Reads `<Delete>`.
pub fn parse_delete(body: &[u8]) -> S3Result<DeleteRequest> {
    let root = parse(body)?;
    if root.name != "Delete" {
        return Err(Code::MalformedXML.into());
    }
    let quiet = root.child_text("Quiet").is_some_and(|text| text.trim() == "true");
    let mut objects = Vec::new();
    for object in root.children.iter().filter(|child| child.name == "Object") {
        let key = object.child_text("Key").ok_or(Code::MalformedXML)?;
        objects.push(DeleteEntry {
            key: key.to_owned(),
            version: object.child_text("VersionId").map(str::to_owned),
            etag: object.child_text("ETag").map(str::to_owned),
        });
    }
    if objects.is_empty() || objects.len() > 1000 {
        return Err(Code::MalformedXML.into());
    }
    Ok(DeleteRequest { quiet, objects })
}

/// One part of a CompleteMultipartUpload request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletePart {
    /// 1 to 10,000.
    pub number: u16,
    /// As the client wrote it.
    pub etag: String,
    /// `ChecksumCRC32` and the like, by element name.
    pub checksums: Vec<(String, String)>,
}

/// Reads `<CompleteMultipartUpload>`.
pub fn parse_complete(body: &[u8]) -> S3Result<Vec<CompletePart>> {
    let root = parse(body)?;
    if root.name != "CompleteMultipartUpload" {
        return Err(Code::MalformedXML.into());
    }
    let mut parts: Vec<CompletePart> = Vec::new();
    for part in root.children.iter().filter(|child| child.name == "Part") {
        let number: u32 =
            part.child_text("PartNumber").and_then(|n| n.trim().parse().ok()).ok_or(Code::MalformedXML)?;
        let number = u16::try_from(number).ok().filter(|n| (1..=10_000).contains(n)).ok_or_else(|| {
            S3Error::argument("partNumber", number.to_string(), "PartNumber must be >= 1 and <= 10000")
        })?;
        let etag = part.child_text("ETag").ok_or(Code::MalformedXML)?.trim().to_owned();
        let checksums = part
            .children
            .iter()
            .filter(|child| child.name.starts_with("Checksum"))
            .map(|child| (child.name.clone(), child.text.trim().to_owned()))
            .collect();
        if parts.last().is_some_and(|last| last.number >= number) {
            return Err(Code::InvalidPartOrder.into());
        }
        parts.push(CompletePart { number, etag, checksums });
    }
    if parts.is_empty() || parts.len() > 10_000 {
        return Err(Code::MalformedXML.into());
    }
    Ok(parts)
}

/// Reads `<CreateBucketConfiguration>`: the location constraint, if there is one.
pub fn parse_create_bucket(body: &[u8]) -> S3Result<Option<String>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let root = parse(body)?;
    if root.name != "CreateBucketConfiguration" {
        return Err(Code::MalformedXML.into());
    }
    Ok(root.child_text("LocationConstraint").map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_delete_request_is_read_with_references_and_namespaces() {
        let body = br#"<?xml version="1.0"?><s:Delete xmlns:s="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>
            <Object><Key>a&amp;b&#10;c</Key></Object><Object><Key><![CDATA[<x>]]></Key><VersionId>null</VersionId></Object></s:Delete>"#;
        let request = parse_delete(body).unwrap();
        assert!(request.quiet);
        assert_eq!(request.objects[0].key, "a&b\nc");
        assert_eq!(request.objects[1].key, "<x>");
        assert_eq!(request.objects[1].version.as_deref(), Some("null"));
    }

    #[test]
    fn dangerous_or_broken_documents_are_malformed() {
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        for body in [
            "<!DOCTYPE x [<!ENTITY e \"x\">]><Delete><Object><Key>&e;</Key></Object></Delete>",
            "<Delete><Object><Key>&unknown;</Key></Object></Delete>",
            "<Delete><Object><Key>a</Key></Object>",
            "<Delete></Delete>",
            "<Delete/><Delete/>",
            "plain text",
            "",
            &deep,
        ] {
            assert_eq!(parse_delete(body.as_bytes()).unwrap_err().code, Code::MalformedXML, "{body}");
        }
    }

    #[test]
    fn parts_must_ascend() {
        let part = |n: u32| format!("<Part><PartNumber>{n}</PartNumber><ETag>\"e\"</ETag></Part>");
        let body = |ns: &[u32]| {
            format!(
                "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
                ns.iter().map(|n| part(*n)).collect::<String>()
            )
        };
        assert_eq!(parse_complete(body(&[1, 2, 10_000]).as_bytes()).unwrap().len(), 3);
        assert_eq!(parse_complete(body(&[2, 1]).as_bytes()).unwrap_err().code, Code::InvalidPartOrder);
        assert_eq!(parse_complete(body(&[1, 1]).as_bytes()).unwrap_err().code, Code::InvalidPartOrder);
        assert_eq!(parse_complete(body(&[]).as_bytes()).unwrap_err().code, Code::MalformedXML);
        assert_eq!(parse_complete(body(&[10_001]).as_bytes()).unwrap_err().code, Code::InvalidArgument);
    }

    proptest! {
        #[test]
        fn no_document_panics(body in "[<>/&;a-cDelet!\\[\\]\"= #x0-9]{0,80}") {
            let _ = parse_delete(body.as_bytes());
            let _ = parse_complete(body.as_bytes());
            let _ = parse_create_bucket(body.as_bytes());
        }
    }
}
