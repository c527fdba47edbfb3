//! What the pairs of a comparison come to.

use crate::floor::Round;
use crate::results::{Compared, Pair, Spread, Transfer, Work, WorkSummary};

/// The kinds of work of every run, in their order.
pub(super) const WORKS: [Work; 3] = [Work::Up, Work::Down, Work::Both];

/// One summary for each kind of work; `floors` are those measured with the pairs, in their order. `None` of no pair.
pub(super) fn summaries(pairs: &[Pair], floors: &[Round]) -> Option<Vec<WorkSummary>> {
    WORKS.into_iter().enumerate().map(|(index, work)| summary(pairs, floors, index, work)).collect()
}

fn summary(pairs: &[Pair], floors: &[Round], index: usize, work: Work) -> Option<WorkSummary> {
    let compared = |figure: fn(&Transfer) -> f64| {
        let both = |pair: &Pair| Some((figure(pair.ours.get(index)?), figure(pair.peer.get(index)?)));
        Compared::of(&pairs.iter().map(both).collect::<Option<Vec<_>>>()?)
    };
    let to_floor = pairs.iter().zip(floors).filter_map(|(pair, round)| {
        Some(pair.ours.get(index)?.cpu_seconds_per_gigabyte() / floor_of(round.up, round.down, work))
    });
    Some(WorkSummary {
        work,
        cpu_seconds_per_gigabyte: compared(Transfer::cpu_seconds_per_gigabyte)?,
        gigabits_per_second: compared(Transfer::gigabits_per_second)?,
        cpu_share: compared(Transfer::cpu_share)?,
        ours_to_floor: Spread::of(to_floor),
    })
}

/// Ours divided by the peer's CPU per gigabyte of `work`, pair by pair.
pub(super) fn cpu_ratios(pairs: &[Pair], work: Work) -> impl Iterator<Item = f64> + '_ {
    let figure = move |run: &[Transfer]| {
        run.iter().find(|transfer| transfer.work == work).map(Transfer::cpu_seconds_per_gigabyte)
    };
    pairs.iter().filter_map(move |pair| Some(figure(&pair.ours)? / figure(&pair.peer)?))
}

/// What `work` is held against, where the floors of both directions are `up` and `down`: both ways at once, against their mean.
pub(super) fn floor_of(up: f64, down: f64, work: Work) -> f64 {
    match work {
        Work::Up => up,
        Work::Down => down,
        Work::Both => (up + down) / 2.0,
    }
}

/// The kinds of work of a run that delivered a wrong byte, with its offset.
pub(super) fn corrupt_transfers(run: &[Transfer]) -> impl Iterator<Item = (Work, u64)> {
    run.iter().filter_map(|transfer| Some((transfer.work, transfer.corrupt_at_byte?)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn transfer(work: Work, gigabytes: u64, cpu_seconds: f64) -> Transfer {
        let bytes = gigabytes * 1_000_000_000;
        Transfer { work, bytes, seconds: 4.0, gateway_cpu_seconds: cpu_seconds, corrupt_at_byte: None }
    }

    pub(in super::super) fn pair(ours: f64, peer: f64) -> Pair {
        let run = |cpu_seconds| {
            [(Work::Up, 2), (Work::Down, 1), (Work::Both, 4)]
                .map(|(work, gigabytes)| transfer(work, gigabytes, cpu_seconds))
                .to_vec()
        };
        Pair { ours: run(ours), peer: run(peer) }
    }

    #[test]
    fn figures_are_per_gigabyte_and_second() {
        let transfer = transfer(Work::Up, 2, 3.0);
        assert_eq!(transfer.cpu_seconds_per_gigabyte(), 1.5);
        assert_eq!(transfer.gigabits_per_second(), 4.0);
        assert_eq!(transfer.cpu_share(), 0.75);
    }

    #[test]
    fn each_kind_of_work_is_summed_up_by_itself() {
        let summaries = summaries(&[pair(1.0, 2.0), pair(1.0, 4.0)], &[]).unwrap();
        assert_eq!(summaries.iter().map(|summary| summary.work).collect::<Vec<_>>(), WORKS);
        let ours: Vec<f64> = summaries.iter().map(|summary| summary.cpu_seconds_per_gigabyte.ours.median).collect();
        assert_eq!(ours, [0.5, 1.0, 0.25]);
        assert!(summaries.iter().all(|summary| summary.cpu_seconds_per_gigabyte.ratio.median == 0.375));
        assert!(summaries.iter().all(|summary| summary.ours_to_floor.is_none()));
        assert_eq!(super::summaries(&[], &[]), None);
    }

    #[test]
    fn each_pair_is_held_against_its_own_floor_and_both_ways_against_the_mean() {
        // The machine becomes twice as slow: gateway and floor alike.
        let floors = [Round { up: 0.25, down: 0.125 }, Round { up: 0.5, down: 0.25 }];
        let summaries = summaries(&[pair(1.0, 2.0), pair(2.0, 4.0)], &floors).unwrap();
        let same = |factor| Some(Spread { median: factor, min: factor, max: factor });
        let factors: Vec<Option<Spread>> = summaries.iter().map(|summary| summary.ours_to_floor).collect();
        assert_eq!(factors, [same(2.0), same(8.0), same(0.25 / 0.1875)]);
    }

    #[test]
    fn a_corrupt_transfer_is_found() {
        let mut run = pair(1.0, 1.0).ours;
        assert_eq!(corrupt_transfers(&run).count(), 0);
        run[1].corrupt_at_byte = Some(77);
        assert_eq!(corrupt_transfers(&run).collect::<Vec<_>>(), [(Work::Down, 77)]);
    }
}
