//! Hours of churn: what should be flat, and whether it was.

use super::{Block, Body, Found, load};
use crate::report::number::{Unit, count};
use crate::report::palette::Palette;
use crate::report::table::{NONE, Table};
use crate::results::SoakResult;

pub(super) fn body(found: &[Found<'_, SoakResult>], palette: &Palette) -> Option<Body> {
    let mut blocks = Vec::new();
    for found in found {
        let loaded = Found { run: found.run, result: &found.result.load };
        let growth = Block::Figures(Vec::new(), vec![growth(found.result)]);
        blocks.extend(load::blocks(&loaded, "soak", palette, Some(growth)));
    }
    (!blocks.is_empty()).then(|| Body {
        title: "Soak".to_owned(),
        measured: "Connections that come and go at an even rate while traffic runs. Memory, descriptors, sessions and addresses have to \
                   stay as they are."
            .to_owned(),
        uncertainty: "One run. Growth per connection is the slope of the samples after the warm-up: it has the uncertainty of the \
                      allocator's steps, divided by the connections that came and went. Counts are exact."
            .to_owned(),
        blocks,
    })
}

fn growth(soak: &SoakResult) -> Table {
    let left = |figure: Option<i64>| figure.map_or(NONE.to_owned(), count);
    let mut table = Table::new("What should be flat", &["Figure", "Value"]);
    table.row([
        "Memory for each connection that came and went".to_owned(),
        Unit::Bytes.text(soak.bytes_per_churned_connection),
    ]);
    table.row(["Descriptors: growth".to_owned(), count(soak.descriptors_growth)]);
    table.row(["Addresses held beyond the connections at the end".to_owned(), left(soak.addresses_left)]);
    table.row(["Sessions left beyond the users connected at the end".to_owned(), left(soak.sessions_left)]);
    table
}
