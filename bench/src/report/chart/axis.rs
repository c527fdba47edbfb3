//! Axes: from figures to places in a drawing, and where the ticks are.

use crate::report::number::Unit;

/// How figures are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, zero included.
    Linear,
    /// By their logarithm. Figures that are not above zero have no place.
    Log,
    /// Shares from 0 to 1 by the logarithm of what is left: 90 %, 99 % and 99.9 % are as far from each other.
    Tail,
}

/// An axis as a plot wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it shows, with the unit unless ticks carry it.
    pub title: String,
    /// How ticks are written.
    pub unit: Unit,
    /// How figures are spread.
    pub scale: Scale,
}

/// An axis with its bounds, laid over pixels.
#[derive(Debug, Clone)]
pub struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    from_px: f64,
    to_px: f64,
    /// The figures at the ticks, with what is written there.
    pub ticks: Vec<(f64, String)>,
}

/// The figures that a linear axis can reach: beyond, sums would overflow.
const FIGURE_MAX: f64 = 1e300;
/// The furthest tail that is drawn: 1 - 10^-9.
const TAIL_MAX: f64 = 9.0;
/// Ticks on an axis, at most.
const TICKS_MAX: usize = 12;
/// How many figures an axis may have a tick at each, instead of at round ones.
const OWN_TICKS_MAX: usize = 8;

impl Axis {
    /// With ticks that carry their unit, or a title that does.
    pub fn new(title: impl Into<String>, unit: Unit, scale: Scale) -> Self {
        Axis { title: title.into(), unit, scale }
    }

    /// Lays the axis for `figures` from pixel `from_px` to pixel `to_px`, with ticks about `tick_px` apart.
    pub fn lay(&self, figures: impl Iterator<Item = f64>, from_px: f64, to_px: f64, tick_px: f64) -> Ruler {
        let mut places: Vec<f64> = figures.filter_map(|figure| place(self.scale, figure)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let (first, last) = match (places.first(), places.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => (0.0, 1.0),
        };
        let wanted = (((to_px - from_px).abs() / tick_px) as usize).clamp(2, TICKS_MAX);
        let (low, high, at) = match self.scale {
            Scale::Linear => linear(first.min(0.0), last.max(0.0), wanted),
            Scale::Log => logarithmic(first, last, wanted),
            Scale::Tail => tail(last),
        };
        let ticks = at.into_iter().map(|figure| (figure, self.written(figure))).collect();
        Ruler { scale: self.scale, low, high, from_px, to_px, ticks }
    }

    /// Like [`lay`](Self::lay), but with the ticks at the figures themselves where they are few and far enough from each other.
    pub fn lay_with_own_ticks(
        &self,
        figures: impl Iterator<Item = f64> + Clone,
        from_px: f64,
        to_px: f64,
        tick_px: f64,
    ) -> Ruler {
        let mut ruler = self.lay(figures.clone(), from_px, to_px, tick_px);
        let mut own: Vec<f64> = figures.filter(|figure| place(self.scale, *figure).is_some()).collect();
        own.sort_by(f64::total_cmp);
        own.dedup();
        if self.scale == Scale::Log && !own.is_empty() && own.len() <= OWN_TICKS_MAX {
            // The figures are the bounds then: no empty space to the next round one.
            let (first, last) = (own[0].log10(), own[own.len() - 1].log10());
            let margin = if last > first { (last - first) * 0.06 } else { 0.3 };
            (ruler.low, ruler.high) = (first - margin, last + margin);
            let mut pixels = own.iter().filter_map(|figure| ruler.px(*figure));
            let mut before = pixels.next().unwrap_or(from_px);
            let apart = pixels.all(|px| {
                let enough = (px - before).abs() >= tick_px * 0.45;
                before = px;
                enough
            });
            if apart {
                ruler.ticks = own.into_iter().map(|figure| (figure, self.written(figure))).collect();
            } else {
                ruler.ticks.retain(|(figure, _)| {
                    place(self.scale, *figure).is_some_and(|place| (ruler.low..=ruler.high).contains(&place))
                });
            }
        }
        ruler
    }

    fn written(&self, figure: f64) -> String {
        if self.scale == Scale::Tail { share_text(figure) } else { self.unit.tick(figure) }
    }
}

impl Ruler {
    /// Where `figure` is, in pixels; `None` where it has no place.
    pub fn px(&self, figure: f64) -> Option<f64> {
        let place = place(self.scale, figure)?;
        let share = (place - self.low) / (self.high - self.low);
        let px = self.from_px + share.clamp(-0.02, 1.02) * (self.to_px - self.from_px);
        px.is_finite().then_some(px)
    }

