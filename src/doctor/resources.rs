//! The machine's own: its cores, its clock, what the kernel grants.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::machine::Machine;
use super::{Finding, Verdict};
use crate::io::{clock, uring};

/// Locked memory that suffices for the rings of many cores, in bytes.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// Kernels from which the rings of io_uring are not locked memory.
const WITHOUT_MEMLOCK: (u32, u32) = (5, 12);

pub fn examine(machine: &Machine) -> Vec<Finding> {
    let locked = getrlimit(Resource::Memlock).current;
    vec![
        of_uring(),
        memlock(machine, locked),
        governor(machine),
        of_clock(clock::is_synchronized()),
        socket_buffers(machine),
    ]
}

fn of_uring() -> Finding {
    let about = "io_uring";
    match uring::probe() {
        Ok(()) => Finding::fine(about, "this kernel grants it"),
        Err(error) => {
            let told = format!("{error}: cores wait by epoll, which costs a few system calls more");
            Finding::new(
                about,
                Verdict::Dear,
                told,
                "sysctl -w kernel.io_uring_disabled=0; in a container, a seccomp profile that allows it",
            )
        }
    }
}

pub(super) fn memlock(machine: &Machine, limit_bytes: Option<u64>) -> Finding {
    let about = "locked memory";
    let needs_none = machine.read("/proc/sys/kernel/osrelease").and_then(|release| version(&release));
    match limit_bytes {
        Some(limit_bytes)
            if limit_bytes < MEMLOCK_BYTES && needs_none.is_none_or(|kernel| kernel < WITHOUT_MEMLOCK) =>
        {
            let told =
                format!("the limit is {} KiB here: rings of io_uring count as such on this kernel", limit_bytes / 1024);
            Finding::new(about, Verdict::Missing, told, "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited")
        }
        _ => Finding::fine(about, "the limit suffices"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

pub(super) fn governor(machine: &Machine) -> Finding {
    const CPUS: &str = "/sys/devices/system/cpu";
    let about = "CPU governor";
    let is_cpu = |name: &&String| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    let cpus = machine.list(CPUS);
    let governors = cpus.iter().filter(is_cpu).filter_map(|cpu| {
        let governor = machine.read(&format!("{CPUS}/{cpu}/cpufreq/scaling_governor"))?;
        (governor != "performance").then(|| (cpu.clone(), governor))
    });
    match governors.collect::<Vec<_>>().first() {
        Some((cpu, governor)) => {
            let told = format!("{cpu} is governed by {governor:?}: it is slow for the first packets after each pause");
            Finding::new(about, Verdict::Dear, told, "cpupower frequency-set --governor performance")
        }
        None => Finding::fine(about, "cores run at their full rate, or the machine does not say"),
    }
}

pub(super) fn of_clock(is_synchronized: bool) -> Finding {
    let about = "clock";
    if is_synchronized {
        return Finding::fine(about, "it is kept right");
    }
    let told = "nobody keeps it right: certificates begin and end by it, and so do quotas and logs";
    Finding::new(about, Verdict::Dear, told, "timedatectl set-ntp true, or a daemon such as chrony")
}

/// What the gateway asks for by default, in bytes.
const BUFFER_BYTES: u64 = 2 << 20;

fn socket_buffers(machine: &Machine) -> Finding {
    let may_have_any = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    buffers(machine, may_have_any)
}

pub(super) fn buffers(machine: &Machine, may_have_any: bool) -> Finding {
    let about = "socket buffers";
    let least =
        ["rmem_max", "wmem_max"].map(|key| machine.number(&format!("/proc/sys/net/core/{key}")).unwrap_or(u64::MAX));
    if may_have_any || least.iter().all(|bytes| *bytes >= BUFFER_BYTES) {
        return Finding::fine(about, "they are as large as they are asked for");
    }
    let told = format!(
        "no more than {} bytes are granted without CAP_NET_ADMIN: bursts of clients are lost",
        least[0].min(least[1])
    );
    let mend = format!("sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}");
    Finding::new(about, Verdict::Dear, told, mend)
}
