//! Recorded sessions as subtitles, WebVTT and SubRip, and as a labelled table. It knows times and speakers' names.

use super::SourceFile;
use super::talk::{Desk, Talk, Voice, converse};
use super::text::everyday::THEMES;

const VTT_SESSIONS: usize = 8;
const SRT_SESSIONS: usize = 6;
const MS_PER_CHARACTER: u64 = 55;
const PAUSE_MS: u64 = 600;
/// Labelled sessions of high quality, and of low quality.
const LABELLED: [(&str, usize); 2] = [("high", 6), ("low", 4)];

/// All files of this module. The second number is how many labelled sessions are of low quality.
pub(super) fn files(desk: &mut Desk) -> (Vec<SourceFile>, u64) {
    let mut files = Vec::new();
    for n in 0..VTT_SESSIONS {
        let talk = session(desk, n);
        files.push(SourceFile::new(&format!("session_{n:02}.vtt"), vtt(&talk).into_bytes(), 1));
    }
    for n in 0..SRT_SESSIONS {
        let talk = session(desk, n + 5);
        files.push(SourceFile::new(&format!("session_{n:02}.srt"), srt(&talk).into_bytes(), 1));
    }
    files.push(labelled(desk));
    (files, LABELLED[1].1 as u64)
}

/// Two themes in one hour.
fn session(desk: &mut Desk, n: usize) -> Talk {
    let (first, second) = (&THEMES[n % THEMES.len()], &THEMES[(n + 3) % THEMES.len()]);
    let mut talk = desk.new_talk(|rng| {
        let mut talk = vec![(Voice::Clinician, "Welcome. Where would you like to begin today?".to_owned())];
        talk.extend(converse(first, 2, rng));
        talk.extend(converse(second, 3, rng));
        talk
    });
    desk.maybe_slip(&mut talk);
    talk
}

/// Start and end of each line, milliseconds.
fn times(talk: &Talk) -> Vec<(u64, u64)> {
    let mut at = 1000;
    let mut times = Vec::new();
    for (_, text) in talk {
        let end = at + text.len() as u64 * MS_PER_CHARACTER;
        times.push((at, end));
        at = end + PAUSE_MS;
    }
    times
}

fn stamp(ms: u64, point: char) -> String {
    format!("{:02}:{:02}:{:02}{point}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

fn label(voice: Voice) -> &'static str {
    if voice == Voice::Client { "Client" } else { "Therapist" }
}

fn vtt(talk: &Talk) -> String {
    let mut out = String::from("WEBVTT\n\n");
    for ((voice, text), (start, end)) in talk.iter().zip(times(talk)) {
        out += &format!("{} --> {}\n<v {}>{text}\n\n", stamp(start, '.'), stamp(end, '.'), label(*voice));
    }
    out
}

fn srt(talk: &Talk) -> String {
    let mut out = String::new();
    for (n, ((voice, text), (start, end))) in talk.iter().zip(times(talk)).enumerate() {
        out += &format!("{}\n{} --> {}\n", n + 1, stamp(start, ','), stamp(end, ','));
        out += &format!("{}: {text}\n\n", label(*voice));
    }
    out
}

const LABELLED_HEADER: [&str; 11] = [
    "transcript_id",
    "mi_quality",
    "video_title",
    "video_url",
    "topic",
    "utterance_id",
    "interlocutor",
    "timestamp",
    "utterance_text",
    "main_therapist_behaviour",
    "client_talk_type",
];

/// Sessions with a quality label, one utterance a row, in the column layout of annotated interview collections.
fn labelled(desk: &mut Desk) -> SourceFile {
    let mut rows = vec![LABELLED_HEADER.map(str::to_owned)];
    let mut id = 0;
    for (quality, count) in LABELLED {
        for _ in 0..count {
            let talk = if quality == "high" { session(desk, id) } else { lecture(desk, id) };
            for (n, ((voice, text), (start, _))) in talk.iter().zip(times(&talk)).enumerate() {
                let who = if *voice == Voice::Client { "client" } else { "therapist" };
                let clock = stamp(start, '.');
                let (behaviour, kind) = if who == "client" { ("n/a", "neutral") } else { ("reflection", "n/a") };
                rows.push(
                    [
                        &id.to_string(),
                        quality,
                        "session",
                        "",
                        THEMES[id % THEMES.len()].title,
                        &n.to_string(),
                        who,
                        &clock[..8],
                        text,
                        behaviour,
                        kind,
                    ]
                    .map(|cell: &str| cell.to_owned()),
                );
            }
            id += 1;
        }
    }
    let mut file = SourceFile::table("labelled_sessions.csv", &rows);
    file.records = id as u64;
    file
}

/// What a session of low quality sounds like: the clinician lectures and does not listen.
fn lecture(desk: &mut Desk, n: usize) -> Talk {
    const LECTURES: &[&str] = &[
        "You simply have to pull yourself together, everyone else manages it.",
        "I told you last time what to do and you did not do it.",
        "Let me explain to you why that is the wrong way to look at things.",
        "There is really no reason to feel like that, other people have it harder.",
    ];
    let theme = &THEMES[n % THEMES.len()];
    desk.new_talk(|rng| {
        let mut talk = Talk::new();
        let first = rng.below(LECTURES.len());
        for (k, more) in theme.more.iter().enumerate() {
            talk.push((Voice::Client, format!("{} {more}", rng.pick(theme.opens))));
            talk.push((Voice::Clinician, LECTURES[(first + k) % LECTURES.len()].to_owned()));
        }
        talk
    })
}
