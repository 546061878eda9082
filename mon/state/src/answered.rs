//! Which requests have been answered, so that a resend changes nothing.
//!
//! Bounded: the last [`REPLIES_PER_CLIENT`] of each of the last [`CLIENTS_MAX`] clients. What is older than that, or of an
//! earlier run of its client, may have been applied and forgotten: it is refused, however late it comes in.

use std::cmp::Ordering;
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
    /// The highest number whose answer was forgotten.
    #[n(3)]
    forgotten: Option<u64>,
}

/// What is known of a request that comes in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Known {
    /// It has not been applied.
    New,
    /// It has, with this answer.
    Answered(MonReply),
    /// Perhaps it has: its client has since moved on.
    Past,
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
    /// Whether this request has been applied.
    pub(crate) fn look_up(&self, id: RequestId) -> Known {
        let Some(session) = self.sessions.get(&id.client) else { return Known::New };
        match id.incarnation.cmp(&session.incarnation) {
            Ordering::Less => Known::Past,
            Ordering::Greater => Known::New,
            Ordering::Equal => match session.replies.iter().find(|(tid, _)| *tid == id.tid) {
                Some((_, reply)) => Known::Answered(reply.clone()),
                None if session.forgotten.is_some_and(|forgotten| id.tid <= forgotten) => Known::Past,
                None => Known::New,
            },
        }
    }

    /// Remembers the answer of a request.
    pub(crate) fn put(&mut self, id: RequestId, reply: MonReply) {
        let refusal = matches!(reply, MonReply::Failed(_));
        if refusal && minicbor::to_vec(&reply).is_ok_and(|bytes| bytes.len() > REPLY_BYTES_MAX) {
            return;
        }
        self.clock += 1;
        let fresh = Session { incarnation: id.incarnation, replies: VecDeque::new(), used: 0, forgotten: None };
        let session = self.sessions.entry(id.client).or_insert_with(|| fresh.clone());
        match id.incarnation.cmp(&session.incarnation) {
            Ordering::Less => return, // its client has moved on
            Ordering::Equal => {}
            Ordering::Greater => *session = fresh,
        }
        session.used = self.clock;
        session.replies.push_back((id.tid, reply));
        if session.replies.len() > REPLIES_PER_CLIENT
            && let Some((tid, _)) = session.replies.pop_front()
        {
            session.forgotten = session.forgotten.max(Some(tid));
        }
        if self.sessions.len() > CLIENTS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used).map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::Epoch;

    use super::*;

    fn id(incarnation: u64, tid: u64) -> RequestId {
        RequestId { client: ClientId(7), incarnation: Incarnation(incarnation), tid }
    }

    fn done(epoch: u64) -> MonReply {
        MonReply::Done { epoch: Epoch(epoch) }
    }

    #[test]
    fn what_was_applied_and_forgotten_is_not_taken_for_new() {
        let mut answered = Answered::default();
        for tid in 1..=20 {
            assert_eq!(answered.look_up(id(1, tid)), Known::New);
            answered.put(id(1, tid), done(tid));
        }
        assert_eq!(answered.look_up(id(1, 20)), Known::Answered(done(20)));
        assert_eq!(answered.look_up(id(1, 5)), Known::Answered(done(5)));
        assert_eq!(answered.look_up(id(1, 4)), Known::Past, "its answer has been forgotten");
        assert_eq!(answered.look_up(id(1, 21)), Known::New);
    }

    #[test]
    fn a_late_request_of_an_earlier_run_neither_counts_nor_ends_the_later_run() {
        let mut answered = Answered::default();
        answered.put(id(1, 9), done(1));
        assert_eq!(answered.look_up(id(2, 1)), Known::New);
        answered.put(id(2, 1), done(2));
        assert_eq!(answered.look_up(id(1, 9)), Known::Past);
        assert_eq!(answered.look_up(id(2, 1)), Known::Answered(done(2)));
    }

    #[test]
    fn an_answer_of_an_earlier_run_forgets_nothing_of_the_later_one() {
        let mut answered = Answered::default();
        answered.put(id(2, 1), done(2));
        answered.put(id(1, 9), done(3));
        assert_eq!(answered.look_up(id(2, 1)), Known::Answered(done(2)));
        assert_eq!(answered.look_up(id(1, 9)), Known::Past);
    }
}
