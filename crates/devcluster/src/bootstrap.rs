//! What a new cluster needs before its first request: two pools and one S3 key. Repeating it changes nothing.

use std::time::Duration;

use holdfast_net::mon_session::MonSession;
use holdfast_types::{ClientId, Incarnation};
use holdfast_wire::mon::{MonCommand, MonError, MonReply, Secret};
use holdfast_wire::pools::{S3_DATA_POOL, S3_INDEX_POOL};

use crate::credentials::Credentials;
use crate::error::DevError;
use crate::layout::Layout;

/// The pool of bucket indexes.
pub const INDEX_POOL: &str = S3_INDEX_POOL.name;
/// The pool of object data.
pub const DATA_POOL: &str = S3_DATA_POOL.name;

/// How long the monitors of a starting cluster are tried: an election, and a slow disk.
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A session with the monitors of a layout.
///
/// # Errors
/// [`DevError::Monitors`].
pub fn monitor_session(layout: &Layout) -> Result<MonSession, DevError> {
    let draw = || getrandom::u64().map_err(|error| DevError::file("draw", "an id")(std::io::Error::other(error)));
    Ok(MonSession::new(layout.cluster, &layout.monitors(), ClientId(draw()?), Incarnation(draw()?.max(1)))?)
}

/// Makes pools and key. The OSDs must have joined before: the number of copies follows from them.
///
/// # Errors
/// [`DevError`] when the monitors cannot be asked or refuse.
pub async fn bootstrap(session: &MonSession, credentials: &Credentials) -> Result<(), DevError> {
    for pool in [S3_INDEX_POOL, S3_DATA_POOL] {
        let what = format!("make pool {}", pool.name);
        match session.execute_within(pool.create_as(pool.name, None), FIRST_ANSWER_LIMIT).await? {
            MonReply::Pool { .. } => {}
            MonReply::Failed(source) => return Err(DevError::Refused { what, source }),
            _ => return Err(DevError::Unexpected { what }),
        }
    }
    let what = "make the S3 key".to_owned();
    let command = MonCommand::KeyNew {
        name: "dev".to_owned(),
        access_key: Some(credentials.access_key.clone()),
        secret_key: Some(Secret(credentials.secret_key.clone())),
    };
    match session.execute_within(command, FIRST_ANSWER_LIMIT).await? {
        // An earlier start was cut off after the key was made and before that was noted.
        MonReply::Key(_) | MonReply::Failed(MonError::Exists { .. }) => Ok(()),
        MonReply::Failed(source) => Err(DevError::Refused { what, source }),
        _ => Err(DevError::Unexpected { what }),
    }
}
