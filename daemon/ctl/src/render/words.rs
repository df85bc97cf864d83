//! Numbers and times as people read them.

use crate::session::Edge;
use jiff::Timestamp;

/// `5 s`, `2 min 5 s`, `3 h 12 min`, `4 d 2 h`.
pub(crate) fn duration(seconds: u64) -> String {
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        _ => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3 MB`, in powers of a thousand.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.into_iter().find(|(_, size)| number >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", number as f64 / size as f64),
        None => format!("{number} B"),
    }
}

/// `2026-03-01 14:05:09` in the user's zone.
pub(crate) fn time(at_ms: u64, edge: &Edge) -> String {
    at(at_ms, edge, "%Y-%m-%d %H:%M:%S")
}

/// `03-01 14:05:09` in the user's zone, where the year goes without saying.
pub(crate) fn moment(at_ms: u64, edge: &Edge) -> String {
    at(at_ms, edge, "%m-%d %H:%M:%S")
}

/// `2026-03-01` in the user's zone.
pub(crate) fn day(at_ms: u64, edge: &Edge) -> String {
    at(at_ms, edge, "%Y-%m-%d")
}

fn at(at_ms: u64, edge: &Edge, format: &str) -> String {
    let stamp = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(|| "out of range".into(), |stamp| stamp.to_zoned(edge.zone.clone()).strftime(format).to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Noon of 1 March 2026 in UTC, watched by nobody.
    pub(crate) fn edge() -> Edge {
        Edge { now_ms: 1_772_366_400_000, zone: jiff::tz::TimeZone::UTC, state_dir: None, terminal: false }
    }

    #[test]
    fn figures_read_well() {
        assert_eq!([5, 60, 125, 11_520, 352_800].map(duration), ["5 s", "1 min", "2 min 5 s", "3 h 12 min", "4 d 2 h"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([999, 1_500, 98_362_432].map(bytes), ["999 B", "1.5 kB", "98.4 MB"]);
    }
}
