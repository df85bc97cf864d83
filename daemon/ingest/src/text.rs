//! Small questions about text that several rooms ask: its words, its letters, whether it has any. It knows no profile.

use unicode_segmentation::UnicodeSegmentation as _;

/// The words of a text, as Unicode sees them.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.unicode_words()
}

/// Whether a text has at least one word.
pub(crate) fn has_words(text: &str) -> bool {
    words(text).next().is_some()
}

/// Lower case, words joined by single spaces, everything else gone: two texts that sound alike look alike.
pub(crate) fn spoken(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in words(text) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().flat_map(char::to_lowercase).map(|c| if c == '\u{2019}' { '\'' } else { c }));
    }
    out
}

/// Runs of white space become one space; none at the ends.
pub(crate) fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lines keep their breaks; spaces at their ends and runs of empty lines go.
pub(crate) fn tidied(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut gap = false;
    for line in text.lines().map(str::trim_end) {
        if line.trim_start().is_empty() {
            gap = !out.is_empty();
            continue;
        }
        if !out.is_empty() {
            out.push_str(if gap { "\n\n" } else { "\n" });
        }
        out.push_str(line);
        gap = false;
    }
    out.trim().to_owned()
}

/// Text of a web page or caption without its tags, with the few entities that such text carries resolved.
pub(crate) fn without_markup(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(end) = tag_end(rest) {
            let name = rest[1..end].trim_start_matches('/').to_ascii_lowercase();
            if ["p", "br", "br/", "br /", "div", "li"].contains(&name.as_str()) {
                out.push('\n');
            }
            rest = &rest[end + 1..];
        } else if let Some((entity, meaning)) = ENTITIES.iter().find(|(entity, _)| rest.starts_with(entity)) {
            out.push_str(meaning);
            rest = &rest[entity.len()..];
        } else {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Longest tag that is taken for one, in bytes. A lone `<` in speech must not swallow what follows.
const TAG_BYTES_MAX: usize = 200;

/// Index of the `>` that closes the tag at the start of `text`, when there is one.
pub(crate) fn tag_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let first = *bytes.get(1).filter(|_| bytes[0] == b'<')?;
    let end = bytes.iter().take(TAG_BYTES_MAX).position(|c| *c == b'>')?;
    let is_time = || bytes[1..end].iter().all(|c| c.is_ascii_digit() || b":.".contains(c));
    (first.is_ascii_alphabetic() || first == b'/' || (first.is_ascii_digit() && is_time())).then_some(end)
}

const ENTITIES: &[(&str, &str)] = &[
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", "\""),
    ("&#39;", "'"),
    ("&#x27;", "'"),
    ("&apos;", "'"),
    ("&nbsp;", " "),
    ("&lrm;", ""),
    ("&rlm;", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_goes_and_speech_stays() {
        assert_eq!(without_markup("<p>One &amp; two</p>a < b, <UNSURE>maybe</UNSURE>"), "\nOne & two\na < b, maybe");
        assert_eq!(without_markup("i <3 you & me -> us"), "i <3 you & me -> us");
    }

    #[test]
    fn tidying_keeps_paragraphs() {
        assert_eq!(tidied("  a  \n\n\n\nb\nc  \n"), "a\n\nb\nc");
        assert_eq!(spoken("I\u{2019}m  HERE, you know."), "i'm here you know");
    }
}
