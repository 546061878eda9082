//! A deterministic runtime for many nodes: one thread, a virtual clock, and a seeded choice among the tasks that can run.
//!
//! It serves the Raft library through its [`AsyncRuntime`] trait, and knows what the library's own simulated runtime does
//! not: to which node a task belongs (a task inherits it from the one that spawned it). So one node can be killed at
//! whatever each of its tasks is awaiting, paused while time goes on, and given a clock that runs fast or slow.
//!
//! - Which task runs next is drawn from the *set* of those that can, ordered by id: the order in which they were woken
//!   does not matter, and so nothing in a channel that wakes its waiters in no fixed order does either.
//! - When none can run, the clock jumps to the earliest timer. Timers of one moment fire together.
//! - Every choice is folded into a hash; the same seed gives the same hash.
//! - A panic ends its task only and is reported as a violation by the world.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot, TokioWatch};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

/// A node: a process with tasks and a clock of its own.
pub(crate) type NodeId = usize;
/// The node of what is no monitor: clients, faults, checkers. Its clock is the true one; it never fails.
pub(crate) const WORLD: NodeId = 0;

/// Local clocks start here, so that a time some minutes ago can be named.
const START_NANOS: u64 = 3_600_000_000_000;
/// Polls without the clock moving on: more means that tasks wake each other in a circle.
const POLLS_PER_INSTANT_MAX: u64 = 2_000_000;

type TaskId = u64;
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

struct Shared {
    state: Mutex<State>,
}

struct Task {
    node: NodeId,
    /// `None` while it is polled.
    work: Option<Work>,
    waker: Waker,
}

struct Node {
    /// Whether tasks may be spawned on it.
    alive: bool,
    paused: bool,
    /// Woken while it was paused.
    held: BTreeSet<TaskId>,
    /// Kill it once the poll under way ends.
    doomed: bool,
    /// True time and local time at which the present rate began.
    since: (u64, u64),
    /// Local nanoseconds per million true ones.
    rate: u64,
}

struct State {
    now: u64,
    rng: SmallRng,
    tasks: BTreeMap<TaskId, Task>,
    next_task: TaskId,
    ready: BTreeSet<TaskId>,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    nodes: Vec<Node>,
    current: NodeId,
    hash: u64,
    polls: u64,
    polls_at_instant: u64,
    panics: Vec<Panic>,
}

impl Node {
    fn new() -> Node {
        Node {
            alive: true,
            paused: false,
            held: BTreeSet::new(),
            doomed: false,
            since: (0, START_NANOS),
            rate: 1_000_000,
        }
    }

    fn local(&self, now: u64) -> u64 {
        let passed = u128::from(now - self.since.0) * u128::from(self.rate) / 1_000_000;
        self.since.1 + u64::try_from(passed).expect("runs last minutes")
    }

    fn true_time(&self, local: u64) -> u64 {
        let ahead = u128::from(local.saturating_sub(self.since.1)) * 1_000_000;
        let ahead = u64::try_from(ahead.div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX);
        self.since.0.saturating_add(ahead)
    }
}

impl State {
    fn fold(&mut self, value: u64) {
        self.hash = (self.hash.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn wake(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let node = &mut self.nodes[task.node];
        if node.paused {
            node.held.insert(id);
        } else {
            self.ready.insert(id);
        }
    }

    fn next_ready(&mut self) -> Option<TaskId> {
        let count = self.ready.len();
        let chosen = match count {
            0 => return None,
            1 => *self.ready.first()?,
            _ => {
                let at = usize::try_from(self.rng.next_u64() % count as u64).unwrap_or(0);
                *self.ready.iter().nth(at)?
            }
        };
        self.ready.remove(&chosen);
        Some(chosen)
    }
}

struct TaskWaker {
    id: TaskId,
    shared: Weak<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.state.lock().wake(self.id);
        }
    }
}

fn current() -> Arc<Shared> {
    CURRENT.with(|current| current.borrow().clone()).expect("inside a simulation")
}

