//! What the monitors acknowledge: one client makes S3 keys and removes them again, one after the other, so that the
//! monitors' logs are written all the time; in the end every key is there or not as it was answered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use holdfast_net::mon_session::MonSession;
use holdfast_wire::mon::{MonCommand, MonReply};
use parking_lot::Mutex;

/// How the names begin.
const PREFIX: &str = "load-";
/// Keys that are there at one time.
const HELD: usize = 20;
/// Between two commands.
const PAUSE: Duration = Duration::from_millis(15);

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    There,
    Gone,
    /// The last command about it was not answered.
    Unknown,
}

/// See the module.
#[derive(Clone)]
pub struct Keys {
    session: MonSession,
    known: Arc<Mutex<BTreeMap<String, Known>>>,
    stop: Arc<AtomicBool>,
}

impl Keys {
    /// No keys yet.
    #[must_use]
    pub fn new(session: MonSession) -> Keys {
        Keys { session, known: Arc::default(), stop: Arc::default() }
    }

    /// Ends the client after what it is doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Makes and removes keys until it is told to stop.
    ///
    /// # Errors
    /// When a command is answered with what cannot be.
    pub async fn client(self) -> anyhow::Result<()> {
        let mut held = VecDeque::new();
        for number in 0u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("{PREFIX}{number}");
            let new = MonCommand::KeyNew { name: name.clone(), access_key: None, secret_key: None };
            if self.execute(&name, new, Known::There).await? {
                held.push_back(name);
            }
            if held.len() > HELD
                && let Some(oldest) = held.pop_front()
            {
                self.execute(&oldest, MonCommand::KeyRemove { name: oldest.clone() }, Known::Gone).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Whether it was acknowledged.
    async fn execute(&self, name: &str, command: MonCommand, then: Known) -> anyhow::Result<bool> {
        self.known.lock().insert(name.to_owned(), Known::Unknown);
        match self.session.execute(command).await {
            Ok(MonReply::Failed(error)) => anyhow::bail!("a command about the key {name} failed: {error}"),
            Ok(_) => {
                self.known.lock().insert(name.to_owned(), then);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// Compares the keys that are there with what was acknowledged: how many commands were.
    ///
    /// # Errors
    /// With the first key that is there and must not be, or the other way round.
    pub async fn check(&self) -> anyhow::Result<u64> {
        let listed = match self.session.execute(MonCommand::KeyList).await? {
            MonReply::Keys(keys) => keys.into_iter().map(|key| key.name).collect::<std::collections::BTreeSet<_>>(),
            other => anyhow::bail!("the keys are listed with {other:?}"),
        };
        let known = self.known.lock();
        let mut acknowledged = 0;
        for (name, known) in known.iter() {
            match known {
                Known::There => ensure!(listed.contains(name), "the key {name} was made, and is not there"),
                Known::Gone => ensure!(!listed.contains(name), "the key {name} was removed, and is there"),
                Known::Unknown => {}
            }
            acknowledged += match known {
                Known::There => 1,
                Known::Gone => 2,
                Known::Unknown => 0,
            };
        }
        let never = listed.iter().find(|name| name.starts_with(PREFIX) && !known.contains_key(*name));
        ensure!(never.is_none(), "the key {never:?} was never made");
        Ok(acknowledged)
    }
}
