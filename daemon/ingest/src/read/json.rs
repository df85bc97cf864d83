//! Entries of JSON sources: the lines of one form, the elements of the other, found by walking brackets and strings once, so
//! that a broken element costs itself and not its neighbours. It knows no profile and copies nothing.

use crate::limits::{DEPTH_MAX, DETECT_ENTRIES, ENTRY_BYTES_MAX};
use crate::profile::common;
use crate::rule::{Rejection, Rule};
use serde_json::Value;

/// The entries of a JSON source, in order.
#[derive(Clone, Copy)]
pub(crate) enum Entries<'a> {
    /// Lines not yet read.
    Lines(&'a [u8]),
    /// Elements of an array not yet read.
    Elements(&'a [u8]),
    /// The document itself.
    Whole(&'a [u8]),
}

impl<'a> Entries<'a> {
    /// The lines of a source.
    pub(crate) fn lines(bytes: &'a [u8]) -> Self {
        Entries::Lines(bytes)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Entries::Lines(rest) => loop {
                if rest.is_empty() {
                    return None;
                }
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                let line = rest[..end].trim_ascii();
                *rest = &rest[(end + 1).min(rest.len())..];
                if !line.is_empty() {
                    return Some(line);
                }
            },
            Entries::Elements(rest) => {
                let start = rest.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != b',')?;
                let body = &rest[start..];
                if body[0] == b']' {
                    *rest = &[];
                    return None;
                }
                let end = value_end(body).unwrap_or(body.len());
                *rest = &body[end..];
                Some(&body[..end])
            }
            Entries::Whole(rest) => Some(std::mem::take(rest)).filter(|rest| !rest.is_empty()),
        }
    }
}

/// The ways to see a JSON document: the elements of its array, the elements it holds under a known name, itself.
pub(crate) fn views(bytes: &[u8]) -> Vec<Entries<'_>> {
    let bytes = bytes.trim_ascii();
    if bytes.first() == Some(&b'[') {
        return vec![Entries::Elements(&bytes[1..])];
    }
    let mut views: Vec<Entries<'_>> = Vec::new();
    if let Some(elements) = contained(bytes) {
        views.push(Entries::Elements(elements));
    }
    views.push(Entries::Whole(bytes));
    views
}

/// What follows the opening bracket of the array of records that this object holds.
fn contained(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"{")?;
    loop {
        let start = rest.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != b',')?;
        rest = &rest[start..];
        let key_end = if rest[0] == b'"' { string_end(rest)? } else { return None };
        let key = std::str::from_utf8(&rest[1..key_end - 1]).unwrap_or_default();
        rest = rest[key_end..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let array = rest.strip_prefix(b"[").filter(|inside| inside.trim_ascii_start().first() == Some(&b'{'));
        if let Some(array) = array.filter(|_| common().containers.iter().any(|name| name.eq_ignore_ascii_case(key))) {
            return Some(array);
        }
        rest = &rest[value_end(rest)?..];
    }
}

/// The first entries that are objects.
pub(crate) fn sample(entries: Entries<'_>) -> Vec<Value> {
    entries.take(DETECT_ENTRIES).filter_map(object).collect()
}

/// The object an entry is, when it is one within the bounds.
pub(crate) fn object(entry: &[u8]) -> Option<Value> {
    if entry.first() != Some(&b'{') {
        return None;
    }
    parse(entry, 0).ok().filter(Value::is_object)
}

/// Whether one value takes up the whole text.
pub(crate) fn is_one_value(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii();
    value_end(bytes) == Some(bytes.len())
}

/// Whether the text starts as a JSON document does: `[doctor]` and `{name}` are no such start.
pub(crate) fn looks_like_document(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii();
    let inside = bytes[1..].trim_ascii_start().first().copied();
    match bytes[0] {
        b'{' => matches!(inside, Some(b'"' | b'}')),
        _ => matches!(inside, Some(b'{' | b']' | b'"' | b'[')),
    }
}

/// Parses one entry within the bounds.
pub(crate) fn parse(entry: &[u8], ordinal: u64) -> Result<Value, Rejection> {
    if entry.len() > ENTRY_BYTES_MAX {
        return Err(Rejection::beyond(Rule::OversizedEntry, entry.len(), ENTRY_BYTES_MAX, ordinal));
    }
    let text = std::str::from_utf8(entry)
        .map_err(|error| Rejection::beyond(Rule::InvalidUtf8, error.valid_up_to(), entry.len(), ordinal))?;
    let depth = depth(entry);
    if depth > DEPTH_MAX {
        return Err(Rejection::beyond(Rule::TooDeep, depth, DEPTH_MAX, ordinal));
    }
    serde_json::from_str(text).map_err(|error| Rejection::beyond(Rule::BrokenRow, error.column(), 0, ordinal))
}

/// Index after the string that starts here.
fn string_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// Index after the value that starts here; `None` when it does not end.
fn value_end(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut open) = (0usize, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at += string_end(&bytes[at..])?,
            b'{' | b'[' => (open, at) = (open + 1, at + 1),
            b'}' | b']' => (open, at) = (open.saturating_sub(1), at + 1),
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if open > 0 => {
                at += 1;
                continue;
            }
            _ => {
                at += bytes[at..]
                    .iter()
                    .position(|byte| b",]}\"{[ \t\r\n".contains(byte))
                    .unwrap_or(bytes.len() - at)
                    .max(1)
            }
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

fn depth(bytes: &[u8]) -> usize {
    let (mut at, mut open, mut deepest) = (0usize, 0usize, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at += string_end(&bytes[at..]).unwrap_or(bytes.len() - at) - 1,
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
        at += 1;
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Vec<&str> {
        views(text.as_bytes())[0].map(|bytes| std::str::from_utf8(bytes).unwrap()).collect()
    }

    #[test]
    fn elements_are_found_without_parsing_them() {
        assert_eq!(
            elements(r#"[{"a": "]}"}, {"b": [1, {"c": 2}]} , 7]"#),
            [r#"{"a": "]}"}"#, r#"{"b": [1, {"c": 2}]}"#, "7"]
        );
        assert_eq!(elements(r#"[{"a": nonsense}, {"b": 1}]"#), [r#"{"a": nonsense}"#, r#"{"b": 1}"#]);
        assert_eq!(elements(r#"[{"a": 1}, {"b": "cut of"#), [r#"{"a": 1}"#, r#"{"b": "cut of"#]);
        assert_eq!(elements("[]"), Vec::<&str>::new());
    }

    #[test]
    fn records_are_found_inside_a_known_container() {
        assert_eq!(elements(r#"{"version": [1], "Concepts": [{"a": 1}, {"b": 2}]}"#), [r#"{"a": 1}"#, r#"{"b": 2}"#]);
        assert_eq!(views(br#"{"messages": [{"a": 1}]}"#).len(), 1);
    }

    #[test]
    fn bounds_are_named() {
        let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
        assert_eq!(parse(deep.as_bytes(), 0).unwrap_err().rule, Rule::TooDeep);
        assert_eq!(parse(b"{\"a\": \"\xFF\"}", 0).unwrap_err().rule, Rule::InvalidUtf8);
        assert_eq!(parse(b"{\"a\": ", 0).unwrap_err().rule, Rule::BrokenRow);
        let long = vec![b' '; ENTRY_BYTES_MAX + 1];
        assert_eq!(parse(&long, 0).unwrap_err().rule, Rule::OversizedEntry);
    }
}
