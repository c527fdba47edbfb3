//! Where the sockets or queues of one process stand in a group of the kernel that two processes share for a while.
//!
//! The kernel numbers the sockets of a `SO_REUSEPORT` group, and the queues of a TUN device, from 0 in the order in which they joined. When one
//! leaves, the last one takes its place (`__reuseport_detach_sock`, `__tun_detach`). So where those of the process before stand in front and
//! leave from the back, each that leaves moves the others one place forward, and the last of them to the front.

use serde::{Deserialize, Serialize};
use tollgate_shards::Generation;

/// The members of one process: in a row, which may begin with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Those of the other process in front of them.
    first: u32,
    /// Places by which the row is turned: member 0 stands so far behind the front.
    turned: u32,
    count: u32,
}

impl Members {
    /// `count` members, 1 at least, that joined behind `others`.
    pub fn behind(others: u32, count: u32) -> Self {
        assert!(count > 0, "a group without members");
        Members { first: others, turned: 0, count }
    }

    /// Whether there can be such, in front of all others: what another process says is not believed unseen.
    pub fn can_be_in_front(self) -> bool {
        self.first == 0 && self.turned < self.count
    }

    /// Where they stand when the last of those in front has left.
    ///
    /// # Panics
    ///
    /// If there is none in front.
    pub fn one_left(self) -> Self {
        let first = self.first.checked_sub(1).expect("a member in front");
        Members { first, turned: (self.turned + 1) % self.count, count: self.count }
    }

    /// Where `member` stands, as the kernel counts.
    pub fn place(self, member: u32) -> u32 {
        self.first + (member + self.turned) % self.count
    }

    /// Those of the other process in front of them.
    pub fn first(self) -> u32 {
        self.first
    }

    /// Places by which the row is turned, less than the members are.
    pub fn turned(self) -> u32 {
        self.turned
    }

    /// The number of members.
    pub fn count(self) -> u32 {
        self.count
    }
}

/// The members of the processes that share a group, and who takes what belongs to neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    even: Members,
    odd: Members,
    newest: Generation,
}

impl Group {
    /// A group of `count` members, 1 at least, all of one process.
    pub fn alone(count: usize) -> Self {
        Group::of_one(Members::behind(0, count as u32))
    }

    /// One process, which takes everything, whatever its generation.
    pub fn of_one(members: Members) -> Self {
        Group { even: members, odd: members, newest: Generation::Even }
    }

    /// Two processes: `newest` is the generation of the one that joined last.
    pub fn of_two(newest: Generation, members: Members, others: Members) -> Self {
        match newest {
            Generation::Even => Group { even: members, odd: others, newest },
            Generation::Odd => Group { even: others, odd: members, newest },
        }
    }

    /// The members of a generation.
    pub fn of(self, generation: Generation) -> Members {
        match generation {
            Generation::Even => self.even,
            Generation::Odd => self.odd,
        }
    }

    /// Who takes what belongs to neither.
    pub fn newest(self) -> Members {
        self.of(self.newest)
    }

    /// Whether one process has everything.
    pub fn is_of_one(self) -> bool {
        self.even == self.odd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own way, on a list.
    fn assert_stand_where_the_kernel_has_moved_them(others: u32, count: u32) {
        let mut kernel: Vec<Option<u32>> = vec![None; others as usize];
        kernel.extend((0..count).map(Some));
        let mut members = Members::behind(others, count);
        for left in (0..=others).rev() {
            for member in 0..count {
                let place = members.place(member) as usize;
                assert_eq!(kernel[place], Some(member), "{count} behind {others}, of which {left} are left");
            }
            if left > 0 {
                kernel.swap_remove(left as usize - 1);
                members = members.one_left();
            }
        }
        assert_eq!(members.first(), 0);
    }

    #[test]
    fn members_stand_where_the_kernel_has_moved_them() {
        (0..20)
            .for_each(|others| (1..20).for_each(|count| assert_stand_where_the_kernel_has_moved_them(others, count)));
    }
}
