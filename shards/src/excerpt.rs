//! What a peer says, for people: escaped, and no longer than a line of a log should be.

/// Longest excerpt, in bytes, escapes and mark included.
pub const EXCERPT_BYTES_MAX: usize = 256;

/// Stands where the rest was cut off.
const CUT: &str = "...";

/// The beginning of `said`, whose control characters, line ends, quotes and whatever else could deceive a reader are escaped as in Rust's
/// string literals.
pub fn excerpt(said: &[u8]) -> String {
    // No byte becomes shorter by escaping: what is beyond these does not fit.
    let beginning = &said[..said.len().min(EXCERPT_BYTES_MAX + 1)];
    let mut text = String::new();
    let mut cut_at = 0;
    for char in String::from_utf8_lossy(beginning).chars() {
        match char {
            '\'' => text.push(char),
            _ => text.extend(char.escape_debug()),
        }
        if text.len() > EXCERPT_BYTES_MAX {
            text.truncate(cut_at);
            text.push_str(CUT);
            return text;
        }
        if text.len() <= EXCERPT_BYTES_MAX - CUT.len() {
            cut_at = text.len();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_harmless_and_short_stays_as_it_is() {
        for said in ["", "it's over: 100 % Zoë", &"x".repeat(EXCERPT_BYTES_MAX)] {
            assert_eq!(excerpt(said.as_bytes()), said);
        }
    }

    #[test]
    fn what_could_deceive_a_reader_is_escaped() {
        let said = "bye\n2026-01-01 ERROR \u{1b}[31mroot \"x\" \u{202e}\0\r\\";
        let expected = r#"bye\n2026-01-01 ERROR \u{1b}[31mroot \"x\" \u{202e}\0\r\\"#;
        assert_eq!(excerpt(said.as_bytes()), expected);
        assert_eq!(excerpt(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn what_is_long_is_cut_with_a_mark_whatever_it_consists_of() {
        for said in ["x", "\n", "\u{1b}", "ë", "\u{10ffff}", "\"", "xë\n"] {
            let text = excerpt(said.repeat(60_000).as_bytes());
            assert!(text.len() <= EXCERPT_BYTES_MAX && text.ends_with(CUT), "{said:?}: {text}");
            assert!(text.len() > EXCERPT_BYTES_MAX - CUT.len() - 10, "{said:?}: {text}");
        }
        let text = excerpt(&[0xff; 60_000]);
        assert!(text.len() <= EXCERPT_BYTES_MAX && text.ends_with(CUT), "{text}");
        assert!(excerpt("x".repeat(EXCERPT_BYTES_MAX + 1).as_bytes()).ends_with("x..."));
    }
}
