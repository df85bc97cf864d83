//! Words that look like names and are none, names that are also words, and where capitalised words stand. It finds no
//! identifier by itself.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Words that are no name even with a capital: the common words of English, months, weekdays, peoples, faiths.
static ORDINARY: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("ordinary.txt").split_whitespace().collect());

/// Names that are also common words: they count only with a capital, or after a title.
const AMBIGUOUS: &[&str] = &[
    "amber",
    "angel",
    "april",
    "art",
    "august",
    "aurora",
    "austin",
    "autumn",
    "basil",
    "belle",
    "bill",
    "bonnie",
    "brook",
    "brooklyn",
    "buck",
    "carol",
    "carter",
    "celeste",
    "chance",
    "charity",
    "chase",
    "christian",
    "clay",
    "cliff",
    "colt",
    "constance",
    "cooper",
    "crystal",
    "daisy",
    "dale",
    "dawn",
    "dean",
    "destiny",
    "dolly",
    "drew",
    "eve",
    "faith",
    "flora",
    "florence",
    "frank",
    "gene",
    "georgia",
    "ginger",
    "glen",
    "gloria",
    "grace",
    "grant",
    "guy",
    "harmony",
    "harry",
    "hazel",
    "heath",
    "heather",
    "holly",
    "hope",
    "hunter",
    "iris",
    "ivy",
    "jack",
    "jasmine",
    "jordan",
    "joy",
    "june",
    "ken",
    "king",
    "lance",
    "lane",
    "lee",
    "logan",
    "madison",
    "major",
    "marina",
    "mark",
    "mason",
    "max",
    "may",
    "melody",
    "mercy",
    "miles",
    "miss",
    "morgan",
    "nick",
    "norm",
    "norma",
    "olive",
    "page",
    "parker",
    "pat",
    "patience",
    "pearl",
    "penny",
    "petra",
    "pierce",
    "piper",
    "poppy",
    "porter",
    "price",
    "prince",
    "prudence",
    "ray",
    "reed",
    "regina",
    "rich",
    "river",
    "rob",
    "robin",
    "rock",
    "rod",
    "roman",
    "rose",
    "roy",
    "ruby",
    "rusty",
    "sage",
    "sandy",
    "savannah",
    "skip",
    "sky",
    "star",
    "stone",
    "storm",
    "sue",
    "summer",
    "sunny",
    "sydney",
    "taylor",
    "victor",
    "viola",
    "violet",
    "virginia",
    "wade",
    "ward",
    "west",
    "will",
    "willow",
    "wood",
    "young",
];

/// Countries, continents and states, which do not identify (45 CFR 164.514(b)(2)(i)(B) begins below the state).
const WIDE: &[&str] = &[
    "Africa",
    "Alabama",
    "Alaska",
    "America",
    "Argentina",
    "Arizona",
    "Arkansas",
    "Asia",
    "Australia",
    "Austria",
    "Belgium",
    "Brazil",
    "Britain",
    "California",
    "Canada",
    "Chile",
    "China",
    "Colombia",
    "Colorado",
    "Connecticut",
    "Cuba",
    "Delaware",
    "Denmark",
    "Egypt",
    "England",
    "Estonia",
    "Europe",
    "Finland",
    "Florida",
    "France",
    "Georgia",
    "Germany",
    "Ghana",
    "Greece",
    "Hawaii",
    "Hungary",
    "Iceland",
    "Idaho",
    "Illinois",
    "India",
    "Indiana",
    "Indonesia",
    "Iowa",
    "Iran",
    "Iraq",
    "Ireland",
    "Israel",
    "Italy",
    "Jamaica",
    "Japan",
    "Kansas",
    "Kentucky",
    "Kenya",
    "Korea",
    "Louisiana",
    "Maine",
    "Maryland",
    "Massachusetts",
    "Mexico",
    "Michigan",
    "Minnesota",
    "Mississippi",
    "Missouri",
    "Montana",
    "Morocco",
    "Nebraska",
    "Netherlands",
    "Nevada",
    "New England",
    "New Hampshire",
    "New Jersey",
    "New Mexico",
    "New York",
    "New Zealand",
    "Nigeria",
    "North Carolina",
    "North Dakota",
    "Norway",
    "Ohio",
    "Oklahoma",
    "Oregon",
    "Pakistan",
    "Pennsylvania",
    "Peru",
    "Philippines",
    "Poland",
    "Portugal",
    "Rhode Island",
    "Russia",
    "Scotland",
    "South Africa",
    "South Carolina",
    "South Dakota",
    "South Korea",
    "Spain",
    "Sweden",
    "Switzerland",
    "Syria",
    "Taiwan",
    "Tennessee",
    "Texas",
    "Thailand",
    "Turkey",
    "UK",
    "US",
    "USA",
    "Uganda",
    "Ukraine",
    "United Kingdom",
    "United States",
    "Utah",
    "Vermont",
    "Vietnam",
    "Virginia",
    "Wales",
    "Washington",
    "West Virginia",
    "Wisconsin",
    "Wyoming",
];

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
    AMBIGUOUS.contains(&word.to_lowercase().as_str()) || is_ordinary(word)
}

/// Whether a place is too wide to identify.
pub(super) fn is_wide_area(place: &str) -> bool {
    WIDE.binary_search(&place).is_ok()
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
    fn lists_are_in_order_and_in_lower_case() {
        assert!(WIDE.is_sorted());
        assert!(AMBIGUOUS.iter().all(|word| *word == word.to_lowercase()));
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
