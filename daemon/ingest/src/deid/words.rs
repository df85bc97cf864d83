//! Words that look like names and are none, names that are also words, and where capitalised words stand. It finds no
//! identifier by itself.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Words that are no name even with a capital: the common words of English, months, weekdays, peoples, faiths.
static ORDINARY: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("ordinary.txt").split_whitespace().collect());

/// Names that are also common words: they count only with a capital, or after a title.
static AMBIGUOUS: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("ambiguous.txt").split_whitespace().collect());

/// Countries, continents and states, which do not identify (45 CFR 164.514(b)(2)(i)(B) begins below the state).
static WIDE: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("wide_areas.txt").lines().collect());

const TITLES: &[&str] = &[
    "dr",
    "mr",
    "mrs",
    "ms",
    "mx",
    "miss",
    "prof",
    "professor",
    "doctor",
    "nurse",
    "rev",
    "sir",
    "jr",
    "sr",
    "phd",
    "md",
];

/// Whether a word, in any case, is no name.
pub(super) fn is_ordinary(word: &str) -> bool {
    let lower = word.to_lowercase();
    let stem = lower.strip_suffix("'s").unwrap_or(&lower);
    ORDINARY.contains(stem) || ORDINARY.contains(lower.as_str()) || stem.split('-').all(|part| ORDINARY.contains(part))
}

/// Whether a name is also a common word.
pub(super) fn is_ambiguous(word: &str) -> bool {
    AMBIGUOUS.contains(word.to_lowercase().as_str()) || is_ordinary(word)
}

/// Whether a place is too wide to identify.
pub(super) fn is_wide_area(place: &str) -> bool {
    WIDE.contains(place)
}

/// Whether a word is a title and no name.
pub(super) fn is_title(word: &str) -> bool {
    TITLES.contains(&word.trim_end_matches('.').to_lowercase().as_str())
}

/// A word with a capital and small letters.
pub(super) fn titled(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars.flat_map(char::to_lowercase)).collect()
}

/// Words and where they start. Whatever is no letter ends one.
pub(super) fn all(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(char::is_alphabetic)?;
        let length = text[start..].find(|c: char| !c.is_alphabetic()).unwrap_or(text.len() - start);
        rest = start + length;
        Some((start, &text[start..rest]))
    })
}

/// Capitalised words and where they start.
pub(super) fn capitalised(text: &str) -> impl Iterator<Item = (usize, &str)> {
    all(text).filter(|(_, word)| word.starts_with(char::is_uppercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_lower_case() {
        assert!(AMBIGUOUS.iter().all(|word| *word == word.to_lowercase()));
        assert!(is_wide_area("New Zealand") && !is_wide_area("Fresno"));
        assert!(ORDINARY.len() > 400 && ORDINARY.iter().all(|word| *word == word.to_lowercase()));
    }

    #[test]
    fn words_are_told_apart() {
        assert!(is_ordinary("Then") && is_ordinary("Tuesday's") && is_ordinary("Mm-hm") && !is_ordinary("Tamsin"));
        assert_eq!(
            capitalised("So Anne-Marie's at Home").collect::<Vec<_>>(),
            [(0, "So"), (3, "Anne"), (8, "Marie"), (19, "Home")]
        );
        assert_eq!(titled("MICHAEL"), "Michael");
    }
}
