//! How figures are written for people. One way for plots, tables and sentences, so that a figure looks the same everywhere.

use crate::results::Spread;

/// What a figure counts, and so how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number; its unit stands in the heading or at the axis.
    Plain,
    /// Bytes, in decimal multiples: 1 kB is 1,000 bytes.
    Bytes,
    /// Nanoseconds, shown in what fits.
    Nanoseconds,
    /// A share, 0 to 1, shown in per cent.
    Share,
    /// A change, as a share, shown in per cent with its sign.
    Change,
    /// Bits a second, in decimal multiples.
    BitsPerSecond,
}

const BYTES: [(f64, &str); 4] = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")];
const NANOSECONDS: [(f64, &str); 4] = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")];
const BITS_PER_SECOND: [(f64, &str); 4] = [(1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s"), (1.0, "b/s")];

impl Unit {
    /// `value` to three significant digits.
    pub fn text(self, value: f64) -> String {
        match self {
            Unit::Plain => significant(value),
            Unit::Bytes => scaled(value, &BYTES),
            Unit::Nanoseconds => scaled(value, &NANOSECONDS),
            Unit::BitsPerSecond => scaled(value, &BITS_PER_SECOND),
            Unit::Share => format!("{} %", significant(value * 100.0)),
            Unit::Change => change(value * 100.0),
        }
    }

    /// `value`, which is round, for an axis: without zeros that say nothing.
    pub fn tick(self, value: f64) -> String {
        let text = self.text(value);
        let (number, unit) = text.split_once(' ').map_or((text.as_str(), None), |(number, unit)| (number, Some(unit)));
        let number = match number.contains(['.']) && !number.contains('e') {
            true => number.trim_end_matches('0').trim_end_matches('.'),
            false => number,
        };
        match unit {
            None => number.to_owned(),
            Some(unit) => format!("{number} {unit}"),
        }
    }

    /// The median, and the extremes in brackets.
    pub fn spread(self, spread: Spread) -> String {
        let [median, min, max] = [spread.median, spread.min, spread.max].map(|figure| self.text(figure));
        let unit = |text: &str| text.split_once(' ').map(|(_, unit)| unit.to_owned());
        match (unit(&min), unit(&max)) {
            // Said once, when it is the same.
            (Some(low), Some(high)) if low == high && unit(&median) == Some(low.clone()) => {
                let number = |text: &str| text.split_once(' ').map_or(String::new(), |(number, _)| number.to_owned());
                format!("{} ({} – {}) {low}", number(&median), number(&min), number(&max))
            }
            _ => format!("{median} ({min} – {max})"),
        }
    }
}

/// A count, exactly, with commas between thousands.
pub fn count(value: impl Into<i128>) -> String {
    let value = value.into();
    let digits = value.unsigned_abs().to_string();
    let mut text = if value < 0 { "−".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in seconds, in what fits: seconds, minutes, hours.
pub fn seconds(value: f64) -> String {
    match value {
        value if value >= 7200.0 => format!("{} h", significant(value / 3600.0)),
        value if value >= 300.0 => format!("{} min", significant(value / 60.0)),
        value if value == 0.0 || value >= 1.0 => format!("{} s", significant(value)),
        value => Unit::Nanoseconds.text(value * 1e9),
    }
}

/// `count` of `thing`, which takes an s in the plural.
pub fn plural(count: usize, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

/// `numerator / denominator`; `None` where that is no number.
pub fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    let ratio = numerator / denominator;
    ratio.is_finite().then_some(ratio)
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(size, _)| value.abs() >= *size);
    // What is less than the smallest unit, and zero, is shown in the smallest.
    let (size, unit) = fits.or(units.last()).copied().unwrap_or((1.0, ""));
    format!("{} {unit}", significant(value / size))
}

/// Per cent with a sign, to a hundredth: what is less is no change.
fn change(value: f64) -> String {
    let sign = if value > 0.0 { "+" } else { "" };
    match value.abs() {
        magnitude if magnitude < 0.005 => "0 %".to_owned(),
        magnitude if magnitude < 100.0 => format!("{sign}{value:.2} %").replace('-', "−"),
        _ => format!("{sign}{} %", significant(value)),
    }
}

/// Three significant digits, commas between thousands, a real minus sign.
fn significant(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || !value.is_finite() {
        return if value.is_finite() { "0".to_owned() } else { "–".to_owned() };
    }
    if !(1e-5..1e15).contains(&magnitude) {
        return format!("{value:.2e}").replace('-', "−");
    }
    if magnitude >= 99.95 {
        return count(value.round() as i64);
    }
    let decimals = (2 - magnitude.log10().floor() as i32).clamp(1, 8) as usize;
    let text = format!("{magnitude:.decimals$}");
    if value < 0.0 { format!("−{text}") } else { text }
}

/// A fact, as a cell.
pub fn yes_or_no(fact: bool) -> &'static str {
    if fact { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_significant_digits() {
        let shown = [0.0, 0.5523, 4.0, 14.56, 99.96, 123.4, 1_234_567.0, -0.0312, 0.000_012_34].map(significant);
        let expected = ["0", "0.552", "4.00", "14.6", "100", "123", "1,234,567", "−0.0312", "0.0000123"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn extreme_figures_are_still_short() {
        for value in [f64::MAX, f64::MIN, f64::MIN_POSITIVE, f64::NAN, f64::INFINITY] {
            for unit in [Unit::Plain, Unit::Bytes, Unit::Nanoseconds, Unit::Share, Unit::Change, Unit::BitsPerSecond] {
                assert!(unit.text(value).chars().count() < 20, "{}", unit.text(value));
                assert!(unit.tick(value).chars().count() < 20, "{}", unit.tick(value));
            }
        }
    }

    #[test]
    fn units_are_chosen_to_fit() {
        assert_eq!(Unit::Bytes.text(41_234_567.0), "41.2 MB");
        assert_eq!(Unit::Bytes.text(0.0), "0 B");
        assert_eq!(Unit::Nanoseconds.text(1_530.0), "1.53 µs");
        assert_eq!(Unit::BitsPerSecond.text(4.2e9), "4.20 Gb/s");
        assert_eq!(Unit::Share.text(0.5), "50.0 %");
        assert_eq!(Unit::Change.text(0.02), "+2.00 %");
        assert_eq!(Unit::Change.text(-0.02), "−2.00 %");
        assert_eq!(Unit::Change.text(0.000_006), "0 %");
        assert_eq!(seconds(10_800.0), "3.00 h");
        assert_eq!(seconds(0.25), "250 ms");
    }

    #[test]
    fn a_unit_that_is_the_same_is_said_once() {
        let spread = |median, min, max| Spread { median, min, max };
        assert_eq!(Unit::Bytes.spread(spread(2e6, 1e6, 3e6)), "2.00 (1.00 – 3.00) MB");
        assert_eq!(Unit::Bytes.spread(spread(1e6, 9e5, 3e6)), "1.00 MB (900 kB – 3.00 MB)");
        assert_eq!(Unit::Plain.spread(spread(2.0, 1.0, 3.0)), "2.00 (1.00 – 3.00)");
    }

    #[test]
    fn ticks_lose_zeros_that_say_nothing() {
        let shown = [(Unit::Plain, 0.5), (Unit::Plain, 100.0), (Unit::Share, 0.25), (Unit::Change, 0.05)]
            .map(|(unit, value)| unit.tick(value));
        assert_eq!(shown, ["0.5", "100", "25 %", "+5 %"]);
    }

    #[test]
    fn counts_are_exact() {
        assert_eq!([count(0u8), count(999u32), count(1_000u64)], ["0", "999", "1,000"]);
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(count(-1_234i64), "−1,234");
    }

    #[test]
    fn a_ratio_by_nothing_is_none() {
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(0.0, 0.0), None);
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
    }
}
