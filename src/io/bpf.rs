//! eBPF: arrays that are written through memory, and programs (`linux/bpf.h`).
//!
//! A system call is told how much of each structure it is given, and takes the rest for 0.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::tun_steering::SteeringMap;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// Kernel 5.5 and later.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What an entry of an array takes in memory: values are kept on multiples of it.
const ENTRY_BYTES: usize = 8;

/// An array of 32-bit numbers in the kernel.
#[derive(Debug)]
pub struct BpfMap {
    map: OwnedFd,
    /// `None` where the kernel lends no memory: then each change is a system call, which may need a privilege.
    memory: Option<Memory>,
}

impl BpfMap {
    /// An array of `entries` entries that this module has made.
    pub fn of(map: OwnedFd, entries: u32) -> Self {
        let memory = Memory::of(map.as_fd(), entries as usize).ok();
        BpfMap { map, memory }
    }
}

impl AsFd for BpfMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl SteeringMap for BpfMap {
    fn update(&self, entry: u32, value: u32) -> io::Result<()> {
        if let Some(memory) = &self.memory {
            return memory.set(entry as usize, value);
        }
        let mut attributes = MapElement {
            map_fd: self.map.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const entry) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: key and value are as long as the map was created with, and live through the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
    }
}

/// The kernel's memory of an array.
#[derive(Debug)]
struct Memory {
    first: NonNull<u8>,
    entries: usize,
}

// SAFETY: all threads change what is there by atomic stores only, and it stays until the value is dropped.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn of(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        let (bytes, access) = (entries * ENTRY_BYTES, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let first = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, map, 0) }?;
        let first = NonNull::new(first.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { first, entries })
    }

    fn set(&self, entry: usize, value: u32) -> io::Result<()> {
        if entry >= self.entries {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the entry is within the mapping, which lives as long as this value, and aligned to its size; only the kernel, which reads it as
        // a whole, and such stores touch it.
        let entry = unsafe { AtomicU32::from_ptr(self.first.as_ptr().add(entry * ENTRY_BYTES).cast()) };
        entry.store(value, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference into it.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.entries * ENTRY_BYTES) };
    }
}

#[repr(C)]
struct MapCreation {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries_max: u32,
    flags: u32,
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instructions: u32,
    instructions_pointer: u64,
    license: u64,
}

/// One instruction.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u8,
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// # Safety
///
/// `attributes` must be what `command` reads, and what it points to must live through the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `attributes` up to the size given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>() as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// An array of `entries_max` entries, all 0.
pub(super) fn create_array(entries_max: u32) -> io::Result<OwnedFd> {
    let create = |flags| {
        let mut attributes =
            MapCreation { map_type: BPF_MAP_TYPE_ARRAY, key_bytes: 4, value_bytes: 4, entries_max, flags };
        // SAFETY: the attributes hold no pointers; the result is a descriptor that belongs to nobody else.
        unsafe { bpf(BPF_MAP_CREATE, &mut attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
    };
    create(BPF_F_MMAPABLE)
        .or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { create(0) } else { Err(error) })
}

/// A program for sockets, which need not be one.
pub(super) fn load_socket_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instructions: program.len() as u32,
        instructions_pointer: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
    };
    // SAFETY: instructions and license live through the call; the result is a descriptor that belongs to nobody else.
    unsafe { bpf(BPF_PROG_LOAD, &mut attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}