fn with<T>(work: impl FnOnce(&mut State) -> T) -> T {
    CURRENT.with(|current| work(&mut current.borrow().as_ref().expect("inside a simulation").state.lock()))
}

/// A task that panicked.
pub(crate) struct Panic {
    /// Whose task it was.
    pub node: NodeId,
    /// When, in true nanoseconds.
    pub nanos: u64,
    /// What it said, and where.
    pub text: String,
}

/// How a run ended.
pub(crate) struct Ended {
    /// Why the main future would never have ended.
    pub stuck: Option<String>,
    /// Over every choice that was made.
    pub hash: u64,
    /// Polls of tasks.
    pub polls: u64,
    /// True time that passed.
    pub nanos: u64,
    /// Panics of tasks, in order.
    pub panics: Vec<Panic>,
}

/// Runs `main` on the world's node until it ends; `nodes` monitors can be spawned on, 1 to `nodes`.
pub(crate) fn run(seed: u64, nodes: usize, main: impl Future<Output = ()> + Send + 'static) -> Ended {
    let state = State {
        now: 0,
        rng: SmallRng::seed_from_u64(seed),
        tasks: BTreeMap::new(),
        next_task: 1,
        ready: BTreeSet::new(),
        timers: BTreeMap::new(),
        next_timer: 0,
        nodes: (0..=nodes).map(|_| Node::new()).collect(),
        current: WORLD,
        hash: seed,
        polls: 0,
        polls_at_instant: 0,
        panics: Vec::new(),
    };
    let shared = Arc::new(Shared { state: Mutex::new(state) });
    CURRENT.with(|current| *current.borrow_mut() = Some(Arc::clone(&shared)));
    let done = Arc::new(Mutex::new(false));
    let is_done = Arc::clone(&done);
    spawn_on(WORLD, async move {
        main.await;
        *is_done.lock() = true;
    });
    let mut stuck = None;
    while !*done.lock() {
        let next = shared.state.lock().next_ready();
        match next {
            Some(id) => poll(&shared, id),
            None if fire(&shared) => {}
            None => {
                stuck = Some("everything waits for ever".to_owned());
                break;
            }
        }
        let state = shared.state.lock();
        if state.polls_at_instant > POLLS_PER_INSTANT_MAX {
            stuck = Some(format!("tasks go in circles at {} ns", state.now));
            break;
        }
        let main_failed = state.panics.iter().any(|panic| panic.node == WORLD);
        if main_failed && !state.tasks.contains_key(&1) {
            break;
        }
    }
    for node in 0..=nodes {
        kill(node);
    }
    CURRENT.with(|current| current.borrow_mut().take());
    let mut state = shared.state.lock();
    Ended { stuck, hash: state.hash, polls: state.polls, nanos: state.now, panics: std::mem::take(&mut state.panics) }
}

fn poll(shared: &Arc<Shared>, id: TaskId) {
    let (mut work, waker, node) = {
        let mut state = shared.state.lock();
        let now = state.now;
        state.fold(now ^ id.rotate_left(40));
        state.polls += 1;
        state.polls_at_instant += 1;
        let Some(task) = state.tasks.get_mut(&id) else { return };
        let Some(work) = task.work.take() else { return };
        let (waker, node) = (task.waker.clone(), task.node);
        state.current = node;
        (work, waker, node)
    };
    let polled = std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(&waker))));
    let ended = {
        let mut state = shared.state.lock();
        let ended = match polled {
            Ok(Poll::Pending) => match state.tasks.get_mut(&id) {
                Some(task) => {
                    task.work = Some(work);
                    None
                }
                None => Some(work),
            },
            Ok(Poll::Ready(())) => {
                state.tasks.remove(&id);
                Some(work)
            }
            Err(payload) => {
                let (nanos, text) = (state.now, panic_text(payload.as_ref()));
                state.panics.push(Panic { node, nanos, text });
                state.tasks.remove(&id);
                Some(work)
            }
        };
        (ended, state.nodes[node].doomed)
    };
    let (ended, doomed) = ended;
    // Outside the lock: what a task owns may cancel timers and wake others.
    drop(ended);
    shared.state.lock().current = WORLD;
    if doomed {
        kill(node);
    }
}

