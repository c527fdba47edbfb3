//! The floor as a table for people.

use std::fmt::{self, Display, Formatter};

use super::crossing::{PACKET_BYTES, PAYLOAD_BYTES};
use crate::results::{Floor, Stage};

/// Bits of a byte, by the billion bytes of a gigabyte and the billion bits of a gigabit.
const GIGABITS_PER_GIGABYTE: f64 = 8.0;

/// Displays `floor`, of `rounds` rounds.
pub(super) struct Table<'a> {
    pub(super) floor: &'a Floor,
    pub(super) rounds: usize,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:34}{:>8}  {:>15}{:>10}   part of", "", "s/GB", "min - max", "cycles/B")?;
        self.floor.stages.iter().try_for_each(|stage| stage_line(f, stage))?;
        let Floor { up_cpu_seconds_per_gigabyte: up, down_cpu_seconds_per_gigabyte: down, .. } = *self.floor;
        for (direction, seconds) in [("up", up), ("down", down)] {
            let gigabits = GIGABITS_PER_GIGABYTE / seconds;
            writeln!(f, "\n{:34}{seconds:>8.3}  = {gigabits:.0} Gb/s at most", format!("floor {direction}, one core"))?;
            let parts: Vec<&str> = parts(self.floor, direction).map(|stage| stage.name.as_str()).collect();
            writeln!(f, "  {}", parts.join(" + "))?;
        }
        if self.floor.stages.iter().all(|stage| stage.cycles_per_byte.is_none()) {
            writeln!(
                f,
                "\nNo cycles: this machine does not count them, or not for this user (kernel.perf_event_paranoid)."
            )?;
        }
        writeln!(
            f,
            "\nCPU seconds for a gigabyte of TCP payload, {PAYLOAD_BYTES} bytes of each inner packet's {PACKET_BYTES}; median of {} rounds.",
            self.rounds
        )?;
        writeln!(
            f,
            "A TUN write is measured with the kernel's forwarding to another TUN device, a UDP send with the way over a veth"
        )?;
        writeln!(f, "pair up to the receiver's socket: the kernel does both in the system call.")
    }
}

fn stage_line(f: &mut Formatter<'_>, stage: &Stage) -> fmt::Result {
    let Stage { name, cpu_seconds_per_gigabyte: seconds, cycles_per_byte, counts_up, counts_down } = stage;
    let extremes = format!("{:.3} - {:.3}", seconds.min, seconds.max);
    let cycles = cycles_per_byte.map_or("-".to_owned(), |cycles| format!("{cycles:.2}"));
    let part = match (counts_up, counts_down) {
        (true, true) => "   up, down",
        (true, false) => "   up",
        (false, true) => "   down",
        (false, false) => "",
    };
    writeln!(f, "{name:34}{:>8.3}  {extremes:>15}{cycles:>10}{part}", seconds.median)
}

/// The stages of the floor in `direction`, `up` or `down`.
fn parts<'a>(floor: &'a Floor, direction: &'a str) -> impl Iterator<Item = &'a Stage> {
    floor.stages.iter().filter(move |stage| if direction == "up" { stage.counts_up } else { stage.counts_down })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Spread;

    #[test]
    fn the_table_shows_every_stage_and_what_each_floor_is_made_of() {
        let stage = |name: &str, median: f64, counts_up, counts_down, cycles_per_byte| Stage {
            name: name.to_owned(),
            cpu_seconds_per_gigabyte: Spread { median, min: median - 0.01, max: median + 0.02 },
            cycles_per_byte,
            counts_up,
            counts_down,
        };
        let floor = Floor {
            stages: vec![
                stage("TUN write", 0.05, true, false, Some(0.125)),
                stage("UDP send", 0.04, false, true, None),
                stage("cipher", 0.15, true, true, None),
                stage("slow", 1.25, false, false, None),
            ],
            up_cpu_seconds_per_gigabyte: 0.2,
            down_cpu_seconds_per_gigabyte: 0.19,
        };
        let expected = "
                                      s/GB        min - max  cycles/B   part of
TUN write                            0.050    0.040 - 0.070      0.12   up
UDP send                             0.040    0.030 - 0.060         -   down
cipher                               0.150    0.140 - 0.170         -   up, down
slow                                 1.250    1.240 - 1.270         -

floor up, one core                   0.200  = 40 Gb/s at most
  TUN write + cipher

floor down, one core                 0.190  = 42 Gb/s at most
  UDP send + cipher
";
        let shown = Table { floor: &floor, rounds: 9 }.to_string();
        assert!(format!("\n{shown}").starts_with(expected), "{shown}");
        assert!(shown.contains("median of 9 rounds"));
    }
}
