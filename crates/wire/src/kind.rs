//! The kinds of frames. A number is never reused.

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal),+ $(,)?) => {
        /// What a frame carries.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $number),+ }

        impl Kind {
            /// The kind of that number, if this build knows it.
            #[must_use]
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// First frame of either side: who speaks, in which cluster.
    Hello = 1,
    /// Why the other side closes, before it does.
    Goodbye = 2,
    /// [`crate::ClientRequest`].
    ClientRequest = 16,
    /// [`crate::ClientReply`], answers a request by its id.
    ClientReply = 17,
    /// [`crate::Barrier`], request of a client.
    Barrier = 18,
    /// [`crate::BarrierReached`], answers a [`crate::Barrier`] by its id.
    BarrierReached = 19,
    /// [`crate::peer::PeerMessage`], one way.
    Peer = 32,
    /// [`crate::peer::Heartbeat`], request.
    Heartbeat = 33,
    /// [`crate::peer::HeartbeatReply`].
    HeartbeatReply = 34,
    /// [`crate::peer::MapShare`], one way: increments for a peer that is behind.
    MapShare = 35,
}
