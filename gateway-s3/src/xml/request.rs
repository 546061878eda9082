//! Reads the documents clients send, the three shapes that S3 needs, straight into lists: no tree is built.
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
/// Most objects of a DeleteObjects request.
const DELETIONS_MAX: usize = 1000;
/// Most parts of an upload.
const PARTS_MAX: usize = 10_000;
/// Most checksums of a part: one of each algorithm.
const CHECKSUMS_MAX: usize = 5;

/// An element that ended.
struct Element<'a> {
    /// 1 is the root.
    depth: usize,
    /// Name of the element around it; empty for the root.
    parent: &'a str,
    /// Name without namespace prefix.
    name: &'a str,
}

/// An element that has not ended.
#[derive(Default)]
struct Open {
    name: String,
    text: String,
}

/// Walks a document: `done` is told of each element when it ends, with all its own text. Nothing is kept but the elements
/// around the present place.
fn walk(body: &[u8], done: impl FnMut(Element<'_>, String)) -> S3Result<()> {
    try_walk(body, done).ok_or_else(|| Code::MalformedXML.into())
}

fn try_walk(body: &[u8], mut done: impl FnMut(Element<'_>, String)) -> Option<()> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut stack: Vec<Open> = Vec::new();
    let mut elements = 0;
    let mut complete = false;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                elements += 1;
                if stack.len() >= DEPTH_MAX || elements > ELEMENTS_MAX || complete {
                    return None;
                }
                let name = start.local_name();
                let name: &str = name.as_ref();
                stack.push(Open { name: name.to_owned(), text: String::new() });
            }
            Event::End(_) => {
                let depth = stack.len();
                let Open { name, text } = stack.pop()?;
                let parent = stack.last().map_or("", |parent| parent.name.as_str());
                done(Element { depth, parent, name: &name }, text);
                complete = stack.is_empty();
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
            Event::Eof => return (complete && stack.is_empty()).then_some(()),
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
    let mut is_delete = false;
    let mut quiet = None;
    let mut objects = Vec::new();
    let mut broken = false;
    let (mut key, mut version, mut etag) = (None, None, None);
    walk(body, |element, text| match (element.depth, element.parent, element.name) {
        (1, _, name) => is_delete = name == "Delete",
        (2, _, "Quiet") => _ = quiet.get_or_insert(text.trim() == "true"),
        (2, _, "Object") => match (key.take(), version.take(), etag.take()) {
            (Some(key), version, etag) if objects.len() < DELETIONS_MAX => {
                objects.push(DeleteEntry { key, version, etag });
            }
            _ => broken = true,
        },
        (3, "Object", "Key") => _ = key.get_or_insert(text),
        (3, "Object", "VersionId") => _ = version.get_or_insert(text),
        (3, "Object", "ETag") => _ = etag.get_or_insert(text),
        _ => {}
    })?;
    if !is_delete || broken || objects.is_empty() {
        return Err(Code::MalformedXML.into());
    }
    Ok(DeleteRequest { quiet: quiet.unwrap_or(false), objects })
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
    let mut is_complete = false;
    let mut parts: Vec<CompletePart> = Vec::new();
    let mut wrong: Option<S3Error> = None;
    let mut part = OpenPart::default();
    walk(body, |element, text| match (element.depth, element.parent, element.name) {
        (1, _, name) => is_complete = name == "CompleteMultipartUpload",
        (2, _, "Part") => match std::mem::take(&mut part).close(parts.last()) {
            Ok(_) if parts.len() >= PARTS_MAX => wrong = wrong.take().or_else(|| Some(Code::MalformedXML.into())),
            Ok(part) => parts.push(part),
            Err(error) => wrong = wrong.take().or(Some(error)),
        },
        (3, "Part", "PartNumber") => _ = part.number.get_or_insert(text),
        (3, "Part", "ETag") => _ = part.etag.get_or_insert(text),
        (3, "Part", name) if name.starts_with("Checksum") && part.checksums.len() < CHECKSUMS_MAX => {
            part.checksums.push((name.to_owned(), text.trim().to_owned()));
        }
        _ => {}
    })?;
    match wrong {
        _ if !is_complete => Err(Code::MalformedXML.into()),
        Some(wrong) => Err(wrong),
        None if parts.is_empty() => Err(Code::MalformedXML.into()),
        None => Ok(parts),
    }
}

/// A `<Part>` that has not ended.
#[derive(Default)]
struct OpenPart {
    number: Option<String>,
    etag: Option<String>,
    checksums: Vec<(String, String)>,
}

impl OpenPart {
    fn close(self, last: Option<&CompletePart>) -> S3Result<CompletePart> {
        let number: u32 = self.number.and_then(|text| text.trim().parse().ok()).ok_or(Code::MalformedXML)?;
        let number = u16::try_from(number).ok().filter(|n| (1..=10_000).contains(n)).ok_or_else(|| {
            S3Error::argument("partNumber", number.to_string(), "PartNumber must be >= 1 and <= 10000")
        })?;
        let etag = self.etag.ok_or(Code::MalformedXML)?.trim().to_owned();
        if last.is_some_and(|last| last.number >= number) {
            return Err(Code::InvalidPartOrder.into());
        }
        Ok(CompletePart { number, etag, checksums: self.checksums })
    }
}

/// Reads `<CreateBucketConfiguration>`: the location constraint, if there is one.
pub fn parse_create_bucket(body: &[u8]) -> S3Result<Option<String>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let mut is_configuration = false;
    let mut location: Option<String> = None;
    walk(body, |element, text| match (element.depth, element.name) {
        (1, name) => is_configuration = name == "CreateBucketConfiguration",
        (2, "LocationConstraint") => _ = location.get_or_insert(text),
        _ => {}
    })?;
    if !is_configuration {
        return Err(Code::MalformedXML.into());
    }
    Ok(location.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
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
