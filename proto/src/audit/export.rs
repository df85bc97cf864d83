//! The audit trail as files: parts of entries, one a line, and the signed checkpoint over all of them. Whoever has them checks
//! them with [`super::log::LogCheck`]; who writes and reads them is not known here.

/// File of the signed checkpoint.
pub const CHECKPOINT_FILE: &str = "checkpoint.json";
/// Entries of a part.
pub const PART_ENTRIES: u64 = 65_536;
/// Longest line of a part.
pub const MAX_LINE_BYTES: usize = 2048;
/// Most parts: with them a trail has 65 million entries.
pub const MAX_PARTS: u64 = 998;

/// The file of part `number`, from 0.
#[must_use]
pub fn part_file(number: u64) -> String {
    format!("entries-{number:06}.jsonl")
}
