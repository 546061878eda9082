//! What the client decides, without doing it: targeting, resending, following the map.
//!
//! No IO, no clock, no randomness: the shell around it ([`crate::Client`]) performs, and tests need no network.
//!
//! | an op that is … | new map, same target | new map, other target | reply | connection lost | wake-up |
//! |---|---|---|---|---|---|
//! | in flight | waits on | sent again | finished, or as refused below | pauses, wants a map | – |
//! | waiting for a map or primary | waits, or sent | sent | – | – | wants the map again |
//! | pausing | waits on | sent | – | – | sent |
//!
//! `WrongPrimary` at a newer epoch: waits for that map. `WrongPrimary` at ours or `Busy`: pauses. All other refusals
//! finish; `Full` says that nothing happened only if the request was sent once. Every state ends at the op's deadline, and only there: nothing else bounds resending, because a request keeps
//! its id and is executed at most once.

mod follow;
mod op;
mod session;
mod view;

pub use follow::{FollowError, follow};
pub use op::{Action, Input, Op, Outcome};
pub use session::Session;
pub use view::{MapView, NoTarget, Target};
