//! While it forwards, the engine takes no lock for a packet and makes no system call: instruction by instruction, over a real shard and a real
//! client, with quinn-proto, rustls and aws-lc.
//!
//! A lock that nobody else wants costs no system call, only an atomic exchange. So another process runs a round of a benchmark in single steps, and
//! the instructions that lock the bus are counted. What shares memory by counting references (`Bytes`, `Arc`) has some; a mutex would add a
//! compare-and-exchange for each packet. Small packets, because encryption of large ones takes most of the steps.
#![cfg(target_arch = "x86_64")]

use std::collections::HashMap;
use std::env;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use tollgate_bench::engine::fixture;

/// Names the benchmark to the process that is traced.
const CASE: &str = "TOLLGATE_TRACED_CASE";
/// Rounds until every queue and buffer has grown as long as it gets.
const WARM_UP_ROUNDS: usize = 64;
/// One process is followed at a time: whatever child stops is the one.
static TURN: Mutex<()> = Mutex::new(());
const BEGIN: Signal = Signal::SIGUSR1;
const END: Signal = Signal::SIGUSR2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    SystemCall,
    /// As a mutex is taken.
    CompareExchange,
    /// As references are counted, and a mutex is given back.
    OtherLocked,
}

/// The instructions of one stretch.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    instructions: u64,
    system_calls: u64,
    compare_exchanges: u64,
    other_locked: u64,
}

#[test]
fn packets_from_a_client_take_no_lock() {
    assert_free_of_locks("up_100");
}

#[test]
fn packets_to_a_client_take_no_lock() {
    assert_free_of_locks("down_100");
}

#[test]
fn a_lock_for_each_packet_would_be_counted() {
    let (counts, packets) = trace("mutex");
    assert_eq!(counts.compare_exchanges, packets, "{counts:?}");
}

fn assert_free_of_locks(case: &str) {
    let (counts, packets) = trace(case);
    println!("{case}: {counts:?} for {packets} packets");
    assert!(counts.instructions > packets * 100, "{counts:?}");
    assert_eq!(counts.system_calls, 0, "{counts:?}");
    // The allocator locks its arena for what quinn-proto allocates for some packets together (`allocations.rs`); no packet has a lock of its own.
    assert!(counts.compare_exchanges * 2 <= packets, "{counts:?} for {packets} packets");
    assert!(counts.other_locked <= packets * 8, "{counts:?} for {packets} packets");
}

/// What one round of a benchmark executes, and its packets.
fn trace(case: &str) -> (Counts, u64) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Both run by turns: on one CPU, which the child inherits, a turn costs the least.
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu());
    sched_setaffinity(None, &cpu).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "the_process_that_is_traced", "--ignored", "--nocapture"]).env(CASE, case);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stretches = follow();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let _ = child.wait();
    let packets = said.split_once("packets: ").unwrap_or_else(|| panic!("{said}")).1;
    let packets = packets.split_whitespace().next().unwrap().parse().unwrap();
    // The first one is empty: what the marks themselves cost.
    let (empty, counted) = stretches.split_first().unwrap();
    let sum = |of: fn(&Counts) -> u64| counted.iter().map(|stretch| of(stretch) - of(empty)).sum();
    let counts = Counts {
        instructions: sum(|it| it.instructions),
        system_calls: sum(|it| it.system_calls),
        compare_exchanges: sum(|it| it.compare_exchanges),
        other_locked: sum(|it| it.other_locked),
    };
    (counts, packets)
}

/// Follows the thread that asks to be traced, by single steps between its marks, until it is gone.
fn follow() -> Vec<Counts> {
    let mut stretches: Vec<Counts> = Vec::new();
    let mut kinds = HashMap::new();
    let mut is_counting = false;
    loop {
        let (thread, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Stopped(thread, signal) => (thread, signal),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return stretches,
            _ => continue,
        };
        match signal {
            BEGIN => {
                stretches.push(Counts::default());
                is_counting = true;
            }
            END => is_counting = false,
            Signal::SIGTRAP if is_counting => {
                let at = ptrace::getregs(thread).unwrap().rip;
                let kind = *kinds.entry(at).or_insert_with(|| {
                    let word = ptrace::read(thread, at as ptrace::AddressType).unwrap();
                    kind_of(&word.to_le_bytes())
                });
                stretches.last_mut().unwrap().count(kind);
            }
            _ => {}
        }
        if is_counting {
            ptrace::step(thread, None).unwrap();
        } else {
            ptrace::cont(thread, None).unwrap();
        }
    }
}

impl Counts {
    fn count(&mut self, kind: Kind) {
        self.instructions += 1;
        match kind {
            Kind::Plain => {}
            Kind::SystemCall => self.system_calls += 1,
            Kind::CompareExchange => self.compare_exchanges += 1,
            Kind::OtherLocked => self.other_locked += 1,
        }
    }
}

/// What an instruction of x86-64 that begins with these bytes is (Intel SDM, volume 2, chapter 2).
fn kind_of(bytes: &[u8]) -> Kind {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let prefixes = bytes.iter().take_while(|byte| is_prefix(byte)).count();
    let is_locked = bytes[..prefixes].contains(&0xf0);
    let opcode = match &bytes[prefixes..] {
        [0x40..=0x4f, rest @ ..] => rest,
        rest => rest,
    };
    match opcode {
        [0x0f, 0x05, ..] => Kind::SystemCall,
        [0x0f, 0xb0 | 0xb1 | 0xc7, ..] if is_locked => Kind::CompareExchange,
        // XCHG with memory locks without saying so.
        [0x86 | 0x87, operands, ..] if *operands < 0xc0 => Kind::OtherLocked,
        _ if is_locked => Kind::OtherLocked,
        _ => Kind::Plain,
    }
}

/// Runs the benchmark of that name, and marks what is measured.
#[test]
#[ignore = "needs a process that traces it: the other tests start it"]
fn the_process_that_is_traced() {
    let Ok(case) = env::var(CASE) else { return };
    let mut round: fixture::Fixture = match fixture::find(&case) {
        Some(case) => (case.make)().unwrap(),
        None => {
            let mutex = Mutex::new(0);
            Box::new(move |measure: fixture::Measure<'_>| {
                measure(&mut || (0..50).for_each(|_| *std::hint::black_box(&mutex).lock().unwrap() += 1));
                Ok(50)
            })
        }
    };
    for _ in 0..WARM_UP_ROUNDS {
        round(&mut |work| work()).unwrap();
    }
    ptrace::traceme().unwrap();
    let mut marked = |work: &mut dyn FnMut()| {
        raise(BEGIN).unwrap();
        work();
        raise(END).unwrap();
    };
    marked(&mut || {});
    let packets = round(&mut marked).unwrap();
    println!("packets: {packets}");
    std::process::exit(0);
}
