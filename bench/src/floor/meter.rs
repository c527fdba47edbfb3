//! What a piece of work costs the calling thread: CPU time, and CPU cycles where the machine counts them.

use anyhow::Result;
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};
use rustix::time::{ClockId, clock_gettime};

/// Measures the thread that made it, and no other.
pub(super) struct Meter {
    cycles: Option<Counter>,
}

/// What some work cost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// CPU time of the thread in user and kernel mode, in seconds.
    pub(super) cpu_seconds: f64,
    /// CPU cycles of the thread in both modes; `None` where they are not counted.
    pub(super) cycles: Option<u64>,
}

impl Meter {
    /// For the calling thread.
    pub(super) fn here() -> Self {
        // Most of what the stages do, the kernel does: cycles of user mode alone would be misleading, so that it is both or none. Virtual
        // machines often have no counters, and `kernel.perf_event_paranoid` above 1 hides those of the kernel.
        let counter = Builder::new(Hardware::CPU_CYCLES).include_kernel().build();
        Meter { cycles: counter.and_then(|mut counter| counter.enable().map(|()| counter)).ok() }
    }

    /// Does `work`, and tells what it cost beside what it returned.
    pub(super) fn measure<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        let cycles_before = self.cycles()?;
        let before = cpu_seconds();
        let done = work()?;
        let cpu_seconds = cpu_seconds() - before;
        let cycles = self.cycles()?.zip(cycles_before).map(|(after, before)| after.saturating_sub(before));
        Ok((done, Cost { cpu_seconds, cycles }))
    }

    fn cycles(&mut self) -> Result<Option<u64>> {
        Ok(self.cycles.as_mut().map(Counter::read).transpose()?)
    }
}

/// CPU time of the calling thread so far, in seconds.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_costs_time_and_sleep_does_not() {
        let mut meter = Meter::here();
        let work = || Ok((0..5_000_000u64).fold(0, |sum, number| black_box(sum ^ number)));
        let (_, worked) = meter.measure(work).unwrap();
        let sleep = || {
            thread::sleep(Duration::from_millis(50));
            Ok(())
        };
        let ((), slept) = meter.measure(sleep).unwrap();
        assert!(worked.cpu_seconds > 0.0 && slept.cpu_seconds < 0.05, "{worked:?} {slept:?}");
        assert_eq!(worked.cycles.is_some(), meter.cycles.is_some());
        assert!(worked.cycles.is_none_or(|cycles| cycles > 5_000_000));
    }
}
