//! Names the clinic knows: its clients, their kin, its staff. All of them are looked for in one pass, as whole words, with
//! their possessives, in any case unless the name is also an ordinary word.

use crate::deid::{Found, words};
use crate::limits::{ROSTER_NAME_BYTES_MAX, ROSTER_NAMES_MAX};
use aho_corasick::{AhoCorasick, MatchKind};
use empathd_proto::record::PhiKind;
use std::collections::BTreeMap;

/// Why a roster cannot be used. It never shows a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// More names than the bound.
    #[error(
        "the roster has more than {ROSTER_NAMES_MAX} names; keep those of present clients, their kin and the staff"
    )]
    TooManyNames,
    /// A name longer than the bound.
    #[error("name {number} of the roster has more than {ROSTER_NAME_BYTES_MAX} bytes; write one name a line")]
    NameTooLong {
        /// Which one, from one.
        number: usize,
    },
    /// The names do not fit the matcher.
    #[error("the roster is too large for one search; remove names that are no longer needed")]
    TooLarge,
}

/// Names that are hidden wherever they stand. Its `Debug` shows their number only.
pub struct Roster {
    matcher: Option<AhoCorasick>,
    /// For each pattern, whether it counts only as written with a capital.
    needs_capital: Vec<bool>,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Roster({} patterns)", self.needs_capital.len())
    }
}

impl Roster {
    /// A roster without names.
    #[must_use]
    pub fn empty() -> Self {
        Self { matcher: None, needs_capital: Vec::new() }
    }

    /// A roster of full names; each of their parts is looked for as well. Entries without letters are passed over.
    ///
    /// # Errors
    /// [`RosterError`] when it is beyond the bounds.
    pub fn new(names: impl IntoIterator<Item = String>) -> Result<Self, RosterError> {
        let mut patterns: BTreeMap<String, bool> = BTreeMap::new();
        for (index, name) in names.into_iter().enumerate() {
            if index >= ROSTER_NAMES_MAX {
                return Err(RosterError::TooManyNames);
            }
            if name.len() > ROSTER_NAME_BYTES_MAX {
                return Err(RosterError::NameTooLong { number: index + 1 });
            }
            let name = super::Normal::of(&crate::text::squeezed(&name)).text().to_owned();
            let parts =
                name.split([' ', ',']).map(|part| part.trim_matches('.')).filter(|part| part.chars().count() > 1);
            let parts = parts.filter(|part| has_letter(part) && !words::is_title(part));
            patterns.extend(parts.map(|part| (part.to_owned(), false)));
            // "Moss, Anna" is "Anna Moss" as well.
            if let Some((last, first)) = name.split_once(',') {
                patterns.insert(format!("{} {}", first.trim(), last.trim()), false);
            }
            if has_letter(&name) {
                patterns.insert(name, false);
            }
        }
        Self::of_patterns(patterns)
    }

    /// A matcher for surfaces as they are; those marked count only with a capital.
    pub(crate) fn of_patterns(names: BTreeMap<String, bool>) -> Result<Self, RosterError> {
        let all =
            names.into_iter().flat_map(|(name, capital)| variants(name).into_iter().map(move |form| (form, capital)));
        let patterns: BTreeMap<String, bool> = all.collect();
        if patterns.is_empty() {
            return Ok(Self::empty());
        }
        let is_word = |form: &String| form.chars().count() < 3 || words::is_ambiguous(form);
        let needs_capital = patterns.iter().map(|(form, capital)| *capital || is_word(form)).collect();
        let mut builder = AhoCorasick::builder();
        builder.ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest);
        let matcher = builder.build(patterns.keys()).map_err(|_| RosterError::TooLarge)?;
        Ok(Self { matcher: Some(matcher), needs_capital })
    }

    /// Where its names stand in a normalised text.
    pub(crate) fn find(&self, text: &str) -> Vec<Found> {
        let Some(matcher) = &self.matcher else { return Vec::new() };
        let is_whole = |start: usize, end: usize| {
            !text[..start].ends_with(char::is_alphanumeric) && !text[end..].starts_with(char::is_alphanumeric)
        };
        matcher
            .find_iter(text)
            .filter(|found| is_whole(found.start(), found.end()))
            .filter(|found| {
                !self.needs_capital[found.pattern()] || text[found.start()..].starts_with(char::is_uppercase)
            })
            .map(|found| Found::new(found.start(), found.end(), PhiKind::Name))
            .collect()
    }
}

fn has_letter(text: &str) -> bool {
    text.chars().any(char::is_alphabetic)
}

/// The matcher folds ASCII only: names with other letters are given in each case, and without their accents.
fn variants(name: String) -> Vec<String> {
    use unicode_normalization::UnicodeNormalization as _;
    if name.is_ascii() {
        return vec![name];
    }
    let bare: String = name.nfd().filter(|c| !unicode_normalization::char::is_combining_mark(*c)).collect();
    vec![name.to_lowercase(), name.to_uppercase(), bare, name]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(roster: &[&str], text: &'static str) -> Vec<&'static str> {
        let roster = Roster::new(roster.iter().map(|name| (*name).to_owned())).unwrap();
        roster.find(text).iter().map(|found| &text[found.start..found.end]).collect()
    }

    #[test]
    fn names_are_found_whole_in_any_case() {
        assert_eq!(names(&["Ines Okafor"], "INES okafor's mother met ines; wines are fine"), ["INES okafor", "ines"]);
        assert_eq!(names(&["Okafor, Ines"], "Ines Okafor"), ["Ines Okafor"]);
        assert_eq!(names(&["Zoë Müller"], "zoë and Muller and MÜLLER"), ["zoë", "Muller", "MÜLLER"]);
    }

    #[test]
    fn names_that_are_words_need_their_capital() {
        assert_eq!(names(&["Will Hope"], "I hope he will. Ask Will."), ["Will"]);
    }

    #[test]
    fn bounds_hold() {
        assert_eq!(Roster::new(["x".repeat(201)]).unwrap_err(), RosterError::NameTooLong { number: 1 });
        assert!(Roster::new([String::new(), "--".to_owned()]).unwrap().find("anything").is_empty());
    }
}
