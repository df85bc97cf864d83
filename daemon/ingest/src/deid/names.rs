//! Names of people that no roster holds: after a title, an introduction or a word for kin, and common given names. A word
//! counts only with a capital and when it is no ordinary word.

use crate::deid::{Found, Roster, words};
use empathd_proto::record::PhiKind;
use regex::Regex;
use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

/// One capitalised word, an initial, or a name joined by hyphen or apostrophe.
const WORD: &str = r"\p{Lu}(?:[\p{L}'-]*\p{L}|\.)?";

struct Cue {
    pattern: Regex,
    /// Whether the first word must be no ordinary word; a title before it makes any word a name.
    is_weak: bool,
}

static CUES: LazyLock<Vec<Cue>> = LazyLock::new(|| {
    let name = format!(r#"["'(]?({WORD}(?: {WORD}){{0,3}})"#);
    let kin = r"(?:sister|brother|mother|father|mom|mum|dad|wife|husband|son|daughter|uncle|aunt|auntie|cousin|niece|nephew|grandmother|grandfather|grandma|grandpa|partner|girlfriend|boyfriend|fianc[eé]e?|ex|friend|neighbou?r|boss|manager|supervisor|coworker|co-worker|colleague|teacher|roommate|therapist|counsell?or|doctor|psychiatrist|dog|cat|stepmother|stepfather|stepson|stepdaughter|twin|baby|kid)s?";
    let strong = [
        r"\b(?:[Dd]r|[Mm]r|[Mm]rs|[Mm]s|[Mm]x|DR|MR|MRS|MS|[Pp]rof|[Rr]ev)\b\.?,? ",
        r"\b(?:Miss|Professor|Doctor|Nurse|Pastor|Rabbi|Imam|Judge|Officer|Detective|Sergeant|Uncle|Aunt|Auntie|Grandma|Grandpa|Father|Sister|Brother|Sir|Madam|Madame|Herr|Frau|Señora?|Coach) ",
        r"\b(?i:my name is|my name's|name is|i am called|i'm called|is called|was called|called|nicknamed|named|goes by|preferred name:?|known as|charted as|full name:?|patient name:?|name ?[:=]|signed,?|yours sincerely,?|kind regards,?|best regards,?|regards,)\s+",
    ];
    let weak = [
        r"\b(?i:this is|i'm|i am|it's|call me|dear|hi|hello|hey|thanks|thank you|bye|goodbye|patient|client|with|meet|met|told|tell|ask|asked|sincerely,?|love,)\s+".to_owned(),
        format!(r"\b(?i:my|his|her|our|their|your|the)(?: (?:older|younger|little|big|late|best|eldest|youngest|former|ex|new|old|dear))? (?i:{kin})(?:'s name is|,| is| named| called)? "),
    ];
    let cue = |before: &str, after: &str, is_weak| Cue {
        pattern: Regex::new(&format!("{before}{name}{after}")).expect("a constant pattern that tests use"),
        is_weak,
    };
    let mut cues: Vec<Cue> = strong.iter().map(|before| cue(before, "", false)).collect();
    // What follows tells a name after a weak cue from the start of something else.
    cues.push(cue(
        &weak[0],
        r#"(?:["'),.!?;:]|$|\n| (?i:and|from|here|speaking|again|who|is|was|in|at|to|that|said)\b)"#,
        true,
    ));
    cues.push(cue(&weak[1], "", true));
    cues
});

/// Somebody who says a name without a capital.
static LOWER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\bmy name(?:'s| is) (\p{L}[\p{L}'-]+)").expect("a constant pattern that tests use")
});

/// Common given names that are no ordinary words, one a line.
static GIVEN: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("given.txt").lines().collect());

/// Adds what is found.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for cue in CUES.iter() {
        for part in cue.pattern.captures_iter(text).filter_map(|captures| captures.get(1)) {
            found.extend(name(part.start(), part.as_str(), cue.is_weak));
        }
    }
    for part in LOWER.captures_iter(text).filter_map(|captures| captures.get(1)) {
        if !words::is_ordinary(part.as_str()) {
            found.push(Found::new(part.start(), part.end(), PhiKind::Name));
        }
    }
    given(text, found);
    runs(text, found);
}

/// Endings of remedies and diseases, which some write with a capital.
const REMEDY_ENDINGS: &[&str] = &[
    "ide", "cin", "xen", "prim", "azole", "zepam", "olol", "pril", "statin", "itis", "itus", "osis", "emia", "dipine",
    "etine", "aline", "amine", "apine", "idine", "done", "lyte", "phen", "itin", "pram", "tadine",
];

/// Longest abbreviation in capitals that is not taken for a name, such as "ADHD", in bytes.
const SHORT_FORM_BYTES_MAX: usize = 5;

/// The words of a capitalised run up to the first ordinary one.
fn name(start: usize, run: &str, is_weak: bool) -> Option<Found> {
    let (mut at, mut end) = (0, 0);
    for word in run.split(' ') {
        let bare = word.strip_suffix("'s").unwrap_or(word);
        let stops =
            words::is_ordinary(bare) || is_weak && (words::is_ambiguous(bare) || bare.chars().count() < 2 && end == 0);
        if stops {
            break;
        }
        end = at + bare.len();
        at += word.len() + 1;
    }
    let name = &run[..end];
    let is_remedy = is_weak && REMEDY_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let is_short_form = is_weak && name.len() <= SHORT_FORM_BYTES_MAX && name.chars().all(char::is_uppercase);
    let says_name = name.chars().filter(|c| c.is_alphabetic()).count() > 1;
    let is_name = says_name && !is_remedy && !is_short_form && !words::is_wide_area(name);
    is_name.then(|| Found::new(start, start + end, PhiKind::Name))
}

