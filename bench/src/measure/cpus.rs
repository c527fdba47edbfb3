//! Which CPUs this process may use, and which of them somebody asked for.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// All CPUs that this process could use when it was first asked, before it was kept on some of them, in rising order.
pub fn usable() -> Result<Vec<usize>> {
    static USABLE: OnceLock<Vec<usize>> = OnceLock::new();
    if USABLE.get().is_none() {
        let allowed = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
        let _ = USABLE.set((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect());
    }
    Ok(USABLE.get().cloned().unwrap_or_default())
}

/// The value of the option `whose`, if all of it may be used.
pub fn require_usable(wanted: &[usize], whose: &str) -> Result<()> {
    let usable = usable()?;
    let refused = wanted.iter().find(|cpu| !usable.contains(cpu));
    match refused {
        Some(cpu) => bail!("{whose} names CPU {cpu}, but this process may use only {}", list(&usable)),
        None => Ok(()),
    }
}

/// The CPUs of a gateway and of everything else: `gateway` or the first, and `others` or all that the gateway leaves.
///
/// Alone on its CPU a gateway's time is its own. With the load on it as well, on 2 CPUs, its time per gigabyte varied by 3 to 9 % from pair
/// to pair instead of 0 to 3 %.
pub fn split(gateway: &[usize], others: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
    let usable = usable()?;
    ensure!(!usable.is_empty(), "no CPU may be used");
    let gateway = if gateway.is_empty() { vec![usable[0]] } else { gateway.to_vec() };
    let mut rest: Vec<usize> = usable.iter().copied().filter(|cpu| !gateway.contains(cpu)).collect();
    if rest.is_empty() {
        rest = usable;
    }
    Ok((gateway, if others.is_empty() { rest } else { others.to_vec() }))
}

/// Keeps the calling thread, and the threads that it starts from now on, on `numbers`; anywhere if there are none.
pub fn pin(numbers: &[usize]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    let mut cpus = CpuSet::new();
    for cpu in numbers {
        ensure!(*cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
        cpus.set(*cpu);
    }
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot run on CPU {}", list(numbers)))
}

/// `0,2,3`.
pub fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_has_a_cpu_of_its_own_where_there_are_two() {
        let usable = usable().unwrap();
        let (gateway, others) = split(&[], &[]).unwrap();
        assert_eq!(gateway, usable[..1]);
        assert_eq!(others, if usable.len() > 1 { &usable[1..] } else { &usable[..] });
        assert_eq!(split(&usable, &[]).unwrap(), (usable.clone(), usable));
        let error = require_usable(&[CpuSet::MAX_CPU], "--cpu").unwrap_err().to_string();
        assert!(error.starts_with("--cpu names CPU ") && error.contains("may use only"), "{error}");
    }
}