    /// Where zero is, or else where the axis begins.
    pub fn base_px(&self) -> f64 {
        self.px(0.0).unwrap_or(self.from_px)
    }
}

/// Where on a scale of its own `figure` is.
fn place(scale: Scale, figure: f64) -> Option<f64> {
    match scale {
        _ if !figure.is_finite() => None,
        Scale::Linear => Some(figure.clamp(-FIGURE_MAX, FIGURE_MAX)),
        Scale::Log => (figure > 0.0).then(|| figure.log10()),
        Scale::Tail => Some(if figure >= 1.0 { TAIL_MAX } else { (-(1.0 - figure.max(0.0)).log10()).min(TAIL_MAX) }),
    }
}

/// Bounds that hold `low` and `high`, and round figures between them.
fn linear(low: f64, high: f64, wanted: usize) -> (f64, f64, Vec<f64>) {
    let high = if high > low { high } else { low + 1.0 };
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let steps = (high / step - first).ceil().clamp(1.0, TICKS_MAX as f64 + 2.0) as usize;
    let ticks: Vec<f64> = (0..=steps).map(|index| (first + index as f64) * step).collect();
    // The axis ends where the figures do, or at the next tick when that is near.
    let end = first * step + steps as f64 * step;
    let reach = high + (high - low) * 0.02;
    let (low, high) = (first * step, if (0.0..step * 0.6).contains(&(end - reach)) { end } else { reach });
    let ticks = ticks.into_iter().filter(|tick| *tick <= high * (1.0 + 1e-9) || *tick == end && end <= high).collect();
    (low, high, ticks)
}

/// Bounds and ticks at 1, 2 and 5 times powers of ten, or only at these when there are many.
fn logarithmic(first: f64, last: f64, wanted: usize) -> (f64, f64, Vec<f64>) {
    let decades = (first.floor() as i32 - 1)..=(last.ceil() as i32 + 1);
    let fine: Vec<f64> =
        decades.clone().flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade))).collect();
    let fine: Vec<f64> = fine.into_iter().filter(|figure| figure.is_finite() && *figure > 0.0).collect();
    // A rounding error must not cost a whole step.
    let low = fine.iter().map(|figure| figure.log10()).rfind(|place| *place <= first + 1e-9).unwrap_or(first);
    let high = fine.iter().map(|figure| figure.log10()).find(|place| *place >= last - 1e-9).unwrap_or(last);
    let (low, high) = if high > low { (low, high) } else { (low - 0.3, high + 0.3) };
    let inside = |figure: &f64| (low - 1e-9..=high + 1e-9).contains(&figure.log10());
    let ticks: Vec<f64> = fine.into_iter().filter(inside).collect();
    if ticks.len() <= wanted + 3 {
        return (low, high, ticks);
    }
    let whole: Vec<f64> =
        decades.map(|decade| 10f64.powi(decade)).filter(|figure| *figure > 0.0).filter(inside).collect();
    let every = whole.len().div_ceil(wanted.max(2)).max(1);
    (low, high, whole.into_iter().step_by(every).collect())
}

/// From zero as far as the figures go. Ticks begin with the median.
fn tail(last: f64) -> (f64, f64, Vec<f64>) {
    let high = last.clamp(1.0, TAIL_MAX);
    let named = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 0.9999999, 0.99999999];
    let ticks = named.into_iter().filter(|share| place(Scale::Tail, *share).is_some_and(|place| place <= high + 1e-6));
    (0.0, high, ticks.collect())
}

/// A share of a distribution, with as many digits as it needs: `99.9 %`.
pub fn share_text(share: f64) -> String {
    let text = format!("{:.6}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(scale: Scale, figures: &[f64]) -> Ruler {
        Axis::new("x", Unit::Plain, scale).lay(figures.iter().copied(), 0.0, 400.0, 70.0)
    }

    fn written(ruler: &Ruler) -> Vec<&str> {
        ruler.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_has_round_ticks() {
        let ruler = lay(Scale::Linear, &[0.31, 0.97]);
        assert_eq!(written(&ruler), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(ruler.px(0.0), Some(0.0));
        assert!(ruler.px(0.97).unwrap() <= 400.0);
    }

    #[test]
    fn figures_below_zero_have_their_place() {
        let ruler = lay(Scale::Linear, &[-0.02, 0.01]);
        assert!(ruler.px(-0.02).unwrap() >= 0.0);
        assert!(ruler.px(-0.02).unwrap() < ruler.base_px() && ruler.base_px() < ruler.px(0.01).unwrap());
    }

    #[test]
    fn a_logarithmic_axis_has_a_tick_at_each_power_of_ten() {
        let ruler = lay(Scale::Log, &[1.0, 10_000.0]);
        assert_eq!(written(&ruler), ["1", "10", "100", "1,000", "10,000"]);
        assert_eq!((ruler.px(0.0), ruler.px(-1.0)), (None, None));
    }

    #[test]
    fn few_figures_have_their_own_ticks() {
        let axis = Axis::new("shards", Unit::Plain, Scale::Log);
        let ruler = axis.lay_with_own_ticks([1.0, 2.0, 4.0, 16.0, 8.0].into_iter(), 0.0, 400.0, 70.0);
        assert_eq!(written(&ruler), ["1", "2", "4", "8", "16"]);
    }

    #[test]
    fn tails_are_as_far_from_each_other_as_they_are_rare() {
        let ruler = lay(Scale::Tail, &[0.0, 0.5, 0.9999]);
        let px = |share| ruler.px(share).unwrap();
        assert!(((px(0.99) - px(0.9)) - (px(0.999) - px(0.99))).abs() < 1e-6);
        assert_eq!(share_text(0.999), "99.9 %");
        assert_eq!(share_text(0.5), "50 %");
    }

    #[test]
    fn no_figures_and_strange_figures_make_an_axis_too() {
        let strange = [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 0.0, -1.0, f64::NAN, f64::INFINITY];
        for scale in [Scale::Linear, Scale::Log, Scale::Tail] {
            for figures in [&[][..], &strange[..], &[0.0], &[5.0], &[f64::MIN_POSITIVE], &[f64::MAX]] {
                let ruler = lay(scale, figures);
                assert!(ruler.ticks.len() <= 2 * TICKS_MAX, "{scale:?} {figures:?}: {} ticks", ruler.ticks.len());
                for figure in figures {
                    assert!(ruler.px(*figure).is_none_or(|px| (-10.0..=410.0).contains(&px)), "{scale:?} {figures:?}");
                }
            }
        }
    }
}
