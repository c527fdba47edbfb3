//! Values that are written as strings: rates, address ranges, fingerprints, log filters, names.
//!
//! Each parser says on failure what is wrong, as the end of a sentence; what would be right is its caller's to say.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use tollgate_shards::{AddressRange, Fingerprint, Rate};

use crate::likeness::nearest;

/// Highest rate that can be configured, in bits per second: 1000 gbps.
const RATE_BITS_PER_S_MAX: u64 = 1_000_000_000_000;

/// What a rate looks like.
pub(crate) const RATE: &str = "write a number and bps, kbps, mbps or gbps, for example \"10 mbps\"";

const RATE_UNITS: [(&str, u64); 4] = [("gbps", 1_000_000_000), ("mbps", 1_000_000), ("kbps", 1000), ("bps", 1)];

/// A rate: a number, possibly with a fraction, and a unit.
///
/// # Errors
///
/// What is wrong with it, as the end of a sentence.
pub fn rate(text: &str) -> Result<Rate, String> {
    let text = text.trim();
    let Some(unit_at) = text.find(|c: char| c.is_ascii_alphabetic()) else {
        return Err("which has no unit".into());
    };
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.to_ascii_lowercase();
    let Some((_, factor)) = RATE_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("whose unit {unit:?} is unknown"));
    };
    let number: f64 = match number.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => number,
        _ => return Err("which does not start with a number".into()),
    };
    let bits_per_s = (number * *factor as f64).round();
    if bits_per_s > RATE_BITS_PER_S_MAX as f64 {
        return Err("which is more than 1000 gbps".into());
    }
    if number < 0.0 {
        return Err("which is negative".into());
    }
    Rate::from_bits_per_s(bits_per_s as u64).ok_or_else(|| "which is nothing: leave the key out for no limit".into())
}

/// A rate as it is written in a file.
pub fn rate_text(rate: Rate) -> String {
    let bits_per_s = rate.bits_per_s();
    let (unit, factor) =
        RATE_UNITS.into_iter().find(|(_, factor)| bits_per_s.is_multiple_of(*factor)).unwrap_or(("bps", 1));
    format!("{} {unit}", bits_per_s / factor)
}

/// What an amount looks like.
pub(crate) const AMOUNT: &str = "write a number and B, kB, MB, GB or TB, for example \"50 GB\"";

const AMOUNT_UNITS: [(&str, u64); 5] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000), ("B", 1)];

/// Largest amount that can be configured: a million terabytes.
const AMOUNT_BYTES_MAX: f64 = 1e18;

/// An amount in bytes: a number, possibly with a fraction, and a unit.
pub(crate) fn amount(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let Some(unit_at) = text.find(|c: char| c.is_ascii_alphabetic()) else {
        return Err("which has no unit".into());
    };
    let (number, unit) = text.split_at(unit_at);
    let Some((_, factor)) = AMOUNT_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        return Err(format!("whose unit {unit:?} is unknown"));
    };
    let bytes = match number.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => (number * *factor as f64).round(),
        _ => return Err("which does not start with a number".into()),
    };
    match bytes {
        1.0..=AMOUNT_BYTES_MAX => Ok(bytes as u64),
        ..1.0 => Err("which is nothing: leave the key out for no quota".into()),
        _ => Err("which is more than 1000000 TB".into()),
    }
}

/// An amount as it is written in a file.
pub(crate) fn amount_text(bytes: u64) -> String {
    let (unit, factor) = AMOUNT_UNITS.into_iter().find(|(_, factor)| bytes.is_multiple_of(*factor)).unwrap_or(("B", 1));
    format!("{} {unit}", bytes / factor)
}

/// What an address range looks like.
pub(crate) const RANGE: &str = "write a network (\"198.18.0.16/28\") or a range (\"198.18.0.16 - 198.18.0.20\")";

/// A range of addresses: a network in CIDR notation, all of it, or first and last address with a hyphen between.
pub(crate) fn range(text: &str) -> Result<AddressRange, String> {
    let text = text.trim();
    if text.contains('/') {
        let net: IpNet = text.parse().map_err(|_| "which is not a network in CIDR notation".to_owned())?;
        let range = AddressRange::new(net.network(), net.broadcast());
        return range.ok_or_else(|| "which holds no address".into());
    }
    let Some((first, last)) = text.split_once('-') else {
        return Err("which is neither a network nor a range".into());
    };
    let address = |text: &str| -> Result<IpAddr, String> {
        text.trim().parse().map_err(|_| format!("where {:?} is not an IP address", text.trim()))
    };
    let (first, last) = (address(first)?, address(last)?);
    if first.is_ipv4() != last.is_ipv4() {
        return Err("which mixes IPv4 and IPv6".into());
    }
    AddressRange::new(first, last).ok_or_else(|| "whose first address is above its last".into())
}

