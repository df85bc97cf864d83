//! Tokens' bytes to text: whole characters only, and nothing that may be the beginning of a stop string. Refuses to
//! know tokens.

use zeroize::Zeroize;

/// What became of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Text that is now certain; may be empty.
    Text(String),
    /// A stop string was met; the text before it.
    Stopped(String),
}

/// The text of one answer as it grows.
#[derive(Default)]
pub(super) struct TextStream {
    stops: Vec<String>,
    /// The beginning of a character.
    pending: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl TextStream {
    pub(super) fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, ..Self::default() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Pushed {
        self.pending.extend_from_slice(bytes);
        self.take_characters();
        if let Some(begin) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(begin);
            return Pushed::Stopped(std::mem::take(&mut self.held));
        }
        let kept = self.held.split_off(self.certain());
        Pushed::Text(std::mem::replace(&mut self.held, kept))
    }

    /// What was held back, when nothing more will come.
    pub(super) fn finish(&mut self) -> String {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        std::mem::take(&mut self.held)
    }

    pub(super) fn wipe(&mut self) {
        self.pending.zeroize();
        self.held.zeroize();
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

    /// Bytes of the held text that cannot be part of a stop string any more.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(start, _)| start).skip_while(|start| *start < from);
        starts
            .find(|start| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(pushed: Pushed) -> String {
        match pushed {
            Pushed::Text(text) => text,
            Pushed::Stopped(text) => format!("{text}|stopped"),
        }
    }

    #[test]
    fn characters_come_whole() {
        let mut stream = TextStream::new(vec![]);
        let bytes = "é🙂".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|byte| text(stream.push(&[*byte]))).collect();
        assert_eq!(pieces, ["", "é", "", "", "", "🙂"]);
        assert_eq!(text(stream.push(b"a\xff")), "a\u{FFFD}");
        assert_eq!(text(stream.push(b"\xe2\x82")), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn a_stop_string_is_met_across_pieces_and_its_beginning_is_held() {
        let mut stream = TextStream::new(vec!["\n\nUser:".to_owned(), String::new()]);
        assert_eq!(text(stream.push(b"yes\n")), "yes");
        assert_eq!(text(stream.push(b"no\n")), "\nno");
        assert_eq!(text(stream.push(b"\nUs")), "");
        assert_eq!(text(stream.push(b"er: x")), "|stopped");
        let mut stream = TextStream::new(vec!["END".to_owned()]);
        assert_eq!(text(stream.push(b"an EN")), "an ");
        assert_eq!(stream.finish(), "EN");
    }

    proptest! {
        #[test]
        fn pieces_make_the_text_before_the_first_stop(all in "[ab]{0,24}", stop in "[ab]{1,4}", cut in 1usize..5) {
            let mut stream = TextStream::new(vec![stop.clone()]);
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
            prop_assert_eq!(stopped, all.contains(&stop));
            prop_assert_eq!(Some(seen.as_str()), all.split(&stop).next());
        }
    }
}
