//! Which profile a source has, by its header and shape. It looks at the first entries only and never at a name of a file or
//! folder; the extension merely breaks ties. Errors name keys and columns that look like such, never a value.

use crate::limits::{DETECT_BYTES, DETECT_ENTRIES, ENTRY_BYTES_MAX, FILE_BYTES_MAX};
use crate::profile::{Format, Profile, Shape, profiles};
use crate::read::fields::Fields;
use crate::read::{captions, json, table};
use serde_json::Value;

/// Why no profile was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    /// Nothing in it.
    #[error("the source is empty; check the export that made it")]
    Empty,
    /// Larger than the bound.
    #[error("the source has {bytes} bytes, more than {FILE_BYTES_MAX}; split it into smaller files")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Text in sixteen-bit units.
    #[error("the source is UTF-16; save it as UTF-8 and ingest it again")]
    Utf16,
    /// Not text.
    #[error("the source is not text; export it as JSONL, JSON, CSV, TSV, WebVTT or SRT")]
    NotText,
    /// One line that does not end within the bound.
    #[error("the source has a line of more than {ENTRY_BYTES_MAX} bytes at its start; write one record a line")]
    EndlessLine,
    /// Readable, but of no known shape.
    #[error(
        "no source profile fits; {found}; rename the fields to those of a profile (such as messages, or prompt and response)"
    )]
    Unknown {
        /// What was seen, in words: layout and names of fields.
        found: String,
    },
}

/// The profile of a source.
///
/// # Errors
/// [`DetectError`] says what was seen instead and what to do about it.
pub fn detect(bytes: &[u8], extension: Option<&str>) -> Result<&'static Profile, DetectError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(DetectError::TooLarge { bytes: bytes.len() });
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(DetectError::Utf16);
    }
    let bytes = without_mark(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(DetectError::Empty);
    }
    if !looks_like_text(bytes) {
        return Err(DetectError::NotText);
    }
    match layout(bytes) {
        Format::Vtt | Format::Srt => by_shape(|shape| matches!(shape, Shape::Captions {})),
        Format::Jsonl => by_objects(json::sample(json::Entries::lines(bytes)), "lines of JSON"),
        Format::Json => by_document(bytes),
        Format::Csv | Format::Tsv | Format::Lines => by_lines_or_header(bytes, extension),
    }
}

/// The bytes after a byte order mark.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

/// The layout of a text. Tables and line forms are told apart by their profile, not here.
pub(crate) fn layout(bytes: &[u8]) -> Format {
    if bytes.starts_with(b"WEBVTT") {
        return Format::Vtt;
    }
    let parsed = first_lines(bytes).filter(|line| json::object(line).is_some()).take(2).count();
    let opens = bytes.trim_ascii_start().first().copied();
    if parsed == 2 || (parsed == 1 && !json::is_one_value(bytes)) {
        return Format::Jsonl;
    }
    if matches!(opens, Some(b'{' | b'[')) && (parsed == 1 || json::looks_like_document(bytes)) {
        return Format::Json;
    }
    if first_lines(bytes).any(captions::is_timing) { Format::Srt } else { Format::Csv }
}

/// The first lines with something on them, each no longer than the bound.
fn first_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == b'\n')
        .map(|line| line[..line.len().min(ENTRY_BYTES_MAX)].trim_ascii())
        .filter(|line| !line.is_empty())
        .take(DETECT_ENTRIES)
}

/// Share of control bytes above which a file is not text.
const CONTROL_SHARE_MAX: f64 = 0.05;

fn looks_like_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(DETECT_BYTES)];
    let controls = head.iter().filter(|byte| **byte < 0x20 && !b"\t\n\r\x0C\x1B".contains(byte)).count();
    let broken = String::from_utf8_lossy(head).chars().filter(|c| *c == char::REPLACEMENT_CHARACTER).count();
    (controls as f64) <= head.len() as f64 * CONTROL_SHARE_MAX && broken * 4 <= head.len()
}

fn by_shape(wanted: impl Fn(&Shape) -> bool) -> Result<&'static Profile, DetectError> {
    let unknown = || DetectError::Unknown { found: "captions".to_owned() };
    profiles().iter().find(|profile| wanted(&profile.shape)).ok_or_else(unknown)
}

