//! Stock phrases that answer anything, encouragers that look like them and are good practice, and words that only bind. What
//! share of them is too much is decided elsewhere.

use crate::text;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Replies that fit every message and help with none.
const STOCK: &[&str] = &[
    "i understand",
    "i understand how you feel",
    "i understand that",
    "i am sorry to hear that",
    "i'm sorry to hear that",
    "i'm so sorry to hear that",
    "sorry to hear that",
    "that's too bad",
    "that is too bad",
    "that's good",
    "that's great",
    "that's nice",
    "that's interesting",
    "that sounds good",
    "sounds good",
    "i see what you mean",
    "everything will be fine",
    "everything will be okay",
    "everything will be ok",
    "everything happens for a reason",
    "it will get better",
    "it gets better",
    "things will get better",
    "don't worry",
    "don't worry about it",
    "just be positive",
    "stay positive",
    "stay strong",
    "hang in there",
    "you will be fine",
    "you'll be fine",
    "you'll be okay",
    "time heals all wounds",
    "i hope you feel better soon",
    "i hope this helps",
    "hope this helps",
    "good luck",
    "best of luck",
    "thank you for sharing",
    "thanks for sharing",
    "you are not alone",
    "you're not alone",
    "please seek professional help",
    "seek professional help",
    "you should see a therapist",
    "i don't know what to say",
    "as an ai language model i cannot help with that",
    "i am just an ai",
    "how can i help you today",
];

/// Short invitations to go on (OARS and minimal encouragers of motivational interviewing). They are never counted as stock.
const ENCOURAGERS: &[&str] = &[
    "mm-hm",
    "mm-hmm",
    "mmhmm",
    "mhm",
    "mm",
    "hmm",
    "uh-huh",
    "uh huh",
    "mm hm",
    "mm hmm",
    "yeah",
    "yes",
    "okay",
    "ok",
    "right",
    "sure",
    "i see",
    "go on",
    "and",
    "so",
    "tell me more",
    "tell me more about that",
    "say more",
    "can you say more",
    "can you tell me more",
    "what else",
    "anything else",
    "take your time",
    "i'm listening",
    "i hear you",
    "i'm here",
    "what happened then",
    "how so",
    "in what way",
    "what was that like",
    "how was that for you",
];

/// Words of four letters and more that bind a sentence.
static BINDING: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("binding.txt").split_whitespace().collect());

/// Whether a word only binds.
pub(super) fn binds(word: &str) -> bool {
    BINDING.contains(word)
}

/// Share of turns made of nothing but stock phrases. Turns made of encouragers are left out of both counts.
pub(super) fn share<'a>(turns: impl Iterator<Item = &'a str>) -> f32 {
    let (mut counted, mut stock) = (0usize, 0usize);
    for turn in turns {
        let sentences: Vec<String> = turn
            .split(['.', '!', '?', ',', ';', '\n'])
            .map(text::spoken)
            .filter(|sentence| !sentence.is_empty())
            .collect();
        let is_known = |list: &[&str], sentence: &String| list.contains(&sentence.as_str());
        if sentences.iter().all(|sentence| is_known(ENCOURAGERS, sentence)) {
            continue;
        }
        counted += 1;
        let known = |sentence: &String| is_known(STOCK, sentence) || is_known(ENCOURAGERS, sentence);
        stock += usize::from(sentences.iter().all(known));
    }
    super::share(stock, counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encouragers_are_good_practice_and_stock_phrases_are_not() {
        assert_eq!(share(["Mm-hm.", "Tell me more.", "Okay. Go on."].into_iter()), 0.0);
        assert_eq!(share(["I'm sorry to hear that. Stay strong!"].into_iter()), 1.0);
        assert_eq!(share(["Stay strong.", "What makes Mondays so heavy?", "Yeah."].into_iter()), 0.5);
    }
}
