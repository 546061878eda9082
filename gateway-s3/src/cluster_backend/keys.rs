//! Users' keys, from the monitors, remembered.
//!
//! - A key that the monitors confirmed within *fresh* ([`FRESH`], if not set otherwise) is used without asking; from half of
//!   that on it is asked for again in the background, so that a busy key never waits.
//! - A key removed at the monitors stops working within *fresh* + [`PATIENCE`].
//! - While the monitors do not answer, keys that were confirmed within [`STALE_MAX`] go on working, without waiting; a key
//!   that is not remembered cannot be judged and is answered with [`BackendError::Unavailable`], never with a guess.
//! - One question per key is under way at a time, whoever waits for it. What is remembered is bounded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_client::{Client, ClientError};
use holdfast_types::ClusterId;
use holdfast_wire::mon::{MonCommand, MonError, MonReply};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::unavailable;
use crate::backend::{BackendError, KeyInfo, Keys};

/// How long an answer counts as new, as a rule.
pub(crate) const FRESH: Duration = Duration::from_secs(5);
/// How long "no such key" counts: a key that was just made should work at once.
const MISSING: Duration = Duration::from_secs(1);
/// How long a request waits for the renewal of a key that is known: several round trips, and not noticed by a user.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a request waits for a key that is not known: an election.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long a question may be under way.
const QUESTION_MAX: Duration = Duration::from_secs(10);
/// Pause before a question that failed is asked again, while there is something to go on with.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a key works that the monitors cannot confirm because they are away.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Keys remembered.
const KNOWN_MAX: usize = 10_000;
/// Names remembered to be no keys.
const MISSING_MAX: usize = 10_000;
/// Questions under way or waiting to be asked; beyond that requests are turned away.
const QUESTIONS_MAX: usize = 4_096;
/// Questions asked at one time: a flood of made-up names must not be one for the monitors.
const ASKED_MAX: usize = 16;
/// The longest access key, in bytes; AWS allows 128.
const ACCESS_KEY_BYTES_MAX: usize = 128;

/// Somebody who knows the keys.
#[async_trait]
pub(super) trait KeySource: Send + Sync + 'static {
    /// Looks a key up.
    async fn lookup(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError>;
}

/// The monitors.
pub(super) struct ClusterKeys {
    cluster: ClusterId,
    client: Client,
}

impl ClusterKeys {
    pub fn new(cluster: ClusterId, client: Client) -> ClusterKeys {
        ClusterKeys { cluster, client }
    }
}

#[async_trait]
impl KeySource for ClusterKeys {
    async fn lookup(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
        match self.client.mon_command(MonCommand::KeyLookup { access_key: access_key.to_owned() }).await {
            Ok(MonReply::Key(key)) => {
                let owner = canonical_id(self.cluster, &key.name);
                let secret = key.secret_key.ok_or(BackendError::Corrupt { what: "key" })?;
                Ok(Some(KeyInfo { secret: secret.0, owner, name: key.name }))
            }
            Ok(_) => Err(BackendError::Corrupt { what: "answer to a key lookup" }),
            Err(ClientError::Mon(MonError::NotFound { .. })) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }
}

/// What AWS calls the canonical user id: 64 hex digits, the same for all keys that a user of this name ever has.
fn canonical_id(cluster: ClusterId, name: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"holdfast canonical user id\0");
    hash.update(cluster.0);
    hash.update(name.as_bytes());
    hex::encode(hash.finalize())
}

type Answer = Result<Option<KeyInfo>, Arc<BackendError>>;
type Question = watch::Receiver<Option<Answer>>;

#[derive(Clone)]
struct Known {
    info: KeyInfo,
    /// When the question was asked whose answer this is.
    confirmed: Instant,
    /// Not before this time is it asked for again; set when a question failed.
    ask_after: Option<Instant>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    missing: HashMap<String, Instant>,
    questions: HashMap<String, Question>,
}

/// What to do for a request.
enum Plan {
    Answer(Option<KeyInfo>),
    /// Wait; if that is in vain, there may be something to go on with.
    Wait(Question, Option<KeyInfo>),
    Refuse,
}

struct Shared<S> {
    source: S,
    fresh: Duration,
    state: Mutex<State>,
    asked: Semaphore,
}

/// Keys of a source, remembered.
pub(super) struct KeyCache<S> {
    shared: Arc<Shared<S>>,
}

