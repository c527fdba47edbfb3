//! Plots, drawn as SVG: inline in the page, or alone in a file.
//!
//! Drawn by hand and not with a plotting library: colours come from classes, so that one drawing does for light, dark and print; every
//! plot has a title and a description for those who cannot see it, and every bar and point says its figures when pointed at. Drawings are
//! narrow, so that their text is legible on a phone, and labels have room that is made for them.

mod axis;
mod bars;
mod lines;

use maud::{Markup, PreEscaped, html};

use super::palette::{self, Colour};

pub use axis::{Axis, Scale};
pub use bars::{Bar, BarGroup, Bars};
pub use lines::{Lines, Point, Series};

/// Width of every drawing, in units of its own; text is 12.5 of these high.
const WIDTH: f64 = 430.0;
/// Room around a drawing that stands alone.
const MARGIN: f64 = 16.0;
/// Height of a line of text.
const LINE_HEIGHT: f64 = 16.0;

/// A plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Its name for `--plot`, unique on the page; also what links to it are made of.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// How to read it; may be empty.
    pub note: String,
    /// What is drawn.
    pub drawing: Drawing,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Drawing {
    /// Bars that lie, in groups.
    Bars(Bars),
    /// Lines over an axis.
    Lines(Lines),
}

/// A figure to hold others against: a dashed line across.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// What it is; the figure too, where that is worth saying.
    pub label: String,
    /// Where.
    pub value: f64,
}

/// A drawing without its frame.
struct Drawn {
    height: f64,
    marks: Markup,
}

impl Chart {
    /// The plot as a part of a page: `<svg>` that takes its style from there.
    pub fn inline(&self) -> Markup {
        let Drawn { height, marks } = self.draw();
        let (title_id, text_id) = (format!("{}-title", self.name), format!("{}-text", self.name));
        html! {
            svg class="chart" viewBox=(format!("0 0 {WIDTH} {}", px(height))) role="img"
                aria-labelledby=(format!("{title_id} {text_id}")) {
                title id=(title_id) { (self.title) }
                desc id=(text_id) { (self.description()) }
                (marks)
            }
        }
    }

    /// The plot as an SVG file, with its title above and `source` below, on a background of its own.
    pub fn standalone(&self, source: &str) -> String {
        let Drawn { height, marks } = self.draw();
        let titles = wrap(&self.title, WIDTH / 1.16, 2);
        let spreads = if self.has_spreads() { "Medians; whiskers from the lowest to the highest. " } else { "" };
        let sources = wrap(&format!("{spreads}{}\n{source}", self.note), WIDTH / 0.86, 6);
        let top = MARGIN + titles.len() as f64 * 19.0 + 6.0;
        let bottom = top + height + 10.0;
        let (width, height) = (WIDTH + 2.0 * MARGIN, bottom + sources.len() as f64 * 14.0 + MARGIN);
        let markup = html! {
            svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-labelledby="title text"
                width=(px(width * 1.4)) height=(px(height * 1.4))
                viewBox=(format!("0 0 {} {}", px(width), px(height))) {
                title id="title" { (self.title) }
                desc id="text" { (self.description()) }
                // The style is ours, without anything from files.
                style { (PreEscaped(palette::standalone_style())) }
                rect class="paper" width=(px(width)) height=(px(height)) rx="6" {}
                @for (index, line) in titles.iter().enumerate() {
                    text class="strong name" x=(px(MARGIN)) y=(px(MARGIN + 12.0 + index as f64 * 19.0)) { (line) }
                }
                g transform=(format!("translate({MARGIN} {})", px(top))) { (marks) }
                @for (index, line) in sources.iter().enumerate() {
                    text class="muted small" x=(px(MARGIN)) y=(px(bottom + 10.0 + index as f64 * 14.0)) { (line) }
                }
            }
        };
        // Control characters are no XML, not even escaped.
        let text: String = markup.into_string().chars().filter(|c| !c.is_control()).collect();
        text + "\n"
    }

