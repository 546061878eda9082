//! What S3 clients do, and what they hold against the gateway at once.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_gateway_s3::Gateway;
use holdfast_gateway_s3::clock::Clock as _;
use holdfast_gateway_s3::testing::caller::{Ask, Reply, call, etag, etag_of_parts};
use holdfast_gateway_s3::testing::signer::Signer;
use holdfast_kvgroup::Objects as _;
use holdfast_kvgroup::testing::actors::Scene as _;

use super::register::{Answered, Asked, OnlyIf, WriteId};
use super::{GRACE, KEYS, Owner, WallClock};
use crate::faults::FaultKind;
use crate::front::desk::SimObjects;

const BUCKET: &str = "/shop";
const WRITE: &str = "x-amz-meta-write";
/// Of every so many requests one is left by its client before it is answered.
const LEFT_ONE_IN: u32 = 40;
/// How often a client asks again for what it was not told.
const TRIES: usize = 4;

/// An upload in parts.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    key: usize,
    id: String,
    owner: Owner,
    write: WriteId,
    parts: BTreeMap<u16, Bytes>,
    /// The request to complete it, in the history, from the first time on.
    completion: Option<usize>,
    /// It was asked at least once to be completed or removed, with no answer.
    in_doubt: bool,
    aborts: bool,
    /// Somebody replaces a part while it is completed.
    raced: bool,
}

/// A client of one gateway.
pub(crate) struct Customer {
    objects: SimObjects,
    gateway: Arc<Gateway>,
}

fn path(key: usize) -> String {
    format!("{BUCKET}/k{key}")
}

impl Customer {
    pub fn new(objects: &SimObjects, gateway: &Arc<Gateway>) -> Customer {
        Customer { objects: objects.clone(), gateway: Arc::clone(gateway) }
    }

    fn wrong(&self, what: String) {
        self.objects.desk.lock().wrong(format!("OB1: {what}"));
    }

    fn count(&self, kind: FaultKind) {
        self.objects.desk.lock().shop.count(kind);
    }

    fn one_in(&self, times: u32) -> bool {
        self.objects.random(times) == 0
    }

    async fn rests(&self, ms: u64) {
        let ms = u64::from(self.objects.random(u32::try_from(ms * 2).unwrap_or(u32::MAX).max(1)));
        self.objects.pause(Duration::from_millis(ms)).await;
    }

