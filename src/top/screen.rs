//! The screen: figures in, cells out.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::figures::{Figures, ShardFigures, UserFigures};
use crate::output::scaled;

/// Lines of a table beside its rows: title and heads.
const TABLE_LINES: u16 = 2;
/// Lines for drops and for shards, at most, while there are others to be shown.
const ROWS_MAX: u16 = 16;
/// From this part of the time on a shard has hardly any left.
const BUSY: f64 = 0.8;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, figures: &Figures) {
    let rows = |count: usize| TABLE_LINES + (count.max(1) as u16).min(ROWS_MAX);
    let parts = [
        Constraint::Length(figures.lines.len().clamp(1, usize::from(ROWS_MAX)) as u16),
        Constraint::Length(rows(figures.shards.len())),
        Constraint::Min(TABLE_LINES + 1),
        Constraint::Length(rows(figures.drops.len())),
        Constraint::Length(1),
    ];
    let [head, shards, users, drops, keys] = Layout::vertical(parts).areas(frame.area());
    let lines: Vec<Line<'_>> = figures.lines.iter().map(|line| Line::from(&line[..])).collect();
    frame.render_widget(Paragraph::new(lines).style(Style::new().add_modifier(Modifier::BOLD)), head);
    draw_shards(frame, shards, figures);
    draw_users(frame, users, figures);
    draw_drops(frame, drops, figures);
    frame.render_widget(Paragraph::new("q: end   s: sort users by rate, total or name"), keys);
}

fn draw_shards(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let row = |shard: &ShardFigures| {
        let busy = format!("{:.0} %", 100.0 * shard.busy);
        let style = if shard.busy >= BUSY { Style::new().fg(Color::Red) } else { Style::new() };
        Row::new([
            right(shard.shard.to_string()),
            right(shard.cpu.to_string()),
            right(busy).style(style),
            right(bits(shard.up_bits_per_s)),
            right(bits(shard.down_bits_per_s)),
            right(format!("{:.0}/s", shard.drops_per_s)),
            right(shard.clients.to_string()),
        ])
    };
    let sum = |of: fn(&ShardFigures) -> f64| bits(figures.shards.iter().map(of).sum());
    let title = format!(
        " shards: {}, up {}, down {} ",
        figures.shards.len(),
        sum(|shard| shard.up_bits_per_s),
        sum(|shard| shard.down_bits_per_s)
    );
    let widths = [6, 5, 7, 11, 11, 10, 9].map(Constraint::Length);
    let heads = ["shard", "CPU", "busy", "up", "down", "drops", "clients"].map(right);
    table(frame, area, title, Row::new(heads), figures.shards.iter().map(row), &widths);
}

fn draw_users(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let row = |user: &UserFigures| {
        let limit = user.limit_bits_per_s.map_or_else(|| "none".to_owned(), |limit| bits(limit as f64));
        Row::new([
            Cell::new(user.user.clone()),
            right(user.connections.to_string()),
            right(bits(user.from_bits_per_s)),
            right(bits(user.to_bits_per_s)),
            right(format!("{}B", scaled(user.usage.bytes()))),
            right(limit),
        ])
    };
    let title = format!(" users: {}, by {} ", figures.users.len(), figures.order.name());
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(11),
    ];
    let heads = ["connections", "from client", "to client", "total", "limit"].map(right);
    let heads = Row::new([Cell::new("user")].into_iter().chain(heads));
    table(frame, area, title, heads, figures.users.iter().map(row), &widths);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, figures: &Figures) {
    let row = |(reason, rate, packets): &(_, f64, u64)| {
        let reason: &tollgate_shards::DropReason = reason;
        Row::new([Cell::new(reason.name()), right(format!("{rate:.0}/s")), right(packets.to_string())])
    };
    let widths = [Constraint::Length(24), Constraint::Length(10), Constraint::Length(14)];
    let heads = Row::new([Cell::new("reason"), right("now"), right("total")]);
    table(frame, area, " drops ".to_owned(), heads, figures.drops.iter().map(row), &widths);
}