/// What a fingerprint looks like.
pub(crate) const FINGERPRINT: &str =
    "write \"sha256:\" and 64 hexadecimal digits, as `tollgate identity fingerprint CERTIFICATE` prints it";

/// The fingerprint of a certificate: as Quincy writes it, or as `openssl x509 -fingerprint -sha256` and browsers do, with capitals, colons
/// between the bytes, and another prefix or none.
pub(crate) fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = ["sha256:", "sha-256:", "sha256 fingerprint=", "sha256="]
        .into_iter()
        .find_map(|prefix| lower.strip_prefix(prefix))
        .unwrap_or(&lower);
    let digits: String = digits.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    if let Some(wrong) = digits.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(format!("where {wrong:?} is not a hexadecimal digit"));
    }
    match digits.len() {
        64 => {}
        40 => return Err("which has 40 digits: it is of SHA-1, and not of SHA-256".into()),
        length => return Err(format!("which has {length} digits instead of 64")),
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        *byte = nibble(digits[0]) << 4 | nibble(digits[1]);
    }
    Ok(Fingerprint(bytes))
}

/// What a network interface name looks like.
pub const INTERFACE: &str = "write 1 to 15 bytes without space, slash or colon, for example \"tollgate0\", or with %d once for the \
                                    first free number: \"tollgate%d\"";

/// Longest name of a network interface, in bytes: the kernel's IFNAMSIZ without its terminator.
const INTERFACE_BYTES_MAX: usize = 15;

/// The name of a network interface by the kernel's rule, or a pattern with `%d` once, for which the kernel puts the first free number.
///
/// # Errors
///
/// What is wrong with it, as the end of a sentence.
pub fn interface(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("which is empty".into());
    }
    if text.len() > INTERFACE_BYTES_MAX {
        return Err(format!("which has {} bytes", text.len()));
    }
    // The kernel looks at bytes, and takes 0xa0 for a space whatever it is a part of.
    let refused = |byte: u8| matches!(byte, b'/' | b':' | 0 | b' ' | b'\t'..=b'\r' | 0xa0);
    if text == "." || text == ".." || text.bytes().any(refused) {
        return Err("which the kernel does not take as an interface name".into());
    }
    match text.split_once('%') {
        Some((_, rest)) if !rest.starts_with('d') || rest.contains('%') => {
            Err("where % is followed by something else than d, or stands there twice".into())
        }
        _ => Ok(text.to_owned()),
    }
}

/// A path that is not empty. Relative ones are relative to the working directory.
pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("which is no path".into());
    }
    if text.contains('\0') {
        return Err("which no file can be called".into());
    }
    Ok(text.into())
}

