//! Which requests have been answered, so that a resend changes nothing.
//!
//! Bounded: the last [`REPLIES_PER_CLIENT`] of each of the last [`CLIENTS_MAX`] clients. A client sends its requests
//! one after the other, so a resend older than that does not happen.

use std::collections::{BTreeMap, VecDeque};

use holdfast_types::{ClientId, Incarnation, RequestId};
use holdfast_wire::mon::MonReply;
use minicbor::{Decode, Encode};

/// A client has few requests under way at once.
const REPLIES_PER_CLIENT: usize = 16;
/// Sessions of daemons and commands; a resend comes within seconds.
const CLIENTS_MAX: usize = 1_024;
/// Longer answers are refusals that repeat what was asked: nothing was changed, so nothing need be remembered.
const REPLY_BYTES_MAX: usize = 512;
/// All that is remembered.
pub(crate) const ANSWERED_BYTES_MAX: usize = CLIENTS_MAX * REPLIES_PER_CLIENT * (REPLY_BYTES_MAX + 16);

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
struct Session {
    #[n(0)]
    incarnation: Incarnation,
    #[n(1)]
    replies: VecDeque<(u64, MonReply)>,
    /// When it was last used: the newest clock value wins a place.
    #[n(2)]
    used: u64,
}

/// The answers that are remembered.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Answered {
    #[n(0)]
    sessions: BTreeMap<ClientId, Session>,
    #[n(1)]
    clock: u64,
}

impl Answered {
    /// The answer that this request got.
    pub(crate) fn get(&self, id: RequestId) -> Option<&MonReply> {
        let session = self.sessions.get(&id.client).filter(|session| session.incarnation == id.incarnation)?;
        session.replies.iter().find(|(tid, _)| *tid == id.tid).map(|(_, reply)| reply)
    }

    /// Remembers the answer of a request.
    pub(crate) fn put(&mut self, id: RequestId, reply: MonReply) {
        let refusal = matches!(reply, MonReply::Failed(_));
        if refusal && minicbor::to_vec(&reply).is_ok_and(|bytes| bytes.len() > REPLY_BYTES_MAX) {
            return;
        }
        self.clock += 1;
        let fresh = Session { incarnation: id.incarnation, replies: VecDeque::new(), used: 0 };
        let session = self.sessions.entry(id.client).or_insert_with(|| fresh.clone());
        if session.incarnation != id.incarnation {
            *session = fresh;
        }
        session.used = self.clock;
        session.replies.push_back((id.tid, reply));
        if session.replies.len() > REPLIES_PER_CLIENT {
            session.replies.pop_front();
        }
        if self.sessions.len() > CLIENTS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used).map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
            }
        }
    }
}
