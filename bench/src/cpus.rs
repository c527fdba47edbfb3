//! Which CPUs this process may use, and which of them somebody asked for.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs by number, as in `0,2-5`. In rising order, none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The numbers.
    pub fn numbers(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("\"{text}\" is no list of CPUs below {}: write it like 0,2-5", CpuSet::MAX_CPU);
        let number = |text: &str| text.parse().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU).ok_or_else(wrong);
        let mut numbers = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => numbers.push(number(part)?),
                Some((first, last)) => {
                    let (first, last): (usize, usize) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(wrong());
                    }
                    numbers.extend(first..=last);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(CpuList(numbers))
    }
}

/// All that this process may use, in rising order.
///
/// # Errors
///
/// When the kernel does not tell, or there is none.
pub fn usable() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    if usable.is_empty() {
        bail!("no CPU may be used");
    }
    Ok(usable)
}

/// `wanted`, the value of `option`, or the first CPU that may be used.
///
/// # Errors
///
/// In one line: it may not be used, and which may.
pub fn one(wanted: Option<usize>, option: &str) -> Result<usize> {
    match wanted {
        None => usable()?.first().copied().context("no CPU may be used"),
        Some(cpu) => require_usable(&[cpu], option).map(|()| cpu),
    }
}

/// Makes sure that all of `wanted`, the value of `option`, may be used.
///
/// # Errors
///
/// In one line: which may not, and which may.
pub fn require_usable(wanted: &[usize], option: &str) -> Result<()> {
    let usable = usable()?;
    if let Some(cpu) = wanted.iter().find(|cpu| !usable.contains(cpu)) {
        bail!("{option} names CPU {cpu}, but this process may use only {}", list(&usable));
    }
    Ok(())
}

/// Keeps the calling thread, and the threads that it starts from now on, on `numbers`.
///
/// # Errors
///
/// When none of them may be used.
pub fn pin(numbers: &[usize]) -> Result<()> {
    let mut cpus = CpuSet::new();
    numbers.iter().for_each(|cpu| cpus.set(*cpu));
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot run on CPU {}", list(numbers)))
}

/// `numbers` for people: `0,2,3`.
pub fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_any_order() {
        let read = |text: &str| text.parse::<CpuList>().map(|list| list.0);
        assert_eq!(read("3"), Ok(vec![3]));
        assert_eq!(read("6,0-2,1"), Ok(vec![0, 1, 2, 6]));
        for wrong in ["", "a", "1,", "2-1", "1-", "-1", "0-4096000", "4096000"] {
            assert!(read(wrong).unwrap_err().ends_with("write it like 0,2-5"), "{wrong}");
        }
    }

    #[test]
    fn a_pinned_thread_passes_its_cpus_on_and_leaves_others_alone() {
        let all = usable().unwrap();
        let first = vec![all[0]];
        std::thread::scope(|scope| {
            let pinned = scope.spawn(|| {
                pin(&first).unwrap();
                std::thread::spawn(usable).join().unwrap().unwrap()
            });
            assert_eq!(pinned.join().unwrap(), first);
        });
        assert_eq!(usable().unwrap(), all);
    }

    #[test]
    fn a_cpu_that_may_not_be_used_is_refused() {
        let first = one(None, "--cpu").unwrap();
        assert_eq!(one(Some(first), "--cpu").unwrap(), first);
        let error = one(Some(CpuSet::MAX_CPU), "--cpu").unwrap_err().to_string();
        assert!(error.starts_with("--cpu names CPU ") && error.contains("may use only"), "{error}");
    }
}
