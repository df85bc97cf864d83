//! Tokens' bytes to text: whole characters only, and nothing that may be the beginning of a stop string. Refuses to
//! know models and how tokens are chosen.

use super::sample::{Logprobs, SpecError};
use crate::tokenizer::Tokenizer;
use empathd_proto::generate::{Logprob, MAX_STOP_BYTES, MAX_STOPS, TokenLogprobs};
use zeroize::Zeroize;

/// What is told of a token's probability, with the bytes that tokens stand for.
#[must_use]
pub fn spelled(logprobs: &Logprobs, tokenizer: &Tokenizer) -> TokenLogprobs {
    let spell = |(id, logprob): (u32, f32)| Logprob { bytes: tokenizer.bytes(id).to_vec(), logprob };
    TokenLogprobs { taken: spell(logprobs.taken), top: logprobs.top.iter().copied().map(spell).collect() }
}

/// What became of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// Text that is now certain; may be empty.
    Text(String),
    /// A stop string was met; the text before it.
    Stopped(String),
}

/// The text of one answer as it grows. It ends before the stop string that is complete first; of several that are complete
/// with the same character, before the longest. How the bytes are cut into pieces changes nothing.
#[derive(Default)]
pub struct TextStream {
    stops: Vec<Stop>,
    /// The beginning of a character.
    pending: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// A stop string and how far it has been met (Knuth, Morris and Pratt 1977): each byte of text costs two comparisons on
/// average, however long the string is.
struct Stop {
    bytes: Vec<u8>,
    /// For each length of a beginning, the longest shorter beginning that it ends with.
    shorter: Vec<usize>,
    /// Length of the longest beginning that the text ends with.
    met: usize,
}

impl TextStream {
    /// A text that ends before any of `stops`; empty ones are ignored.
    ///
    /// # Errors
    /// [`SpecError::Limit`] for more than [`MAX_STOPS`], or one longer than [`MAX_STOP_BYTES`].
    pub fn new(stops: Vec<String>) -> Result<Self, SpecError> {
        if stops.len() > MAX_STOPS {
            return Err(SpecError::Limit { field: "the number of stop strings", limit: MAX_STOPS });
        }
        if stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            return Err(SpecError::Limit { field: "the size of a stop string in bytes", limit: MAX_STOP_BYTES });
        }
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Stop::new).collect();
        Ok(Self { stops, ..Self::default() })
    }

    /// Takes the bytes of one more token.
    pub fn push(&mut self, bytes: &[u8]) -> Pushed {
        self.pending.extend_from_slice(bytes);
        let known = self.held.len();
        self.take_characters();
        for end in known + 1..=self.held.len() {
            let byte = self.held.as_bytes()[end - 1];
            let complete = self.stops.iter_mut().filter_map(|stop| stop.meets(byte).then_some(stop.bytes.len()));
            if let Some(longest) = complete.max() {
                self.held.truncate(end - longest);
                return Pushed::Stopped(std::mem::take(&mut self.held));
            }
        }
        let uncertain = self.stops.iter().map(|stop| stop.met).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - uncertain);
        Pushed::Text(std::mem::replace(&mut self.held, kept))
    }

    /// What was held back, when nothing more will come.
    pub fn finish(&mut self) -> String {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        std::mem::take(&mut self.held)
    }

    /// Overwrites what is held.
    pub fn wipe(&mut self) {
        self.pending.zeroize();
        self.held.zeroize();
        self.stops.iter_mut().for_each(|stop| stop.bytes.zeroize());
        self.stops.clear();
    }

    /// Moves whole characters from the pending bytes to the held text; bytes of no character become U+FFFD.
    fn take_characters(&mut self) {
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.pending.clear();
                    return;
                }
                Err(error) => {
                    let (valid, rest) = self.pending.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    let Some(wrong) = error.error_len() else {
                        self.pending = rest.to_vec();
                        return;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[wrong..].to_vec();
                }
            }
        }
    }
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let mut shorter = vec![0; bytes.len() + 1];
        let mut met = 0;
        for end in 1..bytes.len() {
            while met > 0 && bytes[end] != bytes[met] {
                met = shorter[met];
            }
            met += usize::from(bytes[end] == bytes[met]);
            shorter[end + 1] = met;
        }
        Self { bytes, shorter, met: 0 }
    }

    /// Whether the text, with one more byte, ends with the whole string.
    fn meets(&mut self, byte: u8) -> bool {
        while self.met > 0 && self.bytes[self.met] != byte {
            self.met = self.shorter[self.met];
        }
        self.met += usize::from(self.bytes[self.met] == byte);
        self.met == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(stops.iter().map(|stop| (*stop).to_owned()).collect()).expect("within limits")
    }

    fn text(pushed: Pushed) -> String {
        match pushed {
            Pushed::Text(text) => text,
            Pushed::Stopped(text) => format!("{text}|stopped"),
        }
    }

    #[test]
    fn characters_come_whole() {
        let mut stream = stream(&[]);
        let bytes = "é🙂".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|byte| text(stream.push(&[*byte]))).collect();
        assert_eq!(pieces, ["", "é", "", "", "", "🙂"]);
        assert_eq!(text(stream.push(b"a\xff")), "a\u{FFFD}");
        assert_eq!(text(stream.push(b"\xe2\x82")), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn a_stop_string_is_met_across_pieces_and_its_beginning_is_held() {
        let mut first = stream(&["\n\nUser:", ""]);
        assert_eq!(text(first.push(b"yes\n")), "yes");
        assert_eq!(text(first.push(b"no\n")), "\nno");
        assert_eq!(text(first.push(b"\nUs")), "");
        assert_eq!(text(first.push(b"er: x")), "|stopped");
        let mut second = stream(&["END", "é"]);
        assert_eq!(text(second.push(b"an EN\xc3")), "an ");
        assert_eq!(second.finish(), "EN\u{FFFD}");
    }

    #[test]
    fn too_many_and_too_long_stop_strings_are_refused_by_name() {
        let refused = |stops: Vec<String>| TextStream::new(stops).err().map(|error| error.to_string());
        assert_eq!(refused(vec!["x".repeat(MAX_STOP_BYTES); MAX_STOPS]), None);
        assert!(refused(vec!["x".repeat(10_000)]).expect("refused").contains("stop string in bytes"));
        assert!(refused(vec!["x".to_owned(); MAX_STOPS + 1]).expect("refused").contains("number of stop strings"));
    }

    proptest! {
        #[test]
        fn the_text_ends_before_the_stop_that_is_complete_first(
            all in "[abé]{0,24}",
            stops in proptest::collection::vec("[abé]{1,4}", 1..4),
            cut in 1usize..5,
        ) {
            let mut stream = TextStream::new(stops.clone()).expect("within limits");
            let (mut seen, mut stopped) = (String::new(), false);
            for piece in all.as_bytes().chunks(cut) {
                match stream.push(piece) {
                    Pushed::Text(text) => seen.push_str(&text),
                    Pushed::Stopped(text) => {
                        seen.push_str(&text);
                        stopped = true;
                        break;
                    }
                }
            }
            if !stopped {
                seen.push_str(&stream.finish());
            }
            let ends = all.char_indices().map(|(at, character)| at + character.len_utf8());
            let expected = ends.clone().find_map(|end| {
                let met = stops.iter().filter(|stop| all[..end].ends_with(stop.as_str()));
                met.map(|stop| &all[..end - stop.len()]).min_by_key(|before| before.len())
            });
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(seen.as_str(), expected.unwrap_or(all.as_str()));
        }
    }
}
