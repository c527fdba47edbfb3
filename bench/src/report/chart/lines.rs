//! Lines over an axis: one for each series, with marks of its own shape, and whiskers where a point has a spread.

use std::fmt::Write;

use maud::{Markup, html};

use super::axis::{Axis, Ruler, Scale, share_text};
use super::{Drawn, LINE_HEIGHT, Reference, WIDTH, cut, dashes, mark, px, text_width};
use crate::report::palette::Colour;
use crate::results::Spread;

/// Height of the area that lines are in.
const AREA_HEIGHT: f64 = 200.0;
/// Points of a line, at most: more are thinned out, but extremes stay.
const POINTS_MAX: usize = 400;
/// Points of a line that have a mark, at most.
const MARKS_MAX: usize = 16;
/// How far lines with the same abscissae are moved apart, so that their whiskers do not hide each other.
const DODGE: f64 = 5.0;

/// Lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// What they are held against.
    pub references: Vec<Reference>,
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name; may be empty where there is only one.
    pub label: String,
    /// Its colour.
    pub colour: Colour,
    /// Which dashes it has; 0 is none.
    pub dash: usize,
    /// Its points, from left to right.
    pub points: Vec<Point>,
}

/// A point of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Where its whiskers end.
    pub range: Option<(f64, f64)>,
}

impl Point {
    /// Without whiskers.
    pub fn of(x: f64, y: f64) -> Self {
        Point { x, y, range: None }
    }

    /// With whiskers at the extremes.
    pub fn spread(x: f64, spread: Spread) -> Self {
        Point { x, y: spread.median, range: Some((spread.min, spread.max)) }
    }
}

impl Lines {
    pub(super) fn description(&self) -> String {
        let mut text = format!("{} over {}.", self.y.title, self.x.title);
        for series in &self.series {
            let (Some(first), Some(last)) = (series.points.first(), series.points.last()) else { continue };
            let (first_x, last_x) = (self.x_text(first.x), self.x_text(last.x));
            let (first_y, last_y) = (self.y.unit.text(first.y), self.y.unit.text(last.y));
            let label = if series.label.is_empty() { String::new() } else { format!("{}: ", series.label) };
            // Writing to a string cannot fail.
            let _ = write!(text, " {label}{first_y} at {first_x}, {last_y} at {last_x}.");
        }
        text
    }

    pub(super) fn draw(&self) -> Drawn {
        let (legend_height, legend) = self.draw_legend();
        // The title of the upward axis stands above it: nobody has to turn their head.
        let top = legend_height + 22.0;
        let bottom = top + AREA_HEIGHT;
        let y_ruler = self.y.lay(self.y_figures(), bottom, top + 6.0, 34.0);
        let left = y_ruler.ticks.iter().map(|(_, text)| text_width(text)).fold(20.0, f64::max) + 9.0;
        let points = || self.series.iter().flat_map(|series| series.points.iter().map(|point| point.x));
        let x_ruler = self.x.lay_with_own_ticks(points(), left, WIDTH - 22.0, 66.0);
        let marks = html! {
            (legend)
            text class="muted" x="0" y=(px(top - 8.0)) { (cut(&self.y.title, WIDTH)) }
            @for (figure, text) in &y_ruler.ticks {
                @if let Some(y) = y_ruler.px(*figure) {
                    line class="grid" x1=(px(left)) x2=(WIDTH) y1=(px(y)) y2=(px(y)) {}
                    text class="muted" x=(px(left - 7.0)) y=(px(y + 4.4)) text-anchor="end" { (text) }
                }
            }
            @for (figure, text) in &x_ruler.ticks {
                @if let Some(x) = x_ruler.px(*figure) {
                    line class="axis" x1=(px(x)) x2=(px(x)) y1=(px(bottom)) y2=(px(bottom + 4.0)) {}
                    text class="muted" x=(px(x)) y=(px(bottom + LINE_HEIGHT + 2.0)) text-anchor="middle" { (text) }
                }
            }
            line class="axis" x1=(px(left)) x2=(WIDTH) y1=(px(bottom)) y2=(px(bottom)) {}
            @for reference in &self.references { (self.draw_reference(reference, &y_ruler, left)) }
            @for (index, series) in self.series.iter().enumerate() {
                (self.draw_series(index, series, &x_ruler, &y_ruler))
            }
            text class="muted" x=(px((left + WIDTH) / 2.0)) y=(px(bottom + 2.3 * LINE_HEIGHT)) text-anchor="middle" {
                (self.x.title)
            }
        };
        Drawn { height: bottom + 2.8 * LINE_HEIGHT, marks }
    }