fn table<'r>(
    frame: &mut Frame<'_>,
    area: Rect,
    title: String,
    heads: Row<'r>,
    rows: impl Iterator<Item = Row<'r>>,
    widths: &[Constraint],
) {
    let block = Block::new().borders(Borders::TOP).title(title);
    let heads = heads.style(Style::new().add_modifier(Modifier::DIM));
    // What is below the screen is not made.
    let rows = rows.take(usize::from(area.height));
    frame.render_widget(Table::new(rows, widths.iter().copied()).header(heads).block(block), area);
}

fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::new(Text::from(text.into()).alignment(Alignment::Right))
}

fn bits(bits_per_s: f64) -> String {
    format!("{}b/s", scaled(bits_per_s.round() as u64))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use tollgate_shards::{DropReason, Usage};

    use super::*;
    use crate::top::Order;

    fn figures(users: usize) -> Figures {
        let user = |number: usize| UserFigures {
            user: format!("user{number}"),
            connections: 2,
            from_bits_per_s: 1.25e6,
            to_bits_per_s: 2.5e9,
            usage: Usage { sent_bytes: 12_300_000_000, ..Usage::default() },
            limit_bits_per_s: (number == 1).then_some(10_000_000),
        };
        let shard = |shard: u16, busy: f64| ShardFigures {
            shard,
            cpu: 2 * usize::from(shard),
            busy,
            up_bits_per_s: 1e6,
            down_bits_per_s: 2e9,
            drops_per_s: 3.0,
            clients: 7,
        };
        Figures {
            lines: vec!["serving; clients: 14".to_owned()],
            shards: vec![shard(0, 0.25), shard(1, 0.93)],
            users: (0..users).map(user).collect(),
            order: Order::Rate,
            drops: vec![(DropReason::QueueDelay, 6.0, 1234)],
        }
    }

    /// The lines of a screen of that size, without the spaces at their ends.
    fn lines(figures: &Figures, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, figures)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn shards_users_and_drops_have_their_places() {
        let expected = "\
serving; clients: 14
 shards: 2, up 2.00 Mb/s, down 4.00 Gb/s \u{2500}\u{2500}\u{2500}
 shard   CPU    busy          up        down      drops   clients
     0     0    25 %   1.00 Mb/s   2.00 Gb/s        3/s         7
     1     2    93 %   1.00 Mb/s   2.00 Gb/s        3/s         7";
        let shown = lines(&figures(2), 80, 24);
        let trimmed: Vec<&str> = shown.iter().map(|line| line.trim_end_matches('\u{2500}')).collect();
        let expected: Vec<&str> = expected.lines().map(|line| line.trim_end_matches('\u{2500}')).collect();
        assert_eq!(trimmed[..5], expected, "{shown:#?}");
        let heads = shown.iter().filter(|line| line.starts_with("reason") && line.ends_with("now          total"));
        assert_eq!(heads.count(), 1, "{shown:#?}");
        let all = shown.join("\n");
        for text in
            [" users: 2, by rate ", "user1", "10.0 Mb/s", "12.3 GB", "2.50 Gb/s", "queue_delay", "6/s", "q: end"]
        {
            assert!(all.contains(text), "{text} is not in {all}");
        }
    }

    #[test]
    fn no_terminal_is_too_small_and_none_too_large() {
        for (width, height) in [(1, 1), (20, 5), (80, 10), (300, 100)] {
            let shown = lines(&figures(1000), width, height);
            assert_eq!(shown.len(), usize::from(height));
        }
        // Of more users than there are lines, the first are shown.
        let shown = lines(&figures(1000), 80, 24).join("\n");
        assert!(shown.contains("user0") && !shown.contains("user20"), "{shown}");
    }
}
