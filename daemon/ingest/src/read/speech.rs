//! Who says what in a line of a transcript: `Doctor: ...`, `[patient] ...`, `>> THERAPIST: ...`, a clock in front or not. It
//! guesses no speaker: a prefix counts only when the profile knows it.

use crate::profile::Profile;
use empathd_proto::record::Speaker;

/// Longest prefix that may name a speaker, in bytes.
const PREFIX_BYTES_MAX: usize = 60;

/// The speaker in front of a line and what is said after it.
pub(crate) fn prefixed<'a>(line: &'a str, profile: &Profile) -> Option<(Speaker, &'a str)> {
    let bare = line.trim_start_matches(|c: char| c.is_whitespace() || ">-*#\u{2013}\u{2014}".contains(c));
    let (name, said) = match bare.strip_prefix('[') {
        Some(rest) if !rest.trim_start().starts_with(|c: char| c.is_ascii_digit()) => {
            let (name, said) = rest.split_once(']')?;
            (name, said.strip_prefix(':').unwrap_or(said))
        }
        _ => without_clock(bare).split_once([':', '\u{ff1a}'])?,
    };
    let name = name.trim_matches(|c: char| c == '*' || c == '"' || c.is_whitespace());
    if name.len() > PREFIX_BYTES_MAX || name.contains(['.', '?', '!', ',']) && !name.starts_with("Dr.") {
        return None;
    }
    let speaker = profile.speaker(name)?;
    Some((speaker, said.trim_start_matches('*').trim()))
}

/// A line without a time stamp such as `[00:01:02]` or `00:01` at its start.
fn without_clock(line: &str) -> &str {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit() || "[]():. ".contains(c));
    let clock = &line[..line.len() - rest.len()];
    if clock.contains(':') { rest } else { line }
}

/// A transcript in one text: each line with a known prefix starts a turn, other lines go on with it.
pub(crate) fn transcript(text: &str, profile: &Profile) -> (Vec<(Speaker, String)>, usize) {
    let mut turns: Vec<(Speaker, String)> = Vec::new();
    let mut homeless = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match (prefixed(line, profile), turns.last_mut()) {
            (Some((speaker, said)), _) => turns.push((speaker, said.to_owned())),
            (None, Some((_, open))) => {
                open.push('\n');
                open.push_str(line.trim());
            }
            (None, None) => homeless += 1,
        }
    }
    (turns, homeless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::profiles;

    #[test]
    fn a_prefix_names_a_speaker_only_when_it_is_known() {
        let profile = &profiles()[0];
        let case = |line| prefixed(line, profile);
        assert_eq!(case("Doctor: Hello."), Some((Speaker::Clinician, "Hello.")));
        assert_eq!(case(">> PATIENT 2: Fine."), Some((Speaker::Client, "Fine.")));
        assert_eq!(case("[doctor] hi , there"), Some((Speaker::Clinician, "hi , there")));
        assert_eq!(case("[00:01:02] **Therapist**: Yes."), Some((Speaker::Clinician, "Yes.")));
        assert_eq!(case("Dr. Moss: Yes."), Some((Speaker::Clinician, "Yes.")));
        assert_eq!(case("I told my doctor, twice: no."), None);
        assert_eq!(case("Well: no."), None);
    }
}
