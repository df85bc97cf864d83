//! Names of people that no roster holds: after a title, an introduction or a word for kin, and common given names. A word
//! counts only with a capital and when it is no ordinary word.

use crate::deid::{Found, Roster, words};
use empathd_proto::record::PhiKind;
use regex::Regex;
use std::collections::{BTreeSet, HashSet};
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
        r"\b(?i:this is|i'm|i am|it's|call me|dear|hi|hello|hey|thanks|thank you|bye|goodbye|patient|client|with|and|from|meet|met|told|tell|ask|asked|sincerely,?|love,)\s+".to_owned(),
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
}

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
    (end > 1).then(|| Found::new(start, start + end, PhiKind::Name))
}

/// Given names, with the initials and capitalised words right after them.
fn given(text: &str, found: &mut Vec<Found>) {
    let words: Vec<(usize, &str)> = words::capitalised(text).collect();
    let mut index = 0;
    while index < words.len() {
        let (start, word) = words[index];
        index += 1;
        if !GIVEN.contains(words::titled(word).as_str()) {
            continue;
        }
        let mut end = start + word.len();
        while let Some((next, more)) =
            words.get(index).filter(|(next, more)| follows(text, end, *next) && !words::is_ordinary(more))
        {
            end = next + more.len();
            index += 1;
        }
        found.push(Found::new(start, end, PhiKind::Name));
    }
}

/// Whether only a space, a hyphen, or the point of an initial stands between two words.
fn follows(text: &str, end: usize, next: usize) -> bool {
    matches!(text.get(end..next), Some(" " | "-" | ". "))
}

/// A matcher for every name found in a record and its parts, when there is one.
pub(super) fn surfaces<'a>(found: impl Iterator<Item = (&'a str, &'a Vec<Found>)>) -> Option<Roster> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (text, found) in found {
        for name in found
            .iter()
            .filter(|found| found.kind == PhiKind::Name)
            .filter_map(|found| text.get(found.start..found.end))
        {
            let parts = name.split(' ').filter(|part| part.chars().count() > 2 && !words::is_ordinary(part));
            names.extend(parts.map(str::to_owned));
            if name.contains('-') {
                names.insert(name.replace('-', " "));
            }
            names.insert(name.to_owned());
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
    }

    #[test]
    fn ordinary_words_with_a_capital_are_no_names() {
        let talk = "I'm Sorry. This is What I mean. My mother Always says so. Hi There! My name is on the list. Dr. Then left. \
                    My dad, God bless him. I'm American. I told Him. Thanks Again.";
        assert_eq!(names(talk), Vec::<&str>::new());
    }
}
