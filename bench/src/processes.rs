//! What the kernel charged to a set of processes: `/proc/PID/stat`, `status` and `io`, and the whole machine's `/proc/stat`.

use std::fs;

use anyhow::Context;

/// The kernel counts CPU time for user space in hundredths of a second (`USER_HZ`; proc(5), `_SC_CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Sums of some processes at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Bytes caused to be written to disks.
    pub disk_bytes_written: u64,
    /// Voluntary and involuntary.
    pub context_switches: u64,
}

impl Usage {
    /// Of these processes now.
    ///
    /// # Errors
    /// When one of them has ended: figures without it would flatter.
    pub fn of(pids: &[u32]) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for pid in pids {
            let one = of_process(*pid).with_context(|| format!("process {pid} cannot be read"))?;
            sum.cpu_seconds += one.cpu_seconds;
            sum.disk_bytes_written += one.disk_bytes_written;
            sum.context_switches += one.context_switches;
        }
        Ok(sum)
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu_seconds: (self.cpu_seconds - before.cpu_seconds).max(0.0),
            disk_bytes_written: self.disk_bytes_written.saturating_sub(before.disk_bytes_written),
            context_switches: self.context_switches.saturating_sub(before.context_switches),
        }
    }
}

fn of_process(pid: u32) -> anyhow::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (user, system) = cpu_ticks(&stat).context("unexpected stat line")?;
    // The files below are of root or the owner alone; without them only these columns stay empty.
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Ok(Usage {
        cpu_seconds: (user + system) as f64 / TICKS_PER_SECOND,
        disk_bytes_written: field(&io, "write_bytes:").unwrap_or(0),
        context_switches: context_switches(pid),
    })
}

/// utime and stime, fields 14 and 15. The name in brackets may hold anything, so counting starts after its last bracket.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Of all threads that live: the line of the process is of its main thread only.
fn context_switches(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let of = |name| field(&status, name).unwrap_or(0);
        of("voluntary_ctxt_switches:") + of("nonvoluntary_ctxt_switches:")
    };
    threads.flatten().map(of_thread).sum()
}

/// Most memory that was ever resident (`VmHWM`), in bytes; 0 when the process cannot be read.
#[must_use]
pub fn resident_bytes_max(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "VmHWM:").unwrap_or(0) * 1024
}

/// Busy time of all processors, and of it what the hypervisor took, in seconds since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Machine {
    /// Not idle and not waiting for a disk.
    pub busy_seconds: f64,
    /// Taken by other guests.
    pub stolen_seconds: f64,
}

impl Machine {
    /// Now; zeros when the kernel does not say.
    #[must_use]
    pub fn now() -> Machine {
        Machine::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal.
    fn parse(stat: &str) -> Machine {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        let busy = ticks.iter().sum::<u64>() - at(3) - at(4);
        Machine { busy_seconds: busy as f64 / TICKS_PER_SECOND, stolen_seconds: at(7) as f64 / TICKS_PER_SECOND }
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Machine) -> Machine {
        Machine {
            busy_seconds: self.busy_seconds - before.busy_seconds,
            stolen_seconds: self.stolen_seconds - before.stolen_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 1 1 0 -1 4194304 100 0 0 0 321 45 0 0 20 0 9 0 1000 1 1";
        assert_eq!(cpu_ticks(stat), Some((321, 45)));
        assert_eq!(cpu_ticks("42 (cut"), None);
    }

    #[test]
    fn the_machine_is_busy_when_neither_idle_nor_waiting() {
        let machine = Machine::parse("cpu  100 0 200 5000 700 0 50 30 0 0\ncpu0 1 1 1 1\n");
        assert_eq!((machine.busy_seconds, machine.stolen_seconds), (3.8, 0.3));
        assert_eq!(Machine::parse(""), Machine::default());
    }

    #[test]
    fn work_of_this_process_is_charged_to_it() {
        let me = [std::process::id()];
        let before = Usage::of(&me).expect("this process lives");
        let mut x = 1u64;
        // Until the kernel's clock of hundredths has moved.
        while Usage::of(&me).expect("this process lives").since(before).cpu_seconds < 0.02 {
            x = std::hint::black_box((0..100_000).fold(x, |x, step| x.wrapping_mul(31).wrapping_add(step)));
        }
        assert!(resident_bytes_max(me[0]) > 0);
    }

    #[test]
    fn a_process_that_has_ended_is_an_error() {
        assert!(Usage::of(&[u32::MAX]).is_err());
    }
}