/// Jumps to the earliest timer and wakes whom it is for.
fn fire(shared: &Arc<Shared>) -> bool {
    let due: Vec<Waker> = {
        let mut state = shared.state.lock();
        let Some((&(deadline, _), _)) = state.timers.first_key_value() else { return false };
        state.now = state.now.max(deadline);
        state.polls_at_instant = 0;
        let now = state.now;
        std::iter::from_fn(|| {
            let first = state.timers.first_entry()?;
            (first.key().0 <= now).then(|| first.remove())
        })
        .collect()
    };
    due.into_iter().for_each(Waker::wake);
    true
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no text".to_owned());
    match LAST_PANIC.with(|at| at.borrow_mut().take()) {
        Some(at) => format!("{text} ({at})"),
        None => text,
    }
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics remember where they were instead of printing; once for the process.
pub(crate) fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string);
        if CURRENT.with(|current| current.try_borrow().map_or(true, |current| current.is_some())) {
            LAST_PANIC.with(|last| *last.borrow_mut() = at);
        } else {
            eprintln!("{info}");
        }
    }));
}

/// Spawns on another node; on a dead one the work is dropped.
pub(crate) fn spawn_on(node: NodeId, work: impl Future<Output = ()> + Send + 'static) {
    let shared = current();
    let mut refused: Option<Work> = None;
    {
        let mut state = shared.state.lock();
        if state.nodes[node].alive {
            let id = state.next_task;
            state.next_task += 1;
            let waker = Waker::from(Arc::new(TaskWaker { id, shared: Arc::downgrade(&shared) }));
            state.tasks.insert(id, Task { node, work: Some(Box::pin(work)), waker });
            state.wake(id);
        } else {
            refused = Some(Box::pin(work));
        }
    }
    drop(refused);
}

/// Ends all tasks of a node, each at what it awaits. Nothing can be spawned on it before [`start`].
pub(crate) fn kill(node: NodeId) {
    let shared = current();
    let dropped: Vec<Task> = {
        let mut state = shared.state.lock();
        state.nodes[node].alive = false;
        state.nodes[node].doomed = false;
        let ids: Vec<TaskId> = state.tasks.iter().filter(|(_, task)| task.node == node).map(|(id, _)| *id).collect();
        let state = &mut *state;
        ids.iter().for_each(|id| {
            state.ready.remove(id);
        });
        state.nodes[node].held.clear();
        ids.into_iter().filter_map(|id| state.tasks.remove(&id)).collect()
    };
    let before = with(|state| std::mem::replace(&mut state.current, node));
    drop(dropped);
    with(|state| state.current = before);
}

/// Lets a node run again, with a clock that gains `rate` − 1,000,000 millionths.
pub(crate) fn start(node: NodeId, rate: u64) {
    with(|state| {
        let now = state.now;
        let node = &mut state.nodes[node];
        node.since = (now, node.local(now));
        (node.rate, node.alive, node.paused, node.doomed) = (rate, true, false, false);
    });
}

/// Kills the node as soon as the poll under way ends.
pub(crate) fn doom(node: NodeId) {
    with(|state| {
        if state.current == node {
            state.nodes[node].doomed = true;
        }
    });
}

/// Whether a node's tasks run or could.
pub(crate) fn is_alive(node: NodeId) -> bool {
    with(|state| state.nodes[node].alive && !state.nodes[node].doomed)
}

/// Stops a node's tasks while time goes on, or lets them go on.
pub(crate) fn pause(node: NodeId, paused: bool) {
    with(|state| {
        state.nodes[node].paused = paused;
        let ids: Vec<TaskId> = if paused {
            state.ready.iter().copied().filter(|id| state.tasks.get(id).is_some_and(|task| task.node == node)).collect()
        } else {
            std::mem::take(&mut state.nodes[node].held).into_iter().collect()
        };
        for id in ids {
            state.ready.remove(&id);
            state.wake(id);
        }
    });
}

