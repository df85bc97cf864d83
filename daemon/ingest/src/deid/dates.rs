//! Dates finer than a year, written in digits or in words. A year alone says too little to identify anybody.

use crate::deid::Found;
use empathd_proto::record::PhiKind;
use regex::Regex;
use std::sync::LazyLock;

const MONTH: &str = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?";
const DAY: &str = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?";
const ORDINAL: &str = r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|twenty[- ](?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|thirtieth|thirty[- ]first)";
const YEAR: &str = r"(?:,? (?:of )?(?:\d{4}|'\d{2})\b)?";
const WEEKDAY: &str = r"(?:\b(?:mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?,? )?";

static WORDED: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        format!(r"(?i){WEEKDAY}\b(?:the )?{DAY}(?: of|-)?[ -]?{MONTH}(?:-\d{{2,4}}\b)?{YEAR}"),
        format!(r"(?i){WEEKDAY}\b{MONTH} (?:the )?(?:{DAY}|{ORDINAL})\b{YEAR}"),
        format!(r"(?i){WEEKDAY}\b(?:the )?{ORDINAL} (?:day )?of {MONTH}{YEAR}"),
        format!(r"(?i)\b{MONTH},? (?:of )?(?:19|20)\d{{2}}\b"),
        r"\b(?:[Ii]n|[Ss]ince|[Uu]ntil|[Ll]ast|[Nn]ext|[Bb]y|[Ee]arly|[Ll]ate|[Mm]id|[Dd]uring|[Oo]f)[ -]((?:January|February|March|April|May|June|July|August|September|October|November|December))\b".to_owned(),
    ]
    .iter()
    .map(|pattern| Regex::new(pattern).expect("a constant pattern that tests use"))
    .collect()
});

static NUMERIC: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b(\d{1,4})([/.-])(\d{1,2})([/.-])(\d{2,4})(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?")
        .expect("a constant pattern that tests use")
});

static SHORT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:on|since|dated?|until|before|after|by|dob:?|born) (\d{1,2}/\d{1,2})\b")
        .expect("a constant pattern that tests use")
});

/// Adds what is found.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    let mut push = |part: regex::Match<'_>| {
        let trimmed = part.as_str().trim_end_matches(['.', ' ', ',']);
        let lead = trimmed.len() - trimmed.trim_start().len();
        found.push(Found::new(part.start() + lead, part.start() + trimmed.len(), PhiKind::Date));
    };
    for pattern in WORDED.iter() {
        for captures in pattern.captures_iter(text) {
            captures.get(1).or(captures.get(0)).filter(|part| !is_modal(part.as_str())).into_iter().for_each(&mut push);
        }
    }
    for captures in NUMERIC.captures_iter(text) {
        if captures[2] == captures[4]
            && is_date(&captures[1], &captures[3], &captures[5])
            && ends_freely(text, &captures)
        {
            captures.get(0).into_iter().for_each(&mut push);
        }
    }
    SHORT
        .captures_iter(text)
        .filter(|parts| is_day_of_month(&parts[1]))
        .filter_map(|parts| parts.get(1))
        .for_each(&mut push);
}

/// "you may 5 ..." is no date; "May 5" is.
fn is_modal(text: &str) -> bool {
    let lower = text.split(|c: char| !c.is_alphabetic()).any(|word| word == "may" || word == "mar" || word == "march");
    lower && !text.contains("of ") && !text.contains(|c: char| c.is_ascii_digit() && text.len() > 9)
}

fn ends_freely(text: &str, captures: &regex::Captures<'_>) -> bool {
    let end = captures.get(0).map_or(0, |whole| whole.end());
    !text[end..].starts_with(|c: char| c.is_ascii_digit())
}

fn is_day_of_month(text: &str) -> bool {
    let parts: Vec<u32> = text.split('/').filter_map(|part| part.parse().ok()).collect();
    matches!(parts[..], [a, b] if (1..=31).contains(&a) && (1..=31).contains(&b) && (a <= 12 || b <= 12))
}

/// Year first, day first or month first; a year has two or four digits.
fn is_date(first: &str, second: &str, third: &str) -> bool {
    let [a, b, c] = [first, second, third].map(|part| part.parse::<u32>().unwrap_or(0));
    let is_year = |text: &str, value: u32| text.len() == 2 || text.len() == 4 && (1800..2200).contains(&value);
    let is_day = |value: u32| (1..=31).contains(&value);
    let is_month = |value: u32| (1..=12).contains(&value);
    let year_first = first.len() == 4 && is_year(first, a) && is_month(b) && is_day(c) && third.len() <= 2;
    let year_last = first.len() <= 2 && is_year(third, c) && (is_day(a) && is_month(b) || is_month(a) && is_day(b));
    year_first || year_last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dates(text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        find(text, &mut found);
        super::super::merged(found).iter().map(|f| &text[f.start..f.end]).collect()
    }

    #[test]
    fn dates_in_many_forms() {
        for date in [
            "3 July 1987",
            "July 3rd, 1987",
            "July 3rd",
            "03/07/1987",
            "1987-07-03",
            "1987-07-03 11:34:35",
            "3.7.87",
            "the third of July",
            "Monday, July the third",
            "Tuesday 3 July",
            "3-Jul-2024",
            "the 3rd of may",
            "July 1987",
        ] {
            assert_eq!(dates(&format!("It was {date}, I think.")), [date]);
        }
        assert_eq!(dates("since March, on 7/3 and in July."), ["March", "7/3", "July"]);
    }

    #[test]
    fn years_scores_and_modal_verbs_are_none() {
        assert_eq!(
            dates("In 2019 it was 7/10, 24/7. You may 3 times march 2 miles. 40-50-60 and 99/99/9999, 1.2.3.4"),
            Vec::<&str>::new()
        );
    }
}
