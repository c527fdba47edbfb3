//! Bars that lie: a name before each, its figure behind it, whiskers for the spread. Names may be long, and no legend is needed.

use maud::{Markup, html};

use super::axis::{Axis, Ruler};
use super::{Drawn, LINE_HEIGHT, Reference, WIDTH, cut, px, text_width, wrap};
use crate::report::number::Unit;
use crate::report::palette::Colour;
use crate::results::Spread;

/// Room for names, at most.
const NAME_WIDTH_MAX: f64 = 170.0;
const BAR_HEIGHT: f64 = 13.0;
const ROW_HEIGHT: f64 = 23.0;
const HEADING_HEIGHT: f64 = 22.0;
const GROUP_GAP: f64 = 12.0;
/// How much wider bold text is.
const BOLD: f64 = 1.12;

/// Groups of bars over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// The axis; its unit also writes the figures behind the bars.
    pub axis: Axis,
    /// The groups, downwards.
    pub groups: Vec<BarGroup>,
}

/// Bars that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct BarGroup {
    /// What they have in common; may be empty.
    pub title: String,
    /// The bars, downwards.
    pub bars: Vec<Bar>,
    /// What they are held against.
    pub reference: Option<Reference>,
}

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name.
    pub label: String,
    /// Its colour.
    pub colour: Colour,
    /// Whether only its outline is drawn.
    pub is_hollow: bool,
    /// Its length; `None` for what has no figure.
    pub value: Option<f64>,
    /// Where its whiskers end.
    pub range: Option<(f64, f64)>,
    /// What stands behind it instead of the figure.
    pub text: Option<String>,
}

impl Bar {
    /// Without whiskers.
    pub fn of(label: impl Into<String>, colour: Colour, value: f64) -> Self {
        Bar { label: label.into(), colour, is_hollow: false, value: Some(value), range: None, text: None }
    }

    /// With whiskers at the extremes.
    pub fn spread(label: impl Into<String>, colour: Colour, spread: Spread) -> Self {
        Bar { range: Some((spread.min, spread.max)), ..Bar::of(label, colour, spread.median) }
    }

    fn written(&self, unit: Unit) -> String {
        match (&self.text, self.value) {
            (Some(text), _) => text.clone(),
            (None, Some(value)) => unit.text(value),
            (None, None) => "–".to_owned(),
        }
    }

    fn told(&self, unit: Unit) -> String {
        let range = self.range.map(|(min, max)| format!(" ({} – {})", unit.text(min), unit.text(max)));
        format!("{}: {}{}", self.label, self.written(unit), range.unwrap_or_default())
    }
}

impl Bars {
    pub(super) fn description(&self) -> String {
        let groups = self.groups.iter().map(|group| {
            let bars: Vec<String> = group.bars.iter().map(|bar| bar.told(self.axis.unit)).collect();
            let title = if group.title.is_empty() { String::new() } else { format!("{}: ", group.title) };
            let reference = group.reference.as_ref();
            let reference = reference.map(|it| format!("; {} at {}", it.label, self.axis.unit.text(it.value)));
            format!("{title}{}{}.", bars.join("; "), reference.unwrap_or_default())
        });
        format!("{}. {}", self.axis.title, groups.collect::<Vec<_>>().join(" "))
    }

    pub(super) fn draw(&self) -> Drawn {
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let name_width = bars().map(|bar| text_width(&bar.label)).fold(24.0, f64::max).min(NAME_WIDTH_MAX);
        let figure_width = bars().map(|bar| text_width(&bar.written(self.axis.unit))).fold(24.0, f64::max).min(150.0);
        let (left, right) = (name_width + 9.0, WIDTH - figure_width - 10.0);
        let ruler = self.axis.lay(self.figures(), left, right, 58.0);
        let mut bottom = 0.0;
        let mut drawn = Vec::new();
        for group in &self.groups {
            let top = if bottom > 0.0 { bottom + GROUP_GAP } else { 0.0 };
            let (height, markup) = self.draw_group(group, &ruler, top, left);
            bottom = top + height;
            drawn.push(markup);
        }
        let marks = html! {
            @for (figure, text) in &ruler.ticks {
                @if let Some(x) = ruler.px(*figure) {
                    text class="muted" x=(px(x)) y=(px(bottom + LINE_HEIGHT)) text-anchor="middle" { (text) }
                }
            }
            @for markup in drawn { (markup) }
            text class="muted" x=(px(axis_title_px(&self.axis.title, left, right))) y=(px(bottom + 2.2 * LINE_HEIGHT))
                text-anchor="middle" { (self.axis.title) }
        };
        Drawn { height: bottom + 2.7 * LINE_HEIGHT, marks }
    }

