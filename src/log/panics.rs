//! The message of a panic, once, on the log.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::net::{IpAddr, SocketAddr};
use std::panic::PanicHookInfo;
use std::time::Duration;

use super::LINES;

/// How long a panic waits for its message to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Longest message, in bytes; the rest of a longer one is cut off.
const MESSAGE_BYTES_MAX: usize = 2048;
/// Stands for an address.
const REMOVED: &str = "[address]";

/// As the standard library does it, but without waiting for the reader of standard error for long, because what follows a panic must happen; and
/// without addresses, which may be customers'.
pub(super) fn report(panic: &PanicHookInfo<'_>) {
    let Some(lines) = LINES.get() else { return };
    let thread = rustix::thread::name().unwrap_or_default();
    let mut text = format!("thread '{}' {}", thread.to_string_lossy(), fit_to_print(&panic.to_string()));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text += &format!("\n{backtrace}");
    }
    text.lines().for_each(|line| lines.say(format!("{line}\n").as_bytes()));
    lines.flush(LAST_WORDS);
}

/// `message` without addresses, and no longer than it may be.
fn fit_to_print(message: &str) -> String {
    let mut message = without_addresses(message);
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    message
}

/// `text` with [`REMOVED`] in the place of every IP address, with its port.
fn without_addresses(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_.:[]%".contains(c);
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |end| start + end);
        let word = rest[start..end].trim_end_matches(['.', ':']);
        out += &rest[..start];
        out += if is_address(word) { REMOVED } else { word };
        rest = &rest[start + word.len()..];
        // What was trimmed is no word of its own.
        let trimmed = rest.len() - rest.trim_start_matches(['.', ':']).len();
        out += &rest[..trimmed];
        rest = &rest[trimmed..];
    }
    out + rest
}

fn is_address(word: &str) -> bool {
    let bare = word.trim_matches(['[', ']']);
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    word.parse::<SocketAddr>().is_ok() || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_addresses_and_all_else() {
        for (said, told) in [
            ("no route to 198.19.128.7", "no route to [address]"),
            ("198.19.128.7: gone", "[address]: gone"),
            ("from 198.18.0.9:4433, to [fd00::1]:55555.", "from [address], to [address]."),
            ("V4(198.19.128.7) and fd00:19:80::9/64", "V4([address]) and [address]/64"),
            ("fe80::1%eth0 (link)", "[address] (link)"),
            (
                "panicked at src/io/transmit.rs:212:9:\nrange end index 5000 out of range for slice of length 1",
                "panicked at src/io/transmit.rs:212:9:\nrange end index 5000 out of range for slice of length 1",
            ),
            ("core::option::unwrap: version 1.2.3, at 12:30:45 [1, 2]", ""),
            ("", ""),
            ("äöü: 198.19.128.7 …", "äöü: [address] …"),
        ] {
            assert_eq!(fit_to_print(said), if told.is_empty() { said } else { told });
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_cut() {
        assert_eq!(fit_to_print(&"ö".repeat(5000)), "ö".repeat(1024));
        assert_eq!(fit_to_print(&format!("x{}", "ö".repeat(5000))).len(), 2047, "between two characters");
    }
}
