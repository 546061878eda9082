//! The numbers of a client's requests.

use std::collections::BTreeSet;

use holdfast_types::{ClientId, Incarnation, RequestId};

/// One run of a client, and which of its requests are not finished.
#[derive(Debug, Clone)]
pub struct Session {
    client: ClientId,
    incarnation: Incarnation,
    last_tid: u64,
    outstanding: BTreeSet<u64>,
}

impl Session {
    /// A session that has asked nothing yet.
    #[must_use]
    pub fn new(client: ClientId, incarnation: Incarnation) -> Session {
        Session { client, incarnation, last_tid: 0, outstanding: BTreeSet::new() }
    }

    /// Who.
    #[must_use]
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// Which run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The id of a new request, outstanding from now on.
    pub fn begin(&mut self) -> RequestId {
        self.last_tid += 1;
        self.outstanding.insert(self.last_tid);
        RequestId { client: self.client, incarnation: self.incarnation, tid: self.last_tid }
    }

    /// The request is finished, and never sent again.
    pub fn end(&mut self, id: RequestId) {
        self.outstanding.remove(&id.tid);
    }

    /// Every request below this is finished: OSDs may forget their results.
    #[must_use]
    pub fn lowest_outstanding_tid(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.last_tid + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_never_passes_an_unfinished_request() {
        let mut session = Session::new(ClientId(1), Incarnation(1));
        assert_eq!(session.lowest_outstanding_tid(), 1);
        let ids: Vec<RequestId> = (0..3).map(|_| session.begin()).collect();
        session.end(ids[1]);
        assert_eq!(session.lowest_outstanding_tid(), 1);
        session.end(ids[0]);
        assert_eq!(session.lowest_outstanding_tid(), 3);
        session.end(ids[2]);
        assert_eq!(session.lowest_outstanding_tid(), 4);
    }
}
