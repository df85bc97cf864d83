//! Text as detectors see it, with a map back to the bytes as they are: compatibility forms (NFKC), invisible characters,
//! typographic dashes and quotes, and letters of other scripts that pose as Latin ones. It knows no identifier.

use crate::deid::Found;
use empathd_proto::record::PhiSpan;
use unicode_normalization::UnicodeNormalization as _;

/// Normalised text with, for each of its bytes, where that byte's character starts and ends in the original.
pub(crate) struct Normal {
    text: String,
    /// `None` when nothing changed.
    origin: Option<Vec<(u32, u32)>>,
}

impl Normal {
    /// Normalises a text.
    pub(crate) fn of(original: &str) -> Self {
        if original.is_ascii() {
            return Self { text: original.to_owned(), origin: None };
        }
        let mut text = String::with_capacity(original.len());
        let mut origin = Vec::with_capacity(original.len());
        let mut poses = false;
        for (start, c) in original.char_indices() {
            if !c.is_alphabetic() && !is_invisible(c) {
                poses = false;
            } else if start == 0 || !text.ends_with(char::is_alphabetic) {
                poses = mixes_latin(&original[start..]);
            }
            let place = (start as u32, (start + c.len_utf8()) as u32);
            let mut push = |c: char| {
                text.push(c);
                origin.extend(std::iter::repeat_n(place, c.len_utf8()));
            };
            match c {
                c if is_invisible(c) => {}
                c if poses && latin(c).is_some() => push(latin(c).unwrap_or(c)),
                c => std::iter::once(c).nfkc().map(plain).for_each(&mut push),
            }
        }
        Self { text, origin: Some(origin) }
    }

    /// The normalised text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The place of a find in the original text of turn `turn`.
    pub(crate) fn span(&self, turn: usize, found: Found) -> Option<PhiSpan> {
        let (start, end) = match &self.origin {
            None => (found.start as u32, found.end as u32),
            Some(origin) => (origin.get(found.start)?.0, origin.get(found.end.checked_sub(1)?)?.1),
        };
        Some(PhiSpan { turn: turn as u32, start, end, kind: found.kind })
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

fn plain(c: char) -> char {
    match c {
        '\u{2010}'..='\u{2013}' | '\u{2212}' => '-',
        // A long dash stands between words and joins none.
        '\u{2014}' | '\u{2015}' => ' ',
        '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{02bc}' => '\'',
        '\u{201c}' | '\u{201d}' => '"',
        '\u{660}'..='\u{669}' => char::from(b'0' + (c as u32 - 0x660) as u8),
        '\u{6f0}'..='\u{6f9}' => char::from(b'0' + (c as u32 - 0x6f0) as u8),
        '\n' | '\t' => c,
        c if c.is_whitespace() => ' ',
        c => c,
    }
}

/// Longer words are looked at in part only.
const WORD_CHARS_MAX: usize = 64;

/// Whether the word that starts here has ASCII letters and look-alikes of them.
fn mixes_latin(text: &str) -> bool {
    let word = || text.chars().take_while(|c| c.is_alphabetic() || is_invisible(*c)).take(WORD_CHARS_MAX);
    word().any(|c| c.is_ascii_alphabetic()) && word().any(|c| latin(c).is_some())
}

/// The Latin letter that a Cyrillic or Greek one looks like.
fn latin(c: char) -> Option<char> {
    const PAIRS: &[(&str, &str)] = &[
        ("\u{430}\u{435}\u{43e}\u{440}\u{441}\u{443}\u{445}\u{456}\u{458}\u{455}\u{501}", "aeopcyxijsd"),
        (
            "\u{410}\u{412}\u{415}\u{41a}\u{41c}\u{41d}\u{41e}\u{420}\u{421}\u{422}\u{423}\u{425}\u{406}\u{405}",
            "ABEKMHOPCTYXIS",
        ),
        (
            "\u{391}\u{392}\u{395}\u{396}\u{397}\u{399}\u{39a}\u{39c}\u{39d}\u{39f}\u{3a1}\u{3a4}\u{3a5}\u{3a7}\u{3bf}\u{3bd}",
            "ABEZHIKMNOPTYXov",
        ),
    ];
    PAIRS
        .iter()
        .find_map(|(from, to)| from.chars().zip(to.chars()).find(|(look, _)| *look == c).map(|(_, latin)| latin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::record::PhiKind;

    #[test]
    fn every_find_maps_back_to_whole_characters() {
        let original = "\u{fb01}ne \u{410}nna \u{2014} \u{ff11}\u{200b}2 \u{430}\u{43d}\u{43d}\u{430}";
        let normal = Normal::of(original);
        assert_eq!(normal.text(), "fine Anna   12 \u{430}\u{43d}\u{43d}\u{430}");
        let at = normal.text().find("12").unwrap();
        let span = normal.span(3, Found::new(at, at + 2, PhiKind::OtherId)).unwrap();
        assert_eq!(&original[span.start as usize..span.end as usize], "\u{ff11}\u{200b}2");
        let half = normal.span(0, Found::new(0, 1, PhiKind::OtherId)).unwrap();
        assert_eq!(&original[half.start as usize..half.end as usize], "\u{fb01}", "half a ligature is the whole one");
    }
}