    /// Sends a request; `None`: its client left, or the reply broke off.
    async fn asks(
        &self,
        method: &'static str,
        target: String,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Option<Reply> {
        let signer = Signer::example(WallClock(self.objects.clone()).now_ms());
        // Bodies come in pieces, sometimes slowly.
        let slow_ms = if !body.is_empty() && self.one_in(12) { 1 + u64::from(self.objects.random(400)) } else { 0 };
        let size = 1 + self.objects.random(150) as usize;
        let pieces: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let objects = self.objects.clone();
        let pieces = futures::stream::iter(pieces).then(move |piece| {
            let objects = objects.clone();
            async move {
                if slow_ms > 0 {
                    objects.pause(Duration::from_millis(slow_ms)).await;
                }
                piece
            }
        });
        let (what, began) = (format!("{method} {target}"), self.now());
        let ask = Ask { method, target, headers };
        let mut reply = pin!(call(&self.gateway, &signer, ask, body.len(), pieces.boxed()));
        let leaves = self.objects.desk.lock().working && self.one_in(LEFT_ONE_IN);
        let reply = if leaves {
            let patience = Duration::from_millis(u64::from(1 + self.objects.random(150)));
            let mut left = pin!(self.objects.pause(patience));
            let won = poll_fn(|context| match reply.as_mut().poll(context) {
                Poll::Ready(reply) => Poll::Ready(Some(reply)),
                Poll::Pending => left.as_mut().poll(context).map(|()| None),
            });
            match won.await {
                Some(reply) => reply,
                None => {
                    self.count(FaultKind::ClientLeft);
                    return None;
                }
            }
        } else {
            reply.await
        };
        if let Some(error) = &reply.cut_off {
            if error.contains("InternalError") && !self.took_too_long(began) {
                self.wrong(format!("{what} broke off: {error}"));
            }
            return None;
        }
        let broken = reply.status == 500 || reply.code().as_deref() == Some("InternalError");
        if broken && !self.took_too_long(began) {
            self.wrong(format!("{what} = {} {:?}", reply.status, reply.body));
        }
        Some(reply)
    }

    /// Who reads for longer than garbage is kept may fail.
    fn took_too_long(&self, began: u64) -> bool {
        Duration::from_nanos(self.now() - began) >= GRACE
    }

    fn now(&self) -> u64 {
        self.objects.now()
    }

    fn begins(&self, key: usize, asked: Asked) -> usize {
        let now = self.now();
        self.objects.desk.lock().shop.history.begin(now, key, asked)
    }

    fn ends(&self, event: usize, answered: Answered) {
        let now = self.now();
        self.objects.desk.lock().shop.history.end(event, now, answered);
    }

    fn new_write(&self) -> WriteId {
        let mut desk = self.objects.desk.lock();
        desk.shop.writes += 1;
        desk.shop.writes
    }

    /// Bytes that no other write has.
    fn content(&self, bytes: usize) -> Bytes {
        let mut seed = u64::from(self.objects.random(u32::MAX)) << 32 | u64::from(self.objects.random(u32::MAX));
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    /// Makes the bucket, if it can.
    pub async fn makes_bucket(&self) -> bool {
        self.asks("PUT", BUCKET.to_owned(), vec![], Bytes::new()).await.is_some_and(|reply| reply.status == 200)
    }

    /// Works as long as there is work.
    pub async fn works(&self, rest_ms: u64) {
        while self.objects.desk.lock().working {
            let key = self.objects.random(KEYS as u32) as usize;
            match self.objects.random(100) {
                0..30 => self.puts(key).await,
                30..50 => drop(self.gets(key).await),
                50..64 => self.deletes(key).await,
                64..72 => self.lists().await,
                72..82 => self.copies(self.objects.random(KEYS as u32) as usize, key).await,
                82..92 => self.uploads(key).await,
                _ => self.takes_over().await,
            }
            self.rests(rest_ms).await;
        }
    }

    fn only_if(&self, key: usize) -> OnlyIf {
        match self.objects.random(10) {
            0..2 => OnlyIf::Absent,
            2..4 => {
                // That of a write which is or was there.
                let desk = self.objects.desk.lock();
                let history = &desk.shop.history;
                let last = history.events.iter().rev().find_map(|event| match &event.asked {
                    Asked::Write { write, .. } if event.key == key && event.answered == Answered::Done => Some(*write),
                    _ => None,
                });
                last.and_then(|write| history.etags.get(&write).cloned()).map_or(OnlyIf::Any, OnlyIf::Etag)
            }
            _ => OnlyIf::Any,
        }
    }

    fn condition(only_if: &OnlyIf) -> Option<(&'static str, String)> {
        match only_if {
            OnlyIf::Any => None,
            OnlyIf::Absent => Some(("if-none-match", "*".to_owned())),
            OnlyIf::Etag(etag) => Some(("if-match", format!("\"{etag}\""))),
        }
    }

    /// What an answer to a change says.
    fn answered(reply: Option<&Reply>) -> Answered {
        match reply {
            None => Answered::Unknown,
            Some(reply) => match (reply.status, reply.code()) {
                (200..300, None) => Answered::Done,
                (412, _) => Answered::Refused,
                (404, _) => Answered::Missing,
                (400..500 | 507, _) => Answered::Nothing,
                _ => Answered::Unknown,
            },
        }
    }

    async fn puts(&self, key: usize) {
        let sizes = [0, 1, 40, 64, 65, 200, 256, 257, 500, 700];
        let content = self.content(sizes[self.objects.random(sizes.len() as u32) as usize]);
        let (write, only_if) = (self.new_write(), self.only_if(key));
        {
            let mut desk = self.objects.desk.lock();
            desk.shop.knows(write, content.clone());
            desk.shop.history.etags.insert(write, etag(&content));
        }
        let mut headers = vec![(WRITE, write.to_string())];
        headers.extend(Customer::condition(&only_if));
        let event = self.begins(key, Asked::Write { write, only_if });
        let reply = self.asks("PUT", path(key), headers, content.clone()).await;
        if let Some(reply) = &reply
            && reply.status == 200
            && reply.header("etag").map(|tag| tag.trim_matches('"')) != Some(etag(&content).as_str())
        {
            self.wrong(format!("write {write} has the ETag {:?}", reply.header("etag")));
        }
        self.ends(event, Customer::answered(reply.as_ref()));
    }

    async fn deletes(&self, key: usize) {
        let event = self.begins(key, Asked::Delete);
        let reply = self.asks("DELETE", path(key), vec![], Bytes::new()).await;
        self.ends(event, Customer::answered(reply.as_ref()));
    }

    /// Reads a key; gives whether it was answered.
    async fn gets(&self, key: usize) -> bool {
        let began = self.now();
        let range = self.one_in(4).then(|| (self.objects.random(300), self.objects.random(300)));
        let headers = range.map(|(from, length)| ("range", format!("bytes={from}-{}", from + length)));
        let reply = self.asks("GET", path(key), headers.into_iter().collect(), Bytes::new()).await;
        let Some(reply) = reply else { return false };
        let now = self.now();
        let answered = match reply.status {
            404 => Answered::Missing,
            200 | 206 => {
                let Some(write) = reply.header(WRITE).and_then(|text| text.parse::<WriteId>().ok()) else {
                    self.wrong(format!("an object of no write: {:?}", reply.headers));
                    return false;
                };
                self.compares(write, &reply, range, now);
                Answered::Object(write)
            }
            _ => return false, // 416 for a range beyond its end says nothing of which it is
        };
        self.objects.desk.lock().shop.history.saw(began, now, key, answered);
        true
    }

    /// Holds what was read against what was written.
    fn compares(&self, write: WriteId, reply: &Reply, range: Option<(u32, u32)>, now: u64) {
        let mut desk = self.objects.desk.lock();
        let tag = reply.header("etag").map(|tag| tag.trim_matches('"').to_owned()).unwrap_or_default();
        let shop = &mut desk.shop;
        if shop.history.etags.entry(write).or_insert_with(|| tag.clone()) != &tag {
            return desk.wrong(format!("OB1: write {write} is shown with the ETag {tag}"));
        }
        if reply.status == 200 && !shop.contents.contains_key(&write) {
            // A copy that was not answered: since it was begun its source had these bytes.
            let Some((from, began)) = shop.copies.get(&write).copied() else {
                return desk.wrong(format!("OB1: write {write} is shown, which nobody asked for"));
            };
            shop.history.saw(began, now, from, Answered::Bytes(etag(&reply.body)));
            shop.knows(write, reply.body.clone());
        }
        let Some(content) = shop.contents.get(&write) else { return };
        let wanted = match range {
            Some((from, length)) if reply.status == 206 => {
                let end = (from as usize + length as usize + 1).min(content.len());
                content.get(from as usize..end).unwrap_or_default()
            }
            _ => content,
        };
        if *wanted != *reply.body {
            let (is, be) = (reply.body.len(), wanted.len());
            desk.wrong(format!("OB1: write {write} is shown with other bytes: {is} of them instead of {be}"));
        }
    }

    /// Lists all keys, page by page. Each page is a look at all keys that it spans.
    async fn lists(&self) {
        let mut after = String::new();
        let max = 1 + self.objects.random(6);
        loop {
            let began = self.now();
            let mut target = format!("{BUCKET}?list-type=2&max-keys={max}");
            if !after.is_empty() {
                target.push_str(&format!("&start-after={after}"));
            }
            let Some(reply) = self.asks("GET", target, vec![], Bytes::new()).await else { return };
            if reply.status != 200 {
                return;
            }
            let (keys, tags) = (reply.texts("Key"), reply.texts("ETag"));
            let truncated = reply.texts("IsTruncated").first().is_some_and(|text| text == "true");
            let now = self.now();
            let last = keys.last().cloned().unwrap_or_default();
            if !keys.is_sorted() || keys.len() != tags.len() || (truncated && last.is_empty()) {
                return self.wrong(format!("a page shows {keys:?} with {tags:?}, truncated: {truncated}"));
            }
            let shown: BTreeMap<&String, &String> = keys.iter().zip(&tags).collect();
            let mut desk = self.objects.desk.lock();
            for key in 0..KEYS {
                let name = format!("k{key}");
                if name <= after || (truncated && name > last) {
                    continue;
                }
                let answered = match shown.get(&name) {
                    Some(tag) => Answered::Etag(tag.trim_matches('"').to_owned()),
                    None => Answered::Missing,
                };
                desk.shop.history.saw(began, now, key, answered);
            }
            if !truncated {
                return;
            }
            after = last;
        }
    }

    async fn copies(&self, from: usize, to: usize) {
        let write = self.new_write();
        let began = self.now();
        self.objects.desk.lock().shop.copies.insert(write, (from, began));
        let event = self.begins(to, Asked::Write { write, only_if: OnlyIf::Any });
        let headers = vec![
            (WRITE, write.to_string()),
            ("x-amz-copy-source", path(from)),
            ("x-amz-metadata-directive", "REPLACE".to_owned()),
        ];
        let reply = self.asks("PUT", path(to), headers, Bytes::new()).await;
        let now = self.now();
        match Customer::answered(reply.as_ref()) {
            Answered::Missing => {
                self.ends(event, Answered::Nothing);
                self.objects.desk.lock().shop.history.saw(began, now, from, Answered::Missing);
            }
            Answered::Done => {
                self.ends(event, Answered::Done);
                let tag = reply.and_then(|reply| reply.texts("ETag").into_iter().next()).unwrap_or_default();
                let sum = tag.trim_matches('"').to_owned();
                let mut desk = self.objects.desk.lock();
                let known = desk.shop.with_sum(&sum);
                match known {
                    Some(content) => {
                        desk.shop.knows(write, content);
                        desk.shop.history.etags.insert(write, sum.clone());
                        desk.shop.history.saw(began, now, from, Answered::Bytes(sum));
                    }
                    None => desk.wrong(format!("OB1: copy {write} has the ETag {tag} of nothing that was written")),
                }
            }
            other => self.ends(event, other),
        }
    }

    /// An upload in parts, from its beginning to its end if nothing comes between.
    async fn uploads(&self, key: usize) {
        let write = self.new_write();
        let target = format!("{}?uploads", path(key));
        let Some(reply) = self.asks("POST", target, vec![(WRITE, write.to_string())], Bytes::new()).await else {
            return;
        };
        let Some(id) = reply.texts("UploadId").into_iter().next() else { return };
        let aborts = self.one_in(5);
        let owner = self.objects.who;
        let number = {
            let mut desk = self.objects.desk.lock();
            desk.shop.last_upload += 1;
            let number = desk.shop.last_upload;
            let upload = Upload {
                key,
                id,
                owner,
                write,
                parts: BTreeMap::new(),
                completion: None,
                in_doubt: false,
                aborts,
                raced: false,
            };
            desk.shop.uploads.insert(number, upload);
            number
        };
        let parts = 1 + self.objects.random(3) as u16;
        for part in (1..=parts).chain(self.one_in(3).then_some(1)) {
            let bytes = [48, 60, 256, 300][self.objects.random(4) as usize];
            let bytes = if part == parts && part > 1 { 1 + self.objects.random(40) as usize } else { bytes };
            if !self.uploads_part(number, part, self.content(bytes)).await {
                return;
            }
        }
        if self.one_in(3) {
            self.replaces_a_part(number);
        }
        self.ends_upload(number).await;
    }

    /// Has somebody else replace the first part of an upload at about the time when it is completed.
    fn replaces_a_part(&self, number: u64) {
        let target = {
            let mut desk = self.objects.desk.lock();
            let Some(upload) = desk.shop.uploads.get_mut(&number) else { return };
            upload.raced = true;
            format!("{}?partNumber=1&uploadId={}", path(upload.key), upload.id)
        };
        let other = Customer::new(&self.objects, &self.gateway);
        let content = self.content([60, 300][self.objects.random(2) as usize]);
        self.objects.spawn(async move {
            other.rests(40).await;
            let _ = other.asks("PUT", target, vec![], content).await;
        });
    }

    async fn uploads_part(&self, number: u64, part: u16, content: Bytes) -> bool {
        for _ in 0..TRIES {
            let Some(upload) = self.upload(number) else { return false };
            let target = format!("{}?partNumber={part}&uploadId={}", path(upload.key), upload.id);
            match self.asks("PUT", target, vec![], content.clone()).await {
                Some(reply) if reply.status == 200 => {
                    let mut desk = self.objects.desk.lock();
                    if let Some(upload) = desk.shop.uploads.get_mut(&number) {
                        upload.parts.insert(part, content);
                    }
                    return true;
                }
                Some(reply) if reply.status == 404 => {
                    self.wrong(format!("upload {} is gone before its end: {:?}", upload.id, reply.body));
                    return false;
                }
                _ => self.rests(200).await,
            }
        }
        // Nobody knows which bytes this part has.
        if let Some(upload) = self.objects.desk.lock().shop.uploads.get_mut(&number) {
            upload.aborts = true;
        }
        false
    }

    fn upload(&self, number: u64) -> Option<Upload> {
        self.objects.desk.lock().shop.uploads.get(&number).cloned()
    }

    /// Goes on with an upload whose process is gone.
    async fn takes_over(&self) {
        let orphan = {
            let mut desk = self.objects.desk.lock();
            let me = self.objects.who;
            let orphan = desk
                .shop
                .uploads
                .iter_mut()
                .find(|(_, upload)| upload.owner.process == me.process && upload.owner.run != me.run);
            orphan.map(|(number, upload)| {
                upload.owner = me;
                // A part may have been on its way.
                upload.aborts |= upload.completion.is_none();
                *number
            })
        };
        if let Some(number) = orphan {
            self.ends_upload(number).await;
        }
    }

    /// Completes or removes an upload; gives whether it is over.
    async fn ends_upload(&self, number: u64) -> bool {
        for _ in 0..TRIES {
            let Some(upload) = self.upload(number) else { return true };
            let over =
                if upload.aborts { self.aborts(number, &upload).await } else { self.completes(number, &upload).await };
            if over {
                self.objects.desk.lock().shop.uploads.remove(&number);
                return true;
            }
            self.rests(300).await;
        }
        false
    }

    async fn aborts(&self, number: u64, upload: &Upload) -> bool {
        let target = format!("{}?uploadId={}", path(upload.key), upload.id);
        let reply = self.asks_in_doubt(number, "DELETE", target, Bytes::new()).await;
        match reply.map(|reply| reply.status) {
            Some(204) => true,
            Some(404) if upload.in_doubt => true,
            Some(404) => {
                self.wrong(format!("upload {} is gone before it was removed", upload.id));
                true
            }
            _ => false,
        }
    }

    /// A request of which it is not known, from now on until it is answered, whether it ended the upload.
    async fn asks_in_doubt(&self, number: u64, method: &'static str, target: String, body: Bytes) -> Option<Reply> {
        if let Some(upload) = self.objects.desk.lock().shop.uploads.get_mut(&number) {
            upload.in_doubt = true;
        }
        self.asks(method, target, vec![], body).await
    }

    async fn completes(&self, number: u64, upload: &Upload) -> bool {
        let parts: Vec<Bytes> = upload.parts.values().cloned().collect();
        let tag = etag_of_parts(&parts);
        let event = match upload.completion {
            Some(event) => event,
            None => {
                let event = self.begins(upload.key, Asked::Write { write: upload.write, only_if: OnlyIf::Any });
                let mut desk = self.objects.desk.lock();
                desk.shop.knows(upload.write, parts.concat().into());
                desk.shop.history.etags.insert(upload.write, tag.clone());
                if let Some(upload) = desk.shop.uploads.get_mut(&number) {
                    upload.completion = Some(event);
                }
                event
            }
        };
        let mut document = "<CompleteMultipartUpload>".to_owned();
        for (part, content) in &upload.parts {
            let tag = etag(content);
            document.push_str(&format!("<Part><PartNumber>{part}</PartNumber><ETag>\"{tag}\"</ETag></Part>"));
        }
        document.push_str("</CompleteMultipartUpload>");
        let target = format!("{}?uploadId={}", path(upload.key), upload.id);
        let reply = self.asks_in_doubt(number, "POST", target, document.into()).await;
        let Some(reply) = reply else { return false };
        match (reply.status, reply.code().as_deref()) {
            (200, None) => {
                if reply.texts("ETag").first() != Some(&format!("\"{tag}\"")) {
                    self.wrong(format!("upload {} is completed with other parts: {:?}", upload.id, reply.body));
                }
                self.count(FaultKind::UploadCompleted);
                self.ends(event, Answered::Done);
                true
            }
            // It was completed before: nobody else ends it.
            (_, Some("NoSuchUpload")) if upload.in_doubt => {
                self.ends(event, Answered::Done);
                true
            }
            (_, Some("InvalidPart")) if upload.raced => {
                if let Some(upload) = self.objects.desk.lock().shop.uploads.get_mut(&number) {
                    upload.aborts = true;
                }
                false
            }
            (_, Some("NoSuchUpload" | "InvalidPart" | "EntityTooSmall" | "MalformedXML")) => {
                self.wrong(format!("upload {upload:?} cannot be completed: {:?}", reply.body));
                true
            }
            _ => false,
        }
    }

    /// Completes or removes all uploads.
    pub async fn ends_uploads(&self) {
        loop {
            let next = self.objects.desk.lock().shop.uploads.keys().next().copied();
            let Some(number) = next else { break };
            if let Some(upload) = self.objects.desk.lock().shop.uploads.get_mut(&number) {
                upload.aborts |= upload.completion.is_none();
            }
            self.ends_upload(number).await;
        }
        // Those that were begun, but nobody was told.
        loop {
            let target = format!("{BUCKET}?uploads");
            let Some(reply) = self.asks("GET", target, vec![], Bytes::new()).await else { continue };
            let (keys, ids) = (reply.texts("Key"), reply.texts("UploadId"));
            if reply.status == 200 && ids.is_empty() {
                return;
            }
            for (key, id) in keys.iter().zip(ids) {
                let _ = self.asks("DELETE", format!("{BUCKET}/{key}?uploadId={id}"), vec![], Bytes::new()).await;
            }
        }
    }

    /// Reads every key once more, as long as it takes to be answered.
    pub async fn reads_all(&self) {
        for key in 0..KEYS {
            while !self.gets(key).await {
                self.rests(100).await;
            }
        }
        self.lists().await;
    }
}