    fn y_figures(&self) -> impl Iterator<Item = f64> + '_ {
        let points = self.series.iter().flat_map(|series| &series.points).flat_map(|point| {
            let (min, max) = point.range.unzip();
            [Some(point.y), min, max]
        });
        points.flatten().chain(self.references.iter().map(|reference| reference.value))
    }

    /// The legend's height, and the legend: nothing where one line needs no name.
    fn draw_legend(&self) -> (f64, Markup) {
        if self.series.len() < 2 && self.series.iter().all(|series| series.label.is_empty()) {
            return (0.0, html! {});
        }
        let (mut x, mut y) = (0.0, 12.0);
        let mut places = Vec::new();
        for series in &self.series {
            let label = cut(&series.label, WIDTH - 40.0);
            let width = text_width(&label) + 50.0;
            if x > 0.0 && x + width > WIDTH + 16.0 {
                (x, y) = (0.0, y + LINE_HEIGHT + 3.0);
            }
            places.push((x, y, label));
            x += width;
        }
        let markup = html! {
            @for (index, (series, (x, y, label))) in self.series.iter().zip(&places).enumerate() {
                line class=(format!("line {}", series.colour.class())) stroke-dasharray=[dashes(series.dash)]
                    x1=(px(*x)) x2=(px(x + 28.0)) y1=(px(y - 4.0)) y2=(px(y - 4.0)) {}
                (mark(index, x + 14.0, y - 4.0, series.colour))
                text x=(px(x + 34.0)) y=(px(*y)) { (label) }
            }
        };
        (y + 8.0, markup)
    }

    fn draw_reference(&self, reference: &Reference, ruler: &Ruler, left: f64) -> Markup {
        let Some(y) = ruler.px(reference.value) else { return html! {} };
        html! {
            line class="reference" x1=(px(left)) x2=(WIDTH) y1=(px(y)) y2=(px(y)) {}
            text class="halo" x=(WIDTH) y=(px(y + 14.0)) text-anchor="end" { (reference.label) }
        }
    }

    fn draw_series(&self, index: usize, series: &Series, x_ruler: &Ruler, y_ruler: &Ruler) -> Markup {
        let whiskers = self.series.iter().flat_map(|series| &series.points).any(|point| point.range.is_some());
        let dodge = match whiskers {
            true => (index as f64 - (self.series.len() - 1) as f64 / 2.0) * DODGE,
            false => 0.0,
        };
        let thinned = thin_out(&series.points);
        let places: Vec<(f64, f64, &Point)> = thinned
            .iter()
            .filter_map(|point| Some((x_ruler.px(point.x)? + dodge, y_ruler.px(point.y)?, point)))
            .collect();
        let path: Vec<String> = places.iter().map(|(x, y, _)| format!("{} {}", px(*x), px(*y))).collect();
        let colour = series.colour.class();
        // Lines without a name and with many points are plain: what the marks would tell apart is not there.
        let every = places.len().div_ceil(MARKS_MAX).max(1);
        let has_marks = self.series.len() > 1 || every == 1;
        html! {
            @for (x, _, point) in &places {
                @if let Some((low, high)) = ends(point, y_ruler) {
                    path class=(format!("whisker spread {colour}")) d=(format!(
                        "M{0} {2}h7M{1} {2}V{3}M{0} {3}h7", px(x - 3.5), px(*x), px(low), px(high)
                    )) {}
                }
            }
            @if path.len() > 1 {
                path class=(format!("line {colour}")) stroke-dasharray=[dashes(series.dash)]
                    d=(format!("M{}", path.join("L"))) {}
            }
            @if has_marks {
                @for (x, y, point) in places.iter().skip(every / 2).step_by(every) {
                    g {
                        title { (self.told(series, point)) }
                        (mark(index, *x, *y, series.colour))
                    }
                }
            }
        }
    }

    fn told(&self, series: &Series, point: &Point) -> String {
        let unit = self.y.unit;
        let label = if series.label.is_empty() { String::new() } else { format!("{}, ", series.label) };
        let range = point.range.map(|(min, max)| format!(" ({} – {})", unit.text(min), unit.text(max)));
        format!("{label}{}: {}{}", self.x_text(point.x), unit.text(point.y), range.unwrap_or_default())
    }

    fn x_text(&self, figure: f64) -> String {
        if self.x.scale == Scale::Tail { share_text(figure) } else { self.x.unit.text(figure) }
    }
}

/// Where the point's whiskers end, in pixels.
fn ends(point: &Point, ruler: &Ruler) -> Option<(f64, f64)> {
    point.range.and_then(|(min, max)| Some((ruler.px(min)?, ruler.px(max)?)))
}

/// At most [`POINTS_MAX`] points: of each stretch of the others the lowest and the highest, in their order, so that no peak is lost.
fn thin_out(points: &[Point]) -> Vec<Point> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS_MAX / 2);
    let extremes = points.chunks(stretch).flat_map(|chunk| {
        let indices = 0..chunk.len();
        let lowest = indices.clone().min_by(|a, b| chunk[*a].y.total_cmp(&chunk[*b].y)).unwrap_or(0);
        let highest = indices.max_by(|a, b| chunk[*a].y.total_cmp(&chunk[*b].y)).unwrap_or(0);
        let mut both = vec![lowest.min(highest), lowest.max(highest)];
        both.dedup();
        both.into_iter().map(|index| chunk[index])
    });
    extremes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_out_keeps_the_extremes() {
        let mut points: Vec<Point> = (0..10_000).map(|index| Point::of(f64::from(index), 5.0)).collect();
        points[7_777].y = 99.0;
        points[7_778].y = -99.0;
        let thinned = thin_out(&points);
        assert!(thinned.len() <= POINTS_MAX, "{}", thinned.len());
        assert!(thinned.contains(&points[7_777]) && thinned.contains(&points[7_778]));
        assert!(thinned.windows(2).all(|pair| pair[0].x < pair[1].x));
        assert_eq!(thin_out(&points[..3]), &points[..3]);
    }
}
