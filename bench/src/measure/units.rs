//! Figures with their units, as tables for people show them.

/// A count with a comma before every third digit from the right.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As [`count`], of what may be negative.
pub fn signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", count(number.unsigned_abs()))
}

/// A length of time given in nanoseconds, with three digits.
pub fn nanoseconds(ns: u64) -> String {
    scaled(ns as f64, &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)])
}

/// An amount of memory, with three digits.
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, &[("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)])
}

/// A rate, with three digits.
pub fn bits_per_second(rate: f64) -> String {
    scaled(rate, &[("b/s", 1.0), ("kb/s", 1e3), ("Mb/s", 1e6), ("Gb/s", 1e9)])
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.*} %", if share == 0.0 || share.abs() >= 0.0995 { 0 } else { 2 }, share * 100.0)
}

fn scaled(value: f64, units: &[(&str, f64)]) -> String {
    // From what would be shown as 1000 on, the next unit.
    let fitting = units.iter().rev().find(|(_, factor)| value.abs() / factor >= 0.9995);
    let (unit, factor) = *fitting.unwrap_or(&units[0]);
    // Nothing at all has no sign.
    let value = value / factor + 0.0;
    let digits = match value.abs() {
        _ if value.fract() == 0.0 && factor == 1.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 12, 123, 1_234, 1_234_567].map(count), ["0", "12", "123", "1,234", "1,234,567"]);
        assert_eq!([-1_234, 5].map(signed), ["-1,234", "5"]);
    }

    #[test]
    fn three_digits_and_the_unit_that_fits() {
        assert_eq!(
            [0, 999, 1_000, 12_345, 999_949, 999_951].map(nanoseconds),
            ["0 ns", "999 ns", "1.00 us", "12.3 us", "1.00 ms", "1.00 ms"]
        );
        assert_eq!([2_500_000_000, 123_000_000].map(nanoseconds), ["2.50 s", "123 ms"]);
        assert_eq!([0.0, 512.0, 1_234_567.0, -2_000.0].map(bytes), ["0 B", "512 B", "1.23 MB", "-2.00 kB"]);
        assert_eq!([-0.0, 0.5, 9.999e8, 2e12].map(bits_per_second), ["0 b/s", "0.50 b/s", "1.00 Gb/s", "2000 Gb/s"]);
    }

    #[test]
    fn small_shares_keep_their_digits() {
        assert_eq!([0.0, 0.0012, 0.099, 0.0999, 1.0].map(percent), ["0 %", "0.12 %", "9.90 %", "10 %", "100 %"]);
    }
}