/// The node whose task runs.
pub(crate) fn current_node() -> NodeId {
    with(|state| state.current)
}

/// True time since the run began, in nanoseconds.
pub(crate) fn true_nanos() -> u64 {
    with(|state| state.now)
}

/// Time on the clock of the node whose task runs, in nanoseconds.
pub(crate) fn local_nanos() -> u64 {
    with(|state| state.nodes[state.current].local(state.now))
}

/// 64 bits of the run's random sequence.
pub(crate) fn random() -> u64 {
    with(|state| state.rng.next_u64())
}

/// Folds what happened into the run's hash.
pub(crate) fn fold(value: u64) {
    with(|state| state.fold(value));
}

/// The runtime, as the Raft library and the monitor see it.
#[derive(Debug)]
pub struct SimRuntime;

/// A moment on a node's clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimInstant(u64);

impl fmt::Debug for SimInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

impl Add<Duration> for SimInstant {
    type Output = SimInstant;

    fn add(self, duration: Duration) -> SimInstant {
        SimInstant(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = SimInstant;

    fn sub(self, duration: Duration) -> SimInstant {
        SimInstant(self.0.checked_sub(nanos(duration)).expect("a time before the clocks began"))
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for SimInstant {
    type Output = Duration;

    fn sub(self, earlier: SimInstant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl openraft::Instant for SimInstant {
    fn now() -> SimInstant {
        SimInstant(local_nanos())
    }
}

/// Waits for a moment of its node's clock.
#[derive(Debug)]
pub struct SimSleep {
    key: (u64, u64),
}

impl SimSleep {
    fn until(deadline: SimInstant) -> SimSleep {
        with(|state| {
            let at = state.nodes[state.current].true_time(deadline.0);
            state.next_timer += 1;
            SimSleep { key: (at, state.next_timer) }
        })
    }
}

impl Future for SimSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        with(|state| {
            if state.now >= self.key.0 {
                return Poll::Ready(());
            }
            match state.timers.entry(self.key) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(context.waker().clone());
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    if !entry.get().will_wake(context.waker()) {
                        entry.insert(context.waker().clone());
                    }
                }
            }
            Poll::Pending
        })
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        CURRENT.with(|current| {
            if let Some(shared) = current.borrow().as_ref() {
                shared.state.lock().timers.remove(&self.key);
            }
        });
    }
}

/// It took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it took too long")
    }
}

/// A future with a deadline.
pub struct SimTimeout<F> {
    future: Pin<Box<F>>,
    sleep: SimSleep,
}

impl<F: Future> Future for SimTimeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// The task was dropped before its end: its node was killed, or it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task was lost")
    }
}

/// Waits for a task.
pub struct SimJoinHandle<T>(oneshot::Receiver<T>);

impl<T> Future for SimJoinHandle<T> {
    type Output = Result<T, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.map_err(|_| Lost))
    }
}

impl AsyncRuntime for SimRuntime {
    type JoinError = Lost;
    type JoinHandle<T: OptionalSend + 'static> = SimJoinHandle<T>;
    type Sleep = SimSleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = SimTimeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> SimJoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (done, result) = oneshot::channel();
        spawn_on(current_node(), async move {
            let _ = done.send(future.await);
        });
        SimJoinHandle(result)
    }

    fn sleep(duration: Duration) -> SimSleep {
        SimSleep::until(SimInstant(local_nanos()) + duration)
    }

    fn sleep_until(deadline: SimInstant) -> SimSleep {
        SimSleep::until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> SimTimeout<F> {
        SimTimeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: SimInstant, future: F) -> SimTimeout<F> {
        SimTimeout { future: Box::pin(future), sleep: SimSleep::until(deadline) }
    }

    fn is_panic(_: &Lost) -> bool {
        false
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(random())
    }

    fn new(_: usize) -> SimRuntime {
        SimRuntime
    }

    fn block_on<F, T>(&mut self, _: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("a run is started by `run`")
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, std::io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Ok(work())
    }
}
