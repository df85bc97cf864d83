//! The turns of a WebVTT or SubRip file. Both are read by one forgiving walk: a timing line opens a cue, an empty line or the
//! next timing line closes it, everything else is not speech. It knows no profile but the words for speakers.

use crate::limits::TURNS_MAX;
use crate::profile::Profile;
use crate::read::shape::{Spoken, bounded};
use crate::read::speech;
use crate::rule::{Rejection, Rule};
use crate::text;
use empathd_proto::record::Speaker;

/// Most cues of one file: five hours of one a second, several times over.
const CUES_MAX: usize = 100_000;
/// Stands between start and end of a cue.
const ARROW: &str = "-->";

/// One cue: when it starts and what it shows.
struct Cue<'a> {
    start_ms: u64,
    lines: Vec<&'a str>,
}

/// Whether a line is the timing of a cue.
pub(crate) fn is_timing(line: &[u8]) -> bool {
    std::str::from_utf8(line).is_ok_and(|line| timing(line).is_some())
}

/// The turns of a caption file, consecutive cues of one speaker joined.
pub(crate) fn turns(bytes: &[u8], profile: &Profile) -> Result<Vec<Spoken>, Rejection> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Rejection::beyond(Rule::InvalidUtf8, error.valid_up_to(), bytes.len(), 0))?;
    let mut cues = cues(text)?;
    cues.sort_by_key(|cue| cue.start_ms);
    let mut turns: Vec<Spoken> = Vec::new();
    let (mut strangers, mut homeless) = (0, 0);
    let mut last_line = String::new();
    for cue in &cues {
        for (voice, said) in voices(cue, profile) {
            let said = clean(&said);
            // Rolling captions show a line again while the next one appears below it.
            let is_shown_again = voice == Voice::Unsaid && said == last_line;
            if said.is_empty() || is_shown_again {
                continue;
            }
            last_line.clone_from(&said);
            let speaker = match (voice, turns.last()) {
                (Voice::Known(speaker), _) => speaker,
                (Voice::Unsaid, Some(turn)) => turn.speaker,
                (Voice::Unsaid, None) => {
                    homeless += 1;
                    continue;
                }
                (Voice::Stranger, _) => {
                    strangers += 1;
                    continue;
                }
            };
            match turns.last_mut() {
                Some(turn) if turn.speaker == speaker => {
                    turn.text.push(' ');
                    turn.text.push_str(&said);
                }
                _ => turns.push(Spoken { speaker, text: said, start_ms: Some(cue.start_ms) }),
            }
        }
    }
    if strangers > 0 || turns.is_empty() && homeless > 0 {
        return Err(Rejection::beyond(Rule::UnknownSpeaker, strangers + homeless, 0, 0));
    }
    if turns.len() > TURNS_MAX {
        return Err(Rejection::beyond(Rule::TooManyTurns, turns.len(), TURNS_MAX, 0));
    }
    Ok(turns)
}

fn cues(text: &str) -> Result<Vec<Cue<'_>>, Rejection> {
    let mut cues: Vec<Cue<'_>> = Vec::new();
    let mut is_open = false;
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if let Some(start_ms) = timing(line) {
            cues.push(Cue { start_ms, lines: Vec::new() });
            is_open = true;
        } else if line.is_empty() {
            is_open = false;
        } else if let Some(cue) = cues.last_mut().filter(|_| is_open) {
            // The number of the next cue, where no empty line stands before it.
            let is_counter =
                line.bytes().all(|c| c.is_ascii_digit()) && lines.peek().is_some_and(|next| timing(next).is_some());
            bounded(line, 0)?;
            if !is_counter {
                cue.lines.push(line);
            }
        }
        if cues.len() > CUES_MAX {
            return Err(Rejection::beyond(Rule::TooManyTurns, cues.len(), CUES_MAX, 0));
        }
    }
    Ok(cues)
}

/// Start of a timing line, milliseconds.
fn timing(line: &str) -> Option<u64> {
    let (start, end) = line.split_once(ARROW)?;
    clock_ms(end.split_whitespace().next()?)?;
    clock_ms(start.trim())
}

/// `[hh:]mm:ss[.,]mmm` in milliseconds. Hours and the fraction may be missing.
pub(crate) fn clock_ms(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once(['.', ',']).unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.len() <= 4 && part.bytes().all(|c| c.is_ascii_digit());
    let parts: Vec<&str> = whole.split(':').collect();
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(|part| is_number(part)) || !is_number(fraction) {
        return None;
    }
    let seconds = parts.iter().try_fold(0u64, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    let millis: u64 = format!("{fraction:0<3}")[..3].parse().ok()?;
    Some(seconds * 1000 + millis)
}

/// Who is heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Somebody the profile knows.
    Known(Speaker),
    /// Somebody it does not.
    Stranger,
    /// Nobody is named: whoever spoke last goes on.
    Unsaid,
}

/// What a cue says, by voice. A voice tag counts first, then a name in front of a line.
fn voices(cue: &Cue<'_>, profile: &Profile) -> Vec<(Voice, String)> {
    let mut said: Vec<(Voice, String)> = Vec::new();
    for (tag, piece) in cue.lines.iter().flat_map(|line| voice_spans(line)) {
        let (voice, words) = match (tag, speech::prefixed(piece, profile)) {
            (Some(name), _) => (profile.speaker(name).map_or(Voice::Stranger, Voice::Known), piece),
            (None, Some((speaker, words))) => (Voice::Known(speaker), words),
            (None, None) => (Voice::Unsaid, piece),
        };
        match said.last_mut() {
            Some((_, text)) if voice == Voice::Unsaid => {
                text.push(' ');
                text.push_str(words);
            }
            _ => said.push((voice, words.to_owned())),
        }
    }
    said
}