/// What a log filter looks like.
pub(crate) const LOG: &str =
    "write off, error, warn, info, debug or trace, or for parts of the program \"info,tollgate_shards=debug\"";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What to log: a level, or several directives `level` and `target=level` with commas between, as `tracing` understands them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The directives, in lower case where they are levels.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads directives.
    ///
    /// # Errors
    ///
    /// What is wrong with them, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let directive = |directive: &str| {
            let directive = directive.trim();
            let (target, level) =
                directive.rsplit_once('=').map_or((None, directive), |(t, l)| (Some(t.trim()), l.trim()));
            let lower = level.to_ascii_lowercase();
            if !LEVELS.contains(&lower.as_str()) {
                return Err(match nearest(level, LEVELS.into_iter()) {
                    Some(near) => format!("where {level:?} is not a level: did you mean {near:?}?"),
                    None => format!("where {level:?} is not a level"),
                });
            }
            let Some(target) = target else { return Ok(lower) };
            let part =
                |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
            if target.split("::").all(part) {
                Ok(format!("{target}={lower}"))
            } else {
                Err(format!("where {target:?} does not name a part of the program"))
            }
        };
        let directives = text.split(',').map(directive).collect::<Result<Vec<_>, _>>()?;
        Ok(LogFilter(directives.join(",")))
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        LogFilter("info".into())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of several words, each with the value it stands for.
pub(crate) fn one_of<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T, String> {
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(match nearest(text, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("which is not a choice: did you mean {near:?}?"),
            None => "which is not a choice".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_decimal_bits_with_any_spelling_of_the_unit() {
        for (text, bits_per_s) in [
            ("10 mbps", 10_000_000),
            ("10MBPS", 10_000_000),
            (" 1.5 gbps ", 1_500_000_000),
            ("500 kbps", 500_000),
            ("100bps", 100),
            ("1000 gbps", RATE_BITS_PER_S_MAX),
        ] {
            assert_eq!(rate(text).map(Rate::bits_per_s), Ok(bits_per_s), "{text}");
        }
        for text in ["", "10", "mbps", "10 mb", "-5 mbps", "0 mbps", "1001 gbps", "nan bps", "1e400 bps", "1 2 mbps"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_written_as_it_is_read() {
        for bits_per_s in [1, 999, 1000, 1_500_000, 10_000_000, 3_000_000_000, RATE_BITS_PER_S_MAX] {
            let written = rate_text(Rate::from_bits_per_s(bits_per_s).unwrap());
            assert_eq!(rate(&written).map(Rate::bits_per_s), Ok(bits_per_s), "{written}");
        }
    }

    #[test]
    fn ranges_are_whole_networks_or_first_and_last() {
        for (text, first, last) in [
            ("198.18.0.16/30", "198.18.0.16", "198.18.0.19"),
            ("198.18.0.17/30", "198.18.0.16", "198.18.0.19"),
            ("198.18.0.5/32", "198.18.0.5", "198.18.0.5"),
            ("198.18.0.5-198.18.0.7", "198.18.0.5", "198.18.0.7"),
            ("fd00::a - fd00::f", "fd00::a", "fd00::f"),
        ] {
            let range = range(text).unwrap();
            assert_eq!((range.first(), range.last()), (first.parse().unwrap(), last.parse().unwrap()), "{text}");
        }
        for text in ["", "198.18.0.5", "198.18.0.0/33", "198.18.0.7 - 198.18.0.5", "198.18.0.5 - fd00::1", "a - b"] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fingerprints_have_a_prefix_and_64_digits() {
        let digits = "00ff".repeat(16);
        let expected = Fingerprint(std::array::from_fn(|index| if index % 2 == 0 { 0 } else { 255 }));
        assert_eq!(fingerprint(&format!("sha256:{digits}")), Ok(expected));
        let pairs: Vec<String> =
            digits.to_uppercase().as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into()).collect();
        let (upper, colons) = (digits.to_uppercase(), pairs.join(":"));
        for text in [
            format!("sha256:{upper}"),
            format!("SHA256:{digits}"),
            digits.clone(),
            colons.clone(),
            format!("sha256:{colons}"),
            format!("SHA256 Fingerprint={colons}"),
            format!("sha256 Fingerprint={colons}\n"),
        ] {
            assert_eq!(fingerprint(&text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "sha256:",
            &digits[2..],
            &digits[24..],
            &format!("sha256:{}zz", &digits[2..]),
            &format!("md5:{digits}"),
        ] {
            assert!(fingerprint(text).is_err(), "{text}");
        }
        assert!(fingerprint(&colons[..59]).unwrap_err().contains("SHA-1"));
    }

    #[test]
    fn log_filters_know_levels_and_targets() {
        for (text, filter) in
            [("info", "info"), ("WARN", "warn"), ("info, quincy::server=Debug", "info,quincy::server=debug")]
        {
            assert_eq!(LogFilter::parse(text).as_ref().map(LogFilter::as_str), Ok(filter));
        }
        assert!(LogFilter::parse("inof").unwrap_err().contains("did you mean \"info\""));
        for text in ["", "loud", "=info", "a b=info", "info,,warn", "[span]=info"] {
            assert!(LogFilter::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernels_rules() {
        for text in "tollgate0 vpn.0 quincy%d %d tun+1 a fifteen-letters - ... d\u{fc}sen $x\"'\\".split(' ') {
            assert_eq!(interface(text), Ok(text.into()));
        }
        let refused = "|.|..|sixteen-letters-|a/b|a b|a:b|a\tb|a\nb|a\0b|\u{e0}|%|a%s|%d%d|a%";
        for text in refused.split('|') {
            assert!(interface(text).is_err(), "{text:?}");
        }
    }
}
