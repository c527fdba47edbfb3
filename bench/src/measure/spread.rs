//! Median and extremes of figures, and the uncertainty that every result names.

use serde::Serialize;

/// Of fewer figures there is no interval.
pub const FIGURES_MIN: usize = 6;

/// Median and extremes of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Between which bounds the median of all figures lies, of which these were drawn, with a probability of 95 % at least. From the order of
    /// the figures alone, whatever their distribution. `None` of fewer than [`FIGURES_MIN`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_95: Option<[f64; 2]>,
}

impl Spread {
    /// Of at least one figure; `None` of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Spread { median, min, max, interval_95: interval_95(&sorted) })
    }

    /// `median (min - max)`, or the one figure that all are.
    pub fn shown(&self, figure: impl Fn(f64) -> String) -> String {
        let [median, min, max] = [self.median, self.min, self.max].map(figure);
        if min == max { median } else { format!("{median} ({min} - {max})") }
    }
}

fn interval_95(sorted: &[f64]) -> Option<[f64; 2]> {
    let count = sorted.len();
    // Each figure lies below the median with probability 1/2, so how many do is binomial: the outermost that may be left out on each side are
    // those whose probability together is at most 2.5 %.
    let (mut left_out, mut probability, mut tail) = (0, 0.5_f64.powi(count as i32), 0.0);
    while tail + probability <= 0.025 {
        tail += probability;
        probability *= (count - left_out) as f64 / (left_out + 1) as f64;
        left_out += 1;
    }
    let outermost = left_out.checked_sub(1)?;
    Some([sorted[outermost], sorted[count - 1 - outermost]])
}

/// The slope of the line through `points` with the least squares; `None` when they do not differ in x.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let number = points.len() as f64;
    let mean = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / number;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        let of = |figures: &[f64]| Spread::of(figures.iter().copied()).map(|it| [it.median, it.min, it.max]);
        assert_eq!(of(&[5.0, 1.0, 2.0]), Some([2.0, 1.0, 5.0]));
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]), Some([3.0, 1.0, 9.0]));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_interval_leaves_out_what_the_binomial_distribution_allows() {
        let of = |count: u32| Spread::of((1..=count).map(f64::from)).and_then(|found| found.interval_95);
        // Tables of the sign test's interval (for one: Conover, Practical Nonparametric Statistics, table A3).
        assert_eq!((of(1), of(5), of(6)), (None, None, Some([1.0, 6.0])));
        assert_eq!(
            (of(8), of(9), of(15), of(25)),
            (Some([1.0, 8.0]), Some([2.0, 8.0]), Some([4.0, 12.0]), Some([8.0, 18.0]))
        );
    }

    #[test]
    fn the_slope_is_that_of_the_line_and_of_the_cloud() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some(2.0));
        assert_eq!(slope(&[(0.0, 0.0), (0.0, 2.0), (2.0, 4.0), (2.0, 6.0)]), Some(2.0));
        assert_eq!((slope(&[]), slope(&[(1.0, 1.0)]), slope(&[(1.0, 1.0), (1.0, 2.0)])), (None, None, None));
    }
}