/// Shorter given names in small letters are words too often.
const LOWER_CHARS_MIN: usize = 5;

/// Given names, with the initials and capitalised words right after them. In small letters only those that are no word.
fn given(text: &str, found: &mut Vec<Found>) {
    let words: Vec<(usize, &str)> = words::all(text).collect();
    let mut index = 0;
    while index < words.len() {
        let (start, word) = words[index];
        index += 1;
        let is_written = is_capitalised(word) || word.len() >= LOWER_CHARS_MIN && !words::is_ambiguous(word);
        if !is_written || !GIVEN.contains(words::titled(word).as_str()) {
            continue;
        }
        let mut end = start + word.len();
        let goes_on = |end, next, word| {
            follows(text, end, next) && is_capitalised(word) && (is_initial(word) || !words::is_ordinary(word))
        };
        while let Some((next, more)) = words.get(index).filter(|(next, more)| goes_on(end, *next, more)) {
            end = next + more.len();
            index += 1;
        }
        found.push(Found::new(start, end, PhiKind::Name));
    }
}

fn is_capitalised(word: &str) -> bool {
    word.starts_with(char::is_uppercase)
}

/// Endings of words that name ideas, not people.
const IDEA_ENDINGS: &[&str] = &[
    "tion", "sion", "ing", "ment", "ness", "ity", "ive", "ical", "ism", "logy", "apy", "ance", "ence", "ous", "ful",
    "ship", "able", "ible", "sis", "ware", "land", "book", "ies", "ial", "ure",
];

/// Two or more capitalised words side by side that are neither ordinary nor ideas: somebody's full name, most often.
fn runs(text: &str, found: &mut Vec<Found>) {
    let words: Vec<(usize, &str)> = words::capitalised(text).collect();
    let end_of = |(start, word): &(usize, &str)| start + word.len();
    let may_be_name = |word: &str| {
        let is_shouted = word.len() > 1 && word.chars().all(char::is_uppercase);
        is_initial(word)
            || !is_shouted && !words::is_ambiguous(word) && !IDEA_ENDINGS.iter().any(|ending| word.ends_with(ending))
    };
    for run in words.chunk_by(|left, right| follows(text, end_of(left), right.0)) {
        let long = run.iter().filter(|(_, word)| word.chars().count() > 1).count();
        let is_name = (2..=4).contains(&run.len()) && long >= 2 && run.iter().all(|(_, word)| may_be_name(word));
        if let (true, [first, .., last]) = (is_name, run)
            && !words::is_wide_area(&text[first.0..end_of(last)])
        {
            found.push(Found::new(first.0, end_of(last), PhiKind::Name));
        }
    }
}

fn is_initial(word: &str) -> bool {
    word.len() == 1 && word != "I"
}

/// Whether only a space, a hyphen, or the point of an initial stands between two words.
fn follows(text: &str, end: usize, next: usize) -> bool {
    let before = text[..end].rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    match text.get(end..next) {
        Some(" " | "-") => true,
        Some(". ") => is_initial(before),
        _ => false,
    }
}

/// A matcher for every name found in a record and for its parts, when there is one. Parts need their capital: "Hope Lane"
/// must not hide every hope.
pub(super) fn surfaces<'a>(found: impl Iterator<Item = (&'a str, &'a Vec<Found>)>) -> Option<Roster> {
    let mut names: BTreeMap<String, bool> = BTreeMap::new();
    for (text, found) in found {
        for name in found
            .iter()
            .filter(|found| found.kind == PhiKind::Name)
            .filter_map(|found| text.get(found.start..found.end))
        {
            let parts = name.split([' ', '-']).filter(|part| part.chars().count() > 2 && !words::is_ordinary(part));
            for part in parts {
                names.entry(part.to_owned()).or_insert(true);
            }
            names.insert(name.replace('-', " "), false);
            names.insert(name.to_owned(), false);
        }
    }
    if names.is_empty() { None } else { Roster::of_patterns(names).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        find(text, &mut found);
        super::super::merged(found).iter().map(|f| &text[f.start..f.end]).collect()
    }

    #[test]
    fn names_after_titles_introductions_and_kin() {
        assert_eq!(names("I'm Dr. Quill and this is Wendeline speaking."), ["Quill", "Wendeline"]);
        assert_eq!(names("My name is Oriel van Houten. My sister Thessaly came."), ["Oriel", "Thessaly"]);
        assert_eq!(
            names("Doctor Kumar saw patient Reyes-Villalobos, called 'Sunny'."),
            ["Kumar", "Reyes-Villalobos", "Sunny"]
        );
        assert_eq!(names("my name is brannoc by the way"), ["brannoc"]);
        assert_eq!(names("Hi Ozan, I told Birgitte that I'd leave."), ["Ozan", "Birgitte"]);
    }

    #[test]
    fn common_given_names_need_no_cue() {
        assert_eq!(names("Then Jessica A. Thornbury-Vale left MICHAEL."), ["Jessica A. Thornbury-Vale", "MICHAEL"]);
        assert_eq!(names("then jessica met Sereth Valamir in the marina"), ["jessica", "Sereth Valamir"]);
        assert_eq!(names("Motivational Interviewing helps. I saw Alex. Ohh."), ["Alex"]);
    }

    #[test]
    fn ordinary_words_with_a_capital_are_no_names() {
        let talk = "I'm Sorry. This is What I mean. My mother Always says so. Hi There! My name is on the list. Dr. Then left. \
                    My dad, God bless him. I'm American. I told Him. Thanks Again.";
        assert_eq!(names(talk), Vec::<&str>::new());
    }
}
