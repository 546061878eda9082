//! Front ends: processes that keep tables in the cluster, or serve S3 ([`gateways`]), over the production client core.
//!
//! Their code is production code from the op on one object upwards (`holdfast_client::core`, `holdfast_kvgroup`), written as
//! futures; [`executor`] polls them, [`desk`] is where they and the world meet, [`network`] carries out what the core decides.
//! Each may be killed between any two of its steps, with what it has sent on the way, and paused there for longer than others
//! are patient. It comes back as a new run, with nothing remembered.

mod desk;
mod executor;
mod gateways;
mod network;
mod tables;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::Cause;
use holdfast_types::{ClientId, Epoch, Timestamp};
use holdfast_wire::ClientReply;
use rand::Rng;
use rand::rngs::SmallRng;

use self::desk::{Answer, CallId, Desk, SharedDesk, SimObjects, Who, Wish};
use self::executor::{Executor, ProcessId};
pub(crate) use self::network::addressee;
use self::network::{Client, until};
use crate::faults::FaultKind;
use crate::world::{Event, World};

/// The first client id of front ends; those of the simulator's own clients are far below.
const CLIENT_ID: u64 = 1_000;
/// Pause before the monitors are asked again for the first map.
const CONNECT_REPEAT: Duration = Duration::from_millis(200);
/// How long a process is in haste, in milliseconds, and how long it tries an op then: what is given up mostly happens.
const HASTE_MS: RangeInclusive<u64> = 50..=600;
const HASTY_MS: RangeInclusive<u64> = 3..=50;
/// Rounds of wishes at one moment.
const ROUNDS_MAX: u32 = 100_000;

/// What front ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontWork {
    /// They keep a table.
    Tables,
    /// They are S3 gateways.
    Gateways,
}

/// How many front ends there are, and what strikes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontSettings {
    /// What they do.
    pub work: FrontWork,
    /// Processes.
    pub processes: u32,
    /// Probability, for each op on an object, that its process is killed just before it sends, or just after.
    pub kills: f64,
    /// Probability, for each op, that its process is stopped there for a while.
    pub pauses: f64,
    /// How long an op is tried.
    pub op_timeout: Duration,
    /// Probability, for each op, that its process is in haste for a moment: it gives ops up before most are answered.
    pub haste: f64,
    /// Mean pause between two pieces of work, in milliseconds.
    pub rest_ms: u64,
}

/// What happens to a front end.
#[derive(Debug)]
pub(crate) enum FrontEvent {
    Start { process: ProcessId },
    Resume { who: Who },
    Maps { who: Who },
    Lost { who: Who, call: CallId, sending: u64, cause: Cause },
    Wake { who: Who, call: CallId, number: u64 },
    Deadline { who: Who, call: CallId },
    Passed { who: Who, call: CallId },
    Replied { process: ProcessId, sending: u64, reply: Box<ClientReply> },
}

#[derive(Default)]
struct Process {
    run: u64,
    paused_until: Timestamp,
    hasty_until: Timestamp,
    /// While it runs.
    client: Option<Client>,
}

/// All front ends.
pub(crate) struct Front {
    pub(crate) settings: FrontSettings,
    desk: SharedDesk,
    executor: Executor,
    processes: Vec<Process>,
    sendings: u64,
    /// Whether the table is mostly deleted from, and dropped.
    drops: bool,
}

impl Front {
    pub fn new(settings: FrontSettings, seed: u64) -> Front {
        Front {
            settings,
            desk: Desk::new(seed),
            executor: Executor::default(),
            processes: (0..settings.processes).map(|_| Process::default()).collect(),
            sendings: 0,
            drops: seed.is_multiple_of(4),
        }
    }

    fn client(&mut self, who: Who) -> Option<&mut Client> {
        let process = self.processes.get_mut(who.process)?;
        if process.run == who.run { process.client.as_mut() } else { None }
    }

    fn running(&self, process: ProcessId) -> Option<Who> {
        let found = self.processes.get(process)?;
        found.client.as_ref().map(|_| Who { process, run: found.run })
    }

    fn all_running(&self) -> Vec<Who> {
        (0..self.processes.len()).filter_map(|process| self.running(process)).collect()
    }

    /// Whether all run, and have nothing left to do.
    pub fn is_idle(&self) -> bool {
        self.executor.is_idle() && self.processes.iter().all(|process| process.client.is_some())
    }

