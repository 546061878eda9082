//! Who a process is, beyond its number: numbers are used again, start time and boot are not.

use std::fs;
use std::io::{Error, ErrorKind};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process: number, start time, boot. Two processes never have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
    /// The kernel's id of this boot.
    pub boot: String,
}

impl ProcessIdentity {
    /// The identity of the process that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> std::io::Result<ProcessIdentity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let malformed = || Error::new(ErrorKind::InvalidData, "unexpected /proc stat line");
        // Field 22; the name in brackets may hold blanks and brackets, so counting starts after its last bracket.
        let (_, rest) = stat.rsplit_once(')').ok_or_else(malformed)?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next().ok_or_else(malformed)?;
        if state == "Z" {
            return Err(Error::new(ErrorKind::NotFound, "the process has ended"));
        }
        let started_ticks = fields.nth(18).and_then(|field| field.parse().ok()).ok_or_else(malformed)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(ProcessIdentity { pid, started_ticks, boot })
    }

    /// The identity of this process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_self() -> std::io::Result<ProcessIdentity> {
        ProcessIdentity::of(std::process::id())
    }

    /// Whether this very process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        ProcessIdentity::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Sends a signal, after checking that the number still belongs to this process.
    ///
    /// # Errors
    /// `NotFound` when the process has ended; what the kernel says otherwise.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        if !self.is_alive() {
            return Err(Error::new(ErrorKind::NotFound, "the process has ended"));
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "not a process number"))?;
        Ok(kill_process(pid, signal)?)
    }

    /// User and system time spent so far, in seconds; `None` when it has ended.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<f64> {
        if !self.is_alive() {
            return None;
        }
        // schedstat counts nanoseconds of the main thread only; the stat line has the sum over threads in ticks.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        Some((user + system) / 100.0)
    }

    /// Resident memory now and at its highest, in bytes; `None` when it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<(u64, u64)> {
        if !self.is_alive() {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_not_the_same_process() {
        let me = ProcessIdentity::of_self().expect("/proc is there");
        assert!(me.is_alive());
        let earlier = ProcessIdentity { started_ticks: me.started_ticks.wrapping_sub(1), ..me.clone() };
        assert!(!earlier.is_alive());
        assert!(earlier.signal(Signal::CONT).is_err(), "a stranger must not be signalled");
        let before_reboot = ProcessIdentity { boot: "another".to_owned(), ..me };
        assert!(!before_reboot.is_alive());
    }

    #[test]
    fn memory_and_time_are_read_from_the_kernel() {
        let me = ProcessIdentity::of_self().expect("/proc is there");
        let (now, highest) = me.resident_bytes().expect("alive");
        assert!(now > 0 && highest >= now);
        assert!(me.cpu_seconds().expect("alive") >= 0.0);
    }
}
