//! Telephone numbers and ages above 89. A telephone number is told by its form, by the numbering plans of the world, or by
//! the words around it.

use crate::deid::Found;
use empathd_proto::record::PhiKind;
use phonenumber::country::Id;
use regex::Regex;
use std::sync::LazyLock;

macro_rules! pattern {
    ($name:ident, $($part:expr),+) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(concat!($($part),+)).expect("a constant pattern that tests use"));
    };
}

// Seven to fifteen digits, grouped or not, with an extension or not.
pattern!(CANDIDATE, r"(?i)(?:\+|\b00)?\(?\d(?:[ .\-/()]{0,2}\d){6,14}(?: ?(?:x|ext\.?|extension) ?\d{1,6})?");
// Forms that are written for nothing else.
pattern!(
    FORM,
    r"(?i)^(?:(?:\+?1|001)[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?: ?(?:x|ext).*)?$",
    r"|^\d{3}-\d{4}$|^\(0\d{1,4}\)[ \d-]+$|^\+\(?\d|^00\d"
);
pattern!(
    CONTEXT,
    r"(?i)\b(?:phone|tel|telephone|call|called|calling|cell|mobile|fax|faxed|text|number|reach|ring|rings|contact|answer|answers|answering|whatsapp|dial|hotline|line|sms|voicemail)\b"
);

/// Text before a number in which a word makes it a telephone number, in bytes.
const CONTEXT_BYTES: usize = 48;
/// Countries whose national forms are known without a prefix.
const REGIONS: [Id; 5] = [Id::US, Id::GB, Id::AU, Id::DE, Id::FR];

/// Adds what is found.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for candidate in CANDIDATE.find_iter(text) {
        if is_free(text, candidate.start(), candidate.end()) && is_phone(text, candidate.start(), candidate.as_str()) {
            found.push(Found::new(candidate.start(), candidate.end(), PhiKind::Phone));
        }
    }
    ages(text, found);
}

/// Whether the characters around a number do not belong to it.
fn is_free(text: &str, start: usize, end: usize) -> bool {
    let before = text[..start].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '$' && c != '_');
    let after = text[end..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '%' && c != '_');
    before && after
}

fn is_phone(text: &str, start: usize, candidate: &str) -> bool {
    let is_grouped = candidate.contains([' ', '-', '.', '(', '/']);
    if FORM.is_match(candidate) || announced(text, start) {
        return true;
    }
    is_grouped && !is_years(candidate) && REGIONS.iter().any(|region| is_valid(*region, candidate))
}

/// `2019-2023` and the like.
fn is_years(candidate: &str) -> bool {
    let groups: Vec<&str> = candidate.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
    groups.len() <= 3
        && groups.iter().any(|group| group.len() == 4 && (group.starts_with("19") || group.starts_with("20")))
}

fn announced(text: &str, start: usize) -> bool {
    let from = (start.saturating_sub(CONTEXT_BYTES)..=start).find(|at| text.is_char_boundary(*at)).unwrap_or(start);
    CONTEXT.is_match(&text[from..start])
}

fn is_valid(region: Id, candidate: &str) -> bool {
    phonenumber::parse(Some(region), candidate).is_ok_and(|number| phonenumber::is_valid(&number))
}

pattern!(AGE_OLD, r"(?i)\b((?:9\d|1[01]\d)[- ]?(?:years?|yrs?|yo|y/o)(?:[- ]old)?)\b");
pattern!(
    AGE_SAID,
    r"(?i)\b(?:aged?|turned|turning|turns|i'm|i am|she's|he's|she is|he is|was) (9\d|1[01]\d)(?:[.,;!?]|$| and | now| next| this)"
);
pattern!(
    AGE_WORDS,
    r"(?i)\b((?:ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|(?:a|one) hundred(?: and \w+)?)[- ]years?[- ]old)\b"
);

/// Ages above 89 (45 CFR 164.514(b)(2)(i)(C)).
fn ages(text: &str, found: &mut Vec<Found>) {
    for pattern in [&AGE_OLD, &AGE_SAID, &AGE_WORDS] {
        for part in pattern.captures_iter(text).filter_map(|captures| captures.get(1)) {
            let is_span_of_time =
                part.as_str().to_ascii_lowercase().ends_with("years") || part.as_str().ends_with("year");
            if !is_span_of_time {
                found.push(Found::new(part.start(), part.end(), PhiKind::Age));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(&str, &'static str)> {
        let mut found = Vec::new();
        find(text, &mut found);
        found.iter().map(|f| (&text[f.start..f.end], f.kind.as_str())).collect()
    }

    #[test]
    fn telephone_numbers_in_many_forms() {
        for number in [
            "555-0134",
            "(559) 555-0142",
            "559.555.0142",
            "+44 20 7946 0958",
            "(02) 9876 5432",
            "001-518-640-0854",
            "020 7946 0958",
            "345-899-3560x4587",
            "+1-984-182-0190",
        ] {
            assert_eq!(kinds(&format!("It is {number}, yes")), [(number, "phone")]);
        }
        assert_eq!(kinds("call me on 4673395 tonight"), [("4673395", "phone")]);
    }

    #[test]
    fn other_numbers_are_none() {
        assert_eq!(kinds("from 2019-2023, 1,234,567 people, 10 000 000 of 50-60-70, 1234567"), []);
    }

    #[test]
    fn only_ages_above_89_identify() {
        assert_eq!(
            kinds("a 94-year-old woman, I am 24 years old, he turned 91."),
            [("94-year-old", "age"), ("91", "age")]
        );
        assert_eq!(
            kinds("He was ninety-four years old. I'm 95 percent sure. For 95 years it stood."),
            [("ninety-four years old", "age")]
        );
    }
}