/// The profile that fits most of these objects; among equals the one that asks for more fields.
fn by_objects(objects: Vec<Value>, seen: &str) -> Result<&'static Profile, DetectError> {
    let json = profiles().iter().filter(|p| p.formats.iter().any(|f| matches!(f, Format::Json | Format::Jsonl)));
    let best = best(json.map(|profile| (profile, objects.iter().filter(|object| fits(profile, *object)).count())));
    best.ok_or_else(|| {
        let keys = objects.first().and_then(Value::as_object).map(|map| map.keys().map(String::as_str).collect());
        unknown(seen, keys.unwrap_or_default())
    })
}

fn by_document(bytes: &[u8]) -> Result<&'static Profile, DetectError> {
    let mut last = unknown("a JSON document without records", Vec::new());
    for view in json::views(bytes) {
        match by_objects(json::sample(view), "a JSON document") {
            Ok(profile) => return Ok(profile),
            Err(error) => last = error,
        }
    }
    Err(if is_endless(bytes) { DetectError::EndlessLine } else { last })
}

/// Whether the first line does not end within the bound.
fn is_endless(bytes: &[u8]) -> bool {
    bytes.get(..=ENTRY_BYTES_MAX).is_some_and(|head| !head.contains(&b'\n'))
}

fn by_lines_or_header(bytes: &[u8], extension: Option<&str>) -> Result<&'static Profile, DetectError> {
    if is_endless(bytes) {
        return Err(DetectError::EndlessLine);
    }
    for profile in profiles() {
        if profile.recognise.line.is_some() && line_form_fits(profile, bytes) {
            return Ok(profile);
        }
    }
    let hinted = extension.map(str::to_ascii_lowercase).filter(|e| e == "tsv").map(|_| b'\t');
    let delimiters = hinted.into_iter().chain(table::DELIMITERS);
    let headers: Vec<_> = delimiters.filter_map(|delimiter| table::Header::of(bytes, delimiter)).collect();
    let tables = profiles().iter().filter(|p| p.formats.iter().any(|f| matches!(f, Format::Csv | Format::Tsv)));
    let counted = tables.map(|profile| (profile, headers.iter().filter(|header| fits(profile, *header)).count()));
    best(counted).ok_or_else(|| {
        let widest = headers.iter().max_by_key(|header| header.names().len());
        unknown("a table", widest.map(|header| header.names().collect()).unwrap_or_default())
    })
}

/// Whether the first lines have the form that the profile's expression describes.
pub(crate) fn line_form_fits(profile: &Profile, bytes: &[u8]) -> bool {
    let Some(form) = profile.recognise.line.as_deref().and_then(|line| regex::bytes::Regex::new(line).ok()) else {
        return false;
    };
    let (all, fitting) =
        first_lines(bytes).fold((0, 0), |(all, fit), line| (all + 1, fit + usize::from(form.is_match(line))));
    fitting * 2 > all
}

/// Whether everything the profile asks for is there.
pub(crate) fn fits(profile: &Profile, source: &dyn Fields) -> bool {
    let wanted = &profile.recognise.fields;
    !wanted.is_empty() && wanted.iter().all(|names| names.iter().any(|name| source.has(name)))
}

fn best(counted: impl Iterator<Item = (&'static Profile, usize)>) -> Option<&'static Profile> {
    let mut best: Option<(&'static Profile, (usize, usize))> = None;
    for (profile, count) in counted.filter(|(_, count)| *count > 0) {
        let rank = (count, profile.recognise.fields.len());
        if best.is_none_or(|(_, other)| rank > other) {
            best = Some((profile, rank));
        }
    }
    best.map(|(profile, _)| profile)
}

/// Longest name of a field that an error shows, in bytes.
const SHOWN_NAME_BYTES_MAX: usize = 32;
/// Most names that an error shows.
const SHOWN_NAMES_MAX: usize = 12;

/// Names of fields are shown when they look like such: a file without header has values in their place.
fn unknown(seen: &str, names: Vec<&str>) -> DetectError {
    let is_name = |name: &&&str| {
        name.len() <= SHOWN_NAME_BYTES_MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    };
    let shown: Vec<&str> = names.iter().filter(is_name).take(SHOWN_NAMES_MAX).copied().collect();
    let hidden = names.len() - shown.len();
    let mut found = format!("{seen} with {} fields", names.len());
    if !shown.is_empty() {
        found = format!("{found}: {}", shown.join(", "));
    }
    if hidden > 0 {
        found = format!("{found} ({hidden} not shown)");
    }
    DetectError::Unknown { found }
}
