//! A failing plan made smaller, as long as it fails in the same way: fewer features, users, devices, flows and shards, and less time.
//!
//! Nothing is drawn anew. Whoever is left out is missed by nobody's draws, so most of what happened without them happens again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::plan::{Feature, Plan};

/// Runs that one plan is worth.
const RUNS_MAX: u32 = 300;
/// How much longer than until its failure a plan may go on while it is made smaller.
const TIME_FACTOR: u32 = 4;

/// What is left of a seed's plan; `None` for all there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    pub features: Option<Vec<Feature>>,
    /// By their places in the plan, like the flows.
    pub devices: Option<Vec<usize>>,
    pub flows: Option<Vec<usize>>,
    pub shards: Option<u16>,
    /// When faults end. The plan stays that of a longer time.
    pub faults_end: Option<Duration>,
}

impl Cut {
    /// Cuts a plan that was drawn with the features of this cut.
    pub fn apply(&self, plan: &mut Plan) {
        if let Some(kept) = &self.devices {
            let devices = plan.devices.iter_mut().enumerate();
            devices.for_each(|(index, device)| device.is_left_out |= !kept.contains(&index));
        }
        if let Some(kept) = &self.flows {
            let mut index = 0..;
            plan.flows.retain(|_| index.next().is_some_and(|index| kept.contains(&index)));
        }
        plan.shards = self.shards.map_or(plan.shards, |shards| shards.clamp(1, plan.shards));
        plan.safety = self.faults_end.map_or(plan.safety, |end| end.min(plan.safety));
    }
}

/// The smallest cut that is found of a plan that fails. `run` runs one, and says when it failed if it did so in the same way.
pub fn shrink(whole: &Plan, failed_at: Duration, mut run: impl FnMut(&Cut) -> Option<Duration>) -> Cut {
    let mut runs_left = RUNS_MAX;
    let mut search = Search {
        cut: Cut::default(),
        failed_at,
        run: &mut |cut| {
            runs_left = runs_left.checked_sub(1)?;
            run(cut)
        },
    };
    // Where there is more time, fewer flows may do.
    search.takes(Cut { faults_end: Some(whole.safety.min(failed_at * TIME_FACTOR)), ..Cut::default() });
    search.features(whole);
    search.users_and_devices(whole);
    search.flows((0..whole.flows.len()).collect());
    for shards in 1..whole.shards {
        let cut = Cut { shards: Some(shards), ..search.cut.clone() };
        if search.takes(cut) {
            break;
        }
    }
    // What is left may need less than all of it did.
    search.features(whole);
    search.end_early(whole.safety);
    search.end_by_halves(whole.safety);
    search.cut
}

struct Search<'a> {
    cut: Cut,
    failed_at: Duration,
    run: &'a mut dyn FnMut(&Cut) -> Option<Duration>,
}

impl Search<'_> {
    /// Goes over to `cut` if it fails as well.
    fn takes(&mut self, cut: Cut) -> bool {
        match (self.run)(&cut) {
            Some(at) => {
                (self.cut, self.failed_at) = (cut, at);
                true
            }
            None => false,
        }
    }

    /// No faults after the failure: nothing before it changes.
    fn end_early(&mut self, safety: Duration) {
        let end = Duration::from_millis(self.failed_at.as_millis() as u64 + 1);
        if end < self.cut.faults_end.unwrap_or(safety) {
            self.takes(Cut { faults_end: Some(end), ..self.cut.clone() });
        }
    }

    /// For what fails in the calm: the least time of faults that leads to it, to some ten milliseconds.
    fn end_by_halves(&mut self, safety: Duration) {
        let mut low = Duration::ZERO;
        let mut high = self.cut.faults_end.unwrap_or(safety);
        while high.saturating_sub(low) > Duration::from_millis(10) {
            let middle = Duration::from_millis(((low + high) / 2).as_millis() as u64);
            if self.takes(Cut { faults_end: Some(middle), ..self.cut.clone() }) {
                high = middle;
            } else {
                low = middle.max(low + Duration::from_millis(1));
            }
        }
    }

    fn features(&mut self, whole: &Plan) {
        let on = Feature::all().filter(|&feature| whole.features.has(feature)).collect();
        let kept = self.cut.features.clone().unwrap_or(on);
        self.without_parts(kept, |cut, kept| cut.features = Some(kept));
    }

    fn users_and_devices(&mut self, whole: &Plan) {
        let of_users = |users: &[usize]| {
            let devices = whole.devices.iter().enumerate();
            devices.filter(|(_, device)| users.contains(&device.user)).map(|(index, _)| index).collect::<Vec<_>>()
        };
        let users: BTreeSet<_> = whole.devices.iter().map(|device| device.user).collect();
        self.without_parts(users.into_iter().collect(), |cut, users| cut.devices = Some(of_users(&users)));
        let devices = self.cut.devices.clone().unwrap_or((0..whole.devices.len()).collect());
        self.without_parts(devices, |cut, devices| cut.devices = Some(devices));
    }

    fn flows(&mut self, flows: Vec<usize>) {
        self.without_parts(flows, |cut, flows| cut.flows = Some(flows));
    }

    /// Leaves out all, halves, quarters and so on to single ones, wherever it still fails without them.
    fn without_parts<T: Clone>(&mut self, mut kept: Vec<T>, set: impl Fn(&mut Cut, Vec<T>)) {
        let mut size = kept.len();
        while size > 0 {
            let mut start = 0;
            while start < kept.len() {
                let mut fewer = kept.clone();
                fewer.drain(start..(start + size).min(kept.len()));
                let mut cut = self.cut.clone();
                set(&mut cut, fewer.clone());
                if self.takes(cut) {
                    kept = fewer;
                } else {
                    start += size;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Features;

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let whole = Plan::new(3, Features::ALL, Duration::from_secs(60));
        let last = whole.devices.len() - 1;
        let fails = |cut: &Cut| {
            let mut plan = whole.clone();
            cut.apply(&mut plan);
            let has = |feature| cut.features.as_ref().is_none_or(|features| features.contains(&feature));
            let needed = whole.features.has(Feature::Jitter) && has(Feature::Jitter);
            let is_there = !plan.devices[last].is_left_out && plan.safety > Duration::from_secs(5);
            (needed && is_there && plan.shards > 1 && !plan.flows.is_empty()).then_some(Duration::from_secs(70))
        };
        assert!(whole.shards > 1 && last > 2 && fails(&Cut::default()).is_some(), "another seed, please");
        let cut = shrink(&whole, Duration::from_secs(70), fails);
        assert_eq!(cut.features, Some(vec![Feature::Jitter]));
        assert_eq!((cut.devices, cut.flows.map(|flows| flows.len())), (Some(vec![last]), Some(1)));
        assert_eq!(cut.shards.unwrap_or(whole.shards), 2);
        let end = cut.faults_end.unwrap_or(whole.safety);
        assert!(end > Duration::from_secs(5) && end < Duration::from_millis(5020), "{end:?}");
    }
}
