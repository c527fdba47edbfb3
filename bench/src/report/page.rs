//! The page: one HTML file with all it needs, no script, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::number::plural;
use super::origin::Origins;
use super::palette;
use super::section::{Block, Grade, Notice, Section};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub fn render(sections: &[Section], origins: &Origins<'_>, records: usize) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Should escaping ever fail: nothing is run, nothing is fetched.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "Tollgate: benchmarks" }
                // Both styles are ours, without anything from files.
                style { (PreEscaped(STYLE)) (PreEscaped(palette::page_style())) }
            }
            body {
                header {
                    h1 { "Tollgate: benchmarks" }
                    p class="quiet" { (plural(records, "result")) ". One colour is one gateway in every plot; blue is Tollgate. "
                        "Bytes and bits are counted in thousands: 1 GB is 10⁹ bytes." }
                    (origins.render())
                    (failures(sections))
                    @if sections.is_empty() { p { "There are no figures in these results." } }
                    nav aria-label="Sections" { ul {
                        @for section in sections { li { a href=(format!("#{}", section.id)) { (section.body.title) } } }
                    } }
                }
                main { @for section in sections { (self::section(section, origins)) } }
                footer { "Made by tollgate-bench " (env!("CARGO_PKG_VERSION")) ". Every plot has a name, which its title links to: "
                    code { "tollgate-bench report --plot NAME --svg FILE RESULT.json …" } " writes it to a file." }
            }
        }
    };
    page.into_string()
}

/// All that is not as it should be, before anything else.
fn failures(sections: &[Section]) -> Markup {
    let failures: Vec<(&Section, &Notice)> =
        sections.iter().flat_map(|section| section.failures().map(move |failure| (section, failure))).collect();
    html! {
        @if !failures.is_empty() {
            div class="notice failed" role="alert" {
                p { "✗ Not all is as it should be" }
                ul { @for (section, failure) in failures {
                    li { a href=(format!("#{}", section.id)) { (section.body.title) } ": " (failure.title) }
                } }
            }
        }
    }
}

fn section(section: &Section, origins: &Origins<'_>) -> Markup {
    let body = &section.body;
    html! {
        section id=(section.id) {
            h2 { (body.title) }
            p { (body.measured) }
            p class="uncertainty" { b { "Uncertainty. " } (body.uncertainty) }
            (origins.render_runs(section.setup, &section.runs))
            @for block in &body.blocks { (self::block(block)) }
        }
    }
}

fn block(block: &Block) -> Markup {
    match block {
        Block::Heading(text) => html! { h3 { (text) } },
        Block::List(lines) if lines.len() == 1 => html! { p { (lines[0]) } },
        Block::List(lines) => html! { ul class="findings" { @for line in lines { li { (line) } } } },
        Block::Notice(notice) => self::notice(notice),
        Block::Folded(table) => {
            let rows = plural(table.rows.len(), "row");
            html! { details { summary { (table.caption) " (" (rows) ")" } (table.render()) } }
        }
        Block::Figures(charts, tables) => html! {
            div class="figures" {
                @for chart in charts {
                    figure id=(chart.name) {
                        figcaption { a href=(format!("#{}", chart.name)) { (chart.title) } @if !chart.note.is_empty() { span { (chart.note) } } }
                        (chart.inline())
                    }
                }
                @for table in tables.iter().filter(|table| !table.rows.is_empty()) {
                    div class=[(!table.is_narrow()).then_some("wide")] { (table.render()) }
                }
            }
        },
    }
}

fn notice(notice: &Notice) -> Markup {
    let (class, sign) = match notice.grade {
        Grade::Good => ("notice good", "✓"),
        Grade::Caution => ("notice caution", "!"),
        Grade::Failed => ("notice failed", "✗"),
    };
    html! {
        div class=(class) {
            p { (sign) " " (notice.title) }
            @if !notice.lines.is_empty() { ul { @for line in &notice.lines { li { (line) } } } }
        }
    }
}
