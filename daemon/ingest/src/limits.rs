//! Every bound on what a source may hold, in one place. What happens beyond a bound is decided where it is checked.

/// Largest source that is read, in bytes. The caller holds it in memory once; nothing here copies it whole.
pub const FILE_BYTES_MAX: usize = 2 << 30;
/// Longest line, table row or JSON element, in bytes. It is longer than every field together in an honest record.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;
/// Longest single text, in bytes: about 45,000 words, more than three hours of talk in one field.
pub const FIELD_BYTES_MAX: usize = 256 << 10;
/// Most turns of one conversation.
pub const TURNS_MAX: usize = 10_000;
/// Most records, accepted and refused together, of one source.
pub const RECORDS_MAX: usize = 1_000_000;
/// Deepest nesting of a JSON element.
pub const DEPTH_MAX: usize = 64;
/// Most columns of a table.
pub const COLUMNS_MAX: usize = 1_024;
/// Most unclosed quotes after which a table is still resumed at the next line. It keeps reading linear in the size.
pub const RESUMES_MAX: usize = 16;
/// Entries that detection looks at.
pub const DETECT_ENTRIES: usize = 32;
/// Bytes that detection looks at to tell text from other files.
pub const DETECT_BYTES: usize = 64 << 10;
/// Most names of a clinic roster.
pub const ROSTER_NAMES_MAX: usize = 200_000;
/// Longest name of a clinic roster, in bytes.
pub const ROSTER_NAME_BYTES_MAX: usize = 200;
