//! A device in memory whose crashes and faults are drawn from a seed.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::device::Device;
use crate::error::DeviceError;

/// Writes of a sector are atomic; anything larger can be torn at its borders.
const SECTOR: usize = 512;

/// What is to go wrong. IO is counted from 0: reads, writes and syncs together.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemFaults {
    /// Power is lost at this IO: it and all later ones fail, a write of it may have happened in part.
    pub power_lost_at: Option<u64>,
    /// This IO fails, once.
    pub error_at: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// As reads see it.
    now: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    /// Sectors written since.
    dirty: std::collections::BTreeSet<usize>,
    io_count: u64,
    faults: MemFaults,
    dead: bool,
}

/// For tests and the simulator.
#[derive(Debug)]
pub struct MemDevice {
    state: Mutex<State>,
}

impl MemDevice {
    /// A device of zeros.
    #[must_use]
    pub fn new(bytes: usize) -> MemDevice {
        let state = State { now: vec![0; bytes], synced: vec![0; bytes], ..State::default() };
        MemDevice { state: Mutex::new(state) }
    }

    /// Sets what is to go wrong from here on.
    pub fn set_faults(&self, faults: MemFaults) {
        self.state.lock().faults = faults;
    }

    /// IO so far.
    #[must_use]
    pub fn io_count(&self) -> u64 {
        self.state.lock().io_count
    }

    /// Flips one bit.
    pub fn flip_bit(&self, byte: usize, bit: u8) {
        let mut state = self.state.lock();
        state.now[byte] ^= 1 << (bit % 8);
        state.synced[byte] ^= 1 << (bit % 8);
    }

    /// What is there after power was lost now: each sector written since the last sync is there or is not, as `seed`
    /// says.
    #[must_use]
    pub fn crash(&self, seed: u64) -> MemDevice {
        let state = self.state.lock();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bytes = state.synced.clone();
        // All, none or any subset: the extremes matter and are rare among random subsets.
        let share = match rng.random_range(0..4) {
            0 => 0.0,
            1 => 1.0,
            _ => rng.random_range(0.05..0.95),
        };
        for sector in &state.dirty {
            if rng.random_bool(share) {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(bytes.len());
                bytes[range.clone()].copy_from_slice(&state.now[range]);
            }
        }
        MemDevice { state: Mutex::new(State { now: bytes.clone(), synced: bytes, ..State::default() }) }
    }
}

impl State {
    /// Counts an IO; whether it is to fail.
    fn next_io(&mut self) -> bool {
        let io = self.io_count;
        self.io_count += 1;
        if self.faults.power_lost_at.is_some_and(|at| io >= at) {
            self.dead = true;
        }
        self.dead || self.faults.error_at == Some(io)
    }
}

fn failed(act: &'static str, offset: u64, length: usize) -> DeviceError {
    DeviceError { act, offset, length: length as u64, source: Arc::new(io::Error::other("injected fault")) }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a device in memory is addressed in memory")
}

impl Device for MemDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        let start = index(offset);
        if state.next_io() || start + buffer.len() > state.now.len() {
            return Err(failed("read", offset, buffer.len()));
        }
        buffer.copy_from_slice(&state.now[start..start + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        let was_dead = state.dead;
        let fails = state.next_io();
        let bytes = parts.concat();
        let start = index(offset);
        if was_dead || start + bytes.len() > state.now.len() {
            return Err(failed("write", offset, bytes.len()));
        }
        // A write that fails may still have happened, sector by sector: the crash draws which.
        state.now[start..start + bytes.len()].copy_from_slice(&bytes);
        if !bytes.is_empty() {
            state.dirty.extend(start / SECTOR..=(start + bytes.len() - 1) / SECTOR);
        }
        if fails { Err(failed("write", offset, bytes.len())) } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        if state.next_io() {
            return Err(failed("sync", 0, 0));
        }
        state.synced = state.now.clone();
        state.dirty.clear();
        Ok(())
    }

    fn prepare(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.state.lock().now.len() as u64
    }
}