    fn figures(&self) -> impl Iterator<Item = f64> + '_ {
        self.groups.iter().flat_map(|group| {
            let bars = group.bars.iter().flat_map(|bar| {
                let (min, max) = bar.range.unzip();
                [bar.value, min, max]
            });
            bars.chain([group.reference.as_ref().map(|reference| reference.value)]).flatten()
        })
    }

    /// The height that the group takes from `top`, and the group.
    fn draw_group(&self, group: &BarGroup, ruler: &Ruler, top: f64, left: f64) -> (f64, Markup) {
        let has_heading = !group.title.is_empty() || group.reference.is_some();
        let first = top + if has_heading { HEADING_HEIGHT } else { 2.0 };
        let mut y = first;
        let mut rows = Vec::new();
        for bar in &group.bars {
            let lines = wrap(&bar.label, left - 9.0, 2);
            let height = ROW_HEIGHT + (lines.len() - 1) as f64 * (LINE_HEIGHT - 3.0);
            rows.push((y + height / 2.0, lines, bar));
            y += height;
        }
        let bottom = y + 2.0;
        let upright =
            |class, x: f64| html! { line class=(class) x1=(px(x)) x2=(px(x)) y1=(px(first)) y2=(px(bottom)) {} };
        let markup = html! {
            text class="strong" x="0" y=(px(top + 14.0)) { (cut(&group.title, WIDTH / BOLD)) }
            @for x in ruler.ticks.iter().filter_map(|(figure, _)| ruler.px(*figure)) { (upright("grid", x)) }
            @for (middle, _, bar) in &rows { (self.draw_bar(bar, ruler, *middle)) }
            (upright("axis", ruler.base_px()))
            @if let Some(reference) = &group.reference {
                (draw_reference(reference, group, ruler, top, bottom))
            }
            // Text over all lines.
            @for (middle, lines, bar) in &rows { (self.draw_text(bar, lines, ruler, *middle, left)) }
        };
        (bottom - top, markup)
    }

    fn draw_bar(&self, bar: &Bar, ruler: &Ruler, middle: f64) -> Markup {
        let base = ruler.base_px();
        let shape = if bar.is_hollow { "hollow" } else { "fill" };
        let class = format!("{shape} {}", bar.colour.class());
        html! {
            g {
                title { (bar.told(self.axis.unit)) }
                @if let Some(end) = bar.value.and_then(|value| ruler.px(value)) {
                    rect class=(class) x=(px(base.min(end))) y=(px(middle - BAR_HEIGHT / 2.0))
                        width=(px((end - base).abs().max(0.8))) height=(BAR_HEIGHT) {}
                }
                @if let Some((min, max)) = whiskers(bar, ruler) {
                    path class="whisker" d=(format!(
                        "M{0} {2}v7M{0} {3}H{1}M{1} {2}v7", px(min), px(max), px(middle - 3.5), px(middle)
                    )) {}
                }
            }
        }
    }

    /// The bar's name before it and its figure behind it.
    fn draw_text(&self, bar: &Bar, lines: &[String], ruler: &Ruler, middle: f64, left: f64) -> Markup {
        let ends = [bar.value.and_then(|value| ruler.px(value)), whiskers(bar, ruler).map(|(_, max)| max)];
        let furthest = ends.into_iter().flatten().fold(ruler.base_px(), f64::max);
        html! {
            @for (index, line) in lines.iter().enumerate() {
                @let shift = (index as f64 - (lines.len() - 1) as f64 / 2.0) * (LINE_HEIGHT - 2.0);
                text x=(px(left - 9.0)) y=(px(middle + 4.4 + shift)) text-anchor="end" { (line) }
            }
            text class="halo" x=(px(furthest + 7.0)) y=(px(middle + 4.4)) { (bar.written(self.axis.unit)) }
        }
    }
}

/// Where the bar's whiskers end, in pixels.
fn whiskers(bar: &Bar, ruler: &Ruler) -> Option<(f64, f64)> {
    bar.range.and_then(|(min, max)| Some((ruler.px(min)?, ruler.px(max)?)))
}

/// A dashed line across the group, and its name beside the group's title: above the line, where there is room.
fn draw_reference(reference: &Reference, group: &BarGroup, ruler: &Ruler, top: f64, bottom: f64) -> Markup {
    let Some(x) = ruler.px(reference.value) else { return html! {} };
    let half = text_width(&reference.label) / 2.0;
    let free = if group.title.is_empty() { 0.0 } else { text_width(&group.title) * BOLD + 26.0 };
    let middle = x.max(free + half).min(WIDTH - half);
    html! {
        line class="reference" x1=(px(x)) x2=(px(x)) y1=(px(top + 19.0)) y2=(px(bottom)) {}
        @if (middle - x).abs() > half {
            @let sample = middle - half - 7.0;
            line class="reference" x1=(px(sample)) x2=(px(sample)) y1=(px(top + 3.0)) y2=(px(top + 16.0)) {}
        }
        text x=(px(middle)) y=(px(top + 14.0)) text-anchor="middle" { (reference.label) }
    }
}

/// The middle of the axis, or as near to it as a long title can be.
fn axis_title_px(title: &str, left: f64, right: f64) -> f64 {
    let half = text_width(title) / 2.0;
    ((left + right) / 2.0).min(WIDTH - half).max(half)
}
