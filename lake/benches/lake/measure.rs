//! What benchmarks measure processes by, and what they make of it. Those of `deploy/server` use it, too.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Whether every goal was met.
pub(crate) struct Report {
    pub(crate) met: bool,
}

impl Report {
    /// A figure that is to be `limit` at most.
    pub(crate) fn at_most(&mut self, name: &str, value: f64, limit: f64, unit: &str) {
        self.judge(name, value, value <= limit, &format!("<= {limit:.2}"), unit);
    }

    /// A figure that is to be `limit` at least.
    pub(crate) fn at_least(&mut self, name: &str, value: f64, limit: f64, unit: &str) {
        self.judge(name, value, value >= limit, &format!(">= {limit:.2}"), unit);
    }

    fn judge(&mut self, name: &str, value: f64, is_met: bool, goal: &str, unit: &str) {
        let verdict = if is_met { "ok" } else { "MISSED" };
        println!("{name:<66} {value:>9.3} {unit:<3} goal {goal:>9}  {verdict}");
        self.met &= is_met;
    }
}

/// The benchmarks that the command line names; all of them where it names none.
pub(crate) fn is_wanted(name: &str) -> bool {
    let mut wanted = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    wanted.peek().is_none() || wanted.any(|one| one == name)
}

/// The CPU time of this process so far, in seconds.
pub(crate) fn own_cpu() -> f64 {
    cpu(std::process::id())
}

/// The CPU time of this thread so far, in seconds.
pub(crate) fn thread_cpu() -> f64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// The CPU time of a process so far, in seconds.
pub(crate) fn cpu(process: u32) -> f64 {
    read(clock_getcpuclockid(Pid::from_raw(process.cast_signed())).unwrap())
}

fn read(clock: ClockId) -> f64 {
    Duration::from(clock_gettime(clock).unwrap()).as_secs_f64()
}

/// A line of a process's memory, such as `VmRSS:`, in bytes.
pub(crate) fn memory(process: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