    /// What they asked for.
    pub fn operations(&self) -> u64 {
        let desk = self.desk.lock();
        desk.history.events.len() as u64 + desk.shop.operations()
    }

    /// What is not over, for people.
    pub fn explain(&self) -> Vec<String> {
        let named = self.processes.iter().enumerate();
        named
            .map(|(number, process)| match &process.client {
                Some(client) => format!("front end {number}: {}", client.explain()),
                None => format!("front end {number} does not run"),
            })
            .collect()
    }

    fn process_of(event: &FrontEvent) -> Option<ProcessId> {
        match event {
            FrontEvent::Start { .. } | FrontEvent::Resume { .. } => None,
            FrontEvent::Maps { who }
            | FrontEvent::Lost { who, .. }
            | FrontEvent::Wake { who, .. }
            | FrontEvent::Deadline { who, .. }
            | FrontEvent::Passed { who, .. } => Some(who.process),
            FrontEvent::Replied { process, .. } => Some(*process),
        }
    }
}

impl World {
    /// Has all front ends start.
    pub(crate) fn begin_fronts(&mut self) {
        let processes = self.front.as_ref().map_or(0, |front| front.processes.len());
        for process in 0..processes {
            self.schedule(Duration::from_millis(1), Event::Front(FrontEvent::Start { process }));
        }
    }

    /// No more of them is killed or paused; they end what they are at.
    pub(crate) fn heal_fronts(&mut self) {
        let Some(mut front) = self.front.take() else { return };
        front.desk.lock().working = false;
        (front.settings.kills, front.settings.pauses, front.settings.haste) = (0.0, 0.0, 0.0);
        for who in front.all_running() {
            if let Some(process) = front.processes.get_mut(who.process) {
                (process.paused_until, process.hasty_until) = (Timestamp::ZERO, Timestamp::ZERO);
            }
            self.schedule(Duration::from_millis(1), Event::Front(FrontEvent::Resume { who }));
        }
        self.front = Some(front);
    }

    pub(crate) fn front_event(&mut self, event: FrontEvent) {
        let Some(mut front) = self.front.take() else { return };
        let now = self.now;
        front.desk.lock().now = now;
        let stopped = Front::process_of(&event).and_then(|process| front.processes.get(process));
        let rest = stopped.map_or(Duration::ZERO, |process| process.paused_until.since(now));
        if rest.is_zero() {
            self.front_handle(&mut front, event);
            self.front_goes_on(&mut front);
        } else {
            self.schedule(rest, Event::Front(event));
        }
        self.front = Some(front);
    }

    fn front_handle(&mut self, front: &mut Front, event: FrontEvent) {
        match event {
            FrontEvent::Start { process } => self.front_starts(front, process),
            FrontEvent::Resume { who } => {
                if front.client(who).is_some() && front.processes[who.process].paused_until <= self.now {
                    front.executor.pause(who.process, false);
                }
            }
            FrontEvent::Maps { who } => self.front_maps(front, who),
            FrontEvent::Lost { who, call, sending, cause } => self.front_lost(front, who, call, sending, cause),
            FrontEvent::Wake { who, call, number } => self.front_wake(front, who, call, number),
            FrontEvent::Deadline { who, call } => {
                self.front_step(front, who, call, holdfast_client::core::Input::Wake);
            }
            FrontEvent::Passed { who, call } => {
                if front.client(who).is_some() {
                    front.desk.lock().answer(call, Answer::Passed);
                }
            }
            FrontEvent::Replied { process, sending, reply } => self.front_replied(front, process, sending, *reply),
        }
    }

    fn front_starts(&mut self, front: &mut Front, process: ProcessId) {
        let settings = front.settings;
        let Some(found) = front.processes.get_mut(process) else { return };
        found.run += 1;
        let who = Who { process, run: found.run };
        found.client = Some(Client::new(who, ClientId(CLIENT_ID + process as u64)));
        // As the client library does, it waits for its first map.
        self.front_maps(front, who);
        if front.client(who).is_none_or(|client| client.epoch() == Epoch::ZERO) {
            front.processes[process].client = None;
            return self.schedule(CONNECT_REPEAT, Event::Front(FrontEvent::Start { process }));
        }
        let objects = SimObjects { desk: Arc::clone(&front.desk), who };
        let work: executor::Work = match settings.work {
            FrontWork::Tables => Box::pin(tables::process(objects, settings, front.drops)),
            FrontWork::Gateways => Box::pin(gateways::process(objects, settings)),
        };
        front.executor.spawn(process, work);
    }