impl<S: KeySource> KeyCache<S> {
    /// Answers of `source` count as new for `fresh`.
    pub fn new(source: S, fresh: Duration) -> KeyCache<S> {
        let shared = Shared { source, fresh, state: Mutex::default(), asked: Semaphore::new(ASKED_MAX) };
        KeyCache { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl<S: KeySource> Keys for KeyCache<S> {
    async fn secret_for(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
        if access_key.is_empty() || access_key.len() > ACCESS_KEY_BYTES_MAX || !access_key.is_ascii() {
            return Ok(None);
        }
        let (mut question, fallback) = match self.shared.plan(access_key) {
            Plan::Answer(answer) => return Ok(answer),
            Plan::Refuse => return Err(unavailable(TooManyQuestions)),
            Plan::Wait(question, fallback) => (question, fallback),
        };
        let patience = if fallback.is_some() { PATIENCE } else { GIVE_UP };
        let answer = match tokio::time::timeout(patience, question.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        match (answer, fallback) {
            (Some(Ok(answer)), _) => Ok(answer),
            (Some(Err(_)), Some(info)) => Ok(Some(info)),
            (None, Some(info)) => {
                // Until there is an answer, nobody else needs to wait for it.
                self.shared.put_off(access_key);
                Ok(Some(info))
            }
            (Some(Err(error)), None) => Err(unavailable(error)),
            (None, None) => Err(unavailable(NoAnswer)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("too many unknown access keys at one time")]
struct TooManyQuestions;

#[derive(Debug, thiserror::Error)]
#[error("the monitors did not tell the key in time")]
struct NoAnswer;

impl<S: KeySource> Shared<S> {
    fn plan(self: &Arc<Self>, access_key: &str) -> Plan {
        let now = Instant::now();
        let mut state = self.state.lock();
        match state.missing.get(access_key) {
            Some(asked) if now.duration_since(*asked) < MISSING => return Plan::Answer(None),
            Some(_) => {
                state.missing.remove(access_key);
            }
            None => {}
        }
        let Some(known) = state.known.get(access_key) else {
            return self.ask(&mut state, access_key, now).map_or(Plan::Refuse, |question| Plan::Wait(question, None));
        };
        let age = now.duration_since(known.confirmed);
        if age < self.fresh / 2 {
            return Plan::Answer(Some(known.info.clone()));
        }
        let (info, away, due) = (
            (age < STALE_MAX).then(|| known.info.clone()),
            known.ask_after.is_some(),
            known.ask_after.is_none_or(|after| now >= after),
        );
        match info {
            Some(info) if age < self.fresh || away => {
                if due {
                    self.ask(&mut state, access_key, now);
                }
                Plan::Answer(Some(info))
            }
            info => match self.ask(&mut state, access_key, now) {
                Some(question) => Plan::Wait(question, info),
                None => Plan::Refuse,
            },
        }
    }

    /// The question about a key that is under way, or a new one. `None`: there are too many.
    fn ask(self: &Arc<Self>, state: &mut State, access_key: &str, now: Instant) -> Option<Question> {
        let full = state.questions.len() >= QUESTIONS_MAX;
        let (answer, question) = match state.questions.entry(access_key.to_owned()) {
            Entry::Occupied(mut entry) => {
                // A sender that is gone without an answer was a task that died: ask anew.
                if entry.get().has_changed().is_ok() {
                    return Some(entry.get().clone());
                }
                let (answer, question) = watch::channel(None);
                entry.insert(question.clone());
                (answer, question)
            }
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(entry) => {
                let (answer, question) = watch::channel(None);
                entry.insert(question.clone());
                (answer, question)
            }
        };
        let (shared, access_key) = (Arc::clone(self), access_key.to_owned());
        tokio::spawn(async move {
            let result = match tokio::time::timeout(QUESTION_MAX, shared.put_question(&access_key)).await {
                Ok(result) => result,
                Err(_) => Err(unavailable(NoAnswer)),
            };
            answer.send_replace(Some(shared.learn(&access_key, now, result.map_err(Arc::new))));
        });
        Some(question)
    }

    async fn put_question(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
        let _turn = self.asked.acquire().await.map_err(unavailable)?;
        self.source.lookup(access_key).await
    }

    /// Takes an answer to a question of time `asked`.
    fn learn(&self, access_key: &str, asked: Instant, answer: Answer) -> Answer {
        let mut state = self.state.lock();
        state.questions.remove(access_key);
        match &answer {
            Ok(Some(info)) => {
                if state.known.len() >= KNOWN_MAX && !state.known.contains_key(access_key) {
                    let oldest =
                        state.known.iter().min_by_key(|(_, known)| known.confirmed).map(|(key, _)| key.clone());
                    oldest.and_then(|oldest| state.known.remove(&oldest));
                }
                let known = Known { info: info.clone(), confirmed: asked, ask_after: None };
                state.known.insert(access_key.to_owned(), known);
            }
            Ok(None) => {
                state.known.remove(access_key);
                if state.missing.len() >= MISSING_MAX {
                    state.missing.clear();
                }
                state.missing.insert(access_key.to_owned(), asked);
            }
            Err(error) => {
                if let Some(known) = state.known.get_mut(access_key) {
                    if known.ask_after.is_none() {
                        tracing::warn!(%error, "the monitors do not confirm a key; it is used as it was");
                    }
                    known.ask_after = Some(Instant::now() + PAUSE);
                }
            }
        }
        answer
    }

    fn put_off(&self, access_key: &str) {
        if let Some(known) = self.state.lock().known.get_mut(access_key) {
            known.ask_after = Some(Instant::now() + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Monitors {
        keys: Mutex<HashMap<String, KeyInfo>>,
        /// How long an answer takes; `None`: there is none.
        delay: Mutex<Option<Duration>>,
        asked: AtomicU32,
    }

    #[async_trait]
    impl KeySource for Arc<Monitors> {
        async fn lookup(&self, access_key: &str) -> Result<Option<KeyInfo>, BackendError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let delay = *self.delay.lock();
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
            Ok(self.keys.lock().get(access_key).cloned())
        }
    }

    fn world() -> (Arc<Monitors>, KeyCache<Arc<Monitors>>) {
        let monitors = Arc::new(Monitors::default());
        *monitors.delay.lock() = Some(Duration::from_millis(10));
        add(&monitors, "AK");
        (monitors.clone(), KeyCache::new(monitors, FRESH))
    }

    fn add(monitors: &Monitors, key: &str) {
        let info = KeyInfo { secret: "s".to_owned(), owner: "o".to_owned(), name: "n".to_owned() };
        monitors.keys.lock().insert(key.to_owned(), info);
    }

    async fn works(cache: &KeyCache<Arc<Monitors>>, key: &str) -> bool {
        cache.secret_for(key).await.expect("an answer").is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_of_one_key_ask_once() {
        let (monitors, cache) = world();
        let all = futures::future::join_all((0..100).map(|_| works(&cache, "AK"))).await;
        assert!(all.into_iter().all(|works| works));
        assert!(works(&cache, "AK").await);
        assert_eq!(monitors.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_key_is_renewed_without_anyone_waiting() {
        let (monitors, cache) = world();
        assert!(works(&cache, "AK").await);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let before = Instant::now();
            assert!(works(&cache, "AK").await);
            assert_eq!(before, Instant::now());
            tokio::time::sleep(Duration::from_millis(11)).await;
        }
        assert!(monitors.asked.load(Ordering::SeqCst) <= 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_key_soon_stops_working_and_a_new_one_soon_works() {
        let (monitors, cache) = world();
        assert!(works(&cache, "AK").await);
        assert!(!works(&cache, "NEW").await);
        monitors.keys.lock().remove("AK");
        add(&monitors, "NEW");
        tokio::time::advance(FRESH).await;
        assert!(!works(&cache, "AK").await);
        assert!(works(&cache, "NEW").await);
    }

    #[tokio::test(start_paused = true)]
    async fn known_keys_outlive_the_monitors_and_others_are_not_guessed() {
        let (monitors, cache) = world();
        assert!(works(&cache, "AK").await);
        *monitors.delay.lock() = None;
        tokio::time::advance(Duration::from_secs(60)).await;
        let first = Instant::now();
        assert!(works(&cache, "AK").await);
        assert!(first.elapsed() <= PATIENCE);
        for _ in 0..100 {
            let before = Instant::now();
            assert!(works(&cache, "AK").await);
            assert_eq!(before, Instant::now(), "nobody waits while the monitors are known to be away");
            tokio::time::advance(Duration::from_secs(7)).await;
        }
        assert!(matches!(cache.secret_for("OTHER").await, Err(BackendError::Unavailable(_))));
        // They are back, and the key is gone.
        *monitors.delay.lock() = Some(Duration::ZERO);
        monitors.keys.lock().clear();
        tokio::time::sleep(QUESTION_MAX + PAUSE).await;
        let _ = cache.secret_for("AK").await;
        tokio::time::sleep(PAUSE).await;
        assert!(!works(&cache, "AK").await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_a_key_is_not_asked_for() {
        let (monitors, cache) = world();
        for key in ["", "é", &"k".repeat(ACCESS_KEY_BYTES_MAX + 1)] {
            assert!(!works(&cache, key).await);
        }
        assert_eq!(monitors.asked.load(Ordering::SeqCst), 0);
    }
}
