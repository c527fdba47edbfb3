//! Tables of the figures beside the plots.

use maud::{Markup, html};

/// A table. The first cell of a row says what the row is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// The headings of the columns.
    pub columns: Vec<String>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its cells.
    pub cells: Vec<String>,
    /// Whether it says what is not as it should be.
    pub is_bad: bool,
}

/// Columns of a table that stands beside its plot, at most; one with more has the page's whole width.
const NARROW_COLUMNS_MAX: usize = 4;
/// Rows of such a table, at most.
const NARROW_ROWS_MAX: usize = 24;

impl Table {
    /// Without rows.
    pub fn new(caption: impl Into<String>, columns: &[&str]) -> Self {
        Table {
            caption: caption.into(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.judged_row(cells, false);
    }

    /// Adds a row that may be about something bad.
    pub fn judged_row(&mut self, cells: impl Into<Vec<String>>, is_bad: bool) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len(), "{}", self.caption);
        self.rows.push(Row { cells, is_bad });
    }

    /// Leaves out the column `title` when it says the same in every row.
    pub fn without_constant(mut self, title: &str) -> Self {
        let Some(index) = self.columns.iter().position(|column| *column == title) else { return self };
        let first = self.rows.first().map(|row| row.cells[index].clone());
        if self.rows.iter().all(|row| Some(&row.cells[index]) == first.as_ref()) {
            self.columns.remove(index);
            self.rows.iter_mut().for_each(|row| drop(row.cells.remove(index)));
        }
        self
    }

    /// Whether there is room for it beside a plot.
    pub fn is_narrow(&self) -> bool {
        self.columns.len() <= NARROW_COLUMNS_MAX && self.rows.len() <= NARROW_ROWS_MAX
    }

    /// The table as a part of a page. A wide one is scrolled by itself.
    pub fn render(&self) -> Markup {
        let is_right = |column: usize| column > 0 && self.rows.iter().all(|row| is_figure(&row.cells[column]));
        let right: Vec<bool> = (0..self.columns.len()).map(is_right).collect();
        html! {
            // Not a caption element: that would be as wide as the table, and scroll with it.
            p class="caption" aria-hidden="true" { (self.caption) }
            div class="scroll" tabindex="0" role="region" aria-label=(self.caption) {
                table aria-label=(self.caption) {
                    thead { tr {
                        @for (column, right) in self.columns.iter().zip(&right) {
                            th scope="col" class=[right.then_some("figure")] { (column) }
                        }
                    } }
                    tbody { @for row in &self.rows { (row.render(&right)) } }
                }
            }
        }
    }
}

impl Row {
    fn render(&self, right: &[bool]) -> Markup {
        let class = |index: usize, cell: &str| match right[index] {
            true => Some("figure"),
            false => (cell.chars().count() <= SHORT_CHARS_MAX).then_some("short"),
        };
        html! {
            tr class=[self.is_bad.then_some("bad")] {
                @for (index, cell) in self.cells.iter().enumerate() {
                    @if index == 0 { th scope="row" class=[class(0, cell)] { (cell) } }
                    @else { td class=[class(index, cell)] { (cell) } }
                }
            }
        }
    }
}

/// Characters of a cell that is not broken into lines, at most.
const SHORT_CHARS_MAX: usize = 24;

/// Characters of a figure, at most.
const FIGURE_CHARS_MAX: usize = 48;

/// What a row has no figure for.
pub const NONE: &str = "–";

/// Whether `cell` is a figure, which stands to the right.
fn is_figure(cell: &str) -> bool {
    let begins = cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || "–−+".contains(c));
    begins && cell.chars().count() <= FIGURE_CHARS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("t", &["name", "run", "figure"]);
        table.row(["a".into(), "1".into(), "2".into()]);
        table.row(["b".into(), "1".into(), "3".into()]);
        table
    }

    #[test]
    fn a_column_that_says_nothing_is_left_out() {
        assert_eq!(table().without_constant("run").columns, ["name", "figure"]);
        assert_eq!(table().without_constant("figure"), table());
    }

    #[test]
    fn figures_stand_to_the_right_and_text_is_escaped() {
        let mut table = table();
        table.judged_row(["<b>".into(), "&".into(), NONE.into()], true);
        let text = table.render().into_string();
        assert!(text.contains("<td class=\"figure\">2</td>"), "{text}");
        assert!(
            text.contains(
                "<tr class=\"bad\"><th scope=\"row\" class=\"short\">&lt;b&gt;</th><td class=\"short\">&amp;</td>"
            ),
            "{text}"
        );
    }
}