    /// Lets tasks run and carries out what they wish for, until all of them wait.
    fn front_goes_on(&mut self, front: &mut Front) {
        for _ in 0..ROUNDS_MAX {
            let ran = front.executor.run(&mut self.rng);
            let (wishes, spawned) = {
                let mut desk = front.desk.lock();
                if let Some(violation) = desk.violation.take() {
                    self.violation = Some(violation);
                }
                (std::mem::take(&mut desk.wishes), std::mem::take(&mut desk.spawned))
            };
            match ran {
                Err(violation) => return self.violation = Some(violation),
                Ok(false) if wishes.is_empty() && spawned.is_empty() => return,
                Ok(_) => {}
            }
            for (who, work) in spawned {
                if front.client(who).is_some() {
                    front.executor.spawn(who.process, work);
                }
            }
            for wish in wishes {
                self.front_wish(front, wish);
            }
        }
        self.violation = Some("T0: front ends go in circles".to_owned());
    }

    fn front_wish(&mut self, front: &mut Front, wish: Wish) {
        match wish {
            Wish::GiveUp { who, call } => {
                if let Some(client) = front.client(who) {
                    client.give_up(call);
                }
            }
            Wish::Pause { who, call, length } => {
                if front.client(who).is_some() {
                    let at = self.now + length;
                    self.schedule(until(self.now, at), Event::Front(FrontEvent::Passed { who, call }));
                }
            }
            Wish::Operate { who, call, object, ops, frees_space } => {
                if front.client(who).is_none() {
                    return;
                }
                let struck = |rng: &mut SmallRng, rate: f64| rate > 0.0 && rng.random_bool(rate);
                let named = format!("front end {}", who.process);
                if struck(&mut self.rng, front.settings.kills / 2.0)
                    && self.deals(format!("{named} is killed before it sends"))
                {
                    return self.kill_front(front, who);
                }
                if struck(&mut self.rng, front.settings.haste) && self.deals(format!("{named} is in haste")) {
                    self.hasten_front(front, who);
                }
                self.front_operate(front, who, call, (object, ops, frees_space));
                if struck(&mut self.rng, front.settings.kills / 2.0)
                    && self.deals(format!("{named} is killed when it has sent"))
                {
                    self.kill_front(front, who);
                } else if struck(&mut self.rng, front.settings.pauses) && self.deals(format!("{named} is paused")) {
                    self.pause_front(front, who);
                }
            }
        }
    }

    fn kill_front(&mut self, front: &mut Front, who: Who) {
        self.counts.add(FaultKind::FrontKilled, 1);
        if let Some(process) = front.processes.get_mut(who.process) {
            process.client = None;
            (process.paused_until, process.hasty_until) = (Timestamp::ZERO, Timestamp::ZERO);
        }
        front.executor.kill(who.process);
        let back = Duration::from_millis(self.rng.random_range(20..2_000));
        self.schedule(back, Event::Front(FrontEvent::Start { process: who.process }));
    }

    fn hasten_front(&mut self, front: &mut Front, who: Who) {
        self.counts.add(FaultKind::FrontHasty, 1);
        let length = Duration::from_millis(self.rng.random_range(HASTE_MS));
        if let Some(process) = front.processes.get_mut(who.process) {
            process.hasty_until = self.now + length;
        }
    }

    /// How long an op that begins now is tried.
    fn front_patience(&mut self, front: &Front, who: Who) -> Duration {
        let hasty = front.processes.get(who.process).is_some_and(|process| process.hasty_until > self.now);
        if hasty { Duration::from_millis(self.rng.random_range(HASTY_MS)) } else { front.settings.op_timeout }
    }

    fn pause_front(&mut self, front: &mut Front, who: Who) {
        self.counts.add(FaultKind::FrontPaused, 1);
        // Mostly until another has gone a step further; sometimes for longer than anybody is patient.
        let longest = if self.rng.random_bool(0.8) { 400 } else { 9_000 };
        let length = Duration::from_millis(self.rng.random_range(5..longest));
        if let Some(process) = front.processes.get_mut(who.process) {
            process.paused_until = self.now + length;
        }
        front.executor.pause(who.process, true);
        self.schedule(length, Event::Front(FrontEvent::Resume { who }));
    }
}
