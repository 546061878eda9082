//! Carries messages between daemons and clients: connections, handshake, requests and their responses, back-pressure.
//!
//! Duty: what [`holdfast_wire::frame`] defines, over TCP. It never looks into a message's body.
//!
//! - An [`Endpoint`] is this process on the network: its identity, its limits, the incarnations it knows.
//! - A [`Listener`] accepts, a [`Peer`] connects (lazily, again and again); both give [`Connection`]s, which are alike
//!   from then on: either side sends one-way messages, asks requests, answers them.
//! - A [`Handler`] is told of each message, with a [`Permit`]: the memory of the message is charged to the connection, and
//!   to the credit of all clients or of all daemons, until the permit is dropped; while either is used up the connection is
//!   not read any further.
//! - What is sent is queued, and written by the connection's task or by a thread that has gathered several messages
//!   ([`Connection::flush`]).
//!
//! Invariants:
//! - Only the handshake makes an [`Authenticated`] identity; nothing of a peer is handed on without one.
//! - A connection's end fails all its outstanding requests at once, with the reason.
//! - After [`Handler::on_closed`] the connection gives no more messages.
//! - Each queue is bounded in bytes, and each byte of overhead is charged, so it is bounded in frames as well.
//!
//! **Rule for daemons:** the permit of a message from a daemon must depend on local progress alone (a disk write, a
//! queue of this process), never on another answer from the network. Otherwise two daemons that wait for each other's
//! answers stop reading them. The permit of a client's request may wait for other daemons: clients have a pool of their
//! own, so that what they hold never keeps a daemon from being heard.

mod backoff;
mod config;
mod connection;
mod endpoint;
mod error;
mod handshake;
mod io;
mod listener;
mod message;
pub mod mon_api;
pub mod mon_session;
mod outgoing;
mod peer;

pub use backoff::Backoff;
pub use config::NetConfig;
pub use connection::Connection;
pub use endpoint::{Endpoint, LocalIdentity};
pub use error::{CloseReason, ConnectError, NetError};
pub use handshake::{AuthMethod, Authenticated};
pub use holdfast_wire::frame::{GoodbyeReason, PeerIdentity};
pub use listener::Listener;
pub use message::{Handler, Message, NoHandler, Permit, Prepared};
pub use peer::{Peer, PeerMode, PeerState, PeerStatus, Target};
