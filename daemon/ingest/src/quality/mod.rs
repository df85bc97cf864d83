//! A few honest measures of a record, kept beside it. They say what they count; whether it is enough is decided elsewhere.

mod stock;

use crate::text;
use empathd_proto::record::{Scores, Speaker, Turn};
use std::collections::HashSet;

/// Longer words carry content; shorter ones mostly bind.
const CONTENT_CHARS_MIN: usize = 4;
/// Shorter turns repeat in every conversation.
const DUPLICATE_WORDS_MIN: usize = 4;

/// Measures a record.
#[must_use]
pub fn scores(turns: &[Turn]) -> Scores {
    let clinician = || turns.iter().filter(|turn| turn.speaker == Speaker::Clinician);
    let context = turns.iter().filter(|turn| turn.speaker != Speaker::Clinician);
    Scores {
        distinct_bigrams: distinct_bigrams(clinician()),
        generic_share: stock::share(clinician().map(|turn| turn.text.as_str())),
        relevance: relevance(clinician(), context),
        letter_share: letter_share(turns),
        clinician_words: clinician().map(|turn| text::words(&turn.text).count() as u32).sum(),
    }
}

/// Share of the clinician's turns of four words and more that were said before in the same record.
#[must_use]
pub fn duplicate_share(turns: &[Turn]) -> f64 {
    let mut said = HashSet::new();
    let (mut all, mut again) = (0u32, 0u32);
    for turn in turns.iter().filter(|turn| turn.speaker == Speaker::Clinician) {
        let spoken = text::spoken(&turn.text);
        if spoken.split(' ').count() >= DUPLICATE_WORDS_MIN {
            all += 1;
            again += u32::from(!said.insert(spoken));
        }
    }
    if all == 0 { 0.0 } else { f64::from(again) / f64::from(all) }
}

fn share(part: usize, whole: usize) -> f32 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64) as f32 }
}

fn distinct_bigrams<'a>(turns: impl Iterator<Item = &'a Turn>) -> f32 {
    let mut all = 0;
    let mut distinct = HashSet::new();
    for turn in turns {
        let spoken = text::spoken(&turn.text);
        let words: Vec<&str> = spoken.split(' ').collect();
        for pair in words.windows(2) {
            all += 1;
            distinct.insert(blake3::hash(pair.join(" ").as_bytes()));
        }
    }
    if all == 0 { 1.0 } else { share(distinct.len(), all) }
}

fn content_words(turn: &Turn) -> Vec<String> {
    let words = text::words(&turn.text).filter(|word| word.chars().count() >= CONTENT_CHARS_MIN);
    words.map(str::to_lowercase).filter(|word| !stock::binds(word)).collect()
}

fn relevance<'a>(response: impl Iterator<Item = &'a Turn>, context: impl Iterator<Item = &'a Turn>) -> f32 {
    let known: HashSet<String> = context.flat_map(content_words).collect();
    let said: HashSet<String> = response.flat_map(content_words).collect();
    share(said.iter().filter(|word| known.contains(*word)).count(), said.len())
}

fn letter_share(turns: &[Turn]) -> f32 {
    let visible = || turns.iter().flat_map(|turn| turn.text.chars()).filter(|c| !c.is_whitespace());
    share(visible().filter(|c| c.is_alphabetic()).count(), visible().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(speaker: Speaker, text: &str) -> Turn {
        Turn { speaker, text: text.into(), start_ms: None }
    }

    #[test]
    fn the_measures_count_what_they_say() {
        let turns = [
            turn(Speaker::Client, "My mother keeps calling about the wedding."),
            turn(Speaker::Clinician, "The wedding worries your mother? The wedding worries you?"),
        ];
        let scores = scores(&turns);
        assert_eq!(scores.clinician_words, 9);
        assert_eq!(scores.distinct_bigrams, 6.0 / 8.0);
        assert_eq!(scores.relevance, 2.0 / 3.0, "wedding and mother, not worries");
        assert!(scores.letter_share > 0.9);
        assert_eq!(scores.generic_share, 0.0);
    }

    #[test]
    fn short_turns_may_repeat_and_long_ones_may_not() {
        let short = vec![turn(Speaker::Clinician, "Mm-hm."); 9];
        assert_eq!(duplicate_share(&short), 0.0);
        let long = vec![turn(Speaker::Clinician, "What would that be like?"); 4];
        assert_eq!(duplicate_share(&long), 0.75);
    }
}