    fn has_spreads(&self) -> bool {
        match &self.drawing {
            Drawing::Bars(bars) => bars.groups.iter().flat_map(|group| &group.bars).any(|bar| bar.range.is_some()),
            Drawing::Lines(lines) => lines.series.iter().flat_map(|series| &series.points).any(|it| it.range.is_some()),
        }
    }

    /// The figures in a sentence, for those who cannot see the plot.
    fn description(&self) -> String {
        let figures = match &self.drawing {
            Drawing::Bars(bars) => bars.description(),
            Drawing::Lines(lines) => lines.description(),
        };
        if self.note.is_empty() { figures } else { format!("{} {figures}", self.note) }
    }

    fn draw(&self) -> Drawn {
        match &self.drawing {
            Drawing::Bars(bars) => bars.draw(),
            Drawing::Lines(lines) => lines.draw(),
        }
    }
}

/// To a tenth: what nobody sees need not be written.
fn px(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// About how wide `text` is at the usual size. Rather too much than too little.
fn text_width(text: &str) -> f64 {
    let width = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' => 3.9,
        'f' | 'r' | 't' | '(' | ')' | '/' | '-' => 5.3,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 11.6,
        'A'..='Z' => 9.1,
        '\0'..='\u{2fff}' => 7.6,
        _ => 13.0,
    };
    text.chars().map(width).sum()
}

/// Breaks `text` between words into at most `lines_max` lines of `width`, about equally long; what does not fit is cut, and marked so.
fn wrap(text: &str, width: f64, lines_max: usize) -> Vec<String> {
    let mut lines = broken(text, width, lines_max);
    // Narrower, as long as that takes no more lines and cuts nothing: no word is left over by itself.
    for share in [0.9, 0.8, 0.7, 0.6] {
        let narrower = broken(text, width * share, lines_max);
        if narrower.len() != lines.len() || narrower.iter().any(|line| text_width(line) > width * share) {
            break;
        }
        lines = narrower;
    }
    lines.iter().map(|line| cut(line, width)).collect()
}

/// Breaks `text` at `width`; only the last line, and long words, may be longer.
fn broken(text: &str, width: f64, lines_max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &lines[last];
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if line.is_empty() || text_width(&longer) <= width || lines.len() == lines_max {
            lines[last] = longer;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// `text`, or as much of its beginning as fits into `width`, and an ellipsis.
fn cut(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_owned();
    }
    let mut room = width - text_width("…");
    let fits = |c: &char| {
        room -= text_width(c.encode_utf8(&mut [0; 4]));
        room >= 0.0
    };
    text.chars().take_while(fits).collect::<String>().trim_end().to_owned() + "…"
}

/// The mark number `shape` at a place: told from others without colour.
fn mark(shape: usize, x: f64, y: f64, colour: Colour) -> Markup {
    let outline = match shape % 6 {
        0 => "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        1 => "M-3.7 -3.7h7.4v7.4h-7.4z",
        2 => "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
        3 => "M0 -4.9L4.7 3.7L-4.7 3.7z",
        4 => "M0 4.9L4.7 -3.7L-4.7 -3.7z",
        _ => "M-4.8 -1.5h3.3v-3.3h3v3.3h3.3v3h-3.3v3.3h-3v-3.3h-3.3z",
    };
    let class = format!("mark {}", colour.class());
    html! { path class=(class) d=(outline) transform=(format!("translate({} {})", px(x), px(y))) {} }
}

/// Dashes number `style`, as the attribute has them; `None` for a solid line.
fn dashes(style: usize) -> Option<&'static str> {
    match style % 4 {
        0 => None,
        1 => Some("7 4"),
        2 => Some("2 3"),
        _ => Some("9 3 2 3"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_between_words_and_then_cut() {
        assert_eq!(wrap("one two", 1000.0, 2), ["one two"]);
        assert_eq!(wrap("one two", 25.0, 2), ["one", "two"]);
        let lines = wrap("one two three four five six seven", 60.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…') && lines.iter().all(|line| text_width(line) <= 60.0), "{lines:?}");
        assert_eq!(wrap("", 60.0, 2), [""]);
        assert_eq!(wrap("no word is left by itself", 135.0, 2), ["no word is", "left by itself"]);
    }
}
