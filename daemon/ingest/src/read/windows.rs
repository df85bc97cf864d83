//! Conversations from lines that each repeat the last turns and add one. A turn is known by its position: when the position
//! goes back, another conversation begins.

use crate::profile::Profile;
use crate::read::ReadError;
use crate::read::shape::{Spoken, bounded};
use crate::rule::{Rejection, Rule};
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// `label speaker position [strategy] text`.
static TURN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?s)^\s*\d+(?:\.\d+)? (\d) (\d{1,6})(?: \[[^\]]{1,60}\])?(.*)$")
        .expect("a constant pattern that tests use")
});

/// Word that separates the turns of a line.
const SEPARATOR: &str = " EOS ";

/// Hands each conversation to `take`, with the number of the line that ended it.
pub(crate) fn conversations(
    bytes: &[u8],
    profile: &Profile,
    take: &mut dyn FnMut(u64, Result<Vec<Spoken>, Rejection>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut open: BTreeMap<u32, Spoken> = BTreeMap::new();
    let mut ordinal = 0;
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else {
            take(ordinal, Err(Rejection::beyond(Rule::InvalidUtf8, 0, 0, ordinal)))?;
            ordinal += 1;
            continue;
        };
        if let Err(rejection) = bounded(line, ordinal) {
            take(ordinal, Err(rejection))?;
            ordinal += 1;
            continue;
        }
        let turns: Vec<(u32, Spoken)> = line.split(SEPARATOR).filter_map(|turn| parse(turn, profile)).collect();
        let Some((last, _)) = turns.last() else { continue };
        let is_new = open.last_key_value().is_some_and(|(known, _)| last <= known) || disagrees(&open, &turns);
        if is_new {
            take(ordinal, Ok(std::mem::take(&mut open).into_values().collect()))?;
            ordinal += 1;
        }
        open.extend(turns);
    }
    if open.is_empty() { Ok(()) } else { take(ordinal, Ok(open.into_values().collect())) }
}

fn parse(turn: &str, profile: &Profile) -> Option<(u32, Spoken)> {
    let found = TURN.captures(turn)?;
    let speaker = profile.speaker(&found[1])?;
    Some((found[2].parse().ok()?, Spoken { speaker, text: found[3].trim().to_owned(), start_ms: None }))
}

/// Whether a position is known with other words.
fn disagrees(open: &BTreeMap<u32, Spoken>, turns: &[(u32, Spoken)]) -> bool {
    turns.iter().any(|(position, turn)| open.get(position).is_some_and(|known| known.text != turn.text))
}