/// The pieces of a line, each with the name of the voice tag before it.
fn voice_spans(line: &str) -> Vec<(Option<&str>, &str)> {
    let mut spans = Vec::new();
    let mut voice = None;
    let mut rest = line;
    let mut from = 0;
    while let Some(at) = rest[from..].find("<v").map(|at| at + from) {
        let tag = &rest[at..];
        let is_voice = matches!(tag.as_bytes().get(2), Some(b' ' | b'.' | b'\t'));
        let Some(end) = text::tag_end(tag).filter(|_| is_voice) else {
            from = at + 2;
            continue;
        };
        if !rest[..at].trim().is_empty() {
            spans.push((voice, &rest[..at]));
        }
        voice = tag[2..end].split_once([' ', '\t']).map(|(_, name)| name.trim());
        rest = &tag[end + 1..];
        from = 0;
    }
    if !rest.trim().is_empty() {
        spans.push((voice, rest));
    }
    spans
}

/// Words that transcribers put in brackets where they could not write down speech.
const NOISE: &[&str] =
    &["unintelligible", "inaudible", "crosstalk", "silence", "pause", "music", "applause", "laughter", "laughs"];

/// Longest note in brackets, characters.
const NOTE_CHARS_MAX: usize = 80;

/// Speech without tags, style codes and transcriber's notes.
fn clean(said: &str) -> String {
    let plain = text::without_markup(said);
    let mut out = String::with_capacity(plain.len());
    let mut rest = plain.as_str();
    while let Some(at) = rest.find(['[', '{', '(']) {
        out.push_str(&rest[..at]);
        let close = match rest.as_bytes()[at] {
            b'[' => ']',
            b'{' => '}',
            _ => ')',
        };
        let length =
            rest[at + 1..].chars().take(NOTE_CHARS_MAX).take_while(|c| *c != close).map(char::len_utf8).sum::<usize>();
        let note = &rest[at + 1..at + 1 + length];
        let is_closed = rest[at + 1 + length..].starts_with(close);
        let is_noise = || NOISE.iter().any(|word| note.trim().to_ascii_lowercase().starts_with(word));
        let is_note = is_closed && (note.starts_with('\\') || is_noise());
        let skipped = if is_note { length + 2 } else { 1 };
        if !is_note {
            out.push_str(&rest[at..=at]);
        }
        rest = &rest[at + skipped..];
    }
    out.push_str(rest);
    let squeezed = text::squeezed(&out);
    if text::has_words(&squeezed) { squeezed } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::profiles;

    fn said(text: &str) -> Vec<(Speaker, String, u64)> {
        let profile = profiles().iter().find(|profile| profile.key == "captions").unwrap();
        turns(text.as_bytes(), profile).unwrap().into_iter().map(|t| (t.speaker, t.text, t.start_ms.unwrap())).collect()
    }

    #[test]
    fn captions_with_every_ornament() {
        let text = "WEBVTT - session\r\n\r\nNOTE\r\nDoctor: not speech\r\n\r\nSTYLE\r\n::cue { color: red }\r\n\r\n\
            id-1\r\n00:01.000 --> 00:02.500 align:start position:10%\r\n<v.loud Therapist Ann>Hello, <i>how</i> are you?</v>\r\n\r\n\
            01:00:03.000 --> 01:00:04.000\r\n<v Client>Fine <UNSURE>I think</UNSURE>. <UNIN/>\r\n[inaudible 00:01]\r\n\r\n\
            01:00:04.000 --> 01:00:05.000\r\n<v Client>Not really.</v> <v Therapist>Tell me &amp; go on.\r\n";
        let expected = [
            (Speaker::Clinician, "Hello, how are you?", 1_000),
            (Speaker::Client, "Fine I think. Not really.", 3_603_000),
            (Speaker::Clinician, "Tell me & go on.", 3_604_000),
        ];
        assert_eq!(said(text), expected.map(|(speaker, text, at)| (speaker, text.to_owned(), at)));
    }

    #[test]
    fn subrip_without_empty_lines_and_out_of_order() {
        let text = "1\n00:00:05,000 --> 00:00:06,000\nPatient: {\\an8}Later.\nStill me.\n2\n00:00:01,5 --> 00:00:02,000\nDR: First, at 5.\n";
        let expected = [(Speaker::Clinician, "First, at 5.", 1_500), (Speaker::Client, "Later. Still me.", 5_000)];
        assert_eq!(said(text), expected.map(|(speaker, text, at)| (speaker, text.to_owned(), at)));
    }

    #[test]
    fn speakers_nobody_knows_are_refused() {
        let profile = profiles().iter().find(|profile| profile.key == "captions").unwrap();
        let text = b"WEBVTT\n\n00:01.000 --> 00:02.000\n<v Robin>Hello.\n";
        assert_eq!(turns(text, profile).err().unwrap().rule, Rule::UnknownSpeaker);
    }
}
